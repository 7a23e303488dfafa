"""The paper's strategies as data: network, initial values, frozen part, schedule (section III)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import flax.linen as nn
import jax

from covid_jax.errors import UserError
from covid_jax.model.unet import MultiEncoderUNet, UNet
from covid_jax.transfer.freezing import leaf_paths

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

    network: type[nn.Module]
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


def initial_params(strategy: Strategy, new: Tree, pretrained: Tree | None) -> Tree:
    """The parameters a run starts with: `new` ones, with subtrees copied from `pretrained`.

    Every leaf is either new or copied; a subtree is copied whole or not at all.

    Raises:
      UserError: no pre-trained network where one is needed, or one with other leaves or shapes.
    """
    if not strategy.needs_pretraining:
        return new
    if pretrained is None:
        raise UserError("config.pretrained is empty: this strategy starts from a pre-trained run")
    params = dict(new)
    for target, source in strategy.initial.items():
        if source not in pretrained:
            raise UserError(f"config.pretrained: that network has no {source!r}")
        _check_same(new[target], pretrained[source], target)
        params[target] = pretrained[source]
    return params


def _check_same(new: Tree, pretrained: Tree, place: str) -> None:
    ours = dict(zip(leaf_paths(new), _shapes(new), strict=True))
    theirs = dict(zip(leaf_paths(pretrained), _shapes(pretrained), strict=True))
    wrong = [
        f"{place}/{path} is {_shape(ours, path)} here and {_shape(theirs, path)} there"
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    ]
    if wrong:
        more = f" ({len(wrong)} such leaves)" if len(wrong) > 1 else ""
        raise UserError(f"config.pretrained is of another network: {wrong[0]}{more}")


def _shapes(tree: Tree) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def _shape(shapes: Mapping[str, tuple[int, ...]], path: str) -> str:
    return str(shapes[path]) if path in shapes else "missing"
