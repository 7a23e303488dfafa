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
    """What a mask is made from: digests of the run with its settings, and of the scan's file.

    Of each as many digits count as a mark has.
    """

    run: str
    scan: str

    def __post_init__(self) -> None:
        """Shortens both."""
        object.__setattr__(self, "run", self.run[:_DIGITS])
        object.__setattr__(self, "scan", self.scan[:_DIGITS])


def write_mask(path: Path, mask: Volume, origin: Origin) -> None:
    """Writes a mask, or probabilities, with its mark; whole or not at all."""
    voxels = in_file_axes(mask)

    def mark(place: bytes) -> str:
        return _MARK.format(run=origin.run, scan=origin.scan, voxels=_digest(voxels, place))

    write_volume(path, mask, mark)


def origin_of(path: Path) -> Origin | None:
    """What predict made the file from; None where it did not, or the voxels were changed since."""
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
