"""Where a training patch is cut, beside nnU-Net's own data loader."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch as replaced

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_jax.data.preprocess import Geometry
from covid_jax.data.sampling import cut_corner
from covid_jax.data.store import StoredCase
from tests.conftest import installed

loaders = installed("nnunetv2.training.dataloading.data_loader", extra="peers")

Size = tuple[int, int, int]
sizes = st.tuples(*[st.integers(1, 9)] * 3)
ENDS = {"lowest": lambda low, high: low, "highest": lambda low, high: high - 1}


def nnunet_loader(cut: Size, patch: Size, has_ignore: bool = False):
    loader = loaders.nnUNetDataLoader.__new__(loaders.nnUNetDataLoader)
    loader.patch_size = cut
    loader.need_to_pad = np.array(cut) - np.array(patch)
    loader.has_ignore = has_ignore
    loader.annotated_classes_key = (-1, 0, 1)
    return loader


def stored(shape: Size, voxels: np.ndarray) -> StoredCase:
    geometry = Geometry((1, 1, 1), (), (), (), ())
    foreground = (voxels,) if len(voxels) else ()
    return StoredCase(Path("case"), np.zeros((*shape, 1)), np.zeros(shape), foreground, geometry)


@given(shape=sizes, patch=sizes, more=st.tuples(*[st.integers(0, 5)] * 3), data=st.data())
def test_around_a_lesion_voxel_the_corner_is_nnunets(shape, patch, more, data):
    cut = tuple(a + b for a, b in zip(patch, more, strict=True))
    voxel = [data.draw(st.integers(0, n - 1)) for n in shape]
    locations = {1: np.array([[0, *voxel]])}
    theirs, _ = nnunet_loader(cut, patch).get_bbox(np.array(shape), True, locations)
    case = stored(shape, np.array([voxel]))
    assert list(cut_corner(np.random.default_rng(0), case, cut, patch, True)) == list(theirs)


@pytest.mark.parametrize("on_lesion", [False, True])
@given(shape=sizes, patch=sizes, data=st.data())
def test_where_not_all_is_annotated_the_corner_is_around_what_is(on_lesion, shape, patch, data):
    """Also of a patch that is to hold a lesion, where the case has none."""
    voxel = [data.draw(st.integers(0, n - 1)) for n in shape]
    locations = {(-1, 0, 1): np.array([[0, *voxel]]), 1: np.zeros((0, 4), int)}
    theirs, _ = nnunet_loader(patch, patch, True).get_bbox(np.array(shape), on_lesion, locations)
    case = replace(stored(shape, np.zeros((0, 3))), annotated=np.array([voxel]))
    rng = np.random.default_rng(0)
    assert list(cut_corner(rng, case, patch, patch, on_lesion)) == list(theirs)


@pytest.mark.parametrize("end", ENDS)
@given(shape=sizes, patch=sizes, more=st.tuples(*[st.integers(0, 5)] * 3))
def test_elsewhere_the_corner_is_drawn_between_nnunets_bounds(end, shape, patch, more):
    cut = tuple(a + b for a, b in zip(patch, more, strict=True))
    with replaced("numpy.random.randint", ENDS[end]):
        theirs, _ = nnunet_loader(cut, patch).get_bbox(np.array(shape), False, None)
    case = stored(shape, np.zeros((0, 3)))
    assert list(cut_corner(SimpleNamespace(integers=ENDS[end]), case, cut, patch, False)) == theirs
