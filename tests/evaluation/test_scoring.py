"""What is tried on a run's training cases before its test."""

import numpy as np

from covid_jax.evaluation.scoring import choose
from covid_jax.inference.postprocess import Postprocessing


def probabilities(lesion):
    return np.stack([1 - lesion, lesion])


def test_what_scores_best_on_the_given_cases_is_chosen_and_the_plainest_of_equals():
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[1:4, 1:4, 1:4] = 1
    timid = probabilities(truth * 0.35)
    assert choose([(timid, truth)]) == Postprocessing(threshold=0.2)
    stray = truth * 0.9
    stray[5, 5, 5] = 0.9
    assert choose([(probabilities(stray), truth)]) == Postprocessing(largest_only=True)
    assert choose([(probabilities(truth * 0.9), truth)]) == Postprocessing()
