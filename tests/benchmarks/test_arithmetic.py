"""The counted operations are those of the paper's network and follow what is frozen."""

import dataclasses
import math

import pytest

from benchmarks.arithmetic import convolutions, counted_flops
from covid_jax.config import Config, DataConfig
from covid_jax.training.cost import abstract_params, step_flops
from covid_jax.transfer.freezing import leaves_by_path
from covid_jax.transfer.strategies import STRATEGIES
from tests.networks import UNEVEN

PAPER = Config()  # 56 x 160 x 192, batch 2


@pytest.mark.parametrize(
    ("strategy", "tflop"),
    [("scratch", 5.523), ("body", 5.523), ("frozen_encoder", 3.947), ("multi_encoder", 6.921)],
)
def test_a_step_of_the_benchmark_topology_counts_as_worked_out_by_hand(strategy, tflop):
    config = dataclasses.replace(PAPER, strategy=strategy)
    found = counted_flops(config, STRATEGIES[strategy].frozen) / 1e12
    assert found == pytest.approx(tflop, abs=5e-4)


@pytest.mark.parametrize("strategy", ["scratch", "multi_encoder"])
@pytest.mark.parametrize("model", [PAPER.model, UNEVEN], ids=["benchmark", "uneven"])
def test_every_kernel_of_the_network_is_counted_with_its_own_shape(strategy, model):
    data = DataConfig(patch_size=(9, 24, 20))
    config = dataclasses.replace(PAPER, strategy=strategy, model=model, data=data)
    shapes = {
        path.removesuffix("/kernel"): leaf.shape
        for path, leaf in leaves_by_path(abstract_params(config)).items()
        if path.endswith("kernel")
    }
    counted = {
        conv.path: (*conv.kernel_size, sum(n for _, n in conv.inputs), conv.features)
        for conv in convolutions(config)
    }
    assert counted == shapes


def test_xla_counts_the_same_but_for_the_taps_on_the_border():
    config = dataclasses.replace(PAPER, data=DataConfig(patch_size=(48, 64, 64)))
    for patterns in ((), ("encoder",), ("encoder/stage_[0-3]",), ("decoder",)):
        share = step_flops(config, patterns) / counted_flops(config, patterns)
        assert 0.85 < share < 1.03, patterns


def test_a_frozen_prefix_saves_its_backward_pass_and_no_forward():
    flops = [
        counted_flops(PAPER, tuple(f"encoder/stage_{stage}" for stage in range(frozen)))
        for frozen in range(7)
    ]
    assert flops == sorted(flops, reverse=True)
    assert flops[6] == counted_flops(PAPER, ("encoder",))
    first = next(iter(convolutions(PAPER)))
    assert math.prod(first.output_size) * 9 * 32 * 2 == first.operations(1)
