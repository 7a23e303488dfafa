"""The comparison of test Dice with PyTorch's nnU-Net, on a run of seconds."""

import json

import pytest

from tests.conftest import ROOT, SMALL_NETWORK, installed

installed("nnunetv2", extra="peers")


@pytest.mark.slow
def test_both_are_measured_on_the_test_cases(tmp_path, command):
    arguments = (
        f"--config={ROOT}/configs/tiny.py",
        "--config.epochs=1",
        "--config.steps_per_epoch=2",
        "--config.data.augment=False",
        "--seeds=2",
        f"--workdir={tmp_path}/runs",
        f"--output={tmp_path}",
        *SMALL_NETWORK,
    )
    finished = command("benchmarks.dice_parity", *arguments)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "dice_parity.json").read_text())
    assert found["run"] == "scratch on SYNTHETIC phantom, fold 0"
    assert set(found["mean_dsc"]) == {"covid_jax", "PyTorch's nnU-Net"}
    for runs in found["cases"].values():
        assert len(runs) == 2
        assert runs[0] != runs[1]
