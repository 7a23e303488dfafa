"""The folder to share: it predicts as its run does, and says what it is."""

import dataclasses
import json

import jax
import numpy as np

from covid_jax.config import Config
from covid_jax.data.normalization import Z_SCORE, Normalization, ct
from covid_jax.data.plan import Plan
from covid_jax.evaluation.metrics import EXTRAS, PAPER, mean_over_labels, summarise
from covid_jax.reporting.card import model_card
from covid_jax.training.checkpoint import load_params
from covid_jax.training.pretrained import load_run
from tests.conftest import ROOT, tiny

SCORES = dict.fromkeys(PAPER, 0.5) | {"hd95_mm": 2.0, "volume_difference_ml": 1.0}
PLAN = Plan((5.0, 3.0, 3.0), (ct(-1000.0, 200.0, -500.0, 250.0),), (36, 104, 128), ("a",))


def test_a_run_leaves_a_model_that_is_the_run_without_its_folders(tiny_run):
    config, plan, params = load_run(tiny_run / "model")
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(load_params(tiny_run)), strict=True)
    assert all(np.array_equal(a, b) for a, b in leaves)
    assert not list((tiny_run / "model").glob("checkpoints/*/optimizer"))
    assert plan.hash == load_run(tiny_run)[1].hash
    assert config.model == load_run(tiny_run)[0].model
    for file in ("config.json", "README.md", "metrics.json"):
        assert str(tiny_run.parent) not in (tiny_run / "model" / file).read_text()
    card = (tiny_run / "model" / "README.md").read_text()
    assert card.startswith("# Strategy scratch on SYNTHETIC phantom, fold 0\n")
    mean = json.loads((tiny_run / "metrics.json").read_text())["mean"]
    assert f"| dsc | {mean['dsc']:.3f} |" in card


def test_the_card_says_which_file_is_which_channel():
    two = dataclasses.replace(PLAN, normalization=(*PLAN.normalization, Normalization(Z_SCORE)))
    card = model_card(tiny(), two, 10, {}, {}, ("CT", "PET"))
    assert "- Input: _0000 CT in HU and _0001 PET by ZScoreNormalization, resampled to" in card
    assert "a folder with NAME_0000, NAME_0001, ... of each scan" in card
    one = model_card(tiny(), PLAN, 10, {}, {})
    assert "- Input: CT in HU, resampled to" in one
    assert "NAME_0000" not in one


def test_a_model_is_a_place_to_start_from(tiny_run, command, tmp_path):
    finished = command(
        "train",
        f"--config={ROOT}/configs/tiny.py:body-msd",
        f"--config.pretrained={tiny_run / 'model'}",
        f"--config.data.prepared_dir={tiny_run / 'data'}",
        f"--workdir={tmp_path / 'run'}",
        "--config.epochs=1",
        "--config.steps_per_epoch=1",
        "--config.validation_steps=0",
        "--config.data.augment=False",
        "--config.test=False",
    )
    assert finished.returncode == 0, finished.stderr
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "Started from: a network trained on SYNTHETIC phantom" in card


def test_what_a_run_started_from_makes_its_card_synthetic_too():
    provenance = {
        "data": {"covid19": {}},
        "synthetic": [],
        "licences": {"covid19": "CC BY-NC-SA 4.0"},
        "pretrained": {"data": {"msd_lung": {}}, "synthetic": ["msd_lung"]},
    }
    card = model_card(tiny("body-msd"), PLAN, 10, provenance, {})
    assert "**SYNTHETIC data: msd_lung**" in card
    assert "- covid19: CC BY-NC-SA 4.0" in card
    assert "- msd_lung: SYNTHETIC" in card
    assert "It was not tested." in card


def test_synthetic_data_is_told_however_far_back_it_was_used():
    first = {"data": {"nsclc_effusion": {}}, "synthetic": ["nsclc_effusion"]}
    second = {"data": {"msd_lung": {}}, "synthetic": [], "pretrained": first}
    provenance = {"data": {"covid19": {}}, "synthetic": [], "pretrained": second}
    card = model_card(tiny("body-msd"), PLAN, 10, provenance, {})
    assert "**SYNTHETIC data: nsclc_effusion**" in card
    assert "trained on msd_lung, SYNTHETIC nsclc_effusion" in card


def test_a_start_from_an_imported_network_is_told():
    before = {"data": {}, "synthetic": [], "imported": "of the labels lung, tumour"}
    provenance = {"data": {"covid19": {}}, "synthetic": [], "pretrained": before}
    card = model_card(tiny("body-msd"), PLAN, 10, provenance, {})
    assert "- Started from: a network imported from nnU-Net (of the labels lung, tumour)\n" in card
    assert "- nnU-Net's network (of the labels lung, tumour): see where it was published" in card


def test_a_run_that_copied_nothing_started_from_nothing():
    provenance = {"data": {}, "pretrained": {"data": {"msd_lung": {}}, "synthetic": []}}
    assert "Started from" not in model_card(tiny(), PLAN, 10, provenance, {})


def test_what_is_unfrozen_is_told_with_its_epoch():
    config = tiny("frozen_encoder", frozen_schedule=((1, "!encoder/stage_2"),))
    card = model_card(config, PLAN, 10, {}, {})
    assert "- Frozen: encoder, from epoch 1: !encoder/stage_2\n" in card


def test_an_unknown_dataset_has_its_terms_elsewhere():
    card = model_card(Config(), PLAN, 10, {"data": {"nnunet": {}}, "synthetic": []}, {})
    assert "- nnunet: see where it was published" in card


def test_the_card_has_the_dsc_of_each_of_several_labels():
    lung = summarise({"a": SCORES | {"dsc": 0.8}, "b": SCORES | {"dsc": 1.0}}, {}, 3.0)
    missed = dict.fromkeys(PAPER, 0.0) | dict.fromkeys(EXTRAS)
    tumour = summarise({"a": missed, "b": SCORES}, {"a": "prediction", "b": "both masks"}, 3.0)
    assert "| label |" not in model_card(tiny(), PLAN, 10, {}, lung)
    both = mean_over_labels({"lung": lung, "tumour": tumour}, 3.0)
    card = model_card(tiny(), PLAN, 10, {}, both)
    assert "2 test cases of the fold, of the mean over labels:" in card
    assert "| lung | 0.900 | 0.100 |" in card
    assert "| tumour (in no mask, though in a reference) | 0.250 | 0.250 |" in card
    assert "| hd95_mm (of 1 case) | 2.000 | 0.000 |" in card  # of b, which has no tumour
    assert "| volume_difference_ml" not in card
    assert "Over labels there is no volume_difference_ml, nor hd95_mm of a case where" in card
