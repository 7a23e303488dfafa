"""Each benchmark runs on a small network and leaves its file and its table."""

import importlib
import json

import pytest
from absl import flags

from benchmarks.report import PAGES, TABLES, marked, rendered, results
from tests.conftest import ROOT, SMALL_NETWORK, needs_onednn

SMALL = (
    f"--config={ROOT}/configs/tiny.py",
    *SMALL_NETWORK,
    "--config.data.augment=False",
    "--rounds=2",
)
SCAN = f"{ROOT}/examples/covid19/COVID-19-CT-Seg_20cases/coronacases_001.nii.gz"


def run(command, folder, name, *arguments, patch="4,16,16"):
    finished = command(
        f"benchmarks.{name}",
        f"--output={folder}",
        *SMALL,
        f"--config.data.patch_size={patch}",
        *arguments,
    )
    assert finished.returncode == 0, finished.stderr
    content = json.loads((folder / f"{name}.json").read_text())
    assert {"command", "versions", "device"} <= content.keys()
    table = TABLES[name](content)
    assert table in finished.stdout
    return content["results"]


@needs_onednn
def test_every_convolution_is_measured_in_every_form(tmp_path, command):
    lines = run(command, tmp_path, "convolution", "--seconds=0.01")
    assert {line["form"] for line in lines} == {"lax", "slices", "onednn"}
    assert {line["pass"] for line in lines if line["channels"] == 1} == {
        "forward",
        "gradient to kernel",
    }
    assert all(line["gflop_per_second"] > 0 for line in lines)


@pytest.mark.slow
def test_freezing_more_costs_less_work_and_memory(tmp_path, command):
    lines = run(command, tmp_path, "freezing", "--seconds=0.01")
    own = lines[::3]
    parts = ["nothing", "encoder 0", "encoder", "all but heads"]
    assert [line["part"] for line in own] == parts
    for field in ("tflop_per_step", "peak_bytes"):
        values = [line[field] for line in own]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0]
    recipe = [line for line in lines if line["variant"].endswith("in front")]
    assert recipe[-1]["peak_bytes"] > own[-1]["peak_bytes"]


def test_a_whole_scan_is_predicted_with_and_without_mirroring(tmp_path, command):
    # One window, or few: the scan is large beside this network's patch.
    plain = run(command, tmp_path, "inference", f"--input={SCAN}", patch="32,96,96")
    assert [line["mirror"] for line in plain] == [False, True]
    assert plain[1]["seconds"] > plain[0]["seconds"]


@pytest.mark.slow
def test_the_cost_is_measured_along_every_axis(tmp_path, command, monkeypatch):
    monkeypatch.setattr("benchmarks.scaling.CASES", (2, 4))
    lines = run(command, tmp_path, "scaling", "--seconds=0.01")
    axes = {line["axis"] for line in lines}
    assert {"voxels of the patch", "batch", "features of the first stage"} < axes
    assert any("SYNTHETIC" in axis for axis in axes)


def test_what_a_save_costs_is_measured(tmp_path, command):
    (line,) = run(command, tmp_path, "checkpoints", "--steps=2")
    assert 0 < line["seconds_in_path"] < line["seconds_with_save"]


@pytest.mark.slow
def test_one_core_makes_batches_beside_nnunets_loader(tmp_path, command, monkeypatch):
    monkeypatch.setattr("benchmarks.input_pipeline.SCAN_SIZE", (60, 120, 120))
    arguments = ("--seconds=0", "--batches=20", "--peer=torch")
    lines = run(command, tmp_path, "input_pipeline", *arguments)
    assert [line["name"].partition(":")[0] for line in lines] == ["covid_jax"] * 3 + ["nnU-Net"] * 2
    assert all(line["seconds_per_sample"] > 0 for line in lines)
    assert len(json.loads((tmp_path / "input_pipeline.json").read_text())["memory"]) == 10


@pytest.mark.slow
def test_one_core_prepares_a_case_beside_nnunets_preprocessor(tmp_path, command):
    arguments = (f"--output={tmp_path}", "--rounds=1", "--seconds=0", "--peer=torch")
    finished = command("benchmarks.preparation", *arguments)
    assert finished.returncode == 0, finished.stderr
    lines = json.loads((tmp_path / "preparation.json").read_text())["results"]
    assert [line["framework"] for line in lines] == ["covid_jax", "nnU-Net"] * 3
    assert all(line["seconds"] > 0 for line in lines)


def test_the_operations_of_a_step_are_those_of_its_program(tmp_path, command):
    arguments = [argument for argument in SMALL if "rounds" not in argument]
    finished = command("benchmarks.kernels", f"--output={tmp_path}", *arguments)
    assert finished.returncode == 0, finished.stderr
    lines = json.loads((tmp_path / "kernels.json").read_text())["results"]
    assert sum(line["share"] for line in lines) == pytest.approx(1)
    assert any("conv" in line["jax"] and line["bytes"] > 0 for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_show_what_the_result_files_say(page):
    assert rendered(page) == page.read_text()
    names = marked(page.read_text())
    assert names
    assert all(results(name) for name in names)


COMMANDS = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_number_that_cannot_be_is_one_line(name, refuses):
    """Such as no rounds, and less than no seconds."""
    own = getattr(importlib.import_module(f"benchmarks.{name}"), "_FLAGS", flags.FlagValues())
    ours = own.flags_by_module_dict().get(f"benchmarks.{name}", [])
    for flag in (flag for flag in ours if flag.flag_type() in ("int", "float")):
        line = refuses(f"benchmarks.{name}", f"--{flag.name}={flag.parser.lower_bound - 1}")
        assert f"flag --{flag.name}=" in line
