"""The comparison with nnUNetTrainer itself, on runs of two steps."""

import json

import numpy as np
import pytest

from benchmarks.harness.phantoms import PHANTOMS, write_phantoms
from tests.conftest import installed

installed("nnunetv2", extra="peers")


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms_are_the_same_again_and_hold_every_label(name, tmp_path):
    for folder in ("a", "b"):
        write_phantoms(tmp_path / folder, name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    phantoms = PHANTOMS[name]
    for seed in range(3):
        channels, label = phantoms.make(np.random.default_rng(seed), phantoms)
        assert channels.shape == (len(phantoms.description["channel_names"]), *label.shape)
        assert len(np.unique(label)) == len(phantoms.description["labels"])


def test_neither_channel_alone_tells_what_is_labelled():
    """Both labels are bright in the first; in the second one is, and the other is dark."""
    phantoms = PHANTOMS["channels"]
    cases = [phantoms.make(np.random.default_rng(seed), phantoms) for seed in range(6)]
    channels, label = (np.stack(parts, -1) for parts in zip(*cases, strict=True))
    none, both, first_alone = (channels[:, label == value].mean(1) for value in (0, 1, 2))
    assert min(both[0], first_alone[0]) > none[0] + 30
    assert both[1] > none[1] + 30 > none[1] - 30 > first_alone[1]


@pytest.mark.slow
def test_both_are_scored_on_every_region(tmp_path, command):
    finished = command(
        "benchmarks.trainer_parity",
        "--dataset=regions",
        "--seeds=1",
        "--epochs=1",
        "--steps=2",
        "--validation_steps=1",
        f"--output={tmp_path}",
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "trainer_parity_regions.json").read_text())
    assert found["data"] == "SYNTHETIC regions"
    assert list(found["labels"]) == ["whole", "core", "enhancing"]
    for one in found["labels"].values():
        assert {name: len(scores) for name, scores in one["dsc"].items()} == {
            "covid_jax": 1,
            "nnUNetTrainer": 1,
        }
    assert {name: len(runs[0]) for name, runs in found["curves"].items()} == {
        "covid_jax": 1,
        "nnUNetTrainer": 1,
    }
    assert (tmp_path / "trainer_parity_regions.png").is_file()
