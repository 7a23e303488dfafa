r"""What a GPU is asked for when one is at hand, by value, within a budget of seconds.

    bash launch/gpu_benchmark.sh --output=DIR [--budget=480] [--only=REGEX] [--dry_run]

First whether the training step is right in float32 and bfloat16 (losses of PyTorch's nnU-Net,
stored with the tests), then its time under the strategies, beside PyTorch's nnU-Net where it
is installed, then the operations that cost most, then freezing.
Each figure is written as soon as it is there; what no time is left for is named. With --dry_run
all of it runs on small patches and a thin network, to see that it works: on a CPU too.
"""

import dataclasses
import datetime
import importlib.util
import json
import re
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import environment, tables
from benchmarks.measure import candidates_of, epoch_times, freezing, paper_seconds
from benchmarks.steps import ours
from benchmarks.tables import Line
from benchmarks.timing import in_turns
from benchmarks.trace import operations
from covid_jax.config import Config, DataConfig, UNetConfig
from covid_jax.errors import UserError, run_command
from covid_jax.model.nnunet_weights import to_params
from covid_jax.training.parallel import make_mesh
from covid_jax.training.program import make_program
from covid_jax.training.state import initial_state
from tests.networks import CASES, FILES, random_batch, stored_weights

_OUTPUT = flags.DEFINE_string("output", None, "Folder of the result files.")
_BUDGET = flags.DEFINE_float("budget", 480.0, "Seconds after which nothing new is begun.")
_ONLY = flags.DEFINE_string("only", "", "Regular expression of the work to do, by its name.")
_ROUNDS = flags.DEFINE_integer("rounds", 6, "Turns that each candidate has.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Length of a turn, of one step at least.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Small patches and a thin network.")

GOLDEN = FILES / "golden_steps.json"
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of the losses of the stored steps, relative: the GPU's float32 products are rounded to TF32."""


def losses(dtype: str) -> list[float]:
    """The losses of the training steps of which GOLDEN holds PyTorch's."""
    model, patch = CASES["isotropic"]
    config = Config(model=model, data=DataConfig(patch_size=patch), dtype=dtype)
    config.data.augment = False
    config, platform = environment.here(config)
    mesh = make_mesh(config.mesh, config.data.batch_size, config.data.patch_size[0])
    program = make_program(config, mesh, platform)
    params = to_params(stored_weights("isotropic"), model)
    state, nothing = initial_state(params, program.transform), jax.tree.map(lambda _: None, params)
    batch = {name: jnp.asarray(array) for name, array in random_batch("isotropic").items()}
    found = []
    for _ in json.loads(GOLDEN.read_text())["losses"]:
        rate = jnp.float32(config.optimizer.learning_rate)
        state, metrics = program.train_step(state, nothing, batch, rate, jax.random.key(0))
        found.append(float(metrics["loss"]))
    return found


def check(folder: Path) -> Iterator[str]:
    """The losses beside the stored ones; an error where they are further apart than TOLERANCE."""
    stored = json.loads(GOLDEN.read_text())["losses"]
    lines: list[Line] = []
    for dtype, tolerance in TOLERANCE.items():
        found = losses(dtype)
        worst = max(abs(a / b - 1) for a, b in zip(found, stored, strict=True))
        lines.append({"dtype": dtype, "losses": found, "stored": stored, "worst": worst})
        environment.save(folder / f"correctness_{_stamp()}.json", lines)
        yield f"losses in {dtype}: {worst:.1e} from PyTorch's (at most {tolerance:.0e})"
        if not worst < tolerance:
            raise UserError(f"the training step is wrong in {dtype}: {found}, stored {stored}")


def epochs(
    folder: Path, name: str, configs: list[Config], peers: int, compiled: bool = False
) -> Iterator[str]:
    """epoch_time of `configs`; the first `peers` of them beside PyTorch."""
    needed = ("dynamic_network_architectures", "nnunetv2")
    there = all(importlib.util.find_spec(name) for name in needed)
    if peers and not there:
        yield f"PyTorch's nnU-Net is not timed: {' and '.join(needed)} are not both installed"
    candidates = [
        candidate
        for index, config in enumerate(configs)
        for candidate in candidates_of(
            *environment.here(config), peer=there and index < peers, compiled=compiled, real=None
        )
    ]
    lines: list[Line] = []
    for lines in epoch_times(candidates, rounds=_ROUNDS.value, seconds=_SECONDS.value):
        path = folder / f"epoch_time_{name}_{_stamp()}.json"
        environment.save(path, lines, paper=paper_seconds())
    yield tables.epoch_time_table(lines, paper_seconds())


def layouts(folder: Path, config: Config) -> Iterator[str]:
    """The step beside the same one with the convolutions in the layout that XLA would choose."""
    config, platform = environment.here(config)
    undone = dataclasses.replace(platform, compiler_options={})
    steps = [ours(config, platform), ours(config, undone, variant="XLA's layout")]
    *_, timings = in_turns([one.train for one in steps], _ROUNDS.value, _SECONDS.value)
    lines = [
        {"variant": step.variant, "seconds_per_step": timing.median, **timing.described()}
        for step, timing in zip(steps, timings, strict=True)
    ]
    environment.save(folder / f"layouts_{config.dtype}_{_stamp()}.json", lines)
    for line in lines:
        yield f"{line['variant']}: {line['seconds_per_step']:.4g} s a step"


def kernels(folder: Path, config: Config) -> Iterator[str]:
    """The operations of a training step that cost most."""
    steps = ours(*environment.here(config))
    lines = operations(steps.train, steps.program)
    environment.save(folder / f"kernels_{config.dtype}_{_stamp()}.json", lines)
    (folder / f"program_{config.dtype}_{_stamp()}.txt").write_text(steps.program)
    yield tables.kernels_table(lines)


def frozen(folder: Path, config: Config, deadline: float) -> Iterator[str]:
    """Freezing, of ours alone; as many of its parts as there is time for."""
    lines: list[Line] = []
    for lines in freezing(
        *environment.here(config), peer=False, rounds=_ROUNDS.value, seconds=_SECONDS.value
    ):
        environment.save(folder / f"freezing_{config.dtype}_{_stamp()}.json", lines)
        if time.monotonic() > deadline:
            yield "the budget is spent: parts are left out"
            break
    yield tables.freezing_table(lines)


def work(folder: Path, dry_run: bool, deadline: float) -> dict[str, Callable[[], Iterator[str]]]:
    """Everything to measure, in the order of its value."""
    base = Config(dtype="bfloat16")
    if dry_run:
        thin = UNetConfig(
            features_per_stage=(4, 8, 8),
            kernel_sizes=base.model.kernel_sizes[:3],
            strides=base.model.strides[:3],
            n_conv_per_stage=(1, 1, 1),
            n_conv_per_stage_decoder=(1, 1),
        )
        base = dataclasses.replace(base, model=thin, data=DataConfig(patch_size=(8, 32, 32)))
    half = [
        dataclasses.replace(base, strategy=strategy)
        for strategy in ("scratch", "frozen_encoder", "multi_encoder", "body", "continual")
    ]
    full = [dataclasses.replace(config, dtype="float32") for config in half]
    depth, height, width = base.data.patch_size
    paper_patch = DataConfig(patch_size=(depth - 6, height, width))  # 50: the paper's own
    paper = [dataclasses.replace(config, data=paper_patch) for config in half[:3]]
    return {
        "correctness": lambda: check(folder),
        "strategies in bfloat16": lambda: epochs(folder, "bfloat16", half[:3], peers=1),
        "layout of the convolutions": lambda: layouts(folder, half[0]),
        "operations of the step": lambda: kernels(folder, half[0]),
        "scratch in float32": lambda: epochs(folder, "float32", full[:1], peers=1),
        "peers of the other strategies": lambda: epochs(folder, "bfloat16_all", half, peers=3),
        "the paper's patch": lambda: epochs(folder, "paper_patch", paper, peers=0),
        "scratch, PyTorch compiled": lambda: epochs(folder, "compiled", half[:1], 1, compiled=True),
        "freezing": lambda: frozen(folder, half[0], deadline),
    }


def _stamp() -> str:
    """<device>_<date>, for file names."""
    kind = re.sub(r"\W+", "-", jax.devices()[0].device_kind.lower()).strip("-")
    return f"{kind}_{datetime.date.today().isoformat()}"


def main() -> None:
    """Measures what the budget allows."""
    if not _OUTPUT.value:
        raise UserError("--output is missing (see --help)")
    begin, folder = time.monotonic(), Path(_OUTPUT.value)
    failed = []
    for name, task in work(folder, _DRY_RUN.value, begin + _BUDGET.value).items():
        if not re.search(_ONLY.value, name):
            continue
        spent = time.monotonic() - begin
        if spent > _BUDGET.value:
            print(f"left out, {spent:.0f} of {_BUDGET.value:.0f} s are spent: {name}", flush=True)
            continue
        print(f"--- {name}, after {spent:.0f} s", flush=True)
        try:
            for text in task():
                print(text, flush=True)
        except Exception:  # One figure that fails must not cost the others; the exit code tells.
            traceback.print_exc(limit=-2)
            failed.append(name)
    if failed:
        raise UserError(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_command(main, __doc__)
