"""Graphs from quantization-aware training: moved to where a target reads their Q/DQ pairs, with the same scales and numbers."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from trained_graphs import Writer, brevitas_graph, modelopt_graph, pytorch_graph

from relu_deploy.graph import normalize_model, to_bytes
from relu_deploy.graph.quantization.retarget import has_qdq, retarget_qdq

GRAPHS = {"pytorch": pytorch_graph, "modelopt": modelopt_graph, "brevitas": brevitas_graph}
ROWS = np.random.default_rng(3).standard_normal((6, 16, 8, 8)).astype(np.float32)


def loaded(proto):
    return normalize_model(ir.from_proto(proto), "graph")


def run(model, optimized="", level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL):
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = level
    settings.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(to_bytes(model), settings, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": ROWS})[0]


def scales(model):
    """Return the scales of the Q/DQ nodes, as bytes."""
    nodes = [node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return {np.asarray(node.inputs[1].const_value.numpy()).tobytes() for node in nodes}


def kernels(model, path):
    """Return how many nodes of each operator ONNX Runtime runs on a CPU."""
    run(model, path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", GRAPHS)
def test_for_a_cpu_no_scale_and_no_output_changes(name):
    original = loaded(GRAPHS[name]())
    moved = retarget_qdq(original, "cpu")
    assert scales(moved.model) <= scales(original)
    np.testing.assert_array_equal(run(moved.model), run(original))


@pytest.mark.parametrize(("name", "convolutions"), [("pytorch", 2), ("modelopt", 1), ("brevitas", 2)])
def test_every_conv_that_is_not_named_runs_as_an_8_bit_kernel_of_onnx_runtime(tmp_path, name, convolutions):
    moved = retarget_qdq(loaded(GRAPHS[name]()), "cpu")
    found = kernels(moved.model, tmp_path / "optimized.onnx")
    named = [node for node in moved.report.float_nodes if node.startswith("conv")]
    assert found["QLinearConv"] == convolutions
    assert found["Conv"] + found["FusedConv"] == len(named) == 2 - convolutions


def test_a_graph_for_tensorrt_gets_8_bit_kernels_on_a_cpu_only_after_it_is_moved(tmp_path):
    original = loaded(modelopt_graph())
    assert kernels(original, tmp_path / "original.onnx")["QLinearConv"] == 0
    moved = retarget_qdq(original, "cpu")
    assert kernels(moved.model, tmp_path / "moved.onnx")["QLinearConv"] == 1
    # The sum of a Conv and its skip branch has no scale in such a graph.
    assert "sum (Add)" in moved.report.float_nodes["conv1"]


@pytest.mark.parametrize("name", GRAPHS)
def test_for_tensorrt_what_stays_in_8_bits_is_symmetric_int8_with_float_biases(name):
    original = loaded(GRAPHS[name]())
    moved = retarget_qdq(original, "tensorrt")
    assert scales(moved.model) <= scales(original)
    for node in moved.model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = node.inputs[2].const_value.numpy()
            assert zero.dtype == np.int8
            assert not zero.any()
    run(moved.model)


def test_symmetric_graphs_keep_their_outputs_for_tensorrt_and_nothing_is_named():
    original = loaded(modelopt_graph())
    moved = retarget_qdq(original, "tensorrt")
    assert moved.report.float_nodes == {}
    np.testing.assert_array_equal(run(moved.model), run(original))


def test_asymmetric_activations_cannot_be_moved_to_tensorrt_and_their_readers_are_named():
    moved = retarget_qdq(loaded(pytorch_graph()), "tensorrt")
    assert set(moved.report.float_nodes) == {"conv0", "conv1", "fc"}
    assert "uint8 with zero point 116" in moved.report.float_nodes["conv0"]
    assert "symmetric" in moved.report.float_nodes["conv1"]
    # One with zero point 128 is symmetric: the same numbers as int8.
    moved = retarget_qdq(loaded(pytorch_graph(input_zero=128)), "tensorrt")
    assert "conv0" not in moved.report.float_nodes


def test_what_is_excluded_computes_in_float_with_the_trained_weights():
    original = loaded(pytorch_graph())
    moved = retarget_qdq(original, "cpu", {"conv1": "excluded"})
    assert set(moved.report.float_nodes) == {"conv1", "fc"}
    assert moved.report.float_nodes["conv1"] == "excluded"
    assert "its bias is float32" in moved.report.float_nodes["fc"]
    conv = next(node for node in moved.model.graph if node.name == "conv1")
    assert conv.inputs[1].const_value.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(run(moved.model), run(original))


def test_fewer_than_8_bits_and_layers_without_pairs_are_named():
    writer = Writer()
    read = writer.pair("x", 0.2, np.int8(0), clip=(-8, 7))
    writer.add("Conv", [read, writer.weight_pair("w0", writer.weights(16, 16, 3, 3))], "conv0", pads=[1] * 4)
    read = writer.pair(writer.add("Relu", ["conv0"], "relu0"), 0.02, np.uint8(0))
    writer.add("Conv", [read, writer.constant("w1", writer.weights(10, 16, 8, 8))], "conv1")
    writer.add("Flatten", ["conv1"], "y")
    original = loaded(writer.model())
    moved = retarget_qdq(original, "cpu")
    assert moved.report.float_nodes == {"conv1": "the graph has no Q/DQ pair on its weights"}
    # The Clip of stored numbers is one of floats now, and the 16 levels are the same.
    np.testing.assert_array_equal(run(moved.model), run(original))
    assert not any(node.op_type == "Clip" and node.inputs[0].dtype.is_integer() for node in moved.model.graph)


def test_a_graph_without_pairs_on_activations_is_not_a_quantized_one():
    writer = Writer()
    writer.add("Conv", ["x", writer.weight_pair("w0", writer.weights(10, 16, 8, 8), stored=True)], "conv0")
    writer.add("Flatten", ["conv0"], "y")
    assert not has_qdq(loaded(writer.model()))
    assert has_qdq(loaded(pytorch_graph()))


def test_a_stored_bias_in_other_steps_than_the_layers_product_becomes_float_and_the_kernel_stays(tmp_path):
    original = loaded(brevitas_graph())
    load = next(node for node in original.graph if node.name == "b0/dq")
    load.inputs[1].const_value = ir.tensor(load.inputs[1].const_value.numpy() * np.float32(3))
    moved = retarget_qdq(original, "cpu")
    np.testing.assert_array_equal(run(moved.model), run(original))
    assert kernels(moved.model, tmp_path / "optimized.onnx")["QLinearConv"] == 2
