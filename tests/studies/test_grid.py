"""What a study is compared with, and which of its folds and steps there are."""

import dataclasses
import json
from pathlib import Path

import pytest

from covid_jax.config import Config, StudyConfig, to_dict, validate
from covid_jax.errors import UserError
from covid_jax.files import write_json
from covid_jax.studies.grid import (
    Step,
    check_data,
    check_places,
    claim_study,
    load_study,
    only,
    plan_steps,
)
from tests.conftest import tiny


def test_a_setting_that_came_later_has_its_default_in_a_study_of_before(tmp_path):
    values = to_dict(tiny())
    del values["deterministic"], values["inference"]["mirror"]
    write_json(tmp_path / "study.json", values)
    claim_study(tmp_path, tiny())
    assert json.loads((tmp_path / "study.json").read_text()) == to_dict(tiny())
    write_json(tmp_path / "study.json", values)
    with pytest.raises(UserError, match="deterministic: True, was False"):
        claim_study(tmp_path, tiny(deterministic=True))


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
    return tiny(data=data, study=StudyConfig(folds=folds))


def test_a_fold_that_the_published_ones_do_not_have_is_refused_before_anything_is_prepared(
    tmp_path,
):
    check_data(tmp_path, folds_of("covid19", 0, 4))
    check_data(tmp_path, folds_of("msd_lung", 7))  # its one split is every fold's
    check_data(tmp_path, folds_of("nnunet", 7))  # nothing is known of it yet
    with pytest.raises(UserError, match=r"config\.fold=5: covid19 has folds 0 to 4"):
        check_data(tmp_path, folds_of("covid19", 0, 5))


STEPS = [Step(name, (), Path(name)) for name in ("prepare-phantom", "scratch-none-fold0")]


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
    assert pretraining.result == tmp_path / "pretraining" / "msd" / "checkpoints" / "70"
    assert [step.training.steps for step in steps if step.training] == [70, 70, 80]
