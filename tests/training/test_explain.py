"""What --explain says of a run, and that XLA counts the work that freezing saves."""

import dataclasses

import pytest

from covid_jax.config import Config, InferenceConfig
from covid_jax.errors import UserError
from covid_jax.training.cost import lowered_step, step_flops
from covid_jax.training.explain import explain
from covid_jax.transfer.strategies import STRATEGIES
from tests.conftest import ROOT, tiny

PAPER = Config(data=dataclasses.replace(Config().data, patch_size=(56, 160, 192)))


@pytest.fixture(scope="module")
def full():
    return step_flops(PAPER, ())


@pytest.mark.parametrize(
    ("strategy", "ratio"), [("frozen_encoder", 0.715), ("multi_encoder", 1.25)]
)
def test_the_step_holds_no_work_for_what_is_frozen(full, strategy, ratio):
    """By arithmetic (encoder forward only; decoder without gradients into frozen features)."""
    config = dataclasses.replace(PAPER, strategy=strategy)
    flops = step_flops(config, STRATEGIES[strategy].frozen)
    assert flops / full == pytest.approx(ratio, rel=0.03)


def test_a_longer_frozen_prefix_of_the_encoder_costs_less(full):
    costs = [full]
    for last in (0, 2, 5):
        costs.append(step_flops(PAPER, [f"encoder/stage_[0-{last}]"]))
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == len(costs)


def test_a_frozen_kernel_has_no_gradient_in_the_program():
    """Freezing all but the heads leaves no convolution that looks back."""
    text = lowered_step(PAPER, ["encoder", "decoder"]).as_text()
    forward = text.count("stablehlo.convolution")
    # Two a stage, in six stages down and five up, of which the first of those meets two inputs.
    assert forward == 27


def test_all_sections_are_there_for_every_strategy():
    for name in STRATEGIES:
        text = explain(tiny(name))
        for section in ("network", "initial values", "frozen", "schedule", "training step"):
            assert f"\n  {section}" in text


@pytest.mark.parametrize(("axes", "told"), [((0, 2), "D and W"), ((), "no axis")])
def test_it_says_along_what_patches_are_mirrored(axes, told):
    inference = InferenceConfig(mirror=False, mirror_axes=axes)
    assert f"mirrored along {told}\n" in explain(tiny(inference=inference))


def test_it_says_what_becomes_of_a_first_convolution_of_other_channels():
    text = explain(tiny("body-msd", first_conv="mean"))
    assert "but for the first convolution, of other channels there: mean" in text


def test_a_first_convolution_that_is_new_and_stays_so_is_a_warning():
    first = "encoder/stage_0/block_0/conv"
    told = f"warning: {first} is new and stays as it was drawn; --config.frozen='!{first}' trains"
    assert told in explain(tiny("frozen_encoder-msd", first_conv="new"))
    for trained in (
        tiny("frozen_encoder-msd", first_conv="new", frozen=(f"!{first}",)),
        tiny("frozen_encoder-msd", first_conv="mean"),
        tiny("body-msd", first_conv="new"),
    ):
        assert "warning" not in explain(trained)


def test_it_says_what_is_copied_new_and_frozen():
    lines = [line.split() for line in explain(tiny("multi_encoder-msd")).splitlines()]
    text = "\n".join(" ".join(line) for line in lines)
    assert "multi_encoder from msd: phantom" in text
    assert "self_encoder: copied from encoder of config.pretrained, 12 leaves" in text
    assert "adapted_encoder: copied from encoder of config.pretrained, 12 leaves" in text
    assert "decoder: new" in text
    assert "heads: new" in text
    assert "frozen 12 of" in text


def test_it_tells_a_residual_encoder():
    model = dataclasses.replace(tiny().model, n_conv_per_stage=(), n_blocks_per_stage=(1, 2, 1))
    text = explain(tiny("frozen_encoder-msd", model=model))
    assert "3 stages of 4, 8, 16 features, residual encoder of 1, 2, 1 blocks, 2 classes" in text
    # The stem, and of each stage the first block: 4 leaves a convolution, 3 in a projection.
    assert "frozen 42 of" in " ".join(text.split())


def test_it_says_how_the_joint_schedule_goes_on():
    text = explain(tiny("continual-msd", pretraining_epochs=30, epochs=10))
    assert "epochs 30 to 39 of a poly schedule over 40 (30 of pre-training, 10 of this" in text
    assert f"learning rate {0.01 * 0.25**0.9:.3g} at the first" in text


def test_it_says_what_is_unfrozen_when():
    config = tiny("frozen_encoder", frozen_schedule=((1, "!encoder/stage_2"),))
    text = explain(config)
    assert "from epoch 0: 12 of" in text
    assert "from epoch 1: 8 of" in text
    assert text.count("TFLOP") == 2


def test_a_pattern_that_matches_nothing_is_refused_before_anything_is_trained():
    for config in (
        tiny(frozen=("encoder/stage_9",)),
        tiny(frozen_schedule=((1, "encoder/stage_9"),)),
    ):
        with pytest.raises(UserError, match=r"stage_9' matches no parameter; near: encoder/stage_"):
            explain(config)


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="nothing is to train"):
        explain(tiny(frozen=("**",)))


def test_the_docs_show_what_it_prints(command):
    arguments = ("--config=paper:frozen_encoder-msd", "--config.dtype=float32", "--explain")
    _, _, said = command("train", *arguments).stdout.partition("\n")  # without the device
    assert "training step" in said
    assert said.strip() in (ROOT / "docs" / "transfer.md").read_text()
