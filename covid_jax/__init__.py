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
    from covid_jax.config import Config, UNetConfig, load_config_file, named_run
    from covid_jax.data.geometry import Volume
    from covid_jax.data.preprocess import read_scan
    from covid_jax.data.volume import read_volume, write_volume
    from covid_jax.errors import UserError
    from covid_jax.evaluation.metrics import segmentation_metrics
    from covid_jax.inference.ensemble import open_ensemble, segment
    from covid_jax.inference.sliding_window import predict_volume
    from covid_jax.model.unet import MultiEncoderUNet, UNet
    from covid_jax.train import set_up
    from covid_jax.training.checkpoint import load_params
    from covid_jax.transfer.freezing import join, mask, split

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
__all__ = [
    "Config",
    "MultiEncoderUNet",
    "UNet",
    "UNetConfig",
    "UserError",
    "Volume",
    "join",
    "load_config_file",
    "load_params",
    "mask",
    "named_run",
    "open_ensemble",
    "predict_volume",
    "read_scan",
    "read_volume",
    "segment",
    "segmentation_metrics",
    "set_up",
    "split",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


# python -m covid_jax.COMMAND, or covid-jax: their imports take seconds.
if sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0]) == "covid-jax":
    from covid_jax.errors import end_on_stop_signals

    end_on_stop_signals()
