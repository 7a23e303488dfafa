"""nnU-Net v2's own data loader and training transforms, in this thread or in its processes."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.stand_ins import before_nnunet

before_nnunet()
from nnunetv2.training.data_augmentation.compute_initial_patch_size import (  # noqa: E402
    get_patch_size,
)
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader  # noqa: E402
from nnunetv2.training.dataloading.nnunet_dataset import (  # noqa: E402
    comp_blosc2_params,
    nnUNetDatasetBlosc2,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import (  # noqa: E402
    NonDetMultiThreadedAugmenter,
    nnUNetTrainer,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager  # noqa: E402

from covid_jax.data.augment import is_planar  # noqa: E402
from covid_jax.data.store import StoredCase  # noqa: E402

Triple = tuple[int, int, int]


def save_cases(folder: Path, cases: Mapping[str, StoredCase], patch_size: Triple) -> None:
    """Writes cases as nnU-Net's preprocessor leaves them: blosc2 in chunks for the patch."""
    folder.mkdir(parents=True)
    for name, case in cases.items():
        locations = {
            value: np.insert(voxels, 0, 0, axis=1)
            for value, voxels in enumerate(case.foreground, start=1)
        }
        image = np.moveaxis(np.asarray(case.image), -1, 0)
        blocks, chunks = comp_blosc2_params(image.shape, patch_size)
        nnUNetDatasetBlosc2.save_case(
            image,
            np.asarray(case.label)[None].astype(np.int8),
            {"class_locations": locations},
            str(folder / name),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks,
            blocks_seg=blocks,
        )


def batches(
    folder: Path, patch_size: Triple, batch_size: int, foreground_fraction: float, augment: bool
) -> Callable[[], Any]:
    """A function that makes the next batch of the cases in `folder`, in this thread."""
    torch.set_num_threads(1)
    loader = _loader(folder, patch_size, batch_size, foreground_fraction, augment)
    return lambda: next(loader)


def samples_per_second(
    folder: Path,
    patch_size: Triple,
    batch_size: int,
    foreground_fraction: float,
    processes: int,
    seconds: float,
) -> float:
    """What `processes` of nnU-Net's make in `seconds`, started and queued as its trainer does.

    They are forked: to be called before this process computes with JAX.
    """
    torch.set_num_threads(1)
    loader = _loader(folder, patch_size, batch_size, foreground_fraction, augment=True)
    queued = max(6, processes // 2)
    augmenter = NonDetMultiThreadedAugmenter(
        loader, None, processes, queued, seeds=None, pin_memory=False, wait_time=0.002
    )
    try:
        for _ in range(queued + processes):  # what was made ahead must not count
            next(augmenter)
        made, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            next(augmenter)
            made += batch_size
        return made / (time.perf_counter() - begin)
    finally:
        augmenter._finish()


def _loader(
    folder: Path, patch_size: Triple, batch_size: int, foreground_fraction: float, augment: bool
) -> nnUNetDataLoader:
    planar = is_planar(patch_size)
    limit = np.pi if planar else np.pi / 6
    initial = get_patch_size(patch_size, *[(-limit, limit)] * 3, (0.85, 1.25))
    if planar:
        initial[0] = patch_size[0]
    transforms = nnUNetTrainer.get_training_transforms(
        np.array(patch_size), (-limit, limit), None, (0, 1, 2), planar
    )
    labels = LabelManager({"background": 0, "lesion": 1}, None)
    return nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder)),
        batch_size,
        initial if augment else patch_size,
        patch_size,
        labels,
        foreground_fraction,
        transforms=transforms if augment else None,
    )
