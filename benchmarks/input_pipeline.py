r"""How fast one core makes training batches, beside nnU-Net's loader and transforms.

    python -m benchmarks.input_pipeline --config=configs/paper.py --output=DIR [--peer=torch]

Everything runs on one core. Ours cuts patches on the host and augments them on the device, which
here is that core too, and a GPU where there is one; so both are measured, apart and together.
nnU-Net's loader does both on the host. The cases are a real scan (examples/covid19), repeated until
it has the size of whole chest scans. With --batches=10000 it also tells how the memory of the
process grows while so many are cut. Writes input_pipeline.json.
"""

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.steps import sampler_of
from benchmarks.harness.tables import Line, input_pipeline_table
from benchmarks.harness.timing import in_turns
from covid_jax.command import as_process, require, run_command
from covid_jax.config import Config, check_config_arguments, config_from_flag, define_config_flag
from covid_jax.data.augment import augment
from covid_jax.data.labels import read_label
from covid_jax.data.normalization import CT
from covid_jax.data.plan import fingerprint, make_plan
from covid_jax.data.preprocess import prepare_case, read_scan
from covid_jax.data.sampling import Sampler
from covid_jax.data.store import StoredCase, StoredDataset, load_case, save_case
from covid_jax.device import announce_device
from covid_jax.errors import UserError
from covid_jax.label_space import LabelSpace

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of input_pipeline.json.", _FLAGS)
_PEER = flags.DEFINE_enum(
    "peer", None, ["torch"], "What to time beside it: nnU-Net's loader.", _FLAGS
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 6, "Turns that each candidate has.", lower_bound=1, flag_values=_FLAGS
)
_SECONDS = flags.DEFINE_float(
    "seconds", 4.0, "Length of a turn, of one batch at least.", lower_bound=0, flag_values=_FLAGS
)
_BATCHES = flags.DEFINE_integer(
    "batches", 0, "Batches to cut while memory is watched.", lower_bound=0, flag_values=_FLAGS
)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "covid19"
SCAN_SIZE = (120, 360, 360)
NAMES = ("coronacases_001", "coronacases_002")


def scans(folder: Path) -> dict[str, StoredCase]:
    """Prepared cases of whole scans' size, memory-mapped from `folder`."""
    dataset = StoredDataset("covid19", folder, LabelSpace(("infection",)), (), False)
    for name in NAMES:
        image = read_scan(EXAMPLES / "COVID-19-CT-Seg_20cases" / f"{name}.nii.gz")
        label = read_label(EXAMPLES / "Infection_Mask" / f"{name}.nii.gz", image, 2)
        image, label = (replace(one, voxels=_repeated(one.voxels)) for one in (image, label))
        plan = make_plan([name], [fingerprint([image], label, 10_000)], [CT])
        save_case(folder, name, prepare_case(image, label, plan), label, {"plan": plan.hash})
    return {name: load_case(dataset, name) for name in NAMES}


def _repeated(voxels: np.ndarray) -> np.ndarray:
    missing = [(0, max(0, size - n)) for size, n in zip(SCAN_SIZE, voxels.shape, strict=True)]
    depth, height, width = SCAN_SIZE
    return np.pad(voxels, missing, mode="symmetric")[:depth, :height, :width]


def candidates(
    config: Config, cases: dict[str, StoredCase], folder: Path
) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; each call makes one batch."""
    data, sampler = config.data, sampler_of(config, tuple(cases.values()), "training")
    steps = iter(range(10**9))
    _, platform = environment.here(config)
    augmented = jax.jit(
        functools.partial(augment, patch_size=data.patch_size, at_once=platform.at_once)
    )
    key = jax.random.key(config.seed)

    def cut() -> Any:
        return sampler.batch(next(steps))

    fixed = jax.device_put(vars(cut()))

    def augment_batch(image: Any, label: Any, labelled: Any) -> None:
        del labelled
        keys = jax.random.split(jax.random.fold_in(key, next(steps)), len(image))
        jax.block_until_ready(augmented(keys, image, label))

    def both() -> None:
        augment_batch(**vars(cut()))

    found: dict[str, Callable[[], Any]] = {
        "covid_jax: cut, on the host": cut,
        "covid_jax: augment, on the device": functools.partial(augment_batch, **fixed),
        "covid_jax: both": both,
    }
    if _PEER.value:
        from benchmarks.peers import torch_loader as peer

        peer.save_cases(folder / "nnunet", cases, data.patch_size)
        for name, augmenting in (("cut", False), ("both", True)):
            found[f"nnU-Net: {name}, on the host"] = peer.batches(
                folder / "nnunet",
                data.patch_size,
                data.batch_size,
                data.foreground_fraction,
                augmenting,
            )
    return found


def memory(sampler: Sampler, count: int) -> list[int]:
    """Bytes that the process holds for itself, at ten points of `count` batches made ahead."""
    found = []
    for index, _ in enumerate(sampler.batches(0, count), start=1):
        if index % max(count // 10, 1) == 0:
            found.append(_anonymous_bytes())
    return found


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise UserError("/proc/self/status does not tell the memory of a process; this needs Linux")


def work() -> None:
    """Measures what the flags say."""
    require(_OUTPUT)
    with environment.one_core():  # before JAX starts its threads
        announce_device()
        measure()


def measure() -> None:
    """Measures on the cores that this process has, and saves what was found."""
    config = environment.of_plan(config_from_flag(_FLAGS))
    path = Path(_OUTPUT.value) / "input_pipeline.json"
    with tempfile.TemporaryDirectory() as folder:
        cases = scans(Path(folder) / "covid19")
        runs = candidates(config, cases, Path(folder))
        *_, timings = in_turns(list(runs.values()), _ROUNDS.value, _SECONDS.value)
        lines: list[Line] = [
            {
                "name": name,
                "patch_size": list(config.data.patch_size),
                "batch_size": config.data.batch_size,
                "seconds_per_sample": timing.median / config.data.batch_size,
                **timing.described(),
            }
            for name, timing in zip(runs, timings, strict=True)
        ]
        sampler = sampler_of(config, tuple(cases.values()), "training")
        held = memory(sampler, _BATCHES.value)
    environment.save(path, lines, memory=held)
    print(input_pipeline_table(lines, held))
    print(f"{path}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
