"""What a study says in three sentences, made from its numbers."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from covid_jax.errors import listed
from covid_jax.reporting.kinds import BASELINE, Kind
from covid_jax.reporting.runs import Run, kinds_of
from covid_jax.reporting.statistics import Comparison
from covid_jax.reporting.tables import comparisons, summary_of
from covid_jax.reporting.words import counted, folds_told, p_told, seen_told, told, trials_told

_P = 0.05
_MOST_NAMED = 9  # rows in a sentence


@dataclass(frozen=True)
class Findings:
    """A sentence each: what helps or harms, by how much, and what cannot be said."""

    what: str
    how_much: str
    unknown: str


def certain(found: Comparison) -> bool:
    """Whether a difference is beyond chance: its interval is without 0, and p, corrected, small.

    Of cases that a network was trained on it never is.
    """
    return not found.seen and found.p_holm < _P and not found.low <= 0 <= found.high


def findings(runs: Sequence[Run], data: Sequence[str], synthetic: Collection[str]) -> Findings:
    """What runs say of the DSC, of which there is at least one.

    Args:
      data: the datasets that the runs are trained and tested on.
      synthetic: those datasets, and those of what the runs started from, that are synthetic.
    """
    compared = comparisons(runs, "dsc")
    sure = {kind: found for kind, found in compared.items() if certain(found)}
    gains = {kind: found for kind, found in sure.items() if found.difference > 0}
    losses = {kind: found for kind, found in sure.items() if found.difference < 0}
    return Findings(
        what=_what(runs, compared, gains, losses),
        how_much=_how_much(runs, _tests(compared) or compared, gains, losses),
        unknown=_unknown(runs, compared, data, synthetic),
    )


def _tests(compared: Mapping[Kind, Comparison]) -> dict[Kind, Comparison]:
    """Those that no network had seen a case of."""
    return {kind: found for kind, found in compared.items() if not found.seen}


def _few(compared: Mapping[Kind, Comparison]) -> bool:
    """Whether there are too few cases for any difference to be beyond chance."""
    return any(found.lowest_p >= _P for found in compared.values())


def _what(
    runs: Sequence[Run],
    compared: Mapping[Kind, Comparison],
    gains: Mapping[Kind, Comparison],
    losses: Mapping[Kind, Comparison],
) -> str:
    kinds = kinds_of(runs)
    if not compared:
        if BASELINE not in kinds:
            return (
                f"Nothing can be said of what helps: no run of scratch is there to compare "
                f"{_named(kinds)} with."
            )
        if len(kinds) == 1:
            return "Nothing can be said of what helps: scratch alone is there."
        return (
            "Nothing can be said of what helps: no other run is there in a fold and by a seed that "
            "scratch has."
        )
    tests = _tests(compared)
    if not tests:
        seen = {case for found in compared.values() for case in found.seen}
        return (
            f"Nothing can be said of what helps: networks of {_named(compared)} or of scratch were "
            f"{seen_told(seen)} ({listed(seen)})."
        )
    if _few(compared):
        cases = max(found.count for found in compared.values())
        lowest = max(found.lowest_p for found in compared.values())
        rows = f" for {len(compared)} rows" * (len(compared) > 1)
        return (
            f"There are too few test cases to tell what helps: of {cases}, p cannot fall below "
            f"{p_told(lowest)}{rows}."
        )
    if not gains and not losses:
        none = f"of {len(tests)} rows none differs"
        if len(tests) == 1:
            none = f"{_named(tests)} does not differ"
        return (
            f"Nothing helps and nothing harms for certain: {none} from scratch by more than "
            "chance may do."
        )
    seeds = _seeds({kind: found.trials for kind, found in {**gains, **losses}.items()})
    against = "Against scratch" + " and by one seed a fold" * (max(seeds.values()) == 1)
    if len(tests) == 1:
        return f"{against}, {_named(tests)} {'helps' if gains else 'harms'}."
    helps = f"{len(gains) or 'none'} help{'s' * (len(gains) < 2)}"
    harms = f"{len(losses) or 'none'} harm{'s' * (len(losses) < 2)}"
    helps += f" ({_named(gains)})" if 0 < len(gains) <= _MOST_NAMED else ""
    harms += f" ({_named(losses)})" if 0 < len(losses) <= _MOST_NAMED else ""
    return f"{against}, of {len(tests)} rows {helps}, and {harms}."


def _seeds(trials: Mapping[Kind, Sequence[tuple[int, int]]]) -> dict[Kind, int]:
    """The fewest seeds that a row has in a fold, of the folds and seeds of its runs."""
    return {kind: min(Counter(f for f, _ in each).values()) for kind, each in trials.items()}


def _how_much(
    runs: Sequence[Run],
    compared: Mapping[Kind, Comparison],
    gains: Mapping[Kind, Comparison],
    losses: Mapping[Kind, Comparison],
) -> str:
    if not compared:
        of_kind = {kind: [run for run in runs if run.kind == kind] for kind in kinds_of(runs)}
        means = {
            kind: found for kind, mine in of_kind.items() if (found := summary_of(mine, "dsc"))
        }
        best = max(means, key=lambda kind: means[kind].mean)
        found, folds = means[best], folds_told([*{run.fold for run in of_kind[best]}])
        highest = "The highest mean DSC is that" if len(means) > 1 else "The mean DSC is that"
        interval = f" (95 % interval {found.low:.3f} to {found.high:.3f})" * (found.count > 1)
        return f"{highest} of {_named([best])}, {found.mean:.3f}{interval}, over {folds}."
    by = lambda kind: compared[kind].difference  # noqa: E731
    if not gains and not losses:
        largest = max(compared, key=lambda kind: abs(by(kind)))
        the = "The largest difference" if len(compared) > 1 else "The difference"
        return f"{the} in DSC is {_difference(largest, compared)}."
    parts = []
    most = "largest " * (len(compared) > 1)
    if gains:
        parts.append(f"The {most}gain in DSC is {_difference(max(gains, key=by), compared)}")
    if losses:
        start = f"the {most}loss" if gains else f"The {most}loss in DSC"
        parts.append(f"{start} is {_difference(min(losses, key=by), compared)}")
    return f"{', and '.join(parts)}."


def _unknown(
    runs: Sequence[Run],
    compared: Mapping[Kind, Comparison],
    data: Sequence[str],
    synthetic: Collection[str],
) -> str:
    parts, tests = [], _tests(compared)
    open_rows = {kind: found for kind, found in tests.items() if not certain(found)}
    with_zero = [kind for kind, found in open_rows.items() if found.low <= 0 <= found.high]
    corrected = [kind for kind in open_rows if kind not in with_zero and not _few(compared)]
    if with_zero:
        differ = "differs" if len(with_zero) == 1 else "differ"
        parts.append(f"whether {_named(with_zero)} {differ} from scratch (the interval holds 0)")
    if corrected:
        differ = "differs" if len(corrected) == 1 else "differ"
        of = f" after correction for {len(compared)} rows" if len(compared) > 1 else ""
        parts.append(f"whether {_named(corrected)} {differ} from scratch (p is {_P} or more{of})")
    if _few(compared):
        parts.append("what more test cases would show")
    if tests and (seen_rows := [kind for kind in compared if kind not in tests]):
        seen = {case for kind in seen_rows for case in compared[kind].seen}
        parts.append(
            f"how {_named(seen_rows)} would do on new cases (networks were {seen_told(seen)}: "
            f"{listed(seen)})"
        )
    trials = {kind: found.trials for kind, found in compared.items()} or {
        kind: tuple(run.trial for run in runs if run.kind == kind) for kind in kinds_of(runs)
    }
    fewest = _seeds(trials)
    for number, words in {
        1: "one seed a fold does not tell",
        2: "two seeds a fold tell little",
    }.items():
        if moved := [kind for kind, seeds in fewest.items() if seeds == number]:
            which = "a row" if len(moved) == len(fewest) else _named(moved)
            parts.append(f"how far another seed would move {which} ({words})")
    if len({run.fold for run in runs}) == 1:
        parts.append("what other training cases would give (there is one fold)")
    own, before = set(synthetic) & set(data), set(synthetic) - set(data)
    if before:
        made = told(sorted(before))
        parts.append(f"what pre-training on real data would do, as it was on SYNTHETIC {made}")
    if own:
        parts.append(f"anything of real scans, as {told(sorted(own))} is SYNTHETIC")
    if not parts:
        cases = len({case for run in runs for case in run.cases})
        parts.append(f"how it is in scans unlike the {counted(cases, 'test case')} here")
    return f"It is not known {'; '.join(parts)}."


def _difference(kind: Kind, compared: Mapping[Kind, Comparison]) -> str:
    """The difference of a row with all that it is of.

    As "+0.024 on scratch's 0.481 (95 % interval +0.008 to +0.041, p 0.01 by Holm, ahead in 15 of 20
    cases) for body from msd"; over which folds and seeds, where other rows have others.
    """
    found = compared[kind]
    p = f"p {p_told(found.p_holm)}" + " by Holm" * (found.p_holm != found.p)
    interval = f"95 % interval {found.low:+.3f} to {found.high:+.3f}"
    if found.count == 1:
        interval = "of one case, so without an interval"
    ahead = f"ahead in {found.ahead} of {counted(found.count, 'case')}"
    seen = f", networks {seen_told(found.seen)}" if found.seen else ""
    over = ""
    if len({each.trials for each in compared.values()}) > 1:
        seeds = len({seed for each in compared.values() for _, seed in each.trials}) > 1
        over = f" over {trials_told(found.trials, seeds)}"
    return (
        f"{found.difference:+.3f} on scratch's {found.baseline:.3f} ({interval}, {p}, "
        f"{ahead}{seen}) for {_named([kind])}{over}"
    )


def _named(kinds: Collection[Kind]) -> str:
    """As "body from msd and nsclc and multi_encoder from msd"; of very many how many there are."""
    if len(kinds) > _MOST_NAMED:
        return f"{len(kinds)} rows"
    variants: dict[tuple[str, str], list[str]] = {}
    for kind in kinds:
        variants.setdefault((kind.strategy, kind.source), []).append(kind.variant)
    starts: dict[str, list[str]] = {}
    for (strategy, source), of_source in variants.items():
        which = f" ({told(name or 'plain' for name in of_source)})" if any(of_source) else ""
        verb, name = (strategy, "") if source == "none" else (f"{strategy} from ", source)
        starts.setdefault(verb, []).append(name + which)
    return told(verb + told(names) for verb, names in starts.items())
