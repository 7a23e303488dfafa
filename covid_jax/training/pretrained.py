"""Runs that are there, as what others start from: their config, plan and parameters."""

from pathlib import Path

from covid_jax.config import Config, check_prediction, read_config
from covid_jax.data.plan import Plan, load_plan
from covid_jax.errors import UserError
from covid_jax.training.checkpoint import Tree, load_params, other_shape
from covid_jax.training.cost import abstract_params
from covid_jax.transfer.strategies import STRATEGIES


def load_run(workdir: str | Path) -> tuple[Config, Plan, Tree]:
    """The config, the plan and the latest parameters of a run.

    Raises:
      UserError: the folder is no run, is damaged, or its checkpoint is not of its config's network.
    """
    config, plan = load_config(workdir), load_plan(Path(workdir) / "plan.json")
    params = load_params(workdir)
    if other := other_shape(abstract_params(config), params):
        raise UserError(f"{workdir}: config.json is not of the network in checkpoints/: {other}")
    return config, plan, params


def load_config(workdir: str | Path) -> Config:
    """The config of a run.

    Raises:
      UserError: the folder is no run; its config is damaged or of a newer version, or is of a
        network that cannot be built.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        runs = [str(found.parent) for found in sorted(Path(workdir).glob("*/config.json"))]
        holds = f", but holds runs; give one of {', '.join(runs)}" if runs else ""
        raise UserError(f"{workdir}: not the work directory of a run, it has no config.json{holds}")
    config = read_config(path)
    try:
        check_prediction(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def load_pretrained(config: Config) -> Tree | None:
    """The parameters of the run that config.pretrained names; None where it names none.

    Raises:
      UserError: it is no run, or as check_pretrained.
    """
    if not config.pretrained:
        return None
    check_pretrained(config, load_config(config.pretrained))
    return load_params(config.pretrained)


def check_pretrained(config: Config, theirs: Config) -> None:
    """Raises a UserError where a run cannot start from config.pretrained, which is by `theirs`.

    That is the pre-training on another source than config.source, its network computes otherwise,
    or this run goes on with the joint schedule of a pre-training that was planned for other
    numbers.
    """
    if (
        theirs.pretraining
        and "none" not in (config.source, theirs.source)
        and (theirs.source != config.source)
    ):
        raise UserError(
            f"{config.pretrained}: was trained on the source {theirs.source}, and "
            f"config.source={config.source}; call the run {config.strategy}-{theirs.source}"
        )
    for name in ("strides", "norm_epsilon", "negative_slope"):  # the shapes of leaves do not tell
        before, here = (getattr(c.model, name) for c in (theirs, config))
        if STRATEGIES[config.strategy].needs_pretraining and before != here:
            raise UserError(
                f"{config.pretrained}: has model.{name}={before}; give --config.model.{name} "
                "the same"
            )
    if STRATEGIES[config.strategy].schedule == "joint":
        planned, here = (
            (c.pretraining_epochs, c.epochs, c.optimizer.learning_rate, c.optimizer.poly_power)
            for c in (theirs, config)
        )
        if theirs.pretraining and planned != here:
            raise UserError(
                f"{config.pretrained}: planned for another joint schedule; (pretraining_epochs, "
                f"epochs, learning_rate, poly_power) are {planned} there and {here} here; give "
                "this run those, or pre-train with these"
            )
