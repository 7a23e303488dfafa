"""covid_jax: 3D lesion segmentation and transfer learning in JAX, after Wang et al. 2020.

What a notebook needs can be imported from here (docs/api.md); each name is loaded when it is asked
for, so that `import covid_jax` costs nothing.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from covid_jax.config import Config as Config
    from covid_jax.config import UNetConfig as UNetConfig
    from covid_jax.config import load_config_file as load_config_file
    from covid_jax.config import named_run as named_run
    from covid_jax.data.geometry import Volume as Volume
    from covid_jax.data.preprocess import read_scan as read_scan
    from covid_jax.data.volume import read_volume as read_volume
    from covid_jax.data.volume import write_volume as write_volume
    from covid_jax.errors import UserError as UserError
    from covid_jax.evaluation.metrics import segmentation_metrics as segmentation_metrics
    from covid_jax.inference.ensemble import open_ensemble as open_ensemble
    from covid_jax.inference.ensemble import segment as segment
    from covid_jax.inference.sliding_window import predict_volume as predict_volume
    from covid_jax.model.unet import MultiEncoderUNet as MultiEncoderUNet
    from covid_jax.model.unet import UNet as UNet
    from covid_jax.train import set_up as set_up
    from covid_jax.training.checkpoint import load_params as load_params
    from covid_jax.transfer.freezing import join as join
    from covid_jax.transfer.freezing import mask as mask
    from covid_jax.transfer.freezing import split as split

_MODULES = {
    "Config": "config",
    "UNetConfig": "config",
    "load_config_file": "config",
    "named_run": "config",
    "Volume": "data.geometry",
    "read_scan": "data.preprocess",
    "read_volume": "data.volume",
    "write_volume": "data.volume",
    "UserError": "errors",
    "segmentation_metrics": "evaluation.metrics",
    "open_ensemble": "inference.ensemble",
    "segment": "inference.ensemble",
    "predict_volume": "inference.sliding_window",
    "MultiEncoderUNet": "model.unet",
    "UNet": "model.unet",
    "set_up": "train",
    "load_params": "training.checkpoint",
    "join": "transfer.freezing",
    "mask": "transfer.freezing",
    "split": "transfer.freezing",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


# python -m covid_jax.COMMAND, or covid-jax: their imports take seconds.
_started = os.path.basename(sys.argv[0]) if sys.argv else ""
if _started == "covid-jax" or (
    _started == "-m" and any(part.partition(".")[0] == "covid_jax" for part in sys.orig_argv)
):
    from covid_jax.stopping import end_on_stop_signals

    end_on_stop_signals()
