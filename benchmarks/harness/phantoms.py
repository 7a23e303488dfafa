"""Synthetic datasets in nnU-Net's raw layout, small enough to be learned in minutes on a CPU.

`channels` has two MR channels and two classes, of which neither channel alone knows either: round
things are brighter or darker than what is around them in the one and in the other, and both
together say what they are. `regions` is CT of thick slices with an enhancing part in a core in a
whole, as in BraTS.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from covid_jax.data.geometry import from_spacing
from covid_jax.data.raw import SYNTHETIC_MARKER
from covid_jax.data.volume import write_volume

Triple = tuple[int, int, int]
CASES, TESTED = 14, 4
"""How many are made, and how many of them are the one fold's validation cases."""


@dataclass(frozen=True)
class Phantoms:
    """A kind of cases.

    Attributes:
      shape: (D, H, W) of a case.
      spacing_mm: of its voxels, (D, H, W).
      description: its channels and labels, as in nnU-Net's dataset.json.
      make: the channels (C, D, H, W) and the label (D, H, W) of a case.
    """

    shape: Triple
    spacing_mm: tuple[float, float, float]
    description: dict[str, Any]
    make: Callable[[np.random.Generator, "Phantoms"], tuple[np.ndarray, np.ndarray]]


def write_phantoms(folder: Path, name: str, seed: int = 0) -> None:
    """Writes the dataset `name`, a key of PHANTOMS, marked as synthetic, with one fold."""
    phantoms, cases = PHANTOMS[name], [f"{name}_{index:02d}" for index in range(CASES)]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for index, case in enumerate(cases):
        channels, label = phantoms.make(np.random.default_rng((seed, index)), phantoms)
        files = [folder / "imagesTr" / f"{case}_{k:04d}.nii.gz" for k in range(len(channels))]
        for path, voxels in zip(files, channels, strict=True):
            write_volume(path, from_spacing(voxels.astype(np.int16), phantoms.spacing_mm))
        write_volume(
            folder / "labelsTr" / f"{case}.nii.gz",
            from_spacing(label.astype(np.uint8), phantoms.spacing_mm),
        )
    facts = {**phantoms.description, "numTraining": CASES, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n")
    splits = [{"train": cases[:-TESTED], "val": cases[-TESTED:]}]
    (folder / "splits_final.json").write_text(json.dumps(splits, indent=1) + "\n")
    (folder / SYNTHETIC_MARKER).write_text(f"{name}, {CASES} cases, seed {seed}\n")


def _two_channels(rng: np.random.Generator, of: Phantoms) -> tuple[np.ndarray, np.ndarray]:
    contrast, label = np.zeros((2, *of.shape)), np.zeros(of.shape)
    for kind, signs in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1)) * 2):
        ball = _ball(rng, of, _anywhere(rng, of), rng.uniform(8, 13))
        contrast[:, ball] = np.array(signs)[:, None]
        label[ball] = (1, 2, 0, 0)[kind % 4]
    tissue = np.stack([_texture(rng, of, 8) for _ in range(2)])
    noise = rng.standard_normal(tissue.shape)
    return np.clip(400 + 100 * contrast + 30 * tissue + 40 * noise, 1, None), label


def _nested(rng: np.random.Generator, of: Phantoms) -> tuple[np.ndarray, np.ndarray]:
    label, darker = np.zeros(of.shape), np.zeros(of.shape, bool)
    for _ in range(3):  # with nothing in them
        darker |= _ball(rng, of, _anywhere(rng, of), rng.uniform(6, 10))
    for _ in range(2):
        centre, radius = _anywhere(rng, of), rng.uniform(13, 18)
        parts = [_ball(rng, of, centre, radius * share) for share in (1, 0.8, 0.6)]
        for part in range(1, 4):
            label[np.logical_and.reduce(parts[:part])] = part
    hu = np.array([40, 80, 120, 160])[label.astype(int)] - 40 * (darker & (label == 0))
    hu = hu + 10 * _texture(rng, of, 8) + 20 * rng.standard_normal(of.shape)
    body = _ball(rng, of, (np.array(of.shape) * of.spacing_mm) / 2, 46, bent=0.02)
    return np.where(body, hu, -1000)[None], np.where(body, label, 0)


def _anywhere(rng: np.random.Generator, of: Phantoms) -> np.ndarray:
    """A point (3,) in mm that is not near the border."""
    return np.array(of.shape) * of.spacing_mm * rng.uniform(0.25, 0.75, 3)


def _ball(
    rng: np.random.Generator,
    of: Phantoms,
    centre: np.ndarray,
    radius_mm: float,
    bent: float = 0.15,
) -> np.ndarray:
    """(D, H, W) bool, a bent ball."""
    places = np.indices(of.shape).reshape(3, -1).T * of.spacing_mm
    distance = np.linalg.norm(places - centre, axis=1).reshape(of.shape)
    return distance < radius_mm * (1 + bent * _texture(rng, of, 6))


def _texture(rng: np.random.Generator, of: Phantoms, grain_mm: float) -> np.ndarray:
    """(D, H, W) smooth noise of mean 0 and deviation 1."""
    smooth = ndimage.gaussian_filter(
        rng.standard_normal(of.shape), [grain_mm / mm for mm in of.spacing_mm]
    )
    return (smooth - smooth.mean()) / smooth.std()


PHANTOMS = {
    "channels": Phantoms(
        (36, 48, 48),
        (2.0, 2.0, 2.0),
        {
            "channel_names": {"0": "T1", "1": "T2"},
            "labels": {"background": 0, "bright in both": 1, "bright in T1 alone": 2},
        },
        _two_channels,
    ),
    "regions": Phantoms(
        (18, 64, 64),
        (5.0, 1.5, 1.5),
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
            "regions_class_order": [1, 2, 3],
        },
        _nested,
    ),
}
