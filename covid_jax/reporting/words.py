"""Numbers and names in words."""

from collections.abc import Iterable, Sequence


def folds_told(folds: Sequence[int]) -> str:
    """As "fold 0", "folds 0 and 2", "folds 0 to 4"."""
    return _numbered("fold", folds)


def trials_told(trials: Iterable[tuple[int, int]], seeds: bool) -> str:
    """Folds, and their seeds if asked: "folds 0 and 2, seeds 0 to 2", "fold 0, seed 1; ..."."""
    of_fold: dict[int, list[int]] = {}
    for fold, seed in trials:
        of_fold.setdefault(fold, []).append(seed)
    if not seeds:
        return folds_told([*of_fold])
    alike: dict[str, list[int]] = {}
    for fold, own in of_fold.items():
        alike.setdefault(_numbered("seed", own), []).append(fold)
    return "; ".join(f"{folds_told(folds)}, {own}" for own, folds in alike.items())


def seen_told(cases: Iterable[str]) -> str:
    """What is to be said of a row that was tested on cases that its networks were trained on."""
    return f"trained on {counted(len([*cases]), 'test case')}"


def told(names: Iterable[str]) -> str:
    """As "a", "a and b", "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def p_told(p: float) -> str:
    """As "0.16", "0.0499", "< 0.001"; never 0.05 of what is below it."""
    if p < 0.001:
        return "< 0.001"
    texts = (f"{p:.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if (float(text) < 0.05) == (p < 0.05))


def _numbered(noun: str, numbers: Sequence[int]) -> str:
    numbers = sorted(numbers)
    if len(numbers) == 1:
        return f"{noun} {numbers[0]}"
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{noun}s {numbers[0]} to {numbers[-1]}"
    return f"{noun}s {told(map(str, numbers))}"


def counted(number: int, noun: str) -> str:
    """As "1 case", "2 cases"."""
    return f"{number} {noun}" + "s" * (number != 1)
