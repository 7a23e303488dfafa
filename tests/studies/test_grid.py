"""What a study is compared with, and which of its folds and steps there are."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from covid_jax.config import (
    Config,
    OptimizerConfig,
    RawDirs,
    StudyConfig,
    load_config_file,
    named_run,
    to_dict,
    validate,
)
from covid_jax.data.changes import image_digest
from covid_jax.data.datasets import read_dataset
from covid_jax.data.geometry import from_spacing
from covid_jax.data.normalization import Z_SCORE, Normalization
from covid_jax.data.plan import Plan, save_plan
from covid_jax.data.planner import topology_of
from covid_jax.data.volume import write_volume
from covid_jax.errors import UserError
from covid_jax.files import write_json
from covid_jax.studies.data import check_data, check_places, seen_notes
from covid_jax.studies.folder import (
    check_runs,
    claim_study,
    load_study,
    other_runs,
    runs_asked,
)
from covid_jax.studies.grid import (
    Step,
    only,
    plan_steps,
    refuse_left_out,
    scan_name,
    synthetic_data,
    write_configs,
)
from tests.conftest import ROOT, tiny


def test_a_setting_that_came_later_has_its_default_in_a_study_of_before(tmp_path):
    values = to_dict(tiny())
    del values["deterministic"], values["inference"]["mirror"]
    write_json(tmp_path / "study.json", values)
    claim_study(tmp_path, tiny())
    assert json.loads((tmp_path / "study.json").read_text()) == to_dict(tiny())
    write_json(tmp_path / "study.json", values)
    with pytest.raises(UserError, match="deterministic: True, was False"):
        claim_study(tmp_path, tiny(deterministic=True))


def test_the_one_scan_of_a_place_may_be_of_several_channels(tmp_path):
    for name in ("a_0000", "a_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert scan_name(str(tmp_path)) == "a"
    assert scan_name(str(tmp_path / "a_0000.nii.gz")) == "a"
    (tmp_path / "b_0000.nii.gz").touch()
    with pytest.raises(UserError, match="holds 3 scans"):
        scan_name(str(tmp_path))


def test_a_study_of_a_newer_version_is_refused_by_its_file(tmp_path):
    write_json(tmp_path / "study.json", to_dict(tiny()) | {"teacher": 1})
    line = r"study.json: config has no field teacher; a newer version of covid_jax wrote it\?"
    for read in (load_study, lambda folder: claim_study(folder, tiny())):
        with pytest.raises(UserError, match=line):
            read(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"data": 3}', '{"model": null}'])
def test_a_damaged_study_is_one_line(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match=r"study\.json: (damaged|config)"):
        load_study(tmp_path)


def folds_of(dataset, *folds):
    data = dataclasses.replace(tiny().data, datasets=(dataset,))
    return tiny(data=data, study=StudyConfig(folds=folds, runs=("scratch",)))


def steps_of(config, workdir=Path("nowhere"), **changes):
    """Of a study whose runs are the config's, as named_run has them."""
    run_of = lambda name: named_run(dataclasses.replace(config, **changes), name)  # noqa: E731
    return plan_steps(config, run_of, workdir)


def check(config, workdir=Path("nowhere")):
    check_data(workdir, config, steps_of(config, workdir))


def test_a_fold_that_the_data_does_not_have_is_refused_before_anything_is_prepared():
    check(folds_of("covid19", 0, 4))
    check(folds_of("msd_lung", 7))  # its one split is every fold's
    check(folds_of("phantom", 4))
    for dataset in ("covid19", "phantom"):
        line = rf"study\.folds=\(0, 5\): {dataset} has the folds 0 to 4; .*folds=0,1,2,3,4$"
        with pytest.raises(UserError, match=line):
            check(folds_of(dataset, 0, 5))


def test_a_step_that_needs_what_is_left_out_and_not_done_is_refused(tmp_path):
    first = Step("first", (), (tmp_path / "first",))
    every = [first, Step("second", (), (tmp_path / "second",), ("first",))]
    refuse_left_out(every, every)
    with pytest.raises(UserError, match="second needs first, which it leaves out and nothing"):
        refuse_left_out(every[1:], every)
    first.results[0].touch()
    refuse_left_out(every[1:], every)


STEPS = [Step(name, (), (Path(name),)) for name in ("prepare-phantom", "scratch-none-fold0")]


def test_an_expression_that_finds_no_step_is_refused_with_the_names():
    assert only(STEPS, "fold0$") == STEPS[1:]
    assert only(STEPS, "") == STEPS
    with pytest.raises(UserError, match="finds none of the steps, which are prepare-phantom, scr"):
        only(STEPS, "scratch-fold")
    with pytest.raises(UserError, match=r"--only=\(: no regular expression"):
        only(STEPS, "(")


@pytest.mark.parametrize(
    ("workdir", "raw"), [("raw", "raw"), ("raw/study", "raw"), ("study", "study/prepared/nnunet")]
)
def test_a_study_and_its_raw_data_never_lie_in_each_other(tmp_path, workdir, raw):
    config = Config()
    config.study.raw.nnunet = str(tmp_path / raw)
    with pytest.raises(UserError, match="which holds inputs"):
        check_places(tmp_path / workdir, config)
    config.study.raw.nnunet = str(tmp_path / "study" / "raw" / "nnunet")
    check_places(tmp_path / "study", config)


def test_every_run_of_every_fold_is_made_by_each_seed_and_pretrained_once(tmp_path):
    study = StudyConfig(folds=(0, 1), runs=("scratch", "body-msd"), seeds=(0, 2))
    steps = plan_steps(tiny(study=study), lambda name: tiny(name, study=study), tmp_path)
    trained = {step.name: step.training.config for step in steps if step.training}
    assert list(trained) == [
        "pretraining-msd",
        *("scratch-none-fold0", "body-msd-fold0", "scratch-none-fold1", "body-msd-fold1"),
        *("scratch-none-fold0-seed2", "body-msd-fold0-seed2"),
        *("scratch-none-fold1-seed2", "body-msd-fold1-seed2"),
    ]
    assert {name: config.seed for name, config in trained.items()} == {
        name: 2 if name.endswith("seed2") else 0 for name in trained
    }
    assert trained["body-msd-fold1-seed2"].fold == 1
    assert trained["body-msd-fold1-seed2"].pretrained == str(tmp_path / "pretraining" / "msd")


def test_seeds_may_be_added_to_a_study_and_none_twice(tmp_path):
    claim_study(tmp_path, tiny())
    claim_study(tmp_path, tiny(study=StudyConfig(seeds=(0, 1, 2))))
    with pytest.raises(UserError, match=r"study\.seeds=\(1, 1\): must name each seed once"):
        validate(tiny(study=StudyConfig(seeds=(1, 1))))


def test_runs_may_have_epochs_of_their_own(tmp_path):
    """By which a step knows that it is done."""
    study = StudyConfig(folds=(0,), runs=("scratch", "body-msd"))
    run_of = lambda name: tiny(name, study=study, pretraining_epochs=7, epochs=len(name))  # noqa: E731
    steps = plan_steps(tiny(study=study), run_of, tmp_path)
    (pretraining,) = [step for step in steps if step.name == "pretraining-msd"]
    assert pretraining.results == (tmp_path / "pretraining" / "msd" / "checkpoints" / "70",)
    run = tmp_path / "runs" / "scratch-none-fold0"
    (results,) = [step.results for step in steps if step.name == run.name]
    assert results == (run / "metrics.json", run / "model")
    assert [step.training.steps for step in steps if step.training] == [70, 70, 80]


def write_raw(folder, *channels, cases=6):
    """A raw nnU-Net dataset whose files nobody reads."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in range(cases):
        (folder / "labelsTr" / f"c{case}.nii.gz").touch()
        for channel in range(len(channels)):
            (folder / "imagesTr" / f"c{case}_{channel:04}.nii.gz").touch()
    description = {
        "channel_names": {str(k): channel for k, channel in enumerate(channels)},
        "labels": {"background": 0, "tumour": 1},
    }
    write_json(folder / "dataset.json", description)
    return str(folder)


@pytest.fixture
def own(tmp_path):
    """A study of one's own: the target `mine`, pre-trained on `lesions`, by the plan's network."""
    config = load_config_file(f"{ROOT}/configs/nnunet.py")
    config.data.datasets = ("mine",)
    config.study.runs = ("scratch", "body-lesions", "frozen_encoder-lesions")
    raw = tmp_path / "raw"
    config.study.raw = RawDirs(
        own=(
            ("mine", write_raw(raw / "Dataset101_Mine", "T1", "FLAIR")),
            ("lesions", write_raw(raw / "Dataset102_Lesions", "T1", "T2")),
        )
    )
    validate(config)
    return config


def by_name(steps):
    return {step.name: step for step in steps}


def test_own_datasets_are_target_and_source_by_their_names(own, tmp_path):
    own.study.folds = (0,)
    check(own, tmp_path / "study")
    steps = by_name(steps_of(own, tmp_path / "study"))
    assert list(steps) == [
        *("prepare-mine", "prepare-lesions", "pretraining-lesions"),
        *("scratch-none-fold0", "body-lesions-fold0", "frozen_encoder-lesions-fold0"),
    ]
    for name, folder in own.study.raw.own:
        command = steps[f"prepare-{name}"].command
        assert {"--dataset=nnunet", f"--name={name}", f"--raw_dir={folder}"} < {*command}
        assert steps[f"prepare-{name}"].watches
    assert steps["prepare-lesions"].needs == ("prepare-mine",)
    pretraining = steps["pretraining-lesions"]
    assert pretraining.training.config.data.datasets == ("lesions",)
    assert pretraining.needs == ("prepare-lesions",)
    assert steps["body-lesions-fold0"].needs == ("prepare-mine", "pretraining-lesions")


def test_what_is_left_to_the_plan_is_planned_once_with_the_target(own, tmp_path):
    planner = lambda: [  # noqa: E731
        argument
        for step in steps_of(own, tmp_path / "study")
        for argument in step.command
        if argument.startswith(("--planner", "--gpu_memory_gb", "--plan_from"))
    ]
    assert planner() == ["--planner=default"]
    own.study.planner, own.study.gpu_memory_gb = "resenc_l", 12.0
    assert planner() == ["--planner=resenc_l", "--gpu_memory_gb=12"]
    own.study.planner = "best"
    with pytest.raises(UserError, match=r"study\.planner=best: there are default, resenc_m"):
        planner()
    own.study.planner, own.study.gpu_memory_gb = "", 0.0
    z_score = Normalization(Z_SCORE)
    plan = Plan((1.0, 1.0, 1.0), (z_score, z_score), (8, 8, 8), ("c0",))
    (tmp_path / "study" / "prepared").mkdir(parents=True)
    for topology, planned in ((None, ["--planner=default"]), (topology_of(tiny()), [])):
        path = tmp_path / "study" / "prepared" / "plan.json"
        save_plan(path, dataclasses.replace(plan, topology=topology))
        assert planner() == planned


def test_a_planner_that_has_nothing_to_plan_is_refused():
    with pytest.raises(UserError, match="nothing is left to plan, the network is the config's own"):
        steps_of(tiny(study=StudyConfig(runs=("scratch",), planner="default")))
    left = dataclasses.replace(tiny().loss, batch_dice=None)  # a network of the config's has one
    first, *_ = steps_of(tiny(loss=left, study=StudyConfig(runs=("scratch",))))
    assert not any(argument.startswith("--planner") for argument in first.command)


def imported(folder, channels=2, **changes):
    """A folder that says of itself what that of an imported network does."""
    model = dataclasses.replace(tiny().model, in_channels=channels)
    write_json(folder / "config.json", to_dict(tiny(model=model, **changes)))
    return str(folder)


def test_a_run_with_a_network_from_elsewhere_starts_there_and_nothing_is_pretrained(own, tmp_path):
    own.study.folds, own.study.runs = (0,), ("scratch", "body-imported", "body-lesions")
    folder = imported(tmp_path / "imported")
    run_of = lambda name: named_run(  # noqa: E731
        dataclasses.replace(own, pretrained=folder if name.endswith("-imported") else ""), name
    )
    steps = plan_steps(own, run_of, tmp_path / "study")
    check_data(tmp_path / "study", own, steps)
    trained = {step.name: step.training.config.pretrained for step in steps if step.training}
    assert trained == {
        "pretraining-lesions": "",
        "scratch-none-fold0": "",
        "body-imported-fold0": folder,
        "body-lesions-fold0": str(tmp_path / "study" / "pretraining" / "lesions"),
    }
    assert steps[0].command[-1] == f"--plan_from={folder}"
    assert by_name(steps)["body-imported-fold0"].needs == ("prepare-mine",)


def test_beside_a_network_that_was_not_mirrored_none_is(own, tmp_path):
    own.study.runs, own.study.raw.own = ("scratch", "body-imported"), own.study.raw.own[:1]
    inference = dataclasses.replace(tiny().inference, mirror_axes=())
    folder = imported(tmp_path / "imported", inference=inference)
    trained = [s.training.config for s in steps_of(own, pretrained=folder) if s.training]
    assert {config.inference.mirror_axes for config in trained} == {()}
    assert not any(config.inference.mirror for config in trained)


def test_a_network_of_other_channels_wants_first_conv_before_anything_is_prepared(own, tmp_path):
    own.study.runs, own.study.raw.own = ("body-imported",), own.study.raw.own[:1]
    own.pretrained = imported(tmp_path / "imported", channels=1)
    with pytest.raises(UserError, match=r"sees 1 channels, and mine has 2: .*first_conv=repeat"):
        check(own)
    own.first_conv = "repeat"
    check(own)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (("body-a", "body-b"), "is what the sources a, b are alike; give each run its own"),
        (
            ("body-here",),
            r"was trained on the source there, and config\.source=here; call the run body-there$",
        ),
    ],
)
def test_a_network_that_is_not_the_sources_is_refused(own, tmp_path, runs, message):
    own.study.runs, own.study.raw.own = runs, own.study.raw.own[:1]
    pretraining = {"pretraining": True, "source": "there"} if "body-here" in runs else {}
    own.pretrained = imported(tmp_path / "pretrained", **pretraining)
    with pytest.raises(UserError, match=message):
        steps_of(own)


@pytest.mark.parametrize(
    ("runs", "datasets", "message"),
    [
        (
            ("body-theirs",),
            ("mine",),
            r"pre-training on theirs: no raw data is known of theirs, but of mine, lesions; give "
            r".*own=\(\('theirs','FOLDER'\),\), or .* get_config\('pretraining-theirs'\) has",
        ),
        (
            ("scratch",),
            ("nnunet",),
            r"data\.datasets: .* nnunet, .*config\.study\.raw\.nnunet=FOLD",
        ),
        (("body-mine",), ("mine",), "pre-training on mine would see mine, on which the runs are"),
        (("scratch",), ("mine",), r"study\.raw: lesions is neither the target .* nor a source"),
        (
            ("body-lesions", "pretraining-lesions"),
            ("mine",),
            "pretraining-lesions is no row of a st",
        ),
        (
            ("scratch", "body"),
            ("mine",),
            "body names no source, .* call it body-NAME, of a dataset",
        ),
    ],
)
def test_runs_and_datasets_that_do_not_belong_together_are_refused(own, runs, datasets, message):
    own.study.runs, own.data.datasets = runs, datasets
    with pytest.raises(UserError, match=message):
        steps_of(own)


def test_one_run_by_two_names_is_refused():
    config = tiny(study=StudyConfig(runs=("continual", "continual-multi_lesion")))
    with pytest.raises(UserError, match="are the same run; leave one out"):
        steps_of(config)


def test_sources_of_other_channels_are_refused_before_anything_is_prepared(own):
    own.study.runs = ("body-lesions", "body-msd")
    with pytest.raises(
        UserError,
        match=r"^pretraining-msd: .* of msd_lung \(CT\) are not those of mine \(T1, FLAIR\)",
    ):
        check(own)


def test_folds_are_those_of_splits_final_json_and_of_the_source_too(own):
    own.study.folds = (0, 1)
    folder = Path(own.study.raw.folders["mine"])
    folds = [{"train": ["c0", "c1"], "val": ["c2"]}, {"train": ["c2"], "val": ["c0"]}]
    write_json(folder / "splits_final.json", folds)
    check(own)
    own.study.folds = (2,)
    with pytest.raises(UserError, match=r"study\.folds=\(2,\): mine has the folds 0 to 1; .*=0,1$"):
        check(own)
    own.study.folds = (0,)
    source = Path(own.study.raw.folders["lesions"])
    write_json(source / "splits_final.json", [{"train": [], "val": ["c2"]}])
    with pytest.raises(UserError, match="lesions lacks its cases to train or test on"):
        check(own)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("own", (("a", "x"), ("a", "y")), "must name each dataset once"),
        ("own", (("a", "x"), ("b", "./x")), "must name each folder once"),
        ("own", (("covid19", "x"),), "covid19 is another dataset or source; call it otherwise"),
        ("own", (("msd", "x"),), "msd is another dataset or source"),
        ("own", (("../a", "x"),), "must be a name of letters"),
        ("own", (("a", ""),), "and a folder"),
        ("own", ("a", "x"), r"study\.raw\.own=\('a', 'x'\): must be tuple"),
        ("folds", (1, 1), "must name each fold once"),
        ("folds", (-1,), "must not be negative"),
        ("folds", (), "must name one of its folds"),
        ("runs", ("scratch", "scratch"), "must name each run once"),
        ("runs", (), "must name one of its runs"),
        ("gpu_memory_gb", 0.5, "must be at least 1, or 0"),
    ],
)
def test_a_setting_of_a_study_that_cannot_work_is_refused(setting, value, message):
    study = StudyConfig()
    setattr(study.raw if setting == "own" else study, setting, value)
    with pytest.raises(UserError, match=message):
        validate(Config(study=study))


def test_a_target_on_the_command_line_is_not_what_is_pretrained_on(own, tmp_path, command):
    folders = ",".join(f"('{name}','{folder}')" for name, folder in own.study.raw.own)
    told = command(
        "study",
        f"--config={ROOT}/configs/nnunet.py",
        f"--workdir={tmp_path / 'study'}",
        *("--config.data.datasets=mine", "--config.study.runs=body-lesions", "--list"),
        f"--config.study.raw.own=({folders})",
    )
    assert told.returncode == 0, told.stderr
    assert "prepare-lesions" in told.stdout
    assert not (tmp_path / "study").exists()


def test_joint_schedules_that_do_not_meet_are_refused_before_hours_of_pretraining():
    study = StudyConfig(folds=(0,), runs=("scratch", "continual-msd"))
    run_of = lambda name: tiny(name, study=study, epochs=len(name))  # noqa: E731
    with pytest.raises(UserError, match="planned for another joint schedule"):
        plan_steps(tiny(study=study), run_of, Path("nowhere"))


def test_runs_of_seeds_that_are_not_asked_for_now_are_told(tmp_path):
    steps = lambda *seeds: steps_of(  # noqa: E731
        tiny(study=StudyConfig(folds=(0,), runs=("scratch",), seeds=seeds)), tmp_path
    )
    assert other_runs(tmp_path, steps()) == ""
    write_json(tmp_path / "runs" / "scratch-none-fold0-seed2" / "config.json", {})
    assert "has scratch-none-fold0-seed2 too, of runs, folds or" in other_runs(tmp_path, steps(1))
    assert other_runs(tmp_path, steps(1, 2)) == ""


def test_datasets_may_be_added_to_a_study(own, tmp_path):
    claim_study(tmp_path, own)
    own.study.raw.own = (*own.study.raw.own, ("more", "elsewhere"))
    claim_study(tmp_path, own)
    assert load_study(tmp_path).study.raw.own == own.study.raw.own


def test_data_that_is_made_is_named_where_it_is_used(own, tmp_path):
    assert synthetic_data(own, steps_of(own)) == ""
    own.study.runs = ("scratch", "body-lesions", "body-msd")
    told = "note: msd_lung: SYNTHETIC, as config.study.raw has no folder of it"
    assert synthetic_data(own, steps_of(own)) == told


def test_test_cases_that_a_network_was_trained_on_are_told_before_anything_is_prepared(
    own, tmp_path
):
    """By their scans, whatever they are called, and whatever that network started from."""
    own.study.runs, own.study.raw.own = ("scratch", "body-imported"), own.study.raw.own[:1]
    own.study.folds = (0, 1)
    raw = Path(own.study.raw.folders["mine"])
    for case in range(6):
        (raw / "imagesTr" / f"c{case}_0000.nii.gz").write_text(str(case))
    write_json(raw / "splits_final.json", [{"train": ["c0"], "val": [f"c{k}"]} for k in (1, 2)])
    own.pretrained = imported(tmp_path / "imported")
    study = tmp_path / "study"
    told = lambda: seen_notes(study, own, steps_of(own, study))  # noqa: E731
    assert told() == []  # nothing is known of what it was trained on
    scan = image_digest(read_dataset("nnunet", raw).cases[2])
    before = {"data": {}, "synthetic": [], "trained_on": {"theirs": {"other": scan}}}
    write_json(
        Path(own.pretrained) / "provenance.json",
        {"data": {}, "synthetic": [], "pretrained": before},
    )
    line = (
        f"warning: {own.pretrained} was trained on 1 of the test cases of fold 1 (c2); scores of "
        "them are no test"
    )
    assert told() == [line]
    own.study.folds = (0,)
    assert told() == []


def test_a_run_that_has_begun_keeps_its_config_whatever_the_config_file_makes_of_its_name(tmp_path):
    config = tiny(study=StudyConfig(runs=("scratch",), folds=(0, 1)))
    steps = steps_of(config, tmp_path)
    write_configs(steps)
    begun = next(step.training for step in steps if step.name.endswith("fold0"))
    slower = steps_of(config, tmp_path, optimizer=OptimizerConfig(learning_rate=0.5))
    check_runs(slower)  # nothing has begun
    begun.folder.mkdir(parents=True)
    write_json(begun.folder / "config.json", to_dict(begun.config))
    check_runs(steps)
    line = r"fold0: was begun with another config \(optimizer.learning_rate: 0.5, was 0.01\)"
    with pytest.raises(UserError, match=line):
        check_runs(slower)


def test_a_run_that_has_begun_keeps_its_network_which_may_be_moved(own, tmp_path):
    a, b = (tmp_path / name for name in "ab")
    for place in (a, b):
        place.mkdir()
    steps = steps_of(tiny(study=StudyConfig(runs=("scratch",), folds=(0,))), tmp_path / "study")

    def from_network(folder):
        step = next(step for step in steps if step.training)
        config = dataclasses.replace(step.training.config, pretrained=str(folder))
        return [
            dataclasses.replace(step, training=dataclasses.replace(step.training, config=config))
        ]

    (begun,) = from_network(a)
    write_configs([begun])
    begun.training.folder.mkdir(parents=True)
    write_json(begun.training.folder / "config.json", {})
    check_runs(from_network(a.parent / "." / "a"))
    with pytest.raises(UserError, match=r"was begun with another config \(pretrained: "):
        check_runs(from_network(b))
    a.rename(tmp_path / "c")
    check_runs(from_network(tmp_path / "c"))


def test_a_study_that_was_copied_goes_on_beside_the_first_one(tmp_path):
    """Its pre-trainings are its own, wherever the first one's lie."""
    study = StudyConfig(runs=("body-msd",), folds=(0,))
    first, second = (steps_of(tiny(study=study), tmp_path / name) for name in ("first", "second"))
    write_configs(first)
    begun = first[-1].training.folder
    begun.mkdir(parents=True)
    write_json(begun / "config.json", {})
    (tmp_path / "first" / "pretraining" / "msd").mkdir(parents=True)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    check_runs(second)


def test_a_study_knows_which_runs_it_was_asked_for_at_last(tmp_path):
    for runs in (("scratch", "body-msd"), ("scratch",)):
        config = tiny(study=StudyConfig(runs=runs, folds=(0, 1)))
        claim_study(tmp_path, config, steps_of(config, tmp_path))
    assert runs_asked(tmp_path) == ["scratch-none-fold0", "scratch-none-fold1"]
    write_json(tmp_path / "configs" / "asked.json", {"runs": 3})
    with pytest.raises(UserError, match=r"asked\.json: damaged; the next start"):
        runs_asked(tmp_path)


def test_scans_of_one_name_are_refused_as_their_masks_would_be_one(tmp_path):
    scans = tuple(str(tmp_path / folder / "x.nii.gz") for folder in "ab")
    for scan in scans:
        Path(scan).parent.mkdir()
        write_volume(Path(scan), from_spacing(np.zeros((2, 3, 4), np.float32), (1, 1, 1)))
    study = StudyConfig(runs=("scratch",), folds=(0,), scans=scans)
    with pytest.raises(UserError, match=r"a/x\.nii\.gz and .*b/x\.nii\.gz are both called x"):
        steps_of(tiny(study=study), tmp_path)


def test_a_mask_is_made_again_where_its_run_was_and_a_comma_is_part_of_a_name(tmp_path):
    scan = tmp_path / "x.nii.gz"
    write_volume(scan, from_spacing(np.zeros((2, 3, 4), np.float32), (1, 1, 1)))
    study = StudyConfig(runs=("scratch",), folds=(0,), scans=(str(scan),))
    *_, predict = steps_of(tiny(study=study), tmp_path / "a,b")
    run = tmp_path / "a,b" / "runs" / "scratch-none-fold0"
    assert predict.made_from == run / "metrics.json"
    (checkpoint,) = (part for part in predict.command if part.startswith("--checkpoint="))
    assert flags.ListParser().parse(checkpoint.partition("=")[2]) == [str(run)]  # as predict does


def test_a_study_without_tests_is_refused_before_it_trains(tmp_path):
    with pytest.raises(UserError, match=r"config\.test=False: scratch would have no scores"):
        steps_of(tiny(test=False), tmp_path)
