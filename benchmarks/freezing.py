r"""What freezing saves: every prefix of the encoder, then the decoder from its deepest stage up.

    python -m benchmarks.freezing --config=configs/paper.py --config.data.patch_size=16,64,96 \
        --output=DIR [--peer=torch]

Of each frozen part the training step of the network of config.strategy, in turns with full
training, with optax's recipe (benchmarks/steps.py: the whole tree is differentiated, updates of
frozen leaves are set to zero; clipped inside the partition, and in front of it) and with PyTorch's
requires_grad=False: seconds, operations by XLA's count, peak bytes. Writes freezing.json after
every part, and prints the table.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import environment
from benchmarks.steps import Steps, optax_recipe, ours, patterns_of, theirs
from benchmarks.timing import in_turns
from covid_jax.config import (
    Config,
    UNetConfig,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.errors import UserError, run_command
from covid_jax.training.explain import step_flops

_CONFIG = define_config_flag()
flags.declare_key_flag("config")
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside ours.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of freezing.json.")
_ROUNDS = flags.DEFINE_integer("rounds", 4, "Turns that each has.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Length of a turn, of one step at least.")


def frozen_parts(model: UNetConfig) -> dict[str, tuple[str, ...]]:
    """What is frozen, more and more: name -> patterns."""
    deepest = len(model.features_per_stage) - 1
    parts: dict[str, tuple[str, ...]] = {"nothing": ()}
    for stage in range(deepest):
        name = "encoder 0" if stage == 0 else f"encoder 0-{stage}"
        parts[name] = tuple(f"encoder/stage_{k}" for k in range(stage + 1))
    parts["encoder"] = ("encoder",)
    for stage in reversed(range(deepest)):
        above = tuple(f"decoder/stage_{k}" for k in range(stage, deepest))
        name = f"encoder, decoder {deepest - 1}" + (f"-{stage}" if stage < deepest - 1 else "")
        parts["all but heads" if stage == 0 else name] = ("encoder", *above)
    return parts


def measure(config: Config, full: Sequence[Steps], layouts: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each candidate of one frozen part, timed in turns with `full` training."""
    steps = [ours(config), *(optax_recipe(config, clip_in_front=front) for front in (False, True))]
    if layouts:
        steps += theirs(config, layouts=layouts)
    runs = [*full, *steps]
    *_, timings = in_turns([one.train for one in runs], _ROUNDS.value, _SECONDS.value)
    flops = step_flops(config, patterns_of(config))
    base = {one.framework: timing for one, timing in zip(full, timings, strict=False)}
    return [
        {
            "framework": one.framework,
            "variant": one.variant,
            "frozen": list(patterns_of(config)),
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


def table(lines: Sequence[dict[str, Any]]) -> str:
    """One row a frozen part: seconds (of full training) and MB of each candidate."""
    candidates = ("ours", "recipe, inside", "recipe, in front", "torch")
    rows = [f"{'frozen':<24}{'TFLOP':>8}" + "".join(f"{name:>24}" for name in candidates)]
    for name in dict.fromkeys(line["part"] for line in lines):
        here = [line for line in lines if line["part"] == name]
        row = f"{name:<24}{here[0]['tflop_per_step']:>8.3g}"
        for line in here:
            peak = f"{line['peak_bytes'] / 1e6:.0f} MB" if line["peak_bytes"] else ""
            cell = f"{line['seconds_per_step']:.3g} s ({line['share_of_full']:.2f}) {peak}"
            row += f"{cell:>24}"
        noisy = any(line["noisy"] for line in here)
        rows.append(row + ("  noisy: turns spread over 10 %" if noisy else ""))
    return "\n".join([*rows, "in brackets: of full training, in the same turns"])


def main() -> None:
    """Measures what the flags say."""
    if not _OUTPUT.value:
        raise UserError("--output is missing (see --help)")
    config = config_from_flag(_CONFIG)
    if config.strategy == "multi_encoder":
        raise UserError("freezing is measured on the network of one encoder: --config=FILE:scratch")
    path = Path(_OUTPUT.value) / "freezing.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    full = [ours(config)]
    layouts: tuple[str, ...] = ()
    if _PEER.value:
        # Of PyTorch's layouts the one that is faster here.
        both = list(theirs(config))
        *_, timings = in_turns([one.train for one in both], 2, _SECONDS.value)
        fastest = min(zip(both, timings, strict=True), key=lambda pair: pair[1].median)[0]
        full, layouts = [*full, fastest], (fastest.variant.partition(",")[0],)
    lines: list[dict[str, Any]] = []
    for part, patterns in frozen_parts(config.model).items():
        one = dataclasses.replace(config, frozen=(*config.frozen, *patterns))
        lines += [{"part": part, **line} for line in measure(one, full, layouts)]
        path.write_text(json.dumps({**environment.describe(), "results": lines}, indent=1) + "\n")
    print(table(lines))
    print(f"{path}")


if __name__ == "__main__":
    run_command(main, __doc__, check_config_arguments)
