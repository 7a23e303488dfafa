"""The paper's strategies as data: network, initial values, frozen part, schedule (section III)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from covid_jax.config import Config
from covid_jax.errors import UserError
from covid_jax.model.conv import Form
from covid_jax.model.layers import Layer, layers
from covid_jax.model.unet import MultiEncoderUNet, UNet
from covid_jax.transfer.freezing import leaf_paths, leaves_by_path, mask

Tree = Any


@dataclass(frozen=True)
class Strategy:
    """How a run starts from a pre-trained network.

    Attributes:
      network: the module that is trained.
      initial: for each top-level subtree that is not new, the pre-trained subtree it copies.
        Heads are always new: another task has other classes.
      frozen: patterns over parameter paths (freezing.mask).
      schedule: "fresh" starts the poly schedule anew; "joint" goes on with the one that
        pre-training began, over the epochs of both.
    """

    network: type[UNet]
    initial: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    schedule: Literal["fresh", "joint"] = "fresh"

    @property
    def needs_pretraining(self) -> bool:
        """Whether anything is taken from a pre-trained network."""
        return bool(self.initial)


_BODY = {"encoder": "encoder", "decoder": "decoder"}

STRATEGIES: dict[str, Strategy] = {
    "scratch": Strategy(UNet),
    "continual": Strategy(UNet, _BODY, schedule="joint"),
    "body": Strategy(UNet, _BODY),
    "frozen_encoder": Strategy(UNet, _BODY, frozen=("encoder",)),
    "multi_encoder": Strategy(
        MultiEncoderUNet,
        {"self_encoder": "encoder", "adapted_encoder": "encoder"},
        frozen=("adapted_encoder",),
    ),
}


def network_of(config: Config, form: Form) -> UNet:
    """The network that the run trains; `form` is that of its convolutions (model/conv.py)."""
    network = STRATEGIES[config.strategy].network
    return network(config.model, jnp.dtype(config.dtype), form, config.remat)


def layers_of(config: Config) -> list[Layer]:
    """The convolutions of the network that the run trains, in the order of the forward pass."""
    return layers(config.model, STRATEGIES[config.strategy].network.encoders)


def frozen_patterns(config: Config) -> dict[int, tuple[str, ...]]:
    """What is frozen, by the epoch from which it holds: patterns for freezing.mask.

    The strategy's patterns come first, then config.frozen, then those of config.frozen_schedule
    whose epoch has come; those of later epochs win, so that "!encoder/stage_5" unfreezes.
    """
    always = (*STRATEGIES[config.strategy].frozen, *config.frozen)
    schedule = sorted(config.frozen_schedule, key=lambda part: part[0])
    return {
        epoch: (*always, *(pattern for since, pattern in schedule if since <= epoch))
        for epoch in sorted({0, *(epoch for epoch, _ in schedule)})
    }


def frozen_masks(config: Config, params: Tree) -> dict[int, Tree]:
    """`frozen_patterns` as masks of `params`.

    Raises:
      UserError: a pattern matches no parameter, or nothing is left to train.
    """
    masks = {}
    for epoch, patterns in frozen_patterns(config).items():
        masks[epoch] = mask(params, patterns)
        if all(jax.tree.leaves(masks[epoch])):
            raise UserError(f"{', '.join(patterns)} freeze every parameter: nothing is to train")
    return masks


def origins(strategy: Strategy, new: Tree) -> dict[str, str | None]:
    """Of every leaf of `new`, the path of the pre-trained leaf that it copies; None: it is new."""
    found: dict[str, str | None] = {}
    for path in leaf_paths(new):
        top, _, below = path.partition("/")
        source = strategy.initial.get(top)
        found[path] = f"{source}/{below}" if source else None
    return found


def initial_params(
    strategy: Strategy, new: Tree, pretrained: Tree | None, first_conv: str = ""
) -> Tree:
    """The parameters a run starts with: `new` ones, some of them copied from `pretrained`.

    Every leaf is accounted for by `origins`. Pre-trained subtrees that the strategy does not name
    (the heads) are left where they are; of those it names, no leaf may be missing or left over.

    Args:
      first_conv: config.first_conv: what becomes of the first convolution where the
        pre-trained network sees other channels. "repeat": theirs one after another, over and over;
        "mean": their mean for each; both scaled so that their sum keeps its size.
        "new": it is not copied.

    Raises:
      UserError: no pre-trained network where one is needed, one where nothing is taken from it, or
        one with other leaves or shapes; it names the first.
    """
    if not strategy.needs_pretraining:
        if pretrained is not None:
            raise UserError(
                "config.pretrained is given, and this strategy starts from nothing; leave it out, "
                "or take one that starts from it, such as --config.strategy=body"
            )
        return new
    if pretrained is None:
        raise UserError("config.pretrained is empty: this strategy starts from a pre-trained run")
    theirs, ours = leaves_by_path(pretrained), leaves_by_path(new)
    if first_conv:
        theirs |= _first_convolution(strategy, ours, theirs, first_conv)
    copied = {path: origin for path, origin in origins(strategy, new).items() if origin}
    wrong = [
        f"{path} is {ours[path].shape} here and "
        f"{theirs[origin].shape if origin in theirs else 'missing'} there"
        for path, origin in copied.items()
        if origin not in theirs or theirs[origin].shape != ours[path].shape
    ]
    taken = set(strategy.initial.values())
    left_over = {path for path in theirs if path.split("/")[0] in taken} - set(copied.values())
    wrong += [f"{path} is missing here and {theirs[path].shape} there" for path in left_over]
    there, here = _channels(strategy, ours, theirs)
    if wrong and there and here and there != here and not first_conv:
        raise other_channels_error("config.pretrained", there, "the data", here)
    if wrong:
        more = f", and {len(wrong) - 1} more leaves" if len(wrong) > 1 else ""
        raise UserError(
            f"config.pretrained is of another network: {min(wrong)}{more}; "
            "config.model must be that of the pre-training"
        )
    leaves = [theirs[copied[path]] if path in copied else leaf for path, leaf in ours.items()]
    return jax.tree.unflatten(jax.tree.structure(new), leaves)


def other_channels_error(network: str, there: int, data: str, here: int) -> UserError:
    """Of a network that sees so many channels where the data has others, the line to raise."""
    return UserError(
        f"{network} sees {there} channels, and {data} has {here}: say what becomes of the first "
        "convolution, --config.first_conv=repeat, mean or new"
    )


def _first_kernel(encoder: str, leaves: Mapping[str, Any]) -> str:
    """The path of the kernel that sees the image; "" where there is none."""
    names = (f"{encoder}/{block}/conv/kernel" for block in ("stem", "stage_0/block_0"))
    return next((path for path in names if path in leaves), "")


def _channels(
    strategy: Strategy, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[int, int]:
    """How many channels the networks see, the pre-trained one and ours; 0 where none is known."""
    top, source = next(iter(strategy.initial.items()))
    kernels = theirs.get(_first_kernel(source, theirs)), ours.get(_first_kernel(top, ours))
    there, here = (0 if kernel is None else int(kernel.shape[-2]) for kernel in kernels)
    return there, here


def new_and_frozen(config: Config, held: Tree) -> list[str]:
    """A line on a first convolution that config.first_conv makes new and the run freezes.

    Args:
      held: the mask of what is frozen at the first step.
    """
    first = [layer.path for layer in layers_of(config) if not layer.inputs[0].sources]
    frozen = leaves_by_path(held)
    paths = [path for path in first if frozen[f"{path}/kernel"]]
    if config.first_conv != "new" or not paths:
        return []
    mend = " ".join(f"--config.frozen='!{path}'" for path in paths)
    return [f"warning: {', '.join(paths)} is new and stays as it was drawn; {mend} trains it"]


def _first_convolution(
    strategy: Strategy, ours: Mapping[str, Any], theirs: Mapping[str, Any], how: str
) -> dict[str, Any]:
    """The pre-trained kernel that sees the image, for the channels here, by its path there."""
    there, here = _channels(strategy, ours, theirs)
    if there == here:
        raise UserError(
            f"config.first_conv={how}: config.pretrained sees as many channels; leave it out"
        )
    top, source = next(iter(strategy.initial.items()))
    path = _first_kernel(source, theirs)
    if how == "new":
        return {path: ours[_first_kernel(top, ours)]}
    kernel = theirs[path]
    if how == "mean":
        kernel = kernel.mean(axis=-2, keepdims=True)
    return {path: jnp.take(kernel, np.arange(here) % kernel.shape[-2], axis=-2) * (there / here)}
