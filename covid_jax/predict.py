"""Predicts lesion masks of scans with a trained run, each on the scan's own grid.

    python -m covid_jax.predict --checkpoint=runs/body --input=scans --output_dir=masks

--input is a scan (NIfTI, NRRD, MHA, or a folder with a DICOM series) or a folder of scans; each
becomes masks/SCAN.nii.gz, uint8 (NAME_0000.nii.gz becomes masks/NAME.nii.gz, as in nnU-Net's
folders). Several runs (--checkpoint=A,B,C: the folds) are averaged, as nnU-Net averages its folds.
With --save_probabilities there are also masks/SCAN_probability_K.nii.gz, one for each class that is
not background.

All scans are read before the first is predicted; one that cannot be read stops it there, or is left
out with --skip_bad. A file in the output folder that this command did not write, or that somebody
changed, is not overwritten, but for --overwrite. With --continue, masks that this run made of these
scans before are kept.
"""

import functools
import os
from collections import Counter
from pathlib import Path

import jax
from absl import flags
from tqdm import tqdm

from covid_jax.data.intensities import INTENSITIES
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import (
    as_volume,
    check_extent,
    gathered,
    prepare_case,
    read_scan_as,
)
from covid_jax.data.processes import each
from covid_jax.data.scans import listed, refuse_among, scans_in
from covid_jax.data.volume import files_of
from covid_jax.device import announce_device
from covid_jax.errors import UserError, run_command
from covid_jax.files import digest
from covid_jax.inference.ensemble import open_ensemble
from covid_jax.inference.masks import Origin, is_from, is_ours, write_mask
from covid_jax.inference.postprocess import mask_of
from covid_jax.training.parallel import keep_compiled_programs
from covid_jax.training.platform import platform_of

_CHECKPOINT = flags.DEFINE_list("checkpoint", [], "Work directory of a run, or of several.")
_INPUT = flags.DEFINE_string("input", None, "A scan or a folder of scans.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the masks.")
_MIRROR = flags.DEFINE_bool(
    "mirror", None, "Average over mirrored views, 8 times the time; what the run says if left out."
)
_SAVE_PROBABILITIES = flags.DEFINE_bool("save_probabilities", False, "Save probabilities too.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Overwrite files that this command did not write."
)
_CONTINUE = flags.DEFINE_bool(
    "continue", False, "Keep masks that the same run made of the same scans before."
)
_SKIP_BAD = flags.DEFINE_bool(
    "skip_bad", False, "Go on past scans that cannot be read; they are listed at the end."
)
_INTENSITIES = flags.DEFINE_enum(
    "intensities", "auto", INTENSITIES, "How the scans' values are read; auto looks at them."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", os.cpu_count(), "Scans to check at once.", lower_bound=1
)


def main() -> None:
    """Predicts what the flags say."""
    for flag in (_CHECKPOINT, _INPUT, _OUTPUT_DIR):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing (see --help)")
    announce_device()
    keep_compiled_programs()
    output_dir, told = Path(_OUTPUT_DIR.value), _INTENSITIES.value
    found = scans_in(Path(_INPUT.value))
    refuse_among(output_dir, found.paths.values())
    platform = platform_of(jax.local_devices()[0].platform)
    workdirs = [Path(folder) for folder in _CHECKPOINT.value]
    together = open_ensemble(workdirs, _MIRROR.value, told, platform)
    for line in (*found.left_out, *together.notes):
        print(line)

    # What is to be done, and whether all of it can be, before any of it is.
    classes = range(1, together.num_classes) if _SAVE_PROBABILITIES.value else ()
    targets = {
        name: [output_dir / f"{name}_probability_{k}.nii.gz" for k in classes]
        + [output_dir / f"{name}.nii.gz"]
        for name in found.paths
    }
    origins = {
        name: Origin(together.digest, digest(files_of(path))) for name, path in found.paths.items()
    }
    todo = {
        name: path
        for name, path in found.paths.items()
        if not (_CONTINUE.value and all(is_from(file, origins[name]) for file in targets[name]))
    }
    names = Counter(file.name for files in targets.values() for file in files)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(f"two scans would give {listed(twice)}; rename one of them")
    if folders := [file.name for files in targets.values() for file in files if file.is_dir()]:
        raise UserError(f"{output_dir}: {listed(folders)} is a folder there; move it")
    theirs = [
        file.name for name in todo for file in targets[name] if file.exists() and not is_ours(file)
    ]
    if theirs and not _OVERWRITE.value:
        raise UserError(
            f"{output_dir}: holds {len(theirs)} files that this command did not write, or that "
            f"were changed since ({listed(theirs)}); give another --output_dir, or --overwrite"
        )
    check = functools.partial(_unreadable, told=told, plan=together.plan)
    checked = each(check, list(todo.values()), _NUM_PROCESSES.value, "reading")
    bad = {name: why for name, why in zip(todo, checked, strict=True) if why}
    if bad and not _SKIP_BAD.value:
        raise UserError(f"{'; '.join(bad.values())}; --skip_bad goes on without")

    for name in tqdm([name for name in todo if name not in bad], "predicting", unit="scan"):
        scan, how = read_scan_as(todo[name], told)
        for note in dict.fromkeys([f"values are read {how}", *scan.notes]):
            tqdm.write(f"{name}: {note}")
        case = prepare_case(scan, None, together.plan)
        pieces = together.predict(case)
        *others, last = targets[name]
        if others:  # all probabilities at once; a mask alone takes them as they come
            probabilities = gathered(pieces, case.geometry)
            pieces = iter([(slice(None), probabilities)])
            for k, file in zip(classes, others, strict=True):
                write_mask(file, as_volume(probabilities[k], case.geometry), origins[name])
        mask = mask_of(pieces, case.geometry.shape, together.postprocessing)
        write_mask(last, as_volume(mask, case.geometry), origins[name])
    kept = len(found.paths) - len(todo)
    already = f", {kept} of them from before" if kept else ""
    print(f"{len(found.paths) - len(bad)} masks are in {output_dir}{already}")
    if bad:
        raise UserError(f"{len(bad)} scans were left out: {'; '.join(bad.values())}")


def _unreadable(path: Path, told: str, plan: Plan) -> str:
    """Why a scan cannot be read, or predicted by a plan; empty where it can."""
    try:
        check_extent(path, read_scan_as(path, told)[0], plan)
    except UserError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    run_command(main, __doc__)
