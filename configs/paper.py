"""The paper's experiments: every run of Tables I to III.

Where sources differ: the patch is the benchmark's 56 x 160 x 192, which PyTorch's network can run
too (the paper says 50 x 160 x 192, which works here as well: --config.data.patch_size=50,160,192);
the number of epochs is nnU-Net's 1000, since the paper states none; heads and transposed
convolutions have a bias as in nnU-Net v2 (v1: --config.model.head_bias=False).
"""

from covid_jax.config import Config, StudyConfig, named_run


def get_config(name: str = "scratch") -> Config:
    """The run called `name`: a strategy, with its source after a dash, or pretraining-SOURCE."""
    return named_run(Config(study=StudyConfig(note="covid_jax, the paper's protocol")), name)
