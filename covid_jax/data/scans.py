"""Which files are scans, under which names, and what beside them is not taken."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from covid_jax.data.volume import ITK, NIFTI
from covid_jax.errors import UserError

ENDINGS = tuple(sorted((*NIFTI, *ITK), key=len, reverse=True))
_MOST_NAMED = 8


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
    """The file's name without its ending."""
    return path.name.removesuffix(ending(path)) if ending(path) else path.name


def case_name(path: Path) -> str:
    """The name of a scan's case: without the ending, and without nnU-Net's _0000 of a channel."""
    return stem(path).removesuffix("_0000") or stem(path)


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def scans_in(path: Path) -> Scans:
    """The scans at `path`: a file, a folder of files, of DICOM slices, or of folders of such.

    A scan NAME_0000.nii.gz is of the case NAME, as in nnU-Net's folders.

    Raises:
      UserError: there are none, or two of one name.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return Scans({case_name(path): path})
    found = files_in(path)
    if found.paths:
        return found
    from covid_jax.data.dicom import find_series, is_dicom

    files = [file for file in visible(path) if file.is_file()]
    if any(is_dicom(file) for file in files):
        return Scans({path.resolve().name: path})
    looked_into = {f: find_series(f) for f in visible(path) if f.is_dir()}
    folders = {folder.name: folder for folder, (volumes, _) in looked_into.items() if volumes}
    passed_over = [
        f"{folder}: {line}"
        for folder, (volumes, lines) in looked_into.items()
        if not volumes
        for line in lines
    ]
    if not folders:
        raise UserError(
            "; ".join(
                [
                    f"{path}: no scan in it; put {', '.join(NIFTI + ITK)} files or DICOM folders "
                    "there",
                    *found.left_out,
                    *passed_over,
                ]
            )
        )
    rest = _Rest()
    for other in sorted(path.iterdir()):
        if other.name not in folders:
            rest.add("no scan and no folder of a DICOM series", other)
    return Scans(folders, (*rest.lines(path), *passed_over))


def files_in(folder: Path) -> Scans:
    """The scans that are files in `folder`, by case.

    Raises:
      UserError: two files of one case.
    """
    rest = _Rest()
    found: dict[str, list[Path]] = defaultdict(list)
    stems = {stem(file) for file in visible(folder) if ending(file)}
    data_of_mhd = {f"{name}{end}" for name in stems for end in (".raw", ".zraw")}
    for file in sorted(folder.iterdir()):
        channel = re.fullmatch(r"(.+)_\d{4}", stem(file))
        probability = re.fullmatch(r"(.+)_probability_\d+", stem(file))
        if file.name.startswith("."):
            rest.add("hidden", file)
        elif file.is_dir():
            rest.add("a folder", file)
        elif file.name in data_of_mhd:
            pass  # the voxels of the .mhd beside it
        elif not ending(file):
            rest.add("by its ending no scan", file)
        elif probability and probability[1] in stems:
            rest.add("probabilities of a mask beside them", file)
        elif channel and not stem(file).endswith("_0000") and f"{channel[1]}_0000" in stems:
            rest.add("another channel of a scan beside it", file)
        else:
            found[case_name(file)].append(file)
    for name, files in found.items():
        if len(files) > 1:
            raise UserError(
                f"{folder}: {' and '.join(file.name for file in files)} are both of the case "
                f"{name}; keep one of them there"
            )
    return Scans({name: files[0] for name, files in found.items()}, rest.lines(folder))


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
        if target in holds or scan.resolve() in (target, *target.parents):
            raise UserError(
                f"--output_dir={output_dir}: holds the input {scan}; give a folder of its own"
            )
