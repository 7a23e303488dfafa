"""What reading each case of a raw dataset finds: what is mended, and what refused."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from covid_jax.data.changes import check_label, digests_of
from covid_jax.data.geometry import Volume
from covid_jax.data.labels import read_label
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import check_extent, read_channels
from covid_jax.data.processes import each
from covid_jax.data.raw import Case, RawDataset
from covid_jax.errors import UserError


@dataclass(frozen=True)
class Finding:
    """What reading a raw case found: what was mended, or why it is refused (empty: it is not).

    `read_as` says how its values are read, `digests` is of its raw files.
    """

    case: str
    mended: tuple[str, ...]
    refused: str
    read_as: str = ""
    digests: dict[str, str] = field(default_factory=dict)


def check_dataset(raw: RawDataset, processes: int, plan: Plan | None = None) -> list[Finding]:
    """Reads every case of a raw dataset as it would be prepared by `plan`, and writes nothing."""
    check = functools.partial(_check_case, raw=raw, plan=plan)
    return list(each(check, raw.cases, processes, f"checking {raw.name}"))


def without_refused(raw: RawDataset, findings: Sequence[Finding]) -> RawDataset:
    """The dataset without the cases that check_dataset refused. Raises a UserError if it is all."""
    rest = raw.without({finding.case for finding in findings if finding.refused})
    if not rest.cases:
        raise UserError(f"{raw.folder}: every case of it is refused; see the lines above")
    return rest


def summary(read_as: Sequence[str]) -> str:
    """A line on how the values of a dataset's scans are read."""
    counts = Counter(how for how in read_as if how)
    if not counts:
        return "no scan was read"
    return "values are read " + "; ".join(f"{how} ({n} scans)" for how, n in sorted(counts.items()))


def _check_case(case: Case, raw: RawDataset, plan: Plan | None) -> Finding:
    digests: dict[str, str] = {}
    try:
        digests = digests_of(case)
        channels, label, how = read_case_as(case, raw)
        if plan:
            check_extent(case.images[0], channels[0], plan)
        return Finding(case.name, notes_of(channels, label), "", how, digests)
    except UserError as error:
        return Finding(case.name, (), str(error), digests=digests)


def notes_of(channels: Sequence[Volume], label: Volume) -> tuple[str, ...]:
    """What reading a case mended, each once."""
    return (*dict.fromkeys(note for volume in channels for note in volume.notes), *label.notes)


def read_case(case: Case, raw: RawDataset) -> tuple[tuple[Volume, ...], Volume]:
    """Channels (CT in HU) and label of a raw case. Raises a UserError that names the file."""
    channels, label, _ = read_case_as(case, raw)
    return channels, label


def read_case_as(case: Case, raw: RawDataset) -> tuple[tuple[Volume, ...], Volume, str]:
    """As read_case, and how the values are read."""
    check_label(case)
    channels, how = read_channels(case.images, raw.schemes, raw.intensities)
    space = raw.label_space
    label = read_label(case.label, channels[0], len(space.values) + 1, space.ignored)
    return channels, label, how
