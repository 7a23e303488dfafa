"""Every setting of a run, as typed dataclasses; their validation; reading and writing them.

A config file (see configs/) has `get_config(arg)` that returns a `Config`. Any field can be
overridden from the command line: `--config.optimizer.learning_rate=0.02`. The classes are hashable
and not frozen: ml_collections' config_flags sets the overridden fields in place, a config file may
those of another that it loads, and nobody else does.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import itertools
import json
import re
import traceback
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from absl import flags

from covid_jax.errors import UserError
from covid_jax.label_space import CLASSES, LabelSpace

STRATEGY_NAMES = ("scratch", "continual", "body", "frozen_encoder", "multi_encoder")
"""The paper's strategies (section III); what each one does is in transfer/strategies.py."""

SOURCES: dict[str, tuple[str, ...]] = {
    "none": (),
    "msd": ("msd_lung",),
    "structseg": ("structseg_gtv",),
    "nsclc": ("nsclc_effusion",),
    "multi_lesion": ("msd_lung", "structseg_gtv", "nsclc_effusion"),
}
"""Pre-training sources (paper section IV-A) and the datasets each one is trained on.

A source of another name is a dataset of that name, or a network that was imported.
"""

PAPER_DATASETS = ("covid19", *SOURCES["multi_lesion"])
"""The target of the paper, and what it pre-trains on; their folds are published."""

LARGEST = 1 << 20
"""Of the numbers of a network and its patch: one above is a slip, and its product no number."""

NAME = r"\w[\w.+-]*"
"""What a dataset, or a source, may be called: it becomes a folder."""

FIRST_CONVS = ("", "repeat", "mean", "new")
"""How the first convolution is taken from a network that sees other channels; "": it is refused."""

ANISOTROPY = 3.0
"""Ratio of the coarsest to the finest axis from which nnU-Net treats the coarsest apart."""

IGNORED = 255
"""The value of a label's voxels that take no part in loss and metrics (nnU-Net's ignore label)."""

OUTSIDE = 254
"""The value of background outside of a scan's non-zero region (nnU-Net's -1) in prepared labels.

It is there where a channel is normalised within that region, and nothing that is trained on has it.
"""

PAPER_RUNS = (
    "scratch",
    *(f"{s}-{p}" for s in ("continual", "body", "frozen_encoder") for p in SOURCES if p != "none"),
    "multi_encoder-multi_lesion",
)
"""The rows of the paper's Table I."""


class _NoFieldError(AttributeError):
    """A field was set that there is none of."""


class _Settings:
    """What can be set to nothing but its fields: a slip in a name is an error where it is made."""

    if not typing.TYPE_CHECKING:  # which sees it for itself, unless there is this method

        def __setattr__(self, name: str, value: Any) -> None:
            names = [f.name for f in dataclasses.fields(self)]
            if name not in names:
                kind = type(self).__name__
                raise _NoFieldError(f"{kind} has no field {name!r}; it has {_listed(names)}")
            super().__setattr__(name, value)


@dataclass(unsafe_hash=True)
class UNetConfig(_Settings):
    """Topology of the network, under nnU-Net's names. The default is the benchmark's network.

    What is empty is the plan's (left_to_plan).
    """

    in_channels: int = 1  # set by train from the plan, or refused
    # Channels of a head, the background's included, of which regions have none; set by train from
    # the datasets, or refused.
    num_classes: int = 2
    features_per_stage: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    kernel_sizes: tuple[tuple[int, int, int], ...] = ((1, 3, 3),) + ((3, 3, 3),) * 5
    strides: tuple[tuple[int, int, int], ...] = (
        (1, 1, 1),
        (1, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
        (1, 2, 2),
    )
    n_conv_per_stage: tuple[int, ...] = (2,) * 6  # of a plain encoder; () where it is residual
    # Of a residual encoder, as nnU-Net's ResidualEncoderUNet has it. Empty: the encoder is plain.
    n_blocks_per_stage: tuple[int, ...] = ()
    n_conv_per_stage_decoder: tuple[int, ...] = (2,) * 5  # deepest first, as in nnU-Net
    # Of the decoder, deepest first. Empty: each stage has the kernel of the encoder's stage, as in
    # nnU-Net v2; in v1 it has that of the stage below.
    kernel_sizes_decoder: tuple[tuple[int, int, int], ...] = ()
    deep_supervision: bool = True
    conv_bias: bool = True
    head_bias: bool = True  # of heads and transposed convolutions: nnU-Net v2 True, v1 False
    norm_epsilon: float = 1e-5  # added to the instance norm's variance
    negative_slope: float = 0.01  # of the leaky ReLU

    def decoder_kernel_size(self, stage: int) -> tuple[int, int, int]:
        """Of the decoder's convolutions at the resolution of `stage`."""
        kernels = self.kernel_sizes_decoder
        return kernels[-1 - stage] if kernels else self.kernel_sizes[stage]


@dataclass(unsafe_hash=True)
class OptimizerConfig(_Settings):
    """nnU-Net's SGD: Nesterov momentum, L2 weight decay, clipped gradients, poly schedule."""

    learning_rate: float = 0.01
    momentum: float = 0.99
    weight_decay: float = 3e-5
    clip_norm: float = 12.0
    poly_power: float = 0.9


@dataclass(unsafe_hash=True)
class DataConfig(_Settings):
    """Prepared data, and what a batch is cut from it."""

    prepared_dir: str = ""  # folder that prepare wrote
    datasets: tuple[str, ...] = ("covid19",)  # several: one is drawn for each sample
    patch_size: tuple[int, int, int] = (56, 160, 192)  # (0, 0, 0): the plan's
    batch_size: int = 2  # 0: the plan's
    foreground_fraction: float = 0.33  # of a batch, centred on a lesion voxel (nnU-Net)
    augment: bool = True
    workers: int = 0  # processes that cut batches; 0: threads of this one


@dataclass(unsafe_hash=True)
class LossConfig(_Settings):
    """Dice + cross-entropy with deep supervision, as nnU-Net."""

    # Sum the Dice terms over the batch before the ratio; None: where the plan has it so.
    batch_dice: bool | None = False
    # Of several datasets, each labels its own lesion: the classes that a case's dataset does not
    # label count as its background. Without it, other lesions that are there would be called wrong.
    # Of one dataset it changes nothing.
    marginal: bool = True


@dataclass(unsafe_hash=True)
class MeshConfig(_Settings):
    """Devices along the batch (`data`) and along the depth of the patch (`space`)."""

    data: int = 1
    space: int = 1


@dataclass(unsafe_hash=True)
class InferenceConfig(_Settings):
    """Sliding windows over whole scans."""

    step_size: float = 0.5  # of a window, between windows
    average: str = "probabilities"  # of windows and views, as nnU-Net v1; "logits" as v2
    sums: str = "float32"  # over windows; "float16" as nnU-Net v2, where weights vanish at edges
    mirror: bool = False  # average over the views mirrored along mirror_axes, 8 where it is all
    # D, H, W by their numbers, along which training mirrors, or an imported network's training did
    # (nnU-Net: inference_allowed_mirroring_axes). Empty: along none, and `mirror` is refused.
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 2  # windows at once
    threshold: float = 0.0  # of the lesions' probability; 0: the likeliest class
    largest_only: bool = False  # keep the largest component alone
    choose: bool = False  # after training, choose both by the DSC of the training cases


@dataclass(unsafe_hash=True)
class RawDirs(_Settings):
    """Raw data of a study; an empty folder name stands for synthetic phantoms in that layout.

    Of nnU-Net's layout there are none.
    """

    covid19: str = ""
    msd_lung: str = ""
    structseg_gtv: str = ""
    nsclc_effusion: str = ""
    nnunet: str = ""
    phantom: str = ""
    # One's own in nnU-Net's layout, any number, by the names that they get:
    # (("mine", "raw/Dataset101_Mine"), ("lesions", "raw/Dataset102_Lesions")).
    own: tuple[tuple[str, str], ...] = ()
    phantom_cases: int = 10  # synthetic cases of each dataset that has no folder
    # Datasets whose synthetic cases have other lesions than their own, such as
    # (("msd_lung", "covid19"),); the kinds are data/phantom.py's.
    phantom_lesions: tuple[tuple[str, str], ...] = ()

    @property
    def folders(self) -> dict[str, str]:
        """Of each dataset that there is, by its name; "" stands for synthetic cases."""
        layouts = {name: getattr(self, name) for name in LAYOUTS}
        if not self.nnunet:
            del layouts["nnunet"]
        return layouts | dict(self.own)


LAYOUTS = tuple(f.name for f in dataclasses.fields(RawDirs) if f.type is str)
"""The datasets that have a name and a layout of their own (data/datasets.py)."""


def layout_of(dataset: str) -> str:
    """Of a study's dataset: its own, or nnU-Net's."""
    return dataset if dataset in LAYOUTS else "nnunet"


@dataclass(unsafe_hash=True)
class StudyConfig(_Settings):
    """The grid of runs of study.py, and how its report is titled."""

    title: str = ""  # of the report; "": it is called after the data
    note: str = ""  # printed over every table and figure, e.g. what the data is
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    runs: tuple[str, ...] = PAPER_RUNS  # of every fold, by the names that named_run takes
    seeds: tuple[int, ...] = ()  # of every run in every fold; (): the config's own
    raw: RawDirs = field(default_factory=RawDirs)
    # Whose rules plan the network, where the config leaves it to the plan (data/planner.PLANNERS,
    # "": nnU-Net's default), and for a GPU of which memory (0: the planner's own).
    planner: str = ""
    gpu_memory_gb: float = 0.0
    scans: tuple[str, ...] = ()  # scans without a reference that the report shows as well


@dataclass(unsafe_hash=True)
class Config(_Settings):
    """One run of one strategy: what `python -m covid_jax.train --config=...` trains."""

    seed: int = 0
    fold: int = 0
    strategy: str = "scratch"
    source: str = "none"  # what `pretrained` was trained on
    variant: str = ""  # a name for what else sets this run apart in a study (configs/freezing.py)
    pretrained: str = ""  # work directory of the pre-training run
    pretraining: bool = False  # this run is itself the pre-training on `source`
    first_conv: str = ""  # from a network of other channels, one of FIRST_CONVS
    # Of pre-training, and of the schedule that a run of "continual" goes on with; no other uses it.
    pretraining_epochs: int = 1000
    epochs: int = 1000  # of a run that is no pre-training
    steps_per_epoch: int = 250
    validation_steps: int = 50
    checkpoint_every: int = 50  # epochs
    # Of activations: float32, bfloat16, or auto: bfloat16 on GPU and TPU (nnU-Net trains in mixed
    # precision), float32 on CPU. Parameters, norms and loss are float32.
    dtype: str = "auto"
    # Compute each stage again in the backward pass: less memory, more time. On GPU and TPU; XLA for
    # CPU undoes it.
    remat: bool = False
    # On a GPU: the same parameters bit for bit in each run and after each restart, for some speed
    # (docs/scaling.md). A CPU gives them anyway.
    deterministic: bool = False
    test: bool = True  # at the end, predict and score the fold's test cases
    # Patterns over parameter paths (transfer/freezing.py): what is frozen besides the strategy's,
    # and from which epoch on one more pattern holds, such as (10, "!encoder/stage_5") to unfreeze.
    frozen: tuple[str, ...] = ()
    frozen_schedule: tuple[tuple[int, str], ...] = ()
    # What is segmented, with the ignored value as it is prepared; set by train from the datasets.
    label_space: LabelSpace = CLASSES
    model: UNetConfig = field(default_factory=UNetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    study: StudyConfig = field(default_factory=StudyConfig)


def named_run(config: Config, name: str) -> Config:
    """`config` as one run of a study.

    `name` is "scratch", another strategy with the source of its pre-training ("body-msd"; the
    source is multi_lesion where it is left out), or "pretraining-<source>". A source is one of
    SOURCES or a name of one's own: of a prepared dataset, or of what config.pretrained is.
    """
    if name == "scratch":
        return config
    strategy, _, source = name.partition("-")
    source = source or "multi_lesion"
    if source == "none":
        raise UserError(f"config argument {name!r}: without a source there is scratch alone")
    if strategy == "pretraining":
        return dataclasses.replace(
            config,
            pretraining=True,
            strategy="scratch",
            source=source,
            test=False,
            data=dataclasses.replace(config.data, datasets=SOURCES.get(source, (source,))),
        )
    if strategy not in STRATEGY_NAMES:
        raise UserError(
            f"config argument {name!r}: no strategy {strategy!r}; "
            f"there are {_listed(STRATEGY_NAMES)} and pretraining"
        )
    return dataclasses.replace(config, strategy=strategy, source=source)


def run_name(config: Config) -> str:
    """<strategy>-<source>-fold<k>, the folder of a run in a study; a variant stands before fold."""
    parts = (config.strategy, config.source, config.variant, f"fold{config.fold}")
    return "-".join(part for part in parts if part)


def validate(config: Config) -> None:
    """Raises a UserError that names the first field whose value cannot work.

    What is left to the plan is looked at where that is known (training/run.fitted).
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
        f"must be one of {_listed(STRATEGY_NAMES)}",
    )
    _require(
        re.fullmatch(NAME, config.source) is not None,
        "source",
        config.source,
        f"must be a name, such as {_listed(SOURCES)}",
    )
    _require(
        config.first_conv in FIRST_CONVS,
        "first_conv",
        config.first_conv,
        f"must be one of {_listed(FIRST_CONVS[1:])}, or left out",
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


def left_to_plan(config: Config) -> tuple[str, ...]:
    """The fields that are empty: their values are the plan's (nnU-Net: plans.json)."""
    return tuple(name for name, given in planned_fields(config).items() if not given)


def planned_fields(config: Config) -> dict[str, bool]:
    """The fields that a plan has too, and whether `config` has its own value of each."""
    model, data = config.model, config.data
    values = {
        "model.features_per_stage": model.features_per_stage,
        "model.kernel_sizes": model.kernel_sizes,
        "model.strides": model.strides,
        "model.n_conv_per_stage": model.n_conv_per_stage or model.n_blocks_per_stage,
        "model.n_conv_per_stage_decoder": model.n_conv_per_stage_decoder,
        "data.patch_size": any(data.patch_size),
        "data.batch_size": data.batch_size,
        "loss.batch_dice": config.loss.batch_dice is not None,
    }
    return {name: bool(value) for name, value in values.items()}


def check_prediction(config: Config) -> None:
    """Raises a UserError that names the first field with which nothing can be predicted."""
    check_network(config.model)
    data, inference, classes = config.data, config.inference, config.model.num_classes
    regions = config.label_space.regions
    _require(
        classes == len(regions) if regions else classes > 1,
        "model.num_classes",
        classes,
        f"must be {len(regions)}, one for each region"
        if regions
        else "must be 2 or more, the background is one of them",
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


def define_config_flag(own: flags.FlagValues) -> flags.FlagHolder[Config]:
    """Among a command's `own`, --config=FILE.py[:ARGUMENT] and --config.FIELD=VALUE of Config."""
    # Here, not above: what needs no flags runs without it, such as the benchmark on a bare machine.
    from ml_collections import config_flags

    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, and after a colon the run: configs/paper.py:body-msd; or a run's "
        "config.json. Every field of Config (covid_jax/config.py) is a flag: "
        "--config.optimizer.learning_rate=0.02.",
        flag_values=own,
    )
    own["config"].parser = _ConfigParser()
    return holder


class _ConfigParser(flags.ArgumentParser):  # type: ignore[misc]
    """Reads the value of --config."""

    def parse(self, argument: str) -> Config:
        """As load_config_file."""
        return load_config_file(argument)


def config_from_flag(holder: flags.FlagHolder[Config]) -> Config:
    """The validated value of --config."""
    config = holder.value
    if config is None:
        raise UserError("--config is missing, for example --config=configs/quickstart.py")
    return _complete(config)


def run_from_flag(own: flags.FlagValues, name: str) -> Config:
    """What the file of --config makes of the name of a run, with the same fields overridden.

    But for data.datasets of a pre-training: what is overridden is the target, and not its source.
    """
    from ml_collections import config_flags

    config = load_config_file(f"{config_flags.get_config_filename(own['config'])}:{name}")
    for field_path, value in config_flags.get_override_values(own["config"]).items():
        if field_path == "data.datasets" and config.pretraining:
            continue
        *places, last = field_path.split(".")
        setattr(functools.reduce(getattr, places, config), last, value)
    return _complete(config)


def _complete(config: Config) -> Config:
    """`config` as its flags have left it, validated."""
    check_types(config, "config")
    config.data.datasets = _each_name(config.data.datasets)
    config.study.runs = _each_name(config.study.runs)
    validate(config)
    return config


def _each_name(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a flag, where "a,b" are two: ml_collections takes them for one."""
    return tuple(itertools.chain.from_iterable(name.split(",") for name in names))


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
            names = [f.name for f in dataclasses.fields(place)] if _is_settings(place) else []
            if part not in names:
                above = ".".join(name.split(".")[: depth + 1])
                raise UserError(f"--{name}: {above} has no field {part!r}; it has {_listed(names)}")
            place = getattr(place, part)


def load_config_file(spec: str) -> Config:
    """The Config of `FILE.py[:ARGUMENT]`, or of a run's config.json.

    What the latter says of its datasets' channels and labels is left out: others have others.

    Raises:
      UserError: it is neither, or fails; a fault of this program that it meets stays as it is.
    """
    file, _, argument = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--config={spec}: no file {file}; configs/ has the ones that come along")
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


@contextlib.contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Turns what fails in a config file, and not in this program that it calls, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[2:]  # without this, and who calls it
        ours = any(Path(__file__).parent in Path(frame.filename).parents for frame in frames)
        if ours and not isinstance(error, _NoFieldError):
            raise
        lines = [f.lineno for f in frames if Path(f.filename) == path.absolute()]
        told = f"{'' if ours else type(error).__name__ + ': '}{error}"
        if isinstance(error, SyntaxError):  # of this file, or of one that it imports
            path, lines = Path(error.filename or path), [error.lineno]
            told = f"is no Python ({error.msg})"
        line = f", line {lines[-1]}" if lines and lines[-1] else ""
        raise UserError(f"{path}{line}: {' '.join(told.split())}") from error


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


def read_config(path: Path, name: str = "") -> Config:
    """The config in a JSON file, of this version or an older one; errors call it `name`.

    Raises:
      UserError: the file is damaged, or has settings that this version does not know.
    """
    try:
        return from_dict(json.loads(path.read_text("utf-8-sig")))
    except UserError as error:
        told = f"{name or path}: {error}; a newer version of covid_jax wrote it?"
        raise UserError(told) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{name or path}: damaged ({error})") from error


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


def _build(kind: type, values: dict[str, Any], place: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise UserError(f"{place}={values!r}: must be settings by name")
    unknown = values.keys() - hints.keys()
    if unknown:
        raise UserError(f"{place} has no field {_listed(sorted(unknown))}")
    return kind(
        **{
            name: _build(hints[name], value, f"{place}.{name}")
            if dataclasses.is_dataclass(hints[name])
            else _as_tuple(value)
            for name, value in values.items()
        }
    )


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def check_types(settings: Any, place: str) -> None:
    """Raises a UserError for the first field of a dataclass that is not of its type."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _has_type(value, hint):
            told = f"{place}.{name}={value!r}: must be {_type_name(hint)}"
            meant = [v for v in ((value,), _as_tuple(value)) if _has_type(v, hint)]
            raise UserError(told + (f", such as {meant[0]!r}" if meant else ""))
        if _is_settings(value):
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


def _is_settings(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _require_once(name: str, values: tuple[Any, ...], what: str) -> None:
    _require(len({*values}) == len(values), name, values, f"must name each {what} once")


def _require(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise UserError(f"config.{name}={value!r}: {rule}")


def _listed(names: typing.Iterable[str]) -> str:
    return ", ".join(names) or "none"
