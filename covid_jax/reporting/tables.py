"""The runs of a study as tables: those of the paper beside its numbers where it is of its data."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

from covid_jax.evaluation.metrics import EXTRAS, METRICS, not_over_labels
from covid_jax.reporting.kinds import BASELINE, Kind
from covid_jax.reporting.paper import FOLDS, Pair, Paper, PaperRow
from covid_jax.reporting.runs import Run, kinds_of
from covid_jax.reporting.statistics import Comparison, Summary, Trial, Values, compare, summarise
from covid_jax.reporting.words import counted, seen_told, told, trials_told

HEADINGS = {metric.name: metric.heading for metric in METRICS}
_WITHIN = {metric.name: metric.within for metric in METRICS}
Trials = tuple[Trial, ...]
R = TypeVar("R")
_NOT_HERE = "not in this study: the paper over folds 0 to 4"


@dataclass(frozen=True)
class Cell:
    """A metric of some runs, beside the paper's.

    Attributes:
      runs: the names of the folders that it comes from.
      ours: missing where there is no run.
      paper: mean and deviation, missing where the paper prints none.
    """

    runs: tuple[str, ...]
    ours: Summary | None
    paper: Pair | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's mean."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper[0]

    @property
    def outside(self) -> bool | None:
        """Whether our interval excludes the paper's mean."""
        if self.ours is None or self.paper is None:
            return None
        return not self.ours.low <= self.paper[0] <= self.ours.high


@dataclass(frozen=True)
class Seconds:
    """Of an epoch of `steps` steps: training alone, the validation after it, and the paper's."""

    training: float
    validation: float
    steps: int
    paper: float | None = None


@dataclass(frozen=True)
class Row:
    """A kind of run with its cells by column.

    Attributes:
      trials: whose runs it has; none of a row that the paper alone has.
      seen: the test cases that a network of the row was trained on, whose scores are no test.
    """

    kind: Kind
    trials: Trials
    cells: dict[str, Cell]
    seconds: Seconds | None = None
    seen: tuple[str, ...] = ()

    @property
    def folds(self) -> tuple[int, ...]:
        """Whose runs it has."""
        return tuple(sorted({trial.fold for trial in self.trials}))

    @property
    def label(self) -> str:
        """The kind in words, with a word on test cases that were seen."""
        return self.kind.label + (f" ({seen_told(self.seen)})" if self.seen else "")


@dataclass(frozen=True)
class Group:
    """Columns that are shown together, by key with their headings.

    Attributes:
      title: of these columns, where the table has others.
      folded: a page folds them away.
    """

    headings: dict[str, str]
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Table:
    """Rows, those of the same folds and seeds together; and groups of their columns.

    Attributes:
      name: of its files.
      told: what else is to be said of it.
    """

    name: str
    title: str
    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    told: str = ""

    @property
    def sections(self) -> list[tuple[str, list[Row]]]:
        """The rows by trials; so that no column mixes means over others."""
        return by_trials(self.rows, lambda row: row.trials)

    @property
    def beside_paper(self) -> bool:
        """Whether it has a number of the paper."""
        return any(cell.paper for row in self.rows for cell in row.cells.values())


def by_trials(rows: Iterable[R], trials_of: Callable[[R], Trials]) -> list[tuple[str, list[R]]]:
    """Rows over the same folds and seeds together, those over the most first, with what these are.

    Rows over others are not to be compared with them.
    """
    rows = sorted(rows, key=lambda row: (-len(trials_of(row)), trials_of(row)))
    seeds = len({trial.seed for row in rows for trial in trials_of(row)}) > 1
    return [
        (trials_told(trials, seeds) if trials else _NOT_HERE, list(alike))
        for trials, alike in itertools.groupby(rows, trials_of)
    ]


def all_tables(runs: Sequence[Run], paper: Paper) -> tuple[Table, ...]:
    """Tables I to III, a fourth of metrics that the paper lacks, a fifth of each label's DSC.

    Of several labels alone there is a fifth; of several folds Table III once more by fold. The
    paper's rows come first, also where no run is there yet, then kinds of run that it lacks.
    """
    tables = [_table_1(runs, paper), _table_2(runs, paper), _table_3(runs, paper)]
    if len(_folds(runs)) > 1:
        tables.append(_table_3_by_fold(runs, paper))
    tables.append(_table_4(runs))
    if any(run.labels for run in runs):
        tables.append(_table_5(runs))
    return tuple(tables)


def comparisons(runs: Sequence[Run], metric: str) -> dict[Kind, Comparison]:
    """Every kind of run against scratch in the folds and seeds that both have, if any."""
    scratch = values_of(_of(runs, BASELINE), metric)
    others = [kind for kind in kinds_of(runs) if kind != BASELINE]
    pairs = {kind: (values_of(_of(runs, kind), metric), scratch) for kind in others}
    compared = compare(pairs, _WITHIN[metric])
    for kind, found in compared.items():
        both = [run for run in runs if run.kind in (kind, BASELINE) and run.trial in found.trials]
        compared[kind] = replace(found, seen=_seen(both))
    return compared


def compared_told(compared: Mapping[Kind, Comparison]) -> list[tuple[str, list[Kind]]]:
    """The kinds that were compared over the same folds and seeds together, with what these are."""
    return by_trials(compared, lambda kind: compared[kind].trials)


def values_of(runs: Sequence[Run], metric: str) -> Values:
    """Of each of these runs, its fold and seed with the value of every case that has one."""
    found = {run.trial: run.values(metric) for run in runs}
    return {trial: values for trial, values in found.items() if values}


def summary_of(runs: Sequence[Run], metric: str) -> Summary | None:
    """A metric over these runs; None where no case has it."""
    values = values_of(runs, metric)
    return summarise(values, _WITHIN[metric]) if values else None


def machines_told(runs: Sequence[Run]) -> str:
    """A sentence where runs were trained on other machines; empty where all are alike."""
    counts = Counter(run.machine for run in runs if run.machine)
    if len(counts) < 2:
        return ""
    of_each = told(f"{counted(n, 'run')} on {machine}" for machine, n in counts.items())
    return f"Seconds are of unlike machines ({of_each}), and are not to be compared."


def _table_1(runs: Sequence[Run], paper: Paper) -> Table:
    metrics, folds = ("dsc", "nsd"), FOLDS if paper.table_1 else _folds(runs)
    rows = []
    for kind, theirs in _kinds(runs, paper, paper.table_1).items():
        mine = _of(runs, kind)
        cells = {f"{name}_avg": _cell(mine, name, theirs) for name in metrics}
        for name, fold in itertools.product(metrics, folds):
            here = [run for run in mine if run.fold == fold]
            beside = theirs.over(name, [fold]) if theirs else None
            cells[f"{name}_fold{fold}"] = replace(_cell(here, name), paper=beside)
        rows.append(_row(kind, mine, cells))
    groups = [Group({f"{name}_avg": HEADINGS[name] for name in metrics})]
    if len(folds) > 1:
        for name in metrics:
            headings = {f"{name}_fold{k}": f"{HEADINGS[name]}, fold {k}" for k in folds}
            groups.append(Group(headings, f"{HEADINGS[name]} of each fold", folded=True))
    title = _titled("Table I", "DSC and NSD", paper)
    return Table("1", title, tuple(groups), _in_order(rows), _empty_told(runs))


def _table_2(runs: Sequence[Run], paper: Paper) -> Table:
    metrics = ("sensitivity", "f1", "accuracy")
    rows = []
    for kind, theirs in _kinds(runs, paper, paper.table_2).items():
        mine = _of(runs, kind)
        rows.append(_row(kind, mine, {m: _cell(mine, m, theirs) for m in metrics}))
    title, told = _titled("Table II", "sensitivity, F1 and accuracy", paper), ""
    if paper.table_2 and any(row.folds not in ((), FOLDS) for row in rows):
        told = "The paper has F1 and accuracy over its five folds alone."
    return Table("2", title, (_headed(metrics),), _in_order(rows), told)


def _table_3(runs: Sequence[Run], paper: Paper) -> Table:
    """The five strategies of the paper, or every kind of run."""
    kinds = list(_kinds(runs, paper, paper.table_3))
    table = seconds_table(runs, kinds, paper, ("dsc", "nsd", "sensitivity"))
    title = _titled("Table III", "the strategies, and the seconds of an epoch", paper)
    return replace(table, title=title)


def _table_3_by_fold(runs: Sequence[Run], paper: Paper) -> Table:
    whole = _table_3(runs, paper)
    kinds = {row.kind for row in whole.rows}
    rows: list[Row] = []
    for fold in _folds(runs):
        here = [run for run in runs if run.fold == fold and run.kind in kinds]
        of_fold = seconds_table(here, kinds_of(here), paper, list(whole.groups[0].headings))
        rows += of_fold.rows
    groups = (replace(whole.groups[0], title="The same of each fold", folded=True),)
    return Table("3_folds", f"{whole.title}, by fold", groups, tuple(rows), whole.told)


def seconds_table(
    runs: Sequence[Run], kinds: Sequence[Kind], paper: Paper, metrics: Sequence[str]
) -> Table:
    """Kinds of run with the seconds of an epoch, which are medians over runs."""
    rows = []
    for kind in kinds:
        mine, theirs = _of(runs, kind), paper.row(kind)
        folds, seconds = _folds(mine), None
        if mine:
            seconds = Seconds(
                median(run.epoch_seconds for run in mine),
                median(run.validation_seconds for run in mine),
                mine[0].config.steps_per_epoch,
                theirs.seconds(folds) if theirs else None,
            )
        cells = {name: _cell(mine, name, theirs) for name in metrics}
        rows.append(_row(kind, mine, cells, seconds))
    shown = [run for run in runs if run.kind in kinds]
    return Table("3", "", (_headed(metrics),), _in_order(rows), machines_told(shown))


def _table_4(runs: Sequence[Run]) -> Table:
    several = any(run.labels for run in runs)
    there = [name for name in EXTRAS if any(run.values(name) for run in runs)]
    metrics = there if several else EXTRAS
    rows = []
    for kind in kinds_of(runs):
        mine = _of(runs, kind)
        rows.append(_row(kind, mine, {name: _cell(mine, name) for name in metrics}))
    noun = label_noun(runs)
    lacks = not_over_labels(lambda metric: metric.heading.partition(",")[0], noun)
    over_labels = f"Over {noun}s {lacks}." if several else ""
    told = " ".join(filter(None, [over_labels, _fewer_told(runs, metrics)]))
    return Table("4", "Distance and volume", (_headed(metrics),), _in_order(rows), told)


def _fewer_told(runs: Sequence[Run], metrics: Sequence[str]) -> str:
    """Of which rows a metric is over fewer cases than there are, as a distance to nothing is none.

    What a row does not find is then left out of its mean, and flatters it.
    """
    lines = []
    for name, kind in itertools.product(metrics, kinds_of(runs)):
        tests = [case.get(name) for run in _of(runs, kind) for case in run.cases.values()]
        if 0 < (have := sum(value is not None for value in tests)) < len(tests):
            lines.append(f"{HEADINGS[name]} of {kind.label} is over {have} of {len(tests)} tests")
    if not lines:
        return ""
    return f"A case is left out where a mask or its reference has no voxel: {'; '.join(lines)}."


def _table_5(runs: Sequence[Run]) -> Table:
    names = dict.fromkeys(name for run in runs for name in run.labels)
    rows = []
    for kind in kinds_of(runs):
        mine, cells = _of(runs, kind), {}
        for name in names:
            have = [replace(run, cases=run.labels[name]) for run in mine if name in run.labels]
            cells[name] = _cell(have, "dsc")
        rows.append(_row(kind, mine, cells))
    groups, noun = (Group({name: name for name in names}),), label_noun(runs)
    told = f"The other tables have the mean over {noun}s. {_empty_told(runs)}".strip()
    return Table("5", f"DSC of each {noun}", groups, _in_order(rows), told)


def label_noun(runs: Sequence[Run]) -> str:
    """What the parts of a mask are that are scored: "label" or "region"."""
    return "region" if any(run.config.label_space.regions for run in runs) else "label"


def _empty_told(runs: Sequence[Run]) -> str:
    """How cases count whose reference lacks a label, where there are such."""
    total = {case for run in runs for case in run.cases}
    without: dict[str, frozenset[str]] = {}
    for name, cases in ((name, cases) for run in runs for name, cases in run.without.items()):
        without[name] = without.get(name, frozenset()) | cases
    of = f"of {counted(len(total), 'reference')}"
    lacks = [
        f"{len(cases)} {of} {'has' if len(cases) == 1 else 'have'} no {name}"
        for name, cases in without.items()
        if cases
    ]
    if not lacks:
        return ""
    noun = label_noun(runs)
    return (
        f"Where neither mask has a {noun} its DSC and NSD are 1, and 0 where one alone has it: "
        f"{told(lacks)}."
    )


def _titled(number: str, title: str, paper: Paper) -> str:
    return f"{number}: {title}" if paper.table_1 else title[0].upper() + title[1:]


def _headed(metrics: Sequence[str]) -> Group:
    return Group({name: HEADINGS[name] for name in metrics})


def _folds(runs: Sequence[Run]) -> tuple[int, ...]:
    return tuple(sorted({run.fold for run in runs}))


def _row(
    kind: Kind, runs: Sequence[Run], cells: dict[str, Cell], seconds: Seconds | None = None
) -> Row:
    return Row(kind, tuple(sorted(run.trial for run in runs)), cells, seconds, _seen(runs))


def _seen(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(sorted({case for run in runs for case in run.seen}))


def _in_order(rows: Sequence[Row]) -> tuple[Row, ...]:
    """As the sections have them."""
    return tuple(row for _, of in by_trials(rows, lambda row: row.trials) for row in of)


def _kinds(
    runs: Sequence[Run], paper: Paper, printed: Sequence[PaperRow]
) -> dict[Kind, PaperRow | None]:
    """The kinds of a table's rows with the paper's row: those of the paper, then what it lacks."""
    kinds: dict[Kind, PaperRow | None] = {row.kind: row for row in printed}
    everywhere = {row.kind for row in paper.table_1}
    return kinds | {kind: None for kind in kinds_of(runs) if kind not in everywhere}


def _of(runs: Sequence[Run], kind: Kind) -> list[Run]:
    return [run for run in runs if run.kind == kind]


def _cell(runs: Sequence[Run], metric: str, theirs: PaperRow | None = None) -> Cell:
    """Of runs, beside the paper's over the same folds, or over all where there are no runs."""
    paper = theirs.over(metric, _folds(runs) or FOLDS) if theirs else None
    names = tuple(run.name for run in runs)
    return Cell(names, summary_of(runs, metric), paper)
