import numpy as np
import pytest

from relu_deploy.errors import InputError, UsageError
from relu_deploy.tensors import (
    TensorSpec,
    check_feeds,
    count_rows,
    pad_rows,
    parse_shape,
    random_feeds,
    row_axes,
    sized_by_name,
    take_rows,
)

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
        ({"mask": np.zeros(5, np.int64)}, "dimension 'batch' is 5 in input 'mask' and 2 in input 'x'"),
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


STATE = [TensorSpec("h", "float32", (2, "n"), 1), TensorSpec("x", "float32", ("n", 3)), TensorSpec("gain", "float32", ())]


def test_rows_are_counted_taken_and_filled_up_along_the_axis_of_each_input():
    feeds = {
        "h": np.array([[0, 1, 2], [10, 11, 12]], np.float32),
        "x": np.arange(9, dtype=np.float32).reshape(3, 3),
        "gain": np.array(2, np.float32),
    }
    axes = row_axes(STATE)
    assert axes == {"h": 1, "gain": None}
    assert count_rows(feeds, axes) == 3
    assert count_rows({"gain": feeds["gain"]}, axes) == 1
    first = take_rows(feeds, axes, slice(1))
    assert [array.tolist() for array in first.values()] == [[[0], [10]], [[0, 1, 2]], 2]
    filled = pad_rows(first, axes, 2)
    assert [array.tolist() for array in filled.values()] == [[[0, 0], [10, 10]], [[0, 1, 2], [0, 1, 2]], 2]


def test_a_scalar_of_a_manifest_has_no_rows():
    assert TensorSpec.from_json(TensorSpec("gain", "float32", (), None).to_json()).batch_axis is None


def test_a_size_that_is_given_for_one_input_holds_for_the_same_dimension_of_others():
    ids, mask = TensorSpec("ids", "int64", ("n", "seq")), TensorSpec("mask", "int64", ("n", "seq"))
    table = TensorSpec("table", "float32", ("seq", "width"), None)
    sized = sized_by_name([ids, mask, table], {"ids": (1, 16)})
    assert [spec.shape for spec in sized] == [("n", 16), ("n", 16), (16, "width")]


def test_an_input_with_a_shape_of_its_own_keeps_it():
    one, other, third = (TensorSpec(name, "float32", ("n", "seq")) for name in ("one", "other", "third"))
    sized = sized_by_name([one, other, third], {"one": (1, 16), "other": (1, 8)})
    assert [spec.shape for spec in sized] == [("n", 16), ("n", 8), ("n", "seq")]
