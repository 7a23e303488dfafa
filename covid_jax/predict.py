"""Predicts lesion masks of scans with a trained run, each on the scan's own grid.

    python -m covid_jax.predict --checkpoint=runs/body --input=scans --output_dir=masks

--input is a scan (NIfTI, NRRD, MHA, or a folder with a DICOM series) or a folder of scans; each
becomes masks/SCAN.nii.gz, uint8 (NAME_0000.nii.gz becomes masks/NAME.nii.gz, as in nnU-Net's
folders). A scan of several channels is files NAME_0000, NAME_0001, ... in a folder. Several runs
(--checkpoint=A,B,C: the folds) are averaged, as nnU-Net averages its folds.
With --save_probabilities there are also masks/SCAN_probability_K.nii.gz, one for each class that is
not background, or for each region in the order of the run's config.label_space.

All scans are read before the first is predicted; one that cannot be read stops it there, or is left
out with --skip_bad. A file in the output folder that this command did not write, or that somebody
changed, is not overwritten, but for --overwrite. With --continue, masks that this run made of these
scans before are kept.
"""

import functools
import glob
import itertools
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from covid_jax.command import as_process, require, run_command
from covid_jax.data.intensities import INTENSITIES
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import (
    PreparedCase,
    as_volume,
    check_extent,
    gathered,
    prepare_case,
    read_channels,
)
from covid_jax.data.processes import each
from covid_jax.data.scans import cases_in, refuse_among
from covid_jax.data.volume import files_of
from covid_jax.device import announce_device, cores
from covid_jax.errors import UserError, listed, writing
from covid_jax.files import digest, refuse_inside
from covid_jax.inference.ensemble import Ensemble, open_ensemble
from covid_jax.inference.masks import Origin, origin_of, write_mask
from covid_jax.inference.postprocess import mask_of
from covid_jax.stopping import StoppedError
from covid_jax.training.parallel import keep_compiled_programs

_FLAGS = flags.FlagValues()
_CHECKPOINT = flags.DEFINE_list("checkpoint", [], "Work directory of a run, or of several.", _FLAGS)
_INPUT = flags.DEFINE_string("input", None, "A scan or a folder of scans.", _FLAGS)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the masks.", _FLAGS)
_MIRROR = flags.DEFINE_bool(
    "mirror",
    None,
    "Average over mirrored views, of three axes 8 times the time; what the run says if left out.",
    _FLAGS,
)
_SAVE_PROBABILITIES = flags.DEFINE_bool(
    "save_probabilities", False, "Save probabilities too.", _FLAGS
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Overwrite files that this command did not write.", _FLAGS
)
_CONTINUE = flags.DEFINE_bool(
    "continue", False, "Keep masks that the same run made of the same scans before.", _FLAGS
)
_SKIP_BAD = flags.DEFINE_bool(
    "skip_bad", False, "Go on past scans that cannot be read; they are listed at the end.", _FLAGS
)
_INTENSITIES = flags.DEFINE_enum(
    "intensities",
    "auto",
    INTENSITIES,
    "How the scans' values are read; auto looks at them.",
    _FLAGS,
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", len(cores()), "Scans to check at once.", lower_bound=1, flag_values=_FLAGS
)


def work() -> None:
    """Predicts what the flags say."""
    try:
        predict()
    except StoppedError as stop:
        raise StoppedError(f"{stop}, and keeps with --continue what is done") from None


def predict() -> None:
    """Predicts what the flags say."""
    require(_CHECKPOINT, _INPUT, _OUTPUT_DIR)
    announce_device()
    keep_compiled_programs()
    output_dir, told = Path(_OUTPUT_DIR.value), _INTENSITIES.value
    if not (source := Path(_INPUT.value)).exists():
        raise UserError(f"{source}: no such file or folder")
    workdirs = [Path(folder) for folder in _CHECKPOINT.value]
    together = open_ensemble(workdirs, _MIRROR.value, told)
    channels = together.plan.schemes
    scans, left_out = cases_in(source, len(channels))
    refuse_among(output_dir, itertools.chain(*scans.values()))
    if source.is_dir():
        refuse_inside(output_dir, source, "--output_dir")
    for line in (*left_out, *together.notes):
        print(line)

    # What is to be done, and whether all of it can be, before any of it is.
    heads = len(together.label_space.foreground(together.num_classes)) * _SAVE_PROBABILITIES.value
    targets = {
        name: [output_dir / f"{name}_probability_{k + 1}.nii.gz" for k in range(heads)]
        + [output_dir / f"{name}.nii.gz"]
        for name in scans
    }
    there = _made_before(output_dir, targets)
    origins, bad = _origins(scans, together.digest)
    todo = [
        name
        for name, origin in origins.items()
        if not (_CONTINUE.value and all(there.get(file) == origin for file in targets[name]))
    ]
    _check_targets(output_dir, targets, {name: origins[name] for name in todo}, there)
    check = functools.partial(_unreadable, told=told, plan=together.plan)
    checked = each(check, [scans[name] for name in todo], _NUM_PROCESSES.value, "reading")
    bad |= {name: why for name, why in zip(todo, checked, strict=True) if why}
    if bad and not (_SKIP_BAD.value and len(bad) < len(scans)):
        goes_on = "; --skip_bad goes on without" if len(bad) < len(scans) else ""
        raise UserError("; ".join(bad.values()) + goes_on)
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    for file in _stale(targets, origins, there):
        print(f"{file}: is not of the mask that is now beside it: removed")
        file.unlink()

    left = [name for name in todo if name not in bad]
    for name in tqdm(left, "predicting", unit="scan", disable=None):
        try:
            scan, how = read_channels(scans[name], channels, told)
            notes = [note for channel in scan for note in channel.notes]
            for note in dict.fromkeys([f"values are read {how}", *notes]):
                tqdm.write(f"{name}: {note}")
            case = prepare_case(scan, None, together.plan)
            _predict_scan(case, together, targets[name], origins[name])
        except UserError as error:  # as of values that a normalisation does not take
            bad[name] = f"{name}: {error}"
            if not _SKIP_BAD.value:
                raise UserError(bad[name]) from error
    kept = len(origins) - len(todo)
    already = f", {kept} of them from before" if kept else ""
    print(f"{len(scans) - len(bad)} masks are in {output_dir}{already}")
    if bad:
        raise UserError(f"{len(bad)} scans were left out: {'; '.join(bad.values())}")


def _predict_scan(
    case: PreparedCase, together: Ensemble, targets: Sequence[Path], origin: Origin
) -> None:
    """Writes a scan's mask to the last of its targets, and to those before it probabilities."""
    space, pieces = together.label_space, together.predict(case)
    *others, last = targets
    if others:  # all probabilities at once; a mask alone takes them as they come
        probabilities = gathered(pieces, case.geometry, space)
        pieces = iter([(slice(None), probabilities)])
        heads = space.foreground(together.num_classes)
        for head, file in zip(heads, others, strict=True):
            write_mask(file, as_volume(probabilities[head], case.geometry), origin)
    mask = mask_of(pieces, case.geometry.shape, together.postprocessing, space)
    write_mask(last, as_volume(mask, case.geometry), origin)


def _made_before(
    output_dir: Path, targets: Mapping[str, Sequence[Path]]
) -> dict[Path, Origin | None]:
    """What each file that is there is made from, of those to be written and of probabilities."""
    probabilities = (
        output_dir.glob(f"{glob.escape(name)}_probability_*.nii.gz") for name in targets
    )
    files = sorted({*itertools.chain(*targets.values(), *probabilities)})
    return {file: origin_of(file) for file in files if file.is_file()}


def _check_targets(
    output_dir: Path,
    targets: Mapping[str, Sequence[Path]],
    todo: Mapping[str, Origin],
    there: Mapping[Path, Origin | None],
) -> None:
    """Raises a UserError where a file that is to be written would take another one's place."""
    names = Counter(file.name for files in targets.values() for file in files)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"two scans would give {listed(twice)}; rename one of them")
    if folders := [file.name for files in targets.values() for file in files if file.is_dir()]:
        raise UserError(f"{output_dir}: {listed(folders)} is a folder there; move it")
    held = [
        (file.name, there[file], origin.scan)
        for name, origin in todo.items()
        for file in targets[name]
        if file in there
    ]
    kept = {
        "this command did not write, or that were changed since": [
            name for name, made_from, _ in held if made_from is None
        ],
        "it made of other scans of these names": [
            name for name, made_from, scan in held if made_from and made_from.scan != scan
        ],
    }
    for what, files in kept.items():
        if files and not _OVERWRITE.value:
            raise UserError(
                f"{output_dir}: holds {len(files)} files that {what} ({listed(files)}); give "
                "another --output_dir, or --overwrite"
            )


def _origins(
    scans: Mapping[str, Sequence[Path]], run: str
) -> tuple[dict[str, Origin], dict[str, str]]:
    """What the mask of each scan is made from, by its name; and why one cannot be read."""
    origins, bad = {}, {}
    for name, paths in scans.items():
        try:
            origins[name] = Origin(run, digest([file for path in paths for file in files_of(path)]))
        except UserError as error:
            bad[name] = str(error)
    return origins, bad


def _stale(
    targets: Mapping[str, Sequence[Path]],
    origins: Mapping[str, Origin],
    there: Mapping[Path, Origin | None],
) -> list[Path]:
    """Probabilities that predict wrote, of other runs than the masks that will be beside them."""
    return [
        file
        for name, origin in origins.items()
        for file, made_from in there.items()
        if file.name.startswith(f"{name}_probability_") and file not in targets[name]
        if made_from not in (None, origin)
    ]


def _unreadable(paths: Sequence[Path], told: str, plan: Plan) -> str:
    """Why a scan cannot be read, or predicted by a plan; empty where it can."""
    try:
        (first, *_), _ = read_channels(paths, plan.schemes, told)
        check_extent(paths[0], first, plan)
    except UserError as error:
        return str(error)
    return ""


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
