"""The counted operations are those of the paper's network and follow what is frozen."""

import dataclasses
import math

import pytest

from benchmarks.harness.arithmetic import convolutions, counted_flops
from benchmarks.harness.golden import RESIDUAL
from covid_jax.config import Config, DataConfig
from covid_jax.training.cost import step_flops
from covid_jax.transfer.strategies import STRATEGIES

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
def test_every_convolution_is_counted_at_its_own_size(strategy):
    data = DataConfig(patch_size=(9, 24, 20))
    config = dataclasses.replace(PAPER, strategy=strategy, model=RESIDUAL, data=data)
    sizes = {conv.path: (conv.input_size, conv.output_size) for conv in convolutions(config)}
    encoder = "encoder" if strategy == "scratch" else "self_encoder"
    full, second = (9, 24, 20), (9, 12, 10)
    assert sizes[f"{encoder}/stem/conv"] == (full, full)
    assert sizes[f"{encoder}/stage_1/block_0/conv1/conv"] == (full, second)
    assert sizes[f"{encoder}/stage_1/block_0/conv2/conv"] == (second, second)
    assert sizes[f"{encoder}/stage_1/block_0/skip/conv"] == (second, second)  # of what was pooled
    assert sizes["decoder/stage_0/up"] == (second, full)
    assert sizes["heads/stage_1"] == (second, second)


def test_xla_counts_the_same_but_for_the_taps_on_the_border():
    """Of four stages of the paper's network, and of the residual one, whatever is frozen."""
    plain = dataclasses.replace(
        PAPER.model,
        features_per_stage=PAPER.model.features_per_stage[:4],
        kernel_sizes=PAPER.model.kernel_sizes[:4],
        strides=PAPER.model.strides[:4],
        n_conv_per_stage=(2,) * 4,
        n_conv_per_stage_decoder=(2,) * 3,
    )
    residual = dataclasses.replace(
        plain,
        n_conv_per_stage=(),
        n_blocks_per_stage=(1, 2, 2, 2),
        n_conv_per_stage_decoder=(1,) * 3,
    )
    data = DataConfig(patch_size=(48, 64, 64))
    every = ((), ("encoder",), ("encoder/stage_[0-1]",), ("decoder",))
    for model, some in ((plain, every), (residual, every[:1])):
        config = dataclasses.replace(PAPER, model=model, data=data)
        for patterns in some:
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
