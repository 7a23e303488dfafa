"""The small study of launch/quickstart.sh: 20 real cases, reduced; pre-training synthetic.

One fold of the paper's, all five strategies, on a network and for a number of steps that 2 cores
finish in minutes. The results are real and not comparable in value with the paper's.
"""

from covid_jax.config import (
    CONFIGS,
    Config,
    DataConfig,
    InferenceConfig,
    OptimizerConfig,
    RawDirs,
    StudyConfig,
    UNetConfig,
    named_run,
)

_EXAMPLES = CONFIGS.parent / "examples"


def get_config(name: str = "scratch") -> Config:
    """The run called `name`: a strategy, with its source after a dash, or pretraining-SOURCE."""
    config = Config(
        pretraining_epochs=8,
        epochs=5,
        steps_per_epoch=40,
        validation_steps=4,
        checkpoint_every=2,
        model=UNetConfig(
            features_per_stage=(8, 16, 32, 64),
            kernel_sizes=((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
            strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
            n_conv_per_stage=(2, 2, 2, 2),
            n_conv_per_stage_decoder=(2, 2, 2),
        ),
        # So few steps want a larger rate and a shorter memory than nnU-Net's 0.01 and 0.99.
        optimizer=OptimizerConfig(learning_rate=0.05, momentum=0.9),
        data=DataConfig(patch_size=(16, 64, 64)),
        inference=InferenceConfig(step_size=0.75),
        study=StudyConfig(
            title="Quickstart: the five transfer strategies on COVID-19 CT",
            note="20 real cases, reduced; pre-training synthetic",
            folds=(0,),
            # The longest of those that wait for the pre-training is begun first.
            runs=("scratch", "multi_encoder", "continual", "body", "frozen_encoder"),
            raw=RawDirs(covid19=str(_EXAMPLES / "covid19")),
            scans=(str(_EXAMPLES / "lidc" / "LIDC-IDRI-0001"),),
        ),
    )
    return named_run(config, name)
