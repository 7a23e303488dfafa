"""Synthetic chest CT with lesions, in the raw layouts of the real datasets.

For tests, examples and where a real dataset is not at hand. A raw folder made here says so in
SYNTHETIC.txt, and whatever is prepared, trained or reported from it is labelled synthetic.
"""

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from scipy import ndimage

from covid_jax.data.datasets import SYNTHETIC_MARKER, published_splits
from covid_jax.data.volume import Volume, from_spacing, in_file_axes, write_volume
from covid_jax.errors import UserError

SHAPE = (36, 104, 128)
SPACING_MM = (5.0, 3.0, 3.0)
_AIR_HU, _LUNG_HU, _FAT_HU, _TISSUE_HU, _BONE_HU = -1000, -840, -95, 45, 400


@dataclass(frozen=True)
class Chest:
    """The anatomy of a phantom: voxels in HU and its regions as masks, all (D, H, W)."""

    hu: np.ndarray
    lungs: np.ndarray
    grid: tuple[np.ndarray, np.ndarray, np.ndarray]


def make_phantom(kind: str, seed: int, index: int) -> tuple[Volume, Volume]:
    """A synthetic chest CT (HU, int16) with lesions of a dataset's kind, and their label (uint8).

    Args:
      kind: a key of LESIONS.
      seed, index: of the dataset and the case in it; the same give the same voxels.
    """
    rng = np.random.default_rng((seed, sorted(LESIONS).index(kind), index))
    chest = _chest(rng)
    lesion_hu, share = LESIONS[kind](rng, chest)
    hu = chest.hu * (1 - share) + lesion_hu * share
    texture = _field(rng, (0.5, 0.7, 0.7))  # a scanner's noise is smoothed by its kernel
    hu = ndimage.gaussian_filter(hu, (0.3, 0.5, 0.5)) + 22 * texture
    voxels = np.clip(hu, -1024, 1500).astype(np.int16)
    label = (share > 0.5).astype(np.uint8)
    return from_spacing(voxels, SPACING_MM), from_spacing(label, SPACING_MM)


def ground_glass(rng: np.random.Generator, chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """Patches of ground glass and consolidation at the edge of the lungs, as of COVID-19."""
    share = np.zeros(SHAPE)
    for _ in range(rng.integers(2, 6)):
        share = np.maximum(share, _blob(rng, chest, rng.uniform(10, 26), rough=0.5, edge=True))
    density = -520 + 220 * _field(rng, (1.5, 2.5, 2.5))
    consolidated = _field(rng, (2, 4, 4)) > 0.8
    return np.where(consolidated, 10, density), share * chest.lungs


def tumour(rng: np.random.Generator, chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """A solid tumour with spicules inside a lung."""
    share = _blob(rng, chest, rng.uniform(14, 30), rough=0.35, edge=False)
    return 30 + 25 * _field(rng, (1, 1.5, 1.5)), share * _grown(chest.lungs, 1)


def gross_tumour_volume(rng: np.random.Generator, chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """A large tumour, with a rim of denser lung around it."""
    share = _blob(rng, chest, rng.uniform(18, 36), rough=0.3, edge=True)
    return 40 + 35 * _field(rng, (1.5, 2.5, 2.5)), share * _grown(chest.lungs, 2)


def effusion(rng: np.random.Generator, chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """Fluid that fills the back of one or both lungs up to a level."""
    _, y, x = chest.grid
    side = rng.choice(["left", "right", "both"])
    half = {"left": x > 0, "right": x < 0, "both": np.ones(SHAPE, bool)}[side]
    lungs = chest.lungs * half
    depth = y + 0.08 * _field(rng, (3, 8, 8))
    level = np.quantile(depth[lungs > 0.5], rng.uniform(0.72, 0.92))
    share = 1 / (1 + np.exp(-(depth - level) * 40))
    return 12 + 10 * _field(rng, (1, 2, 2)), share * lungs


LESIONS: dict[str, Callable[[np.random.Generator, Chest], tuple[np.ndarray, np.ndarray]]] = {
    "phantom": ground_glass,
    "covid19": ground_glass,
    "msd_lung": tumour,
    "structseg_gtv": gross_tumour_volume,
    "nsclc_effusion": effusion,
}


def write_raw_dataset(dataset: str, raw_dir: Path, num_cases: int, seed: int) -> None:
    """Writes synthetic cases into `raw_dir` in the raw layout of `dataset`, under its case names.

    Raises:
      UserError: the folder holds something else already, or more cases are asked for than the
        dataset has names.
    """
    if dataset not in _WRITERS:
        raise UserError(
            f"--dataset={dataset}: no synthetic cases of it; use phantom, in its layout"
        )
    marker = raw_dir / SYNTHETIC_MARKER
    recipe = f"synthetic {dataset}, {num_cases} cases, seed {seed}, made by covid_jax\n"
    if marker.is_file() and marker.read_text() == recipe:
        return
    if raw_dir.is_dir() and any(raw_dir.iterdir()):
        raise UserError(f"{raw_dir}: holds other files; give an empty folder for synthetic cases")
    for index, name in enumerate(_case_names(dataset, num_cases)):
        image, label = make_phantom(dataset, seed, index)
        _WRITERS[dataset](raw_dir, name, image, label)
    if dataset == "phantom":
        description = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "infection": 1},
            "numTraining": num_cases,
            "file_ending": ".nii.gz",
        }
        (raw_dir / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
    marker.write_text(recipe)  # last: without it the folder is not taken for whole


def _case_names(dataset: str, count: int) -> Sequence[str]:
    if count < 2:
        raise UserError(f"--num_cases={count}: at least 2, one to train and one to test on")
    if dataset == "phantom":
        return [f"phantom_{index:03d}" for index in range(count)]
    split = published_splits(dataset)[0]
    test = min(max(1, round(count / 5)), len(split.test))
    names = (*split.train[: count - test], *split.test[:test])
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
    study = raw_dir / "NSCLC-Radiomics" / name / "01-01-2008-StudyID-NA"
    _write_series(study / "0.000000-CT", name, image)
    structure = _dicom_file(RTStructureSetStorage, name)
    (study / "3.000000-RTSTRUCT").mkdir(parents=True)
    structure.save_as(study / "3.000000-RTSTRUCT" / "1-1.dcm", enforce_file_format=True)
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


def _write_series(folder: Path, patient: str, image: Volume) -> None:
    """The volume as axial CT slices, which DICOM describes in mm to the left, back and head."""
    folder.mkdir(parents=True)
    slices = in_file_axes(image).transpose(2, 1, 0)  # (D, H, W)
    depth, height, width = image.spacing_mm
    series, frame = generate_uid(entropy_srcs=[patient, "series"]), generate_uid(None, [patient])
    for index, voxels in enumerate(slices):
        file = _dicom_file(CTImageStorage, patient, f"slice {index}")
        file.SeriesInstanceUID = series
        file.FrameOfReferenceUID = frame
        file.Modality = "CT"
        file.InstanceNumber = index + 1
        file.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        file.ImagePositionPatient = [0.0, 0.0, float(depth * index)]
        file.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        file.PixelSpacing = [float(height), float(width)]
        file.SliceThickness = float(depth)
        file.Rows, file.Columns = voxels.shape
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.PixelRepresentation = 1
        file.RescaleSlope, file.RescaleIntercept = 1, 0
        file.PixelData = np.ascontiguousarray(voxels, np.int16).tobytes()
        file.save_as(folder / f"1-{index + 1:03d}.dcm", enforce_file_format=True)


def _dicom_file(kind: pydicom.uid.UID, patient: str, part: str = "") -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[patient, kind, part])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID = generate_uid(entropy_srcs=[patient, "study"])
    file.SeriesInstanceUID = generate_uid(entropy_srcs=[patient, kind])
    file.PatientID, file.PatientName = patient, "SYNTHETIC"
    file.StudyDate = datetime.date(2008, 1, 1).strftime("%Y%m%d")
    file.StudyID, file.StudyTime, file.SeriesNumber = "", "", 1
    file.PatientBirthDate, file.PatientSex = "", ""
    file.AccessionNumber, file.ReferringPhysicianName, file.Manufacturer = "", "", "covid_jax"
    return file


def _chest(rng: np.random.Generator) -> Chest:
    """Body, lungs with vessels, ribs, spine, mediastinum and table of one patient."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    y, x = y / rng.uniform(0.93, 1.05), x / rng.uniform(0.93, 1.05)
    wobble = 0.04 * _field(rng, (4, 10, 10))
    body = _soft_inside(1 - np.hypot(x / 1.0, y / 0.93) + 0.3 * wobble)
    wall = _soft_inside(0.93 - np.hypot(x / 1.0, y / 0.93) + 0.3 * wobble)
    height = 0.75 + 0.25 * np.sqrt(np.clip(1 - (z / 1.25) ** 2, 0, 1))
    lungs = np.zeros(SHAPE)
    for side in (-1, 1):
        a, b = rng.uniform(0.36, 0.41), rng.uniform(0.66, 0.74)
        radius = np.sqrt(((x - side * 0.47) / a) ** 2 + ((y - 0.02) / b) ** 2) / height
        lungs = np.maximum(lungs, _soft_inside(1 - radius + wobble, 18))
    heart = np.sqrt(((x - 0.13) / 0.36) ** 2 + ((y + 0.28) / 0.33) ** 2 + ((z + 0.6) / 0.75) ** 2)
    lungs = lungs * (1 - _soft_inside(1 - heart, 18)) * wall
    hu = np.full(SHAPE, float(_AIR_HU))
    hu = _paint(hu, body, _FAT_HU + 15 * _field(rng, (1, 2, 2)))
    hu = _paint(hu, wall, _TISSUE_HU + 12 * _field(rng, (1, 2, 2)))
    lung_hu = _LUNG_HU + 60 * (y + 1) / 2 + 25 * _field(rng, (1, 2, 2))
    vessels = np.abs(_field(rng, (1.6, 2.2, 2.2))) < 0.05 + 0.1 * np.exp(
        -6 * np.abs(np.abs(x) - 0.2)
    )
    airways = np.abs(_field(rng, (1.4, 2.4, 2.4))) < 0.02
    lung_hu = np.where(vessels, rng.uniform(-250, 0), lung_hu)
    lung_hu = np.where(airways & (np.abs(x) < 0.5), _AIR_HU, lung_hu)
    hu = _paint(hu, lungs, ndimage.gaussian_filter(lung_hu, 0.5))
    ring = np.hypot(x / 0.93, y / 0.86)
    angle = np.arctan2(y, x)
    ribs = (np.abs(ring - 1) < 0.035) & (np.sin(9 * angle + 14 * z + rng.uniform(0, 6)) > 0.35)
    spine = np.hypot(x / 0.13, (y - 0.62) / 0.13) < 1
    canal = np.hypot(x / 0.05, (y - 0.74) / 0.05) < 1
    hu = np.where((ribs | spine) & (lungs < 0.3), _BONE_HU + 120 * _field(rng, (1, 1, 1)), hu)
    hu = np.where(canal, 20, hu)
    trachea = np.hypot((x - 0.02) / 0.055, (y - 0.12) / 0.055) < 1
    hu = np.where(trachea & (z > 0), _AIR_HU, hu)
    table = (np.abs(y - 0.965 + 0.12 * x**2) < 0.02) & (body < 0.2)
    return Chest(np.where(table, -150, hu), lungs, (z, y, x))


def _blob(
    rng: np.random.Generator, chest: Chest, radius_mm: float, rough: float, edge: bool
) -> np.ndarray:
    """A rough ball with soft edges around a voxel of the lungs (near their edge if asked)."""
    depth = ndimage.distance_transform_edt(chest.lungs > 0.5, sampling=SPACING_MM)
    where = (depth > 0) & (depth < 15) if edge else depth > 0.5 * depth.max()
    places = np.argwhere(where)
    centre = places[rng.integers(len(places))]
    offsets = [
        (np.arange(n) - c) * mm / rng.uniform(0.8, 1.3)
        for n, c, mm in zip(SHAPE, centre, SPACING_MM, strict=True)
    ]
    dz, dy, dx = np.meshgrid(*offsets, indexing="ij", sparse=True)
    distance = np.sqrt(dz**2 + dy**2 + dx**2) / radius_mm
    return _soft_inside(1 - distance + rough * _field(rng, (1, 2, 2)), 8)


def _field(rng: np.random.Generator, smoothness: tuple[float, float, float]) -> np.ndarray:
    """Smooth noise (D, H, W) of mean about 0 and deviation 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE, np.float32), smoothness)
    return noise / noise.std()


def _soft_inside(signed: np.ndarray, steepness: float = 30) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(signed * steepness, -30, 30)))


def _paint(hu: np.ndarray, share: np.ndarray, paint: np.ndarray) -> np.ndarray:
    return hu * (1 - share) + paint * share


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    return ndimage.binary_dilation(mask > 0.5, iterations=steps).astype(float)
