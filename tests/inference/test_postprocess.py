"""From probabilities to masks."""

import numpy as np

from covid_jax.config import InferenceConfig
from covid_jax.inference.postprocess import (
    Postprocessing,
    load_postprocessing,
    save_postprocessing,
    to_mask,
)
from tests.conftest import installed


def probabilities(*lesions):
    lesions = np.array(lesions, float)
    return np.concatenate([1 - lesions.sum(0, keepdims=True), lesions])


def test_the_likeliest_class_is_taken_unless_a_threshold_is_set():
    row = probabilities([[[0.3, 0.3, 0.6]]], [[[0.1, 0.32, 0.1]]])
    assert to_mask(row, Postprocessing()).tolist() == [[[0, 0, 1]]]
    # All lesions together: 0.4, 0.62, 0.7; then the likelier of them.
    assert to_mask(row, Postprocessing(threshold=0.5)).tolist() == [[[0, 2, 1]]]


def test_the_largest_component_is_kept_over_corners():
    lesion = np.zeros((4, 6, 6))
    lesion[0, 0, 0] = lesion[1, 1, 1] = lesion[2, 2, 2] = 1  # one component by its corners
    lesion[3, 5, 4:6] = 1
    mask = to_mask(probabilities(lesion), Postprocessing(largest_only=True))
    assert mask.sum() == 3
    assert mask[3].sum() == 0


def test_an_empty_mask_stays_empty():
    nothing = probabilities(np.zeros((3, 3, 3)))
    assert not to_mask(nothing, Postprocessing(0.5, largest_only=True)).any()


def test_what_was_chosen_goes_before_the_config(tmp_path):
    config = InferenceConfig(threshold=0.3)
    assert load_postprocessing(tmp_path, config) == Postprocessing(0.3)
    save_postprocessing(tmp_path, Postprocessing(0.6, largest_only=True))
    assert load_postprocessing(tmp_path, config) == Postprocessing(0.6, largest_only=True)


def test_clean_up_is_nnunets():
    peer = installed("nnunetv2.postprocessing.remove_connected_components", extra="peers")
    rng = np.random.default_rng(0)
    for _ in range(20):
        segmentation = (rng.random((7, 9, 8)) > 0.85).astype(np.uint8)
        segmentation *= rng.integers(1, 3, segmentation.shape, np.uint8)
        theirs = peer.remove_all_but_largest_component_from_segmentation(segmentation, [(1, 2)])
        ours = to_mask(np.eye(3)[segmentation].transpose(3, 0, 1, 2), Postprocessing(0, True))
        np.testing.assert_array_equal(ours, theirs)
