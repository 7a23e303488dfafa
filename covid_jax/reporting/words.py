"""Numbers and names in words."""

from collections.abc import Iterable, Sequence


def folds_told(folds: Sequence[int]) -> str:
    """As "fold 0", "folds 0 and 2", "folds 0 to 4"."""
    folds = sorted(folds)
    if len(folds) == 1:
        return f"fold {folds[0]}"
    if len(folds) > 2 and folds == list(range(folds[0], folds[-1] + 1)):
        return f"folds {folds[0]} to {folds[-1]}"
    return f"folds {told(map(str, folds))}"


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


def counted(number: int, noun: str) -> str:
    """As "1 case", "2 cases"."""
    return f"{number} {noun}" + "s" * (number != 1)
