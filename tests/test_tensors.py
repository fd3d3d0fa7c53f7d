import numpy as np
import pytest

from relu_deploy.errors import InputError, UsageError
from relu_deploy.tensors import TensorSpec, check_feeds, parse_shape, random_feeds

SPECS = (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("mask", "int64", ("batch",)))
GOOD = {"x": np.zeros((2, 3), np.float32), "mask": np.zeros(2, np.int64)}


def test_feeds_that_fit_pass_unchanged():
    assert check_feeds(GOOD, SPECS, "m")["x"] is GOOD["x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 4), np.float32)}, "must have shape batchx3, got 2x4"),
        ({"x": np.zeros(3, np.float32)}, "must have shape batchx3, got 3"),
        ({"x": np.zeros((2, 3))}, "must be float32, got float64"),
        ({"mask": np.zeros(5, np.int64)}, "must have shape batch, got 5"),
        ({"y": np.zeros(1)}, "there is no input 'y'"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_with_what_was_expected(change, message):
    with pytest.raises(InputError, match=message):
        check_feeds(GOOD | change, SPECS, "m")
    with pytest.raises(InputError, match="no array for input 'mask'"):
        check_feeds({"x": GOOD["x"]}, SPECS, "m")


@pytest.mark.parametrize("text", ["", "axb", "1x0x3", "-1x3", "1x", "3.5"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError, match="not a shape"):
        parse_shape(text)


def test_shapes_are_read():
    assert parse_shape("1x3x224x224") == (1, 3, 224, 224)
    assert parse_shape("7") == (7,)


def test_random_feeds_fit_their_specs_and_follow_from_the_seed():
    one, same, other = (random_feeds(SPECS, 4, seed) for seed in (0, 0, 1))
    check_feeds(one, SPECS, "m")
    np.testing.assert_array_equal(one["x"], same["x"])
    assert not np.array_equal(one["x"], other["x"])


def test_a_varying_dimension_that_is_not_the_batch_needs_arrays():
    with pytest.raises(InputError, match="no fixed size in dimension 1"):
        random_feeds([TensorSpec("x", "float32", ("batch", "time"))])


def test_texts_of_one_width_become_the_objects_that_runtimes_take():
    spec = TensorSpec("words", "object", ("n",))
    words = check_feeds({"words": np.array(["a", "bcd"])}, [spec], "m")["words"]
    assert words.dtype == object
    assert words.tolist() == ["a", "bcd"]
    with pytest.raises(InputError, match="input 'words' must be texts, got float32"):
        check_feeds({"words": np.zeros(2, np.float32)}, [spec], "m")


def test_random_texts_are_digits():
    words = random_feeds([TensorSpec("words", "object", ("n", 3))], batch=2)["words"]
    assert words.shape == (2, 3)
    assert all(isinstance(word, str) and word.isdigit() for word in words.flat)
