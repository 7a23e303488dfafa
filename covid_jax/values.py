"""Values of files that others wrote: of the kind that is wanted, or refused by their key.

A kind is a function from what the file has to the value, which raises a ValueError that says in
words what it takes.
"""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from covid_jax.errors import UserError
from covid_jax.files import is_number

T = TypeVar("T")
Kind = Callable[[Any], T]

_NEEDED: Any = object()
_OF_EACH = "of each in it "
_SHORT = reprlib.Repr()  # a small file may hold what is long to tell
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 4, 100, 100
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 10


def read(
    said: Mapping[Any, Any], key: Any, kind: Kind[T], default: Any = _NEEDED, whose: str = "its"
) -> T:
    """What a file says under `key`, as a value of a kind; `default` where it has no such key.

    Args:
      whose: what the key is of, in the message.

    Raises:
      UserError: it is of another kind, or missing without a default.
    """
    if key not in said and default is not _NEEDED:
        return default
    try:
        return kind(said.get(key))
    except ValueError as wanted:
        if key in said:
            value = _SHORT.repr(said[key])
            raise UserError(f"{whose} {key} is {value}; wanted: {wanted}") from wanted
        raise UserError(f"{whose} {key} is missing; add it: {wanted}") from wanted


def number(value: Any) -> float:
    """A finite number."""
    value = _plain(value)
    if not is_number(value):
        raise ValueError("a number")
    return float(value)


def whole(value: Any) -> int:
    """A whole number, which may be written as 1.0."""
    value = _plain(value)
    if not (is_number(value) and float(value).is_integer()):
        raise ValueError("a whole number")
    return int(value)


def flag(value: Any) -> bool:
    """True or false, and nothing that may be taken for it."""
    value = _plain(value)
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def mapping(value: Any) -> Mapping[Any, Any]:
    """Values by their keys."""
    if not isinstance(value, Mapping):
        raise ValueError("values by their keys, {...}")
    return value


def several(kind: Kind[T], count: int | None = None) -> Kind[tuple[T, ...]]:
    """A list of values of a kind, of `count` of them if that is given, as a tuple."""

    def read_each(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list | tuple | np.ndarray) or count not in (None, len(value)):
            raise ValueError("a list" + (f" of {count}" if count else ""))
        try:
            return tuple(map(kind, value))
        except ValueError as wanted:
            told = str(wanted).removeprefix(_OF_EACH)  # once, of lists in lists
            raise ValueError(f"{_OF_EACH}{told}") from wanted

    return read_each


def maybe(kind: Kind[T]) -> Kind[T | None]:
    """A value of a kind, or null."""

    def read_it(value: Any) -> T | None:
        try:
            return None if value is None else kind(value)
        except ValueError as wanted:
            raise ValueError(f"{wanted}, or null") from wanted

    return read_it


def _plain(value: Any) -> Any:
    """A number or flag of NumPy's, which pickles have, as Python's."""
    return value.item() if isinstance(value, np.generic) else value
