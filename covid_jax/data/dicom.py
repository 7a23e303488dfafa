"""CT series in DICOM, of files with one slice each or multi-frame ones, by pydicom.

What is below a folder is sorted first: CT volumes, and all else with the reason why it is none.
"""

import contextlib
import itertools
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    LegacyConvertedEnhancedCTImageStorage,
)

from covid_jax.data.geometry import LPS, Volume, from_file_axes
from covid_jax.data.headers import check_affine, one_line
from covid_jax.data.slices import Slice, check_alike, parallel, stack, why_no_volume
from covid_jax.errors import UserError, listed

CT_STORAGE = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)

_SMALL_FRAME = 1 << 26  # bytes of pixels that any file may ask for
_MOST_PACKED = 64  # bytes of pixels for a byte of a file, as RLE packs at most

_HEADER = [
    "Columns",
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "Modality",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PixelSpacing",
    "Rows",
    "SOPClassUID",
    "SamplesPerPixel",
    "SeriesInstanceUID",
    "SharedFunctionalGroupsSequence",
]


def find_series(folder: Path) -> tuple[tuple[tuple[Slice, ...], ...], tuple[str, ...]]:
    """The slices of each CT volume below `folder`, and a line for each kind of file passed over.

    Passed over are files that are not DICOM or not CT (RTSTRUCT, SEG, MR), localizers, and images
    that are no volume, such as a single one. Links are followed. The lines name files alone: what
    else a header says may be of the patient.

    Raises:
      UserError: a file cannot be read, or its header is damaged.
    """
    series: dict[str, list[Slice]] = defaultdict(list)
    others: dict[str, list[Path]] = defaultdict(list)
    for file in files_below(folder):
        with _damage_is_a_user_error(file):
            if not (file.is_file() and is_dicom(file)):
                others["not DICOM"].append(file)
                continue
            header = _read(file, stop_before_pixels=True, specific_tags=_HEADER)
            kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
            if kind not in CT_STORAGE:
                known = kind and kind.name != kind
                others[f"{kind.name if known else 'unknown DICOM'}, not CT"].append(file)
            elif header.get("Modality", "CT") != "CT":
                others[f"of modality {header.Modality}, not CT"].append(file)
            elif header.get("SamplesPerPixel", 1) != 1:
                others["in colour"].append(file)
            else:
                series[str(header.get("SeriesInstanceUID"))] += _slices(file, header)
    volumes = []
    for slices in series.values():
        others["localizer"] += [image.file for image in slices if image.localizer]
        for group in parallel([image for image in slices if not image.localizer]):
            if why := why_no_volume(group):
                others[f"no volume, {why}"] += [image.file for image in group]
            else:
                volumes.append(tuple(group))
    passed_over = (
        f"passed over ({why}): {_some(folder, files)}" for why, files in others.items() if files
    )
    return tuple(volumes), tuple(passed_over)


def is_dicom(file: Path) -> bool:
    """Whether a file begins as DICOM does, or, where it lacks the preamble, as its first elements.

    These are of group 2 or 8, with a type of two letters or, in files without types, a short
    length.
    """
    with file.open("rb") as stream:
        start = stream.read(132)
    if start[128:] == b"DICM":
        return True
    if len(start) < 132 or start[:2] not in (b"\x02\0", b"\x08\0"):
        return False
    has_type = start[4:6].isalpha() and start[4:6].isupper()
    return has_type or int.from_bytes(start[4:8], "little") <= 64


def read_series(folder: Path) -> Volume:
    """The Volume of the one CT volume below `folder`, in HU.

    Its file axes (i, j, k) are a slice's columns, its rows, and the slices in order of position,
    as ITK has them. Notes tell what was passed over, and how far positions are off an even spacing.

    Raises:
      UserError: no CT volume or several; slices missing, doubled, tilted or of another grid than
        the others; a file is damaged, or compressed in a way that no installed decoder reads.
    """
    volumes, passed_over = find_series(folder)
    if not volumes:
        raise UserError(
            f"{folder}: {'; '.join(('no CT volume in it', *passed_over))}; give the folder of a CT "
            "series' DICOM slices, each with its position"
        )
    if len(volumes) > 1:
        raise UserError(_several(folder, volumes))
    (slices,) = volumes
    check_alike(slices)
    ordered, affine, of_positions = stack(folder, slices)
    voxels, of_values = _decoded(ordered)
    check_affine(folder, LPS @ affine)
    volume = from_file_axes(voxels.transpose(2, 1, 0), LPS @ affine)
    return replace(volume, notes=(*passed_over, *of_positions, *of_values))


@contextlib.contextmanager
def _damage_is_a_user_error(path: Path) -> Iterator[None]:
    """Turns what pydicom raises on damaged bytes, and what the system does, into one line.

    And keeps pydicom from warning of what no reader needs, such as a UID that is too long.
    """
    try:
        with disable_value_validation():
            yield
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
        zlib.error,
        pydicom.errors.BytesLengthException,
        pydicom.errors.InvalidDicomError,
    ) as error:
        if isinstance(error, OSError) and error.errno:  # decoders raise it without
            _refuse(error, path)
        raise UserError(
            f"{path}: damaged or not sound ({one_line(error)}); fetch the series again"
        ) from error


def _refuse(error: OSError, path: Path | None = None) -> NoReturn:
    """Says of a file, or of the one that the error names, why the system does not read it."""
    raise UserError(
        f"{path or error.filename}: cannot be read ({error.strerror}); mend that and start again"
    ) from error


def files_below(folder: Path) -> Iterator[Path]:
    """Each file below `folder` once, in order of name, through links too."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if _first(Path(parent, name), seen))
        for name in sorted(files):
            if _first(Path(parent, name), seen):
                yield Path(parent, name)


def _first(path: Path, seen: set[str]) -> bool:
    """Whether what `path` leads to has not been `seen`; from now on it has."""
    there = os.path.realpath(path)
    new = there not in seen
    seen.add(there)
    return new


def _read(file: Path, **options: object) -> pydicom.FileDataset:
    """A DICOM file with or without the preamble; its encoding is stated where it was not."""
    image = pydicom.dcmread(file, force=True, **options)
    if "TransferSyntaxUID" not in image.file_meta:
        implicit, little = image.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return image


def _slices(file: Path, header: pydicom.Dataset) -> list[Slice]:
    """The images of a file."""
    described = len(header.get("PerFrameFunctionalGroupsSequence") or ())
    number = int(header.get("NumberOfFrames") or 1)
    if number != max(described, 1):
        raise UserError(
            f"{file}: {number} frames, and positions of {described}; export the series again"
        )
    slices = []
    for frame in range(number):
        measures = _part(header, frame, "PixelMeasuresSequence")
        orientation = _part(header, frame, "PlaneOrientationSequence")
        position = _part(header, frame, "PlanePositionSequence")
        kind = _part(header, frame, "CTImageFrameTypeSequence").get("FrameType")
        slices.append(
            Slice(
                file=file,
                frame=frame if described else None,
                matrix=(int(header.Rows), int(header.Columns)),
                spacing_mm=_numbers(file, measures, "PixelSpacing", 2),
                orientation=_numbers(file, orientation, "ImageOrientationPatient", 6),
                position_mm=_numbers(file, position, "ImagePositionPatient", 3),
                frame_of_reference=str(header.get("FrameOfReferenceUID")),
                localizer="LOCALIZER" in (kind or header.get("ImageType") or ()),
            )
        )
    return slices


def _part(content: pydicom.Dataset, frame: int, sequence: str) -> pydicom.Dataset:
    """What says something of a frame: one of its functional groups, or else of the shared ones.

    In a file of one slice all is said at its top.
    """
    frames = content.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        return content
    for groups in (frames[frame], *(content.get("SharedFunctionalGroupsSequence") or ())):
        if groups.get(sequence):
            return groups[sequence][0]
    return pydicom.Dataset()


def _numbers(file: Path, part: pydicom.Dataset, tag: str, count: int) -> tuple[float, ...]:
    """The numbers of a tag; none where it is missing or empty."""
    numbers = tuple(float(number) for number in part.get(tag) or ())
    if numbers and (len(numbers) != count or not np.isfinite(numbers).all()):
        raise UserError(f"{file}: its {tag} is not {count} numbers; export the series again")
    return numbers


def _some(folder: Path, files: Iterable[Path]) -> str:
    """The first of the files, and how many more there are."""
    return listed({str(file.relative_to(folder)) for file in files}, most=3)


def _several(folder: Path, volumes: Sequence[Sequence[Slice]]) -> str:
    """The message for more than one volume, and what can be done about it."""
    files = [[image.file for image in slices] for slices in volumes]
    told = (f"{len(of_one)} slices, {_some(folder, of_one)}" for of_one in files)
    tops = [Path(os.path.commonpath([file.parent for file in of_one])) for of_one in files]
    mixed = any(
        file.is_relative_to(top)
        for (top, _), (_, of_other) in itertools.permutations(zip(tops, files, strict=True), 2)
        for file in of_other
    )
    mend = "move the files of one to a folder of its own" if mixed else "give the folder of one"
    return f"{folder}: {len(volumes)} CT volumes ({'; '.join(told)}); {mend}"


def _decoded(slices: Sequence[Slice]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The values (N, rows, columns) in HU, and what is to be said of them."""
    places: dict[Path, list[int]] = defaultdict(list)
    for place, image in enumerate(slices):
        places[image.file].append(place)
    values: dict[int, np.ndarray] = {}
    unstated: dict[tuple[str, ...], Path] = {}
    for file, here in places.items():
        with _damage_is_a_user_error(file):
            content = _read(file)
            _check_decoder(file, content)
            _check_pixels(file, content)
            for place in here:
                frame = slices[place].frame or 0
                scale = _part(content, frame, "PixelValueTransformationSequence")
                stored = pixel_array(content, index=frame)
                if stored.shape != slices[place].matrix:
                    raise ValueError(f"{stored.shape} pixels instead of {slices[place].matrix}")
                values[place] = _rescaled(file, stored, scale)
                unstated.setdefault(_unstated(scale), file)
    missing, file = max(unstated.items(), key=lambda item: len(item[0]))
    if len(unstated) > 1:
        raise UserError(
            f"{file}: has no {' and '.join(missing)}, other slices have; export the series again"
        )
    voxels = np.stack([values[place] for place in range(len(slices))])
    return voxels, (
        (f"without {' and '.join(missing)}: stored values are taken as they are",)
        if missing
        else ()
    )


def _unstated(scale: pydicom.Dataset) -> tuple[str, ...]:
    """What of the way from stored values to HU a header does not say."""
    if "ModalityLUTSequence" in scale:
        return ()
    return tuple(tag for tag in ("RescaleSlope", "RescaleIntercept") if scale.get(tag) is None)


def _rescaled(file: Path, stored: np.ndarray, scale: pydicom.Dataset) -> np.ndarray:
    """Stored values in HU: int16 where that is exact, else float32."""
    if "ModalityLUTSequence" in scale:
        values = apply_modality_lut(stored, scale)
    else:
        slope, intercept = (
            default if scale.get(tag) is None else float(scale[tag].value)
            for tag, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        if slope == 0 or not np.isfinite([slope, intercept]).all():
            raise UserError(
                f"{file}: values times {slope:g} plus {intercept:g} are no HU (RescaleSlope and "
                "RescaleIntercept); export the series again"
            )
        values = stored * slope + intercept
    limits = np.iinfo(np.int16)
    whole = np.array_equal(values, np.rint(values))
    exact = whole and limits.min <= values.min() and values.max() <= limits.max
    return values.astype(np.int16 if exact else np.float32)


def _check_pixels(file: Path, content: pydicom.FileDataset) -> None:
    """Raises a ValueError, before any is decoded, for more pixels than such a file can hold."""
    wanted = int(content.Rows) * int(content.Columns) * int(content.BitsAllocated) // 8
    if wanted > max(_SMALL_FRAME, _MOST_PACKED * file.stat().st_size):
        raise ValueError(f"its header says {wanted} bytes of pixels a frame, more than it can hold")


def _check_decoder(file: Path, content: pydicom.FileDataset) -> None:
    """Raises a UserError, with what is to be installed, where no decoder for the file is there."""
    syntax = content.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise UserError(
            f"{file}: its compression ({syntax.name}) cannot be read; save the series "
            "uncompressed, for example with gdcmconv --raw"
        ) from error
    # Of such values the extra's decoders read those of 8 bits alone.
    if syntax == JPEGExtended12Bit and content.BitsStored > 8:
        packages, there = "pylibjpeg-libjpeg pylibjpeg", "pylibjpeg" in decoder.available_plugins
    else:
        packages, there = "'covid-jax[dicom]'", decoder.is_available
    if not there:
        raise UserError(
            f"{file}: is compressed ({syntax.name}), and no decoder for that is installed; "
            f"pip install {packages}"
        )
