"""Phantoms have a real chest's sizes and densities, and trees that branch as its airways do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covid_jax.data.chest import Tubes, draw_tubes, grow_tree, make_chest, make_grid


@pytest.fixture(scope="module")
def chest():
    return make_chest(np.random.default_rng(3), make_grid((6.0, 3.0, 3.0)))


def litres(share, spacing_mm):
    return share.sum() * np.prod(spacing_mm) * 1e-6


def test_lungs_hold_some_litres_and_are_denser_behind(chest):
    assert 2.5 < litres(chest.lungs, chest.grid.spacing_mm) < 7
    inside = chest.lungs == 1
    assert -900 < np.median(chest.hu[inside]) < -780
    front, back = (inside & (chest.grid.y < -30)), (inside & (chest.grid.y > 30))
    assert np.median(chest.hu[front]) + 15 < np.median(chest.hu[back])


def test_the_windpipe_is_open_from_the_neck_to_both_lungs(chest):
    open_air = chest.hu < -900
    top = chest.airways[-1] > 0.9
    assert open_air[-1][top].all()
    for side in (chest.grid.x < -50, chest.grid.x > 50):
        assert ((chest.airways > 0.5) & side).any()


def test_vessels_stand_out_in_the_lungs(chest):
    vessel = (chest.vessels > 0.9) & (chest.lungs == 1) & (chest.airways == 0)
    assert vessel.sum() > 50
    assert np.median(chest.hu[vessel]) > -150


def test_a_finer_grid_shows_lungs_of_the_same_size(chest):
    fine = make_chest(np.random.default_rng(3), make_grid((4.0, 2.0, 2.0)))
    assert fine.grid.shape == (54, 156, 192)
    coarse = litres(chest.lungs, chest.grid.spacing_mm)
    assert litres(fine.lungs, fine.grid.spacing_mm) == pytest.approx(coarse, rel=0.15)


@given(count=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_tree_reaches_every_point_and_thins_out_on_the_way(count, seed):
    targets = np.random.default_rng(seed).uniform(-80, 80, (count, 3))
    root = np.array([1.0, 2.0, 3.0])
    tree = grow_tree(root, targets, radius=7.0)
    assert sorted(map(tuple, tree.ends)) == sorted(map(tuple, targets))
    reached = {tuple(root): 7.0}
    for start, end, radius in zip(tree.starts, tree.ends, tree.radii, strict=True):
        assert 0 < radius <= reached[tuple(start)] + 1e-9  # grown from what is there
        reached[tuple(end)] = radius
    at_root = (tree.starts == root).all(axis=1)
    assert (tree.radii[at_root] ** 3).sum() == pytest.approx(7.0**3)  # Murray's law


def test_a_tube_has_its_volume():
    grid = make_grid((1.5, 1.5, 1.5))
    tube = Tubes(np.array([[-50.0, 3, 7]]), np.array([[50.0, 20, -20]]), np.array([6.0]))
    length = np.linalg.norm(tube.ends - tube.starts)
    round_ends = 4 / 3 * np.pi * 6**3
    expected = np.pi * 6**2 * length + round_ends
    assert draw_tubes(grid, tube).sum() * 1.5**3 == pytest.approx(expected, rel=0.02)
