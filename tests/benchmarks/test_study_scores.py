"""What docs/study.md says of a study comes from its folder."""

import json
import shutil

import pytest

from benchmarks.harness.tables import study_table
from benchmarks.study_scores import rows_of
from covid_jax.config import Config, to_dict
from covid_jax.reporting.runs import read_runs
from tests.conftest import ROOT

KEPT = ROOT / "docs" / "reduced_study"


@pytest.fixture(scope="module")
def rows():
    return rows_of(read_runs(KEPT)[0])


def test_every_kind_of_run_is_a_row_with_its_means_and_its_difference_to_scratch(rows):
    assert len(rows) == 14
    scratch, *others = rows
    cases = [
        case["dsc"]
        for run in KEPT.glob("runs/scratch-*")
        for case in json.loads((run / "metrics.json").read_text())["cases"].values()
    ]
    assert scratch["dsc"]["mean"] == pytest.approx(sum(cases) / len(cases))
    assert "dsc_against_scratch" not in scratch
    for row in others:
        difference = row["dsc"]["mean"] - scratch["dsc"]["mean"]
        assert row["dsc_against_scratch"]["difference"] == pytest.approx(difference)


def test_the_table_tells_the_spread_over_seeds_where_there_are_several(rows):
    assert "seeds" not in study_table(rows)
    scratch = rows[0] | {"dsc": rows[0]["dsc"] | {"seeds": 3, "seed_std": 0.0123}}
    head, first, second, *_ = study_table([scratch, *rows[1:3]]).splitlines()
    assert "+- seeds" in head
    assert "0.012" in first.split()
    assert len({len(line) for line in (head, second)}) == 1


def test_a_table_of_scratch_alone_compares_nothing(rows):
    head, row = study_table(rows[:1]).splitlines()
    assert head.split() == ["run", "DSC", "NSD", "s/epoch"]
    assert len(row) == len(head)


def test_the_command_keeps_what_the_study_took(tmp_path, command):
    study = tmp_path / "study"
    shutil.copytree(KEPT / "runs", study / "runs")
    (study / "study.json").write_text(json.dumps(to_dict(Config())))
    (study / "steps").mkdir()
    for name, record in (
        ("a", {"state": "done", "seconds": 2.5}),
        ("b", {"state": "done", "seconds": 4}),
        ("c", {"state": "failed"}),
    ):
        (study / "steps" / f"{name}.json").write_text(json.dumps(record))
    place = (f"--study={study}", "--name=mine", f"--output={tmp_path}")
    assert command("benchmarks.study_scores", *place).returncode == 0
    content = json.loads((tmp_path / "study_mine.json").read_text())
    assert (content["steps"], content["steps_seconds"]) == (3, 6.5)
    assert [row["strategy"] for row in content["results"]][:2] == ["scratch", "continual"]
