"""Scans, references and masks as files that the report's viewer (NiiVue) loads from disk.

A page that was opened from disk may not fetch files, but may load scripts; so each case is a script
that hands its volumes to the page.
"""

import base64
import gzip
import json
import shutil
from collections.abc import Collection, Iterable
from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np

from covid_jax.data.geometry import Volume, from_spacing, in_file_axes
from covid_jax.files import whole_file
from covid_jax.reporting.cases import Case
from covid_jax.reporting.figures import window_of

_LARGEST = 16_000_000  # voxels of a scan in the viewer


def write_viewer(folder: Path) -> None:
    """Puts NiiVue and its licence into `folder`, empty of what an earlier report left there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bundle = resources.files("covid_jax.reporting").joinpath("niivue")
    for name in ("niivue.umd.js", "LICENSE"):
        (folder / name).write_bytes(bundle.joinpath(name).read_bytes())


def write_case(
    path: Path,
    name: str,
    case: Case,
    masks: Iterable[tuple[str, Volume]],
    values: Collection[int],
) -> None:
    """Writes the script of a case: its channels in their windows (8 bits) and every run's mask.

    The masks come one at a time, each with the name of its run, and have the label values of the
    reference; those that are none of `values` are left out. Of a scan of more than 16 million
    voxels every second (third, ...) row and column is there.
    """
    scan, step = case.scan, 1
    while scan.voxels.size / step**2 > _LARGEST:
        step += 1

    def labels(mask: Volume) -> str:
        shown = np.where(np.isin(mask.voxels, list(values)), mask.voxels, 0)
        return _encoded(shown, scan, step)

    content = {
        "scans": {
            channel: _encoded(_grey(volume.voxels), scan, step)
            for channel, volume in case.channels.items()
        },
        "reference": labels(case.reference) if case.reference else None,
        "masks": {run: labels(mask) for run, mask in masks},
    }
    with whole_file(path) as partial:
        partial.write_text(f"showCase({json.dumps(name)}, {json.dumps(content)});\n")


def _grey(voxels: np.ndarray) -> np.ndarray:
    """In its window, 0 to 255."""
    low, high = window_of(voxels)
    return np.clip((voxels - low) / (high - low) * 255, 0, 255).astype(np.uint8)


def _encoded(voxels: np.ndarray, scan: Volume, step: int) -> str:
    """A NIfTI file (.nii.gz) of voxels (D, H, W) on the scan's grid, in base64."""
    thinned = voxels[:, ::step, ::step].astype(np.uint8)
    depth, height, width = scan.spacing_mm
    volume = from_spacing(thinned, (depth, height * step, width * step))
    image = nib.Nifti1Image(in_file_axes(volume), volume.file_affine)
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()
