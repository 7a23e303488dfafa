"""nnU-Net v2's training on any dataset, with the network that its plan.json has.

    python -m covid_jax.prepare --dataset=nnunet --raw_dir=RAW --out_dir=prepared --planner=default
    python -m covid_jax.train --config=configs/nnunet.py --config.data.prepared_dir=prepared ...

Network, patch and batch size are the plan's; a value that is given here or as a flag wins. The run
`body-NAME` (or another strategy) starts from config.pretrained, a run or a network that was
imported; `pretraining-NAME` is a pre-training on the prepared dataset NAME. A study of all that,
from raw folders on: docs/study.md.
"""

from covid_jax.config import (
    Config,
    DataConfig,
    InferenceConfig,
    LossConfig,
    StudyConfig,
    UNetConfig,
    named_run,
)

_OF_THE_PLAN = UNetConfig(
    features_per_stage=(),
    kernel_sizes=(),
    strides=(),
    n_conv_per_stage=(),
    n_conv_per_stage_decoder=(),
)


def get_config(name: str = "scratch") -> Config:
    """The run called `name`: a strategy, with its source after a dash, or pretraining-NAME."""
    config = Config(
        model=_OF_THE_PLAN,
        data=DataConfig(datasets=("nnunet",), patch_size=(0, 0, 0), batch_size=0),
        loss=LossConfig(batch_dice=None),
        inference=InferenceConfig(average="logits", mirror=True),
        study=StudyConfig(title="Transfer strategies", runs=("scratch",)),
    )
    return named_run(config, name)
