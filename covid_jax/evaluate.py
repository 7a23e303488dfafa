"""Scores masks against references: DSC, NSD, sensitivity, F1, accuracy and more of every case.

    python -m covid_jax.evaluate --predictions=masks --references=labels --output=metrics.json

Masks and references are NIfTI, NRRD or MHA files of the same names on the same grids; NAME_0000 is
the case NAME. Every label, or region, is scored, and the mean over them: those that a dataset.json
beside the references (or above them, or beside the masks) names, else every value that the files
hold; or --label alone. Voxels of the reference that have the value --ignore_label, or that
dataset.json says to ignore, are left out.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from covid_jax.command import as_process, require, run_command
from covid_jax.data.scans import files_in, masks_in
from covid_jax.device import announce_cpu, cores
from covid_jax.errors import UserError, listed
from covid_jax.evaluation.folders import (
    check_output,
    evaluate_folders,
    save_metrics,
    what_is_scored,
)
from covid_jax.evaluation.metrics import NOT_OVER_LABELS, never_predicted, unscored
from covid_jax.label_space import values_of

_FLAGS = flags.FlagValues()
_PREDICTIONS = flags.DEFINE_string("predictions", None, "Folder of predicted masks.", _FLAGS)
_REFERENCES = flags.DEFINE_string("references", None, "Folder of reference masks.", _FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.", _FLAGS)
_LABEL = flags.DEFINE_integer(
    "label", None, "Label value that is scored; all, if it is left out.", flag_values=_FLAGS
)
_IGNORE_LABEL = flags.DEFINE_integer(
    "ignore_label", None, "Value of the references' voxels that are left out.", flag_values=_FLAGS
)
_TOLERANCE_MM = flags.DEFINE_float(
    "tolerance_mm", 3.0, "Tolerance of NSD in mm.", lower_bound=0, flag_values=_FLAGS
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", len(cores()), "Cases to work on at once.", lower_bound=1, flag_values=_FLAGS
)
_SKIP_BAD = flags.DEFINE_bool(
    "skip_bad", False, "Go on past masks that cannot be scored; they are listed at the end.", _FLAGS
)


_BY_CONVENTION = "1 where both masks are empty, and 0 where one is"


def work() -> None:
    """Evaluates what the flags say."""
    require(_PREDICTIONS, _REFERENCES, _OUTPUT)
    announce_cpu()
    predictions, references = Path(_PREDICTIONS.value), Path(_REFERENCES.value)
    output = Path(_OUTPUT.value)
    check_output(output)
    if not math.isfinite(_TOLERANCE_MM.value):
        raise UserError(f"--tolerance_mm={_TOLERANCE_MM.value}: give a number of mm")
    names, ignored = what_is_scored(references, predictions)
    ignored = ignored if _IGNORE_LABEL.value is None else _IGNORE_LABEL.value
    label = _LABEL.value
    _, truths = masks_in(predictions, references)
    for folder in (predictions, references):
        for line in files_in(folder).left_out:
            print(line)
    metrics = evaluate_folders(
        predictions,
        references,
        labels=names if label is None else {label: names.get(label, f"label {label}")},
        known=()
        if label is not None or not names
        else {0, *itertools.chain(*map(values_of, names))},
        ignored=ignored,
        tolerance_mm=_TOLERANCE_MM.value,
        processes=_NUM_PROCESSES.value,
        skip_bad=_SKIP_BAD.value,
    )
    held = ", ".join(map(str, metrics["values"])) or "none"
    if label is not None and label not in metrics["values"]:
        raise UserError(f"--label={label}: no mask and no reference holds it; they hold {held}")
    save_metrics(output, metrics)
    if unused := truths.keys() - metrics["cases"].keys():
        print(f"{len(unused)} references without a prediction, not counted: {listed(unused)}")
    for name, which in metrics["empty"].items():
        print(f"{name}: {which} empty; by convention its scores are {_BY_CONVENTION}")
    for name in unscored(metrics):
        print(f"{name}: has no scores, every voxel of its reference is ignored")
    left_out = "" if ignored is None else f"; {ignored} is left out"
    print(f"label values in these files: {held}{left_out}")
    of_labels = metrics.get("labels", {})
    for name, of_label in of_labels.items():
        never = ", in no mask though in a reference" if never_predicted(of_label) else ""
        print(f"{name}{never}: " + summary_line(of_label))
    print(f"{len(metrics['cases'])} cases: " + summary_line(metrics))
    if of_labels:
        print(f"over labels {NOT_OVER_LABELS}")
    if bad := metrics.get("left_out"):
        raise UserError(f"{len(bad)} masks were left out: {'; '.join(bad.values())}")


def summary_line(metrics: dict[str, Any]) -> str:
    """Mean and deviation of every metric, and of how many cases where some have no value."""
    cases, count = len(metrics["cases"]), metrics["count"]
    return (
        ", ".join(
            f"{name} {mean:.3f} ± {metrics['std'][name]:.3f}"
            + (f" (of {count[name]} cases)" if count[name] < cases else "")
            for name, mean in metrics["mean"].items()
        )
        or "no scores"
    )


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
