"""What a study says in three sentences, made from its numbers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from covid_jax.reporting.kinds import BASELINE, Kind
from covid_jax.reporting.runs import Run, kinds_of
from covid_jax.reporting.statistics import Comparison, summarise
from covid_jax.reporting.tables import comparisons, values_of
from covid_jax.reporting.words import counted, folds_told, p_told, told

_P = 0.05
_MOST_NAMED = 9  # rows in a sentence


@dataclass(frozen=True)
class Findings:
    """A sentence each: what helps or harms, by how much, and what cannot be said."""

    what: str
    how_much: str
    unknown: str


def certain(found: Comparison) -> bool:
    """Whether a difference is beyond chance: its interval is without 0, and p, corrected, small."""
    return found.p_holm < _P and not found.low <= 0 <= found.high


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
        how_much=_how_much(runs, compared, gains, losses),
        unknown=_unknown(runs, compared, data, synthetic),
    )


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
    if not gains and not losses:
        none = f"of {len(compared)} rows none differs"
        if len(compared) == 1:
            none = f"{_named(compared)} does not differ"
        return (
            f"Nothing helps and nothing harms for certain: {none} from scratch by more than "
            "chance may do."
        )
    if len(compared) == 1:
        return f"Against scratch, {_named(compared)} {'helps' if gains else 'harms'}."
    helps = f"{len(gains) or 'none'} help{'s' * (len(gains) < 2)}"
    harms = f"{len(losses) or 'none'} harm{'s' * (len(losses) < 2)}"
    helps += f" ({_named(gains)})" if 0 < len(gains) <= _MOST_NAMED else ""
    harms += f" ({_named(losses)})" if 0 < len(losses) <= _MOST_NAMED else ""
    return f"Against scratch, of {len(compared)} rows {helps}, and {harms}."


def _how_much(
    runs: Sequence[Run],
    compared: Mapping[Kind, Comparison],
    gains: Mapping[Kind, Comparison],
    losses: Mapping[Kind, Comparison],
) -> str:
    if not compared:
        of_kind = {kind: [run for run in runs if run.kind == kind] for kind in kinds_of(runs)}
        means = {kind: summarise(values_of(mine, "dsc")) for kind, mine in of_kind.items()}
        best = max(means, key=lambda kind: means[kind].mean)
        found, folds = means[best], folds_told([*{run.fold for run in of_kind[best]}])
        highest = "The highest mean DSC is that" if len(means) > 1 else "The mean DSC is that"
        interval = f" (95 % interval {found.low:.3f} to {found.high:.3f})" * (found.count > 1)
        return f"{highest} of {_named([best])}, {found.mean:.3f}{interval}, over {folds}."
    scratch = summarise(values_of([run for run in runs if run.kind == BASELINE], "dsc")).mean
    where = f"where scratch has a mean of {scratch:.3f}"
    by = lambda kind: compared[kind].difference  # noqa: E731
    if not gains and not losses:
        largest = max(compared, key=lambda kind: abs(by(kind)))
        the = "The largest difference" if len(compared) > 1 else "The difference"
        return f"{the} in DSC is {_difference(largest, compared)}, {where}."
    parts = []
    most = "largest " * (len(compared) > 1)
    if gains:
        parts.append(f"The {most}gain in DSC is {_difference(max(gains, key=by), compared)}")
    if losses:
        start = f"the {most}loss" if gains else f"The {most}loss in DSC"
        parts.append(f"{start} is {_difference(min(losses, key=by), compared)}")
    return f"{', and '.join(parts)}, {where}."


def _unknown(
    runs: Sequence[Run],
    compared: Mapping[Kind, Comparison],
    data: Sequence[str],
    synthetic: Collection[str],
) -> str:
    parts = []
    open_rows = {kind: found for kind, found in compared.items() if not certain(found)}
    with_zero = [kind for kind, found in open_rows.items() if found.low <= 0 <= found.high]
    corrected = [kind for kind in open_rows if kind not in with_zero]
    if with_zero:
        differ = "differs" if len(with_zero) == 1 else "differ"
        parts.append(f"whether {_named(with_zero)} {differ} from scratch (the interval holds 0)")
    if corrected:
        differ = "differs" if len(corrected) == 1 else "differ"
        of = f" after correction for {len(compared)} rows" if len(compared) > 1 else ""
        parts.append(f"whether {_named(corrected)} {differ} from it (p is {_P} or more{of})")
    if compared:
        cases = max(found.count for found in compared.values())
        lowest = 2 / 2**cases
        if lowest >= _P:
            parts.append(
                f"what more test cases would show (of {cases}, p is {min(1.0, lowest):.3g} at "
                "least)"
            )
    folds = {run.fold for run in runs}
    seeds = max(len({run.config.seed for run in runs if run.fold == fold}) for fold in folds)
    if seeds == 1:
        parts.append("how far another seed would move a row (each fold has one)")
    elif seeds == 2:
        parts.append("well how far another seed would move a row (each fold has two)")
    if len(folds) == 1:
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
    """As "+0.024 (95 % interval +0.008 to +0.041, p 0.01 by Holm) for body from msd"."""
    found = compared[kind]
    p = f"p {p_told(found.p_holm)}" + " by Holm" * (len(compared) > 1)
    interval = f"95 % interval {found.low:+.3f} to {found.high:+.3f}"
    if found.count == 1:
        interval = "of one case, so without an interval"
    return f"{found.difference:+.3f} ({interval}, {p}) for {_named([kind])}"


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
