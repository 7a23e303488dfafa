"""plan.json: its versions, and the hash by which prepared data and runs know a plan."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_jax.data.normalization import CT, Z_SCORE, Normalization, ct
from covid_jax.data.plan import (
    Fingerprint,
    Plan,
    Resampling,
    check_plan,
    load_plan,
    make_plan,
    save_plan,
    with_topology,
)
from covid_jax.data.planner import Planning, Topology
from covid_jax.errors import UserError

PLAN = Plan((2.5, 0.8, 0.8), (ct(-900.0, 200.0, -400.0, 250.0),), (50, 300, 310), ("a", "b"))
VERSION_1 = """{
 "spacing_mm": [2.5, 0.8, 0.8],
 "lower_hu": -900.0,
 "upper_hu": 200.0,
 "mean_hu": -400.0,
 "std_hu": 250.0,
 "median_shape": [50, 300, 310],
 "training_cases": ["a", "b"],
 "file_axes": false
}"""
OTHERS = {
    "spacing_mm": (2.5, 0.8, 0.9),
    "normalization": (
        Normalization(Z_SCORE, use_mask_for_norm=True),
        ct(-901.0, 201.0, -401.0, 251.0),
    ),
    "median_shape": (50, 300, 311),
    "training_cases": ("a",),
    "file_axes": True,
    "axes": ("S", "A", "R"),
    "transpose": (1, 0, 2),
    "image_resampling": Resampling(order=1),
    "score_resampling": Resampling(order=1, separate=False),
    "label_resampling": Resampling(order=0, coarse_order=1),
    "outside_apart": True,
    "resample_first": True,
    "topology": Topology(
        patch_size=(40, 56, 40),
        batch_size=9,
        features_per_stage=(32, 64),
        strides=((1, 1, 1), (1, 2, 2)),
        kernel_sizes=((1, 3, 3), (3, 3, 3)),
        n_conv_per_stage=(2, 2),
        n_conv_per_stage_decoder=(2,),
    ),
}


def test_a_plan_of_version_1_opens_and_keeps_its_hash(tmp_path):
    """The hashes are those that version 1 gave."""
    (tmp_path / "plan.json").write_text(VERSION_1)
    assert load_plan(tmp_path / "plan.json") == PLAN
    assert PLAN.hash == "f1d757dc291a8985"
    assert dataclasses.replace(PLAN, file_axes=True).hash == "01758d921a1d156a"


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Plan)])
def test_every_field_but_the_network_has_a_part_in_the_hash_and_all_survive_the_way_to_disk(
    tmp_path, name
):
    other = dataclasses.replace(PLAN, **{name: OTHERS[name]})
    assert (other.hash == PLAN.hash) == (name == "topology")
    save_plan(tmp_path / "plan.json", other)
    assert load_plan(tmp_path / "plan.json") == other


@pytest.mark.parametrize(("name", "value"), [("version", 4), ("flavour", 1)])
def test_a_plan_of_a_newer_version_is_one_line(tmp_path, name, value):
    save_plan(tmp_path / "plan.json", PLAN)
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["version"] == 3
    (tmp_path / "plan.json").write_text(json.dumps(content | {name: value}))
    with pytest.raises(UserError, match=r"plan\.json: written by a newer version of covid_jax"):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"version": 1}', '{"version": "x"}', '{"axes": {"a": 1}}']
)
def test_a_damaged_plan_is_one_line(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=r"plan\.json: damaged"):
        load_plan(tmp_path / "plan.json")


def saved_with_topology(path):
    save_plan(path, dataclasses.replace(PLAN, topology=OTHERS["topology"]))
    return json.loads(path.read_text())


def test_plan_json_has_the_network_under_nnunets_names_beside_the_rest(tmp_path):
    content = saved_with_topology(tmp_path / "plan.json")
    assert content["spacing_mm"] == [2.5, 0.8, 0.8]
    assert (content["n_stages"], content["patch_size"]) == (2, [40, 56, 40])
    assert content["n_conv_per_stage"] == [2, 2]
    assert not {"topology", "n_blocks_per_stage"} & content.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_stages", 3),
        ("patch_size", [40, 56]),
        ("patch_size", [40, 55, 40]),
        ("batch_size", 0),
        ("strides", [[1, 1, 1]]),
        ("strides", [[1, 1, 1], [1, 0, 2]]),
        ("n_blocks_per_stage", [1, 3]),
        ("n_conv_per_stage", None),
        ("kernel_sizes", 3),
        ("batch_dice", 1),
    ],
)
def test_a_network_that_cannot_be_is_one_line(tmp_path, name, value):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(saved_with_topology(path) | {name: value}))
    with pytest.raises(UserError, match=r"plan\.json: damaged"):
        load_plan(path)


FLOATS = st.sampled_from([-1.0, 0.0, 0.5, 1, 3.0, float("nan"), float("inf")])
WHOLE = st.sampled_from([0, 1, 2, 3, 8, True])


def axes_of(values):
    return st.tuples(values, values, values)


NORMALIZATIONS = st.builds(
    Normalization,
    st.sampled_from([CT, Z_SCORE, "MyNormalization"]),
    *[FLOATS] * 4,
    use_mask_for_norm=st.sampled_from([True, False, 1]),
)
RESAMPLINGS = st.builds(
    Resampling, WHOLE, WHOLE, st.sampled_from([None, True, False, 0, 1]), FLOATS
)
CHANGES = {
    "spacing_mm": axes_of(FLOATS),
    "normalization": st.lists(NORMALIZATIONS, max_size=2).map(tuple),
    "median_shape": axes_of(WHOLE),
    "axes": axes_of(st.sampled_from("RLAPSI")),
    "transpose": axes_of(WHOLE),
    "image_resampling": RESAMPLINGS,
    "score_resampling": RESAMPLINGS,
    "label_resampling": RESAMPLINGS,
}
TOPOLOGY_CHANGES = {
    "patch_size": axes_of(WHOLE),
    "batch_size": WHOLE,
    "strides": st.lists(axes_of(WHOLE), max_size=3).map(tuple),
    "features_per_stage": st.lists(WHOLE, max_size=3).map(tuple),
    "n_blocks_per_stage": st.lists(WHOLE, max_size=3).map(tuple),
}


def refusal(path, plan):
    try:
        save_plan(path, plan)
    except UserError as error:
        return str(error)
    return ""


@given(st.data())
def test_a_plan_that_could_not_be_read_is_never_written(tmp_path_factory, data):
    """Some values of it are drawn, good ones among them."""
    name = data.draw(st.sampled_from([*CHANGES, *TOPOLOGY_CHANGES]))
    if name in CHANGES:
        plan = dataclasses.replace(PLAN, **{name: data.draw(CHANGES[name])})
    else:
        change = {name: data.draw(TOPOLOGY_CHANGES[name])}
        plan = dataclasses.replace(PLAN, topology=dataclasses.replace(OTHERS["topology"], **change))
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    if fault := refusal(path, plan):
        assert fault.startswith(f"{path}: its plan cannot be taken: ")
        assert not list(path.parent.iterdir())
    else:
        assert load_plan(path) == plan


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"spacing_mm": (0.0, 1.0, 1.0)}, r"spacing_mm=\(0.0, 1.0, 1.0\): must be above 0"),
        ({"spacing_mm": (float("nan"), 1.0, 1.0)}, "spacing_mm=.*must be above 0"),
        ({"normalization": (ct(5, 1, 0, 1),)}, "clipped to 5 to 1 HU.*from low to high"),
        ({"normalization": (ct(0, 1, float("nan"), 1),)}, "mean nan.*must be finite"),
        (
            {"topology": dataclasses.replace(OTHERS["topology"], batch_size=10**300)},
            "all its numbers must be above 0, and at most 1,048,576",
        ),
        ({"score_resampling": Resampling(1, 0, 1)}, "score_resampling.separate=1"),
        (
            {"topology": dataclasses.replace(OTHERS["topology"], patch_size=(40, 55, 40))},
            r"patch_size=\(40, 55, 40\): must be divisible by its strides, \(1, 2, 2\) in all",
        ),
    ],
)
def test_what_keeps_a_plan_from_being_taken_is_named(change, told):
    with pytest.raises(UserError, match=f"^here: its plan cannot be taken: .*{told}"):
        check_plan(dataclasses.replace(PLAN, **change), Path("here"))


@pytest.mark.parametrize("name", ["patch_size", "n_stages"])
def test_half_a_network_is_one_line(tmp_path, name):
    path = tmp_path / "plan.json"
    content = saved_with_topology(path)
    del content[name]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"plan\.json: damaged"):
        load_plan(path)


def planned(shape, spacing_mm, **planning):
    some = np.array([[-600.0, 0.0]], np.float32)
    fingerprints = [Fingerprint(shape, spacing_mm, some)] * 20
    plan = make_plan(["a"] * 20, fingerprints, [CT])
    return plan, with_topology(plan, fingerprints, 2, Planning(**planning))


def test_a_planned_network_sees_the_coarsest_axis_first():
    plan, planned_for = planned((512, 500, 40), (0.75, 0.8, 5.0))
    assert (plan.spacing_mm, plan.transpose) == ((0.75, 0.8, 5.0), (0, 1, 2))
    assert (planned_for.spacing_mm, planned_for.transpose) == ((5.0, 0.75, 0.8), (2, 0, 1))
    assert planned_for.median_shape == (40, 512, 500)
    assert planned_for.topology.strides[1] == (1, 2, 2)
    assert planned_for.normalization == plan.normalization


def test_a_plan_of_low_resolution_has_its_grid():
    plan, low = planned((300, 600, 600), (2.0, 0.7, 0.7), configuration="3d_lowres")
    assert np.prod(low.median_shape) < np.prod(plan.median_shape) / 2
    assert low.hash != plan.hash


def test_low_resolution_of_small_cases_is_refused():
    with pytest.raises(UserError, match="makes no 3d_lowres"):
        planned((36, 50, 35), (1.0, 1.0, 1.0), configuration="3d_lowres")
