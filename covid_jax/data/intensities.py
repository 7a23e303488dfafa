"""What the values of a scan are: HU, or something that is mapped to HU, or told to be taken as is.

CT in HU has air and lung far below 0. What has none is not in HU, and a network that was trained in
HU makes nothing of it: it is refused, unless it is told how to read it.
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
}
_AIR_HU = (-1200.0, -500.0)  # of air and lung, noise included
_LEAST_AIR = 1e-3  # of all voxels
_PADDING_HU = -1500.0  # below anything that a scanner measures
_MOST_BELOW = 0.02  # of all voxels, below that and not one value: what resampling makes of padding
_TISSUE_WITH_1024 = (874.0, 1174.0)  # of HU + 1024; as HU it is dense bone
_MOST_BONE = 0.05  # of all voxels
_LEAST_GREYS = 16  # of a picture in 8 bits; a label map has fewer
_HU_RANGE = 500.0  # what a CT spans at least
_MOST_HU = 40_000.0  # what 16 bits of it span at most, and metal


def read_as(volume: Volume, told: str = "auto") -> tuple[Volume, str]:
    """The volume in HU, and in words how its values were read.

    Args:
      told: of INTENSITIES.

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
    notes = () if kind == "hu" else (f"values are read {_READ_AS[kind]}",)
    return replace(volume, voxels=voxels, notes=(*volume.notes, *notes)), _READ_AS[kind]


def _kind(voxels: np.ndarray, low: float, high: float) -> str:
    """Hu or 8bit. Raises a UserError for what is neither, with what it looks like."""
    if low == high:
        raise UserError(f"all its voxels are {low:g}; export the scan again")

    def share(bounds: tuple[float, float]) -> float:
        return float(((voxels >= bounds[0]) & (voxels <= bounds[1])).mean())

    measured = voxels[voxels > _PADDING_HU]
    bottom, top = (float(measured.min()), float(measured.max())) if measured.size else (low, high)
    below = voxels.size - measured.size - (int((voxels == low).sum()) if low < bottom else 0)
    has_air, has_bone = share(_AIR_HU) >= _LEAST_AIR, share(_TISSUE_WITH_1024) >= _MOST_BONE
    in_8_bits = low >= 0 and high <= 255
    greys = len(np.unique(voxels.ravel()[:: max(1, voxels.size // 1_000_000)])) if in_8_bits else 0
    if has_air and not has_bone and below < _MOST_BELOW * voxels.size:
        return "hu"
    if greys >= _LEAST_GREYS and (voxels.dtype == np.uint8 or high >= 250):
        return "8bit"
    if 0 < greys < _LEAST_GREYS:
        looks = "a label map"
    elif high - low < 50:
        looks = "normalised, such as z-scores or 0 to 1"
    elif has_air and has_bone:
        looks = "HU + 1024 with padding below"
    elif bottom > _AIR_HU[1] and _HU_RANGE < top - bottom < _MOST_HU:
        looks = "HU + 1024, or MR"
    else:
        looks = "those of another window or modality"
    raise UserError(
        f"its values {low:g} to {high:g} cannot be HU, which has air far below 0; they look like "
        f"{looks}: export them in HU, or tell by --intensities={'|'.join(INTENSITIES[1:])}"
    )
