"""Classes and regions: what dataset.json says, and from probabilities to a mask."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_jax.errors import UserError
from covid_jax.label_space import (
    CLASSES,
    LabelSpace,
    label_space,
    labels_json,
    lies_in,
    together,
    unlike_nnunet,
)

TUMOUR = LabelSpace(("whole", "core", "enhancing"), ((1, 2, 3), (2, 3), (3,)), (1, 2, 3))
DESCRIPTION = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}


@st.composite
def spaces(draw):
    names = tuple(draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True)))
    ignored = draw(st.sampled_from((None, 0)))  # then the value after the last
    if draw(st.booleans()):
        space = LabelSpace(names)
    else:
        nested = tuple(tuple(range(first, len(names) + 2)) for first in range(1, len(names) + 1))
        order = draw(st.permutations([region[0] for region in nested]))
        space = LabelSpace(names, nested, tuple(order))
    told = None if ignored is None else 1 + space.values[-1]
    return LabelSpace(space.names, space.regions, space.regions_class_order, told)


@given(space=spaces())
def test_what_dataset_json_is_told_it_tells_again(space):
    text = json.dumps(labels_json(space, space.heads))
    assert label_space(json.loads(text)) == space


def test_regions_have_a_channel_each_and_none_for_the_background():
    space = label_space(DESCRIPTION)
    assert space == TUMOUR
    assert (space.heads, space.activation, space.kind) == (3, "sigmoid", "regions")
    assert list(space.foreground(3)) == [0, 1, 2]
    assert space.values == (1, 2, 3)
    assert space.scored == {(1, 2, 3): "whole", (2, 3): "core", (3,): "enhancing"}
    assert space.told(3) == "3 regions (whole, core, enhancing)"
    assert not space.outside((3, 2, 2, 2)).any()


def test_classes_have_a_channel_for_the_background_too():
    space = label_space({"labels": {"background": 0, "b": 2, "a": [1], "ignore": 3}})
    assert space == LabelSpace(("a", "b"), ignored=3)
    assert (space.heads, space.activation, space.kind) == (3, "softmax", "classes")
    assert list(space.foreground(3)) == [1, 2]
    assert space.scored == {1: "a", 2: "b"}
    assert space.told(3) == "3 classes (background, a, b)"
    assert CLASSES.told(3) == "3 classes"
    assert (space.outside((3, 2)) == [[1, 1], [0, 0], [0, 0]]).all()


def test_a_mask_of_regions_has_the_value_that_is_written_last():
    probabilities = np.array([[0.6, 0.6, 0.6, 0.5], [0.4, 0.7, 0.51, 0.5], [0.9, 0.1, 0.8, 0.5]])
    assert TUMOUR.mask(probabilities).tolist() == [3, 2, 3, 0]
    assert TUMOUR.mask(probabilities, 0.65).tolist() == [3, 2, 3, 0]
    assert TUMOUR.mask(probabilities, 0.75).tolist() == [3, 0, 3, 0]
    turned = LabelSpace(TUMOUR.names, TUMOUR.regions[::-1], (3, 2, 1))
    assert turned.mask(probabilities[::-1]).tolist() == [1, 1, 1, 0]


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_the_regions_of_a_mask_give_it_back(labels):
    labels = np.array(labels)
    certain = np.stack([lies_in(labels, region) for region in TUMOUR.regions]).astype(float)
    assert (TUMOUR.mask(certain) == labels).all()


def changed(labels, **more):
    return {**DESCRIPTION, "labels": {**DESCRIPTION["labels"], **labels}, **more}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (changed({}, regions_class_order=[1, 2]), "a value for each of the 3"),
        (changed({}, regions_class_order=None), "a value for each of the 3"),
        (changed({}, regions_class_order=[1, 2, 4]), "has 4, which no label has"),
        (changed({"core": [0, 2]}), "'core' has the background's value"),
        (changed({"core": [1, 2, 3]}), "one name or one value"),
        (changed({"core": []}), "'core' is .*a value or a list"),
        (changed({}, regions_class_order=[1, 2.5, 3]), "of each in it a whole number"),
        (changed({}, regions_class_order=["1", 2, 3]), "of each in it a whole number"),
        (changed({}, regions_class_order="123"), "a value for each of the 3"),
        (changed({"core": [2, 2]}), r"'core' is \[2, 2\], which has a value twice; keep one"),
        ({"labels": {"background": 0, "a": [1, 1]}}, "has a value twice"),
        ({"labels": {"background": [0, 0], "a": 1}}, "has a value twice"),
        ({"labels": [0, 1]}, "its labels is .*wanted: values by their keys"),
        ({}, "its labels is missing"),
        (changed({"core": True}), "its value True is no whole number"),
        ({"labels": {"background": 0, "a": 4294967295}}, r"\[0, 4294967295\] are not 0"),
        ({"labels": {"background": 0, "a": 10**20}}, "are not 0"),
        ({"labels": {}}, "are not 0"),
        (changed({"enhancing": 5}), r"\[0, 1, 2, 3, 5\] are not 0"),
        (changed({"ignore": [4, 5]}), "label to ignore is a region"),
        (changed({"ignore": 2}), "ignore is 2, and another one 3; .* the highest"),
        (changed({"background": [0, 1]}), r"its background is \[0, 1\]; nnU-Net wants it to be 0"),
        ({"labels": {"a": 1}}, r"\[1\] are not 0"),
        ({"labels": {}}, r"\[\] are not 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "one name or one value"),
    ],
)
def test_labels_that_say_no_such_thing_are_refused(description, message):
    with pytest.raises(UserError, match=message):
        label_space(description)


def test_labels_of_several_datasets_are_classes_of_their_own():
    lung, again = LabelSpace(("lesion", "node")), LabelSpace(("lesion",), ignored=255)
    both = together({"one": lung, "two": again})
    assert both == LabelSpace(("lesion (one)", "node", "lesion (two)"), ignored=255)
    assert together({"one": TUMOUR}) == TUMOUR
    with pytest.raises(UserError, match="two: its labels are regions, which are trained on alone"):
        together({"one": lung, "two": TUMOUR})


@pytest.mark.parametrize(
    ("labels", "lines"),
    [
        ({"background": 0, "a": 1, "ignore": 2}, []),
        ({"0": "Background", "1": "a"}, []),  # of version 1, which has no name for it
        ({"background": 0, "a": 1, "ignore": 7}, ["the label ignore is 7; nnU-Net wants 2"]),
        (
            {"Background": 0, "a": 1},
            ["the background is 'Background': 0; nnU-Net wants 'background': 0"],
        ),
        (
            {"a": 1, "background": [0]},
            ["the background is 'background': [0]; nnU-Net wants 'background': 0"],
        ),
    ],
)
def test_labels_that_nnunet_refuses_are_told(labels, lines):
    assert label_space({"labels": labels}).names == ("a",)
    assert unlike_nnunet({"labels": labels}) == lines


@given(
    labels=st.lists(
        st.lists(st.sampled_from(("x", "x (a)", "x (b)", "x (a) (b)", "y")), unique=True),
        min_size=2,
        max_size=3,
    )
)
def test_classes_of_several_datasets_have_names_of_their_own(labels):
    names = together({d: LabelSpace(tuple(n)) for d, n in zip("abc", labels, strict=False)}).names
    assert len({*names}) == len(names) == sum(map(len, labels))


def test_numpys_and_jaxs_labels_lie_in_the_same_regions():
    labels = np.arange(5)
    for values in itertools.chain(TUMOUR.regions, [(0, 4)]):
        assert (np.isin(labels, values) == np.asarray(lies_in(jnp.asarray(labels), values))).all()
