"""Configs from files: those of get_config(name), and the JSON that a run keeps of its own."""

import contextlib
import dataclasses
import importlib.util
import inspect
import json
import re
import traceback
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covid_jax.config.rules import check_types
from covid_jax.config.settings import Config, NoFieldError, UNetConfig, as_tuple
from covid_jax.errors import UserError
from covid_jax.label_space import CLASSES

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"
"""The configs that come along: in the package where it is installed, and else beside it."""


def load_config_file(spec: str) -> Config:
    """The Config of `FILE.py[:ARGUMENT]`, of `NAME[:ARGUMENT]` in CONFIGS, or a run's config.json.

    What the latter says of its datasets' channels and labels is left out: others have others.

    Raises:
      UserError: it is neither, or fails; a fault of this program that it meets stays as it is.
    """
    file, argument = _parted(spec)
    path = CONFIGS / f"{file}.py" if re.fullmatch(r"\w+", file) else Path(file)
    if not path.is_file():
        known = ", ".join(sorted(config.stem for config in CONFIGS.glob("*.py")))
        raise UserError(f"--config={spec}: no such file; by name there are {known}")
    if path.suffix == ".json" and not argument:
        config = read_config(path)
        usual = UNetConfig()
        model = dataclasses.replace(
            config.model, num_classes=usual.num_classes, in_channels=usual.in_channels
        )
        return dataclasses.replace(config, model=model, label_space=CLASSES)
    description = importlib.util.spec_from_file_location("covid_jax_config", path)
    if path.suffix != ".py" or description is None or description.loader is None:
        raise UserError(f"--config={spec}: {file} is not a Python file with get_config()")
    module = importlib.util.module_from_spec(description)
    names = (argument,) if argument else ()
    with _faults_of(path):
        description.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"{path}: has no get_config(name), which returns the Config of a run")
    try:
        inspect.signature(get_config).bind(*names)
    except TypeError as error:
        code = getattr(get_config, "__code__", None)
        place = f"{path}, line {code.co_firstlineno}" if code else str(path)
        raise UserError(
            f'{place}: get_config({", ".join(map(repr, names))}): {error}; it is get_config(name="'
            'scratch"), of the name of a run'
        ) from error
    with _faults_of(path):
        config = get_config(*names)
    if not isinstance(config, Config):
        kind = type(config).__name__
        raise UserError(f"{path}: get_config({argument!r}) returns a {kind}, and no Config")
    return config


def _parted(spec: str) -> tuple[str, str]:
    """The file and the argument of FILE[:ARGUMENT]; the file's name may have colons too."""
    if Path(spec).is_file():
        return spec, ""
    before, _, after = spec.rpartition(":")
    if Path(before).is_file():
        return before, after
    file, _, argument = spec.partition(":")
    return file, argument


@contextlib.contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Turns what fails in a config file, and not in this program that it calls, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[2:]  # without this, and who calls it
        ours = any(Path(__file__).parents[1] in Path(frame.filename).parents for frame in frames)
        if ours and not isinstance(error, NoFieldError):
            raise
        lines = [f.lineno for f in frames if Path(f.filename) == path.absolute()]
        told = f"{'' if ours else type(error).__name__ + ': '}{error}"
        if isinstance(error, SyntaxError):  # of this file, or of one that it imports
            path, lines = Path(error.filename or path), [error.lineno]
            told = f"is no Python ({error.msg})"
        line = f", line {lines[-1]}" if lines and lines[-1] else ""
        raise UserError(f"{path}{line}: {' '.join(told.split())}") from error


def read_config(path: Path) -> Config:
    """The config in a JSON file, of this version or an older one.

    Raises:
      UserError: the file is damaged, or has settings that this version does not know.
    """
    try:
        return from_dict(json.loads(path.read_text("utf-8-sig")))
    except UserError as error:
        told = f"{path}: {error}; a newer version of covid_jax wrote it?"
        raise UserError(told) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error


def to_dict(config: Config) -> dict[str, Any]:
    """`config` as nested dictionaries, for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of to_dict; a field that is not there has its default.

    Raises:
      UserError: a field that Config does not have, or a value that is not of its type.
    """
    config = _build(Config, values, "config")
    check_types(config, "config")
    return config


def _build(kind: type, values: dict[str, Any], place: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise UserError(f"{place}={values!r}: must be settings by name")
    unknown = values.keys() - hints.keys()
    if unknown:
        raise UserError(f"{place} has no field {', '.join(sorted(unknown))}")
    return kind(
        **{
            name: _build(hints[name], value, f"{place}.{name}")
            if dataclasses.is_dataclass(hints[name])
            else as_tuple(value)
            for name, value in values.items()
        }
    )


def differences(
    ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "", besides: tuple[str, ...] = ()
) -> list[str]:
    """Lines "field: ours, was theirs" for every leaf in which two config dictionaries differ.

    Without those that begin with one of `besides`.
    """
    lines = []
    for name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(name), theirs.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a!r}, was {b!r}")
    return [line for line in lines if not line.startswith(besides)]
