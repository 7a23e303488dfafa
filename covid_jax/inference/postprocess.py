"""From probabilities to a mask: a threshold and clean-up of components, both off by default."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np

from covid_jax.config import InferenceConfig, check_types
from covid_jax.data.preprocess import Piece
from covid_jax.errors import UserError
from covid_jax.files import read_json, write_json
from covid_jax.label_space import CLASSES, LabelSpace

_FILE = "postprocessing.json"


@dataclass(frozen=True)
class Postprocessing:
    """How a run's probabilities become masks.

    Attributes:
      threshold: of all lesions' probability together, from which a voxel is one; 0: the likeliest
        class is taken, background among them. Of regions, of each one's; 0: more than a half.
      largest_only: of all lesion voxels, keep those of the largest component (nnU-Net:
        remove_all_but_largest_component).
    """

    threshold: float = 0.0
    largest_only: bool = False


def to_mask(
    probabilities: np.ndarray, postprocessing: Postprocessing, label_space: LabelSpace = CLASSES
) -> np.ndarray:
    """The mask (D, H, W), uint8, of probabilities (K, D, H, W)."""
    whole = [(slice(0, probabilities.shape[1]), probabilities)]
    return mask_of(whole, probabilities.shape[1:], postprocessing, label_space)


def mask_of(
    pieces: Iterable[Piece],
    shape: tuple[int, ...],
    postprocessing: Postprocessing,
    label_space: LabelSpace = CLASSES,
) -> np.ndarray:
    """The mask (D, H, W), uint8, of probabilities that come in pieces along D."""
    mask = np.zeros(shape, np.uint8)
    for planes, probabilities in pieces:
        mask[planes] = label_space.mask(probabilities, postprocessing.threshold)
    return _largest(mask) if postprocessing.largest_only else mask


def save_postprocessing(workdir: Path, postprocessing: Postprocessing) -> None:
    """Keeps what was chosen for a run in its folder, where predict finds it."""
    write_json(workdir / _FILE, dataclasses.asdict(postprocessing))


def load_postprocessing(workdir: str | Path, config: InferenceConfig) -> Postprocessing:
    """What was chosen for a run, or what its config says.

    Raises a UserError where what was chosen is damaged.
    """
    path = Path(workdir) / _FILE
    if chosen := read_json(path):
        try:
            found = Postprocessing(**chosen)
            check_types(found, "postprocessing")
        except (TypeError, UserError) as error:
            raise UserError(f"{path}: damaged ({error})") from error
        if not 0 <= found.threshold < 1:
            raise UserError(f"{path}: a threshold lies in 0 to below 1")
        return found
    return Postprocessing(config.threshold, config.largest_only)


def _largest(mask: np.ndarray) -> np.ndarray:
    components = cc3d.connected_components(mask > 0, connectivity=26)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return np.where((sizes == sizes.max())[components] & (components > 0), mask, 0)
