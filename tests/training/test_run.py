"""Who may go on in a run's folder."""

import dataclasses
import json
import re

import pytest

from covid_jax.config import InferenceConfig, to_dict
from covid_jax.data.plan import Plan
from covid_jax.data.store import StoredDataset
from covid_jax.errors import UserError
from covid_jax.training.checkpoint import load_config, load_pretrained, load_run, save_params
from covid_jax.training.run import (
    as_begun,
    check_place,
    claim_workdir,
    device_here,
    note_device,
    other_plan,
    with_num_classes,
)
from covid_jax.training.state import new_params
from covid_jax.transfer.strategies import network_of
from tests.conftest import tiny

PLAN = Plan((2.0, 1.0, 1.0), -900.0, 300.0, -400.0, 350.0, (40, 60, 60), ())


H200 = {"kind": "NVIDIA H200", "driver": "580.65.06", "jax": "0.11.2"}


def devices(workdir):
    return json.loads((workdir / "provenance.json").read_text())["devices"]


def trained_on(workdir, device):
    """The run's folder as if it had been trained on this device."""
    file = workdir / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"devices": [device]}))


def test_a_run_may_go_on_on_another_device_and_keeps_both(tmp_path):
    claim_workdir(tmp_path, tiny(dtype="float32"), PLAN)
    assert devices(tmp_path) == []
    trained_on(tmp_path, H200)
    claim_workdir(tmp_path, tiny(dtype="float32"), PLAN)
    assert devices(tmp_path) == [H200]  # a start that trains nothing leaves no trace
    for _ in range(2):
        note_device(tmp_path)
    assert devices(tmp_path) == [H200, device_here()]


@pytest.mark.parametrize("device", [H200, {"kind": "cpu", "cores": 64}], ids=["GPU", "cores"])
def test_a_deterministic_run_may_not_unless_it_is_told_to(tmp_path, device):
    config = tiny(dtype="float32", deterministic=True)
    claim_workdir(tmp_path, config, PLAN)
    trained_on(tmp_path, device)
    with pytest.raises(UserError, match=r"the device changed .*cores: .*--accept_changes"):
        claim_workdir(tmp_path, config, PLAN)
    claim_workdir(tmp_path, config, PLAN, accept_changes=True)


def test_a_later_device_of_the_pretraining_is_no_change(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    claim_workdir(before, tiny(), PLAN)
    config = tiny("body-msd", pretrained=str(before))
    claim_workdir(after, config, PLAN)
    trained_on(before, H200)
    claim_workdir(after, config, PLAN)


def test_auto_goes_on_in_the_dtype_that_the_run_began_with(tmp_path):
    assert as_begun(tiny(), tmp_path).dtype == "auto"
    claim_workdir(tmp_path, tiny(dtype="bfloat16"), PLAN)
    assert as_begun(tiny(), tmp_path).dtype == "bfloat16"
    assert as_begun(tiny(dtype="float32"), tmp_path).dtype == "float32"


def test_other_data_is_refused_on_any_device(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    file = tmp_path / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": {"phantom": {"a": "b"}}}))
    with pytest.raises(UserError, match="data or program changed"):
        claim_workdir(tmp_path, tiny(), PLAN)


def test_a_run_from_before_a_setting_was_there_goes_on(tmp_path):
    config = tiny(dtype="float32")
    claim_workdir(tmp_path, config, PLAN)
    before = to_dict(config)
    del before["deterministic"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    claim_workdir(tmp_path, config, PLAN)
    with pytest.raises(UserError, match="deterministic: True, was False"):
        claim_workdir(tmp_path, dataclasses.replace(config, deterministic=True), PLAN)


def test_config_json_says_what_a_run_goes_on_with(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    other = tiny(checkpoint_every=7, inference=InferenceConfig(step_size=0.3))
    claim_workdir(tmp_path, other, PLAN)
    assert load_config(tmp_path) == other


@pytest.mark.parametrize("made", ["metrics.json", "postprocessing.json", "model"])
def test_other_settings_of_inference_are_refused_where_theirs_have_made_something(tmp_path, made):
    before = tiny(inference=InferenceConfig(step_size=0.5))
    claim_workdir(tmp_path, before, PLAN)
    (tmp_path / made).mkdir()
    with pytest.raises(UserError, match=rf"{made} there .*step_size: 0.3, was 0.5.*; delete"):
        claim_workdir(tmp_path, tiny(inference=InferenceConfig(step_size=0.3)), PLAN)
    assert load_config(tmp_path) == before
    claim_workdir(tmp_path, before, PLAN)


def test_a_provenance_that_is_gone_is_told_and_made_anew(tmp_path, capsys):
    claim_workdir(tmp_path, tiny(), PLAN)
    assert capsys.readouterr().out == ""
    (tmp_path / "provenance.json").unlink()
    claim_workdir(tmp_path, tiny(), PLAN)
    assert "provenance.json is missing" in capsys.readouterr().out
    assert devices(tmp_path) == []


@pytest.mark.parametrize(
    "part", [{"data": None}, {"data": {"x": 1}}, {"synthetic": None}, {"devices": None}]
)
def test_a_damaged_provenance_is_one_line_and_once_deleted_made_anew(tmp_path, part):
    run, after, file = tmp_path / "run", tmp_path / "after", tmp_path / "run" / "provenance.json"
    claim_workdir(run, tiny(), PLAN)
    file.write_text(json.dumps(json.loads(file.read_text()) | part))
    for use in (
        lambda: claim_workdir(run, tiny(), PLAN),
        lambda: note_device(run),
        lambda: claim_workdir(after, tiny("body-msd", pretrained=str(run)), PLAN),
    ):
        with pytest.raises(UserError, match=r"run/provenance\.json: damaged; .* Delete it"):
            use()
    file.unlink()
    claim_workdir(run, tiny(), PLAN)


def test_what_of_the_plan_differs_from_the_pretrainings_is_told(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    config = tiny("body-msd", pretrained=str(tmp_path))
    assert other_plan(config, PLAN) == []
    assert other_plan(config, dataclasses.replace(PLAN, training_cases=("a",))) == []
    other = dataclasses.replace(PLAN, spacing_mm=(5.0, 1.0, 1.0), mean_hu=-100.0, file_axes=True)
    (line,) = other_plan(config, other)
    assert line.startswith(f"note: {tmp_path} was trained on data of another plan")
    assert "spacing in mm (2 1 1 there, 5 1 1 here)" in line
    assert "intensities (-900 300 -400 350 there, -900 300 -100 350 here)" in line
    assert "axes of the file (False there, True here)" in line


def test_other_classes_than_the_datas_are_refused(tmp_path):
    data = [StoredDataset("one", tmp_path, ("a", "b"), (), True)]
    assert with_num_classes(tiny(), data).model.num_classes == 3
    asked = tiny(model=dataclasses.replace(tiny().model, num_classes=5))
    with pytest.raises(UserError, match=r"num_classes=5: the data has 3"):
        with_num_classes(asked, data)


def test_a_start_from_an_imported_network_names_it_and_an_older_provenance_goes_on(tmp_path):
    before, after = tmp_path / "imported", tmp_path / "after"
    claim_workdir(before, tiny(), PLAN)
    config = tiny("body-msd", pretrained=str(before))
    claim_workdir(after, config, PLAN)
    labels = {"background": 0, "lung": 1, "tumour": 2}
    (before / "dataset.json").write_text(json.dumps({"labels": labels}))
    claim_workdir(after, config, PLAN)
    origin = json.loads((after / "provenance.json").read_text())
    assert origin["pretrained"]["imported"] == "of the labels lung, tumour"
    (before / "dataset.json").write_text(json.dumps({"labels": ["lung"]}))
    with pytest.raises(UserError, match=r"dataset\.json: damaged, its labels have no names"):
        claim_workdir(after, config, PLAN)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "damaged"),
        ('{"epochs": "x"}', "config.epochs='x': must be int"),
        ('{"zap": 1}', "config has no field zap"),
        ('{"model": 3}', "config.model=3: must be settings by name"),
        ("[]", "config=[]: must be settings by name"),
        ('{"model": {"in_channels": 2}}', "config.model.in_channels=2: scans have 1"),
        ('{"model": {"strides": [[1, 1, 1]]}}', "config.model.strides"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line_with_its_file(tmp_path, text, told):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        load_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    with pytest.raises(UserError, match=re.escape(told)):
        claim_workdir(tmp_path, tiny(), PLAN)


def test_a_network_that_its_config_does_not_describe_is_one_line(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    other = tiny(model=dataclasses.replace(tiny().model, features_per_stage=(4, 8, 12)))
    shape = (1, *other.data.patch_size, 1)
    network = network_of(dataclasses.replace(other, dtype="float32"), "lax")
    save_params(tmp_path, new_params(network, 0, shape))
    with pytest.raises(UserError, match=r"is not of the network in checkpoints/: .*16.* here and"):
        load_run(tmp_path)


def test_a_pretraining_on_another_source_is_refused(tmp_path):
    claim_workdir(tmp_path, tiny("pretraining-nsclc"), PLAN)
    with pytest.raises(UserError, match=r"trained on the source nsclc, and config\.source=msd"):
        load_pretrained(tiny("body-msd", pretrained=str(tmp_path)))


def test_a_run_never_lies_in_its_prepared_data(tmp_path):
    config = tiny(data=dataclasses.replace(tiny().data, prepared_dir=str(tmp_path)))
    for workdir in (tmp_path, tmp_path / "runs" / "one"):
        with pytest.raises(UserError, match=r"--workdir=.*which holds inputs"):
            check_place(workdir, config)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_not_written_over(tmp_path):
    (tmp_path / "predictions").mkdir()
    with pytest.raises(UserError, match=r"no config\.json, and holds predictions"):
        check_place(tmp_path, tiny())
    (tmp_path / "config.json").write_text("{}")
    check_place(tmp_path, tiny())
