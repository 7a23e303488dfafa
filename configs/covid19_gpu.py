"""The grid of covid19_reduced.py, for 2,000 steps a run on a wider network: for one GPU, in one go.

    bash launch/gpu_study.sh --output=DIR

On 2 cores it takes a night, and goes on where it was stopped:

    python -m covid_jax.study --config=configs/covid19_gpu.py --workdir=DIR --jobs=2
"""

import dataclasses

from covid_jax.config import Config, load_config_file, named_run


def get_config(name: str = "scratch") -> Config:
    """The run called `name`, as for the other configs."""
    reduced = load_config_file("covid19_reduced")
    study = dataclasses.replace(
        reduced.study, title="Transfer of lung lesions to COVID-19 CT, reduced, 2,000 steps a run"
    )
    # Epochs of 200 steps: a GPU does 100 in a fifth of a second, less than an epoch's end takes.
    longer = dataclasses.replace(
        reduced,
        pretraining_epochs=10,
        epochs=10,
        steps_per_epoch=200,
        checkpoint_every=5,
        model=dataclasses.replace(reduced.model, features_per_stage=(16, 32, 64, 128)),
        study=study,
    )
    return named_run(longer, name)
