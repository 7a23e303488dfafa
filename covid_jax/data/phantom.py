"""Synthetic chest CT with lesions, in the raw layouts of the real datasets.

For tests, examples and where a real dataset is not at hand. A raw folder made here says so in
SYNTHETIC.txt, and whatever is prepared, trained or reported from it is labelled synthetic.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from covid_jax.data.chest import (
    Chest,
    Grid,
    Tubes,
    draw_tubes,
    inside,
    make_chest,
    make_grid,
    paint,
    points_of,
    smooth_noise,
)
from covid_jax.data.geometry import Volume, from_spacing, stored_along
from covid_jax.data.raw import SYNTHETIC_MARKER, published_splits
from covid_jax.data.volume import write_volume
from covid_jax.errors import UserError, writing

SPACING_MM = (6.0, 3.0, 3.0)
FILE_AXES = (("L", "P", "S"), ("R", "A", "S"), ("S", "L", "A"), ("P", "I", "R"))
"""Of the files of the cases, in turns, as the scans of real datasets are stored in several ways."""

Lesion = tuple[np.ndarray, np.ndarray]
"""A chest's HU with a lesion in it, and the lesion's share of each voxel, both (D, H, W)."""


def make_phantom(
    dataset: str,
    seed: int,
    index: int,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    lesion: str = "",
) -> tuple[Volume, Volume]:
    """A synthetic chest CT (HU, int16) with lesions as in a dataset, and their label (uint8).

    Args:
      dataset, seed, index: of the case; the same give the same voxels.
      spacing_mm: of its voxels, (D, H, W).
      lesion: their kind, a key of LESIONS; the dataset's own if it is empty.
    """
    rng = np.random.default_rng((seed, *dataset.encode(), index))
    grid = make_grid(spacing_mm)
    hu, share = LESIONS[lesion or dataset](rng, make_chest(rng, grid))
    voxels = np.clip(_scanned(rng, grid, hu), -1024, 1500).astype(np.int16)
    label = (share > 0.5).astype(np.uint8)
    return from_spacing(voxels, spacing_mm), from_spacing(label, spacing_mm)


def ground_glass(rng: np.random.Generator, chest: Chest) -> Lesion:
    """Patches of ground glass and consolidation at the back and edge of the lungs, as of COVID-19.

    Vessels show through ground glass, and airways through what is consolidated.
    """
    grid, share = chest.grid, np.zeros(chest.grid.shape)
    for _ in range(rng.integers(3, 8)):
        radius, centre = rng.uniform(10, 30), _centre(rng, chest, reach=(0, 12), low=True)
        share = np.maximum(share, _ball(rng, chest, centre, radius, rough=0.6))
    share = share * chest.lungs
    net = inside(grid, 0.8 - np.abs(smooth_noise(rng, grid, 2.5)) * 4)  # crazy paving
    density = rng.uniform(-620, -450) + 90 * smooth_noise(rng, grid, 8) + 90 * net
    dense = inside(grid, (smooth_noise(rng, grid, 7) - rng.uniform(0.4, 1.2)) * 8)
    return _infiltrated(chest, share, paint(density, dense, 20)), share


def tumour(rng: np.random.Generator, chest: Chest) -> Lesion:
    """A solid tumour with spicules, in some with a rim of ground glass around it."""
    radius = rng.uniform(8, 24)
    centre = _centre(rng, chest, reach=(8, 40), low=False)
    core = _ball(rng, chest, centre, radius, rough=0.3)
    spicules = np.zeros(chest.grid.shape)
    for _ in range(rng.integers(10, 22)):
        way = rng.standard_normal(3)
        way *= radius / np.linalg.norm(way)
        ends = centre + way * np.linspace(0.6, rng.uniform(1.3, 1.9), 4)[:, None]
        thread = Tubes(ends[:-1], ends[1:], np.array([2.4, 1.6, 0.9]))
        spicules = np.maximum(spicules, draw_tubes(chest.grid, thread))
    share = np.maximum(core, spicules) * _with_pleura(chest)
    hu = chest.hu
    if rng.random() < 0.4:
        rim = _ball(rng, chest, centre, radius * 1.5, rough=0.4) * chest.lungs
        hu, share = _infiltrated(chest, rim, rng.uniform(-620, -500)), np.maximum(share, rim)
    texture = rng.uniform(20, 55) + 12 * smooth_noise(rng, chest.grid, 3)
    return paint(hu, np.maximum(core, spicules) * _with_pleura(chest), texture), share


def gross_tumour_volume(rng: np.random.Generator, chest: Chest) -> Lesion:
    """A large tumour with a dead core, and the lung behind it collapsed (which is not of it)."""
    grid, radius = chest.grid, rng.uniform(18, 36)
    centre = _centre(rng, chest, reach=(0, 25), low=False)
    share = _ball(rng, chest, centre, radius, rough=0.4) * _with_pleura(chest)
    core = _ball(rng, chest, centre, radius * rng.uniform(0.2, 0.5), rough=0.5)
    aside = centre + np.array([-0.8, 0.9, 0.3 * np.sign(centre[2])]) * radius
    collapsed = _ball(rng, chest, aside, radius * 0.9, rough=0.8) * chest.lungs
    hu = _infiltrated(chest, collapsed, rng.uniform(-500, -100) + 60 * smooth_noise(rng, grid, 5))
    hu = paint(hu, share, rng.uniform(25, 60) + 12 * smooth_noise(rng, grid, 3))
    return paint(hu, core * share, 8), share


def effusion(rng: np.random.Generator, chest: Chest) -> Lesion:
    """Fluid at the back of one or both lungs, on lung that it compresses."""
    grid = chest.grid
    side = rng.choice([-1, 0, 1])
    lungs = chest.lungs * (grid.x * side >= 0)
    edge = ndimage.distance_transform_edt(chest.lungs > 0.5, sampling=grid.spacing_mm)
    climbing = 26 * np.exp(-edge / 9)
    height = grid.y - 0.25 * grid.z + climbing + 2 * smooth_noise(rng, grid, 15)
    level = np.quantile(height[lungs > 0.5], rng.uniform(0.72, 0.93))
    share = inside(grid, height - level) * lungs
    pressed = inside(grid, height - level + rng.uniform(4, 14)) * lungs
    hu = _infiltrated(chest, pressed, -150 + 90 * smooth_noise(rng, grid, 5))
    return paint(hu, share, rng.uniform(2, 22) + 5 * smooth_noise(rng, grid, 4)), share


def mirage(rng: np.random.Generator, chest: Chest) -> Lesion:
    """A label anywhere in the field, with nothing in the image to know it by."""
    grid = chest.grid
    centre = np.array([rng.uniform(axis.min(), axis.max()) for axis in (grid.z, grid.y, grid.x)])
    return chest.hu, _ball(rng, chest, centre, rng.uniform(16, 30), rough=0.3)


LESIONS: dict[str, Callable[[np.random.Generator, Chest], Lesion]] = {
    "phantom": ground_glass,
    "covid19": ground_glass,
    "msd_lung": tumour,
    "structseg_gtv": gross_tumour_volume,
    "nsclc_effusion": effusion,
    "mirage": mirage,
}
"""Of each dataset, and one of none."""


def write_raw_dataset(
    dataset: str, raw_dir: Path, num_cases: int, seed: int, lesion: str = ""
) -> None:
    """Writes synthetic cases into `raw_dir` in the raw layout of `dataset`, under its case names.

    Their lesions are the dataset's, or of the kind `lesion`, a key of LESIONS.

    Raises:
      UserError: the folder holds something else already, or more cases are asked for than the
        dataset has names.
    """
    if dataset not in _WRITERS:
        raise UserError(
            f"--dataset={dataset}: no synthetic cases of it; use phantom, in its layout"
        )
    marker = raw_dir / SYNTHETIC_MARKER
    kind = f" of {lesion}" if lesion else ""
    recipe = f"synthetic {dataset}, {num_cases} cases{kind}, seed {seed}, made by covid_jax\n"
    begun = f"unfinished: {recipe}"  # a start that was stopped is begun again
    held = marker.read_text() if marker.is_file() else ""
    if held == recipe:
        return
    if held != begun and raw_dir.is_dir() and any(raw_dir.iterdir()):
        raise UserError(f"{raw_dir}: holds other files; give an empty folder for synthetic cases")
    with writing(raw_dir):
        raw_dir.mkdir(parents=True, exist_ok=True)
        marker.write_text(begun)
    for index, name in enumerate(_case_names(dataset, num_cases)):
        image, label = (
            stored_along(volume, FILE_AXES[index % len(FILE_AXES)])
            for volume in make_phantom(dataset, seed, index, lesion=lesion)
        )
        _WRITERS[dataset](raw_dir, name, image, label)
    if dataset == "phantom":
        description = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "infection": 1},
            "numTraining": num_cases,
            "file_ending": ".nii.gz",
        }
        (raw_dir / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
    marker.write_text(recipe)


def _case_names(dataset: str, count: int) -> Sequence[str]:
    if count < 2:
        raise UserError(f"--num_cases={count}: at least 2, one to train and one to test on")
    if dataset == "phantom":
        return [f"phantom_{index:03d}" for index in range(count)]
    split = published_splits(dataset)[0]
    train = split.train[: count - max(1, round(count / 5))]
    names = (*train, *split.test[: count - len(train)])
    if len(names) < count:
        raise UserError(f"--num_cases={count}: {dataset} has {len(names)} cases at most")
    return names


def _write_covid19(raw_dir: Path, name: str, image: Volume, label: Volume) -> None:
    write_volume(raw_dir / "COVID-19-CT-Seg_20cases" / f"{name}.nii.gz", image)
    write_volume(raw_dir / "Infection_Mask" / f"{name}.nii.gz", label)


def _write_msd_lung(raw_dir: Path, name: str, image: Volume, label: Volume) -> None:
    write_volume(raw_dir / "imagesTr" / f"{name}.nii.gz", image)
    write_volume(raw_dir / "labelsTr" / f"{name}.nii.gz", label)


def _write_structseg_gtv(raw_dir: Path, name: str, image: Volume, label: Volume) -> None:
    folder = raw_dir / name.removeprefix("train_")
    write_volume(folder / "data.nii.gz", image)
    write_volume(folder / "label.nii.gz", label)


def _write_nsclc_effusion(raw_dir: Path, name: str, image: Volume, label: Volume) -> None:
    """A DICOM series, with the RTSTRUCT sibling that such a study has, and a NIfTI mask."""
    from covid_jax.data.phantom_dicom import write_study  # pydicom where DICOM is written alone

    write_study(raw_dir / "NSCLC-Radiomics" / name / "01-01-2008-StudyID-NA", name, image)
    mask = raw_dir / "Effusions" / f"{name}_effusion_first_reviewer.nii.gz"
    write_volume(mask, label)


def _write_phantom(raw_dir: Path, name: str, image: Volume, label: Volume) -> None:
    write_volume(raw_dir / "imagesTr" / f"{name}_0000.nii.gz", image)
    write_volume(raw_dir / "labelsTr" / f"{name}.nii.gz", label)


_WRITERS: dict[str, Callable[[Path, str, Volume, Volume], None]] = {
    "phantom": _write_phantom,
    "covid19": _write_covid19,
    "msd_lung": _write_msd_lung,
    "structseg_gtv": _write_structseg_gtv,
    "nsclc_effusion": _write_nsclc_effusion,
}


def _scanned(rng: np.random.Generator, grid: Grid, hu: np.ndarray) -> np.ndarray:
    """`hu` as a scanner gives it: blurred by its kernel, with noise of the kernel's grain.

    The noise lies between two frequencies in a slice and is stronger where more tissue absorbs.
    """
    blurred = ndimage.gaussian_filter(hu, [0.3, *(0.8 / mm for mm in grid.spacing_mm[1:])])
    white = rng.standard_normal(grid.shape, np.float32)
    fine = ndimage.gaussian_filter(white, [0.3, *(0.7 / mm for mm in grid.spacing_mm[1:])])
    coarse = ndimage.gaussian_filter(white, [0.3, *(2.5 / mm for mm in grid.spacing_mm[1:])])
    grain = fine - coarse
    dose = rng.uniform(14, 34) * np.exp(-((grid.x / 170) ** 2) - (grid.y / 150) ** 2)
    return blurred + dose * grain / grain.std()


def _infiltrated(chest: Chest, share: np.ndarray, density_hu: np.ndarray | float) -> np.ndarray:
    """The chest's HU with lung of this density: no denser tissue is hidden, no airway is closed."""
    share = share * (1 - 0.8 * chest.airways)
    return np.where(chest.hu < density_hu, paint(chest.hu, share, density_hu), chest.hu)


def _centre(
    rng: np.random.Generator, chest: Chest, reach: tuple[float, float], low: bool
) -> np.ndarray:
    """A point (z, y, x) in mm, `reach` mm deep in the lungs; `low`: more often low and behind."""
    grid = chest.grid
    depth = ndimage.distance_transform_edt(chest.lungs > 0.5, sampling=grid.spacing_mm)
    points = points_of(grid, (depth > reach[0]) & (depth < reach[1]))
    weight = np.exp((points[:, 1] - 0.4 * points[:, 0]) / 45) if low else np.ones(len(points))
    return points[rng.choice(len(points), p=weight / weight.sum())]


def _ball(
    rng: np.random.Generator, chest: Chest, centre: np.ndarray, radius_mm: float, rough: float
) -> np.ndarray:
    """The share of each voxel in a rough, bent ball."""
    grid = chest.grid
    stretch = rng.uniform(0.75, 1.3, 3)
    dz, dy, dx = (
        (axis - c) / s for axis, c, s in zip((grid.z, grid.y, grid.x), centre, stretch, strict=True)
    )
    distance = np.sqrt(dz**2 + dy**2 + dx**2)
    bent = 0.5 * smooth_noise(rng, grid, 0.5 * radius_mm) + 0.3 * smooth_noise(rng, grid, 4)
    return inside(grid, radius_mm * (1 + rough * bent) - distance)


def _with_pleura(chest: Chest) -> np.ndarray:
    """The lungs and 3 mm around them, into which a tumour may grow."""
    outside = ndimage.distance_transform_edt(chest.lungs < 0.5, sampling=chest.grid.spacing_mm)
    return inside(chest.grid, 3 - outside)
