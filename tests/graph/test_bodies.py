"""Relus inside If, Loop and Scan bodies and local functions: found, named, and exposed with the right values."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.errors import InputError
from relu_deploy.graph import extract_subgraph, find_relus, load_model, save_model, with_taps

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
node, value = helper.make_node, helper.make_tensor_value_info
X = np.array([[-1, 2, -3], [4, -5, 6]], np.float32)


def model_of(nodes, inputs, outputs, functions=(), opsets=(("", 17),), **weights):
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*one) for one in opsets], functions=list(functions), ir_version=8
    )


def load(proto, folder):
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return load_model(path)


def exposed(model, folder, **feeds):
    """Return what ONNX Runtime computes for every observable Relu of `model`."""
    names = [relu.output for relu in find_relus(model) if relu.observable]
    save_model(with_taps(model, names), folder / "tapped.onnx")
    session = onnxruntime.InferenceSession(folder / "tapped.onnx", providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feeds), strict=True))


def branch(name, sign):
    """A branch with a Relu whose tensors have the same names in both branches."""
    constant = numpy_helper.from_array(np.float32(sign), "sign")
    nodes = [node("Mul", ["x", "sign"], ["m"]), node("Relu", ["m"], ["r"], name="relu"), node("Neg", ["r"], ["o"])]
    return helper.make_graph(nodes, name, [], [value("o", FLOAT, None)], [constant])


def conditional():
    return model_of(
        [node("If", ["c"], ["y"], then_branch=branch("then", 1), else_branch=branch("else", -1), name="if")],
        [value("x", FLOAT, ["n", 3]), value("c", BOOL, [])],
        [value("y", FLOAT, ["n", 3])],
    )


def test_relus_of_both_branches_are_found_with_unique_names(tmp_path):
    relus = find_relus(load(conditional(), tmp_path))
    assert [(relu.node, relu.body, relu.observable, relu.is_iterated) for relu in relus] == [
        ("if/relu", "if/then_branch", True, False),
        ("if/relu_1", "if/else_branch", True, False),
    ]
    assert len({relu.output for relu in relus}) == 2
    assert relus[0].to_json()["body"] == "if/then_branch"


@pytest.mark.parametrize("condition", [True, False])
def test_the_branch_that_runs_is_exposed_and_the_other_is_empty(tmp_path, condition):
    model = load(conditional(), tmp_path)
    then, other = exposed(model, tmp_path, x=X, c=np.array(condition)).values()
    ran, left = (then, other) if condition else (other, then)
    np.testing.assert_array_equal(ran, np.maximum(X if condition else -X, 0))
    assert left.size == 0


def test_names_stay_when_a_loaded_model_is_saved_and_loaded_again(tmp_path):
    model = load(conditional(), tmp_path)
    save_model(model, tmp_path / "again.onnx")
    assert [(relu.node, relu.output) for relu in find_relus(load_model(tmp_path / "again.onnx"))] == [
        (relu.node, relu.output) for relu in find_relus(model)
    ]


def looping(shape=("n", 3)):
    body = helper.make_graph(
        [node("Relu", ["state"], ["r"]), node("Sub", ["r", "one"], ["next"]), node("Identity", ["going"], ["on"])],
        "body",
        [value("i", INT64, []), value("going", BOOL, []), value("state", FLOAT, shape)],
        [value("on", BOOL, []), value("next", FLOAT, shape)],
    )
    return model_of(
        [node("Loop", ["count", "true", "x"], ["y"], body=body, name="loop")],
        [value("x", FLOAT, ["n", 3])],
        [value("y", FLOAT, ["n", 3])],
        count=np.int64(3),
        true=np.array(True),
        one=np.float32(1),
    )


def test_a_relu_in_a_loop_has_the_values_of_all_iterations(tmp_path):
    model = load(looping(), tmp_path)
    (relu,) = find_relus(model)
    assert (relu.body, relu.observable, relu.is_iterated) == ("loop/body", True, True)
    first = np.maximum(X, 0)
    second = np.maximum(first - 1, 0)
    third = np.maximum(second - 1, 0)
    np.testing.assert_array_equal(exposed(model, tmp_path, x=X)[relu.output], [first, second, third])


def test_a_relu_whose_size_may_change_between_iterations_is_not_observable(tmp_path):
    model = load(looping(("m", 3)), tmp_path)
    (relu,) = find_relus(model)
    assert not relu.observable
    with pytest.raises(InputError, match="cannot be observed"):
        with_taps(model, [relu.output])


def test_a_relu_in_a_scan_has_the_values_of_all_steps(tmp_path):
    body = helper.make_graph(
        [node("Add", ["s", "e"], ["sum"]), node("Relu", ["sum"], ["r"]), node("Neg", ["r"], ["o"])],
        "body",
        [value("s", FLOAT, [3]), value("e", FLOAT, [3])],
        [value("sum", FLOAT, [3]), value("o", FLOAT, [3])],
    )
    scan = node("Scan", ["zero", "x"], ["last", "y"], body=body, num_scan_inputs=1, name="scan", scan_output_axes=[1])
    proto = model_of([scan], [value("x", FLOAT, [2, 3])], [value("y", FLOAT, [3, 2])], zero=np.zeros(3, np.float32))
    model = load(proto, tmp_path)
    (relu,) = find_relus(model)
    np.testing.assert_array_equal(exposed(model, tmp_path, x=X)[relu.output], np.maximum(np.cumsum(X, 0), 0))


def test_a_branch_inside_a_branch_is_exposed_through_both(tmp_path):
    inner = node("If", ["d"], ["inner"], then_branch=branch("then", 2), else_branch=branch("else", -2), name="in")
    then = helper.make_graph([inner], "then", [], [value("inner", FLOAT, None)])
    other = helper.make_graph([node("Abs", ["x"], ["a"])], "else", [], [value("a", FLOAT, None)])
    proto = model_of(
        [node("If", ["c"], ["y"], then_branch=then, else_branch=other, name="if")],
        [value("x", FLOAT, ["n", 3]), value("c", BOOL, []), value("d", BOOL, [])],
        [value("y", FLOAT, ["n", 3])],
    )
    model = load(proto, tmp_path)
    assert [(relu.node, relu.body) for relu in find_relus(model)] == [
        ("if/in/relu", "if/then_branch/if/in/then_branch"),
        ("if/in/relu_1", "if/then_branch/if/in/else_branch"),
    ]
    then, other = exposed(model, tmp_path, x=X, c=np.array(True), d=np.array(False)).values()
    assert then.size == 0
    np.testing.assert_array_equal(other, np.maximum(-2 * X, 0))
    assert all(array.size == 0 for array in exposed(model, tmp_path, x=X, c=np.array(False), d=np.array(True)).values())


def test_a_branch_inside_a_loop_is_listed_as_not_observable(tmp_path):
    inner = node("If", ["going"], ["next"], then_branch=branch("then", 1), else_branch=branch("else", -1), name="in")
    body = helper.make_graph(
        [inner, node("Identity", ["going"], ["on"])],
        "body",
        [value("i", INT64, []), value("going", BOOL, []), value("x", FLOAT, ["n", 3])],
        [value("on", BOOL, []), value("next", FLOAT, ["n", 3])],
    )
    loop = node("Loop", ["count", "true", "start"], ["y"], body=body, name="loop")
    proto = model_of(
        [loop], [value("start", FLOAT, ["n", 3])], [value("y", FLOAT, ["n", 3])], count=np.int64(2), true=np.array(True)
    )
    assert [relu.observable for relu in find_relus(load(proto, tmp_path))] == [False, False]


def test_functions_are_inlined_with_names_that_say_which_call(tmp_path):
    function = helper.make_function(
        "local",
        "Block",
        ["a", "w"],
        ["b"],
        [node("MatMul", ["a", "w"], ["t"]), node("Relu", ["t"], ["r"], name="relu"), helper.make_node("LeakyRelu", ["r"], ["b"])],
        [helper.make_opsetid("", 17)],
        ["alpha"],
    )
    reference = function.node[2].attribute.add(name="alpha", ref_attr_name="alpha", type=1)
    assert reference.ref_attr_name
    calls = [
        node("Block", ["x", "w"], ["h"], domain="local", name="first", alpha=0.5),
        node("Block", ["h", "w"], ["y"], domain="local", name="second", alpha=0.25),
    ]
    proto = model_of(
        calls,
        [value("x", FLOAT, ["n", 3])],
        [value("y", FLOAT, ["n", 3])],
        [function],
        (("", 17), ("local", 1)),
        w=-np.eye(3, dtype=np.float32),
    )
    model = load(proto, tmp_path)
    assert [(relu.node, relu.output) for relu in find_relus(model)] == [("first/relu", "first/r"), ("second/relu", "second/r")]
    assert [float(each.attributes["alpha"].value) for each in model.graph if each.op_type == "LeakyRelu"] == [0.5, 0.25]
    results = exposed(model, tmp_path, x=X)
    np.testing.assert_array_equal(results["first/r"], np.maximum(-X, 0))
    np.testing.assert_array_equal(results["second/r"], np.maximum(-np.maximum(-X, 0), 0))


def test_a_function_inside_a_function_and_one_that_returns_its_input_are_inlined(tmp_path):
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    inner = helper.make_function("f", "Inner", ["a"], ["b", "a"], [node("Relu", ["a"], ["b"], name="relu")], opsets)
    outer = helper.make_function(
        "f",
        "Outer",
        ["p"],
        ["q"],
        [node("Inner", ["p"], ["s", "t"], domain="f", name="in"), node("Add", ["s", "t"], ["q"])],
        opsets,
    )
    proto = model_of(
        [node("Outer", ["x"], ["y"], domain="f", name="out")],
        [value("x", FLOAT, ["n", 3])],
        [value("y", FLOAT, ["n", 3])],
        [inner, outer],
        (("", 17), ("f", 1)),
    )
    model = load(proto, tmp_path)
    assert [relu.node for relu in find_relus(model)] == ["out/in/relu"]
    save_model(model, tmp_path / "m.onnx")
    (y,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": X})
    np.testing.assert_array_equal(y, np.maximum(X, 0) + X)


def test_a_function_of_an_operator_set_with_another_meaning_stays_a_call_whose_relus_are_not_observable(tmp_path):
    # Softmax flattens its input before operator set 13.
    nodes = [node("Relu", ["a"], ["r"], name="relu"), node("Softmax", ["r"], ["b"])]
    function = helper.make_function("f", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", 11)])
    proto = model_of(
        [node("F", ["x"], ["y"], domain="f", name="call")],
        [value("x", FLOAT, [2, 3])],
        [value("y", FLOAT, [2, 3])],
        [function],
        (("", 17), ("f", 1)),
    )
    (relu,) = find_relus(load(proto, tmp_path))
    assert (relu.body, relu.observable) == ("call", False)


def test_a_part_of_the_graph_can_end_inside_a_branch(tmp_path):
    model = load(conditional(), tmp_path)
    (relu, _) = find_relus(model)
    save_model(extract_subgraph(model, (), [relu.output]), tmp_path / "part.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx", providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": X, "c": np.array(True)})
    np.testing.assert_array_equal(result, np.maximum(X, 0))
