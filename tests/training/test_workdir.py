"""Who may go on in a run's folder."""

import dataclasses
import json
import re

import pytest

from covid_jax.config import InferenceConfig, to_dict
from covid_jax.data.normalization import ct
from covid_jax.data.plan import Plan
from covid_jax.data.raw import Split
from covid_jax.data.store import StoredDataset
from covid_jax.errors import UserError
from covid_jax.label_space import LabelSpace
from covid_jax.reporting.card import model_card
from covid_jax.training.checkpoint import save_params
from covid_jax.training.completion import fitted
from covid_jax.training.pretrained import load_config, load_pretrained, load_run
from covid_jax.training.provenance import (
    device_here,
    note_device,
    other_channels,
    other_plan,
    provenance,
    start_notes,
    unfinished,
)
from covid_jax.training.state import new_params
from covid_jax.training.workdir import as_begun, check_place, claim_workdir, dataset_json
from covid_jax.transfer.strategies import network_of
from tests.conftest import tiny

PLAN = Plan((2.0, 1.0, 1.0), (ct(-900.0, 300.0, -400.0, 350.0),), (40, 60, 60), ())


CLASSES = (("one", ("tumour",)), ("two", ()))

H200 = {"kind": "NVIDIA H200", "driver": "580.65.06", "jax": "0.11.2"}


def devices(workdir):
    return json.loads((workdir / "provenance.json").read_text())["devices"]


def trained_on(workdir, device):
    """The run's folder as if it had been trained on this device."""
    file = workdir / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"devices": [device]}))


def test_a_run_may_go_on_on_another_device_and_keeps_both(tmp_path):
    claim_workdir(tmp_path, tiny(dtype="float32"), PLAN)
    assert devices(tmp_path) == []
    trained_on(tmp_path, H200)
    claim_workdir(tmp_path, tiny(dtype="float32"), PLAN)
    assert devices(tmp_path) == [H200]  # a start that trains nothing leaves no trace
    for _ in range(2):
        note_device(tmp_path)
    assert devices(tmp_path) == [H200, device_here()]


def test_a_share_of_a_gpu_is_told_and_is_no_other_device(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.450")
    monkeypatch.setattr("covid_jax.training.provenance.device_here", lambda: H200)
    monkeypatch.setattr("covid_jax.training.workdir.device_here", lambda: H200)
    config = tiny(dtype="float32", deterministic=True)
    claim_workdir(tmp_path, config, PLAN)
    note_device(tmp_path)
    assert devices(tmp_path) == [H200 | {"memory_fraction": "0.450"}]
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION")
    claim_workdir(tmp_path, config, PLAN)


@pytest.mark.parametrize("device", [H200, {"kind": "cpu", "cores": 64}], ids=["GPU", "cores"])
def test_a_deterministic_run_may_not_unless_it_is_told_to(tmp_path, device):
    config = tiny(dtype="float32", deterministic=True)
    claim_workdir(tmp_path, config, PLAN)
    trained_on(tmp_path, device)
    with pytest.raises(UserError, match=r"the device changed .*cores: .*--accept_changes"):
        claim_workdir(tmp_path, config, PLAN)
    claim_workdir(tmp_path, config, PLAN, accept_changes=True)


def test_a_later_device_of_the_pretraining_is_no_change(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    claim_workdir(before, tiny(), PLAN)
    config = tiny("body-msd", pretrained=str(before))
    claim_workdir(after, config, PLAN)
    trained_on(before, H200)
    claim_workdir(after, config, PLAN)


def test_auto_goes_on_in_the_dtype_that_the_run_began_with(tmp_path):
    assert as_begun(tiny(), tmp_path).dtype == "auto"
    claim_workdir(tmp_path, tiny(dtype="bfloat16"), PLAN)
    assert as_begun(tiny(), tmp_path).dtype == "bfloat16"
    assert as_begun(tiny(dtype="float32"), tmp_path).dtype == "float32"


def test_other_data_is_refused_on_any_device(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    file = tmp_path / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": {"phantom": {"a": "b"}}}))
    with pytest.raises(UserError, match="data or program changed"):
        claim_workdir(tmp_path, tiny(), PLAN)


def prepared(folder, train, test, scans=None, name="nnunet"):
    """A prepared dataset of one fold, of which nothing but its digests is there."""
    for case in (*train, *test):
        path = folder / "cases" / case / "case.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"sha256": f"a{case}", "reference": f"r{case}"}
        path.write_text(json.dumps(facts | {"source": {"image": (scans or {}).get(case, case)}}))
    return [StoredDataset(name, folder, LabelSpace(("lesion",)), (Split(train, test),), False)]


def rewrite(folder, case, **facts):
    path = folder / "cases" / case / "case.json"
    known = json.loads(path.read_text()) | facts
    path.write_text(json.dumps({name: value for name, value in known.items() if value}))


def test_changed_data_is_told_by_the_names_of_its_cases(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "data"
    claim_workdir(run, tiny(), PLAN, prepared(folder, ("a", "b"), ("c", "d")))
    rewrite(folder, "a", sha256="other")
    rewrite(folder, "c", reference="other")
    now = prepared(tmp_path / "data", (), ())[0]
    now = dataclasses.replace(now, splits=(Split(("a", "b"), ("c", "e")),))
    (folder / "cases" / "d").rename(folder / "cases" / "e")
    told = r"\(nnunet: a, c changed; nnunet: d gone; nnunet: e new\); use another --workdir"
    with pytest.raises(UserError, match=told):
        claim_workdir(run, tiny(), PLAN, [now])
    claim_workdir(run, tiny(), PLAN, [now], accept_changes=True)
    claim_workdir(run, tiny(), PLAN, [now])


def test_data_and_runs_of_before_references_were_known_are_no_change(tmp_path):
    """Nor is one of both."""
    run, before = tmp_path / "run", tmp_path / "before"
    data = prepared(tmp_path / "data", ("a",), ("b",))
    claim_workdir(run, tiny(), PLAN, data)
    path = run / "provenance.json"
    older = json.loads(path.read_text())
    for name in ("references", "trained_on"):
        del older[name]
    path.write_text(json.dumps(older))
    claim_workdir(run, tiny(), PLAN, data)
    assert "references" in json.loads(path.read_text())
    old = prepared(before, ("a",), ("b",))
    for case in ("a", "b"):
        rewrite(before, case, reference=None, source=None)
    claim_workdir(run, tiny(), PLAN, old)


def test_test_cases_that_the_pretraining_was_trained_on_are_told(tmp_path, capsys):
    """By the scans' digests: whatever a case is called, and by whatever plan it was prepared."""
    first, second, last = (tmp_path / name for name in ("first", "second", "last"))
    source = prepared(tmp_path / "source", ("a", "b"), ("c",), name="msd_lung")
    claim_workdir(first, tiny(), PLAN, source)
    between = prepared(tmp_path / "between", ("x",), ("y",))
    claim_workdir(second, tiny("body-msd", pretrained=str(first)), PLAN, between)
    config = tiny("body-msd", pretrained=str(second))
    target = prepared(tmp_path / "target", ("d",), ("e", "f", "c"), {"e": "b", "f": "x"})
    (line,) = start_notes(config, PLAN, target)
    assert line.endswith(
        "was trained on 2 of the test cases of fold 0 (e, f); scores of them are no test"
    )
    claim_workdir(last, config, PLAN, target)
    origin = json.loads((last / "provenance.json").read_text())
    assert origin["seen_before"] == ["e", "f"]
    card = model_card(config, PLAN, 10, origin, {})
    assert "- Trained on before, of its test cases: e, f\n" in card
    older = json.loads((second / "provenance.json").read_text())
    del older["trained_on"], older["pretrained"]["trained_on"]
    (second / "provenance.json").write_text(json.dumps(older))
    assert start_notes(config, PLAN, target) == []
    claim_workdir(last, config, PLAN, target)


def test_a_run_keeps_the_names_of_its_classes_and_is_not_taken_for_an_imported_one(tmp_path):
    data = [
        StoredDataset(name, tmp_path, LabelSpace((*own, "lesion")), (), True)
        for name, own in CLASSES
    ]
    assert dataset_json(fitted(tiny(), PLAN, data), PLAN)["labels"] == {
        "background": 0,
        "tumour": 1,
        "lesion (one)": 2,
        "lesion (two)": 3,
    }
    for channels, told in (((), "CT"), (("FLAIR",), "FLAIR")):
        named = dataclasses.replace(data[0], channels=channels, file_ending=".nrrd")
        assert dataset_json(tiny(), PLAN, named)["channel_names"] == {"0": told}
        assert dataset_json(tiny(), PLAN, named)["file_ending"] == ".nrrd"
    before = tmp_path / "before"
    claim_workdir(before, tiny(), PLAN)
    (before / "dataset.json").write_text(
        json.dumps(dataset_json(fitted(tiny(), PLAN, data[:1]), PLAN))
    )
    config = tiny("body-msd", pretrained=str(before))
    assert provenance(config, [])["pretrained"]["imported"] == "of the labels tumour, lesion"
    origin = json.loads((before / "provenance.json").read_text())
    (before / "provenance.json").write_text(json.dumps(origin | {"data": {"one": {"a": "0"}}}))
    assert "imported" not in provenance(config, [])["pretrained"]


def test_a_run_from_before_a_setting_was_there_goes_on(tmp_path):
    config = tiny(dtype="float32")
    claim_workdir(tmp_path, config, PLAN)
    before = to_dict(config)
    del before["deterministic"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    claim_workdir(tmp_path, config, PLAN)
    with pytest.raises(UserError, match="deterministic: True, was False"):
        claim_workdir(tmp_path, dataclasses.replace(config, deterministic=True), PLAN)


def test_config_json_says_what_a_run_goes_on_with(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    other = tiny(checkpoint_every=7, inference=InferenceConfig(step_size=0.3))
    claim_workdir(tmp_path, other, PLAN)
    assert load_config(tmp_path) == other


@pytest.mark.parametrize("made", ["metrics.json", "postprocessing.json", "model"])
def test_other_settings_of_inference_are_refused_where_theirs_have_made_something(tmp_path, made):
    before = tiny(inference=InferenceConfig(step_size=0.5))
    claim_workdir(tmp_path, before, PLAN)
    (tmp_path / made).mkdir()
    with pytest.raises(UserError, match=rf"{made} there .*step_size: 0.3, was 0.5.*; delete"):
        claim_workdir(tmp_path, tiny(inference=InferenceConfig(step_size=0.3)), PLAN)
    assert load_config(tmp_path) == before
    claim_workdir(tmp_path, before, PLAN)


def test_axes_of_mirroring_are_those_that_the_run_is_trained_with(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    with pytest.raises(UserError, match=r"another config \(inference\.mirror_axes: \[1\], was"):
        claim_workdir(tmp_path, tiny(inference=InferenceConfig(mirror_axes=(1,))), PLAN)


def test_scans_that_are_trained_on_and_tested_under_two_names_are_told(tmp_path):
    """As those of organs and of lesions in two datasets, or one scan twice in one."""
    first = prepared(tmp_path / "first", ("a",), ("b", "c", "d"), {"d": "a"}, name="first")
    second = prepared(tmp_path / "second", ("x", "y"), ("z",), {"y": "c"}, name="second")
    assert start_notes(tiny(), PLAN, second) == []
    (line,) = start_notes(tiny(), PLAN, first + second)
    assert line == (
        "warning: 2 of the test cases of fold 0 (c, d) are trained on, under another name or in "
        "another dataset; scores of them are no test"
    )
    claim_workdir(tmp_path / "run", tiny(), PLAN, first + second)
    assert provenance(tiny(), first + second)["seen_before"] == ["c", "d"]


def test_channels_that_are_called_otherwise_are_told(tmp_path):
    (data,) = prepared(tmp_path / "data", ("a",), ("b",))
    claim_workdir(tmp_path / "run", tiny(), PLAN, [dataclasses.replace(data, channels=("T1",))])
    config = tiny("body-msd", pretrained=str(tmp_path / "run"))
    named = [dataclasses.replace(data, channels=names) for names in (("FLAIR",), ("t1",), ())]
    assert [other_channels(config, [one]) == [] for one in named] == [False, True, True]
    (line,) = other_channels(tiny(), [named[0], dataclasses.replace(named[1], name="other")])
    assert line.startswith("warning: the channels of other are t1, and those of nnunet FLAIR; ")


def trained(workdir, config, steps):
    """The run's folder as if it had been trained for as many steps."""
    claim_workdir(workdir, config, PLAN)
    (workdir / "checkpoints" / str(steps)).mkdir(parents=True)


def test_a_run_goes_on_to_more_epochs_and_says_what_it_had_before(tmp_path, capsys):
    trained(tmp_path, tiny(epochs=2), 20)
    for _ in range(2):
        claim_workdir(tmp_path, tiny(epochs=4), PLAN)
    told = f"{tmp_path}: going on to 4 epochs instead of 2: its schedule is over 4 now, learning "
    assert capsys.readouterr().out == f"{told}rate 0.005359 in epoch 2\n"
    assert load_config(tmp_path) == tiny(epochs=4)
    origin = json.loads((tmp_path / "provenance.json").read_text())
    assert origin["earlier_lengths"] == [{"epochs": 2, "until_step": 20}]
    card = model_card(tiny(epochs=4), PLAN, 10, origin, {})
    assert "- Schedule: of 2 epochs until step 20, then of 4 epochs\n" in card


def test_lengths_without_a_step_leave_no_trace(tmp_path):
    trained(tmp_path, tiny(epochs=2), 20)
    for epochs in (9, 7, 3):
        claim_workdir(tmp_path, tiny(epochs=epochs), PLAN)
    told = json.loads((tmp_path / "provenance.json").read_text())
    assert told["earlier_lengths"] == [{"epochs": 2, "until_step": 20}]
    claim_workdir(tmp_path, tiny(epochs=2), PLAN)
    assert "earlier_lengths" not in json.loads((tmp_path / "provenance.json").read_text())


def test_a_run_never_has_fewer_epochs_than_are_trained(tmp_path):
    trained(tmp_path, tiny(epochs=6), 31)
    with pytest.raises(UserError, match=r"4 epochs are trained, and epochs: 3, was 6; give as"):
        claim_workdir(tmp_path, tiny(epochs=3), PLAN)
    assert load_config(tmp_path) == tiny(epochs=6)
    claim_workdir(tmp_path, tiny(epochs=4), PLAN)
    assert load_config(tmp_path) == tiny(epochs=4)


@pytest.mark.parametrize("made", ["predictions", "metrics.json", "postprocessing.json", "model"])
def test_what_the_end_of_a_run_made_is_never_left_to_a_longer_one(tmp_path, made):
    trained(tmp_path, tiny(epochs=2), 20)
    (tmp_path / made).mkdir()
    with pytest.raises(UserError, match=rf"{made} there .*epochs: 4, was 2\); delete them"):
        claim_workdir(tmp_path, tiny(epochs=4), PLAN)
    assert load_config(tmp_path) == tiny(epochs=2)
    claim_workdir(tmp_path, tiny(epochs=2), PLAN)


def test_a_joint_schedule_grows_with_its_pretraining_alone(tmp_path):
    """Not with `epochs`, by which it is another one; nor does what goes on from it."""
    before, after = tmp_path / "before", tmp_path / "after"
    first = tiny("pretraining-msd", dtype="float32")
    trained(before, first, 20)
    with pytest.raises(UserError, match="another config"):
        claim_workdir(before, dataclasses.replace(first, epochs=9), PLAN)
    config = tiny("continual-msd", dtype="float32", pretrained=str(before))
    with pytest.raises(UserError, match="another joint schedule"):
        load_pretrained(dataclasses.replace(config, epochs=4))
    claim_workdir(after, config, PLAN)
    claim_workdir(before, dataclasses.replace(first, pretraining_epochs=5), PLAN)
    with pytest.raises(UserError, match="another joint schedule"):
        load_pretrained(config)
    with pytest.raises(UserError, match="of its pre-training earlier_lengths"):
        claim_workdir(after, config, PLAN)


def test_a_provenance_that_is_gone_is_told_and_made_anew(tmp_path, capsys):
    claim_workdir(tmp_path, tiny(), PLAN)
    assert capsys.readouterr().out == ""
    (tmp_path / "provenance.json").unlink()
    claim_workdir(tmp_path, tiny(), PLAN)
    assert "provenance.json is missing" in capsys.readouterr().out
    assert devices(tmp_path) == []


@pytest.mark.parametrize(
    "part", [{"data": None}, {"data": {"x": 1}}, {"synthetic": None}, {"devices": None}]
)
def test_a_damaged_provenance_is_one_line_and_once_deleted_made_anew(tmp_path, part):
    run, after, file = tmp_path / "run", tmp_path / "after", tmp_path / "run" / "provenance.json"
    claim_workdir(run, tiny(), PLAN)
    file.write_text(json.dumps(json.loads(file.read_text()) | part))
    for use in (
        lambda: claim_workdir(run, tiny(), PLAN),
        lambda: note_device(run),
        lambda: claim_workdir(after, tiny("body-msd", pretrained=str(run)), PLAN),
    ):
        with pytest.raises(UserError, match=r"run/provenance\.json: damaged; .* Delete it"):
            use()
    file.unlink()
    claim_workdir(run, tiny(), PLAN)


def test_what_of_the_plan_differs_from_the_pretrainings_is_told(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    config = tiny("body-msd", pretrained=str(tmp_path))
    assert other_plan(config, PLAN) == []
    assert other_plan(config, dataclasses.replace(PLAN, training_cases=("a",))) == []
    other = dataclasses.replace(
        PLAN,
        spacing_mm=(5.0, 1.0, 1.0),
        normalization=(ct(-900.0, 300.0, -100.0, 350.0),),
        file_axes=True,
    )
    (line,) = other_plan(config, other)
    assert line.startswith(f"note: {tmp_path} was trained on data of another plan")
    assert "spacing in mm (2 x 1 x 1 there, 5 x 1 x 1 here)" in line
    assert "intensities (CT clipped to -900 to 300 HU, mean -400, deviation 350 there, " in line
    assert "axes of the file (False there, True here)" in line
    claim_workdir(tmp_path / "after", config, other)
    origin = json.loads((tmp_path / "after" / "provenance.json").read_text())
    card = model_card(config, other, 10, origin, {})
    assert "- Unlike what that was trained on: axes of the file (False there, True here)" in card
    assert str(tmp_path) not in card


def test_a_start_from_an_imported_network_names_it_and_an_older_provenance_goes_on(tmp_path):
    before, after = tmp_path / "imported", tmp_path / "after"
    claim_workdir(before, tiny(), PLAN)
    config = tiny("body-msd", pretrained=str(before))
    claim_workdir(after, config, PLAN)
    labels = {"background": 0, "lung": 1, "tumour": 2}
    (before / "dataset.json").write_text(json.dumps({"labels": labels}))
    claim_workdir(after, config, PLAN)
    origin = json.loads((after / "provenance.json").read_text())
    assert origin["pretrained"]["imported"] == "of the labels lung, tumour"
    (before / "dataset.json").write_text(json.dumps({"labels": ["lung"]}))
    with pytest.raises(UserError, match=r"dataset\.json: damaged, its labels have no names"):
        claim_workdir(after, config, PLAN)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "damaged"),
        ('{"epochs": "x"}', "config.epochs='x': must be int"),
        ('{"zap": 1}', "config has no field zap"),
        ('{"model": 3}', "config.model=3: must be settings by name"),
        ("[]", "config=[]: must be settings by name"),
        ('{"model": {"in_channels": 0}}', "config.model.in_channels=0: must be at least 1"),
        ('{"model": {"strides": [[1, 1, 1]]}}', "config.model.strides"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line_with_its_file(tmp_path, text, told):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        load_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    with pytest.raises(UserError, match=re.escape(told)):
        claim_workdir(tmp_path, tiny(), PLAN)


def test_a_network_that_its_config_does_not_describe_is_one_line(tmp_path):
    claim_workdir(tmp_path, tiny(), PLAN)
    other = tiny(model=dataclasses.replace(tiny().model, features_per_stage=(4, 8, 12)))
    shape = (1, *other.data.patch_size, 1)
    network = network_of(dataclasses.replace(other, dtype="float32"), "lax")
    save_params(tmp_path, new_params(network, 0, shape))
    with pytest.raises(UserError, match=r"is not of the network in checkpoints/: .*16.* here and"):
        load_run(tmp_path)


def test_a_pretraining_on_another_source_is_refused(tmp_path):
    claim_workdir(tmp_path, tiny("pretraining-nsclc"), PLAN)
    with pytest.raises(UserError, match=r"trained on the source nsclc, and config\.source=msd"):
        load_pretrained(tiny("body-msd", pretrained=str(tmp_path)))


def test_a_run_never_lies_in_its_prepared_data(tmp_path):
    config = tiny(data=dataclasses.replace(tiny().data, prepared_dir=str(tmp_path)))
    for workdir in (tmp_path, tmp_path / "runs" / "one"):
        with pytest.raises(UserError, match=r"--workdir=.*which holds inputs"):
            check_place(workdir, config)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_not_written_over(tmp_path):
    (tmp_path / "predictions").mkdir()
    with pytest.raises(UserError, match=r"no config\.json, and holds predictions"):
        check_place(tmp_path, tiny())
    (tmp_path / "config.json").write_text("{}")
    check_place(tmp_path, tiny())


def test_what_a_run_that_was_killed_had_half_written_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".partial-7-model").mkdir()
    claim_workdir(tmp_path, tiny(), PLAN)  # of a folder that was no run
    assert (tmp_path / ".partial-7-model").is_dir()
    (tmp_path / ".partial-8-metrics.json").touch()
    (tmp_path / ".partial-9-mask.nii.gz").touch()  # of another command
    claim_workdir(tmp_path, tiny(), PLAN)
    assert [path.name for path in tmp_path.glob(".partial-*")] == [".partial-9-mask.nii.gz"]


def test_a_pretraining_that_has_not_ended_is_told(tmp_path):
    config = tiny("pretraining-msd", dtype="float32")
    trained(tmp_path, config, 5)
    run = tiny("body-msd", pretrained=str(tmp_path))
    assert unfinished(run) == []  # what was exported has no end of its own
    (tmp_path / "log.jsonl").touch()
    assert unfinished(run) == [f"warning: {tmp_path} is at step 5 of 20, and has not ended"]
    trained(tmp_path, config, 20)
    assert unfinished(run) == []
