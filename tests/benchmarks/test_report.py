"""What the pages say of a GPU comes from the result files, and what follows from them."""

import gzip
import json
import re

import pytest

from benchmarks.harness.cluster import simulate
from benchmarks.harness.gpu_times import (
    STRATEGIES,
    measured,
    packed_passes,
    predict,
    validation_seconds,
    with_epochs,
)
from benchmarks.harness.tables import epoch_time_table, gpu_epoch_table, gpu_kernels_table
from benchmarks.report import RESULTS
from covid_jax.config import Config
from tests.conftest import ROOT


def content_of(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_no_result_file_names_a_machine_or_a_folder_of_one():
    for path in RESULTS.iterdir():
        if path.suffix == ".png":
            continue
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        assert not re.search(r"(?<![\w.-])/(home|root|tmp|work|mnt|opt|usr|var|etc)/", text), path


def test_an_epoch_without_measured_validation_steps_takes_them_as_in_float32():
    full = measured("scratch", "float32")
    share = full["seconds_per_validation_step"] / full["seconds_per_step"]
    assert validation_seconds("scratch") == pytest.approx(
        share * measured("scratch")["seconds_per_step"]
    )
    # The forward pass of a frozen encoder is the same; a second encoder is one more.
    assert validation_seconds("frozen_encoder") == validation_seconds("scratch")
    assert 1.3 < validation_seconds("multi_encoder") / validation_seconds("scratch") < 1.7
    (line,) = with_epochs([measured("scratch")])
    assert line["seconds_per_epoch"] == pytest.approx(
        250 * line["seconds_per_step"] + 50 * validation_seconds("scratch")
    )
    assert with_epochs([full]) == [full]


def test_the_table_of_a_gpu_compares_with_the_faster_layout_and_apart_with_what_is_compiled():
    content = content_of("epoch_time_gpu_bfloat16")
    lines, paper = with_epochs(content["results"]), content["paper"]
    row = gpu_epoch_table(lines, paper).splitlines()[1].split()
    assert row[:4] == ["scratch", "24.5", "74.7", "0.33"]
    compiled = next(line for line in lines if line["framework"] == "torch")
    compiled = {**compiled, "variant": "contiguous, compiled", "seconds_per_step": 0.04}
    head, row, *_ = gpu_epoch_table([*lines, compiled], paper).splitlines()
    assert "compiled" in head
    assert row.split()[2:6] == ["74.7", "0.33", "40.0", "0.61"]


def test_the_operations_of_a_gpu_add_up_by_stage_and_pass():
    lines = content_of("kernels_gpu_bfloat16")["results"]
    whole = gpu_kernels_table(lines).splitlines()[-2].split()
    assert float(whole[-2]) == pytest.approx(1e3 * sum(x["seconds"] for x in lines), abs=0.01)


def test_packed_are_the_planar_convolutions_of_few_channels_where_their_pass_is_needed():
    full = packed_passes(Config())
    assert full == {
        (1, 8, "forward"): 1,
        (1, 8, "to kernel"): 1,
        **{(32, 2, name): 4 for name in ("forward", "to kernel", "to input")},
    }
    frozen = packed_passes(Config(strategy="frozen_encoder"))
    assert frozen[32, 2, "forward"] == full[32, 2, "forward"]
    assert (frozen[32, 2, "to kernel"], frozen[32, 2, "to input"]) == (3, 2)
    assert (1, 8, "to kernel") not in frozen


def test_predictions_and_simulation_are_those_of_the_result_files_and_say_what_they_are():
    found = content_of("gpu_predictions")
    assert found["predicted"]
    for line, strategy in zip(found["results"], STRATEGIES, strict=True):
        again = predict(strategy)
        assert line["seconds_predicted"] == pytest.approx(again["seconds_predicted"])
        assert line["augmentation_seconds"] == pytest.approx(again["augmentation_seconds"])
    told = f"predicted for scratch: {1e3 * found['results'][0]['seconds_predicted']:.1f} ms"
    assert told in (ROOT / "README.md").read_text()
    found = content_of("grid_hours")
    assert found["simulated"]
    for line, again in zip(found["results"], simulate(), strict=True):
        assert line["hours"] == pytest.approx(again["hours"])


def test_networks_have_tables_of_their_own_with_what_the_processors_did():
    (line,) = (
        line
        for line in content_of("epoch_time_cpu_compiled")["results"]
        if line["framework"] == "jax"
    )
    peer = {**line, "framework": "torch", "processor_seconds": 8.0}
    line = {**line, "processor_seconds": 6.0}
    both = [line, peer, {**line, "network": "residual"}, {**peer, "network": "residual"}]
    table = epoch_time_table([line, peer], {"scratch": 206})
    assert "scratch: 6 processor seconds a step, torch 8: 0.75" in table
    assert "network" not in table
    plain, residual = epoch_time_table(both, {"scratch": 206}).split("\n\n")
    assert plain.startswith("float32, 16 x 64 x 96\n")
    assert residual.startswith("float32, 16 x 64 x 96, residual\n")
    assert "network: residual" in residual
