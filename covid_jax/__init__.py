"""covid_jax: 3D lesion segmentation and transfer learning in JAX, after Wang et al. 2020."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # python -m covid_jax.COMMAND, whose imports take seconds
    from covid_jax.errors import end_on_stop_signals

    end_on_stop_signals()
