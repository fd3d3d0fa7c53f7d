"""describe gives the kind of a difference the name that a person would give it."""

import numpy as np
import pytest

from relu_deploy.verification.locating.classify import describe


@pytest.fixture
def true():
    return np.maximum(np.random.default_rng(0).standard_normal((2, 8, 6, 6)), 0)


def in_channel(function, channel=3):
    def change(x):
        y = x.copy()
        y[:, channel] = function(y[:, channel])
        return y

    return change


def with_at(x, value, count=5):
    y = x.copy()
    y.reshape(-1)[:count] = value
    return y


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda x: x * 1.25, "scale", "is 1.25 times the truth"),
        (in_channel(lambda x: x * 2), "scale", "in channel 3 only"),
        (lambda x: x + 0.5, "offset", "off by 0.5"),
        (in_channel(lambda x: x + 1, 0), "offset", "in channel 0 only"),
        (lambda x: x + np.arange(8).reshape(1, 8, 1, 1), "offset", "each channel is off by a number of its own"),
        (lambda x: x[:, [0, 1, 5, 3, 4, 2, 6, 7]], "channel", "2←5, 5←2"),
        (in_channel(lambda x: x[:, ::-1].copy() + x * x), "channel", "only channel 3 of 8 differs"),
        (lambda x: np.minimum(x, 0.7), "saturation", "held above at 0.7"),
        (lambda x: -x, "sign", "the other sign"),
        (lambda x: with_at(x, np.nan), "NaN", "5 of 576 elements are NaN"),
        (lambda x: with_at(x, np.inf), "overflow", "infinite where the truth is up to"),
        (lambda x: x.astype(np.float16).astype(np.float64), "precision", "bits were kept"),
        (lambda x: x[:, :4], "shape", "(2, 4, 6, 6) instead of (2, 8, 6, 6)"),
        (lambda x: np.roll(x, 1, axis=2), "values", "differs in"),
    ],
)
def test_each_kind_is_recognised(true, change, kind, words):
    found, detail = describe(change(true), true)
    assert found == kind
    assert words in detail


def test_a_relu_that_lets_negative_values_through_is_distinguished_from_one_that_turns_them_around():
    x = np.random.default_rng(0).standard_normal((1, 4, 16, 16))
    true = np.maximum(x, 0)
    assert describe(np.where(x > 0, x, 0.01 * x), true)[1].startswith("negative values pass")
    assert describe(x, true)[0] == "sign"
    assert "turned around" in describe(np.abs(x), true)[1]


def test_equal_tensors_and_integers_have_words_too():
    ones = np.ones((2, 3))
    assert describe(ones, ones) == ("values", "equal in this evaluation")
    assert describe(np.array([1, 2]), np.array([1, 3])) == ("values", "1 of 2 integers differ")
