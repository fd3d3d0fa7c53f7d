"""An If whose condition is constant: the branch that runs takes its place, with the same answers under the same names."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.rewriting.constant_branches import has_branches, inline_constant_branches

FLOAT = TensorProto.FLOAT
node, value = helper.make_node, helper.make_tensor_value_info
W = np.arange(16, dtype=np.float32).reshape(4, 4) - 7


def branch(name, sign, body=()):
    nodes = [node("MatMul", ["x", f"{name}_w"], [f"{name}_m"], "fc"), node("Relu", [f"{name}_m"], [f"{name}_y"], "relu"), *body]
    weights = [numpy_helper.from_array(W * np.float32(sign), f"{name}_w")]
    last = nodes[-1].output[0]
    return helper.make_graph(nodes, name, [], [value(last, FLOAT, ["n", 4])], weights)


def saved(folder, condition, *, fed=False, output="y"):
    """Return a file whose If holds `then` for a true condition and `else`, whose weights are negated, for a false one."""
    inner = node("If", ["condition"], ["nested_y"], "inner", then_branch=branch("a", 2), else_branch=branch("b", 3))
    passed = helper.make_graph([node("Identity", ["x"], ["same"])], "else", [], [value("same", FLOAT, ["n", 4])])
    then = helper.make_graph([inner], "then", [], [value("nested_y", FLOAT, ["n", 4])])
    nodes = [node("If", ["condition"], ["chosen"], "outer", then_branch=then, else_branch=passed)]
    nodes.append(node("Relu", ["chosen"], [output], "last"))
    inputs, weights = [value("x", FLOAT, ["n", 4])], []
    if fed:
        inputs.append(value("condition", TensorProto.BOOL, []))
    else:
        weights.append(numpy_helper.from_array(np.array(condition), "condition"))
    graph = helper.make_graph(nodes, "g", inputs, [value(output, FLOAT, ["n", 4])], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("condition", [True, False])
def test_the_branch_that_always_runs_takes_the_place_of_the_if(tmp_path, condition):
    x = np.linspace(-2, 3, 8, dtype=np.float32).reshape(2, 4)
    inlined = inline_constant_branches(load_model(saved(tmp_path, condition)))
    assert not [one for one in inlined.graph.all_nodes() if one.op_type == "If"]
    save_model(inlined, tmp_path / "inlined.onnx")
    expected = np.maximum(x @ (2 * W), 0) if condition else np.maximum(x, 0)
    for backend in ("onnxruntime-cpu", "reference"):
        np.testing.assert_array_equal(load(tmp_path / "inlined.onnx", backend).run({"x": x})["y"], expected)


def test_an_if_that_depends_on_an_input_stays(tmp_path):
    inlined = inline_constant_branches(load_model(saved(tmp_path, True, fed=True)))
    assert [one.op_type for one in inlined.graph] == ["If", "Relu"]


def sized(folder, rows, *, recorded=None):
    """Return a file with "squeeze axis 0 if it has one element" behind a padding of one row that is computed, as PyTorch writes both.

    rows: Of the input, a number or a name. recorded: The rows that the file claims for the padded tensor.
    """
    integers = {
        "ends": [1, 0],
        "two": [2],
        "minus": [-1],
        "both": [2, 2],
        "first": [-1],
        "last": [-(2**63) + 1],
        "axis": [0],
        "one": [1],
    }
    zeros = numpy_helper.from_array(np.zeros(1, np.int64))
    nodes = [
        node("ConstantOfShape", ["two"], ["zeros"], value=zeros),
        node("Concat", ["zeros", "ends"], ["flat"], axis=0),
        node("Reshape", ["flat", "both"], ["pairs"]),
        node("Slice", ["pairs", "first", "last", "axis", "minus"], ["turned"]),
        node("Transpose", ["turned"], ["by_side"], perm=[1, 0]),
        node("Reshape", ["by_side", "minus"], ["pads"]),
        node("Pad", ["x", "pads"], ["padded"], "pad"),
        node("Shape", ["padded"], ["sizes"]),
        node("Gather", ["sizes", "axis"], ["size"], axis=0),
        node("Equal", ["size", "one"], ["is_one"]),
        node("Squeeze", ["is_one", "axis"], ["condition"]),
        node("If", ["condition"], ["y"], "if",
             then_branch=helper.make_graph([node("Squeeze", ["padded", "axis"], ["s"])], "then", [], [value("s", FLOAT, None)]),
             else_branch=helper.make_graph([node("Relu", ["padded"], ["r"])], "else", [], [value("r", FLOAT, None)])),
    ]  # fmt: skip
    tensors = [numpy_helper.from_array(np.array(numbers, np.int64), name) for name, numbers in integers.items()]
    claimed = [] if recorded is None else [value("padded", FLOAT, [recorded, 4])]
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, [rows, 4])], [value("y", FLOAT, None)], tensors, value_info=claimed)
    path = folder / "sized.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(("rows", "operator"), [(1, "Relu"), (0, "Squeeze")])
def test_a_branch_that_follows_from_the_sizes_of_the_inputs_takes_the_place_of_the_if(tmp_path, rows, operator):
    inlined = inline_constant_branches(load_model(sized(tmp_path, rows)))
    assert [one.op_type for one in inlined.graph][-2:] == [operator, "Identity"]
    save_model(inlined, tmp_path / "inlined.onnx")
    x = np.array([[-1, 2, -3, 4]], np.float32)[:rows]
    padded = np.concatenate([np.zeros((1, 4), np.float32), x])
    expected = np.maximum(padded, 0) if rows else padded[0]
    np.testing.assert_array_equal(load(tmp_path / "inlined.onnx", "onnxruntime-cpu").run({"x": x})["y"], expected)


def test_a_branch_that_depends_on_a_varying_size_stays(tmp_path):
    assert has_branches(inline_constant_branches(load_model(sized(tmp_path, "n"))))


def test_sizes_that_the_file_claims_do_not_choose_a_branch(tmp_path):
    inlined = inline_constant_branches(load_model(sized(tmp_path, "n", recorded=1)))
    assert has_branches(inlined)
    np.testing.assert_array_equal(
        load(sized(tmp_path, "n"), "onnxruntime-cpu").run({"x": np.ones((1, 4), np.float32)})["y"],
        [[0, 0, 0, 0], [1, 1, 1, 1]],
    )
