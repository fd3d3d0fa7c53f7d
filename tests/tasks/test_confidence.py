"""Confidence and calibration of predictions, against numbers worked out by hand."""

import numpy as np
import pytest

from relu_deploy.tasks.confidence import CalibrationBins, best_classes, box_overlaps, correct_boxes, matched_scores


def test_the_calibration_error_is_the_weighted_gap_between_confidence_and_accuracy():
    bins = CalibrationBins()
    # Bin 13 (0.867 to 0.933): four predictions at 0.9, half of them right. Bin 3: one at 0.25, right.
    bins.add(np.full(4, 0.9), np.array([1, 1, 0, 0]))
    bins.add(np.array([0.25]), np.array([1]))
    assert bins.error == pytest.approx(4 / 5 * 0.4 + 1 / 5 * 0.75)
    assert bins.mean == pytest.approx((4 * 0.9 + 0.25) / 5)


def test_predictions_of_unknown_correctness_count_for_the_mean_alone():
    bins = CalibrationBins()
    bins.add(np.array([0.5, 1.0]), np.array([-1, 1]))
    assert bins.mean == 0.75
    assert bins.error == 0.0
    bins = CalibrationBins()
    assert bins.mean is None
    bins.add(np.array([0.5, np.nan]))
    assert (bins.mean, bins.error) == (0.25, None)


def test_a_perfectly_calibrated_model_has_no_error_and_a_sure_wrong_one_has_all():
    right, wrong = CalibrationBins(), CalibrationBins()
    right.add(np.ones(10), np.ones(10))
    wrong.add(np.ones(10), np.zeros(10))
    assert (right.error, wrong.error) == (0.0, 1.0)


def test_logits_get_a_softmax_and_probabilities_are_taken_as_they_are():
    logits = np.array([[0.0, np.log(3.0)], [np.log(4.0), 0.0]])
    probabilities = np.array([[0.25, 0.75], [0.8, 0.2]])
    for output in (logits, probabilities):
        classes, confidences = best_classes(output)
        np.testing.assert_array_equal(classes, [1, 0])
        np.testing.assert_allclose(confidences, [0.75, 0.8])
    planes = np.broadcast_to(logits[:, :, None, None], (2, 2, 3, 4))
    assert best_classes(planes)[1].shape == (2, 3, 4)


BOXES = np.array([[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]], np.float32)


def test_a_true_box_is_matched_once_and_only_by_its_class():
    assert box_overlaps(BOXES, BOXES)[0, 1] == pytest.approx(100 / 110)
    found = {"boxes": BOXES, "scores": np.array([0.9, 0.8, 0.7]), "labels": np.array([1, 1, 2])}
    true = {"boxes": BOXES[[0, 2]], "labels": np.array([1, 1])}
    np.testing.assert_array_equal(correct_boxes(found, true), [1, 0, 0])
    none = {"boxes": BOXES[:0], "labels": np.array([], int)}
    np.testing.assert_array_equal(correct_boxes(found, none), [0, 0, 0])


def test_each_object_counts_with_the_other_models_score_and_0_where_it_is_not_found():
    one = {"boxes": BOXES[[0, 2]], "scores": np.array([0.9, 0.6]), "labels": np.array([1, 2])}
    other = {"boxes": BOXES[[1, 1]], "scores": np.array([0.7, 0.95]), "labels": np.array([1, 2])}
    before, after = matched_scores([one], [other], 0.5)
    np.testing.assert_array_equal(before, [0.9, 0.6])
    np.testing.assert_array_equal(after, [0.7, 0.0])
    before, _ = matched_scores([one], [other], 0.8)
    np.testing.assert_array_equal(before, [0.9])
