"""What epoch_time, freezing and inference measure; without flags: gpu.py measures the same."""

import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import environment
from benchmarks.harness.arithmetic import counted_flops
from benchmarks.harness.roofline import bandwidth, matrix_rate
from benchmarks.harness.steps import Steps, optax_recipe, ours, real_batches, theirs
from benchmarks.harness.tables import Line
from benchmarks.harness.timing import Timing, in_turns
from covid_jax.config import Config, UNetConfig
from covid_jax.model.layers import layers
from covid_jax.reporting.paper import paper_table
from covid_jax.training.cost import step_flops
from covid_jax.training.platform import Platform
from covid_jax.transfer.strategies import frozen_patterns


def paper_seconds() -> dict[str, float]:
    """The paper's seconds an epoch of each strategy, on one V100 (Table III)."""
    return {row.strategy: statistics.mean(row.epoch_seconds) for row in paper_table(3)}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is timed, for which run, and the operations of its training step."""

    config: Config
    platform: Platform
    steps: Steps
    flops: float  # XLA's count
    counted: float  # every tap of every convolution


def candidates_of(
    config: Config, platform: Platform, *, peer: bool, compiled: bool, real: Path | None
) -> list[Candidate]:
    """Ours for one run, and what is timed beside it; `real` is a folder for the run's data."""
    steps = [ours(config, platform)]
    if peer:
        steps += theirs(config, platform, backends=(None, "inductor") if compiled else (None,))
    if real:
        batches = real_batches(config, real)
        steps.append(ours(config, platform, augmented=True))
        steps.append(ours(config, platform, augmented=True, batches=batches))
    return with_work(config, platform, steps)


def with_work(config: Config, platform: Platform, steps: Iterable[Steps]) -> list[Candidate]:
    """What is timed for one run, with the operations of its training step."""
    patterns = frozen_patterns(config)[0]
    work = step_flops(config, patterns), counted_flops(config, patterns)
    return [Candidate(config, platform, one, *work) for one in steps]


def result(candidate: Candidate, train: Timing, validate: Timing | None = None) -> Line:
    """What epoch_time.json says of one candidate."""
    config, steps, flops = candidate.config, candidate.steps, candidate.flops
    on = candidate.platform.name
    rate = matrix_rate(config.dtype, on)
    line = {
        "framework": steps.framework,
        "strategy": steps.strategy,
        "network": environment.network(config),
        "patch_size": list(config.data.patch_size),
        "batch_size": config.data.batch_size,
        "dtype": config.dtype,
        "mesh": dataclasses.asdict(config.mesh),
        "variant": steps.variant,
        "data": steps.data,
        "seconds_per_step": train.median,
        **train.described(),
        "tflop_per_step": flops / 1e12,
        "tflop_per_step_counted": candidate.counted / 1e12,
        "tflop_per_second": flops / 1e12 / train.median,
        "matrix_tflop_per_second": rate / 1e12,
        "matrix_share": flops / train.median / rate,
        "bytes_per_step": steps.bytes_accessed,
        "bandwidth_share": steps.bytes_accessed / train.median / bandwidth(on)
        if steps.bytes_accessed
        else None,
        "peak_bytes": steps.peak_bytes,
        "compile_seconds": steps.compile_seconds,
    }
    if validate:
        line |= {
            "seconds_per_validation_step": validate.median,
            "validation_turns": list(validate.turns),
            "seconds_per_epoch": config.steps_per_epoch * train.median
            + config.validation_steps * validate.median,
            "epoch": "from the medians",
        }
    return line


def epoch_times(
    candidates: Sequence[Candidate], rounds: int, seconds: float
) -> Iterator[list[Line]]:
    """After every round the lines of epoch_time.json: of training steps, then of both steps."""
    on = candidates[0].platform.name
    train: list[Timing] = []
    for train in in_turns([one.steps.train for one in candidates], rounds, seconds, on):
        yield [result(*timed) for timed in zip(candidates, train, strict=True)]
    for validate in in_turns([one.steps.validate for one in candidates], rounds, seconds, on):
        yield [result(*timed) for timed in zip(candidates, train, validate, strict=True)]


def whole_epoch(candidate: Candidate) -> float:
    """The seconds of an epoch of the run, training and validation, measured whole."""
    begin = time.perf_counter()
    for _ in range(candidate.config.steps_per_epoch):
        candidate.steps.train()
    for _ in range(candidate.config.validation_steps):
        candidate.steps.validate()
    return time.perf_counter() - begin


def frozen_parts(model: UNetConfig) -> dict[str, tuple[str, ...]]:
    """What is frozen, more and more: name -> patterns."""
    deepest = len(model.features_per_stage) - 1
    parts: dict[str, tuple[str, ...]] = {"nothing": ()}
    encoder = [layer for layer in layers(model) if layer.top == "encoder"]
    for stage in range(deepest):
        name = "encoder 0" if stage == 0 else f"encoder 0-{stage}"
        above = ("/".join(one.path.split("/")[:2]) for one in encoder if one.stage <= stage)
        parts[name] = tuple(dict.fromkeys(above))  # a stem too
    parts["encoder"] = ("encoder",)
    for stage in reversed(range(deepest)):
        below = tuple(f"decoder/stage_{k}" for k in range(stage, deepest))
        name = f"encoder, decoder {deepest - 1}" + (f"-{stage}" if stage < deepest - 1 else "")
        parts["all but heads" if stage == 0 else name] = ("encoder", *below)
    return parts


def frozen_part(
    config: Config,
    platform: Platform,
    full: Sequence[Steps],
    layouts: Sequence[str],
    recipes: bool,
    rounds: int,
    seconds: float,
) -> list[Line]:
    """A line for each candidate of one frozen part, timed in turns with `full` training."""
    steps = [ours(config, platform)]
    if recipes:
        steps += (optax_recipe(config, platform, clip_in_front=front) for front in (False, True))
    if layouts:
        steps += theirs(config, platform, layouts=layouts)
    runs = [*full, *steps]
    *_, timings = in_turns([one.train for one in runs], rounds, seconds, platform.name)
    flops = step_flops(config, frozen_patterns(config)[0])
    base = {one.framework: timing for one, timing in zip(full, timings, strict=False)}
    return [
        {
            "framework": one.framework,
            "variant": one.variant,
            "frozen": list(frozen_patterns(config)[0]),
            "patch_size": list(config.data.patch_size),
            "batch_size": config.data.batch_size,
            "dtype": config.dtype,
            "seconds_per_step": timing.median,
            "share_of_full": timing.median / base[one.framework].median,
            "full_seconds_per_step": base[one.framework].median,
            "tflop_per_step": flops / 1e12,
            "peak_bytes": one.peak_bytes,
            **timing.described(),
        }
        for one, timing in zip(steps, timings[len(full) :], strict=True)
    ]


def freezing(
    config: Config,
    platform: Platform,
    peer: bool,
    rounds: int,
    seconds: float,
    recipes: bool = True,
) -> Iterator[list[Line]]:
    """After every frozen part the lines of freezing.json so far; `recipes`: optax's as well."""
    full = [ours(config, platform)]
    layouts: tuple[str, ...] = ()
    if peer:
        # Of PyTorch's layouts the one that is faster here.
        both = list(theirs(config, platform))
        *_, timings = in_turns([one.train for one in both], 2, seconds)
        fastest = min(zip(both, timings, strict=True), key=lambda pair: pair[1].median)[0]
        full, layouts = [*full, fastest], (fastest.variant.partition(",")[0],)
    lines: list[Line] = []
    for part, patterns in frozen_parts(config.model).items():
        one = dataclasses.replace(config, frozen=(*config.frozen, *patterns))
        timed = frozen_part(one, platform, full, layouts, recipes, rounds, seconds)
        lines += [{"part": part, **line} for line in timed]
        yield lines


Predict = Callable[[np.ndarray], np.ndarray]
"""normalised volume (D, H, W, C) -> logits (K, D, H, W)"""


def our_predictor(config: Config, platform: Platform, params: Any, mirror: bool) -> Predict:
    """Our sliding window, which averages logits as nnU-Net's does."""
    # Here, not above: machines that only time the step have none of the image libraries.
    from covid_jax.inference.scan import make_scorer

    inference = dataclasses.replace(config.inference, average="logits")
    config = dataclasses.replace(config, inference=inference)
    slabs_of = make_scorer(config, params, mirror, platform)
    return lambda volume: np.moveaxis(np.concatenate(list(slabs_of(volume))), -1, 0)


def their_predictor(config: Config, platform: Platform, params: Any, mirror: bool) -> Predict:
    """nnU-Net's predictor of the same network, by way of a model folder."""
    from benchmarks.peers.torch_predictor import predict_logits, predictor
    from covid_jax.data.normalization import ct
    from covid_jax.data.plan import Plan
    from covid_jax.label_space import labels_json
    from covid_jax.nnunet.model_folder import Model, plain_dataset, write_model

    channels = (ct(-1000.0, 1000.0, 0.0, 1.0),) * config.model.in_channels
    plan = Plan((1.0, 1.0, 1.0), channels, (64, 64, 64), (), file_axes=True)
    dataset = {
        **plain_dataset(config.model.num_classes),
        **labels_json(config.label_space, config.model.num_classes),
        "channel_names": {str(index): "CT" for index in range(len(channels))},
    }
    model = Model(config, plan, params, dataset)
    device = "cuda" if platform.name == "gpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), model)
        made = predictor(Path(folder), mirror, config.inference.step_size, device)
        return functools.partial(predict_logits, made)


def predictions(
    config: Config,
    platform: Platform,
    volume: np.ndarray,
    params: Any,
    mirror: bool,
    peer: bool,
    rounds: int,
) -> list[Line]:
    """A line of inference.json for each framework, without its scan.

    `volume` is (D, H, W, C), normalised. Of regions the likeliest channel is compared, not masks.
    """
    predictors = {"jax": our_predictor(config, platform, params, mirror)}
    if peer:
        predictors["torch"] = their_predictor(config, platform, params, mirror)
    runs = [functools.partial(predict, volume) for predict in predictors.values()]
    *_, timings = in_turns(runs, rounds, 0, platform.name)
    masks = [run().argmax(0) for run in runs]
    return [
        {
            "framework": framework,
            "mirror": mirror,
            "shape": volume.shape[:3],
            "network": environment.network(config),
            "patch_size": list(config.data.patch_size),
            "batch_size": config.inference.batch_size if framework == "jax" else 1,
            "step_size": config.inference.step_size,
            "seconds": timing.median,
            "voxels_unlike_ours": float((mask != masks[0]).mean()),
            **timing.described(),
        }
        for framework, mask, timing in zip(predictors, masks, timings, strict=True)
    ]
