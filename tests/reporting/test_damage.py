"""A run's files that were edited or damaged by hand end in one line, whatever is wrong in them."""

import copy
import json
import shutil
from contextlib import nullcontext

import pytest

from covid_jax.config import load_config_file
from covid_jax.data.plan import load_plan
from covid_jax.errors import UserError
from covid_jax.evaluation.folders import load_metrics
from covid_jax.evaluation.metrics import mean_over_labels
from covid_jax.reporting.card import model_card
from covid_jax.reporting.evidence import synthetic_data
from covid_jax.reporting.findings import findings
from covid_jax.reporting.formats import summary_table
from covid_jax.reporting.paper import NOTHING
from covid_jax.reporting.runs import read_runs
from covid_jax.studies.grid import plan_steps
from covid_jax.studies.schedule import overview
from covid_jax.training.pretrained import load_config
from covid_jax.training.progress import read_log
from covid_jax.training.provenance import load_provenance
from tests.conftest import ROOT

RUN, OTHER = "study/runs/body-msd-fold0", "scratch-none-fold0"
GONE = object()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    shutil.unpack_archive(ROOT / "tests" / "files" / "version_1" / "study.tar.xz", folder)
    return folder


@pytest.fixture
def study(made, monkeypatch):
    monkeypatch.chdir(made)
    return made / "study"


def damaged(content):
    """Every form of `content` in which one part is gone, or something else than it was."""
    for place in places(content):
        for value in (GONE, None, "x", ["x"], {"x": 1}):
            copied = copy.deepcopy(content)
            inner = copied
            for key in place[:-1]:
                inner = inner[key]
            if value is GONE:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            yield copied


def places(content, place=()):
    if isinstance(content, dict | list):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield (*place, key)
            yield from places(content[key], (*place, key))


def of_two_labels(metrics):
    return mean_over_labels({"a": metrics, "b": metrics}, 3.0)


@pytest.mark.parametrize(
    ("name", "change"),
    [("provenance.json", None), ("metrics.json", None), ("metrics.json", of_two_labels)],
)
def test_a_run_with_damaged_files_is_reported_or_left_out_and_named(study, name, change):
    file = study.parent / RUN / name
    before, left_out = file.read_text(), 0
    content = change(json.loads(before)) if change else json.loads(before)
    for other in damaged(content):
        file.write_text(json.dumps(other))
        left_out += reported(study, file)
    file.write_text(before)
    assert left_out > 20


def test_a_run_of_a_network_that_cannot_be_built_is_left_out_and_named(study):
    file = study.parent / RUN / "config.json"
    before = file.read_text()
    config = json.loads(before)
    del config["model"]["kernel_sizes"][1]
    file.write_text(json.dumps(config))
    runs, problems = read_runs(study)
    file.write_text(before)
    assert [run.name for run in runs] == [OTHER]
    assert f"{file}: config.model.kernel_sizes" in problems[0]


def test_a_run_with_a_damaged_log_is_reported_or_left_out_and_named(study):
    file = study.parent / RUN / "log.jsonl"
    before, left_out = file.read_text(), 0
    for other in damaged([json.loads(line) for line in before.splitlines()]):
        file.write_text("".join(f"{json.dumps(line)}\n" for line in other))
        left_out += reported(study, file)
    file.write_text(before)
    assert left_out > 20


def reported(study, file):
    """Makes what a report says of a study whose `file` is damaged; returns whether a run is out."""
    runs, problems = read_runs(study)
    synthetic = synthetic_data(study, problems)
    assert OTHER in [run.name for run in runs]
    if len(runs) == 1:
        assert str(file) in problems[0]
    elif file.name != "provenance.json":
        assert summary_table(runs, NOTHING, "a note")
        assert findings(runs, ("phantom",), synthetic)
    folder, refusal = file.parent, pytest.raises(UserError, match=f"{file}: (damaged|line)")
    with refusal if len(runs) == 1 else nullcontext():
        read_log(folder)
        parts = load_provenance(folder), load_metrics(folder / "metrics.json")
        assert model_card(load_config(folder), load_plan(folder / "plan.json"), 1, *parts)
    return len(runs) == 1


def test_a_study_with_damaged_records_is_listed_or_refused_in_a_line(study):
    run_of = lambda name: load_config_file(f"config.py:{name}")  # noqa: E731
    steps = plan_steps(load_config_file("config.py"), run_of, study)
    file, refused = study / "steps" / "body-msd-fold0.json", 0
    before = file.read_text()
    for content in damaged(json.loads(before)):
        file.write_text(json.dumps(content))
        try:
            overview(steps, study)
        except UserError:
            refused += 1
    file.write_text(before)
    assert refused > 5


@pytest.fixture
def runs(made, tmp_path):
    """The folder of a study with two finished runs, to be edited."""
    shutil.copytree(made / "study" / "runs", tmp_path / "runs")
    return tmp_path / "runs"


def edit(run, **changes):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | changes))


def test_a_run_of_a_strategy_that_there_is_none_of_is_left_out_and_named(runs):
    edit(runs / OTHER, strategy="foo")
    found, problems = read_runs(runs.parent)
    assert [run.name for run in found] == ["body-msd-fold0"]
    assert f"runs/{OTHER}: no strategy is called 'foo'" in problems


def test_a_copy_of_a_run_counts_not_and_is_named(runs):
    shutil.copytree(runs / OTHER, runs / "a-copy")
    found, problems = read_runs(runs.parent)
    assert sorted(run.name for run in found) == ["body-msd-fold0", OTHER]
    assert f"runs/a-copy: is the same run as runs/{OTHER}, which counts" in problems


def test_runs_of_one_row_with_other_settings_are_named(runs):
    shutil.copytree(runs / OTHER, runs / "scratch-none-fold1")
    edit(runs / "scratch-none-fold1", fold=1, seed=3)
    assert not any("other settings" in line for line in read_runs(runs.parent)[1])
    edit(runs / "scratch-none-fold1", epochs=77)
    (line,) = (line for line in read_runs(runs.parent)[1] if "other settings" in line)
    assert line.startswith(f"runs/scratch-none-fold1: has other settings than runs/{OTHER}, in one")
    assert "epochs: 77, was" in line
