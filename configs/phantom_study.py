"""A study whose answer is known, of SYNTHETIC cases: a source like the target, and one that is not.

The target has ground glass as of COVID-19. So has the source here called msd, in other patients:
what is learned there must help. The source called nsclc is labelled with a mirage, lesions that lie
anywhere and of which nothing is to be seen: nothing that is learned there can. Two of the paper's
folds; 20 minutes on 2 cores.
"""

import dataclasses

from covid_jax.config import Config, RawDirs, StudyConfig, load_config_file, named_run


def get_config(name: str = "scratch") -> Config:
    """The run called `name`: a strategy, with its source after a dash, or pretraining-SOURCE."""
    quickstart = load_config_file("quickstart")
    strategies = ("body", "frozen_encoder", "multi_encoder")
    config = dataclasses.replace(
        quickstart,
        pretraining_epochs=20,
        epochs=20,  # after 6, a network from anywhere is still ahead of a new one
        checkpoint_every=5,
        study=StudyConfig(
            title="Transfer where there is some, and none where there is none",
            note="msd has the target's lesions, nsclc a mirage",
            folds=(0, 1),
            runs=("scratch", *(f"{s}-{source}" for source in ("msd", "nsclc") for s in strategies)),
            raw=RawDirs(
                phantom_cases=20,
                phantom_lesions=(("msd_lung", "covid19"), ("nsclc_effusion", "mirage")),
            ),
        ),
    )
    return named_run(config, name)
