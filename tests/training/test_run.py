"""Who may go on in a run's folder."""

import dataclasses
import json

import pytest

from covid_jax.config import to_dict
from covid_jax.data.plan import Plan
from covid_jax.errors import UserError
from covid_jax.training.run import as_begun, claim_workdir, device_here, note_device
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
