"""Which files are scans, under which names, and what beside them is not taken."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from covid_jax.data.volume import ITK, NIFTI, files_of
from covid_jax.errors import UserError, listed

ENDINGS = tuple(sorted((*NIFTI, *ITK), key=len, reverse=True))


@dataclass(frozen=True)
class Scans:
    """What a folder holds.

    Attributes:
      paths: of each scan, by its name: a file, or a folder with a DICOM series.
      left_out: lines on what stands there and is not taken, each with its number and names.
    """

    paths: dict[str, Path]
    left_out: tuple[str, ...] = ()


@dataclass
class _Rest:
    """What is not taken, by the reason."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, path: Path) -> None:
        self.names[reason].append(path.name)

    def lines(self, folder: Path) -> tuple[str, ...]:
        return tuple(
            f"{folder}: {len(names)} not taken, {reason}: {listed(names)}"
            for reason, names in self.names.items()
        )


def ending(path: Path) -> str:
    """The ending of a scan's file, as it is written there (".NII.GZ"); "" where it has none."""
    lower = path.name.lower()
    return next((path.name[-len(end) :] for end in ENDINGS if lower.endswith(end)), "")


def stem(path: Path) -> str:
    """The file's name without its ending, composed (_composed)."""
    return _composed(path.name.removesuffix(ending(path)) if ending(path) else path.name)


def voxel_files(stems: Iterable[str]) -> set[str]:
    """The names of the files that .mhd files of these stems may keep their voxels in."""
    return {f"{name}{end}" for name in stems for end in (".raw", ".zraw")}


def _composed(name: str) -> str:
    """A name in Unicode's form NFC: macOS writes the same letters in another one."""
    return unicodedata.normalize("NFC", name)


def scans_in(path: Path) -> Scans:
    """The scans at `path`: a file, a folder of DICOM slices, or a folder of files and such folders.

    A scan NAME_0000.nii.gz is of the case NAME, as in nnU-Net's folders, unless NAME_0001 and the
    like are there: these then are scans of their own (cases_in takes them for channels).

    Raises:
      UserError: there are none, or two of one name.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return Scans({_without_channel(stem(path)): path})
    from covid_jax.data.dicom import is_dicom

    found, rest = _sorted(path)
    if not found and any(is_dicom(file) for file in visible(path) if file.is_file()):
        return Scans({_composed(path.resolve().name): path})
    names = {stem: _without_channel(stem) for stem in found}
    # Where NAME_0001 and the like are there, NAME_0000 is one of several scans.
    several = {base_of_channel(name) for name in names if not name.endswith("_0000")}
    names = {stem: stem if name in several else name for stem, name in names.items()}
    numbered = sorted(stem for stem, name in names.items() if stem == name and "_0000" in stem)
    notes = []
    if numbered:
        some = listed(f"{stem} and others" for stem in numbered)
        notes.append(f"{path}: taken as scans, not as channels of one: {some}")

    looked_into = {folder: _series_in(folder) for folder in visible(path) if folder.is_dir()}
    notes += [
        f"{folder}: not taken, {line}"
        for folder, (is_scan, lines) in looked_into.items()
        if not is_scan
        for line in lines or ["no DICOM series in it"]
    ]
    series = [folder for folder, (is_scan, _) in looked_into.items() if is_scan]
    files = [(names[stem], file) for stem, file in found.items()]
    paths = _each_once(path, [*files, *((_composed(folder.name), folder) for folder in series)])
    left_out = rest.lines(path)
    if not paths:
        wanted = f"put {', '.join(NIFTI + ITK)} files or DICOM folders there"
        raise UserError("; ".join([f"{path}: no scan in it; {wanted}", *left_out, *notes]))
    return Scans(paths, (*left_out, *notes))


def cases_in(path: Path, channels: int) -> tuple[dict[str, tuple[Path, ...]], tuple[str, ...]]:
    """The scans at `path`, of as many channels each, and lines on what is not taken.

    Of one channel as scans_in; of several, files NAME_0000, NAME_0001, ... in a folder.

    Raises:
      UserError: there are none, or two of one name.
    """
    if channels == 1:
        one = scans_in(path)
        return {name: (file,) for name, file in one.paths.items()}, one.left_out
    if not path.is_dir():
        raise UserError(
            f"{path}: the network sees {channels} channels; give a folder with NAME_0000, "
            "NAME_0001 and so on"
        )
    files = files_in(path)
    scans, others = channels_of(path, files.paths, channels)
    if not scans:
        wanted = f"{path}: no scan of {channels} channels in it (NAME_0000, NAME_0001, ...)"
        raise UserError("; ".join([wanted, *files.left_out]))
    alone = f"{path}: {len(others)} not taken, by their names no channels: {listed(others)}"
    return scans, (*files.left_out, *([alone] if others else []))


def _series_in(folder: Path) -> tuple[bool, tuple[str, ...]]:
    """Whether a folder is to be read as a DICOM series, and what is said of it if not."""
    from covid_jax.data.dicom import find_series

    try:
        volumes, lines = find_series(folder)
    except UserError:
        return True, ()  # damaged: told where it is read
    return bool(volumes), lines


def masks_in(predictions: Path, references: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The masks in both folders by the names of the references; NAME_0000 and NAME are one case.

    Raises:
      UserError: a folder is missing or empty, or has two files of one name.
    """
    for folder in (predictions, references):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    masks, truths = files_in(predictions), files_in(references)
    for folder, found in ((predictions, masks), (references, truths)):
        if not found.paths:
            wanted = f"{folder}: no mask in it; put {', '.join(NIFTI + ITK)} files there"
            raise UserError("; ".join([wanted, *found.left_out]))
    named: dict[str, Path] = {}
    for name, path in masks.paths.items():
        others = (_without_channel(name), f"{name}_0000")
        free = (other for other in others if other in truths.paths and other not in masks.paths)
        named[name if name in truths.paths else next(free, name)] = path
    return named, truths.paths


def files_in(folder: Path) -> Scans:
    """The scans that are files in `folder`, by their names without ending.

    Raises:
      UserError: two files of one name.
    """
    found, rest = _sorted(folder)
    for path in visible(folder):
        if path.is_dir():
            rest.add("a folder", path)
    return Scans(found, rest.lines(folder))


def _sorted(folder: Path) -> tuple[dict[str, Path], _Rest]:
    """The scans that are files in a folder, and what else stands there but folders."""
    rest = _Rest()
    found: list[tuple[str, Path]] = []
    stems = {stem(file) for file in visible(folder) if ending(file)}
    data_of_mhd = voxel_files(stems)
    for file in sorted(folder.iterdir()):
        probability = re.fullmatch(r"(.+)_probability_\d+", stem(file))
        if file.name.startswith("."):
            rest.add("hidden", file)
        elif file.is_dir() or _composed(file.name) in data_of_mhd:
            pass  # the voxels of the .mhd beside it
        elif not ending(file):
            rest.add("by its ending no scan", file)
        elif probability and probability[1] in stems:
            rest.add("probabilities of a mask beside them", file)
        else:
            found.append((stem(file), file))
    return _each_once(folder, found), rest


def _each_once(folder: Path, named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Scans by their names. Raises a UserError for those of one name."""
    found: dict[str, list[Path]] = defaultdict(list)
    for name, path in named:
        found[name].append(path)
    for name, paths in found.items():
        if len(paths) > 1:
            raise UserError(
                f"{folder}: {' and '.join(path.name for path in paths)} are both of the case "
                f"{name}; keep one of them there"
            )
    return {name: path for name, (path,) in found.items()}


def channels_of(
    folder: Path, paths: Mapping[str, Path], count: int
) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """Scans of `count` channels each, of files NAME_0000, NAME_0001, ... in `folder`.

    Args:
      paths: of the files, by their names without ending.

    Returns:
      the channels' paths by NAME, and the files that are no channel; one that a scan lacks is found
      missing when the scan is read

    Raises:
      UserError: a scan has a channel too many.
    """
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for name, path in paths.items():
        if base_of_channel(name):
            found[base_of_channel(name)][int(name[-4:])] = path
    scans = {name: channels for name, channels in found.items() if 0 in channels}
    many = f"{count} channels" if count > 1 else "one channel"
    if more := [c[k].name for c in scans.values() for k in c if k >= count]:
        raise UserError(
            f"{folder}: {listed(more)} are of other channels, and its scans have {many}; or, if "
            "they are scans of their own, add nnU-Net's _0000 to the name of each"
        )
    taken = {path for channels in scans.values() for path in channels.values()}
    rest = [path.name for path in paths.values() if path not in taken]
    cases = {
        name: tuple(
            channels.get(k, channels[0].with_name(f"{name}_{k:04d}{ending(channels[0])}"))
            for k in range(count)
        )
        for name, channels in scans.items()
    }
    return cases, rest


def _without_channel(name: str) -> str:
    """NAME of NAME_0000, nnU-Net's first channel."""
    return name.removesuffix("_0000") or name


def base_of_channel(name: str) -> str:
    """NAME of NAME_0001 and the like; "" of another."""
    found = re.fullmatch(r"(.+)_\d{4}", name)
    return found[1] if found else ""


def visible(folder: Path) -> list[Path]:
    """What stands in `folder` and is not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def refuse_among(output_dir: Path, scans: Iterable[Path]) -> None:
    """Raises a UserError where masks in `output_dir` would lie among these scans.

    That is a folder that holds one of them, or the folder of a DICOM series or one in it, whatever
    links lead there: a mask could take a scan's place, or be taken for a scan the next time.
    """
    target = output_dir.resolve()
    for scan in scans:
        holds = {scan.parent.resolve(), scan.resolve().parent}
        if scan.is_dir():
            holds |= {file.resolve().parent for file in files_of(scan)}
        if target in holds or scan.resolve() in (target, *target.parents):
            raise UserError(
                f"--output_dir={output_dir}: holds the input {scan}; give a folder of its own"
            )
