"""The definition, and what each implementation does at the edges the formula leaves open."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from relu_deploy.definition import DTYPES, relu, relu6, relu_derivative

FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
NATIVE = [np.float64, np.float32, np.float16]
TINY = np.float32(1e-45)


def bits(x):
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def test_relu_of_minus_two_to_two_is_nothing_below_zero():
    assert relu([-2, -1, 0, 1, 2]).tolist() == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_documented_dtype_is_kept(dtype):
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    x = np.array([-3, -1, 0, 2, 7]).astype(dtype)
    assert relu(x).dtype == relu6(x).dtype == relu_derivative(x).dtype == x.dtype
    assert relu(x).astype(int).tolist() == [0, 0, 0, 2, 7]
    assert relu6(x).astype(int).tolist() == [0, 0, 0, 2, 6]
    assert relu_derivative(x).astype(int).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("dtype", [bool, np.uint8, complex, "datetime64[s]"])
@pytest.mark.parametrize("function", [relu, relu6, relu_derivative])
def test_other_dtypes_are_refused(function, dtype):
    with pytest.raises(TypeError, match="is defined for"):
        function(np.zeros(3, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_policy_at_the_edges(dtype):
    x = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf]).astype(dtype)
    y = relu(x)
    assert np.isnan(y[0].astype(float))
    assert bits(y)[1:].tolist() == bits(np.array([0.0, 0.0, np.inf, 0.0]).astype(dtype)).tolist()
    assert relu6(x)[3] == 6
    assert np.isnan(relu6(x)[0].astype(float))


@pytest.mark.parametrize("dtype", FLOATS)
def test_subnormals_are_never_flushed(dtype):
    least = ml_dtypes.finfo(dtype).smallest_subnormal if dtype is ml_dtypes.bfloat16 else np.finfo(dtype).smallest_subnormal
    x = np.array([least, -least]).astype(dtype)
    assert bits(relu(x)).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int8, np.int16])
def test_every_bit_pattern_of_the_small_dtypes_follows_the_formula(dtype):
    size = np.dtype(dtype).itemsize
    x = np.arange(2 ** (8 * size), dtype=f"u{size}").view(dtype)
    y = relu(x).astype(np.float64)
    with np.errstate(invalid="ignore"):
        true = np.maximum(x.astype(np.float64), 0)
    np.testing.assert_array_equal(y, true)
    assert not np.signbit(y[~np.isnan(y)]).any()


@given(hnp.arrays(st.sampled_from(NATIVE), hnp.array_shapes(max_side=5), elements={"allow_subnormal": True}))
def test_relu_is_idempotent_monotone_and_never_negative(x):
    y = relu(x)
    assert y.shape == x.shape
    np.testing.assert_array_equal(bits(relu(y)), bits(y))
    assert not (y < 0).any()
    in_order = y.reshape(-1)[np.argsort(x, axis=None)].astype(np.float64)
    in_order = in_order[np.isfinite(in_order)]
    assert (np.diff(in_order) >= 0).all()


@given(hnp.arrays(np.float32, 20, elements={"allow_nan": False}), st.integers(0, 30))
def test_relu_is_positively_homogeneous_in_powers_of_two(x, exponent):
    # What cross-layer equalization rests on: f(s·x) = s·f(x) for s > 0.
    x = x * np.float32(2.0**-60)
    scale = np.float32(2.0**exponent)
    np.testing.assert_array_equal(relu(scale * x), scale * relu(x))


@given(hnp.arrays(np.float64, 20, elements=st.floats(-100, 100)))
def test_derivative_is_the_slope_away_from_zero(x):
    x = x[np.abs(x) > 1e-3]
    step = 1e-6
    slope = (relu(x + step) - relu(x - step)) / (2 * step)
    np.testing.assert_allclose(relu_derivative(x), slope, atol=1e-6)


@pytest.mark.parametrize(("at_zero", "expected"), [(1, 1), (0, 0), (0.5, 0.5)])
def test_derivative_at_zero_is_the_callers_convention(at_zero, expected):
    x = np.array([0.0, -0.0])
    assert relu_derivative(x, at_zero=at_zero).tolist() == [expected, expected]
    assert relu_derivative(x).tolist() == [1, 1]


def test_derivative_of_nan_is_nan_and_bad_conventions_are_refused():
    assert np.isnan(relu_derivative(np.array([np.nan]))[0])
    with pytest.raises(ValueError, match="at_zero must lie in"):
        relu_derivative(np.zeros(1), at_zero=2)
    with pytest.raises(ValueError, match="cannot be held"):
        relu_derivative(np.zeros(1, np.int8), at_zero=0.5)


# ---------------------------------------------------------------- what others do: the module's second table

EDGES = np.array([np.nan, -0.0, TINY], np.float32)


def numpy_maximum(x):
    return np.maximum(x, np.float32(0))


def numpy_fmax(x):
    return np.fmax(x, np.float32(0))


def torch_relu(x):
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    return torch.relu(torch.from_numpy(x.copy())).numpy()


def onnx_relu(opset=14, dtype=TensorProto.FLOAT):
    x, y = (helper.make_tensor_value_info(name, dtype, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def onnxruntime_relu(x):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    session = onnxruntime.InferenceSession(onnx_relu().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def onnx_reference_relu(x):
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx_relu()).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("implementation", "nan", "negative_zero_kept"),
    [
        (relu, "nan", False),
        (numpy_maximum, "nan", False),
        (numpy_fmax, "zero", False),
        (torch_relu, "nan", True),
        (onnxruntime_relu, "nan", True),
        (onnx_reference_relu, "nan", False),
    ],
)
def test_implementations_behave_as_the_table_says(implementation, nan, negative_zero_kept):
    y = implementation(EDGES)
    assert np.isnan(y[0]) if nan == "nan" else y[0] == 0
    assert y[1] == 0
    assert bool(np.signbit(y[1])) is negative_zero_kept
    assert y[2] == TINY


@pytest.mark.parametrize("dtype", [TensorProto.INT16, TensorProto.INT64, TensorProto.BFLOAT16])
def test_onnxruntime_lacks_the_dtypes_that_the_table_says_it_lacks(dtype):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|Could not find an implementation"):
        onnxruntime.InferenceSession(onnx_relu(dtype=dtype).SerializeToString(), providers=["CPUExecutionProvider"])
