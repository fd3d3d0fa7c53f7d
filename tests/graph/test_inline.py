"""Local functions that cannot be inlined are refused in a sentence, before they fill the memory."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy.errors import InputError
from relu_deploy.graph import find_relus, load_model

FLOAT = TensorProto.FLOAT
OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
node = helper.make_node


def relu(read, made, **attributes):
    return node("Relu", [read], [made], **attributes)


def function(name, nodes, inputs=("a",), outputs=("b",), domain="local", opsets=OPSETS, **options):
    return helper.make_function(domain, name, list(inputs), list(outputs), list(nodes), list(opsets), **options)


def call(name, read="x", made="y", domain="local", **attributes):
    names = [[each] if isinstance(each, str) else list(each) for each in (read, made)]
    return node(name, *names, domain=domain, **attributes)


def load(folder, nodes, functions, output="y"):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(list(nodes), "g", [value("x", FLOAT, [2])], [value(output, FLOAT, [2])])
    model = helper.make_model(graph, opset_imports=OPSETS, functions=list(functions), ir_version=10)
    onnx.save(model, folder / "m.onnx")
    return load_model(folder / "m.onnx")


def refusal(folder, nodes, functions, output="y"):
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        load(folder, nodes, functions, output)
    # Seconds are enough a thousand times over; without the limits it is hours, or all memory.
    assert time.process_time() - began < 20
    assert str(folder / "m.onnx") in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("length", [1, 2, 50])
def test_functions_that_call_each_other_in_a_circle_are_refused(tmp_path, length):
    functions = [function(f"F{at}", [call(f"F{(at + 1) % length}", "a", "b")]) for at in range(length)]
    assert "calls itself" in refusal(tmp_path, [call("F0")], functions)


def test_a_circle_that_leads_through_a_branch_is_refused(tmp_path):
    branch = helper.make_graph([call("F", "a", "inner")], "branch", [], [helper.make_tensor_value_info("inner", FLOAT, None)])
    nodes = [node("ReduceMax", ["a"], ["m"], keepdims=0), node("Cast", ["m"], ["c"], to=TensorProto.BOOL)]
    nodes.append(node("If", ["c"], ["b"], then_branch=branch, else_branch=branch))
    assert "calls itself" in refusal(tmp_path, [call("F")], [function("F", nodes)])


@pytest.mark.parametrize(
    ("read", "made", "said"), [(["x", "x"], "y", "has 2 inputs, the operator takes 1"), ("x", ["y", "z"], "has 2 outputs")]
)
def test_a_call_with_more_inputs_or_outputs_than_the_function_has_is_refused(tmp_path, read, made, said):
    assert said in refusal(tmp_path, [call("F", read, made)], [function("F", [relu("a", "b")])])


def test_a_call_may_leave_out_optional_inputs_and_outputs(tmp_path):
    two = function("F", [relu("a", "b"), relu("a", "d")], ["a", "c"], ["b", "d"])
    assert [each.output for each in find_relus(load(tmp_path, [call("F")], [two]))] == ["y", "y/d"]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([relu("a", "b"), node("Neg", ["a"], ["b"])], "computed twice"),
        ([relu("a", "a"), relu("a", "b")], "computed twice"),
        ([node("Add", ["a", "c"], ["b"]), node("Neg", ["b"], ["c"])], "depends on its own result"),
        ([relu("a", "c")], "does not compute its output 'b'"),
        ([relu("nowhere", "b")], "reads 'nowhere', which nothing provides"),
    ],
)
def test_a_function_that_is_no_graph_is_refused(tmp_path, nodes, said):
    assert said in refusal(tmp_path, [call("F")], [function("F", nodes)])


def test_a_function_that_is_defined_twice_is_refused(tmp_path):
    both = [function("F", [relu("a", "b")]), function("F", [node("Neg", ["a"], ["b"])])]
    assert "the local function 'F' is defined twice" in refusal(tmp_path, [call("F")], both)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_a_function_in_place_of_an_operator_is_refused(tmp_path, domain):
    """Runtimes would run the operator or the function, and no two the same."""
    other = function("Relu", [node("Neg", ["a"], ["b"])], domain=domain)
    assert "a local function replaces the operator 'Relu'" in refusal(tmp_path, [call("Relu", domain=domain)], [other])


def test_a_function_may_define_what_the_operator_set_does_not(tmp_path):
    added = function("NoOperatorYet", [relu("a", "b")], domain="")
    assert [each.output for each in find_relus(load(tmp_path, [call("NoOperatorYet", domain="")], [added]))] == ["y"]


def test_a_constant_that_calls_repeat_to_gigabytes_is_refused(tmp_path):
    constant = onnx.numpy_helper.from_array(np.zeros(2**18, np.float32))  # 1 MiB
    nodes = [
        node("Constant", [], ["c"], value=constant),
        node("ReduceSum", ["c"], ["s"], keepdims=0),
        node("Add", ["a", "s"], ["b"]),
    ]
    calls = [call("F", "x" if at == 0 else f"t{at}", f"t{at + 1}") for at in range(2000)]
    assert "add more than 512 MiB" in refusal(tmp_path, calls, [function("F", nodes)], "t2000")


def test_a_long_name_is_not_repeated_for_every_node_of_a_call(tmp_path):
    nodes = [relu("a" if at == 0 else f"t{at}", "b" if at == 2999 else f"t{at + 1}") for at in range(3000)]
    named = call("F")
    named.name = "n" * 10**6
    model = load(tmp_path, [named], [function("F", nodes)])
    names = [str(each.name) for each in model.graph]
    assert len(set(names)) == 3000
    assert max(map(len, names)) <= 400


def test_metadata_without_end_is_not_repeated_for_every_node_of_a_call(tmp_path):
    nodes = [relu("a" if at == 0 else f"t{at}", "b" if at == 2999 else f"t{at + 1}") for at in range(3000)]
    described = call("F")
    for at in range(3000):
        described.metadata_props.add(key=f"key{at}", value="v" * 100)
    model = load(tmp_path, [described], [function("F", nodes)])
    assert sum(len(each.metadata_props) for each in model.graph) == 0


def test_a_call_of_a_function_that_is_missing_is_a_sentence(tmp_path, command):
    load(tmp_path, [call("Missing")], [function("F", [relu("a", "b")])])
    ended = command("verify", tmp_path / "m.onnx", "--quiet")
    assert ended.code in (2, 3), ended.stdout
    assert "Missing" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_levels_of_functions_that_are_called_often_are_expanded_once(tmp_path, monkeypatch):
    from relu_deploy.graph.loading import inline

    expanded = []
    body_of = inline._body_of
    monkeypatch.setattr(inline, "_body_of", lambda node, made: expanded.append(made.name) or body_of(node, made))
    functions = [function("F0", [relu("a", "b")])]
    functions += [function(f"F{at}", [call(f"F{at - 1}", "a", "b")]) for at in range(1, 40)]
    calls = [call("F39", f"t{at}" if at else "x", f"t{at + 1}") for at in range(200)]
    model = load(tmp_path, calls, functions, "t200")
    assert len(find_relus(model)) == 200
    assert len(expanded) == 39 + 200


def test_attributes_pass_through_levels_of_functions(tmp_path):
    def referring(operator, read, made, inner, outer, domain=""):
        node = helper.make_node(operator, [read], [made], domain=domain)
        node.attribute.append(onnx.AttributeProto(name=inner, ref_attr_name=outer, type=onnx.AttributeProto.FLOAT))
        return node

    functions = [
        function("Inner", [referring("LeakyRelu", "a", "b", "alpha", "slope")], attributes=["slope"]),
        function("Outer", [referring("Inner", "a", "m", "slope", "steep", "local"), relu("m", "b")], attributes=["steep"]),
    ]
    nodes = [call("Outer", "x", "m", steep=0.25), call("Outer", "m", "n", steep=0.5), call("Outer", "n", "y")]
    model = load(tmp_path, nodes, functions)
    leaky = [node for node in model.graph if node.op_type == "LeakyRelu"]
    assert [node.attributes["alpha"].as_float() if "alpha" in node.attributes else None for node in leaky] == [0.25, 0.5, None]
    assert len({node.name for node in model.graph}) == len(model.graph) == 6
