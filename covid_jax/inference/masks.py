"""The files that predict writes, and how it knows them again: by a mark in their header.

The mark names the run and the scan, and has a digest of the voxels and of their place: a mask that
somebody corrected or moved is no longer the program's, and is not overwritten.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from covid_jax.data.geometry import Volume, in_file_axes
from covid_jax.data.nifti import description_of
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.errors import UserError

_MARK = "covid_jax run={run} scan={scan} voxels={voxels}"
_DIGITS = 12  # of each digest: NIfTI's descrip has room for 80 letters


@dataclass(frozen=True)
class Origin:
    """What a mask is made from: digests of the run with its settings, and of the scan's file."""

    run: str
    scan: str


def write_mask(path: Path, mask: Volume, origin: Origin) -> None:
    """Writes a mask, or probabilities, with its mark; whole or not at all."""
    voxels = in_file_axes(mask)

    def mark(place: bytes) -> str:
        return _MARK.format(
            run=origin.run[:_DIGITS], scan=origin.scan[:_DIGITS], voxels=_digest(voxels, place)
        )

    write_volume(path, mask, mark)


def is_ours(path: Path) -> bool:
    """Whether predict wrote the file, and nobody changed its voxels since."""
    return _origin(path) is not None


def is_of_another_scan(path: Path, origin: Origin) -> bool:
    """Whether predict wrote the file, by whatever run, and not from this scan."""
    found = _origin(path)
    return found is not None and found.scan != origin.scan[:_DIGITS]


def is_from(path: Path, origin: Origin) -> bool:
    """Whether predict wrote the file from this run and this scan."""
    return _origin(path) == Origin(origin.run[:_DIGITS], origin.scan[:_DIGITS])


def _origin(path: Path) -> Origin | None:
    """What the mark in a file says; None where there is none, or the voxels are not of it."""
    try:
        voxels, (mark, place) = in_file_axes(read_volume(path)), description_of(path)
    except UserError:  # no file that predict writes
        return None
    found = re.fullmatch(_MARK.format(run=r"(\w+)", scan=r"(\w+)", voxels=r"(\w+)"), mark)
    if not found or found[3] != _digest(voxels, place):
        return None
    return Origin(found[1], found[2])


def _digest(voxels: np.ndarray, place: bytes) -> str:
    whole = hashlib.sha256(f"{voxels.dtype.str} {voxels.shape}".encode() + place)
    whole.update(np.ascontiguousarray(voxels).data)
    return whole.hexdigest()[:_DIGITS]
