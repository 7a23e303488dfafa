"""Tables I to III: ours beside the paper's, with what is missing shown as missing."""

import csv
import dataclasses
import json
import shutil

import pytest

from covid_jax.config import Config, to_dict
from covid_jax.evaluation.metrics import EXTRAS, PAPER, summarise
from covid_jax.files import write_json
from covid_jax.reporting.evidence import lacking_runs
from covid_jax.reporting.formats import as_latex, summary_table, write_tables
from covid_jax.reporting.kinds import Kind
from covid_jax.reporting.paper import NOTHING, whole_paper
from covid_jax.reporting.runs import Run, read_runs, uneven_seeds
from covid_jax.reporting.tables import all_tables, comparisons

FULL = dict.fromkeys((*PAPER, *EXTRAS), 0.5)


def run(strategy="scratch", source="none", fold=0, variant="", seed=0, **cases):
    config = Config(strategy=strategy, source=source, fold=fold, variant=variant, seed=seed)
    name = f"{strategy}-{source}-{variant}-fold{fold}"
    scored = {case: FULL | {"dsc": dice} for case, dice in cases.items()}
    return Run(name, config, scored, [{"epoch": 0, "step": 250, "loss": 1.0}], 12.0, 3.0)


def test_a_cell_is_ours_beside_the_papers():
    table = all_tables([run(a=0.70, b=0.71, c=0.72), run(fold=1, a=0.60)], whole_paper())[0]
    row = next(row for row in table.rows if row.kind == Kind("scratch", "none"))
    cell = row.cells["dsc_fold0"]
    assert cell.paper == (0.681, 0.205)
    assert cell.ours.mean == pytest.approx(0.71)
    assert cell.difference == pytest.approx(0.71 - 0.681)
    assert cell.outside  # 0.681 does not lie in 0.685 .. 0.735
    assert not row.cells["dsc_avg"].outside  # but 0.697 does in the wider one of both
    assert row.cells["dsc_avg"].paper == (pytest.approx((0.681 + 0.713) / 2), None)
    assert row.cells["dsc_avg"].runs == ("scratch-none--fold0", "scratch-none--fold1")


def test_runs_of_several_seeds_are_one_row():
    runs = [run(seed=seed, a=0.5 + 0.1 * seed, b=0.7 + 0.1 * seed) for seed in (0, 1, 2)]
    first, _, third, *_ = all_tables([*runs, run("body", "multi_lesion", a=0.6, b=0.8)], NOTHING)
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


def test_the_papers_rows_are_all_there_behind_those_of_the_study():
    table = all_tables([run("body", "msd", variant="stem", a=0.5)], whole_paper())[0]
    assert len(table.rows) == 15
    last = table.rows[0]
    assert last.kind == Kind("body", "msd", "stem")
    assert (last.cells["dsc_avg"].ours.mean, last.cells["dsc_avg"].paper) == (0.5, None)
    assert all(row.cells["dsc_avg"].ours is None for row in table.rows[1:])
    assert [told for told, _ in table.sections] == [
        "fold 0",
        "not in this study: the paper over folds 0 to 4",
    ]


def test_scratch_is_what_the_others_are_compared_with():
    runs = [run(a=0.5, b=0.5), run("body", "msd", a=0.6, b=0.8)]
    assert comparisons(runs, "dsc")[Kind("body", "msd")].difference == pytest.approx(0.2)
    assert comparisons(runs[1:], "dsc") == {}


def test_only_folds_that_both_have_are_compared():
    runs = [run(a=0.5), run(fold=1, a=0.9), run("body", "msd", a=0.6)]
    assert comparisons(runs, "dsc")[Kind("body", "msd")].difference == pytest.approx(0.1)


def test_latex_takes_any_note_as_text():
    table = all_tables([run(a=0.5)], NOTHING)[1]
    assert r"100 \% of \$5 \& \_x\_" in as_latex(table, "100 % of $5 & _x_")


def test_files_carry_the_note(tmp_path):
    runs = [run(a=0.5)]
    write_tables(tmp_path, runs, all_tables(runs, NOTHING), "SYNTHETIC")
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


@pytest.mark.parametrize("started", [True, False])
def test_a_step_that_failed_is_named_with_its_cause(study, started):
    folder = study / "runs" / "scratch-none-fold1"
    shutil.rmtree(folder)
    (study / "steps").mkdir()
    record = {"state": "failed", "cause": "out of memory"}
    (study / "steps" / f"{folder.name}.json").write_text(json.dumps(record))
    if started:
        folder.mkdir()
    _, problems = read_runs(study)
    assert len(problems) == 1
    assert f"{folder.name}: failed: out of memory" in problems[0]


def test_a_step_that_was_killed_is_told_so(study):
    (study / "runs" / "scratch-none-fold1" / "metrics.json").unlink()
    (study / "steps").mkdir()
    (study / "steps" / "scratch-none-fold1.json").write_text('{"state": "running"}')
    _, problems = read_runs(study)
    assert problems == [
        "runs/scratch-none-fold1: not finished, step 250 of 500 is the last logged; was interrupted"
    ]


def test_a_run_knows_its_machine_and_which_cases_were_trained_on(study):
    origin = {
        "data": {},
        "synthetic": [],
        "seen_before": ["a", "of another version"],
        "devices": [{"kind": "cpu", "cores": 1}, {"kind": "GPU", "memory_fraction": "0.450"}],
    }
    path = study / "runs" / "scratch-none-fold1" / "provenance.json"
    path.write_text(json.dumps(origin))
    runs, problems = read_runs(study)
    assert [(run.seen, run.machine) for run in runs] == [
        ((), ""),
        (("a",), "cpu with 1 core then GPU of which it had 0.450"),
    ]
    assert problems == [
        "runs/scratch-none-fold1: trained on 1 test case of fold 1 (a), itself or what it started "
        "from; scores of them are no test"
    ]


def test_cases_without_the_one_label_are_known(study):
    path = study / "runs" / "scratch-none-fold1" / "metrics.json"
    path.write_text(json.dumps(summarise({"a": FULL, "b": FULL}, {"b": "both masks"}, 3.0)))
    runs, _ = read_runs(study)
    assert [set().union(*run.without.values()) for run in runs] == [set(), {"b"}]


def test_a_study_that_is_half_done_says_what_it_lacks(study):
    """Runs of rows that are not asked for any more do not count for those that are."""
    runs, _ = read_runs(study)
    assert lacking_runs(study, runs) == ""  # nobody knows
    asked = ["scratch-none-fold0", "body-msd-fold0", "body-msd-fold1"]
    write_json(study / "configs" / "asked.json", {"runs": asked})
    assert lacking_runs(study, runs) == (
        "3 runs were asked for, 1 are there (not body-msd-fold0, body-msd-fold1)"
    )
    write_json(study / "configs" / "asked.json", {"runs": asked[:1]})
    assert lacking_runs(study, runs) == ""


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


def test_a_run_of_other_folds_or_of_a_pretraining_of_other_data_is_told(tmp_path):
    folder = tmp_path / "runs" / "body-msd-fold0"
    for place in (folder, tmp_path / "pretraining" / "msd"):
        place.mkdir(parents=True)
    pretrained = str(tmp_path / "pretraining" / "msd")
    config = Config(strategy="body", source="msd", pretrained=pretrained)
    write_json(folder / "config.json", to_dict(config))
    write_json(folder / "metrics.json", summarise({"a": FULL}, {}, 3.0))
    (folder / "log.jsonl").write_text(json.dumps({"step": 1, "epoch": 0, "seconds": 1.0}) + "\n")
    before = {"data": {"msd_lung": {"x": "before"}}, "synthetic": []}
    write_json(
        folder / "provenance.json", {"data": {"covid19": {}}, "synthetic": [], "pretrained": before}
    )
    assert read_runs(tmp_path)[1] == []
    splits = [{"train": ["c"], "test": ["a", "b"]}]
    write_json(tmp_path / "prepared" / "covid19" / "dataset.json", {"splits": splits})
    write_json(
        tmp_path / "prepared" / "msd_lung" / "cases" / "x" / "case.json", {"sha256": "after"}
    )
    of_source, of_fold = read_runs(tmp_path)[1]
    assert "its pre-training saw msd_lung as it was before it changed (x); delete" in of_source
    assert "was tested on other cases than fold 0 has now (b); delete" in of_fold


def test_runs_of_one_row_by_two_versions_of_the_program_are_told(study):
    for fold, version in enumerate(("0.1.0", "0.2.0")):
        origin = {"data": {}, "synthetic": [], "covid_jax": version}
        write_json(study / "runs" / f"scratch-none-fold{fold}" / "provenance.json", origin)
    _, (line,) = read_runs(study)
    assert "in one row with it (covid_jax 0.2.0, was 0.1.0)" in line


def test_a_distance_over_fewer_cases_is_told():
    """A network that does not find what is hard would look the better for it."""
    one = run(a=0.6, b=0.0)
    one = dataclasses.replace(one, cases=one.cases | {"b": one.cases["b"] | {"hd95_mm": None}})
    fourth = all_tables([one, run("body", "msd", a=0.6, b=0.1)], NOTHING)[-1]
    assert fourth.told == (
        "A case is left out where a mask or its reference has no voxel: "
        "HD95, mm of scratch is over 1 of 2 tests."
    )


def test_of_several_labels_each_has_its_dsc_by_its_name():
    labels = {"lung": {"a": FULL | {"dsc": 0.9}}, "tumour": {"a": FULL | {"dsc": 0.3}}}
    one = dataclasses.replace(run(a=0.6), labels=labels)
    table = all_tables([one], NOTHING)[-1]
    assert table.groups[0].headings == {"lung": "lung", "tumour": "tumour"}
    assert [table.rows[0].cells[name].ours.mean for name in labels] == pytest.approx([0.9, 0.3])
    assert len(all_tables([run(a=0.6)], NOTHING)) == 4
    fourth = all_tables([one], NOTHING)[3]
    assert "Over labels there is no Volume over reference, nor HD95 of a case" in fourth.told
    assert "0.600" in summary_table([one], NOTHING, "a note")


def test_a_metric_that_no_case_of_several_labels_has_is_no_column():
    cases = {"a": FULL | {"volume_difference_ml": None}}
    one = dataclasses.replace(run(a=0.6), cases=cases, labels={"lung": cases, "tumour": cases})
    assert list(all_tables([one], NOTHING)[3].groups[0].headings) == ["hd95_mm"]


def grid(*folds):
    kinds = [("scratch", "none"), ("body", "atlas"), ("body", "msd")]
    return [run(*kind, fold=fold, a=0.5, b=0.6) for kind in kinds for fold in folds]


def test_of_other_data_than_the_papers_the_tables_are_the_studys_own(tmp_path):
    runs = grid(0, 2)
    tables = all_tables(runs, NOTHING)
    assert [table.name for table in tables] == ["1", "2", "3", "3_folds", "4"]
    for table in tables:
        assert "Table" not in table.title
        assert {row.kind for row in table.rows} == {one.kind for one in runs}
        assert not table.beside_paper
    assert [list(group.headings) for group in tables[0].groups] == [
        ["dsc_avg", "nsd_avg"],
        ["dsc_fold0", "dsc_fold2"],
        ["nsd_fold0", "nsd_fold2"],
    ]
    write_tables(tmp_path, runs, tables, "")
    assert not [path for path in tmp_path.iterdir() if "paper" in path.read_text()]
    assert "paper" not in summary_table(runs, NOTHING, "")


def test_means_over_other_folds_never_stand_in_one_section():
    runs = [*grid(0, 1), run("multi_encoder", "atlas", fold=1, a=0.7)]
    for table in all_tables(runs, NOTHING):
        if table.name != "3_folds":
            assert [told for told, _ in table.sections] == ["folds 0 and 1", "fold 1"]
    folds = all_tables(runs, NOTHING)[3]
    assert [(told, len(rows)) for told, rows in folds.sections] == [("fold 0", 3), ("fold 1", 4)]
    lines = summary_table(runs, NOTHING, "").splitlines()
    assert lines.index("fold 1") > lines.index("folds 0 and 1")


def test_rows_of_other_seeds_stand_apart():
    runs = [run(seed=seed, a=0.1 + seed, b=0.2) for seed in (0, 1)]
    runs.append(run("body", "msd", a=0.1, b=0.2))
    apart = ["fold 0, seeds 0 and 1", "fold 0, seed 0"]
    for table in all_tables(runs, NOTHING):
        assert [told for told, _ in table.sections] == apart
    lines = summary_table(runs, NOTHING, "").splitlines()
    assert lines.index(apart[1]) > lines.index(apart[0])


def test_a_row_that_was_tested_on_cases_it_was_trained_on_says_so(tmp_path):
    leaked = dataclasses.replace(run("body", "net", a=0.9, b=0.9), seen=("b",))
    runs = [run(a=0.5, b=0.6), leaked]
    tables = all_tables(runs, NOTHING)
    write_tables(tmp_path, runs, tables, "")
    said = "body, net (trained on 1 test case)"
    assert said in summary_table(runs, NOTHING, "")
    assert said in (tmp_path / "table_1.tex").read_text()
    (row,) = [row for row in rows_in(tmp_path / "table_1.csv") if row["strategy"] == "body"]
    assert row["seen_before"] == "b"
    results = json.loads((tmp_path / "results.json").read_text())
    assert [each["seen_before"] for each in results["runs"]] == [[], ["b"]]
    assert {each["seen"] for each in results["against_scratch"]} == {"b"}


def rows_in(path):
    return list(csv.DictReader(path.open()))


def test_the_comparison_with_scratch_is_a_file_of_its_own(tmp_path):
    runs = [run(a=0.5, b=0.6), run("body", "msd", a=0.75, b=0.6)]
    write_tables(tmp_path, runs, all_tables(runs, NOTHING), "a note")
    row = rows_in(tmp_path / "table_against_scratch.csv")[0]
    assert (row["strategy"], row["source"], row["metric"]) == ("body", "msd", "dsc")
    assert (row["difference"], row["ahead"], row["folds"]) == ("0.125", "1", "0")
    assert {"low", "high", "p", "p_holm", "baseline", "seeds", "note"} <= row.keys()
    text = (tmp_path / "table_against_scratch.tex").read_text()
    assert r"body, msd & $+0.125$ (-1.000 to +1.000) & $1$" in text
    assert "a note" in text


def test_results_have_every_label_of_every_case(tmp_path):
    labels = {"lung": {"a": FULL | {"dsc": 0.9}}, "tumour": {"a": FULL | {"dsc": 0.3}}}
    runs = [dataclasses.replace(run(a=0.6), labels=labels)]
    write_tables(tmp_path, runs, all_tables(runs, NOTHING), "")
    (one,) = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert one["labels"]["tumour"]["a"]["dsc"] == 0.3


def test_latex_says_what_its_numbers_are_and_each_table_which_it_is():
    runs = [
        run(seed=seed, fold=fold, a=0.2 + 0.1 * seed, b=0.6) for seed in (0, 1) for fold in (0, 1)
    ]
    text = as_latex(all_tables(runs, NOTHING)[0], "")
    captions = [line for line in text.splitlines() if line.startswith(r"\caption")]
    assert len(set(captions)) == len(captions) == 3
    assert "DSC of each fold" in captions[1]
    assert all("standard deviation over cases, and that over seeds" in line for line in captions)
    assert r"scratch & 0.425 $\pm$ 0.175 $\pm$ 0.035 &" in text
    assert "seeds" not in as_latex(all_tables([run(a=0.5)], NOTHING)[0], "")


def test_cases_without_a_label_are_counted_under_the_scores():
    labels = {name: {"a": FULL, "b": FULL} for name in ("lung", "cyst")}
    without = {"lung": frozenset(), "cyst": frozenset({"b"})}
    runs = [dataclasses.replace(run(a=0.6, b=0.6), labels=labels, without=without)]
    first, *_, fifth = all_tables(runs, NOTHING)
    assert first.told == (
        "Where neither mask has a label its DSC and NSD are 1, and 0 where one alone has it: "
        "1 of 2 references has no cyst."
    )
    assert first.told in fifth.told
    assert all_tables([run(a=0.6)], NOTHING)[0].told == ""


def test_seconds_of_unlike_machines_are_told_not_to_compare():
    one, two = (
        dataclasses.replace(run(fold=n, a=0.6), machine=f"cpu with {n} cores") for n in (1, 2)
    )
    third = all_tables([one, two], NOTHING)[2]
    told = "unlike machines (1 run on cpu with 1 cores and 1 run on cpu with 2 cores)"
    assert told in third.told
    assert told in summary_table([one, two], NOTHING, "")
    assert all_tables([one], NOTHING)[2].told == ""


def test_table_3_has_the_strategies_means_first_and_their_folds_behind():
    kinds = [("scratch", "none"), ("body", "multi_lesion"), ("body", "msd")]
    runs = [run(*kind, fold=fold, a=0.5) for kind in kinds for fold in range(5)]
    _, _, means, folds, _ = all_tables(runs, whole_paper())
    shown = [row.kind.strategy for row in means.rows if row.folds]
    assert shown == ["scratch", "body"]
    assert means.rows[0].cells["dsc"].paper == (0.673, 0.223)
    assert means.rows[0].seconds.paper == pytest.approx(206, abs=1)
    assert not means.groups[0].folded
    assert folds.groups[0].folded
    assert [row.folds for row in folds.rows] == [(fold,) for fold in range(5) for _ in shown]
    assert folds.rows[0].seconds.paper == 224


def test_rows_have_the_order_of_the_paper_whatever_they_are_called():
    kinds = [Kind("body", "zebra"), Kind("body", "msd"), Kind("scratch", "none")]
    kinds += [Kind("scratch", "none", "longer"), Kind("continual", "atlas"), Kind("body", "atlas")]
    assert [kind.label for kind in sorted(kinds, key=lambda kind: kind.place)] == [
        "scratch",
        "continual, atlas",
        "body, msd",
        "body, atlas",
        "body, zebra",
        "scratch, longer",
    ]
