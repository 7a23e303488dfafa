"""Draws what a run trains: where each part of its network starts from, and what is frozen."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from covid_jax.config import Config
from covid_jax.training.cost import abstract_params
from covid_jax.training.state import schedule
from covid_jax.transfer.freezing import leaves_by_path
from covid_jax.transfer.strategies import STRATEGIES, frozen_masks, layers_of, origins

_NEW, _COPIED, _INK = "#f2f2f2", "#9ecae1", "#333333"
_FROZEN_HATCH = "////"
_IN_A_ROW = 5
_WIDTH, _HEIGHT, _GAP = 0.8, 0.62, 1.45  # of a box; between the middles of columns


@dataclass(frozen=True)
class Part:
    """A stage of the network: how much of it is copied from pre-training, and how much frozen."""

    copied: float
    frozen: float


def draw_networks(configs: Sequence[Config], titles: Sequence[str]) -> Figure:
    """The network of each run, five in a row, with a legend.

    Each column of boxes is an encoder (going down) or the decoder (coming up); a box is a stage.
    """
    columns = min(len(configs), _IN_A_ROW)
    rows = -(-len(configs) // columns)
    stages = max(len(config.model.features_per_stage) for config in configs)
    figure = Figure(figsize=(2.7 * max(2, columns), 0.4 + (0.35 + 0.72 * (stages + 1)) * rows))
    places = figure.subplots(rows, columns, squeeze=False).flat
    for config, title in zip(configs, titles, strict=True):
        place = next(places)
        draw_network(place, config)
        place.set_title(title, fontsize=10, color=_INK, parse_math=False)
    for place in places:
        place.remove()
    figure.legend(
        handles=[
            Patch(facecolor=_NEW, edgecolor=_INK, label="new"),
            Patch(facecolor=_COPIED, edgecolor=_INK, label="copied from pre-training"),
            Patch(facecolor="white", edgecolor=_INK, hatch=_FROZEN_HATCH, label="frozen"),
        ],
        loc="lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    height = figure.get_figheight()
    figure.tight_layout(rect=(0, 0.27 / height, 1, 1 - 0.12 / height))
    return figure


def draw_network(axes: Axes, config: Config) -> None:
    """One network, with its schedule below it."""
    parts = parts_of(config)
    encoders = [top for top in ("encoder", "self_encoder", "adapted_encoder") if top in parts]
    decoder = len(encoders) * _GAP
    bottom = 1 - len(config.model.features_per_stage)
    for index, top in enumerate(encoders):
        x = index * _GAP
        axes.text(x, 0.6, top.replace("_encoder", ""), ha="center", fontsize=8, color=_INK)
        for stage, part in parts[top].items():
            _box(axes, x, -stage, part)
            if -stage > bottom:
                _arrow(axes, (x, -stage - _HEIGHT / 2), (x, -stage - 1 + _HEIGHT / 2))
            # An encoder further away passes its features over the one between.
            above = 0.0 if top == encoders[-1] else 0.42
            left, right = x + _WIDTH / 2, decoder - (_WIDTH / 2 if -stage > bottom else 0)
            low = 0.12 if above else 0.0
            _arrow(
                axes,
                (left, low - stage),
                (left + 0.12, low - stage),
                (left + 0.12, above - stage),
                (right - 0.2, above - stage),
                (right - 0.2, low - stage),
                (right, low - stage),
            )
    _arrow(axes, (decoder, bottom), (decoder, bottom + 1 - _HEIGHT / 2))
    heads = decoder + 0.8 * _GAP
    axes.text(decoder, 0.6, "decoder", ha="center", fontsize=8, color=_INK)
    axes.text(heads, 0.6, "heads", ha="center", fontsize=8, color=_INK)
    for stage, part in parts["decoder"].items():
        _box(axes, decoder, -stage, part)
        if stage:
            _arrow(axes, (decoder, _HEIGHT / 2 - stage), (decoder, 1 - _HEIGHT / 2 - stage))
        _arrow(axes, (decoder + _WIDTH / 2, -stage), (heads - _WIDTH / 4, -stage))
        _box(axes, heads, -stage, parts["heads"][stage], size=0.5)
    first, epochs, total = schedule(config)
    joint = "goes on with the joint schedule" if total != epochs and first else "its own schedule"
    axes.text((decoder + _GAP) / 2 - 0.3, bottom - 0.85, joint, ha="center", fontsize=8, color=_INK)
    axes.set(xlim=(-0.6, decoder + 1.6), ylim=(bottom - 1, 1))
    axes.set_aspect("equal")
    axes.axis("off")


def parts_of(config: Config) -> dict[str, dict[int, Part]]:
    """The parts of the run's network by subtree and stage, as it starts.

    A stem counts to the stage whose resolution it has.
    """
    params = abstract_params(config)
    held = leaves_by_path(frozen_masks(config, params)[0])
    copies = origins(STRATEGIES[config.strategy], params)
    found: dict[str, dict[int, list[tuple[bool, bool]]]] = {}
    for layer in layers_of(config):
        leaves = found.setdefault(layer.top, {}).setdefault(layer.stage, [])
        own = filter(layer.holds, held)
        leaves += [(copies[path] is not None, held[path]) for path in own]
    return {
        top: {
            stage: Part(*(sum(column) / len(leaves) for column in zip(*leaves, strict=True)))
            for stage, leaves in stages.items()
        }
        for top, stages in found.items()
    }


def _box(axes: Axes, x: float, y: float, part: Part, size: float = 1.0) -> None:
    width, height = _WIDTH * size, _HEIGHT * size
    corner = (x - width / 2, y - height / 2)
    colour = _COPIED if part.copied else _NEW
    axes.add_patch(Rectangle(corner, width, height, facecolor=colour, edgecolor=_INK, zorder=2))
    # What is frozen in part is hatched in part.
    axes.add_patch(
        Rectangle(
            corner,
            width * part.frozen,
            height,
            facecolor="none",
            edgecolor=_INK,
            hatch=_FROZEN_HATCH,
            linewidth=0,
            zorder=3,
        )
    )


def _arrow(axes: Axes, *corners: tuple[float, float]) -> None:
    """A line through corners, with its head at the last."""
    axes.plot(*zip(*corners, strict=True), color=_INK, linewidth=0.7, zorder=1)
    head = {"arrowstyle": "-|>", "color": _INK, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", corners[-1], corners[-2], arrowprops={**head, "mutation_scale": 6}, zorder=1)
