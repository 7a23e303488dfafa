"""Scores masks against references: DSC, NSD, sensitivity, F1, accuracy and more of every case.

    python -m covid_jax.evaluate --predictions=masks --references=labels --output=metrics.json

Masks and references are NIfTI, NRRD or MHA files of the same names on the same grids.
"""

import os
from pathlib import Path
from typing import Any

from absl import flags

from covid_jax.data.volume import scans_in
from covid_jax.device import announce_cpu
from covid_jax.errors import UserError, run_command
from covid_jax.evaluation.folders import evaluate_folders, save_metrics

_PREDICTIONS = flags.DEFINE_string("predictions", None, "Folder of predicted masks.")
_REFERENCES = flags.DEFINE_string("references", None, "Folder of reference masks.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_LABEL = flags.DEFINE_integer("label", 1, "Label value that is scored.")
_TOLERANCE_MM = flags.DEFINE_float("tolerance_mm", 3.0, "Tolerance of NSD in mm.", lower_bound=0)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", os.cpu_count(), "Cases to work on at once.", lower_bound=1
)


def main() -> None:
    """Evaluates what the flags say."""
    for flag in (_PREDICTIONS, _REFERENCES, _OUTPUT):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing (see --help)")
    announce_cpu()
    metrics = evaluate_folders(
        Path(_PREDICTIONS.value),
        Path(_REFERENCES.value),
        _LABEL.value,
        _TOLERANCE_MM.value,
        _NUM_PROCESSES.value,
    )
    save_metrics(Path(_OUTPUT.value), metrics)
    if unused := sorted(scans_in(Path(_REFERENCES.value)).keys() - metrics["cases"].keys()):
        print(f"no prediction for {', '.join(unused)}: not counted")
    for name, which in metrics["empty"].items():
        print(f"{name}: {which} empty, its scores are a convention")
    print(f"{len(metrics['cases'])} cases: " + summary_line(metrics))


def summary_line(metrics: dict[str, Any]) -> str:
    """Mean and deviation of every metric."""
    return ", ".join(
        f"{name} {mean:.3f} ± {metrics['std'][name]:.3f}" for name, mean in metrics["mean"].items()
    )


if __name__ == "__main__":
    run_command(main, __doc__)
