"""Configs from a command's arguments: --config=FILE.py[:RUN], and a flag for every field."""

import dataclasses
import functools
import itertools
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from covid_jax.config.files import load_config_file
from covid_jax.config.rules import check_types, validate
from covid_jax.config.settings import Config, is_settings
from covid_jax.errors import UserError


def define_config_flag(own: flags.FlagValues) -> None:
    """Among a command's `own`, --config=FILE.py[:ARGUMENT] and --config.FIELD=VALUE of Config."""
    # Here, not above: what needs no flags runs without it, such as the benchmark on a bare machine.
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, or the name of one that comes along, and after a colon the run: "
        "mine.py:body-msd, paper:body-msd; or a run's config.json. Every field of Config "
        "(covid_jax/config/settings.py) is a flag: --config.optimizer.learning_rate=0.02.",
        flag_values=own,
    )
    own["config"].parser = _ConfigParser()


class _ConfigParser(flags.ArgumentParser):  # type: ignore[misc]
    """Reads the value of --config."""

    def parse(self, argument: str) -> Config:
        """As load_config_file."""
        return load_config_file(argument)


def config_from_flag(own: flags.FlagValues) -> Config:
    """The validated value of --config, with what a command's `own` flags override."""
    from ml_collections import config_flags

    config = own["config"].value
    if config is None:
        raise UserError("--config is missing, for example --config=quickstart")
    return _completed(config, config_flags.get_override_values(own["config"]))


def run_from_flag(own: flags.FlagValues, name: str) -> Config:
    """What the file of --config makes of the name of a run, with the same fields overridden.

    But for data.datasets of a pre-training: what is overridden is the target, and not its source.
    """
    from ml_collections import config_flags

    config = load_config_file(f"{config_flags.get_config_filename(own['config'])}:{name}")
    overridden = dict(config_flags.get_override_values(own["config"]))
    if config.pretraining:
        overridden.pop("data.datasets", None)
    return _completed(config, overridden)


def _completed(config: Config, overridden: Mapping[str, Any]) -> Config:
    """`config` with other values of some fields, by their paths; validated."""
    places = {path: _place(config, path) for path in overridden}
    for path, (settings, name) in places.items():
        setattr(settings, name, overridden[path])
    check_types(config, "config")
    for settings, name in places.values():
        if typing.get_type_hints(type(settings))[name] == tuple[str, ...]:
            # Where "a,b" are two: ml_collections takes them for one.
            parts = (value.split(",") for value in getattr(settings, name))
            setattr(settings, name, tuple(itertools.chain.from_iterable(parts)))
    validate(config)
    return config


def _place(config: Config, path: str) -> tuple[Any, str]:
    """The settings that have the field at a path such as "data.datasets", and its name there."""
    *above, name = path.split(".")
    return functools.reduce(getattr, above, config), name


def check_config_arguments(arguments: Sequence[str]) -> None:
    """Raises a UserError for a --config that cannot be loaded or an override of no field.

    absl would end both in a traceback, so this looks at `arguments` (sys.argv) before it does.
    """
    if "--config" in arguments:
        raise UserError("--config is written with an equals sign: --config=FILE")
    if sum(argument.lstrip("-").startswith("config=") for argument in arguments) > 1:
        raise UserError("--config is given twice; leave one out")
    values = dict(
        argument.lstrip("-").partition("=")[::2]
        for argument in arguments
        if argument.startswith("--config")
    )
    file = values.pop("config", None)
    if file is None:
        return
    config = load_config_file(file)
    for name in values:
        if name.startswith("config.label_space"):
            raise UserError(f"--{name}: is the datasets' own; leave it out")
        place: Any = config
        for depth, part in enumerate(name.split(".")[1:]):
            names = [f.name for f in dataclasses.fields(place)] if is_settings(place) else []
            if part not in names:
                above = ".".join(name.split(".")[: depth + 1])
                raise UserError(
                    f"--{name}: {above} has no field {part!r}; it has {', '.join(names) or 'none'}"
                )
            place = getattr(place, part)
