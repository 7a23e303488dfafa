"""A study whose answer is known, of SYNTHETIC cases: a source like the target, and one that is not.

The target has ground glass as of COVID-19. So has the source here called msd, in other patients:
what is learned there must help. The source called nsclc is labelled with a mirage, lesions of which
nothing is to be seen in the image: nothing that is learned there can. Two of the paper's folds; 20
minutes on 2 cores. What it showed is in docs/transfer.md.
"""

from covid_jax.config import (
    Config,
    DataConfig,
    InferenceConfig,
    OptimizerConfig,
    RawDirs,
    StudyConfig,
    UNetConfig,
    named_run,
)


def get_config(name: str = "scratch") -> Config:
    """The run called `name`: a strategy, with its source after a dash, or pretraining-SOURCE."""
    config = Config(
        pretraining_epochs=20,
        epochs=6,
        steps_per_epoch=40,
        validation_steps=4,
        checkpoint_every=5,
        model=UNetConfig(
            features_per_stage=(8, 16, 32, 64),
            kernel_sizes=((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
            strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
            n_conv_per_stage=(2, 2, 2, 2),
            n_conv_per_stage_decoder=(2, 2, 2),
        ),
        optimizer=OptimizerConfig(learning_rate=0.05, momentum=0.9),
        data=DataConfig(patch_size=(16, 64, 64)),
        inference=InferenceConfig(step_size=0.75),
        study=StudyConfig(
            title="Transfer where there is some, and none where there is none",
            note="msd has the target's lesions, nsclc a mirage",
            folds=(0, 1),
            runs=(
                "scratch",
                "body-msd",
                "frozen_encoder-msd",
                "multi_encoder-msd",
                "body-nsclc",
                "frozen_encoder-nsclc",
                "multi_encoder-nsclc",
            ),
            raw=RawDirs(
                phantom_cases=20,
                phantom_lesions=(("msd_lung", "covid19"), ("nsclc_effusion", "mirage")),
            ),
        ),
    )
    return named_run(config, name)
