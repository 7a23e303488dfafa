"""Tables I to III: ours beside the paper's, with what is missing shown as missing."""

import dataclasses
import json

import pytest

from covid_jax.config import Config, to_dict
from covid_jax.evaluation.metrics import EXTRAS, PAPER, summarise
from covid_jax.reporting.runs import Kind, Run, read_runs, uneven_seeds
from covid_jax.reporting.tables import (
    all_tables,
    as_latex,
    comparisons,
    summary_table,
    write_tables,
)

FULL = dict.fromkeys((*PAPER, *EXTRAS), 0.5)


def run(strategy="scratch", source="none", fold=0, variant="", seed=0, **cases):
    config = Config(strategy=strategy, source=source, fold=fold, variant=variant, seed=seed)
    name = f"{strategy}-{source}-{variant}-fold{fold}"
    scored = {case: FULL | {"dsc": dice} for case, dice in cases.items()}
    return Run(name, config, scored, [{"epoch": 0, "step": 250, "loss": 1.0}], 12.0, 3.0)


def test_a_cell_is_ours_beside_the_papers():
    table = all_tables([run(a=0.70, b=0.71, c=0.72), run(fold=1, a=0.60)])[0]
    row = next(row for row in table.rows if row.kind == Kind("scratch", "none"))
    cell = row.cells["dsc_fold0"]
    assert cell.paper == (0.681, 0.205)
    assert cell.ours.mean == pytest.approx(0.71)
    assert cell.difference == pytest.approx(0.71 - 0.681)
    assert cell.outside  # 0.681 does not lie in 0.685 .. 0.735
    assert not row.cells["dsc_avg"].outside  # but 0.673 does in the wider one of both
    assert row.cells["dsc_avg"].runs == ("scratch-none--fold0", "scratch-none--fold1")


def test_runs_of_several_seeds_are_one_row():
    runs = [run(seed=seed, a=0.5 + 0.1 * seed, b=0.7 + 0.1 * seed) for seed in (0, 1, 2)]
    first, _, third, *_ = all_tables([*runs, run("body", "multi_lesion", a=0.6, b=0.8)])
    row = next(row for row in first.rows if row.kind == Kind("scratch", "none"))
    ours = row.cells["dsc_avg"].ours
    assert (ours.mean, ours.count, ours.seeds) == (pytest.approx(0.7), 2, 3)
    assert (ours.std, ours.seed_std) == (pytest.approx(0.1), pytest.approx(0.1))
    assert [row.kind.strategy for row in third.rows] == ["scratch", "body"]
    told = uneven_seeds([*runs, run("body", "multi_lesion", a=0.6)])
    assert told == [
        "body, multi_lesion: has no run by seed 1 of fold 0, 2 of fold 0, as others have; kinds of "
        "run are compared by the seeds that both have"
    ]
    assert uneven_seeds(runs) == []


def test_the_papers_rows_are_all_there_and_other_kinds_come_after():
    table = all_tables([run("body", "msd", variant="stem", a=0.5)])[0]
    assert len(table.rows) == 15
    last = table.rows[-1]
    assert last.kind == Kind("body", "msd", "stem")
    assert (last.cells["dsc_avg"].ours.mean, last.cells["dsc_avg"].paper) == (0.5, None)
    assert all(row.cells["dsc_avg"].ours is None for row in table.rows[:14])


def test_scratch_is_what_the_others_are_compared_with():
    runs = [run(a=0.5, b=0.5), run("body", "msd", a=0.6, b=0.8)]
    assert comparisons(runs, "dsc")[Kind("body", "msd")].difference == pytest.approx(0.2)
    assert comparisons(runs[1:], "dsc") == {}


def test_only_folds_that_both_have_are_compared():
    runs = [run(a=0.5), run(fold=1, a=0.9), run("body", "msd", a=0.6)]
    assert comparisons(runs, "dsc")[Kind("body", "msd")].difference == pytest.approx(0.1)


def test_latex_takes_any_note_as_text():
    table = all_tables([run(a=0.5)])[1]
    assert r"100 \% of \$5 \& \_x\_" in as_latex(table, "100 % of $5 & _x_")


def test_files_carry_the_note(tmp_path):
    runs = [run(a=0.5)]
    write_tables(tmp_path, runs, all_tables(runs), "SYNTHETIC")
    for number in (1, 2, 3):
        assert "SYNTHETIC" in (tmp_path / f"table_{number}.csv").read_text()
        assert "SYNTHETIC" in (tmp_path / f"table_{number}.tex").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["note"] == "SYNTHETIC"


@pytest.fixture
def study(tmp_path):
    for fold in (0, 1):
        folder = tmp_path / "runs" / f"scratch-none-fold{fold}"
        folder.mkdir(parents=True)
        config = dataclasses.replace(Config(), fold=fold, epochs=2)
        (folder / "config.json").write_text(json.dumps(to_dict(config)))
        line = {"step": 250, "epoch": 0, "loss": 0.5, "seconds": 10.0}
        (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "metrics.json").write_text(json.dumps(summarise({"a": FULL}, {}, 3.0)))
    return tmp_path


def damage(study, what):
    folder = study / "runs" / "scratch-none-fold1"
    if what == "unfinished":
        (folder / "metrics.json").unlink()
    elif what == "foreign":
        (study / "runs" / "notes").mkdir()
        return
    elif what == "another program's":
        (folder / "config.json").write_text('{"learning_rate": 1}')
    else:
        (folder / what).write_text('{"cases": \n')


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("unfinished", "runs/scratch-none-fold1: not finished, step 250 of 500"),
        ("foreign", "runs/notes: no config.json"),
        ("another program's", "runs/scratch-none-fold1/config.json: config has no field"),
        ("config.json", "runs/scratch-none-fold1/config.json: damaged"),
        ("metrics.json", "runs/scratch-none-fold1/metrics.json: damaged"),
        ("log.jsonl", "runs/scratch-none-fold1/log.jsonl: line 1 is damaged"),
        ("provenance.json", "runs/scratch-none-fold1/provenance.json: damaged"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_named_and_the_rest_is_read(study, what, told):
    damage(study, what)
    runs, problems = read_runs(study)
    assert [run.fold for run in runs] == ([0, 1] if what == "foreign" else [0])
    assert len(problems) == 1
    assert problems[0].removeprefix(f"{study}/").startswith(told), problems


def test_a_run_whose_data_changed_since_is_reported_with_a_word_on_it(tmp_path):
    folder = tmp_path / "runs" / "scratch-none-fold0"
    case = tmp_path / "prepared" / "covid19" / "cases" / "a"
    for place in (folder, case):
        place.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(Config())))
    (folder / "metrics.json").write_text(json.dumps(summarise({"a": FULL}, {}, 3.0)))
    (folder / "log.jsonl").write_text(json.dumps({"step": 1, "epoch": 0, "seconds": 1.0}) + "\n")
    origin = {"data": {"covid19": {"a": "before"}}, "synthetic": []}
    (folder / "provenance.json").write_text(json.dumps(origin))
    for digest, expected in (("before", []), ("after", ["as it was before it changed (a)"])):
        (case / "case.json").write_text(json.dumps({"sha256": digest}))
        runs, problems = read_runs(tmp_path)
        assert len(runs) == 1
        assert [words in line for line, words in zip(problems, expected, strict=True)] == [
            True for _ in expected
        ]


def test_of_several_labels_each_has_its_dsc_by_its_name():
    labels = {"lung": {"a": FULL | {"dsc": 0.9}}, "tumour": {"a": FULL | {"dsc": 0.3}}}
    one = dataclasses.replace(run(a=0.6), labels=labels)
    table = all_tables([one])[-1]
    assert table.groups == ({"lung": "lung", "tumour": "tumour"},)
    assert [table.rows[0].cells[name].ours.mean for name in labels] == pytest.approx([0.9, 0.3])
    assert len(all_tables([run(a=0.6)])) == 4
    assert "over labels there is no volume_difference_ml" in all_tables([one])[3].title
    assert "0.600" in summary_table([one], "a note")
