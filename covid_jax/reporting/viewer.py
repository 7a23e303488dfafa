"""Scans, references and masks as files that the report's viewer (NiiVue) loads from disk.

A page that was opened from disk may not fetch files, but may load scripts; so each case is a script
that hands its volumes to the page.
"""

import base64
import gzip
import json
import shutil
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import nibabel as nib
import numpy as np

from covid_jax.data.geometry import Volume, from_spacing, in_file_axes
from covid_jax.files import whole_file
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
    scan: Volume,
    reference: np.ndarray,
    masks: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Writes the script of a case: its scan in its window (8 bits) and the masks of every run.

    Reference and masks are bool (D, H, W) on the scan's grid; the masks come one at a time, each
    with the name of its run. Of a scan of more than 16 million
    voxels every second (third, ...) row and column is there.
    """
    step = 1
    while scan.voxels.size / step**2 > _LARGEST:
        step += 1
    low, high = window_of(scan.voxels)
    grey = np.clip((scan.voxels - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    content = {
        "scan": _encoded(grey, scan, step),
        "reference": _encoded(reference, scan, step),
        "masks": {run: _encoded(mask, scan, step) for run, mask in masks},
    }
    with whole_file(path) as partial:
        partial.write_text(f"showCase({json.dumps(name)}, {json.dumps(content)});\n")


def _encoded(voxels: np.ndarray, scan: Volume, step: int) -> str:
    """A NIfTI file (.nii.gz) of voxels (D, H, W) on the scan's grid, in base64."""
    thinned = voxels[:, ::step, ::step].astype(np.uint8)
    depth, height, width = scan.spacing_mm
    volume = from_spacing(thinned, (depth, height * step, width * step))
    image = nib.Nifti1Image(in_file_axes(volume), volume.file_affine)
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode()
