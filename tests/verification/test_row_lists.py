"""Lists of rows whose order and number depend on rounding: what their distance is, and what may differ."""

import numpy as np
import pytest

from relu_deploy.verification.judging.row_lists import compare_lists, is_other_list, list_distance
from relu_deploy.verification.judging.tensor_noise import TensorNoise

ROWS = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 20.0]])


def test_the_order_of_the_rows_does_not_count():
    assert list_distance(ROWS[::-1], ROWS) == 0
    assert list_distance(ROWS[None, ::-1], ROWS[None]) == 0


def test_a_row_that_moves_or_is_missing_counts_as_the_distance_to_the_nearest():
    moved = np.add(ROWS, [[0, 0], [3, 4], [0, 0]])
    # The mean of the squares 3² and 4² over two columns, in one row of three.
    assert list_distance(moved, ROWS) == pytest.approx(np.sqrt(12.5 / 3))
    # (10, 0) is nearest to (0, 0): a mean square of 100 / 2, in one row of three.
    assert list_distance(ROWS[[0, 2]], ROWS) == pytest.approx(np.sqrt(50 / 3))
    assert list_distance(ROWS[:0], ROWS[:0]) == 0
    # No row is near: the root mean square of all.
    assert list_distance(ROWS[:0], ROWS) == pytest.approx(np.sqrt(500 / 6))


def test_tensors_that_differ_in_two_sizes_are_no_lists():
    assert not is_other_list(np.zeros((2, 3)), np.zeros((3, 2)))
    assert list_distance(np.zeros((2, 3)), np.zeros((3, 2))) is None
    assert compare_lists(np.zeros((2, 3)), np.zeros((3, 2)), 1.0, 4.0) is None
    assert compare_lists(ROWS, ROWS, 1.0, 4.0) is None


def test_a_list_of_another_length_passes_within_the_noise_and_fails_beyond():
    nearly = np.concatenate([ROWS, ROWS[:1] + 0.1]).astype(np.float32)
    far = np.concatenate([ROWS, ROWS[:1] + 500]).astype(np.float32)
    assert compare_lists(nearly, ROWS, 0.2, 4.0).passed
    verdict = compare_lists(far, ROWS, 0.2, 4.0)
    assert not verdict.passed
    assert "shape (4, 2) instead of (3, 2)" in verdict.reason
    assert not compare_lists(nearly, ROWS, 0.0, 4.0).passed


def test_the_noise_of_a_list_is_that_of_evaluations_of_any_length():
    noise = TensorNoise(ROWS, "int8", decided=True)
    noise.add(ROWS[[0, 2]], "large", 0)
    noise.add(ROWS, "large", 1)
    assert noise.list_noise == pytest.approx(np.sqrt(50 / 3))
    undecided = TensorNoise(ROWS, "int8", decided=False)
    undecided.add(ROWS[[0, 2]], "large", 0)
    assert undecided.list_noise is None


def test_integers_beside_a_list_may_be_any_where_its_length_depends_on_rounding():
    labels = np.array([1, 2, 3])
    noise = TensorNoise(labels, "int8", decided=True)
    noise.add(labels, "draw", 0)
    assert not compare_lists(labels[:2], labels, noise.list_noise, 4.0).passed
    noise.add(labels[:2], "large", 0)
    assert compare_lists(np.array([1, 2, 3, 3]), labels, noise.list_noise, 4.0).passed
