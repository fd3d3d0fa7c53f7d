"""Reading graphs: Relus however they are written, cost, taps, adoption."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.errors import InputError
from relu_deploy.graph import (
    count_cost,
    find_relus,
    io_specs,
    load_model,
    load_normalized_model,
    name_nodes,
    opset_of,
    save_model,
    with_taps,
)


def model_of(nodes, inputs, outputs, initializers=(), opset=20):
    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "g",
        [value(*one) for one in inputs],
        [value(*one) for one in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def scalar(value):
    return np.array(value, np.float32)


@pytest.mark.parametrize(
    ("node", "constants", "kind"),
    [
        (helper.make_node("Relu", ["x"], ["y"], "r"), [], "relu"),
        (helper.make_node("Clip", ["x", "zero", "six"], ["y"], "r"), [("zero", scalar(0)), ("six", scalar(6))], "relu6"),
        (helper.make_node("Clip", ["x", "zero", "six"], ["y"], "r"), [("zero", scalar(0)), ("six", scalar(1))], "clip"),
        (helper.make_node("Clip", ["x", "zero"], ["y"], "r"), [("zero", scalar(0))], "relu"),
        (helper.make_node("Max", ["x", "zero"], ["y"], "r"), [("zero", scalar(0))], "relu"),
        (helper.make_node("Max", ["zero", "x"], ["y"], "r"), [("zero", np.zeros(1, np.float32))], "relu"),
        (helper.make_node("Clip", ["x", "zero", "six"], ["y"], "r"), [("zero", scalar(-1)), ("six", scalar(6))], None),
        (helper.make_node("Max", ["x", "one"], ["y"], "r"), [("one", scalar(1))], None),
        (helper.make_node("LeakyRelu", ["x"], ["y"], "r"), [], None),
    ],
)
def test_a_relu_is_found_whatever_it_is_written_as(node, constants, kind):
    relus = find_relus(model_of([node], [("x", [2, 3])], [("y", [2, 3])], constants))
    assert [relu.kind for relu in relus] == ([] if kind is None else [kind])
    if kind:
        assert (relus[0].input, relus[0].output, relus[0].shape) == ("x", "y", (2, 3))


def test_a_clip_of_opset_six_with_attributes_is_a_relu6():
    node = helper.make_node("Clip", ["x"], ["y"], "r", min=0.0, max=6.0)
    assert find_relus(model_of([node], [("x", [1])], [("y", [1])], opset=9))[0].kind == "relu6"


def residual():
    weight = np.ones((4, 4, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node("Conv", ["b", "w"], ["c"], "conv2", pads=[1] * 4),
        helper.make_node("Add", ["c", "b"], ["d"], "add"),
        helper.make_node("Relu", ["d"], ["y"], "relu2"),
    ]
    return model_of(nodes, [("x", ["batch", 4, 8, 8])], [("y", ["batch", 4, 8, 8])], [("w", weight)])


def test_what_a_relu_is_computed_with_is_named_nearest_first():
    relus = find_relus(residual())
    assert [relu.fused_with for relu in relus] == [("conv1",), ("add", "conv2")]
    assert [relu.index for relu in relus] == [0, 1]


def test_cost_counts_multiply_and_add_and_scales_with_the_batch():
    one, four = count_cost(residual(), 1), count_cost(residual(), 4)
    conv = 2 * (4 * 8 * 8) * (4 * 9)
    assert one.flops == 2 * conv + 3 * 4 * 8 * 8
    assert four.flops == 4 * one.flops
    assert one.parameters == 4 * 4 * 9
    assert one.unknown == ()
    # No fusion saves the weights, once, nor a row's input and output.
    row = 4 * 4 * 8 * 8
    assert one.compulsory == 4 * one.parameters + 2 * row
    assert four.compulsory == 4 * one.parameters + 8 * row
    assert one.compulsory < one.bytes


def test_cost_of_gemm_counts_its_depth_whichever_side_is_transposed():
    for transposed, shape in ((0, [5, 7]), (1, [7, 5])):
        node = helper.make_node("Gemm", ["x", "w"], ["y"], "g", transA=transposed)
        graph = model_of([node], [("x", shape)], [("y", [5, 3])], [("w", np.ones((7, 3), np.float32))])
        assert count_cost(graph).flops == 2 * 5 * 3 * 7


def test_taps_add_outputs_and_leave_the_original_alone():
    model = residual()
    tapped = with_taps(model, ["b", "y"])
    assert [value.name for value in tapped.graph.outputs] == ["y", "b"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    onnx.checker.check_model(ir.to_proto(tapped))
    with pytest.raises(InputError, match="no node of the graph computes a tensor called 'nothing'"):
        with_taps(model, ["nothing"])


def test_names_are_given_where_they_are_missing_or_double():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], "r"),
        helper.make_node("Relu", ["b"], ["y"], "r"),
    ]
    model = model_of(nodes, [("x", [1])], [("y", [1])])
    name_nodes(model)
    names = [node.name for node in model.graph]
    assert names[1] == "r"
    assert len(set(names)) == 3
    assert all(names)


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x0a\x12"])
def test_a_file_that_is_no_graph_is_an_input_error(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "m.onnx")
    assert caught.value.hint


def test_a_graph_cut_short_is_an_input_error(tmp_path):
    save_model(residual(), tmp_path / "m.onnx")
    whole = (tmp_path / "m.onnx").read_bytes()
    for length in (len(whole) // 3, len(whole) - 5):
        (tmp_path / "m.onnx").write_bytes(whole[:length])
        with pytest.raises(InputError):
            load_normalized_model(tmp_path / "m.onnx")


def test_an_invalid_graph_is_refused_with_the_checkers_reason(tmp_path):
    proto = ir.to_proto(residual())
    proto.graph.node[1].op_type = "Reluu"
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="Reluu"):
        load_normalized_model(tmp_path / "m.onnx")


def test_shapes_that_do_not_fit_are_refused(tmp_path):
    proto = ir.to_proto(residual())
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 5, 3, 3), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="shapes do not fit"):
        load_normalized_model(tmp_path / "m.onnx")


def test_adoption_drops_weights_from_the_inputs_and_weights_that_nothing_reads(tmp_path):
    proto = ir.to_proto(residual())
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 3, 3]))
    proto.graph.input.append(helper.make_tensor_value_info("spare", TensorProto.FLOAT, [1]))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "spare"))
    onnx.save(proto, tmp_path / "m.onnx")
    model = load_normalized_model(tmp_path / "m.onnx")
    assert [spec.name for spec in io_specs(model)[0]] == ["x"]
    assert list(model.graph.initializers) == ["w"]
    assert opset_of(model) == 20


LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))


@pytest.mark.parametrize("file", LIGHT, ids=lambda file: file.stem)
def test_the_graphs_of_the_onnx_package_are_adopted(file):
    model = load_normalized_model(file)
    relus = find_relus(model)
    expected = {"light_resnet50": 49, "light_vgg19": 18, "light_squeezenet": 26, "light_densenet121": 121}
    assert len(relus) == expected.get(file.stem, len(relus)) > 0
    assert all(relu.node and relu.shape for relu in relus)
    assert count_cost(model).flops > 1e8
