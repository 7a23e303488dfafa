r"""How fast one core prepares a case, beside nnU-Net's preprocessor.

    python -m benchmarks.preparation --output=DIR [--peer=torch]

Reading, cropping, normalising, resampling and storing of examples/lidc's scan (512 x 512 x 16, as
NIfTI) at several target spacings, on one core; theirs with the same plan and the label, written as
blosc2. Writes preparation.json.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.tables import Line, preparation_table
from benchmarks.harness.timing import in_turns
from covid_jax.command import as_process, require, run_command
from covid_jax.data.labels import read_label
from covid_jax.data.normalization import CT
from covid_jax.data.plan import Plan, fingerprint, make_plan
from covid_jax.data.preprocess import prepare_case, read_scan
from covid_jax.data.store import save_case
from covid_jax.data.volume import write_volume

_FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", None, "Folder of preparation.json.", _FLAGS)
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside it: nnU-Net's.", _FLAGS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Turns that each candidate has.", lower_bound=1, flag_values=_FLAGS
)
_SECONDS = flags.DEFINE_float(
    "seconds", 2.0, "Length of a turn, of one case at least.", lower_bound=0, flag_values=_FLAGS
)

ROOT = Path(__file__).resolve().parent.parent
SPACINGS = {
    "slices resampled in their plane": (2.5, 0.8, 0.8),
    "all axes resampled": (1.5, 1.5, 1.5),
    "not resampled": (2.5, 0.703125, 0.703125),
}


def ours(image: Path, label: Path, plan: Plan, folder: Path) -> None:
    """Prepares the case from its files."""
    scan = read_scan(image)
    mask = read_label(label, scan, 2)
    save_case(folder, "case", prepare_case(scan, mask, plan), mask, {"plan": plan.hash})


def candidates(folder: Path) -> dict[tuple[str, str], Callable[[], Any]]:
    """What is timed, by what is done and who does it."""
    scan = read_scan(ROOT / "examples" / "lidc" / "LIDC-IDRI-0001")
    mask = read_label(ROOT / "tests" / "files" / "LIDC-IDRI-0001_nodule.nii.gz", scan, 2)
    image, label = folder / "case_0000.nii.gz", folder / "case.nii.gz"
    write_volume(image, dataclasses.replace(scan, file_affine=mask.file_affine))
    write_volume(label, mask)
    plan = make_plan(["case"], [fingerprint([scan], mask, 100_000)], [CT])
    found: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, spacing in SPACINGS.items():
        wanted = dataclasses.replace(plan, spacing_mm=spacing)
        found[name, "covid_jax"] = functools.partial(ours, image, label, wanted, folder / "ours")
        if _PEER.value:
            from benchmarks.peers.torch_preprocessor import preprocess

            found[name, "nnU-Net"] = functools.partial(
                preprocess, image, label, wanted, folder / "theirs"
            )
    return found


def work() -> None:
    """Measures what the flags say."""
    require(_OUTPUT)
    path = Path(_OUTPUT.value) / "preparation.json"
    with environment.one_core(), tempfile.TemporaryDirectory() as folder:
        runs = candidates(Path(folder))
        *_, timings = in_turns(list(runs.values()), _ROUNDS.value, _SECONDS.value)
    lines: list[Line] = [
        {"work": work, "framework": who, "seconds": timing.median, **timing.described()}
        for (work, who), timing in zip(runs, timings, strict=True)
    ]
    environment.save(path, lines)
    print(preparation_table(lines))
    print(f"{path}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
