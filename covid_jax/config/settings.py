"""Every setting of a run, as typed dataclasses, and the runs that have names.

The classes are hashable and not frozen, as ml_collections' config_flags sets overridden fields in
place (command_line.py), and a config file may change the Config that it loads; nobody else does.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

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

PAPER_RUNS = (
    "scratch",
    *(f"{s}-{p}" for s in ("continual", "body", "frozen_encoder") for p in SOURCES if p != "none"),
    "multi_encoder-multi_lesion",
)
"""The rows of the paper's Table I."""


class NoFieldError(AttributeError):
    """A field was set that there is none of."""


class _Settings:
    """What can be set to nothing but its fields: a slip in a name is an error where it is made."""

    if not typing.TYPE_CHECKING:  # which sees it for itself, unless there is this method

        def __setattr__(self, name: str, value: Any) -> None:
            names = [f.name for f in dataclasses.fields(self)]
            if name not in names:
                kind = type(self).__name__
                raise NoFieldError(f"{kind} has no field {name!r}; it has {', '.join(names)}")
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
    foreground_fraction: float = 0.33  # of a batch, around a lesion voxel; rounded as nnU-Net does
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

    nnU-Net's layout has no phantoms: left empty, it is no part of the study.
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
    # Of a pre-training, and of a run of "continual": both stand on one schedule of the sum of both.
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
            f"there are {', '.join(STRATEGY_NAMES)} and pretraining"
        )
    return dataclasses.replace(config, strategy=strategy, source=source)


def run_name(config: Config) -> str:
    """<strategy>-<source>-fold<k>, the folder of a run in a study; a variant stands before fold."""
    parts = (config.strategy, config.source, config.variant, f"fold{config.fold}")
    return "-".join(part for part in parts if part)


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


def left_to_plan(config: Config) -> tuple[str, ...]:
    """The fields that are empty: their values are the plan's (nnU-Net: plans.json)."""
    return tuple(name for name, given in planned_fields(config).items() if not given)


def is_settings(value: Any) -> bool:
    """Whether a field holds settings of its own."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def as_tuple(value: Any) -> Any:
    """`value` with tuples for its lists, which JSON knows alone."""
    return tuple(as_tuple(item) for item in value) if isinstance(value, list) else value
