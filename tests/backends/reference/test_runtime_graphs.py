"""Graphs that ONNX Runtime's optimizer saved and its quantizer wrote are evaluated, and agree with the runtime."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends.reference.evaluator import Evaluator
from relu_deploy.backends.reference.program import unsupported_nodes

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

RANDOM = np.random.default_rng(0)


def draw(*shape):
    return (RANDOM.standard_normal(shape) * 0.5).astype(np.float32)


def save(path, nodes, stored, shape, opset=17):
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs, [output], f"{operator}_{output}", **attributes)


def convolutional(path):
    """Convolutions with activations, a sum, pools and a classifier."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], "c1", pads=[1] * 4), node("Relu", ["c1"], "r1"),
        node("Conv", ["r1", "w2", "b2"], "c2", pads=[1] * 4), node("Add", ["c2", "r1"], "a"), node("LeakyRelu", ["a"], "r2", alpha=0.1),
        node("MaxPool", ["r2"], "m", kernel_shape=[2, 2], strides=[2, 2]), node("Sigmoid", ["m"], "s"), node("Mul", ["m", "s"], "g"),
        node("Concat", ["g", "m"], "j", axis=1), node("GlobalAveragePool", ["j"], "p"), node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "w3", "b3"], "z", transB=1), node("Softmax", ["z"], "y"),
    ]  # fmt: skip
    stored = {"w1": draw(8, 3, 3, 3), "b1": draw(8), "w2": draw(8, 8, 3, 3), "b2": draw(8), "w3": draw(5, 16), "b3": draw(5)}
    return save(path, nodes, stored, ["n", 3, 8, 8])


def transformer(path):
    """A feed-forward block: product, bias, GELU written out, product, residual, layer normalization."""
    nodes = [
        node("MatMul", ["x", "w1"], "m"), node("Add", ["m", "b1"], "h"), node("Div", ["h", "root"], "d"), node("Erf", ["d"], "e"),
        node("Add", ["e", "one"], "e1"), node("Mul", ["h", "e1"], "he"), node("Mul", ["he", "half"], "gelu"),
        node("MatMul", ["gelu", "w2"], "m2"), node("Add", ["m2", "b2"], "o"), node("Add", ["o", "x"], "skip"),
        node("LayerNormalization", ["skip", "scale", "shift"], "n"), node("Transpose", ["n"], "t", perm=[0, 2, 1]),
        node("MatMul", ["n", "t"], "s"), node("Mul", ["s", "half"], "y"),
    ]  # fmt: skip
    stored = {"w1": draw(16, 32), "b1": draw(32), "w2": draw(32, 16), "b2": draw(16), "scale": draw(16), "shift": draw(16)}
    stored |= {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    return save(path, nodes, stored, [2, 4, 16])


def results(file, x):
    """Return ONNX Runtime's result, unoptimized, and the evaluator's."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    theirs = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    model = ir.load(file)
    assert not unsupported_nodes(model)
    return theirs, Evaluator(model, wide=True).run({"x": x})["y"]


def operators(file):
    return {(one.domain, one.op_type) for one in onnx.load(file).graph.node}


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (convolutional, (2, 3, 8, 8), {"FusedConv", "QuickGelu"}),
        (transformer, (2, 4, 16), {"Gelu", "SkipLayerNormalization", "FusedMatMul"}),
    ],
)
def test_a_graph_that_the_optimizer_saved_is_evaluated(tmp_path, make, shape, expected):
    file, saved = make(tmp_path / "m.onnx"), tmp_path / "saved.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(saved)
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    assert {name for domain, name in operators(saved) if domain == "com.microsoft"} == expected
    x = draw(*shape)
    theirs, mine = results(saved, x)
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mine, Evaluator(ir.load(file), wide=True).run({"x": x})["y"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
def test_a_graph_that_the_quantizer_wrote_is_evaluated(tmp_path, form):
    quantization = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime.quantization is not installed")

    class Rows(quantization.CalibrationDataReader):
        def __init__(self):
            self.rows = iter([{"x": draw(1, 3, 8, 8)} for _ in range(4)])

        def get_next(self):
            return next(self.rows, None)

    file, quantized = convolutional(tmp_path / "m.onnx"), tmp_path / "q.onnx"
    quantization.quantize_static(file, quantized, Rows(), quant_format=quantization.QuantFormat[form], reduce_range=True)
    found = {name for _, name in operators(quantized)}
    expected = {
        "QLinearConv",
        "QLinearAdd",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearLeakyRelu",
        "QLinearGlobalAveragePool",
        "QLinearConcat",
        "QGemm",
    }
    assert form == "QDQ" or expected <= found
    theirs, mine = results(quantized, draw(2, 3, 8, 8))
    # One level of the output's 8 bits, where two roundings meet.
    np.testing.assert_allclose(mine, theirs, atol=1 / 128)


def test_a_graph_that_was_quantized_without_data_is_evaluated(tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime.quantization is not installed")
    file, quantized = transformer(tmp_path / "m.onnx"), tmp_path / "q.onnx"
    quantization.quantize_dynamic(file, quantized, weight_type=quantization.QuantType.QInt8, reduce_range=True)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= {name for _, name in operators(quantized)}
    theirs, mine = results(quantized, draw(2, 4, 16))
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=0.02)
