"""Which patch of which case, for each step: a function of (seed, stream, step, sample).

No generator carries state, so a run that is resumed at a step reads on exactly where it stopped,
and it does not matter how many threads prepare the batches ahead.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import grain
import numpy as np
from absl import flags

from covid_jax.data.processes import without_signals
from covid_jax.data.store import StoredCase
from covid_jax.label_space import IGNORED, OUTSIDE
from covid_jax.stopping import STOP_SIGNALS

Stream = Literal["training", "validation"]
_STREAM_KEYS: Mapping[Stream, int] = {"training": 0, "validation": 1}
_AHEAD = 4  # batches prepared while the device works


@dataclass(frozen=True)
class Source:
    """The cases of one dataset, and where its classes lie among those of the run.

    Attributes:
      cases: to draw from, at least one.
      classes: the run's class of the dataset's label value i + 1 is classes[i]. Empty: the values
        stay what they are, of which regions are made.
    """

    cases: tuple[StoredCase, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """A batch on the host.

    Attributes:
      image: (N, D, H, W, C) float32.
      label: (N, D, H, W) uint8.
      labelled: (N, classes) bool, the classes that a sample's dataset labels.
    """

    image: np.ndarray
    label: np.ndarray
    labelled: np.ndarray


@dataclass(frozen=True)
class Draw:
    """One sample of a batch: a cut of a case."""

    source: Source
    case: StoredCase
    corner: tuple[int, ...]  # the first voxel (d, h, w), which may lie outside of the case

    def __str__(self) -> str:
        return f"{self.case.folder.name} from voxel {self.corner}"


@dataclass(frozen=True)
class Sampler:
    """Draws batches: a dataset uniformly, a case of it uniformly, and a patch of the case.

    The last samples of a batch (`foreground_fraction` of it) are centred on a lesion voxel: first
    a class (or region) is drawn, then a voxel of it. The others lie anywhere, or, where a dataset
    has a label to ignore, around any annotated voxel (nnU-Net's data loader).
    What is cut has the patch in its middle, and is larger where augmentation needs more. What lies
    outside of a case, or is OUTSIDE in its label, is labelled `outside`: background, or OUTSIDE
    again for an augmentation that masks channels there (nnU-Net's -1).
    """

    sources: tuple[Source, ...]
    num_classes: int
    patch_size: tuple[int, int, int]
    cut_size: tuple[int, int, int]
    batch_size: int
    foreground_fraction: float
    seed: int
    stream: Stream
    outside: int = 0

    def draw(self, step: int, sample: int) -> Draw:
        """What a sample of the batch of a step is."""
        anywhere = round(self.batch_size * (1 - self.foreground_fraction))
        rng = np.random.default_rng((self.seed, _STREAM_KEYS[self.stream], step, sample))
        source = self.sources[rng.integers(len(self.sources))]
        case = source.cases[rng.integers(len(source.cases))]
        corner = cut_corner(rng, case, self.cut_size, self.patch_size, sample >= anywhere)
        return Draw(source, case, corner)

    def batch(self, step: int, samples: range | None = None) -> Batch:
        """The batch of a step, the same whenever it is asked for; or only these samples of it."""
        samples = range(self.batch_size) if samples is None else samples
        shape = (len(samples), *self.cut_size)
        channels = self.sources[0].cases[0].image.shape[-1]
        image = np.empty((*shape, channels), np.float32)
        label = np.empty(shape, np.uint8)
        labelled = np.zeros((len(samples), self.num_classes), bool)
        labelled[:, 0] = True
        for row, sample in enumerate(samples):
            draw = self.draw(step, sample)
            source = draw.source
            copy_cut(draw.case.image, draw.corner, image[row])
            copy_cut(draw.case.label, draw.corner, label[row], self.outside)
            if source.classes != tuple(range(1, len(source.classes) + 1)):
                classes = np.full(IGNORED + 1, IGNORED, np.uint8)
                classes[: len(source.classes) + 1] = (0, *source.classes)
                classes[OUTSIDE] = OUTSIDE
                label[row] = classes[label[row]]
            if self.outside != OUTSIDE:
                label[row][label[row] == OUTSIDE] = self.outside
            labelled[row, list(source.classes)] = True
        return Batch(image, label, labelled)

    def batches(
        self, start: int, stop: int, samples: range | None = None, workers: int = 0
    ) -> Generator[Batch]:
        """The batches of steps start .. stop - 1 (or these samples of each), prepared ahead.

        By threads, which are enough where batches are only cut out of memory-mapped arrays, or by
        as many worker processes. The batches are the same. To be closed by whoever leaves some.
        """
        ahead = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
        steps = grain.MapDataset.range(start, stop)
        dataset = steps.map(partial(self.batch, samples=samples)).to_iter_dataset(ahead)
        if workers:
            flags.FLAGS.mark_as_parsed()  # grain asks these, and commands have flags of their own
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        with closing(iter(dataset)) as batches:
            # Workers start with the first batch, and no signal to stop can end them.
            with without_signals(STOP_SIGNALS) if workers else nullcontext():
                first = list(islice(batches, 1))
            yield from first
            yield from batches


def cut_corner(
    rng: np.random.Generator,
    case: StoredCase,
    cut_size: Sequence[int],
    patch_size: Sequence[int],
    on_lesion: bool,
) -> tuple[int, ...]:
    """The first voxel (d, h, w) of a cut, which may lie outside of the case.

    nnU-Net: nnUNetDataLoader.get_bbox. A cut hangs over the borders so far that the patch in its
    middle reaches them; farther where the case is smaller than the cut; and at the far border
    around a voxel that was drawn.
    """
    lowest, highest = [], []
    for n, cut, patch in zip(case.label.shape, cut_size, patch_size, strict=True):
        outside = max(cut - patch, cut - n)
        lowest.append(-(outside // 2) - outside % 2)
        highest.append(n + outside // 2 + outside % 2 - cut)
    voxels = case.annotated
    if on_lesion and case.foreground:
        voxels = case.foreground[rng.integers(len(case.foreground))]
    if voxels is not None and len(voxels):
        voxel = voxels[rng.integers(len(voxels))]
        return tuple(
            max(low, int(centre) - cut // 2)
            for low, centre, cut in zip(lowest, voxel, cut_size, strict=True)
        )
    return tuple(int(rng.integers(a, b + 1)) for a, b in zip(lowest, highest, strict=True))


def copy_cut(voxels: np.ndarray, corner: Sequence[int], cut: np.ndarray, outside: int = 0) -> None:
    """Fills `cut` with what lies at `corner` of `voxels`, and with `outside` where nothing does.

    Both are (D, H, W) or (D, H, W, C).
    """
    inside, target = [], []
    for start, size, n in zip(corner, cut.shape[:3], voxels.shape[:3], strict=True):
        low, high = max(start, 0), min(start + size, n)
        inside.append(slice(low, high))
        target.append(slice(low - start, high - start))
    if any(s.stop - s.start < size for s, size in zip(target, cut.shape[:3], strict=True)):
        cut[...] = outside
    cut[tuple(target)] = voxels[tuple(inside)]
