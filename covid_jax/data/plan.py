"""The plan: what every case of a comparison is resampled and normalised to.

It is made from the training cases of one dataset, kept in one plan.json, and shared by the
pre-training sources and all folds (nnU-Net: ExperimentPlanner and DatasetFingerprintExtractor).
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covid_jax.config import ANISOTROPY, LARGEST, as_tuple, check_types
from covid_jax.data.geometry import AXES, Volume
from covid_jax.data.normalization import CT, SCHEMES, Z_SCORE, Normalization, channel_of, ct
from covid_jax.data.planner import (
    DETAILS,
    Planning,
    Topology,
    configurations,
    median_shape,
    target_spacing,
    total_strides,
)
from covid_jax.errors import UserError
from covid_jax.files import write_json
from covid_jax.label_space import OUTSIDE

VERSION = 3
"""Of plan.json; one without a version is of version 1."""

_STATISTICS = ("lower_hu", "upper_hu", "mean_hu", "std_hu")
"""Of one channel of CT, as versions 1 and 2 had them."""

_ORDER = ("lower", "upper", "mean", "std")
"""Of Normalization, in the order of _STATISTICS."""

_VERSION_1 = (*_STATISTICS, "spacing_mm", "median_shape", "training_cases", "file_axes")

_CUT = 3 / 4  # of a scan that the crop keeps, from which down z-scores are of the inside

_TOPOLOGY = {field.name for field in dataclasses.fields(Topology)} | {"n_stages"}

FINGERPRINT_VOXELS = 10_000_000
"""Lesion voxels from which the statistics come, shared out evenly among the training cases."""


@dataclass(frozen=True)
class Fingerprint:
    """What the plan takes from one training case.

    Attributes:
      shape, spacing_mm: of its grid, cropped to what is not zero.
      foreground: (C, n), intensities of its lesions in each channel; in HU where that is CT.
      cropped_share: of the scan's voxels, how many the crop keeps.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    foreground: np.ndarray
    cropped_share: float = 1.0


@dataclass(frozen=True)
class Resampling:
    """How voxels come to another grid (nnU-Net: the arguments of resample_data_or_seg_to_shape).

    Attributes:
      order: of the splines, 0 to 5: in the slices across a coarse axis, or along all three.
      coarse_order: along a coarse axis, where that is treated apart; 0 is the nearest slice.
      separate: whether the coarsest axis is treated apart; None: where the voxels before, or else
        those after, are more than `anisotropy` times as coarse along it as along the finest.
    """

    order: int
    coarse_order: int = 0
    separate: bool | None = None
    anisotropy: float = ANISOTROPY


@dataclass(frozen=True)
class Plan:
    """Target spacing (D, H, W) and how each channel is normalised.

    A field that came after version 1 has a default that means what version 1 did, so that the hash
    of a plan, by which prepared data and runs know it, outlives the field.

    Attributes:
      spacing_mm: of the network's grid, along its axes.
      normalization: of each channel.
      median_shape: of a training case at this spacing.
      file_axes: the network sees the axes of each scan's file as they are (slices, rows, columns),
        as nnU-Net does; else every scan is turned so that they point to `axes`.
      axes: where D, H, W point to, in nibabel's letters.
      transpose: which of these axes becomes the network's D, H, W (nnU-Net: transpose_forward).
      image_resampling: of the image, to the plan's spacing.
      score_resampling: of what the network predicts, back to the scan's grid.
      label_resampling: of each value's share of a label, to the plan's spacing.
      outside_apart: what is outside of the scan's non-zero region has a share of its own where
        labels are resampled, as nnU-Net's -1; else it has one where channels are masked.
      resample_first: before the intensities are clipped, as nnU-Net v1; v2 clips them first.
      topology: the network that was planned for the cases, and its batches. In plan.json its fields
        stand among the plan's.
    """

    spacing_mm: tuple[float, float, float]
    normalization: tuple[Normalization, ...]
    median_shape: tuple[int, int, int]
    training_cases: tuple[str, ...]
    file_axes: bool = False
    axes: tuple[str, str, str] = AXES
    transpose: tuple[int, int, int] = (0, 1, 2)
    image_resampling: Resampling = Resampling(order=3)
    score_resampling: Resampling = Resampling(order=1)
    label_resampling: Resampling = Resampling(order=1)
    outside_apart: bool = False
    resample_first: bool = False
    topology: Topology | None = None

    def channel_names(self, known: Sequence[str] = ()) -> tuple[str, ...]:
        """Of each channel the `known` name, or where these do not fit, one by its normalisation."""
        fit = len(known) == len(self.normalization)
        return tuple(known) if fit else tuple(map(channel_of, self.schemes))

    @property
    def schemes(self) -> tuple[str, ...]:
        """How each channel is normalised (normalization.SCHEMES)."""
        return tuple(how.scheme for how in self.normalization)

    @property
    def masked_channels(self) -> tuple[int, ...]:
        """Those normalised within the non-zero region, outside of which they are 0."""
        return tuple(k for k, how in enumerate(self.normalization) if how.use_mask_for_norm)

    @property
    def hash(self) -> str:
        """Names this plan; data prepared by another one has another hash.

        It is over version 1's fields, and of later ones over those that are not at their default;
        and over the mark that labels have where there are masked channels.
        The topology has no part in it: for another GPU or network the same data is prepared.
        """
        values = dataclasses.asdict(self)
        if len(self.normalization) == 1 and self.normalization[0].is_ct:
            (one,) = values.pop("normalization")
            values |= dict(zip(_STATISTICS, map(one.get, _ORDER), strict=True))
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        told = {
            name: value
            for name, value in values.items()
            if name in _VERSION_1 or (name != "topology" and getattr(self, name) != defaults[name])
        }
        if self.masked_channels:
            told["outside"] = OUTSIDE
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(
    channels: Sequence[Volume], label: Volume, samples: int, cropped_share: float = 1.0
) -> Fingerprint:
    """The fingerprint of a case, cropped as preprocess crops it.

    Of its lesion voxels `samples` are drawn, with replacement and nnU-Net's seed, so that a case
    counts the same whatever the size of its lesions (DatasetFingerprintExtractor).

    Args:
      channels: in HU where they are CT.
      cropped_share: as in Fingerprint.
    """
    inside, rng = label.voxels > 0, np.random.RandomState(1234)
    foreground = [channel.voxels[inside].astype(np.float32) for channel in channels]
    drawn = [rng.choice(values, samples) if values.size else values for values in foreground]
    first = channels[0]
    spacing = tuple(float(mm) for mm in first.spacing_mm)
    return Fingerprint(first.voxels.shape, spacing, np.stack(drawn), cropped_share)


def make_plan(
    cases: Sequence[str], fingerprints: Sequence[Fingerprint], schemes: Sequence[str]
) -> Plan:
    """The plan of the training cases with these fingerprints, at nnU-Net's full resolution.

    Args:
      schemes: of each channel, how it is normalised (normalization.SCHEMES).

    Raises:
      UserError: no training case has a foreground voxel.
    """
    spacings = [case.spacing_mm for case in fingerprints]
    shapes = [case.shape for case in fingerprints]
    foreground = np.concatenate([case.foreground for case in fingerprints], axis=1)
    if foreground.size == 0:
        raise UserError(
            f"no lesion voxel in the training cases ({', '.join(cases)}); check the labels"
        )
    spacing = target_spacing(spacings, shapes)
    depth_mm, height_mm, width_mm = (float(mm) for mm in spacing)
    depth, height, width = (int(n) for n in median_shape(spacings, shapes, spacing))
    # Where the crop takes away much, as around a brain, what is outside says nothing.
    is_cut = float(np.median([case.cropped_share for case in fingerprints])) < _CUT
    return Plan(
        spacing_mm=(depth_mm, height_mm, width_mm),
        normalization=tuple(
            _normalization(scheme, values, is_cut)
            for scheme, values in zip(schemes, foreground, strict=True)
        ),
        median_shape=(depth, height, width),
        training_cases=tuple(cases),
        outside_apart=True,
    )


def _normalization(scheme: str, foreground: np.ndarray, is_cut: bool) -> Normalization:
    """That of a channel with these intensities of its foreground.

    nnU-Net: determine_normalization_scheme_and_whether_mask_is_used_for_norm.
    """
    if scheme == CT:
        lower, upper = np.percentile(foreground, (0.5, 99.5))
        return ct(lower, upper, float(foreground.mean()), float(foreground.std()))
    return Normalization(scheme, use_mask_for_norm=scheme == Z_SCORE and is_cut)


def with_topology(
    plan: Plan, fingerprints: Sequence[Fingerprint], labels: int, planning: Planning
) -> Plan:
    """`plan` of the cases with these fingerprints, on the grid of the network planned for them.

    Args:
      labels: as in planner.configurations.

    Raises:
      UserError: no network fits, or nnU-Net makes no such configuration of this dataset.
    """
    found = configurations(
        [case.spacing_mm for case in fingerprints],
        [case.shape for case in fingerprints],
        labels,
        planning.planner,
        planning.gpu_memory_gb,
    )
    chosen = found.lowres if planning.configuration == "3d_lowres" else found.fullres
    if chosen is None:
        raise UserError(
            "nnU-Net makes no 3d_lowres of this dataset: a patch of 3d_fullres sees enough of a "
            "case; plan that"
        )
    depth, height, width = (int(n) for n in chosen.median_shape)
    return dataclasses.replace(
        plan,
        spacing_mm=chosen.spacing_mm,
        median_shape=(depth, height, width),
        transpose=found.transpose,
        topology=chosen.topology,
    )


def save_plan(path: Path, plan: Plan) -> None:
    """Writes plan.json. Raises a UserError for what load_plan would not read."""
    check_plan(plan, path)
    values = dataclasses.asdict(plan)
    topology = values.pop("topology")
    if topology is not None:
        stages = {"n_stages": len(topology["strides"])}
        values |= stages | {
            name: value
            for name, value in topology.items()
            if value not in ((), DETAILS.get(name, ()))
        }
    write_json(path, {"version": VERSION, **values})


def load_plan(path: Path) -> Plan:
    """Reads plan.json, of this version or an older one.

    Raises:
      UserError: it is missing, damaged, or of a newer version.
    """
    try:
        values = _of_this_version(json.loads(path.read_text("utf-8-sig")))
        version = values.pop("version", 1)
        topology = {name: values.pop(name) for name in _TOPOLOGY & values.keys()}
        unknown = values.keys() - {field.name for field in dataclasses.fields(Plan)}
        if version > VERSION or unknown:
            raise UserError(
                f"{path}: written by a newer version of covid_jax "
                f"({', '.join(sorted(unknown)) or f'version {version}'}); update this one"
            )
        plan = Plan(
            **{name: _from_json(name, value) for name, value in values.items()},
            topology=_topology_from_json(topology) if topology else None,
        )
        if fault := _fault(plan):
            raise ValueError(fault)
        return plan
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; prepare the data first") from error
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); prepare the data again") from error


def check_plan(plan: Plan, source: Path) -> None:
    """Raises a UserError that names `source` and the value, where a plan holds one that cannot be.

    What passes is what load_plan reads.
    """
    if fault := _fault(plan):
        raise UserError(f"{source}: its plan cannot be taken: {fault}")


def _fault(plan: Plan) -> str:
    """The first value that no plan holds, and what it must be; empty where there is none."""
    try:
        for part in (plan, *plan.normalization, *([plan.topology] if plan.topology else [])):
            check_types(part, "plan")
    except UserError as error:
        return str(error)
    rules: list[tuple[bool, str, object, str]] = [
        (_positive(plan.spacing_mm), "spacing_mm", plan.spacing_mm, "must be above 0"),
        (len(plan.normalization) > 0, "normalization", (), "must be of a channel at least"),
        (sorted(plan.transpose) == [0, 1, 2], "transpose", plan.transpose, "must be of 0, 1, 2"),
        (
            all(len({*plan.axes} & {*pair}) == 1 for pair in ("RL", "AP", "SI")),
            "axes",
            plan.axes,
            "must be of R or L, A or P, S or I",
        ),
    ]
    for how in plan.normalization:
        statistics = [getattr(how, name) for name in _ORDER]
        rules += [
            (how.scheme in SCHEMES, "scheme", how.scheme, f"must be of {', '.join(SCHEMES)}"),
            (bool(np.isfinite(statistics).all()), "normalization", how, "must be finite"),
            (how.lower <= how.upper, "normalization", how, "must be clipped from low to high"),
            (how.std > 0, "normalization", how, "must have a deviation above 0"),
        ]
    for resampling in (plan.image_resampling, plan.score_resampling, plan.label_resampling):
        orders = resampling.order, resampling.coarse_order
        rules += [
            ({*orders} <= set(range(6)), "resampling", resampling, "must be of orders 0 to 5"),
            (not np.isnan(resampling.anisotropy), "anisotropy", "NaN", "must be a number"),
        ]
    for holds, name, value, rule in rules:
        if not holds:
            return f"{name}={value}: {rule}"
    return _fault_of_network(plan.topology) if plan.topology else ""


def _positive(values: Sequence[float]) -> bool:
    return bool(np.isfinite(values).all()) and min(values) > 0


def _of_this_version(values: dict[str, Any]) -> dict[str, Any]:
    """What plan.json says, in the words of this version."""
    if not set(_STATISTICS) <= values.keys():
        return values
    one = {name: values.pop(told) for name, told in zip(_ORDER, _STATISTICS, strict=True)}
    return values | {"normalization": [{"scheme": CT, **one}]}


def _fault_of_network(topology: Topology) -> str:
    """What keeps a topology from being that of a U-Net whose patch is halved all the way down."""
    stages = len(topology.strides)
    encoder = topology.n_conv_per_stage or topology.n_blocks_per_stage
    whole = (topology.batch_size, *topology.patch_size, *topology.features_per_stage, *encoder)
    whole += tuple(n for axes in (*topology.strides, *topology.kernel_sizes) for n in axes)
    if stages < 2:
        return f"strides={topology.strides}: must be of two stages at least"
    if topology.n_conv_per_stage and topology.n_blocks_per_stage:
        return "n_conv_per_stage and n_blocks_per_stage: one of them must be empty"
    if not (
        len(topology.features_per_stage) == len(topology.kernel_sizes) == len(encoder) == stages
        and len(topology.n_conv_per_stage_decoder) == stages - 1
    ):
        return f"strides are of {stages} stages, and other values of the network of another number"
    whole += topology.n_conv_per_stage_decoder
    if min(whole) <= 0 or max(whole) > LARGEST:
        return f"{topology}: all its numbers must be above 0, and at most {LARGEST:,}"
    down = total_strides(topology.strides)
    if np.any(np.array(topology.patch_size) % down):
        return f"patch_size={topology.patch_size}: must be divisible by its strides, {down} in all"
    return ""


def _topology_from_json(values: dict[str, Any]) -> Topology:
    stages = values.pop("n_stages")
    topology = Topology(**{name: as_tuple(value) for name, value in values.items()})
    if stages != len(topology.strides):
        raise ValueError(f"n_stages={stages}, and strides of {len(topology.strides)}")
    return topology


def _from_json(name: str, value: Any) -> Any:
    if name == "normalization":
        return tuple(Normalization(**one) for one in value)
    if isinstance(value, dict):
        return Resampling(**value)
    return tuple(value) if isinstance(value, list) else value
