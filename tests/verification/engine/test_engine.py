"""What an engine says of itself is read in every form that inspectors write it in, and what it does not say is not made up."""

import json

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir import from_proto

from relu_deploy.errors import Unsupported
from relu_deploy.verification.engine.dataflow import map_to_onnx, match_captures, trace_dataflow
from relu_deploy.verification.engine.layers import Captured, EngineTensor, compare_layers, dtype_in, read_layers
from relu_deploy.verification.engine.tensor_format import Quantized, decode, quantized_by, same_but_ones


def tensor(name, dims=(1, 8, 4, 4), layout="Row major linear FP32"):
    return {"Name": name, "Location": "Device", "Dimensions": list(dims), "Format/Datatype": layout}


def layer(name, inputs, outputs, nodes=(), kind="CaskConvolution", tactic="", separator="\x1f"):
    made = [each if isinstance(each, dict) else tensor(each) for each in outputs]
    read = [each if isinstance(each, dict) else tensor(each) for each in inputs]
    metadata = separator.join(f"[ONNX Layer: {node}]" for node in nodes)
    return {"Name": name, "LayerType": kind, "Inputs": read, "Outputs": made, "TacticName": tactic, "Metadata": metadata}


def layers_of(*layers):
    return read_layers(json.dumps({"Layers": list(layers), "Bindings": ["x", "y"]}), "m.engine")


# ---------------------------------------------------------------- the inspector's JSON


@pytest.mark.parametrize("separator", ["\x1f", "\x1e", ""])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_layers_nodes_are_read_however_they_are_set_apart(separator, escaped):
    nodes = ("block[0].conv/Conv", "block[0].add + shortcut", "stage1.0.relu/Relu")
    text = json.dumps({"Layers": [layer("a", ["x"], ["y"], nodes, separator=separator)]})
    if not escaped:
        text = text.replace("\\u001f", "\x1f").replace("\\u001e", "\x1e")
    (read,) = read_layers(text, "m.engine")
    assert read.nodes == nodes


def test_tensorrt_10_and_11_tell_the_same_of_a_tensor():
    ten = tensor("x", (1, 64, 8, 8), "Channel major FP16 format where channel % 8 == 0")
    eleven = {
        "Name": "x",
        "Dimensions": [1, 64, 8, 8],
        "Format": "Channel major FP16 format where channel % 8 == 0",
        "DataType": "Half",
    }
    first, second = (layers_of(layer("a", [each], ["y"]))[0].inputs[0] for each in (ten, eleven))
    assert first == second == EngineTensor("x", (1, 64, 8, 8), "Channel major FP16 format where channel % 8 == 0", "float16")
    bare = layers_of(layer("a", [tensor("x", layout="Half")], ["y"]))[0].inputs[0]
    assert (bare.format, bare.dtype) == ("Half", "float16")


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("Row major linear FP32", "float32"),
        ("Float", "float32"),
        ("Half", "float16"),
        ("BFloat16", "bfloat16"),
        ("Row major linear BFloat16 format", "bfloat16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear UInt8 format", "uint8"),
        ("Row major linear FP8 format", "float8"),
        ("kINT64", "int64"),
        ("Row major linear BOOL", "bool"),
        ("FP4E2M1", ""),
        ("Unknown format", ""),
    ],
)
def test_types_are_read_from_the_inspectors_words(text, dtype):
    assert dtype_in(text) == dtype


def test_an_engine_that_tells_names_only_is_refused_with_what_to_do():
    with pytest.raises(Unsupported, match="only the names of its layers") as refused:
        read_layers(json.dumps({"Layers": ["conv1 + relu1", "pool"], "Bindings": ["x"]}), "m.engine")
    assert "--rebuild" in refused.value.hint


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"Layers": [{"LayerType": "x"}]}', '{"Layers": 3}'])
def test_what_is_no_list_of_layers_is_refused(text):
    with pytest.raises(Unsupported, match=r"m\.engine returned no list of layers"):
        read_layers(text, "m.engine")


def test_other_profiles_and_barriers_between_streams_are_no_layers():
    read = layers_of(
        layer("a", ["x"], ["y"]), layer("a [profile 1]", ["x [profile 1]"], ["y [profile 1]"]), layer("w", [], [], kind="wait")
    )
    assert [each.name for each in read] == ["a"]


def test_engines_are_compared_by_layers_nodes_and_kernels_not_by_places_or_copies():
    shipping = layers_of(
        layer("__myl_ConvRelu_myl0_1", ["x"], ["a"], ["c", "r"], tactic="k1"), layer("pool", ["a"], ["y"], ["p"], tactic="k2")
    )
    observed = layers_of(
        layer("Reformatting CopyNode for a", ["x"], ["x2"], kind="Reformat"),
        layer("__myl_ConvRelu_myl0_2", ["x2"], ["a"], ["r", "c"], tactic="k1"),
        layer("pool", ["a"], ["y"], ["p"], tactic="k2"),
    )
    same = compare_layers(shipping, observed)
    assert same.is_same
    assert same.copies == ("Reformatting CopyNode for a",)
    split = layers_of(
        layer("c", ["x"], ["b"], ["c"]), layer("r", ["b"], ["a"], ["r"]), layer("pool", ["a"], ["y"], ["p"], tactic="k3")
    )
    other = compare_layers(shipping, split)
    assert not other.is_same
    assert (other.shipping, other.observed, other.kernels) == (("__myl_ConvRelu",), ("c", "r"), ("pool",))


# ---------------------------------------------------------------- buffers


SHAPE = (2, 5, 3, 4)
VALUES = np.random.default_rng(0).integers(-100, 100, SHAPE).astype(np.int8)


def vectors(width):
    padded = np.zeros((2, -(-5 // width) * width, 3, 4), np.int8)
    padded[:, :5] = VALUES
    return np.stack([padded[:, start : start + width] for start in range(0, padded.shape[1], width)], 1).transpose(0, 1, 3, 4, 2)


def last(width):
    padded = np.full((2, 3, 4, -(-5 // width) * width), 77, np.int8)
    padded[..., :5] = VALUES.transpose(0, 2, 3, 1)
    return padded


@pytest.mark.parametrize(
    ("layout", "stored"),
    [
        ("Row major Int8 format", VALUES),
        ("Int8", VALUES),
        ("kLINEAR", VALUES),
        ("Thirty-two wide channel vectorized row major Int8 format.", vectors(32)),
        ("Four wide channel vectorized row major Int8 format", vectors(4)),
        ("CHW4", vectors(4)),
        ("Channel major INT8 format where channel % 16 == 0", last(16)),
        ("Channel major Int8 format where channel % 4 == 0", last(4)),
        ("Channel major Int8 format", last(1)),
    ],
)
def test_documented_formats_give_the_tensor_back(layout, stored):
    for data in (stored, np.ascontiguousarray(stored).tobytes()):
        got = decode(Captured("t", data, "int8", SHAPE, layout), None)
        np.testing.assert_array_equal(got, VALUES)


@pytest.mark.parametrize(
    "layout",
    [
        "Row major INT8 format where column stride % 64 == 0",
        "Channel major INT8 format where channel == 4 and column stride % 32 == 0",
        "Channel major FP16 format where C % 8 == 0 and H Stride % 32 == 0",
        "Seven wide channel vectorized row major Int8 format",
        "Channel major Int8 format where channel is odd",
        "N/A due to dynamic shapes",
        "Unknown format",
    ],
)
def test_a_format_of_which_something_is_not_known_is_named_and_not_guessed(layout):
    reason = decode(Captured("t", VALUES, "int8", SHAPE), EngineTensor("t", SHAPE, layout, "int8"))
    assert layout in reason


def test_a_buffer_of_another_size_than_its_format_is_not_read():
    assert "480 bytes are not" in decode(Captured("t", bytes(480), "int8", SHAPE, "Row major Int8 format"), None)
    assert "120 bytes" in decode(Captured("t", VALUES, "int8", SHAPE, "Channel major Int8 format where channel % 4 == 0"), None)
    assert "four dimensions" in decode(Captured("t", VALUES, "int8", (2, 5, 12), "Channel major Int8 format"), None)
    assert "not known" in decode(Captured("t", VALUES, "int8", SHAPE), None)
    assert "'int4'" in decode(Captured("t", VALUES, "int4", SHAPE, "Int8"), None)


def test_narrow_floats_are_read_as_what_they_are():
    values = np.array([0.5, -3.0, 448.0], np.float32)
    for name, kind in (("bfloat16", ml_dtypes.bfloat16), ("float8", ml_dtypes.float8_e4m3fn), ("float16", np.float16)):
        got = decode(Captured("t", values.astype(kind).tobytes(), name, (3,), "linear"), None)
        assert got.dtype == np.dtype(kind)
        np.testing.assert_array_equal(got.astype(np.float32), values)


def test_shapes_may_differ_in_ones_and_in_what_varies():
    assert same_but_ones((8, 10, 1, 1), (8, 10))
    assert same_but_ones((-1, 10), (4, 10))
    assert same_but_ones((-1, 10), (1, 10))
    assert not same_but_ones((10, 8), (8, 10))
    assert not same_but_ones((8, 10, 2), (8, 10))


# ---------------------------------------------------------------- codes


def graph(nodes, constants, outputs=("y",)):
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    from onnx import shape_inference

    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return from_proto(shape_inference.infer_shapes(model))


def value_of(model, name):
    return next(value for node in model.graph for value in node.outputs if value.name == name)


CONSTANTS = {"s": np.float32(0.5), "s2": np.float32(0.25), "z": np.int8(0)}


def test_codes_stand_for_what_every_reader_quantizes_to():
    quantize = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = graph(quantize, CONSTANTS)
    for name in ("r", "p", "q", "y"):
        assert quantized_by(value_of(model, name)) == Quantized(0.5, 0.0, "int8")
    other = [
        helper.make_node("QuantizeLinear", ["r", "s2", "z"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "s2", "z"], ["y2"]),
    ]
    assert quantized_by(value_of(graph([*quantize, *other], CONSTANTS, ("y", "y2")), "r")) is None
    read = [helper.make_node("Neg", ["r"], ["y2"])]
    assert quantized_by(value_of(graph([*quantize, *read], CONSTANTS, ("y", "y2")), "r")) is None
    per_channel = CONSTANTS | {"s": np.full(4, 0.5, np.float32), "z": np.zeros(4, np.int8)}
    assert quantized_by(value_of(graph(quantize, per_channel), "r")) is None


def test_values_come_back_from_their_codes_rounded_and_cut_off():
    int8 = Quantized(0.5, 0.0, "int8")
    assert int8.nearest(np.array([0.2, 0.3, 100.0, -100.0])).tolist() == [0.0, 0.5, 63.5, -64.0]
    assert int8.real(np.array([3], np.int8)).tolist() == [1.5]
    float8 = Quantized(0.5, 0.0, "float8")
    assert float8.nearest(np.array([1.05, 1000.0])).tolist() == [1.0, 224.0]
    assert 0 < float8.noise(np.array([1.05, 10.3])) < 1


# ---------------------------------------------------------------- names


CHAIN = [
    helper.make_node("Relu", ["x"], ["a"], "na"),
    helper.make_node("Neg", ["a"], ["b"], "nb"),
    helper.make_node("Relu", ["b"], ["c"], "nc"),
    helper.make_node("Neg", ["c"], ["y"], "ny"),
]
SHAPES = dict.fromkeys(("x", "a", "b", "c", "y"), (1, 8, 4, 4))


def shown(name, value=0.0, shape=(1, 8, 4, 4)):
    return Captured(name, np.full(shape, value, np.float32), "float32", shape)


def test_a_name_that_is_used_again_is_another_tensor():
    dataflow = trace_dataflow(
        layers_of(
            layer("1", ["x"], ["t0"], ["na"]),
            layer("2", ["t0"], ["t1"], ["nb"]),
            layer("3", ["t1"], ["t0"], ["nc"]),
            layer("4", ["t0"], ["y"], ["ny"]),
        )
    )
    assert [write.tensor.name for write in dataflow.writes] == ["t0", "t1", "t0", "y"]
    assert dataflow.reads == ((None,), (0,), (1,), (2,))
    found, reasons = match_captures(dataflow, [shown("t0", 1), shown("t1", 2), shown("t0", 3)])
    assert {place: float(one.data.flat[0]) for place, one in found.items()} == {0: 1.0, 1: 2.0, 2: 3.0}
    assert reasons == {3: "it was not captured"}
    tensors, _ = map_to_onnx(graph(CHAIN, {}), SHAPES, dataflow, found)
    assert tensors == {0: "a", 1: "b", 2: "c", 3: "y"}
    _, reasons = match_captures(dataflow, [shown("t0"), shown("t1")])
    assert "uses the name for 2 tensors and 1 were captured" in reasons[0]
    assert reasons[0] == reasons[2]


def test_a_tensor_written_in_parts_is_one_and_whole_after_the_last():
    dataflow = trace_dataflow(
        layers_of(layer("1", ["x"], ["b"], ["na"]), layer("2", ["x"], ["b"], ["nb"]), layer("3", ["b"], ["y"], ["ny"]))
    )
    assert [write.layers for write in dataflow.writes] == [(0, 1), (2,)]
    found, _ = match_captures(dataflow, [shown("b", 1), shown("b", 2)])
    assert float(found[0].data.flat[0]) == 2.0
    inner = trace_dataflow(
        layers_of(layer("1", ["x"], ["t"], ["na"]), layer("2", ["x"], ["t"], ["nb"]), layer("3", ["t"], ["y"], ["ny"]))
    )
    assert "several layers write parts" in map_to_onnx(graph(CHAIN, {}), SHAPES, inner, {})[1][0]


def test_a_name_of_the_graph_with_another_shape_is_not_that_tensor():
    dataflow = trace_dataflow(
        layers_of(layer("1", ["x"], [tensor("b", (1, 4, 4, 4))], ["na"]), layer("2", ["b"], ["y"], ["nb", "nc", "ny"]))
    )
    tensors, reasons = map_to_onnx(graph(CHAIN, {}), SHAPES, dataflow, {})
    assert tensors == {1: "y"}
    assert "no tensor that its nodes make has its shape" in reasons[0]


def test_two_results_of_one_shape_are_not_told_apart():
    both = [
        helper.make_node("Relu", ["x"], ["a"], "na"),
        helper.make_node("Neg", ["x"], ["b"], "nb"),
        helper.make_node("Add", ["a", "b"], ["y"], "ny"),
    ]
    listed = layers_of(layer("1", ["x"], ["t0", "t1"], ["na", "nb"]), layer("2", ["t0", "t1"], ["y"], ["ny"]))
    tensors, reasons = map_to_onnx(graph(both, {}), SHAPES, trace_dataflow(listed), {})
    assert tensors == {2: "y"}
    assert "2 tensors that its nodes make have its shape: a, b" in reasons[0]
    other = (1, 8, 2, 2)
    told = layers_of(layer("1", ["x"], ["t0", tensor("t1", other)], ["na", "nb"]), layer("2", ["t0", "t1"], ["y"], ["ny"]))
    assert map_to_onnx(graph(both, {}), SHAPES | {"b": other}, trace_dataflow(told), {})[0] == {0: "a", 1: "b", 2: "y"}


def test_what_several_layers_compute_each_for_itself_is_nobodys_result():
    shared = [
        helper.make_node("Relu", ["x"], ["a"], "na"),
        helper.make_node("Identity", ["a"], ["b"], "shared"),
        helper.make_node("Neg", ["b"], ["c"], "nc"),
        helper.make_node("Abs", ["b"], ["d"], "nd"),
        helper.make_node("Add", ["c", "d"], ["y"], "ny"),
    ]
    listed = layers_of(
        layer("1", ["x"], ["t0"], ["na"]),
        layer("2", ["t0"], ["t1"], ["shared", "nc"]),
        layer("3", ["t0", "t1"], ["y"], ["shared", "nd", "ny"]),
    )
    tensors, _ = map_to_onnx(graph(shared, {}), SHAPES | {"d": (1, 8, 4, 4)}, trace_dataflow(listed), {})
    assert tensors == {0: "a", 1: "c", 2: "y"}


def test_a_copy_of_another_type_computes_and_has_the_name_it_has():
    quantize = layer("QuantizeLinear_2", [tensor("x")], [tensor("q", layout="Row major Int8 format")], kind="Reformat")
    copy = layer("Reformatting CopyNode for Output Tensor 0 to r", ["Reformatted Output Tensor 0 to r"], ["y"], kind="Reformat")
    listed = layers_of(quantize, layer("r", ["q"], ["Reformatted Output Tensor 0 to r"], kind="PointWise"), copy)
    assert [each.is_copy for each in listed] == [False, False, True]
    dataflow = trace_dataflow(listed)
    assert dataflow.origin(2) == 1
    # Without any metadata: by the name, and by the name of the copy.
    tensors, reasons = map_to_onnx(graph(CHAIN, {}), SHAPES | {"q": (1, 8, 4, 4)}, dataflow, {})
    assert tensors == {0: "q", 1: "y", 2: "y"}
    assert not reasons
