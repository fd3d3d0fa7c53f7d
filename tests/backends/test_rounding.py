"""The noise of int8 is that of the operands that an int8 graph quantizes."""

import numpy as np
import pytest

from relu_deploy.backends.base import Rounding

SCORES = np.float64([[0.5, -1.0], [2.0, 0.25]])


@pytest.mark.parametrize("low", [-np.inf, float(np.finfo(np.float32).min), -1e9, -1e4])
def test_a_mask_is_added_without_the_noise_of_int8(low):
    mask = np.float64([[0, low], [0, 0]])
    scores, kept = Rounding("int8").operands("Add", [SCORES, mask], [False, True])
    np.testing.assert_array_equal(scores, SCORES)
    np.testing.assert_array_equal(kept, mask)


def test_the_operands_of_a_quantized_sum_are_off_by_up_to_half_a_step():
    other = 3 * SCORES
    noisy = Rounding("int8").operands("Add", [SCORES, other], [False, False])
    for value, exact in zip(noisy, (SCORES, other), strict=True):
        error = np.abs(value - exact)
        assert (error > 0).all()
        assert error.max() <= np.abs(exact).max() / 127 / 2


def test_infinite_numbers_leave_the_step_of_the_finite_ones():
    values = np.float64([-np.inf, 1, -2, np.inf])
    noisy, _ = Rounding("int8").operands("MatMul", [values, np.eye(4)], [False, False])
    assert np.isneginf(noisy[0])
    assert np.isposinf(noisy[3])
    assert np.abs(noisy[1:3] - values[1:3]).max() <= 2 / 127 / 2


def test_a_sum_of_numbers_that_are_not_negative_stays_so_in_8_bits():
    # The root of a sum of squares (a magnitude of a Fourier transform) would be NaN, and its noise floor nothing.
    squares = np.array([0.0, 1e-9, 1e-3, 4.0])
    for seed in range(8):
        a, b = Rounding("int8", seed).operands("Add", [squares, squares[::-1]], [False, False])
        assert (a + b >= 0).all()
        assert (a != squares).any()
