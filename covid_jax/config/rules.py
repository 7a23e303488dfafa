"""What has to hold of settings: their types, their ranges, and what goes together."""

import itertools
import re
import typing
from pathlib import Path
from typing import Any

from covid_jax.config.settings import (
    FIRST_CONVS,
    LARGEST,
    LAYOUTS,
    NAME,
    SOURCES,
    STRATEGY_NAMES,
    Config,
    UNetConfig,
    as_tuple,
    is_settings,
    left_to_plan,
)
from covid_jax.errors import UserError
from covid_jax.label_space import OUTSIDE


def validate(config: Config) -> None:
    """Raises a UserError that names the first field whose value cannot work.

    What is left to the plan is looked at where that is known (training/completion.fitted).
    """
    check_types(config, "config")
    left = left_to_plan(config)
    if not left:
        check_prediction(config)
    data = config.data
    for name, value in {
        "epochs": config.epochs,
        "steps_per_epoch": config.steps_per_epoch,
        "pretraining_epochs": config.pretraining_epochs,
        "checkpoint_every": config.checkpoint_every,
        **({} if left else {"data.batch_size": data.batch_size}),
        "mesh.data": config.mesh.data,
        "mesh.space": config.mesh.space,
        "optimizer.clip_norm": config.optimizer.clip_norm,
    }.items():
        _require(value > 0, name, value, "must be greater than 0")
    for name, value in {
        "seed": config.seed,
        "fold": config.fold,
        "validation_steps": config.validation_steps,
        "data.workers": data.workers,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "optimizer.poly_power": config.optimizer.poly_power,
    }.items():
        _require(value >= 0, name, value, "must not be negative")
    _require(
        0 <= data.foreground_fraction <= 1,
        "data.foreground_fraction",
        data.foreground_fraction,
        "must lie between 0 and 1",
    )
    momentum = config.optimizer.momentum
    _require(0 <= momentum < 1, "optimizer.momentum", momentum, "must lie in 0 to below 1")
    _require(bool(data.datasets), "data.datasets", data.datasets, "must name a dataset")
    _require_once("data.datasets", data.datasets, "dataset")
    _require(
        config.strategy in STRATEGY_NAMES,
        "strategy",
        config.strategy,
        f"must be one of {', '.join(STRATEGY_NAMES)}",
    )
    _require(
        re.fullmatch(NAME, config.source) is not None,
        "source",
        config.source,
        f"must be a name, such as {', '.join(SOURCES)}",
    )
    _require(
        not config.variant or re.fullmatch(NAME, config.variant) is not None,
        "variant",
        config.variant,
        "must be a name, as it is part of the run's folder",
    )
    _require(
        config.first_conv in FIRST_CONVS,
        "first_conv",
        config.first_conv,
        f"must be one of {', '.join(FIRST_CONVS[1:])}, or left out",
    )
    _check_study(config)
    _check_is_done(config)


def _check_study(config: Config) -> None:
    """Raises a UserError that names the first setting of a study that cannot work."""
    study = config.study
    for what in ("fold", "run", "seed", "scan"):
        name = f"{what}s"
        _require_once(f"study.{name}", getattr(study, name), what)
    for name in ("folds", "seeds"):
        values = getattr(study, name)
        _require(min(values, default=0) >= 0, f"study.{name}", values, "must not be negative")
    for name, seeds in {"seed": (config.seed,), "study.seeds": study.seeds}.items():
        _require(max(seeds, default=0) < 2**32, name, seeds, "a seed is below 2**32")
    for name in ("folds", "runs"):
        values = getattr(study, name)
        _require(bool(values), f"study.{name}", values, f"must name one of its {name}")
    memory = study.gpu_memory_gb
    _require(not memory or memory >= 1, "study.gpu_memory_gb", memory, "must be at least 1, or 0")
    own = study.raw.own
    _require_once("study.raw.own", tuple(name for name, _ in own), "dataset")
    _require_once("study.raw.own", tuple(str(Path(raw).resolve()) for _, raw in own), "folder")
    for name, raw in own:
        _require(
            re.fullmatch(NAME, name) is not None and bool(raw),
            "study.raw.own",
            (name, raw),
            "must be a name of letters, digits and . + - _, and a folder",
        )
        _require(
            name not in (*LAYOUTS, *SOURCES),
            "study.raw.own",
            (name, raw),
            f"{name} is another dataset or source; call it otherwise",
        )


def check_prediction(config: Config) -> None:
    """Raises a UserError that names the first field with which nothing can be predicted."""
    check_network(config.model)
    data, inference, classes = config.data, config.inference, config.model.num_classes
    regions = config.label_space.regions
    _require(
        classes == len(regions) if regions else 1 < classes <= OUTSIDE,
        "model.num_classes",
        classes,
        f"must be {len(regions)}, one for each region"
        if regions
        else f"must be 2 to {OUTSIDE}, the background is one of them",
    )
    for name, value in {
        "inference.batch_size": inference.batch_size,
        "inference.step_size": inference.step_size,
        "model.norm_epsilon": config.model.norm_epsilon,
    }.items():
        _require(value > 0, name, value, "must be greater than 0")
    slope = config.model.negative_slope
    _require(slope >= 0, "model.negative_slope", slope, "must not be negative")
    threshold = inference.threshold
    _require(0 <= threshold < 1, "inference.threshold", threshold, "must lie in 0 to below 1")
    _require(
        inference.step_size <= 1,
        "inference.step_size",
        inference.step_size,
        "must not exceed 1: windows would leave gaps",
    )
    axes = inference.mirror_axes
    _require(
        set(axes) <= {0, 1, 2} and len(set(axes)) == len(axes),
        "inference.mirror_axes",
        axes,
        "must be axes of 0, 1, 2 (D, H, W), each once",
    )
    _require(
        bool(axes) or not inference.mirror,
        "inference.mirror",
        True,
        "inference.mirror_axes names no axis to mirror along",
    )
    _require(
        len(data.patch_size) == 3 and min(data.patch_size) > 0,
        "data.patch_size",
        data.patch_size,
        "must be three sizes (D,H,W), each greater than 0",
    )
    _require(
        config.dtype in ("auto", "float32", "bfloat16"),
        "dtype",
        config.dtype,
        "must be auto, float32 or bfloat16",
    )
    _require(
        inference.average in ("probabilities", "logits"),
        "inference.average",
        inference.average,
        "must be probabilities or logits",
    )
    _require(
        inference.sums in ("float32", "float16"),
        "inference.sums",
        inference.sums,
        "must be float32 or float16",
    )


def _check_is_done(config: Config) -> None:
    """Raises a UserError for what this run would pass over."""
    inference, raw = config.inference, config.study.raw
    _require(
        config.source == "none" or config.pretraining or config.strategy != "scratch",
        "source",
        config.source,
        "scratch starts from nothing; choose another strategy, or leave it out",
    )
    epochs = config.pretraining_epochs if config.pretraining else config.epochs
    _require(
        all(0 <= epoch < epochs for epoch, _ in config.frozen_schedule),
        "frozen_schedule",
        config.frozen_schedule,
        f"this run has the epochs 0 to {epochs - 1}",
    )
    if inference.choose:
        _require(
            not (inference.threshold or inference.largest_only),
            "inference.choose",
            True,
            "chooses threshold and largest_only itself; leave them out",
        )
        _require(
            config.test or config.pretraining,
            "inference.choose",
            True,
            "is done with the test; leave it out, or config.test=False",
        )
    for dataset, _ in raw.phantom_lesions:
        _require(
            getattr(raw, dataset, None) == "",
            "study.raw.phantom_lesions",
            raw.phantom_lesions,
            f"{dataset} is no synthetic dataset of this study",
        )


def check_network(model: UNetConfig) -> None:
    """Raises a UserError that names the first field of a network that cannot be built."""
    stages = len(model.features_per_stage)
    _require(model.in_channels > 0, "model.in_channels", model.in_channels, "must be at least 1")
    _require(
        stages > 1, "model.features_per_stage", model.features_per_stage, "must have 2 or more"
    )
    blocks = "n_blocks_per_stage" if model.n_blocks_per_stage else "n_conv_per_stage"
    _require(
        not (model.n_blocks_per_stage and model.n_conv_per_stage),
        "model.n_conv_per_stage",
        model.n_conv_per_stage,
        "an encoder with n_blocks_per_stage is residual and has no such; make it ()",
    )
    for name, length in {
        "kernel_sizes": stages,
        "strides": stages,
        blocks: stages,
        "n_conv_per_stage_decoder": stages - 1,
        "kernel_sizes_decoder": len(model.kernel_sizes_decoder) and stages - 1,
    }.items():
        value = getattr(model, name)
        _require(
            len(value) == length, f"model.{name}", value, f"must have {length} entries, one a stage"
        )
    _require(
        all(s > 0 and s % 2 for k in model.kernel_sizes + model.kernel_sizes_decoder for s in k),
        "model.kernel_sizes",
        model.kernel_sizes + model.kernel_sizes_decoder,
        "must be odd and greater than 0",
    )
    _require(
        all(s > 0 for stride in model.strides for s in stride) and set(model.strides[0]) == {1},
        "model.strides",
        model.strides,
        "must be greater than 0, and 1 in the first stage, which works at full resolution",
    )
    for name in ("features_per_stage", blocks, "n_conv_per_stage_decoder"):
        value = getattr(model, name)
        _require(min(value, default=1) > 0, f"model.{name}", value, "must be greater than 0")
    axes = itertools.chain(*model.kernel_sizes, *model.kernel_sizes_decoder, *model.strides)
    counts = (*model.features_per_stage, *getattr(model, blocks), *model.n_conv_per_stage_decoder)
    highest = max(*counts, *axes, model.in_channels)
    _require(highest <= LARGEST, "model", highest, f"no number of it may be above {LARGEST:,}")


def check_types(settings: Any, place: str) -> None:
    """Raises a UserError for the first field of a dataclass that is not of its type."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _has_type(value, hint):
            told = f"{place}.{name}={value!r}: must be {_type_name(hint)}"
            meant = [v for v in ((value,), as_tuple(value)) if _has_type(v, hint)]
            raise UserError(told + (f", such as {meant[0]!r}" if meant else ""))
        if is_settings(value):
            check_types(value, f"{place}.{name}")


def _has_type(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, tuple):
            return False
        if kinds[-1] is Ellipsis:
            return all(_has_type(item, kinds[0]) for item in value)
        return len(value) == len(kinds) and all(map(_has_type, value, kinds))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _require_once(name: str, values: tuple[Any, ...], what: str) -> None:
    _require(len({*values}) == len(values), name, values, f"must name each {what} once")


def _require(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise UserError(f"config.{name}={value!r}: {rule}")
