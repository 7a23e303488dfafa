"""What a run would do: network, initial values, what is frozen, schedule, cost."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from covid_jax.config import Config, UNetConfig
from covid_jax.training.cost import abstract_params, step_flops
from covid_jax.training.pretrained import load_pretrained
from covid_jax.training.state import learning_rate, schedule
from covid_jax.transfer.freezing import leaves_by_path
from covid_jax.transfer.strategies import (
    STRATEGIES,
    frozen_masks,
    frozen_patterns,
    initial_params,
    layers_of,
    new_and_frozen,
    origins,
)

Tree = Any


def explain(config: Config, of_network: Sequence[str] = (), of_start: Sequence[str] = ()) -> str:
    """The text of `train --explain`.

    Args:
      of_network: notes on whose the network is.
      of_start: notes on where it starts from.

    Raises:
      UserError: config.pretrained is no run or of another network, or a pattern matches nothing.
    """
    strategy, model = STRATEGIES[config.strategy], config.model
    params = abstract_params(config)
    if config.pretrained:
        initial_params(strategy, params, load_pretrained(config), config.first_conv)
    network = [
        f"{strategy.network.__name__}, {len(model.features_per_stage)} stages of "
        f"{_listed(model.features_per_stage)} features, {_residual(model)}"
        f"{config.label_space.told(model.num_classes)}"
        f"{'' if config.data.prepared_dir else ' (prepared data may have others)'}",
        f"patch {' x '.join(map(str, config.data.patch_size))}, batch {config.data.batch_size}, "
        f"{config.dtype}; {_size(jax.tree.leaves(params))}",
        f"mirrored along {_mirrored(config)}",
        *of_network,
    ]
    sections = {
        "network": network,
        "initial values": [*_initial_values(config, params), *of_start],
        "frozen": _frozen(config, params),
        "schedule": _schedule(config),
        "training step": _cost(config),
    }
    source = f" from {config.source}" if strategy.needs_pretraining else ""
    what = f"pre-training on {config.source}" if config.pretraining else config.strategy + source
    return f"{what}: {', '.join(config.data.datasets)}\n" + "\n".join(
        f"  {'' if index else title:<16}{line}"
        for title, lines in sections.items()
        for index, line in enumerate(lines)
    )


def _initial_values(config: Config, params: Tree) -> list[str]:
    strategy, where = STRATEGIES[config.strategy], config.pretrained or "config.pretrained"
    copied = Counter(
        (path.split("/")[0], origin.split("/")[0] if origin else None)
        for path, origin in origins(strategy, params).items()
    )
    forward = [layer.top for layer in layers_of(config)]
    lines = [
        f"{top}: {f'copied from {source} of {where}' if source else 'new'}, "
        f"{leaves} leaves, {_size(jax.tree.leaves(params[top]))}"
        for (top, source), leaves in sorted(
            copied.items(), key=lambda item: forward.index(item[0][0])
        )
    ]
    if config.first_conv:
        lines.append(f"but for the first convolution, of other channels there: {config.first_conv}")
    return lines + new_and_frozen(config, frozen_masks(config, params)[0])


def _frozen(config: Config, params: Tree) -> list[str]:
    leaves = leaves_by_path(params)
    lines = []
    for (epoch, patterns), held in zip(
        frozen_patterns(config).items(), frozen_masks(config, params).values(), strict=True
    ):
        frozen = [path for path, h in zip(leaves, jax.tree.leaves(held), strict=True) if h]
        by_top = Counter(path.split("/")[0] for path in frozen)
        what = (
            f"{len(frozen)} of {len(leaves)} leaves, {_size([leaves[path] for path in frozen])}: "
            f"{', '.join(f'{count} in {top}' for top, count in by_top.items())}; "
            f"by {' '.join(patterns)}"
        )
        lines.append(_since(config, epoch) + (what if frozen else "nothing"))
    return lines


def _schedule(config: Config) -> list[str]:
    first, epochs, total = schedule(config)
    rates = [learning_rate(config, first), learning_rate(config, first + epochs - 1)]
    what = f"epochs {first} to {first + epochs - 1} of a poly schedule over {total}"
    if total != epochs:
        what += f" ({config.pretraining_epochs} of pre-training, {config.epochs} of this task)"
    return [
        what,
        f"learning rate {rates[0]:.3g} at the first, {rates[1]:.3g} at the last",
        f"{config.steps_per_epoch} steps an epoch",
    ]


def _cost(config: Config) -> list[str]:
    full = step_flops(dataclasses.replace(config, strategy="scratch"), ())
    lines = []
    for epoch, patterns in frozen_patterns(config).items():
        flops = step_flops(config, patterns)
        share = f"{flops / full:.3f} of scratch, by XLA's count"
        lines.append(f"{_since(config, epoch)}{flops / 1e12:.3g} TFLOP, {share}")
    return lines


def _residual(model: UNetConfig) -> str:
    if not model.n_blocks_per_stage:
        return ""
    return f"residual encoder of {_listed(model.n_blocks_per_stage)} blocks, "


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _since(config: Config, epoch: int) -> str:
    return f"from epoch {epoch}: " if config.frozen_schedule else ""


def _mirrored(config: Config) -> str:
    """The axes of a patch that augmentation turns round, and mirrored views of a scan."""
    return " and ".join("DHW"[axis] for axis in config.inference.mirror_axes) or "no axis"


def _size(leaves: Sequence[Any]) -> str:
    count = sum(leaf.size for leaf in leaves)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return f"{count:,} parameters, {size / 1e6:.1f} MB"
