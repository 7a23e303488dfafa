"""From the values of a channel to what a network sees: nnU-Net's normalisations, by their names."""

from dataclasses import dataclass

import numpy as np

from covid_jax.errors import UserError

CT = "CTNormalization"
Z_SCORE = "ZScoreNormalization"
_NONE = "NoNormalization"
_RESCALED = "RescaleTo01Normalization"
_RGB = "RGBTo01Normalization"
SCHEMES = (CT, Z_SCORE, _NONE, _RESCALED, _RGB)

_BY_CHANNEL = {
    "ct": CT,
    "zscore": Z_SCORE,
    "nonorm": _NONE,
    "rescale_to_0_1": _RESCALED,
    "rgb_to_0_1": _RGB,
}
_LEAST = 1e-8  # deviation, or largest value, to divide by


@dataclass(frozen=True)
class Normalization:
    """How a channel is normalised (nnU-Net: normalization_schemes and use_mask_for_norm).

    Attributes:
      scheme: of SCHEMES.
      lower, upper: where CT is clipped, in HU: the 0.5 and 99.5 percentiles of the foreground.
      mean, std: of the foreground of CT, in HU.
      use_mask_for_norm: z-scores are of the voxels inside the scan's non-zero region, and those
        outside stay 0.
    """

    scheme: str
    lower: float = 0.0
    upper: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    use_mask_for_norm: bool = False

    def __str__(self) -> str:
        """In words, for who compares two."""
        if self.is_ct:
            clipped = f"clipped to {self.lower:.4g} to {self.upper:.4g} HU"
            return f"CT {clipped}, mean {self.mean:.4g}, deviation {self.std:.4g}"
        return self.scheme + (" within what is not zero" if self.use_mask_for_norm else "")

    @property
    def is_ct(self) -> bool:
        """Whether the channel is in HU."""
        return self.scheme == CT


def ct(lower: float, upper: float, mean: float, std: float) -> Normalization:
    """That of CT with these statistics of the foreground, in HU."""
    return Normalization(CT, float(lower), float(upper), float(mean), max(float(std), _LEAST))


def scheme_of(channel: str) -> str:
    """The scheme of a channel of this name (nnU-Net: get_normalization_scheme)."""
    return _BY_CHANNEL.get(channel.casefold(), Z_SCORE)


def channel_of(scheme: str) -> str:
    """A channel's name of which scheme_of makes this scheme."""
    name = next(name for name, of_name in _BY_CHANNEL.items() if of_name == scheme)
    return name.upper() if scheme == CT else name


def normalized(voxels: np.ndarray, how: Normalization, inside: np.ndarray | None) -> np.ndarray:
    """A channel (D, H, W), normalised, float32.

    Args:
      inside: (D, H, W) bool, the scan's non-zero region; for `use_mask_for_norm` alone.

    Raises:
      UserError: values that are no RGB where the scheme is that of RGB.
    """
    voxels = voxels.astype(np.float32, copy=False)
    if how.scheme == CT:
        return (np.clip(voxels, how.lower, how.upper) - how.mean) / how.std
    if how.scheme == Z_SCORE:
        if not how.use_mask_for_norm:
            return (voxels - voxels.mean()) / max(voxels.std(), _LEAST)
        assert inside is not None
        known = voxels[inside]
        scores = voxels.copy()
        scores[inside] = (known - known.mean()) / max(known.std(), _LEAST)
        return scores
    if how.scheme == _RESCALED:
        from_0 = voxels - voxels.min()
        return from_0 / max(from_0.max(), _LEAST)
    if how.scheme == _RGB:
        if voxels.min() < 0 or voxels.max() > 255:
            raise UserError(f"its values {voxels.min():g} to {voxels.max():g} are no RGB, 0 to 255")
        return voxels / np.float32(255)
    return voxels
