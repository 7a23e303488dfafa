"""plan.json: its versions, and the hash by which prepared data and runs know a plan."""

import dataclasses
import json

import pytest

from covid_jax.data.plan import Plan, Resampling, load_plan, save_plan
from covid_jax.errors import UserError

PLAN = Plan((2.5, 0.8, 0.8), -900.0, 200.0, -400.0, 250.0, (50, 300, 310), ("a", "b"))
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
    "lower_hu": -901.0,
    "upper_hu": 201.0,
    "mean_hu": -401.0,
    "std_hu": 251.0,
    "median_shape": (50, 300, 311),
    "training_cases": ("a",),
    "file_axes": True,
    "axes": ("S", "A", "R"),
    "transpose": (1, 0, 2),
    "image_resampling": Resampling(order=1),
    "score_resampling": Resampling(order=1, separate=False),
    "resample_first": True,
}


def test_a_plan_of_version_1_opens_and_keeps_its_hash(tmp_path):
    """The hashes are those that version 1 gave."""
    (tmp_path / "plan.json").write_text(VERSION_1)
    assert load_plan(tmp_path / "plan.json") == PLAN
    assert PLAN.hash == "f1d757dc291a8985"
    assert dataclasses.replace(PLAN, file_axes=True).hash == "01758d921a1d156a"


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Plan)])
def test_every_field_has_a_part_in_the_hash_and_survives_the_way_to_disk(tmp_path, name):
    other = dataclasses.replace(PLAN, **{name: OTHERS[name]})
    assert other.hash != PLAN.hash
    save_plan(tmp_path / "plan.json", other)
    assert load_plan(tmp_path / "plan.json") == other


@pytest.mark.parametrize(("name", "value"), [("version", 3), ("flavour", 1)])
def test_a_plan_of_a_newer_version_is_one_line(tmp_path, name, value):
    save_plan(tmp_path / "plan.json", PLAN)
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["version"] == 2
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
