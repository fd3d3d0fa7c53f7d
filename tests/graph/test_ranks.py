"""A graph whose tensors have more dimensions than runtimes support is refused before its shapes are inferred."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy.errors import InputError
from relu_deploy.graph.model import load_model
from relu_deploy.graph.propagation import infer_with_values
from relu_deploy.graph.rank_bounds import Bound, bound_of_result, may_raise_rank
from relu_deploy.graph.ranks import TooManyDimensions, check_ranks

INT64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL


def node(operator, inputs, outputs, name="", **attributes):
    return helper.make_node(operator, inputs, outputs, name or f"{operator} of {outputs[0]}", **attributes)


def value(name, shape=None, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, inputs, output, functions=(), **constants):
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, [output], tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def chain(operator, count, **attributes):
    """Return nodes that apply an operator to its own result, from t0 to the tensor called `t<count>`."""
    return [node(operator, [f"t{at}", f"t{at}"], [f"t{at + 1}"], f"step{at}", **attributes) for at in range(count)]


def refused(proto):
    began = time.process_time()
    with pytest.raises(TooManyDimensions) as caught:
        infer_with_values(proto)
    assert time.process_time() - began < 20
    return str(caught.value)


# Gather of a tensor of rank r at itself has rank 2r - 1: 2, 3, 5, 9, 17, 33, 65.
START = node("Cast", ["x"], ["t0"], to=INT64)


def test_a_tensor_that_is_gathered_at_itself_again_and_again_is_refused_with_the_node():
    proto = model_of([START, *chain("Gather", 40)], [value("x", [2, 2])], value("t40", None, INT64))
    assert refused(proto) == "the Gather 'step5' computes a tensor of 65 dimensions, at most 64 are supported"


def test_a_tensor_of_as_many_dimensions_as_are_supported_is_inferred():
    proto = model_of([START, *chain("Gather", 5)], [value("x", [2, 2])], value("t5", None, INT64))
    assert len(infer_with_values(proto).graph.output[0].type.tensor_type.shape.dim) == 33


def test_the_order_of_the_nodes_in_the_file_does_not_matter(tmp_path):
    proto = model_of([START, *chain("Gather", 40)][::-1], [value("x", [2, 2])], value("t40", None, INT64))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"m\.onnx: the Gather 'step5' computes a tensor of 65 dimensions"):
        load_model(tmp_path / "m.onnx")


def test_one_more_dimension_a_node_is_refused_at_the_first_that_is_too_many():
    nodes = [node("Unsqueeze", [f"t{at}", "axis"], [f"t{at + 1}"], f"step{at}") for at in range(2000)]
    proto = model_of([START, *nodes], [value("x", [2, 2])], value("t2000", None, INT64), axis=np.array([0]))
    assert refused(proto) == "the Unsqueeze 'step62' computes a tensor of 65 dimensions, at most 64 are supported"


@pytest.mark.parametrize("operator", ["Expand", "Reshape", "ConstantOfShape"])
@pytest.mark.parametrize("source", ["input", "tiled", "multiplied"])
def test_a_shape_that_is_a_long_vector_is_refused(operator, source):
    makers = {
        "input": [node("Identity", ["long"], ["shape"])],
        "tiled": [node("Tile", ["short", "many"], ["shape"])],
        # Its length is the value of a product, which inference follows.
        "multiplied": [node("Mul", ["ten", "ten"], ["count"]), node("ConstantOfShape", ["count"], ["shape"])],
    }
    inputs = ["shape"] if operator == "ConstantOfShape" else ["x", "shape"]
    nodes = [*makers[source], node(operator, inputs, ["y"], "grows")]
    long = value("long", [10**8], INT64)
    constants = {"short": np.array([1, 2]), "many": np.array([5 * 10**7]), "ten": np.array([10**4])}
    message = refused(model_of(nodes, [value("x", [2, 2]), long], value("y"), **constants))
    assert message == f"the {operator} 'grows' computes a tensor of 100000000 dimensions, at most 64 are supported"


def test_a_shape_whose_length_is_found_by_inference_alone_is_accepted():
    nodes = [node("Tile", ["short", "two"], ["shape"]), node("Reshape", ["x", "shape"], ["y"])]
    proto = model_of(nodes, [value("x", [2, 2])], value("y"), short=np.array([1, 2]), two=np.array([2]))
    assert len(infer_with_values(proto).graph.output[0].type.tensor_type.shape.dim) == 4


def test_the_biases_of_an_export_that_was_not_simplified_are_bounded_without_inference():
    """PyTorch expands a zero to as many channels as the weights have, of the type of what the Conv reads."""
    nodes = []
    for at in range(60):
        nodes += [
            node("Shape", ["w"], [f"all{at}"], start=0, end=1),
            node("Expand", [f"all{at}", "one"], [f"channels{at}"]),
            node("CastLike", ["zero", f"t{at}"], [f"typed{at}"]),
            node("Expand", [f"typed{at}", f"channels{at}"], [f"bias{at}"]),
            node("Conv", [f"t{at}", "w", f"bias{at}"], [f"t{at + 1}"]),
        ]
    constants = {"w": np.zeros((4, 4, 1, 1), np.float32), "one": np.array([1]), "zero": np.zeros((), np.float32)}
    proto = model_of(nodes, [value("t0", [1, 4, 3, 3])], value("t60"), **constants)
    check_ranks(proto, lambda _: pytest.fail("inferred"))
    assert [dim.dim_value for dim in infer_with_values(proto).graph.output[0].type.tensor_type.shape.dim] == [1, 4, 3, 3]


def test_shapes_that_inference_alone_finds_are_settled_together_where_types_do_not_depend_on_them():
    nodes = []
    for at in range(60):
        nodes += [
            node("Tile", ["four", "one"], [f"channels{at}"]),
            node("Expand", ["zero", f"channels{at}"], [f"bias{at}"]),
            node("Conv", [f"t{at}", "w", f"bias{at}"], [f"u{at}"]),
            node("Shape", [f"u{at}"], [f"size{at}"]),
            node("Tile", [f"size{at}", "one"], [f"same{at}"]),
            node("Reshape", [f"u{at}", f"same{at}"], [f"t{at + 1}"]),
        ]
    constants = {"w": np.zeros((4, 4, 1, 1), np.float32), "one": np.array([1]), "zero": np.zeros(1, np.float32)}
    passes = []

    def infer(proto):
        passes.append(1)
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)

    check_ranks(model_of(nodes, [value("t0", [1, 4, 3, 3])], value("t60"), four=np.array([4]), **constants), infer)
    assert len(passes) <= 61  # a Reshape each, and all biases in one


def test_a_long_chain_of_shapes_that_depend_on_each_other_is_accepted():
    nodes = []
    for at in range(60):
        nodes += [node("Shape", [f"t{at}"], [f"s{at}"]), node("Tile", [f"s{at}", "one"], [f"u{at}"])]
        nodes += [node("Expand", [f"t{at}", f"u{at}"], [f"t{at + 1}"])]
    proto = model_of(nodes, [value("t0", [1, 4, 3, 3])], value("t60"), one=np.array([1]))
    assert len(infer_with_values(proto).graph.output[0].type.tensor_type.shape.dim) == 4


def test_dimensions_that_are_added_and_removed_again_do_not_count():
    """A Squeeze without axes removes as many as the shape says, which bounds do not know."""
    nodes = []
    for at in range(100):
        nodes += [node("Unsqueeze", [f"t{at}", "axis"], [f"u{at}"]), node("Squeeze", [f"u{at}"], [f"t{at + 1}"])]
    proto = model_of([START, *nodes], [value("x", [2, 2])], value("t100", None, INT64), axis=np.array([0]))
    assert len(infer_with_values(proto).graph.output[0].type.tensor_type.shape.dim) == 2
    assert [each.op_type for each in proto.graph.node][1::2] == ["Unsqueeze"] * 100


@pytest.mark.parametrize("place", ["If", "Loop", "function"])
def test_dimensions_inside_bodies_and_functions_are_counted(place):
    nodes = [node("Cast", ["x"], ["t0"], to=INT64), *chain("Gather", 30), node("Cast", ["t30"], ["inner"], to=FLOAT)]
    if place == "function":
        function = helper.make_function("local", "F", ["x"], ["inner"], nodes, [helper.make_opsetid("", 20)])
        call = node("F", ["x"], ["y"], "call", domain="local")
        assert "'call'" in refused(model_of([call], [value("x", [2, 2])], value("y"), [function]))
        return
    if place == "If":
        body = helper.make_graph(nodes, "body", [], [value("inner")])
        holder = node("If", ["yes"], ["y"], then_branch=body, else_branch=body)
    else:
        inputs = [value("turn", [], INT64), value("go", [], BOOL)]
        nodes.append(node("Identity", ["go"], ["still"]))
        body = helper.make_graph(nodes, "body", inputs, [value("still", [], BOOL), value("inner")])
        holder = node("Loop", ["times", "yes"], ["y"], body=body)
    proto = model_of([holder], [value("x", [2, 2])], value("y"), yes=np.array(True), times=np.array(3))
    assert refused(proto) == "the Gather 'step5' computes a tensor of 65 dimensions, at most 64 are supported"


def test_a_loop_behind_a_loop_adds_a_dimension_to_what_is_stacked_only():
    inputs = [value("turn", [], INT64), value("go", [], BOOL), value("state")]
    outputs = [value("still", [], BOOL), value("next"), value("stacked")]
    inner = [node("Identity", ["go"], ["still"]), node("Relu", ["state"], ["next"]), node("Relu", ["state"], ["stacked"])]
    body = helper.make_graph(inner, "body", inputs, outputs)
    carried = [node("Loop", ["times", "yes", f"s{at}"], [f"s{at + 1}", f"all{at}"], body=body) for at in range(100)]
    constants = {"yes": np.array(True), "times": np.array(3)}
    infer_with_values(model_of(carried, [value("s0", [2, 2])], value("s100"), **constants))


@pytest.mark.parametrize("kind", ["tensor", "sequence"])
def test_a_recorded_type_of_too_many_dimensions_is_refused(tmp_path, kind):
    proto = model_of([node("Relu", ["x"], ["t"]), node("Relu", ["t"], ["y"])], [value("x", [2])], value("y", [2]))
    recorded = value("t", [1] * 65)
    if kind == "sequence":
        recorded = helper.make_tensor_sequence_value_info("t", FLOAT, [1] * 65)
    proto.graph.value_info.append(recorded)
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="'t' has 65 dimensions, at most 64"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("place", ["reversed", "branch"])
def test_a_tensor_of_terabytes_is_found_in_a_body_and_in_any_order(tmp_path, place):
    nodes = [node("ConstantOfShape", ["shape"], ["big"]), node("ReduceMax", ["big"], ["y"], keepdims=0)]
    if place == "branch":
        body = helper.make_graph(nodes, "body", [], [value("y", [])])
        nodes = [node("If", ["yes"], ["y"], then_branch=body, else_branch=body)]
    proto = model_of(nodes[::-1], [value("x", [2])], value("y", []), shape=np.array([10**6, 10**6]), yes=np.array(True))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="'big' needs 4000 GB"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("operator", ["Concat", "Add"])
def test_tensors_that_grow_by_joining_and_broadcasting_are_found(tmp_path, operator):
    nodes = [node("Relu", ["x"], ["t0"])]
    if operator == "Concat":
        nodes += chain("Concat", 40, axis=0)
        output = "t40"
    else:
        nodes += [node("Unsqueeze", ["t0", "one"], ["column"]), node("Add", ["t0", "column"], ["square"])]
        output = "square"
    proto = model_of(nodes, [value("x", [4 if operator == "Concat" else 10**6])], value(output), one=np.array([1]))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="GB, at most"):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("equation", "inputs", "said"),
    [
        ("a(b,c->", 2, "malformed"),
        ("......->...", 1, "malformed"),
        ("ab-->a", 1, "malformed"),
        ("ab->a->b", 1, "malformed"),
        ("ab\0->a", 1, "malformed"),
        ("ab->aa", 1, "repeats an index"),
        ("ab->c", 1, "one that no operand has"),
        ("ab,bc->ac", 1, "has 2 operands, the node 1"),
    ],
)
def test_a_malformed_equation_is_refused_instead_of_read_without_end(tmp_path, equation, inputs, said):
    proto = model_of([node("Einsum", ["x"] * inputs, ["y"], equation=equation)], [value("x", [2, 2])], value("y"))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=said):
        load_model(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "equation", ["ij,jk->ik", " i j , j k -> i k ", "...ij,...jk->...ik", "ij,jk", "ii->i", "i...->...", "Bi,Bj->B"]
)
def test_equations_of_every_valid_form_are_accepted(tmp_path, equation):
    proto = model_of(
        [node("Einsum", ["x"] * (1 + equation.count(",")), ["y"], equation=equation)], [value("x", [2, 2])], value("y")
    )
    onnx.save(proto, tmp_path / "m.onnx")
    assert len(load_model(tmp_path / "m.onnx").graph) == 1


def test_only_operators_that_are_known_to_raise_ranks_do():
    operators = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain in ("", "ai.onnx.ml")}
    plain = sorted(operator for operator in operators if not may_raise_rank(operator))
    assert len(plain) > 150
    operands = [Bound(6, 64, 64)] * 3
    for operator in plain:
        result = bound_of_result(onnx.helper.make_node(operator, ["a", "b", "c"], ["y"]), operands)
        assert result.rank is None or result.rank <= 6, operator
