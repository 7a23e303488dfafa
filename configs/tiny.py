"""A run of less than a minute on 2 cores, on synthetic cases that it makes itself: 2 x 10 steps."""

from covid_jax.config import Config, DataConfig, InferenceConfig, UNetConfig, named_run


def get_config(name: str = "scratch") -> Config:
    """The run called `name`: a strategy, with its source after a dash ("body-msd")."""
    config = Config(
        epochs=2,
        pretraining_epochs=2,
        steps_per_epoch=10,
        validation_steps=2,
        checkpoint_every=1,
        model=UNetConfig(
            features_per_stage=(4, 8, 16),
            kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
            strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
            n_conv_per_stage=(1, 1, 1),
            n_conv_per_stage_decoder=(1, 1),
        ),
        data=DataConfig(datasets=("phantom",), patch_size=(8, 24, 24)),
        inference=InferenceConfig(step_size=0.75),
    )
    return named_run(config, name)
