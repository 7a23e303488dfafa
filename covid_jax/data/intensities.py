"""What the values of a scan are: HU, or something that is mapped to HU, or told to be taken as is.

CT in HU has air and lung far below 0. What has none is not in HU, and a network that was trained in
HU makes nothing of it: it is refused, unless it is told how to read it. Values alone do not tell
all: what looks like HU, such as a map of something else with as much far below 0, is taken for HU.
"""

from dataclasses import replace

import numpy as np

from covid_jax.data.geometry import Volume
from covid_jax.errors import UserError

GREY_WINDOW_HU = (-1250.0, 250.0)
"""The window from which the 8-bit radiopaedia volumes of COVID-19-CT-Seg are said to come."""

INTENSITIES = ("auto", "hu", "8bit", "offset1024", "as_is")
"""How the values of scans may be told to be read; "auto" looks at them."""

_READ_AS = {
    "hu": "as HU",
    "8bit": "as 8-bit grey mapped to -1250 ... 250 HU",
    "offset1024": "as HU + 1024, of which 1024 is taken off",
    "as_is": "as they are, told to be no HU",
    "no_ct": "as they are (no CT)",
}
_AIR_HU = (-1200.0, -500.0)  # of air and lung, noise included
_LEAST_AIR = 1e-3  # of all voxels
_PADDING_HU = -1500.0  # below anything that a scanner measures
_MOST_BELOW = 0.02  # of all voxels, below that and not one value: what resampling makes of padding
_TISSUE_WITH_1024 = (874.0, 1174.0)  # of HU + 1024; as HU it is dense bone, or metal
_MOST_BONE = 0.15  # of a scan, beside less air than that
_TISSUE_HU = (-200.0, 150.0)  # of a region that was cut out, the median
_MOST_BONE_CUT_OUT = 0.05
_LEAST_CUT_OFF = 0.01  # of all voxels at the lowest value, where a window ends there
_MOST_ONE_SIDED = 0.25  # of voxels without another as far on the other side of 0; CT has most
_BINS_HU = np.arange(0.0, 1300.0, 20.0)
_SAMPLE = 1_000_000  # voxels that are looked at
_LEAST_GREYS = 16  # of a picture in 8 bits; a label map has fewer
_HU_RANGE = 500.0  # what a CT spans at least
_MOST_HU = 40_000.0  # what 16 bits of it span at most, and metal


def read_as(volume: Volume, told: str = "auto") -> tuple[Volume, str]:
    """The volume in HU, and in words how its values were read.

    Args:
      told: of INTENSITIES, or "no_ct" of a channel that is none.

    Raises:
      UserError: values that are not finite; or, with "auto", neither HU nor 8-bit grey.
    """
    low, high = float(volume.voxels.min()), float(volume.voxels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("holds values that are not finite; export the scan again")
    kind = _kind(volume.voxels, low, high) if told == "auto" else told
    voxels = volume.voxels
    if kind == "8bit":
        if low < 0 or high > 255:
            raise UserError(f"its values {low:g} to {high:g} are no 8-bit grey")
        bottom, top = GREY_WINDOW_HU
        voxels = voxels.astype(np.float32) / 255 * (top - bottom) + bottom
    elif kind == "offset1024":
        voxels = voxels.astype(np.float32) - 1024
    notes = () if kind in ("hu", "no_ct") else (f"values are read {_READ_AS[kind]}",)
    return replace(volume, voxels=voxels, notes=(*volume.notes, *notes)), _READ_AS[kind]


def _kind(voxels: np.ndarray, low: float, high: float) -> str:
    """Hu or 8bit. Raises a UserError for what is neither, with what it looks like."""
    if low == high:
        raise UserError(f"all its voxels are {low:g}; export the scan again")
    sample = voxels.flat[:: max(1, voxels.size // _SAMPLE) | 1]  # odd: no step along one axis alone
    greys = len(np.unique(sample)) if low >= 0 and high <= 255 else 0
    if _is_hu(sample, low):
        return "hu"
    if greys >= _LEAST_GREYS and (voxels.dtype == np.uint8 or high >= 250):
        return "8bit"
    raise UserError(
        f"its values {low:g} to {high:g} cannot be HU, which has air far below 0; they look like "
        f"{_looks_like(sample, low, high, greys)}: export them in HU, or tell by "
        f"--intensities={'|'.join(INTENSITIES[1:])}"
    )


def _is_hu(sample: np.ndarray, low: float) -> bool:
    """Whether some voxels of a scan, whose lowest value is `low`, are in HU.

    Air that was measured has many values. Where all of it is one, it may be what somebody filled
    the surroundings with, and says nothing: the rest has to look like tissue.
    """
    rest = sample[sample > max(low, _PADDING_HU)]
    below = np.mean((sample <= _PADDING_HU) & (sample != low))
    if not rest.size or below >= _MOST_BELOW or _share(sample, _AIR_HU) < _LEAST_AIR:
        return False
    bone, air = _share(rest, _TISSUE_WITH_1024), _measured_air(rest)
    if air < _LEAST_AIR:
        least, most = _TISSUE_HU
        return bone < _MOST_BONE_CUT_OUT and least < np.median(rest) < most
    return (bone < _MOST_BONE or bone < air) and _one_sided(rest) > _MOST_ONE_SIDED


def _share(voxels: np.ndarray, bounds: tuple[float, float]) -> float:
    return float(np.mean((voxels >= bounds[0]) & (voxels <= bounds[1])))


def _measured_air(voxels: np.ndarray) -> float:
    """The share of voxels that are air, but for the most frequent value of that."""
    air = voxels[(voxels >= _AIR_HU[0]) & (voxels <= _AIR_HU[1])]
    most = np.unique(air, return_counts=True)[1].max() if air.size else 0
    return float(air.size - most) / voxels.size


def _one_sided(voxels: np.ndarray) -> float:
    """The share of voxels, 0 and the far ones left out, that have none as far on the other side.

    Field, phase and velocity have little more on one side than on the other.
    """
    above, under = (np.histogram(v[v > 0], _BINS_HU)[0] for v in (voxels, -voxels.astype(float)))
    return float(np.abs(above - under).sum() / max(1, (above + under).sum()))


def _looks_like(sample: np.ndarray, low: float, high: float, greys: int) -> str:
    """In words, what values are that are no HU."""
    measured = sample[sample > _PADDING_HU]
    bottom, top = (measured.min(), measured.max()) if measured.size else (low, high)
    if 0 < greys < _LEAST_GREYS:
        return "a label map"
    if high - low < 50:
        return "normalised, such as z-scores or 0 to 1"
    if _share(sample, _AIR_HU) >= _LEAST_AIR:
        if _one_sided(sample[sample > low]) <= _MOST_ONE_SIDED:
            return "a map of values around 0, such as a field or a phase"
        return "HU + 1024 with padding below, or a region of HU without air"
    if bottom > _AIR_HU[1] and _HU_RANGE < top - bottom < _MOST_HU:
        if low == bottom < 0 and np.mean(sample == low) >= _LEAST_CUT_OFF:
            return f"HU of which all below {low:g} was cut off"
        return "HU + 1024, or MR"
    return "those of another window or modality"
