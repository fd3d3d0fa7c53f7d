"""Shape inference follows computed shapes, and does not follow other vectors element by element."""

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.errors import InputError
from relu_deploy.graph.model import load_model
from relu_deploy.graph.propagation import infer_with_values


def model_of(nodes, constants, shape=("N", 3, 4)):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name=nodes[-1].output[0])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def shape_of(model, name):
    inferred = infer_with_values(model)
    values = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    return [dim.dim_value or dim.dim_param for dim in values[name].type.tensor_type.shape.dim]


def test_a_shape_that_the_graph_computes_is_known():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["rows"]),
        helper.make_node("Mul", ["rows", "four"], ["size"]),
        helper.make_node("Add", ["size", "one"], ["more"]),
        helper.make_node("Concat", ["more", "one"], ["target"], axis=0),
        helper.make_node("Expand", ["zero", "target"], ["y"]),
    ]
    constants = {"one": np.array([1]), "four": np.array([4]), "zero": np.zeros((1, 1), np.float32)}
    model = model_of(nodes, constants)
    before = model.SerializeToString()
    assert shape_of(model, "y") == [13, 1]
    assert model.SerializeToString() == before


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("maker", ["ConstantOfShape", "Expand", "Tile", "Range"])
def test_arithmetic_on_a_vector_of_a_billion_elements_takes_no_time(kind, maker):
    inputs = {"ConstantOfShape": ["many"], "Expand": ["one", "many"], "Tile": ["one", "many"], "Range": ["start", "end", "step"]}
    value = {"value": numpy_helper.from_array(np.array([1]))} if maker == "ConstantOfShape" else {}
    nodes = [helper.make_node(maker, inputs[maker], ["long"], **value), helper.make_node(kind, ["long", "one"], ["y"])]
    constants = {"many": np.array([10**9]), "one": np.array([1])}
    constants |= {"start": np.int64(0), "end": np.int64(10**9), "step": np.int64(1)}
    began = time.process_time()
    assert shape_of(model_of(nodes, constants), "y") == [10**9]
    assert time.process_time() - began < 5


def test_a_shape_that_is_joined_to_itself_again_and_again_is_not_followed():
    nodes = [helper.make_node("Shape", ["x"], ["t0"])]
    nodes += [helper.make_node("Concat", [f"t{at}", f"t{at}"], [f"t{at + 1}"], axis=0) for at in range(40)]
    began = time.process_time()
    assert shape_of(model_of(nodes, {}), "t40") == [3 * 2**40]
    assert time.process_time() - began < 5


def test_such_a_graph_is_refused_for_its_size(tmp_path):
    nodes = [helper.make_node("ConstantOfShape", ["many"], ["long"]), helper.make_node("Add", ["long", "one"], ["y"])]
    onnx.save(model_of(nodes, {"many": np.array([2**62]), "one": np.ones(1, np.float32)}), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"needs .* GB"):
        load_model(tmp_path / "m.onnx")


def test_an_attribute_of_another_type_than_the_operators_is_refused(tmp_path):
    model = model_of([helper.make_node("Softmax", ["x"], ["y"], axis=[1, 2])], {})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"'axis' of the Softmax .* has the wrong type"):
        load_model(tmp_path / "m.onnx")
