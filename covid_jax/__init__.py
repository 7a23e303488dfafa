"""covid_jax: 3D lesion segmentation and transfer learning in JAX, after Wang et al. 2020."""

import os
import sys

__version__ = "0.1.0"

# python -m covid_jax.COMMAND, or covid-jax: their imports take seconds.
if sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0]) == "covid-jax":
    from covid_jax.errors import end_on_stop_signals

    end_on_stop_signals()
