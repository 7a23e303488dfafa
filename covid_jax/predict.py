"""Predicts lesion masks of scans with a trained run, each on the scan's own grid.

    python -m covid_jax.predict --checkpoint=runs/body --input=scans --output_dir=masks

--input is a scan (NIfTI, NRRD, MHA, or a folder with a DICOM series) or a folder of scans; each
becomes masks/SCAN.nii.gz, uint8. Of several runs (--checkpoint=A,B,C: the folds) the probabilities
are averaged, as nnU-Net's ensembles are. With --save_probabilities there are also
masks/SCAN_probability_K.nii.gz, one for each class that is not background.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from covid_jax.data.plan import Plan
from covid_jax.data.preprocess import as_volume, prepare_case, read_scan
from covid_jax.data.volume import scans_in, write_volume
from covid_jax.device import announce_device
from covid_jax.errors import UserError, run_command
from covid_jax.inference.postprocess import load_postprocessing, to_mask
from covid_jax.inference.scan import Predictor, make_predictor
from covid_jax.training.checkpoint import load_config, load_run
from covid_jax.training.parallel import keep_compiled_programs
from covid_jax.training.platform import platform_of

_CHECKPOINT = flags.DEFINE_list("checkpoint", [], "Work directory of a run, or of several.")
_INPUT = flags.DEFINE_string("input", None, "A scan or a folder of scans.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the masks.")
_MIRROR = flags.DEFINE_bool(
    "mirror", False, "Average over 8 mirrored views, 8 times the time, though the run did not."
)
_SAVE_PROBABILITIES = flags.DEFINE_bool("save_probabilities", False, "Save probabilities too.")


def main() -> None:
    """Predicts what the flags say."""
    for flag in (_CHECKPOINT, _INPUT, _OUTPUT_DIR):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing (see --help)")
    announce_device()
    keep_compiled_programs()
    scans = scans_in(Path(_INPUT.value))
    workdirs = [Path(folder) for folder in _CHECKPOINT.value]
    plan, predict = ensemble(workdirs, _MIRROR.value)
    postprocessing = load_postprocessing(workdirs[0], load_config(workdirs[0]).inference)
    output_dir = Path(_OUTPUT_DIR.value)
    for name, path in tqdm(scans.items(), "predicting", unit="scan"):
        scan = read_scan(path)
        for note in scan.notes:
            tqdm.write(f"{name}: {note}")
        case = prepare_case(scan, None, plan)
        probabilities = predict(case)
        mask = to_mask(probabilities, postprocessing)
        write_volume(output_dir / f"{name}.nii.gz", as_volume(mask, case.geometry))
        if _SAVE_PROBABILITIES.value:
            for k, probability in enumerate(probabilities[1:], start=1):
                target = output_dir / f"{name}_probability_{k}.nii.gz"
                write_volume(target, as_volume(probability, case.geometry))
    print(f"{len(scans)} masks are in {output_dir}")


def ensemble(workdirs: Sequence[Path], mirror: bool) -> tuple[Plan, Predictor]:
    """The plan of these runs, and the mean of their predictors (nnUNetv2_ensemble).

    Raises:
      UserError: runs of different plans or numbers of classes.
    """
    runs = [load_run(workdir) for workdir in workdirs]
    plan, classes = runs[0][1], runs[0][0].model.num_classes
    for workdir, (config, other, _) in zip(workdirs, runs, strict=True):
        if other.hash != plan.hash or config.model.num_classes != classes:
            raise UserError(
                f"{workdir}: another plan or number of classes than {workdirs[0]}; "
                "only runs on the same prepared data can be averaged"
            )
    platform = platform_of(jax.local_devices()[0].platform)
    predictors = [
        make_predictor(config, plan, params, mirror or config.inference.mirror, platform)
        for config, plan, params in runs
    ]
    return plan, lambda case: np.mean([predict(case) for predict in predictors], axis=0)


if __name__ == "__main__":
    run_command(main, __doc__)
