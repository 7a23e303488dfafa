"""nnU-Net's experiment planner: the grid, the network and its patch, for a GPU of some memory.

Pure functions of the spacings and shapes of the training cases. They follow nnunetv2's
ExperimentPlanner and its presets for residual encoders (nnUNetPlannerResEncM, L and XL), for
3d_fullres and 3d_lowres, and find what these find.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from covid_jax.config import ANISOTROPY, Config, UNetConfig
from covid_jax.errors import UserError

Size = tuple[int, int, int]

_FEATURES, _MOST_FEATURES = 32, 320  # of the first stage, and of any
_SHORTEST = 4  # voxels along an axis of the deepest stage, where that axis is halved at all
_BATCH = 2  # the smallest
_LONG = 256  # voxels along each axis of the patch that shrinking begins with, were it a cube
_LOWRES_BELOW = 0.25  # of the median case: a smaller patch of full resolution sees too little
_COARSER = 1.03  # by which factor from one spacing that is tried for low resolution to the next
_LOWRES_GAIN = 2.0  # full resolution has at least so many times the voxels of low resolution


@dataclass(frozen=True)
class Planner:
    """What a planner allows for.

    Attributes:
      feature_values: that a network may have for one sample, so that a batch of two fits into a
        GPU of `memory_gb` (nnU-Net: UNet_reference_val_3d).
      memory_gb: what is planned for where nothing else is told.
      residual: the encoder is of residual blocks, not of plain convolutions.
      most_of_dataset: the share of all training voxels that one batch may have.
    """

    feature_values: int
    memory_gb: float
    residual: bool
    most_of_dataset: float


PLANNERS = {
    "default": Planner(560_000_000, 8.0, residual=False, most_of_dataset=0.05),
    "resenc_m": Planner(680_000_000, 8.0, residual=True, most_of_dataset=1.0),
    "resenc_l": Planner(2_100_000_000, 24.0, residual=True, most_of_dataset=1.0),
    "resenc_xl": Planner(3_600_000_000, 40.0, residual=True, most_of_dataset=1.0),
}
"""nnU-Net's ExperimentPlanner, and its nnUNetPlannerResEncM, L and XL."""


CONFIGURATIONS = ("3d_fullres", "3d_lowres")


@dataclass(frozen=True)
class Planning:
    """What a network is planned for.

    Attributes:
      planner: one of PLANNERS.
      gpu_memory_gb: of the GPU; None is the planner's own.
      configuration: one of CONFIGURATIONS.
    """

    planner: str = "default"
    gpu_memory_gb: float | None = None
    configuration: str = "3d_fullres"


@dataclass(frozen=True)
class Topology:
    """A network and the batches that it is trained on, in nnU-Net's names.

    Of `n_conv_per_stage` (a plain encoder) and `n_blocks_per_stage` (a residual one) one is empty.
    What no planner chooses otherwise, and a plan that is taken over may have otherwise, is DETAILS.
    """

    patch_size: Size
    batch_size: int
    features_per_stage: tuple[int, ...]
    strides: tuple[Size, ...]
    kernel_sizes: tuple[Size, ...]
    n_conv_per_stage_decoder: tuple[int, ...]
    n_conv_per_stage: tuple[int, ...] = ()
    n_blocks_per_stage: tuple[int, ...] = ()
    batch_dice: bool = False
    kernel_sizes_decoder: tuple[Size, ...] = UNetConfig.kernel_sizes_decoder
    conv_bias: bool = UNetConfig.conv_bias
    head_bias: bool = UNetConfig.head_bias
    norm_epsilon: float = UNetConfig.norm_epsilon
    negative_slope: float = UNetConfig.negative_slope


def total_strides(strides: Sequence[Size]) -> Size:
    """By how much the deepest stage is smaller than the patch, along D, H, W."""
    depth, height, width = (math.prod(along) for along in zip(*strides, strict=True))
    return depth, height, width


DETAILS = {
    name: getattr(UNetConfig, name)
    for name in (
        "kernel_sizes_decoder",
        "conv_bias",
        "head_bias",
        "norm_epsilon",
        "negative_slope",
    )
}
"""Fields of a topology that are in plan.json only where they are not these."""


def topology_of(config: Config) -> Topology:
    """What a run is trained as."""
    values = {**vars(config.model), **vars(config.data), **vars(config.loss)}
    return Topology(**{field.name: values[field.name] for field in fields(Topology)})


@dataclass(frozen=True)
class Configuration:
    """A grid, and what is trained on it.

    Attributes:
      spacing_mm: of the grid.
      median_shape: of a training case on it; of an even number of cases it may lie at a half.
    """

    spacing_mm: tuple[float, float, float]
    median_shape: tuple[float, float, float]
    topology: Topology


@dataclass(frozen=True)
class Configurations:
    """What is planned for a dataset. All axes are the network's: a case's after `transpose`.

    Attributes:
      transpose: which axes of a case become the network's D, H, W (nnU-Net: transpose_forward).
      fullres: nnU-Net's 3d_fullres.
      lowres: nnU-Net's 3d_lowres; None where a patch of full resolution sees enough. Also where
        cases of that resolution are too small for a U-Net, which nnU-Net does not look at.
    """

    transpose: Size
    fullres: Configuration
    lowres: Configuration | None


def configurations(
    spacings_mm: Sequence[Sequence[float]],
    shapes: Sequence[Sequence[int]],
    labels: int,
    planner: str = "default",
    gpu_memory_gb: float | None = None,
    transpose: Size | None = None,
) -> Configurations:
    """What nnU-Net trains on a dataset (nnU-Net: plan_experiment).

    Args:
      spacings_mm, shapes: (cases, 3), of the training cases after they are cropped.
      labels: names of labels in dataset.json: background, regions and the ignore label among them.
      planner: one of PLANNERS.
      gpu_memory_gb: of the GPU to plan for; None is the planner's own.
      transpose: as in Configurations; None is nnU-Net's, the coarsest axis first.

    Raises:
      UserError: the cases are too small for a 3D network, or the GPU for its smallest patch.
    """
    rules = PLANNERS[planner]
    memory_gb = rules.memory_gb if gpu_memory_gb is None else gpu_memory_gb
    most_values = rules.feature_values * (memory_gb / rules.memory_gb)
    spacing = target_spacing(spacings_mm, shapes)
    median = median_shape(spacings_mm, shapes, spacing)
    order = transpose or coarsest_first(spacing)
    spacing, median = spacing[list(order)], median[list(order)]
    if median[0] == 1:
        raise UserError("the training cases are of one slice each; only 3D networks are planned")

    def configuration(spacing: np.ndarray, shape: np.ndarray, case_voxels: float) -> Configuration:
        voxels = float(case_voxels * len(shapes))
        topology = _topology(spacing, shape, voxels, labels, rules, most_values)
        return Configuration(_floats(spacing), _floats(shape), topology)

    fullres = configuration(spacing, median, np.prod(median))
    if not _has_stages(fullres):
        raise UserError(
            f"the training cases are too small for a U-Net: {' x '.join(f'{n:g}' for n in median)} "
            f"voxels at {' x '.join(f'{mm:.3g}' for mm in spacing)} mm"
        )
    lowres, coarser, case_voxels = None, spacing, np.prod(median)
    patch_voxels = np.prod(fullres.topology.patch_size, dtype=float)
    while patch_voxels / case_voxels < _LOWRES_BELOW:
        # Fine axes first, until none is finer than half the coarsest.
        fine = coarser.max() / coarser > 2
        coarser = np.where(fine if fine.any() else True, coarser * _COARSER, coarser)
        shape = spacing / coarser * median
        case_voxels = np.prod(shape)
        lowres = configuration(coarser, np.maximum(np.round(shape), 1), case_voxels)
        patch_voxels = np.prod(lowres.topology.patch_size, dtype=float)
    if lowres is None or np.prod(median) / case_voxels < _LOWRES_GAIN:
        return Configurations(order, fullres, None)
    batch_dice = replace(fullres.topology, batch_dice=True)
    fullres = replace(fullres, topology=batch_dice)
    return Configurations(order, fullres, lowres if _has_stages(lowres) else None)


def _has_stages(configuration: Configuration) -> bool:
    """Whether its network is a U-Net, which has a stage below the first."""
    return len(configuration.topology.strides) > 1


def target_spacing(
    spacings_mm: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]
) -> np.ndarray:
    """The spacing (3,) that cases with these spacings and shapes (cases, 3) are resampled to.

    The median of each axis. Where the coarsest axis of it is more than three times as coarse as the
    others, and less than a third as long, that axis takes its 10th percentile instead (nnU-Net:
    determine_fullres_target_spacing).
    """
    spacings = np.array(spacings_mm)
    spacing, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    coarsest = int(np.argmax(spacing))
    others = np.delete(np.arange(3), coarsest)
    if (
        spacing[coarsest] > ANISOTROPY * spacing[others].max()
        and size[coarsest] * ANISOTROPY < size[others].min()
    ):
        target = np.percentile(spacings[:, coarsest], 10)
        finest = spacing[others].max()
        spacing[coarsest] = target if target >= finest else finest + 1e-5
    return spacing


def median_shape(
    spacings_mm: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]], target: np.ndarray
) -> np.ndarray:
    """The median (3,) of the cases' shapes at the spacing `target`.

    In nnU-Net's order of operations (compute_new_shape), which decides at halves.
    """
    resampled = np.round(np.array(spacings_mm) / target * np.array(shapes))
    return np.median(resampled, axis=0)


def coarsest_first(spacing_mm: Sequence[float] | np.ndarray) -> Size:
    """The order of axes that puts the coarsest first (nnU-Net: determine_transpose)."""
    coarsest = int(np.argmax(spacing_mm))
    first, second = (axis for axis in range(3) if axis != coarsest)
    return coarsest, first, second


def feature_values(topology: Topology, labels: int) -> int:
    """How many values the convolutions give for one patch, by which nnU-Net knows the memory.

    A block's skip counts where it is a convolution: where the block changes the features or the
    size. Of the heads, the one of full resolution counts alone (nnU-Net:
    compute_conv_feature_map_size).
    """
    features = topology.features_per_stage
    sizes = np.array(topology.patch_size) // np.cumprod(topology.strides, axis=0)
    voxels = np.prod(sizes, axis=1)
    if topology.n_blocks_per_stage:
        before = (topology.patch_size, *sizes[:-1])
        skips = [
            features[stage] != features[max(stage - 1, 0)] or (sizes[stage] != before[stage]).any()
            for stage in range(len(features))
        ]
        stem = features[0] * int(np.prod(topology.patch_size))
        maps = [2 * n + skip for n, skip in zip(topology.n_blocks_per_stage, skips, strict=True)]
    else:
        stem, maps = 0, list(topology.n_conv_per_stage)
    for stage, convolutions in enumerate(reversed(topology.n_conv_per_stage_decoder)):
        maps[stage] += convolutions + 1  # and the transposed one
    head = labels * int(voxels[0])
    return stem + head + sum(int(m * f * v) for m, f, v in zip(maps, features, voxels, strict=True))


def _topology(
    spacing_mm: np.ndarray,
    shape: np.ndarray,
    dataset_voxels: float,
    labels: int,
    planner: Planner,
    most_values: float,
) -> Topology:
    """The network for cases of this median `shape` (nnU-Net: get_plans_for_configuration).

    The patch begins large, in the shape of a cube in mm. The axis that is longest for the cases'
    `shape` loses what its stages halve, until the network's feature values are at most
    `most_values`.
    """
    finer = 1 / spacing_mm
    patch = np.minimum(np.round(finer * (_LONG**3 / np.prod(finer)) ** (1 / 3)), shape)
    while True:
        strides, kernel_sizes = _pooling(spacing_mm, patch)
        divisor = np.array(total_strides(strides))
        patch = np.ceil(patch / divisor) * divisor
        if patch.min() < 1:
            raise UserError("no patch fits into that memory; plan for a larger GPU")
        topology = _network(patch, strides, kernel_sizes, planner.residual)
        values = feature_values(topology, labels)
        if values <= most_values:
            break
        longest = 2 - int(np.argmax((patch / shape)[::-1]))  # the last one of several
        # A patch shorter by the divisor may have another divisor, and that is what it loses.
        shorter = patch.copy()
        shorter[longest] -= divisor[longest]
        patch[longest] -= np.prod(_pooling(spacing_mm, shorter)[0], axis=0)[longest]
    fitting = round(most_values / values * _BATCH)
    most = round(dataset_voxels * planner.most_of_dataset / np.prod(patch))
    return replace(topology, batch_size=max(min(fitting, most), _BATCH))


def _network(
    patch: np.ndarray, strides: Sequence[Size], kernel_sizes: Sequence[Size], residual: bool
) -> Topology:
    """The network of these stages, with the smallest batch."""
    stages = len(strides)
    features = tuple(min(_FEATURES << stage, _MOST_FEATURES) for stage in range(stages))
    depth, height, width = (int(n) for n in patch)
    return Topology(
        patch_size=(depth, height, width),
        batch_size=_BATCH,
        features_per_stage=features,
        strides=tuple(strides),
        kernel_sizes=tuple(kernel_sizes),
        n_conv_per_stage_decoder=(1 if residual else 2,) * (stages - 1),
        n_conv_per_stage=() if residual else (2,) * stages,
        n_blocks_per_stage=residual_blocks(stages) if residual else (),
    )


def residual_blocks(stages: int) -> tuple[int, ...]:
    """How many each stage of a residual encoder has (nnU-Net: UNet_blocks_per_stage_encoder)."""
    return (1, 3, 4, *(6,) * stages)[:stages]


def _pooling(spacing_mm: np.ndarray, size: np.ndarray) -> tuple[list[Size], list[Size]]:
    """Strides and kernels of each stage (nnU-Net: get_pool_and_conv_props).

    A stage halves the axes that are long enough and less than twice as coarse as the finest of
    those. A kernel is of three voxels along an axis from the stage on at which its spacing is less
    than twice the finest; at the deepest stage along all.
    """
    spacing, size, kernel = spacing_mm.copy(), size.copy(), np.ones(3, int)
    strides, kernels = [(1, 1, 1)], []
    while (size >= 2 * _SHORTEST).any():
        halved = size >= 2 * _SHORTEST
        halved &= spacing / spacing[halved].min() < 2
        if halved.sum() == 1 and size[halved][0] < 3 * _SHORTEST:
            break
        kernel = np.where(spacing / spacing.min() < 2, 3, kernel)
        kernels.append(_ints(kernel))
        strides.append(_ints(np.where(halved, 2, 1)))
        spacing = np.where(halved, 2 * spacing, spacing)
        size = np.where(halved, np.ceil(size / 2), size)
    return strides, [*kernels, (3, 3, 3)]


def _ints(values: np.ndarray) -> Size:
    depth, height, width = (int(value) for value in values)
    return depth, height, width


def _floats(values: np.ndarray) -> tuple[float, float, float]:
    depth, height, width = (float(value) for value in values)
    return depth, height, width
