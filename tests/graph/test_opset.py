"""A raised graph computes what it computed, under the same names; what cannot be converted is refused by name."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.errors import InputError
from relu_deploy.graph import (
    SCOPE_KEY,
    TORCH_NODE_KEY,
    find_relus,
    io_specs,
    load_normalized_model,
    name_nodes,
    opset_of,
    with_taps,
)
from relu_deploy.graph.rewriting.opset import raise_opset

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

SHAPE = (2, 4, 6, 6)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
WEIGHTS = {
    "c": np.array([0.5, 1.0, 2.0, 0.25], np.float32),
    "slope": np.array([0.1, -0.5, 0.25, 2.0], np.float32).reshape(4, 1, 1),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "odd": np.array([1, 1, 1.5, 1.7], np.float32),
    "less": np.array([1, 1, 0.7, 0.4], np.float32),
    "mixed": np.array([1, 1, 0.7, 1.4], np.float32),
    "none": np.zeros(0, np.float32),
    "flat": np.array([0, -1], np.int64),
    "two_scales": np.array([1, 2], np.float32),
    "deconv": np.random.default_rng(1).standard_normal((4, 2, 3, 3)).astype(np.float32),
}


def node(operator, inputs="x", outputs="y", **attributes):
    return helper.make_node(operator, inputs.split(), outputs.split(), name=f"the_{operator}", **attributes)


def model_of(*nodes, opset, outputs=("y",)):
    read = {name for one in nodes for name in one.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items() if name in read],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    name_nodes(model)
    for position, one in enumerate(model.graph):
        one.metadata_props.update({SCOPE_KEY: f"scope{position}", TORCH_NODE_KEY: f"torch{position}"})
    return model


def run(model, feeds=None):
    proto = ir.to_proto(model)
    if opset_of(model) > 11:  # old files may break rules that nobody checked
        onnx.checker.check_model(proto, full_check=True)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), settings, ["CPUExecutionProvider"])
    return session.run(None, {"x": X} if feeds is None else feeds)


OPERATORS = {
    "clip with attributes": (9, [node("Clip", min=0.0, max=6.0)]),
    "clip from below": (9, [node("Clip", min=0.5)]),
    "upsample nearest": (9, [node("Upsample", "x odd", mode="nearest")]),
    "upsample linear": (9, [node("Upsample", "x twice", mode="linear")]),
    "upsample with attributes": (7, [node("Upsample", mode="linear", scales=[1.0, 1.0, 2.0, 2.0])]),
    "resize nearest": (10, [node("Resize", "x odd", mode="nearest")]),
    "resize linear": (10, [node("Resize", "x odd", mode="linear")]),
    "resize smaller": (10, [node("Resize", "x less", mode="nearest")]),
    "resize eleven": (11, [node("Resize", "x none odd", mode="linear")]),
    "resize tf": (
        11,
        [node("Resize", "x none odd", coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor")],
    ),
    "resize tf default": (11, [node("Resize", "x none less", coordinate_transformation_mode="tf_half_pixel_for_nn")]),
    "dropout": (9, [node("Dropout", "x", "y mask", ratio=0.3)]),
    "batch norm": (9, [node("BatchNormalization", "x c c c c")]),
    "softmax over the rest": (9, [node("Softmax", axis=1)]),
    "softmax of the last": (9, [node("Softmax", axis=3)]),
    "log softmax": (11, [node("LogSoftmax", axis=2)]),
    "hardmax of the last": (9, [node("Hardmax", axis=3)]),
    "reshape": (9, [node("Reshape", "x flat")]),
    "pad": (9, [node("Pad", pads=[0, 0, 1, 1, 0, 0, 2, 2], value=1.5)]),
    "pad reflect": (9, [node("Pad", pads=[0, 0, 1, 1, 0, 0, 2, 2], mode="reflect")]),
    "squeeze": (9, [node("Unsqueeze", "x", "u", axes=[0]), node("Squeeze", "u", axes=[0])]),
    "slice": (9, [node("Slice", starts=[1], ends=[3], axes=[2])]),
    "split": (9, [node("Split", "x", "y z", axis=1, split=[1, 3])]),
    "split evenly": (13, [node("Split", "x", "y z", axis=1)]),
    "mean": (9, [node("ReduceMean", axes=[2, 3], keepdims=0)]),
    "sum": (9, [node("ReduceSum", axes=[-1])]),
    "top k": (9, [node("TopK", "x", "y i", k=2, axis=1)]),
    "average pool": (10, [node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, ceil_mode=1)]),
    "max pool": (10, [node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)]),
    "prelu": (9, [node("PRelu", "x slope")]),
    "lrn": (9, [node("LRN", size=3)]),
    "transposed": (9, [node("ConvTranspose", "x deconv", strides=[2, 2])]),
    "two clips": (9, [node("Clip", "x", "t", min=0.0), node("Clip", "t", max=1.0)]),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("least", [13, 21, 22])
def test_an_operator_computes_what_it_computed(name, least):
    opset, nodes = OPERATORS[name]
    model = model_of(*nodes, opset=opset, outputs=[one for one in nodes[-1].output if one != "mask"])
    before = ir.to_proto(model).SerializeToString()
    raised = raise_opset(model, least)
    assert opset_of(raised) == max(least, opset)
    assert ir.to_proto(model).SerializeToString() == before
    for got, expected in zip(run(raised), run(model), strict=True):
        # A runtime may have another kernel for another version of an operator, which rounds differently.
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_names_and_scopes_stay_and_what_is_new_belongs_to_a_node(name):
    opset, nodes = OPERATORS[name]
    model = model_of(*nodes, opset=opset, outputs=[one for one in nodes[-1].output if one != "mask"])
    raised = raise_opset(model, 22)
    assert {one.name for one in raised.graph} >= {one.name for one in model.graph}
    assert len({one.name for one in raised.graph}) == len(raised.graph)
    scopes = {value.name: one.metadata_props for one in model.graph for value in one.outputs}
    for one in raised.graph:
        assert one.metadata_props[SCOPE_KEY]
        if one.outputs[0].name in scopes:
            assert one.metadata_props == scopes[one.outputs[0].name]
        else:
            assert TORCH_NODE_KEY not in one.metadata_props
    assert io_specs(raised) == io_specs(model)


REFUSED = {
    "Hardmax": (9, [node("Hardmax", axis=1)], "works on several axes"),
    "Resize": (10, [node("Resize", "x mixed")], "enlarge one axis and shrink another"),
    "Dropout": (9, [node("Dropout", "x", "d m"), node("Add", "d m")], "mask is read"),
    "GroupNormalization": (18, [node("GroupNormalization", "x two_scales two_scales", num_groups=2)], "for each group"),
    "BatchNormalization": (7, [node("BatchNormalization", "x c c c c", spatial=0)], "spatial must have value 1"),
}


@pytest.mark.parametrize("operator", REFUSED)
def test_an_operator_that_would_become_another_is_refused_by_name(operator):
    opset, nodes, why = REFUSED[operator]
    with pytest.raises(
        InputError, match=f"{operator} 'the_{operator}' cannot be converted from opset {opset} to 22: .*{why}"
    ) as caught:
        raise_opset(model_of(*nodes, opset=opset), 22)
    assert "opset 22" in caught.value.hint


def test_an_operator_that_onnx_does_not_know_is_refused_by_name():
    model = model_of(node("Relu", "x", "t"), node("Relu", "t"), opset=9)
    model.graph[1].op_type = "Reluu"
    with pytest.raises(InputError, match=r"Reluu 'the_Relu_1' cannot be converted .*: ONNX knows no such operator"):
        raise_opset(model, 22)


def test_a_graph_before_opset_seven_is_refused():
    with pytest.raises(InputError, match="the graph uses opset 6"):
        raise_opset(model_of(node("Relu"), opset=6), 22)


def test_a_graph_that_is_new_enough_is_returned_itself():
    model = model_of(node("Relu"), opset=20)
    assert raise_opset(model, 13) is model
    assert raise_opset(model, 20) is model


def test_weights_are_shared_and_the_file_format_is_new_enough(tmp_path):
    weights = np.random.default_rng(2).standard_normal((8, 4, 3, 3)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, SHAPE), value("w", TensorProto.FLOAT, weights.shape)]
    graph = helper.make_graph(
        [conv], "g", inputs, [value("y", TensorProto.FLOAT, [2, 8, 4, 4])], [numpy_helper.from_array(weights, "w")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3), tmp_path / "old.onnx")
    model = load_normalized_model(tmp_path / "old.onnx")
    raised = raise_opset(model, 22)
    assert raised.ir_version >= 10
    assert raised.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert [one.name for one in raised.graph.inputs] == ["x"]
    np.testing.assert_array_equal(run(raised)[0], run(model)[0])


def test_a_graph_inside_a_node_is_raised_too():
    inner = [helper.make_node("Softmax", ["x"], ["s"], "inner"), helper.make_node("Unsqueeze", ["s"], ["a"], axes=[0])]
    other = [helper.make_node("Unsqueeze", ["x"], ["b"], "other", axes=[0])]
    branches = [
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *SHAPE])])
        for nodes, name in ((inner, "a"), (other, "b"))
    ]
    mean = helper.make_node("ReduceMean", ["x"], ["m"], "mean", keepdims=0)
    choice = helper.make_node("If", ["chosen"], ["y"], "if", then_branch=branches[0], else_branch=branches[1])
    model = model_of(mean, helper.make_node("Cast", ["m"], ["chosen"], "cast", to=TensorProto.BOOL), choice, opset=11)
    for one in model.graph[2].attributes["then_branch"].as_graph():
        one.metadata_props[SCOPE_KEY] = "inside"
    raised = raise_opset(model, 22)
    np.testing.assert_array_equal(run(raised)[0], run(model)[0])
    branch = next(one for one in raised.graph if one.op_type == "If").attributes["then_branch"].as_graph()
    assert {one.metadata_props.get(SCOPE_KEY) for one in branch} == {"inside"}


def test_functions_are_written_out():
    body = helper.make_function(
        "own", "Halve", ["a"], ["b"], [helper.make_node("Clip", ["a"], ["b"], min=0.0)], [helper.make_opsetid("", 9)]
    )
    proto = ir.to_proto(model_of(node("Relu"), opset=9))
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Halve", "own"
    proto.functions.append(body)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    raised = raise_opset(ir.from_proto(proto), 22)
    assert not raised.functions
    np.testing.assert_array_equal(run(raised)[0], np.maximum(X, 0))


# ---------------------------------------------------------------- whole networks

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
#: the graphs whose weights are few enough to be drawn in a second
SMALL = ("densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet")


def drawn(model):
    """Return `model` with real numbers for the weights that the package has made ConstantOfShape of."""
    generator = np.random.default_rng(0)
    for one in [one for one in model.graph if one.op_type == "ConstantOfShape"]:
        shape = tuple(one.inputs[0].const_value.numpy())
        spread = np.sqrt(2 / max(1, np.prod(shape[1:])))
        # One number a channel may be a variance, which is positive.
        numbers = generator.uniform(0.5, 1.5, shape) if len(shape) < 2 else generator.standard_normal(shape) * spread
        old = one.outputs[0]
        weight = ir.Value(name=f"{old.name}/drawn", type=old.type, shape=ir.Shape(shape))
        weight.const_value = ir.tensor(numbers.astype(np.float32), name=weight.name)
        model.graph.register_initializer(weight)
        old.replace_all_uses_with(weight)
        sizes = one.inputs[0]
        model.graph.remove(one, safe=True)
        if not sizes.uses():
            # ONNX Runtime refuses a constant that nothing reads.
            del model.graph.initializers[sizes.name]
    return model


@pytest.mark.parametrize("file", sorted(LIGHT.glob("*.onnx")), ids=lambda file: file.stem)
def test_the_networks_of_the_onnx_package_give_the_same_answers(file):
    model = load_normalized_model(file)
    if file.stem.removeprefix("light_") in SMALL:
        model = drawn(model)
    spec = io_specs(model)[0][0]
    x = np.random.default_rng(0).standard_normal([1 if isinstance(size, str) else size for size in spec.shape])
    feeds = {spec.name: x.astype(np.float32)}
    relus = find_relus(model)
    seen = [relu.output for relu in relus][:: max(1, len(relus) // 6)]
    expected = run(with_taps(model, seen), feeds)
    for least in (21, 22):
        raised = raise_opset(model, least)
        assert find_relus(raised) == relus
        for got, true in zip(run(with_taps(raised, seen), feeds), expected, strict=True):
            np.testing.assert_allclose(got, true, rtol=1e-6, atol=1e-6 * np.abs(true).max())
