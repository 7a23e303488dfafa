r"""Brings a network that nnU-Net trained into a run folder, and takes a run of ours to nnU-Net.

    python -m covid_jax.import_nnunet --checkpoint=MODEL/fold_0/checkpoint_final.pth \
        --plans=MODEL/plans.json --out_dir=runs/imported
    python -m covid_jax.import_nnunet --export --checkpoint=runs/body --out_dir=nnunet_model

Reads nnU-Net v1 (model_final_checkpoint.model with its .pkl) and v2; --checkpoint may also be the
folder of a fold, and --plans may be left out where the plans lie beside it or above it. Nothing in
the files is executed. The run folder serves `predict --checkpoint` and `--config.pretrained`.
With --export, nnU-Net v2's own predictor loads the folder.
"""

from pathlib import Path

from absl import flags

from covid_jax.device import announce_cpu
from covid_jax.errors import UserError, run_command
from covid_jax.files import read_json, write_json
from covid_jax.nnunet.model_folder import Model, plain_dataset, read_model, write_model
from covid_jax.training.checkpoint import load_run, save_params
from covid_jax.training.run import claim_workdir

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "nnU-Net's checkpoint or a fold's folder; with --export, a run of ours."
)
_PLANS = flags.DEFINE_string("plans", None, "nnU-Net's plans.json (v2) or plans.pkl (v1).")
_OUT_DIR = flags.DEFINE_string("out_dir", None, "Folder to write; must be new or empty.")
_EXPORT = flags.DEFINE_bool("export", False, "Write nnU-Net v2's model folder from a run.")


def main() -> None:
    """Imports or exports what the flags say."""
    for flag in (_CHECKPOINT, _OUT_DIR):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing (see --help)")
    announce_cpu()
    out_dir = Path(_OUT_DIR.value)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(
            f"{out_dir}: is there already and not an empty folder; give a new --out_dir"
        )
    if _EXPORT.value:
        write_model(out_dir, read_run(Path(_CHECKPOINT.value)))
        print(f"nnU-Net v2's model is in {out_dir}")
    else:
        model = read_model(Path(_CHECKPOINT.value), _PLANS.value and Path(_PLANS.value))
        write_run(out_dir, model)
        network = model.config.model
        print(
            f"{len(network.features_per_stage)} stages, {network.num_classes} classes, "
            f"patch {model.config.data.patch_size}: the run is in {out_dir}"
        )


def read_run(workdir: Path) -> Model:
    """A run of ours, with the dataset.json that it was imported with, or a plain one."""
    config, plan, params = load_run(workdir)
    dataset = read_json(workdir / "dataset.json") or plain_dataset(config.model.num_classes)
    return Model(config, plan, params, dataset)


def write_run(workdir: Path, model: Model) -> None:
    """Writes a run folder; config.json, by which it counts as one, comes last."""
    save_params(workdir, model.params)
    write_json(workdir / "dataset.json", model.dataset)
    claim_workdir(workdir, model.config, model.plan)


if __name__ == "__main__":
    run_command(main, __doc__)
