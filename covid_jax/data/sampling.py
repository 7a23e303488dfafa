"""Which patch of which case, for each step: a function of (seed, stream, step, sample).

No generator carries state, so a run that is resumed at a step reads on exactly where it stopped,
and it does not matter how many threads prepare the batches ahead.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import grain
import numpy as np

from covid_jax.config import IGNORED
from covid_jax.data.store import StoredCase

Stream = Literal["training", "validation"]
_STREAM_KEYS: Mapping[Stream, int] = {"training": 0, "validation": 1}
_AHEAD = 4  # batches prepared while the device works


@dataclass(frozen=True)
class Source:
    """The cases of one dataset, and where its classes lie among those of the run.

    Attributes:
      cases: to draw from, at least one.
      classes: the run's class of the dataset's label value i + 1 is classes[i].
    """

    cases: tuple[StoredCase, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """A batch on the host.

    Attributes:
      image: (N, D, H, W, 1) float32.
      label: (N, D, H, W) uint8.
      labelled: (N, classes) bool, the classes that a sample's dataset labels.
    """

    image: np.ndarray
    label: np.ndarray
    labelled: np.ndarray


@dataclass(frozen=True)
class Sampler:
    """Draws batches: a dataset uniformly, a case of it uniformly, and a patch of the case.

    The last samples of a batch (`foreground_fraction` of it) are centred on a lesion voxel:
    first a class is drawn, then a voxel of it. The others lie anywhere (nnU-Net's data loader).
    What is cut has the patch in its middle, and is larger where augmentation needs more.
    """

    sources: tuple[Source, ...]
    num_classes: int
    patch_size: tuple[int, int, int]
    cut_size: tuple[int, int, int]
    batch_size: int
    foreground_fraction: float
    seed: int
    stream: Stream

    def batch(self, step: int) -> Batch:
        """The batch of a step, the same whenever it is asked for."""
        shape = (self.batch_size, *self.cut_size)
        image = np.empty((*shape, 1), np.float32)
        label = np.empty(shape, np.uint8)
        labelled = np.zeros((self.batch_size, self.num_classes), bool)
        labelled[:, 0] = True
        anywhere = round(self.batch_size * (1 - self.foreground_fraction))
        for sample in range(self.batch_size):
            rng = np.random.default_rng((self.seed, _STREAM_KEYS[self.stream], step, sample))
            source = self.sources[rng.integers(len(self.sources))]
            case = source.cases[rng.integers(len(source.cases))]
            corner = patch_corner(rng, case, self.patch_size, on_lesion=sample >= anywhere)
            start = [
                c - (cut - size) // 2
                for c, cut, size in zip(corner, self.cut_size, self.patch_size, strict=True)
            ]
            copy_patch(case.image, start, image[sample, ..., 0])
            copy_patch(case.label, start, label[sample])
            if source.classes != tuple(range(1, len(source.classes) + 1)):
                classes = np.full(IGNORED + 1, IGNORED, np.uint8)
                classes[: len(source.classes) + 1] = (0, *source.classes)
                label[sample] = classes[label[sample]]
            labelled[sample, list(source.classes)] = True
        return Batch(image, label, labelled)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start .. stop - 1, prepared ahead in threads."""
        options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
        steps = grain.MapDataset.range(start, stop)
        return iter(steps.map(self.batch).to_iter_dataset(options))


def patch_corner(
    rng: np.random.Generator, case: StoredCase, patch_size: Sequence[int], on_lesion: bool
) -> tuple[int, ...]:
    """The first voxel (d, h, w) of a patch, which may lie outside of the case.

    nnU-Net: nnUNetDataLoader.get_bbox. A patch hangs over the border where the case is smaller
    than it, equally on both sides, and at the far border around a lesion voxel.
    """
    missing = [max(size - n, 0) for size, n in zip(patch_size, case.image.shape, strict=True)]
    lowest = [-(need // 2) - need % 2 for need in missing]
    highest = [
        n + need // 2 + need % 2 - size
        for n, need, size in zip(case.image.shape, missing, patch_size, strict=True)
    ]
    if on_lesion and case.foreground:
        voxels = case.foreground[rng.integers(len(case.foreground))]
        voxel = voxels[rng.integers(len(voxels))]
        return tuple(
            max(low, int(centre) - size // 2)
            for low, centre, size in zip(lowest, voxel, patch_size, strict=True)
        )
    return tuple(int(rng.integers(a, b + 1)) for a, b in zip(lowest, highest, strict=True))


def copy_patch(voxels: np.ndarray, corner: Sequence[int], patch: np.ndarray) -> None:
    """Fills `patch` with what lies at `corner` of `voxels`, and with 0 where that is outside."""
    inside, target = [], []
    for start, size, n in zip(corner, patch.shape, voxels.shape, strict=True):
        low, high = max(start, 0), min(start + size, n)
        inside.append(slice(low, high))
        target.append(slice(low - start, high - start))
    if any(side.stop - side.start < size for side, size in zip(target, patch.shape, strict=True)):
        patch[...] = 0
    patch[tuple(target)] = voxels[tuple(inside)]
