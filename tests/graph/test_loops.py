"""Loops that never end are refused before they run; all others run."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.errors import InputError
from relu_deploy.graph.loading.loops import check_loops
from relu_deploy.graph.loading.resources import check_resources, set_memory_limit
from relu_deploy.run_limit import limited_runs

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
value = helper.make_tensor_value_info


def constant(name, number):
    return numpy_helper.from_array(np.asarray(number), name)


def model(times, condition="yes", going="given", inner=None, constants=True):
    """A Loop. going: how the body decides whether to go on."""
    decide = {
        "given": [helper.make_node("Identity", ["go"], ["on"])],
        "chain": [helper.make_node("Cast", ["go"], ["g"], to=BOOL), helper.make_node("Identity", ["g"], ["on"])],
        "constant": [helper.make_node("Constant", [], ["on"], value=constant("", True))],
        "outer": [helper.make_node("Identity", ["yes"], ["on"])],
        "false": [helper.make_node("Constant", [], ["on"], value=constant("", False))],
        "computed": [helper.make_node("ReduceMax", ["a"], ["m"], keepdims=0), helper.make_node("Cast", ["m"], ["on"], to=BOOL)],
    }[going]
    nodes = inner or [helper.make_node("Relu", ["a"], ["next"])]
    body = helper.make_graph(
        [*nodes, *decide],
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("a", FLOAT, [2])],
        [value("on", BOOL, []), value("next", FLOAT, [2])],
    )
    loop = helper.make_node("Loop", ["n" if times is not None else "", condition, "x"], ["y"], "loop", body=body)
    initializers = [constant("yes", True), constant("no", False)]
    inputs = [value("x", FLOAT, [2])]
    if times is not None and constants:
        initializers.append(constant("n", np.int64(times)))
    elif times is not None:
        inputs.append(value("n", INT64, []))
    graph = helper.make_graph([loop], "g", inputs, [value("y", FLOAT, [2])], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("going", ["given", "chain", "constant", "outer"])
@pytest.mark.parametrize("times", [None, 2**62, 10**9])
def test_a_loop_whose_condition_is_always_true_is_refused_if_it_runs_too_often(times, going):
    with pytest.raises(InputError, match=r"the Loop 'loop' runs its body (without end|1,000,000,000 times)") as caught:
        check_loops(model(times, going=going), "m.onnx")
    assert caught.value.message.startswith("m.onnx: ")
    assert caught.value.hint


@pytest.mark.parametrize(
    "arguments",
    [
        {"times": 1000},
        {"times": 0},
        {"times": 2**62, "going": "computed"},
        {"times": None, "going": "computed", "condition": ""},
        {"times": 2**62, "going": "false"},
        {"times": 2**62, "condition": "no"},
        {"times": 2**62, "constants": False},
    ],
    ids=str,
)
def test_loops_that_end_and_loops_that_depend_on_what_is_fed_are_not_refused(arguments):
    onnx.checker.check_model(model(**arguments))
    check_loops(model(**arguments), "m.onnx")


@pytest.fixture
def limited():
    with limited_runs(True):
        yield


def test_turns_of_loops_inside_loops_multiply():
    def nested(times):
        inner = model(times).graph.node[0]
        inner.output[0] = "next"
        inner.input[2] = "a"
        return model(times, inner=[inner])

    check_loops(nested(10_000), "m.onnx")
    with pytest.raises(InputError, match="100,000 times"):
        check_loops(nested(100_000), "m.onnx")


def test_a_loop_that_takes_minutes_is_refused_where_runs_are_limited(limited):
    long = model(50_000_000)
    with pytest.raises(
        InputError, match=r"the Loop 'loop' runs its body 50,000,000 times, and running 100,000,000 nodes"
    ) as caught:
        check_loops(long, "m.onnx")
    assert "--timeout" in caught.value.hint
    with limited_runs(False):
        check_loops(long, "m.onnx")


def test_many_loops_that_take_minutes_together_are_refused_as_well(limited):
    def several(count):
        chain = model(1_000_000)
        for place in range(1, count):
            added = chain.graph.node.add()
            added.CopyFrom(chain.graph.node[0])
            added.name, added.input[2], added.output[0] = f"loop{place}", "y", f"y{place}"
        return chain

    check_loops(several(4), "m.onnx")
    with pytest.raises(InputError, match="running 20,000,000 nodes may take minutes"):
        check_loops(several(10), "m.onnx")
    with limited_runs(False):
        check_loops(several(10), "m.onnx")


def scan(length, axis=0):
    nodes = [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Relu", ["t"], ["o"])]
    body = helper.make_graph(
        nodes, "body", [value("s", FLOAT, [1]), value("e", FLOAT, [1])], [value("t", FLOAT, [1]), value("o", FLOAT, [1])]
    )
    kept = helper.make_node("Identity", ["x"], ["kept"])
    attributes = {"scan_input_axes": [axis]} if axis else {}
    node = helper.make_node("Scan", ["zeros", "kept"], ["last", "y"], "scan", body=body, num_scan_inputs=1, **attributes)
    shape = [1, length] if axis else [length, 1]
    graph = helper.make_graph(
        [kept, node], "g", [value("x", FLOAT, shape)], [value("y", FLOAT, None)], [constant("zeros", np.zeros(1, np.float32))]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scan_over_as_many_elements_is_refused_as_well(axis, limited):
    check_resources(scan(100_000, axis), "m.onnx")
    with pytest.raises(InputError, match="the Scan 'scan' runs its body 20,000,000 times"):
        check_resources(scan(20_000_000, axis), "m.onnx")
    with limited_runs(False):
        check_resources(scan(20_000_000, axis), "m.onnx")


def test_a_scan_of_varying_length_is_not_refused():
    check_resources(scan("T"), "m.onnx")


@pytest.fixture
def memory():
    yield set_memory_limit
    set_memory_limit(None)


def growing(times, body_nodes):
    body = helper.make_graph(
        [*body_nodes, helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("a", FLOAT, None)],
        [value("on", BOOL, []), value("next", FLOAT, None)],
    )
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Loop", ["n", "yes", "r"], ["big"], "loop", body=body)]
    nodes.append(helper.make_node("ReduceMax", ["big"], ["y"], keepdims=0))
    constants = [constant("n", np.int64(times)), constant("yes", True)]
    graph = helper.make_graph(nodes, "g", [value("x", FLOAT, [1, 4])], [value("y", FLOAT, [])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_state_that_doubles_with_each_turn_is_refused_before_it_fills_the_memory():
    double = [helper.make_node("Concat", ["a", "a"], ["next"], axis=0)]
    check_resources(growing(10, double), "m.onnx")
    with pytest.raises(InputError, match=r"the Loop 'loop' makes 'a' larger at each turn, 4.6e\+18 elements") as caught:
        check_resources(growing(60, double), "m.onnx")
    assert "--max-memory" in caught.value.hint
    check_resources(growing(60, [helper.make_node("Relu", ["a"], ["next"])]), "m.onnx")


def test_a_list_to_which_each_turn_adds_a_row_is_not_taken_for_one_that_doubles(memory):
    row = [helper.make_node("Constant", [], ["row"], value=constant("", np.ones((1, 4), np.float32)))]
    add = [*row, helper.make_node("Concat", ["a", "row"], ["next"], axis=0)]
    memory(10**6)
    check_resources(growing(10_000, add), "m.onnx")
    with pytest.raises(InputError, match=r"1.2e\+06 elements in the end"):
        check_resources(growing(300_000, add), "m.onnx")
