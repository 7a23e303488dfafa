"""Slices as a stack: what makes one volume of them, and where it lies."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covid_jax.data.slices import Slice, check_alike, parallel, stack, why_no_volume
from covid_jax.errors import UserError

FOLDER = Path("series")
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def slices(positions, orientation=AXIAL, **changes):
    """One for each position, a.dcm, b.dcm and so on."""
    fields = {"frame": None, "matrix": (4, 4), "spacing_mm": (0.8, 0.7), "localizer": False}
    fields |= {"frame_of_reference": "1.2", "orientation": tuple(orientation)}
    return [
        Slice(
            **{"file": FOLDER / f"{index:03d}.dcm", "position_mm": tuple(position)}
            | fields
            | changes
        )
        for index, position in enumerate(np.asarray(positions, float).tolist())
    ]


def above(depths):
    return [(-100.0, -90.0, depth) for depth in depths]


@st.composite
def turned(draw):
    """A direction of a row, and of a column, at right angles."""
    vectors = draw(st.lists(st.floats(-1, 1), min_size=6, max_size=6))
    along_row, other = np.reshape(vectors, (2, 3))
    if np.linalg.norm(np.cross(along_row, other)) < 0.1:
        along_row, other = np.eye(3)[:2]
    along_row = along_row / np.linalg.norm(along_row)
    along_column = other - (other @ along_row) * along_row
    return along_row, along_column / np.linalg.norm(along_column)


@given(
    turned(),
    st.integers(2, 40),
    st.floats(0.3, 5),
    st.floats(0, 0.09),
    st.integers(0, 2**32 - 1),
)
def test_jitter_of_less_than_a_tenth_of_the_spacing_moves_no_slice_by_more_than_itself(
    directions, number, spacing, share, seed
):
    along_row, along_column = directions
    normal = np.cross(along_row, along_column)
    rng = np.random.default_rng(seed)
    jitter = rng.uniform(-share, share, number) * spacing
    exact = np.array([5.0, -6.0, 7.0]) + np.outer(np.arange(number) * spacing, normal)
    there = exact + np.outer(jitter, normal)
    given_order = rng.permutation(number)
    ordered, affine, notes = stack(FOLDER, slices(there[given_order], (*along_row, *along_column)))
    np.testing.assert_array_equal([image.position_mm for image in ordered], there)
    fitted = affine[:3, 3] + np.outer(np.arange(number), affine[:3, 2])
    assert np.linalg.norm(fitted - there, axis=1).max() <= 2 * np.abs(jitter).max() + 1e-9
    np.testing.assert_allclose(affine[:3, 0], 0.7 * along_row, atol=1e-9)
    np.testing.assert_allclose(affine[:3, 1], 0.8 * along_column, atol=1e-9)
    assert bool(notes) == (np.linalg.norm(fitted - there, axis=1).max() > 1e-3)


@given(st.integers(3, 400), st.floats(0.1, 10), st.data())
def test_a_missing_slice_is_seen_wherever_it_is(number, spacing, data):
    missing = data.draw(st.integers(1, number - 1))
    depths = [spacing * index for index in range(number + 1) if index != missing]
    with pytest.raises(UserError, match="a slice is missing"):
        stack(FOLDER, slices(above(depths)))


@settings(max_examples=30)
@given(st.integers(3, 300), st.floats(0.6, 5), st.floats(-500, 500))
def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(number, spacing, start):
    depths = np.round(start + spacing * np.arange(number), 1)
    _, affine, notes = stack(FOLDER, slices(above(depths)))
    assert affine[2, 3] == pytest.approx(start, abs=0.06)
    assert affine[2, 2] * (number - 1) == pytest.approx(spacing * (number - 1), abs=0.12)
    assert all("off even ones" in note for note in notes)


def test_a_note_says_by_how_much_positions_are_off():
    _, affine, notes = stack(FOLDER, slices(above([0, 1.25, 2.5, 3.8, 5, 6.25])))
    assert notes == ("slice positions up to 0.041 mm off even ones: a spacing of 1.2514 mm fitted",)
    assert affine[2, 2] == pytest.approx(1.2514, abs=1e-4)


def test_slices_further_apart_than_a_tenth_are_named():
    with pytest.raises(UserError, match=r"1\.40 mm between 003\.dcm and 004\.dcm.*evenly spaced"):
        stack(FOLDER, slices(above([0, 1, 2, 3, 4.4, 5, 6, 7])))


def test_a_doubled_slice_is_named_with_its_folder():
    doubled = [*slices(above([0, 1, 2])), *slices(above([1]), file=FOLDER / "copy" / "b.dcm")]
    with pytest.raises(UserError, match=r"001\.dcm and copy/b\.dcm lie at the same position"):
        stack(FOLDER, doubled)


@pytest.mark.parametrize("degrees", [1, 15, -20])
def test_a_tilted_gantry_is_refused_by_its_angle(degrees):
    lean = np.tan(np.radians(degrees))
    tilted = slices([(0, lean * 2.5 * index, 2.5 * index) for index in range(8)])
    with pytest.raises(UserError, match=f"tilted by {abs(degrees)}.0 degrees"):
        stack(FOLDER, tilted)


def test_a_slice_beside_the_others_is_named():
    positions = above(range(8))
    positions[5] = (-97.0, -90.0, 5.0)
    with pytest.raises(UserError, match=r"005\.dcm: lies .* mm beside the other slices"):
        stack(FOLDER, slices(positions))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"matrix": (4, 5)}, r"matrix of rows and columns is 4 5, and 4 4 in most"),
        ({"spacing_mm": (0.8, 0.8)}, r"PixelSpacing is 0\.8 0\.8, and 0\.8 0\.7 in most"),
        ({"spacing_mm": ()}, "a slice without PixelSpacing"),
        ({"orientation": (1, 0, 0, 0, 0.995, 0.0998)}, "ImageOrientationPatient is"),
        ({"orientation": ()}, "a slice without ImageOrientationPatient"),
        ({"frame_of_reference": "9"}, "FrameOfReferenceUID is not that of most"),
    ],
)
def test_a_slice_that_is_not_as_the_others_is_named(changes, said):
    odd = {"file": FOLDER / "odd.dcm", **changes}
    orientation = odd.pop("orientation", AXIAL)
    with pytest.raises(UserError, match=rf"odd\.dcm: .*{said}"):
        check_alike([*slices(above([0, 1, 2])), *slices(above([3]), orientation, **odd)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spacing_mm": (0.0, 0.7)}, "PixelSpacing is 0 0.7"),
        ({"orientation": (1, 0, 0, 1, 0, 0)}, "not two directions at right angles"),
    ],
)
def test_a_grid_that_is_none_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        stack(FOLDER, slices(above([0, 1]), **changes))


def test_images_across_a_stack_are_a_group_of_their_own():
    axial, coronal = slices(above([0, 1, 2])), slices(above([0]), CORONAL)
    assert parallel([*axial[:1], *coronal, *axial[1:]]) == [axial, coronal]


def test_the_other_side_of_a_plane_is_no_other_plane():
    flipped = slices(above([3]), (1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    assert len(parallel([*slices(above([0, 1, 2])), *flipped])) == 1


@pytest.mark.parametrize(
    ("images", "why"),
    [
        (slices(above([0, 1])), ""),
        (slices(above([0])), "a single image"),
        (slices(above([7, 7, 7])), "images of one place"),
        (slices([(), ()]), "images without ImagePositionPatient or ImageOrientationPatient"),
        ([*slices(above([7, 7])), *slices([()])], ""),  # one without is a fault, and to be named
    ],
)
def test_what_is_no_volume(images, why):
    assert why_no_volume(images) == why
