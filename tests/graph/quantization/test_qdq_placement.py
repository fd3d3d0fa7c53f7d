"""Which numbers become 8 bits wide: what each target's kernels want."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from small import graph_of, residual

from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.quantization.qdq import SCHEMES, quantize
from relu_deploy.graph.quantization.qdq_placement import place_qdq, segments_of


def value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def conv_net(shape, groups=1, channels=32, opset=20):
    node = helper.make_node("Conv", ["a", "w"], ["c"], "conv", group=groups, pads=[1, 1, 1, 1])
    first = helper.make_node("Relu", ["x"], ["a"], "before")
    size = shape[1] * groups
    return graph_of(
        [first, node, helper.make_node("Relu", ["c"], ["y"], "relu")],
        [("x", [1, size, 8, 8])],
        [("y", None)],
        [("w", np.ones(shape, np.float32))],
        opset,
    )


def test_a_node_belongs_to_the_segment_of_the_first_relu_behind_it():
    segments = segments_of(residual())
    assert [segments[name] for name in ("stem", "relu0", "inner", "last", "add", "mean", "head")] == [
        *("relu0", "relu0", "relu1", "relu2", "relu2"),
        *("mean", "head"),
    ]


def test_the_cpu_reads_and_gives_8_bits_and_a_last_gemm_gives_float():
    placed = place_qdq(residual(), "cpu")
    assert set(placed.nodes) == {"stem", "inner", "last", "add", "mean", "head"}
    assert placed.results == {"stem_relu", "inner_relu", "last", "sum_relu", "mean"}
    assert ("head", 0) in placed.reads
    assert not placed.refused


def test_openvino_gets_float_of_what_no_quantized_node_reads():
    cpu, openvino = place_qdq(residual(), "cpu"), place_qdq(residual(), "openvino")
    assert (openvino.nodes, openvino.reads, openvino.results) == (cpu.nodes, cpu.reads, cpu.results)
    # A last Conv gives 8 bits in ONNX Runtime alone; what a Flatten passes on to a quantized node stays in 8 bits.
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Flatten", ["c"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "g"], ["y"], "gemm"),
        helper.make_node("Conv", ["x", "w"], ["d"], "last"),
        helper.make_node("Sigmoid", ["d"], ["z"], "sigmoid"),
    ]
    weights = [("w", np.ones((16, 16, 1, 1), np.float32)), ("g", np.ones((256, 4), np.float32))]
    model = graph_of(nodes, [("x", [1, 16, 4, 4])], [("y", None), ("z", None)], weights)
    assert place_qdq(model, "cpu").results == {"c", "d"}
    assert place_qdq(model, "openvino").results == {"c"}


def test_openvino_gets_numbers_that_may_be_negative_signed_and_others_unsigned():
    scheme = SCHEMES["openvino", "int8"]
    placed = place_qdq(residual(), "openvino")
    names = [str(value.name) for node in residual().graph for value in node.outputs]
    ranges = {name: (0.0, 4.0) if "relu" in name else (-1.0, 3.0) for name in (*names, "x")}
    model = quantize(residual(), placed, ranges, scheme)
    zeros = {str(node.inputs[0].name): node.inputs[2].const_value for node in model.graph if node.op_type == "QuantizeLinear"}
    for name, zero in zeros.items():
        assert (zero.dtype.name, int(zero.numpy())) == (("UINT8" if ranges[name][0] == 0 else "INT8"), 0)
    assert {zero.dtype.name for zero in zeros.values()} == {"UINT8", "INT8"}


def test_at_a_residual_add_tensorrt_gets_the_skip_branch_quantized_and_nothing_behind_the_conv():
    placed = place_qdq(residual(), "tensorrt")
    assert placed.reads == {("stem", 0), ("inner", 0), ("last", 0), ("add", 1), ("head", 0)}
    assert placed.results == frozenset()


def test_of_two_convs_at_an_add_the_one_on_the_skip_branch_is_quantized():
    # x feeds both the projection and the main branch: it is the projection that reads what the block starts from.
    nodes = [
        helper.make_node("Relu", ["x"], ["start"], "start"),
        helper.make_node("Conv", ["start", "w"], ["a"], "a"),
        helper.make_node("Relu", ["a"], ["b"], "b"),
        helper.make_node("Conv", ["b", "w"], ["main"], "main"),
        helper.make_node("Conv", ["start", "w"], ["projected"], "projected"),
        helper.make_node("Add", ["main", "projected"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["y"], "relu"),
    ]
    model = graph_of(nodes, [("x", [1, 16, 4, 4])], [("y", None)], [("w", np.ones((16, 16, 1, 1), np.float32))])
    assert ("add", 1) in place_qdq(model, "tensorrt").reads
    assert ("add", 0) not in place_qdq(model, "tensorrt").reads


@pytest.mark.parametrize(
    ("shape", "groups", "int8", "float8"),
    [
        ((32, 32, 3, 3), 1, True, True),
        ((10, 64, 3, 3), 1, False, False),
        ((8, 64, 3, 3), 1, True, False),
        ((9, 63, 3, 3), 1, False, False),
        ((32, 1, 3, 3), 32, True, False),
        ((30, 1, 3, 3), 30, False, False),
        ((32, 32, 7, 7), 1, True, False),
        ((8, 8, 3, 3), 1, False, False),
    ],
)
def test_layers_that_8_bits_make_slower_stay_float_on_tensorrt_with_the_reason(shape, groups, int8, float8):
    model = conv_net(shape, groups)
    for precision, expected in (("int8", int8), ("float8", float8)):
        placed = place_qdq(model, "tensorrt", precision)
        assert ("conv" in placed.nodes) == expected
        assert ("conv" in placed.refused) != expected


def test_a_segment_that_is_switched_off_is_not_quantized_and_its_neighbors_are():
    placed = place_qdq(residual(), "cpu", off=["relu1"])
    assert "inner" not in placed.nodes
    assert "inner_relu" not in placed.results
    assert {"stem", "last", "head"} <= set(placed.nodes)


def test_weights_that_are_computed_are_refused_with_the_reason():
    nodes = [helper.make_node("MatMul", ["x", "z"], ["y"], "product")]
    placed = place_qdq(graph_of(nodes, [("x", [4, 4]), ("z", [4, 4])], [("y", [4, 4])]), "cpu")
    assert not placed.nodes
    assert "computed" in placed.refused["product"]


def test_what_a_pool_only_moves_belongs_together_and_what_a_concat_joins_does_on_tensorrt():
    nodes = [
        helper.make_node("MaxPool", ["x"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["pooled"], ["a"], "relu"),
        helper.make_node("Concat", ["a", "pooled"], ["y"], "concat", axis=1),
    ]
    model = graph_of(nodes, [("x", [1, 16, 4, 4])], [("y", None)])
    on_cpu, on_tensorrt = place_qdq(model, "cpu"), place_qdq(model, "tensorrt")
    assert [sorted(names) for names in on_cpu.moved] == [sorted(names) for names in on_tensorrt.moved] == [["pooled", "x"]]
    assert not on_cpu.joined
    assert [sorted(names) for names in on_tensorrt.joined] == [["a", "pooled", "y"]]


def test_a_result_that_a_body_reads_stays_float_and_the_graph_runs_on_onnx_runtime(tmp_path):
    # ONNX Runtime 1.32 aborts the process where a DequantizeLinear's result is moved into a body.
    squeezed = helper.make_graph([helper.make_node("Squeeze", ["r", "axes"], ["s"])], "then", [], [value("s", None)])
    same = helper.make_graph([helper.make_node("Identity", ["r"], ["i"])], "else", [], [value("i", None)])
    fed = helper.make_graph([helper.make_node("Neg", ["chosen"], ["n"])], "then", [], [value("n", None)])
    kept = helper.make_graph([helper.make_node("Identity", ["chosen"], ["k"])], "else", [], [value("k", None)])
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "first"),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], "second"),
        helper.make_node("Relu", ["c1"], ["r"], "relu1"),
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["size"]),
        helper.make_node("Equal", ["size", "one"], ["is_one"]),
        helper.make_node("If", ["is_one"], ["chosen"], "squeeze", then_branch=squeezed, else_branch=same),
        helper.make_node("If", ["data"], ["y"], "sign", then_branch=fed, else_branch=kept),
    ]
    generator = np.random.default_rng(0)
    weights = {name: generator.standard_normal((16, 16, 1)).astype(np.float32) for name in ("w0", "w1")}
    weights |= {"axes": np.array([2]), "last": np.array(2), "one": np.array(1)}
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", [1, 16, 1]), helper.make_tensor_value_info("data", TensorProto.BOOL, [])],
        [value("y", None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString())
    model = load_model(path)
    placed = place_qdq(model, "cpu")
    assert set(placed.nodes) == {"first"}
    assert "body" in placed.refused["second"]
    save_model(quantize(model, placed, {"x": (-1.0, 1.0), "r0": (0.0, 9.0)}, SCHEMES["cpu", "int8"]), path)
    code = f"import onnxruntime; onnxruntime.InferenceSession({str(path)!r}, providers=['CPUExecutionProvider'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_operators_of_other_domains_with_the_same_name_are_left_alone(target):
    model = residual()
    nodes = [node for node in model.graph if node.op_type == "Conv"]
    quantized = set(place_qdq(model, target).nodes)
    assert {str(node.name) for node in nodes} <= quantized
    for node in nodes:
        node.domain = "com.microsoft.nchwc"
    assert not {str(node.name) for node in nodes} & set(place_qdq(model, target).nodes)
