"""The paper's study on its 20 real cases in their reduced form; pre-training is synthetic.

All 5 folds and 14 rows of Table I, on the quickstart's network (`--jobs=2` on 2 cores). Loss,
sampling, augmentation and mirrored prediction are nnU-Net's; network, steps and learning rate are
what did best for its time on the training cases of fold 0, each left out once (docs/study.md).
Values are not comparable with the paper's, which are of full scans; differences between strategies
may be.
"""

import dataclasses

from covid_jax.config import (
    Config,
    InferenceConfig,
    OptimizerConfig,
    RawDirs,
    StudyConfig,
    load_config_file,
    named_run,
)


def get_config(name: str = "scratch") -> Config:
    """The run called `name`: a strategy, with its source after a dash, or pretraining-SOURCE."""
    quickstart = load_config_file("quickstart")
    config = dataclasses.replace(
        quickstart,
        pretraining_epochs=10,
        epochs=15,
        steps_per_epoch=100,
        validation_steps=10,
        checkpoint_every=5,
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9),
        inference=InferenceConfig(mirror=True),  # as nnU-Net predicts
        study=StudyConfig(
            title="Transfer of lung lesions to COVID-19 CT, reduced",
            note=quickstart.study.note,
            raw=RawDirs(covid19=quickstart.study.raw.covid19, phantom_cases=20),
        ),
    )
    return named_run(config, name)
