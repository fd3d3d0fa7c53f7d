"""The reference evaluator agrees with ONNX Runtime on every operator that we wrote, in all its variants."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.backends.base import Rounding
from relu_deploy.errors import Unsupported

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

RANDOM = np.random.default_rng(0)


def draw(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def positive(*shape):
    return (np.abs(draw(*shape)) + 0.1).astype(np.float32)


X = draw(2, 6, 13, 11)
CASES = {
    "conv": ("Conv", X, [draw(4, 6, 3, 3), draw(4)], {}, 20),
    "conv without bias": ("Conv", X, [draw(4, 6, 1, 1)], {}, 20),
    "conv strided, padded, dilated": (
        "Conv",
        X,
        [draw(4, 6, 3, 2)],
        {"strides": [2, 3], "pads": [1, 0, 2, 1], "dilations": [2, 1]},
        20,
    ),
    "conv in groups": ("Conv", X, [draw(9, 2, 3, 3), draw(9)], {"group": 3, "pads": [1] * 4}, 20),
    "conv depthwise": ("Conv", X, [draw(6, 1, 3, 3), draw(6)], {"group": 6, "strides": [2, 2], "pads": [1] * 4}, 20),
    "conv depthwise with two filters each": ("Conv", X, [draw(12, 1, 3, 3)], {"group": 6}, 20),
    "conv same upper": ("Conv", X, [draw(4, 6, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 20),
    "conv same lower": ("Conv", X, [draw(4, 6, 4, 4)], {"auto_pad": "SAME_LOWER"}, 20),
    "conv valid": ("Conv", X, [draw(4, 6, 3, 3)], {"auto_pad": "VALID"}, 20),
    "conv 1d": ("Conv", draw(2, 6, 13), [draw(4, 6, 3)], {"pads": [1, 1]}, 20),
    "conv 3d": ("Conv", draw(1, 2, 5, 6, 7), [draw(4, 2, 2, 3, 3)], {"strides": [1, 2, 2]}, 20),
    "gemm": ("Gemm", draw(5, 7), [draw(7, 3), draw(3)], {}, 20),
    "gemm transposed and scaled": (
        "Gemm",
        draw(7, 5),
        [draw(3, 7), draw(5, 1)],
        {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0},
        20,
    ),
    "max pool": ("MaxPool", X, [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, 20),
    "max pool, ceil": ("MaxPool", X, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 20),
    "max pool, dilated": ("MaxPool", X, [], {"kernel_shape": [2, 2], "dilations": [2, 3]}, 20),
    "average pool": ("AveragePool", X, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}, 20),
    "average pool, padding counts": ("AveragePool", X, [], {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}, 20),
    "average pool, ceil": ("AveragePool", X, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 20),
    "global average pool": ("GlobalAveragePool", X, [], {}, 20),
    "lrn of odd size": ("LRN", X, [], {"size": 5, "alpha": 0.1, "beta": 0.75, "bias": 2.0}, 20),
    "lrn of size three": ("LRN", X, [], {"size": 3, "alpha": 0.1}, 20),
    "batch norm": ("BatchNormalization", X, [draw(6), draw(6), draw(6), positive(6)], {"epsilon": 1e-3}, 20),
    "batch norm of opset 9": ("BatchNormalization", X, [draw(6), draw(6), draw(6), positive(6)], {}, 9),
    "softmax": ("Softmax", X, [], {}, 20),
    "softmax of an axis": ("Softmax", X, [], {"axis": 1}, 20),
    "softmax of opset 9 flattens": ("Softmax", X, [], {}, 9),
    "softmax of opset 11, last axis": ("Softmax", X, [], {"axis": -1}, 11),
}


def model_file(path, operator, x, weights, attributes, opset):
    names = [f"w{index}" for index in range(len(weights))]
    node = helper.make_node(operator, ["x", *names], ["y"], "node", **attributes)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(array, name) for name, array in zip(names, weights, strict=True)]
    graph = helper.make_graph([node], "g", [value], [result], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7 if opset < 13 else 10)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_operator_agrees_with_onnxruntime(tmp_path, case):
    operator, x, weights, attributes, opset = CASES[case]
    path = model_file(tmp_path / "m.onnx", operator, x, weights, attributes, opset)
    expected = load(path, "onnxruntime-cpu").run({"x": x})["y"]
    wide = load(path, "reference").evaluate({"x": x})["y"]
    assert wide.dtype == np.float64
    assert load(path, "reference").run({"x": x})["y"].dtype == np.float32
    np.testing.assert_allclose(wide, expected, rtol=2e-5, atol=2e-5)


def test_large_convolutions_are_done_in_strips_with_the_same_result(tmp_path, monkeypatch):
    from relu_deploy.backends.reference.ops.layers import convolution as reference_ops

    operator, x, weights, attributes, opset = CASES["conv strided, padded, dilated"]
    path = model_file(tmp_path / "m.onnx", operator, x, weights, attributes, opset)
    whole = load(path, "reference").evaluate({"x": x})["y"]
    monkeypatch.setattr(reference_ops, "PATCHES", 1)
    np.testing.assert_allclose(load(path, "reference").evaluate({"x": x})["y"], whole, rtol=1e-13)


def test_rounding_noise_is_of_float32s_size_reproducible_and_only_where_asked(tmp_path):
    operator, x, weights, attributes, opset = CASES["gemm"]
    path = model_file(tmp_path / "m.onnx", operator, x, weights, attributes, opset)
    options = [{}, *({"rounding": Rounding("float32", seed)} for seed in (0, 0, 1))]
    true, one, same, other = (load(path, "reference").evaluate({"x": x}, **more)["y"] for more in options)
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    relative = np.sqrt(np.mean((one - true) ** 2) / np.mean(true**2))
    assert 2.0**-27 < relative < 2.0**-22


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_a_constant_exponent_is_not_rounded_so_that_the_noise_of_a_square_is_a_number(tmp_path, precision):
    # -3 to the power of 1.9999999 is NaN, and NaN is no noise floor.
    x = np.array([[-3.0, -1e-3, 0.5, 2.0]], np.float32)
    path = model_file(tmp_path / "m.onnx", "Pow", x, [np.array(2, np.float32)], {}, 17)
    squared = load(path, "reference").evaluate({"x": x}, rounding=Rounding(precision, 1))["y"]
    assert (squared != np.float64(x) ** 2).any()
    np.testing.assert_allclose(squared, np.float64(x) ** 2, rtol=1e-2)


def test_what_only_lends_its_size_to_a_resize_is_rounded_like_everything_else(tmp_path):
    # As PyTorch writes an interpolation to a given size: the first two sizes are those of the tensor that is resized.
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Shape", ["r"], ["front"], "shape", start=0, end=2),
        helper.make_node("Concat", ["front", "back"], ["sizes"], "concat", axis=0),
        helper.make_node("Resize", ["r", "", "", "sizes"], ["y"], "resize", mode="linear"),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, *size]) for name, size in (("x", (3, 3)), ("y", (8, 8)))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(np.array([8, 8]), "back")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    x, seen = positive(1, 2, 3, 3), {}

    def keep(name, value):
        return seen.setdefault(name, value)

    load(tmp_path / "m.onnx", "reference").evaluate({"x": x}, rounding=Rounding("float16"), seen=keep)
    relative = np.sqrt(np.mean((seen["r"] / x - 1) ** 2))
    assert 2.0**-14 < relative < 2.0**-11
    assert seen["sizes"].tolist() == [1, 2, 8, 8]


def test_integers_pass_through_float64_untouched(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "shape"),
        helper.make_node("Cast", ["s"], ["f"], "cast", to=TensorProto.FLOAT),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    outputs = [
        helper.make_tensor_value_info("s", TensorProto.INT64, [2]),
        helper.make_tensor_value_info("f", TensorProto.FLOAT, [2]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], outputs), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, tmp_path / "m.onnx")
    results = load(tmp_path / "m.onnx", "reference").evaluate({"x": np.zeros((2, 3), np.float32)})
    assert results["s"].dtype == np.int64
    assert results["f"].dtype == np.float64


def test_an_operator_that_nobody_knows_is_unsupported(tmp_path):
    node = helper.make_node("Mystery", ["x"], ["y"], "node", domain="com.example")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    for backend in ("reference", "onnxruntime-cpu"):
        with pytest.raises(Unsupported, match="Mystery"):
            load(tmp_path / "m.onnx", backend)
