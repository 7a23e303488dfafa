"""Any nnU-Net model is fine-tuned on any dataset by three commands."""

import numpy as np

from covid_jax.data.phantom import write_raw_dataset
from covid_jax.training.checkpoint import load_config, load_params
from covid_jax.transfer.freezing import leaves_by_path
from tests.conftest import ROOT

FEW = (
    "--config.epochs=1",
    "--config.steps_per_epoch=2",
    "--config.validation_steps=1",
    "--config.test=False",
)


def test_an_imported_model_is_fine_tuned_on_data_prepared_by_its_plan(tmp_path, command):
    """One of nnU-Net v1, whose network has no biases in its heads: no plan could tell."""
    model, imported = ROOT / "tests" / "files" / "nnunet_version_1", tmp_path / "imported"
    write_raw_dataset("phantom", tmp_path / "raw", 3, seed=0)
    prepared, workdir = tmp_path / "prepared", tmp_path / "mine"
    for name, *arguments in (
        ("import_nnunet", f"--checkpoint={model}", f"--out_dir={imported}"),
        (
            "prepare",
            *("--dataset=nnunet", "--name=mine", f"--plan_from={imported}"),
            *(f"--raw_dir={tmp_path / 'raw'}", f"--out_dir={prepared}"),
        ),
        (
            "train",
            f"--config={ROOT}/configs/nnunet.py:frozen_encoder-imported",
            *(f"--workdir={workdir}", f"--config.pretrained={imported}", *FEW),
            *(f"--config.data.prepared_dir={prepared}", "--config.data.datasets=('mine',)"),
        ),
    ):
        finished = command(name, *arguments)
        assert finished.returncode == 0, finished.stderr
    assert "another plan" not in finished.stdout
    before, after = load_config(imported), load_config(workdir)
    assert after.model.features_per_stage == before.model.features_per_stage
    assert not after.model.head_bias
    assert after.data.patch_size == before.data.patch_size
    theirs, ours = leaves_by_path(load_params(imported)), leaves_by_path(load_params(workdir))
    encoder = [path for path in ours if path.startswith("encoder/")]
    assert all(np.array_equal(ours[path], theirs[path]) for path in encoder)
    assert any(not np.array_equal(ours[p], theirs[p]) for p in ours if p.startswith("decoder/"))
