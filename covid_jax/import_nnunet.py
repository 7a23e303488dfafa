r"""Brings a network that nnU-Net trained into a run folder, and takes a run of ours to nnU-Net.

    python -m covid_jax.import_nnunet --checkpoint=MODEL/fold_0/checkpoint_final.pth \
        --plans=MODEL/plans.json --out_dir=runs/imported
    python -m covid_jax.import_nnunet --checkpoint=MODEL --out_dir=runs/folds
    python -m covid_jax.import_nnunet --export --checkpoint=runs/body --out_dir=nnunet_model

Reads nnU-Net v1 (model_final_checkpoint.model with its .pkl) and v2; --checkpoint may also be the
folder of a fold or of a model, and --plans may be left out where the plans lie beside it or above
it. Of a model of several folds each becomes a run, OUT_DIR/fold_0 and so on, which `predict
--checkpoint=OUT_DIR/fold_0,OUT_DIR/fold_1` averages. Nothing in the files is executed. A run folder
serves `predict --checkpoint` and `--config.pretrained`. With --export, nnU-Net v2's own predictor
loads the folder; what of the run it cannot do is told, and kept in its README.md.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from covid_jax.command import as_process, require, run_command
from covid_jax.device import announce_device
from covid_jax.errors import UserError
from covid_jax.files import refuse_inside, whole_folder
from covid_jax.inference.postprocess import load_postprocessing
from covid_jax.nnunet.model_folder import checkpoints_in, read_model, write_model
from covid_jax.nnunet.own_plans import not_in_nnunet
from covid_jax.nnunet.run_folder import read_run, write_run

_FLAGS = flags.FlagValues()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "nnU-Net's checkpoint, or a fold's or a model's folder; with --export, a run.",
    _FLAGS,
)
_PLANS = flags.DEFINE_string("plans", None, "nnU-Net's plans.json (v2) or plans.pkl (v1).", _FLAGS)
_OUT_DIR = flags.DEFINE_string("out_dir", None, "Folder to write; must be new or empty.", _FLAGS)
_README = """A model of nnU-Net v2, written by covid_jax's import_nnunet --export:

    nnUNetv2_predict_from_modelfolder -i SCANS -o MASKS -m THIS_FOLDER -f 0

SCANS holds each scan as {files}; nnU-Net passes over files of other names. {limits}
"""

_EXPORT = flags.DEFINE_bool("export", False, "Write nnU-Net v2's model folder from a run.", _FLAGS)


def work() -> None:
    """Imports or exports what the flags say."""
    require(_CHECKPOINT, _OUT_DIR)
    announce_device()
    out_dir = Path(_OUT_DIR.value)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(
            f"{out_dir}: is there already and not an empty folder; give a new --out_dir"
        )
    given = Path(_CHECKPOINT.value)
    if _EXPORT.value:
        export(given, out_dir)
    else:
        if given.is_dir():
            refuse_inside(out_dir, given, "--out_dir")
        import_folds(given, _PLANS.value and Path(_PLANS.value), out_dir)


def import_folds(given: Path, plans: Path | None, out_dir: Path) -> None:
    """Imports the checkpoint at `given`, or each fold of a model's folder, and tells what of it."""
    found = checkpoints_in(given)
    models = {fold: read_model(path, plans) for fold, path in found.items()}
    places = [Path() if len(found) == 1 else Path(fold) for fold in found]
    with whole_folder(out_dir) as partial:
        for place, model in zip(places, models.values(), strict=True):
            write_run(partial / place, model)
    runs = [out_dir / place for place in places]
    network, first = model.config.model, next(iter(models.values()))
    for note in first.notes:
        print(note)
    if given.is_dir():
        print(f"taken: {', '.join(str(path.relative_to(given)) for path in found.values())}")
    channels = first.config.label_space.told(network.num_classes)
    print(
        f"{len(network.features_per_stage)} stages, {channels}, "
        f"patch {model.config.data.patch_size}: the {'run is' if len(runs) == 1 else 'runs are'} "
        f"in {out_dir}"
    )
    if len(runs) > 1:
        print(f"their mean: predict --checkpoint={','.join(map(str, runs))}")


def export(workdir: Path, out_dir: Path) -> None:
    """Writes nnU-Net v2's model of a run, with a README.md on what of the run nnU-Net cannot do."""
    model = read_run(workdir)
    postprocessing = load_postprocessing(workdir, model.config.inference)
    limits = [*not_in_nnunet(model.config, model.plan, postprocessing)]
    if not (model.config.label_space.names or (workdir / "dataset.json").is_file()):
        names = ", ".join(name for name in model.dataset["labels"] if name != "background")
        limits.append(f"The run does not know the names of its classes: here they are {names}.")
    lines = "".join(f"\n- {limit}" for limit in limits)
    told = f"What it does not do as the run it comes from:\n{lines}" if limits else ""
    channels = model.dataset["channel_names"]
    files = " and ".join(
        f"CASE_{int(number):04}{model.dataset['file_ending']} ({name})"
        for number, name in channels.items()
    )
    with whole_folder(out_dir) as partial:
        write_model(partial, model)
        readme = _README.format(files=files, limits=told)
        (partial / "README.md").write_text(readme, "utf-8")
    print(f"nnU-Net v2's model is in {out_dir}, for scans as {files}")
    if limits:
        print(f"what it cannot do as this run does:{lines}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
