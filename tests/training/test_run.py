"""Who may go on in a run's folder."""

import dataclasses
import json

import pytest

from covid_jax.config import to_dict
from covid_jax.data.plan import Plan
from covid_jax.errors import UserError
from covid_jax.training.run import claim_workdir
from tests.conftest import tiny

PLAN = Plan((2.0, 1.0, 1.0), -900.0, 300.0, -400.0, 350.0, (40, 60, 60), ())


def on_another_device(workdir):
    """The run's folder as if it had begun on a GPU."""
    file = workdir / "provenance.json"
    origin = json.loads(file.read_text())
    origin["device"] = {"kind": "NVIDIA H200", "driver": "580.65.06", "jax": "0.11.2"}
    file.write_text(json.dumps(origin))


def test_a_run_may_go_on_on_another_device(tmp_path):
    claim_workdir(tmp_path, tiny(dtype="float32"), PLAN)
    here = (tmp_path / "provenance.json").read_text()
    on_another_device(tmp_path)
    claim_workdir(tmp_path, tiny(dtype="float32"), PLAN)
    assert (tmp_path / "provenance.json").read_text() == here


def test_a_deterministic_run_may_not_unless_it_is_told_to(tmp_path):
    config = tiny(dtype="float32", deterministic=True)
    claim_workdir(tmp_path, config, PLAN)
    on_another_device(tmp_path)
    with pytest.raises(UserError, match=r"device\.\w+: .*--accept_changes"):
        claim_workdir(tmp_path, config, PLAN)
    claim_workdir(tmp_path, config, PLAN, accept_changes=True)


def test_other_data_is_refused_on_any_device(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    file = tmp_path / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": {"phantom": {"a": "b"}}}))
    with pytest.raises(UserError, match="data or program have changed"):
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
