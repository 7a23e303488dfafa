"""Prepares a raw dataset: crop, resample, clip, normalise, as nnU-Net does for CT.

    python -m covid_jax.prepare --dataset=covid19 --raw_dir=COVID-19-CT-Seg --out_dir=prepared

writes prepared/covid19/ and, if it is not there yet, prepared/plan.json from the training cases of
fold 0. Datasets prepared into the same folder share that plan, as pre-training and its transfer
must. Starting again goes on with the cases that are missing.

Raw layouts (--raw_dir):
  covid19         COVID-19-CT-Seg_20cases/CASE.nii.gz, Infection_Mask/CASE.nii.gz
  msd_lung        imagesTr/lung_001.nii.gz, labelsTr/lung_001.nii.gz
  structseg_gtv   N/data.nii.gz, N/label.nii.gz
  nsclc_effusion  LUNG1-NNN/ with a DICOM series at any depth, and masks *LUNG1-NNN*effusion*.nii.gz
  nnunet          dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz
  phantom         synthetic cases, written to --raw_dir first
"""

from pathlib import Path

from absl import flags

from covid_jax.data.datasets import DATASETS
from covid_jax.data.phantom import write_raw_dataset
from covid_jax.data.preparation import prepare_dataset
from covid_jax.errors import UserError, run_command

_DATASET = flags.DEFINE_enum("dataset", None, list(DATASETS), "Layout of the raw data.")
_RAW_DIR = flags.DEFINE_string("raw_dir", None, "Folder of the raw data.")
_OUT_DIR = flags.DEFINE_string("out_dir", None, "Folder for prepared data and its plan.json.")
_PLAN_FOLD = flags.DEFINE_integer(
    "plan_fold", 0, "Fold whose training cases make plan.json.", lower_bound=0
)
_SYNTHETIC = flags.DEFINE_bool(
    "synthetic", False, "Write synthetic cases in the dataset's layout to --raw_dir first."
)
_NUM_CASES = flags.DEFINE_integer("num_cases", 10, "Number of synthetic cases.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the synthetic cases.", lower_bound=0)


def main() -> None:
    """Prepares what the flags say."""
    for flag in (_DATASET, _RAW_DIR, _OUT_DIR):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing (see --help)")
    raw_dir, out_dir = Path(_RAW_DIR.value), Path(_OUT_DIR.value)
    if _SYNTHETIC.value or _DATASET.value == "phantom":
        write_raw_dataset(_DATASET.value, raw_dir, _NUM_CASES.value, _SEED.value)
    raw = prepare_dataset(_DATASET.value, raw_dir, out_dir, _PLAN_FOLD.value)
    label = "SYNTHETIC " if raw.synthetic else ""
    print(f"{len(raw.cases)} {label}cases of {raw.name} are prepared in {out_dir / raw.name}")


if __name__ == "__main__":
    run_command(main, __doc__)
