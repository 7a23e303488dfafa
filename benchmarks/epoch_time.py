r"""Seconds a training step, a validation step and an epoch of each strategy.

    python -m benchmarks.epoch_time --strategies=all --config=configs/paper.py --output=DIR \
        [--peer=torch] [--config.data.patch_size=16,64,96] [--full]

With --peer=torch, PyTorch's nnU-Net (network, loss, optimiser, the same freezing) is timed in the
same process, in the order A-B-B-A: contiguous and channels-last. Batches are dummy data that lies
on the device already: this is the step alone. An epoch is config.steps_per_epoch training steps
and config.validation_steps validation steps, from the medians, or measured whole with --full.
Writes epoch_time.json and prints the table.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import environment
from covid_jax.config import (
    STRATEGY_NAMES,
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.errors import UserError, run_command
from covid_jax.reporting.paper import paper_table
from covid_jax.training.explain import step_flops
from covid_jax.training.state import initial_state, new_params, optimizer
from covid_jax.training.step import make_eval_step, make_train_step
from covid_jax.transfer.freezing import mask, split
from covid_jax.transfer.strategies import STRATEGIES, network_of

_CONFIG = define_config_flag()
flags.declare_key_flag("config")
_STRATEGIES = flags.DEFINE_string("strategies", "all", "all, or some by commas.")
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside ours.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of epoch_time.json.")
_ROUNDS = flags.DEFINE_integer("rounds", 6, "Turns that each has.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Length of a turn, of one step at least.")
_FULL = flags.DEFINE_bool("full", False, "Measure a whole epoch of each as well.")

NOISY = 0.10
"""A candidate whose turns spread by more than this share of their median is marked."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something that trains: both functions do one step and wait for its end."""

    framework: str
    strategy: str
    variant: str
    train: Callable[[], Any]
    validate: Callable[[], Any]
    compile_seconds: float | None
    peak_bytes: int | None  # None where the framework does not tell


def ours(config: Config) -> Candidate:
    """The training step of a strategy, compiled ahead."""
    strategy = STRATEGIES[config.strategy]
    network, transform = network_of(config), optimizer(config.optimizer)
    image, label = dummy_batch(config)
    batch = {
        "image": jnp.asarray(image),
        "label": jnp.asarray(label),
        "labelled": jnp.ones((len(image), config.model.num_classes), bool),
    }
    params = new_params(network, config.seed, image.shape)
    trainable, frozen = split(params, mask(params, strategy.frozen))
    state = initial_state(trainable, transform)
    apply = lambda params, image: network.apply({"params": params}, image)  # noqa: E731
    step = make_train_step(apply, transform, None)
    rate, key = jnp.float32(config.optimizer.learning_rate), jax.random.key(0)
    begin = time.perf_counter()
    compiled = step.lower(state, frozen, batch, rate, key).compile()  # type: ignore[attr-defined]
    compile_seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    evaluate = make_eval_step(apply)

    def train() -> None:
        nonlocal state
        state, metrics = compiled(state, frozen, batch, rate, key)
        jax.block_until_ready(metrics)

    return Candidate(
        framework="jax",
        strategy=config.strategy,
        variant="",
        train=train,
        validate=lambda: jax.block_until_ready(evaluate(state.trainable, frozen, batch)),
        compile_seconds=compile_seconds,
        peak_bytes=memory.temp_size_in_bytes + memory.argument_size_in_bytes,
    )


def theirs(config: Config) -> list[Candidate]:
    """PyTorch's nnU-Net on the CPU, contiguous and channels-last."""
    import torch

    from benchmarks.peers import torch_nnunet as peer

    image, label = dummy_batch(config)
    loss_of = peer.loss(len(config.model.features_per_stage) - 1)
    candidates = []
    for variant, layout in {
        "contiguous": torch.contiguous_format,
        "channels-last": torch.channels_last_3d,
    }.items():
        net = peer.strategy_network(config.strategy, config.model).to(memory_format=layout)
        x = peer.channels_first(image).to(memory_format=layout)
        y = torch.from_numpy(label)
        sgd = peer.optimizer(net, config.optimizer)

        def train(net: Any = net, sgd: Any = sgd, x: Any = x, y: Any = y) -> None:
            peer.train_step(net, sgd, loss_of, x, y, config.optimizer.clip_norm)

        def validate(net: Any = net, x: Any = x, y: Any = y) -> None:
            with torch.no_grad():
                logits = net(x)
                loss_of(logits, y)
                logits[0].argmax(1)

        candidates.append(Candidate("torch", config.strategy, variant, train, validate, None, None))
    return candidates


def dummy_batch(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(image (N, D, H, W, C), label (N, D, H, W)) of noise and blocks of each class."""
    shape = (config.data.batch_size, *config.data.patch_size)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*shape, config.model.in_channels)).astype(np.float32)
    label = np.zeros(shape, np.int64)
    label[:, :, : shape[2] // 2] = rng.integers(1, config.model.num_classes, (shape[0], 1, 1, 1))
    return image, label


def measure(candidates: Sequence[Candidate], part: str) -> list[list[float]]:
    """For each candidate the seconds a step of each of its turns, which go A-B-B-A."""
    runs = [getattr(candidate, part) for candidate in candidates]
    counts = []
    for run in runs:
        run()  # warm
        begin = time.perf_counter()
        run()
        counts.append(max(1, round(_SECONDS.value / (time.perf_counter() - begin))))
    turns: list[list[float]] = [[] for _ in runs]
    for turn in range(_ROUNDS.value):
        order = range(len(runs)) if turn % 2 == 0 else reversed(range(len(runs)))
        for index in order:
            begin = time.perf_counter()
            for _ in range(counts[index]):
                runs[index]()
            turns[index].append((time.perf_counter() - begin) / counts[index])
    return turns


def results(config: Config, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """A line of epoch_time.json for each candidate of one strategy."""
    flops = step_flops(config, STRATEGIES[config.strategy].frozen)
    lines = []
    for candidate, train, validate in zip(
        candidates, measure(candidates, "train"), measure(candidates, "validate"), strict=True
    ):
        step, validation = statistics.median(train), statistics.median(validate)
        spread = (np.quantile(train, 0.75) - np.quantile(train, 0.25)) / step
        line = {
            "framework": candidate.framework,
            "strategy": candidate.strategy,
            "patch_size": list(config.data.patch_size),
            "batch_size": config.data.batch_size,
            "dtype": config.dtype if candidate.framework == "jax" else "float32",
            "variant": candidate.variant,
            "data": "dummy",
            "seconds_per_step": step,
            "seconds_per_validation_step": validation,
            "seconds_per_epoch": config.steps_per_epoch * step
            + config.validation_steps * validation,
            "epoch": "from the medians",
            "turns": train,
            "spread": float(spread),
            "noisy": bool(spread > NOISY),
            "tflop_per_step": flops / 1e12,
            "tflop_per_second": flops / 1e12 / step,
            "peak_bytes": candidate.peak_bytes,
            "compile_seconds": candidate.compile_seconds,
        }
        if _FULL.value:
            begin = time.perf_counter()
            for _ in range(config.steps_per_epoch):
                candidate.train()
            for _ in range(config.validation_steps):
                candidate.validate()
            line |= {"seconds_per_epoch": time.perf_counter() - begin, "epoch": "measured whole"}
        lines.append(line)
    return lines


def table(lines: Sequence[dict[str, Any]], paper: dict[str, float]) -> str:
    """One row a strategy: ours, the best of torch, and the paper's V100."""

    def best(framework: str, strategy: str, field: str) -> float:
        found = [
            line[field]
            for line in lines
            if (line["framework"], line["strategy"]) == (framework, strategy)
        ]
        return min(found, default=float("nan"))

    strategies = list(dict.fromkeys(line["strategy"] for line in lines))
    head = f"{'strategy':<16}{'s/step':>9}{'torch':>9}{'ratio':>7}{'s/epoch':>10}"
    rows = [head + f"{'to scratch':>12}{'paper s/epoch':>15}{'to scratch':>12}"]
    for strategy in strategies:
        step, peer = (best(f, strategy, "seconds_per_step") for f in ("jax", "torch"))
        epoch = best("jax", strategy, "seconds_per_epoch")
        noisy = any(line["noisy"] for line in lines if line["strategy"] == strategy)
        rows.append(
            f"{strategy:<16}{step:>9.3f}{peer:>9.3f}{step / peer:>7.2f}{epoch:>10.1f}"
            f"{step / best('jax', 'scratch', 'seconds_per_step'):>12.2f}"
            f"{paper[strategy]:>15.0f}{paper[strategy] / paper['scratch']:>12.2f}"
            + ("  noisy: its turns spread over 10 %" if noisy else "")
        )
    return "\n".join(rows)


def main() -> None:
    """Measures what the flags say."""
    if not _OUTPUT.value:
        raise UserError("--output is missing (see --help)")
    config = config_from_flag(_CONFIG)
    wanted = STRATEGY_NAMES if _STRATEGIES.value == "all" else _STRATEGIES.value.split(",")
    if unknown := sorted(set(wanted) - set(STRATEGY_NAMES)):
        raise UserError(f"--strategies={_STRATEGIES.value}: no strategy {', '.join(unknown)}")
    path = Path(_OUTPUT.value) / "epoch_time.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    paper = {row.strategy: statistics.mean(row.epoch_seconds) for row in paper_table(3)}
    lines: list[dict[str, Any]] = []
    for strategy in wanted:
        one = dataclasses.replace(config, strategy=strategy)
        candidates = [ours(one), *(theirs(one) if _PEER.value else [])]
        lines += results(one, candidates)
        # Each figure is written as soon as it is there.
        content = {**environment.describe(), "results": lines, "paper": paper}
        path.write_text(json.dumps(content, indent=1) + "\n")
    print(table(lines, paper))
    print(f"{path}")


if __name__ == "__main__":
    run_command(main, __doc__, check_config_arguments)
