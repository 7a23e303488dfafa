r"""How much memory the mask of a large scan takes, from the scan to the mask.

    python -m benchmarks.prediction_memory --output=DIR [--classes=26] [--slices=75,150,300,600]

A scan of noise of 512 x 512 x SLICES voxels, the plan's grid the same or half as coarse again, a
network of 2 features that takes no room of its own; each in a process of its own, whose peak is
measured. Beside it what all probabilities at once would take, which is computed. Writes
prediction_memory.json.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.tables import Line, prediction_memory_table
from covid_jax.command import as_process, require, run_command
from covid_jax.config import Config, DataConfig, InferenceConfig, UNetConfig
from covid_jax.data.geometry import from_spacing
from covid_jax.data.normalization import ct
from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import prepare_case
from covid_jax.device import peak_resident_bytes
from covid_jax.inference.postprocess import Postprocessing, mask_of
from covid_jax.inference.scan import make_ensemble
from covid_jax.model.unet import UNet
from covid_jax.training.platform import platform_of

_FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", None, "Folder of prediction_memory.json.", _FLAGS)
_CLASSES = flags.DEFINE_integer(
    "classes", 26, "Of the network, background included.", lower_bound=2, flag_values=_FLAGS
)
_SLICES = flags.DEFINE_list("slices", ["75", "150", "300", "600"], "Of the scans.", _FLAGS)
_ONE = flags.DEFINE_string("one", None, "SLICES,COARSER: measure this in this process.", _FLAGS)

_PLANE = 512
_COARSER = (1.0, 1.5)
_PATCH = (56, 160, 192)  # the benchmark's


def measured(slices: int, coarser: float, classes: int) -> Line:
    """Seconds and peak bytes of this process for one mask."""
    network = UNetConfig(
        num_classes=classes,
        features_per_stage=(2, 2),
        kernel_sizes=((1, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (2, 2, 2)),
        n_conv_per_stage=(1, 1),
        n_conv_per_stage_decoder=(1,),
    )
    inference = InferenceConfig(average="logits", batch_size=1)
    config = Config(model=network, data=DataConfig(patch_size=_PATCH), inference=inference)
    spacing = (1.0, 0.75, 0.75)
    plan_mm = tuple(coarser * mm for mm in spacing)
    plan = Plan(plan_mm, (ct(-1000.0, 200.0, -500.0, 250.0),), _PATCH, ())  # type: ignore[arg-type]
    params = UNet(network).init(jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))["params"]
    shape = (slices, _PLANE, _PLANE)
    voxels = np.random.default_rng(0).integers(-1000, 300, shape, dtype=np.int16)
    before = time.perf_counter()
    case = prepare_case(from_spacing(voxels, spacing), None, plan)
    predict = make_ensemble([(config, plan, params)], None, platform_of("cpu"))
    mask_of(predict(case), case.geometry.shape, Postprocessing())
    return {
        "slices": slices,
        "plane": _PLANE,
        "classes": classes,
        "coarser": coarser,
        "seconds": time.perf_counter() - before,
        "peak_bytes": peak_resident_bytes(),
        "all_at_once_bytes": 4 * classes * int(np.prod(shape)),
    }


def work() -> None:
    """Measures what the flags say."""
    if _ONE.value:
        slices, coarser = _ONE.value.split(",")
        print(json.dumps(measured(int(slices), float(coarser), _CLASSES.value)))
        return
    require(_OUTPUT)
    lines: list[Line] = []
    for coarser in _COARSER:
        for slices in _SLICES.value:
            flag = [f"--one={slices},{coarser}", f"--classes={_CLASSES.value}"]
            command = [sys.executable, "-m", "benchmarks.prediction_memory", *flag]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            lines.append(json.loads(told.splitlines()[-1]))
            path = Path(_OUTPUT.value) / "prediction_memory.json"
            environment.save(path, lines)
    print(prediction_memory_table(lines))


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
