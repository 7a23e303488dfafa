"""A study from one command: its grid, its report, and what a second start does."""

import csv
import json

import jax
import numpy as np
import pytest

from covid_jax.studies.schedule import the_only_study
from covid_jax.training.checkpoint import load_params
from tests.conftest import ROOT, SMALL_NETWORK

ARGUMENTS = [
    f"--config={ROOT}/configs/tiny.py",
    "--config.study.folds=(0,)",
    "--config.study.runs=('scratch','frozen_encoder-msd')",
    "--config.study.raw.phantom_cases=4",
    "--config.study.note=a test",
    "--config.data.augment=False",
    *SMALL_NETWORK,
]

NOTE = "a test | SYNTHETIC data: msd_lung, phantom"


@pytest.fixture(scope="module")
def study(tmp_path_factory, command):
    workdir = tmp_path_factory.mktemp("study") / "study"
    finished = command("study", *ARGUMENTS, f"--workdir={workdir}")
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return workdir, finished.stdout


def test_the_grid_leaves_its_pinned_folders(study):
    workdir, printed = study
    assert {path.name for path in (workdir / "runs").iterdir()} == {
        "scratch-none-fold0",
        "frozen_encoder-msd-fold0",
    }
    assert (workdir / "pretraining" / "msd" / "checkpoints" / "20").is_dir()
    assert str(workdir / "report" / "index.html") in printed
    assert "python -m covid_jax.train " in printed


def test_the_frozen_encoder_is_the_pretrained_one_bit_for_bit(study):
    workdir, _ = study
    before = load_params(workdir / "pretraining" / "msd")
    after = load_params(workdir / "runs" / "frozen_encoder-msd-fold0")
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))  # noqa: E731
    assert same(before["encoder"], after["encoder"])
    assert not same(before["decoder"], after["decoder"])


def test_every_table_says_which_data_is_synthetic_though_the_note_does_not(study):
    report = study[0] / "report"
    for number in (1, 2, 3):
        rows = list(csv.DictReader((report / f"table_{number}.csv").open()))
        assert {row["note"] for row in rows} == {NOTE}
    assert NOTE in (report / "index.html").read_text()
    assert json.loads((report / "results.json").read_text())["note"] == NOTE
    assert NOTE in study[1]


def test_table_3_has_the_runs(study):
    rows = {
        row["strategy"]: row for row in csv.DictReader((study[0] / "report" / "table_3.csv").open())
    }
    metrics = json.loads((study[0] / "runs" / "scratch-none-fold0" / "metrics.json").read_text())
    assert float(rows["scratch"]["dsc_mean"]) == pytest.approx(metrics["mean"]["dsc"])
    assert float(rows["scratch"]["epoch_seconds"]) > 0


def test_of_data_that_is_not_the_papers_nothing_of_the_paper_is_shown(study):
    report = study[0] / "report"
    rows = list(csv.DictReader((report / "table_1.csv").open()))
    assert [row["strategy"] for row in rows] == ["scratch", "frozen_encoder"]
    for path in (*report.glob("table_*"), report / "results.json", report / "index.html"):
        for word in ("paper", "COVID", "Wang et al"):
            assert word not in path.read_text(), (path, word)


def test_the_page_needs_no_other_file(study):
    page = (study[0] / "report" / "index.html").read_text()
    assert "data:image/png;base64," in page
    assert "<script src" not in page
    assert "http" not in page.replace("data:", "")


def test_a_second_start_finds_everything_done(study, command):
    workdir, _ = study
    finished = command("study", *ARGUMENTS, f"--workdir={workdir}", "--list")
    device, note, *lines, last = finished.stdout.splitlines()
    assert device.startswith("device of the runs: cpu")
    assert note == ("note: msd_lung, phantom: SYNTHETIC, as config.study.raw has no folder of them")
    assert len(lines) == 5
    assert all(line.startswith("done") for line in lines), lines
    assert last == "5 of 5 steps are done"


def test_what_only_finds_may_leave_no_run_to_report(study, command, tmp_path):
    arguments = (*ARGUMENTS, f"--workdir={tmp_path / 'study'}", "--only=^prepare-phantom")
    finished = command("study", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith("no run is finished yet, so there is no report\n")


def test_what_is_to_do_is_listed_with_the_seconds_that_it_will_take(study, command):
    workdir, _ = study
    more = "--config.study.folds=(1,)"  # besides 0
    finished = command("study", *ARGUMENTS, more, f"--workdir={workdir}", "--list")
    line = next(line for line in finished.stdout.splitlines() if "scratch-none-fold1" in line)
    state, seconds = line.split()[0], float(line.split()[2])
    assert state == "to"
    record = json.loads((workdir / "steps" / "scratch-none-fold0.json").read_text())
    assert 0.3 * record["seconds"] < seconds < 3 * record["seconds"]


def test_another_config_is_refused_with_what_differs(study, refuses):
    workdir, _ = study
    for more in ([], ["--list"]):
        line = refuses("study", *ARGUMENTS, "--config.seed=5", f"--workdir={workdir}", *more)
        assert "seed: 5, was 0" in line


def test_a_second_study_in_the_same_folder_stops(study, refuses):
    workdir, _ = study
    with the_only_study(workdir):
        line = refuses("study", *ARGUMENTS, f"--workdir={workdir}")
    assert "another study is at work here" in line


def test_the_report_can_be_redrawn_from_the_folders(study, command, refuses):
    workdir, _ = study
    before = (workdir / "report" / "table_3.csv").read_text()
    (workdir / "report" / "table_3.csv").unlink()
    (workdir / "report" / "table_9.csv").write_text("of a row that is gone\n")
    finished = command("study", *ARGUMENTS, f"--workdir={workdir}", "--report_only")
    assert finished.returncode == 0, finished.stderr
    assert "device" not in finished.stdout  # nothing is run
    assert (workdir / "report" / "table_3.csv").read_text() == before
    assert not (workdir / "report" / "table_9.csv").exists()
    for more in ("--list", "--only=scratch"):
        line = refuses("study", f"--workdir={workdir}", "--report_only", more)
        assert line.endswith(f"leave out {more.partition('=')[0]}")


def test_a_flag_of_the_other_executor_is_refused(study, refuses):
    workdir, _ = study
    for executor, flag in (("local", "--slurm=partition=gpu"), ("slurm", "--fresh")):
        line = refuses("study", f"--workdir={workdir}", f"--executor={executor}", flag)
        assert line.endswith(f"{flag.partition('=')[0]} has no meaning with --executor={executor}")


def test_another_cluster_is_refused(study, refuses):
    arguments = (*ARGUMENTS, f"--workdir={study[0]}", "--executor=slurm", "--slurm=clusters=other")
    assert "a study asks one cluster for its jobs" in refuses("study", *arguments)


def test_a_step_that_needs_what_only_leaves_out_is_refused_before_it_runs(study, refuses):
    workdir, more = study[0], "--config.study.runs=body-nsclc"
    line = refuses("study", *ARGUMENTS, f"--workdir={workdir}", more, "--only=^body")
    assert "body-nsclc-fold0 needs pretraining-nsclc, which it leaves out" in line
    assert not (workdir / "runs" / "body-nsclc-fold0").exists()


def test_a_step_that_fails_is_named_and_the_report_is_drawn_without_it(study, command, tmp_path):
    workdir, scan = study[0], tmp_path / "bad.nii.gz"
    scan.write_bytes(b"no scan")
    more = f"--config.study.scans=('{scan}',)"
    finished = command("study", *ARGUMENTS, f"--workdir={workdir}", more, "--only=scratch")
    assert finished.returncode != 0
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 2 steps failed: scratch-none-fold0-on-bad: ")
    assert str(scan) in last
    assert "report:" in finished.stdout
    assert f"{scan}: damaged" in (workdir / "report" / "index.html").read_text()
    told = command("study", *ARGUMENTS, f"--workdir={workdir}", more, "--list").stdout
    (line,) = [line for line in told.splitlines() if "scratch-none-fold0-on-bad" in line]
    assert line.startswith("failed")
    assert str(scan) in line


def test_a_fold_that_the_data_does_not_have_is_refused_at_the_start_and_in_the_list(study, refuses):
    workdir, wider = study[0], "--config.study.folds=(9,)"
    for more in ([], ["--list"]):
        line = refuses("study", *ARGUMENTS, f"--workdir={workdir}", wider, *more)
        told = "config.study.folds=(0, 9): phantom has the folds 0 to 3; give --config.study.folds="
        assert line.endswith(f"{told}0,1,2,3")


def test_the_papers_grid_has_its_14_rows_in_every_fold(command, tmp_path):
    finished = command(
        "study", f"--config={ROOT}/configs/paper.py", f"--workdir={tmp_path}", "--list"
    )
    assert finished.returncode == 0, finished.stderr
    device, note, *lines, last = finished.stdout.splitlines()
    assert device.startswith("device of the runs: cpu")
    assert note.startswith("note: covid19, msd_lung, nsclc_effusion, structseg_gtv: SYNTHETIC")
    names = [line.split()[-1] for line in lines]
    assert last.startswith("0 of 78 steps are done")
    assert sum("-fold" in name for name in names) == 14 * 5
    assert sum(name.startswith("pretraining-") for name in names) == 4
