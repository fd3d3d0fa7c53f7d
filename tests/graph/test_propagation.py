"""Shape inference follows computed shapes, and does not follow other vectors element by element."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.errors import InputError
from relu_deploy.graph.model import load_model
from relu_deploy.graph.propagation import infer_with_values

#: memory that a test may take beyond what its process has
ALLOWED = 2**32
#: elements of a vector that no machine holds element by element
MANY = 2**40
#: by operator: its inputs where `long` is the vector, its attributes, and the shape of its result
FOLLOWING = {
    "Cast": (["long"], {"to": TensorProto.INT32}, [MANY]),
    "Concat": (["long", "long"], {"axis": 0}, [2 * MANY]),
    "Concat from the back": (["one", "long"], {"axis": -1}, [MANY + 1]),
    "Gather": (["long", "one"], {}, [1]),
    "Gather at the vector": (["one", "long"], {}, [MANY]),
    "Size": (["long"], {}, []),
    "Slice": (["long", "one", "four"], {}, [3]),
    "Squeeze": (["long"], {}, [MANY]),
    "Unsqueeze": (["long", "zero"], {}, [1, MANY]),
    "Add": (["long", "one"], {}, [MANY]),
    "Sub": (["one", "long"], {}, [MANY]),
    "Mul": (["long", "long"], {}, [MANY]),
    "MeanVarianceNormalization": (["real"], {"axes": [0]}, [MANY]),
}
INTEGER = numpy_helper.from_array(np.array([1]))
LENGTHS = ["recorded", "computed"]


@pytest.fixture(autouse=True)
def limited_memory():
    """Let a graph that is followed element by element end its test, not the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if Path("/proc/self/statm").exists()
        else 2**36
    )
    if soft == resource.RLIM_INFINITY or used + ALLOWED < soft:
        resource.setrlimit(resource.RLIMIT_AS, (used + ALLOWED, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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


def long_vector_model(case, length):
    """Return a graph that reads a vector of `MANY` elements, whose length is a constant or the product of a shape's elements."""
    inputs, attributes, _ = FOLLOWING[case]
    nodes = [
        helper.make_node("Shape", ["table"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["rows"]),
        helper.make_node("Mul", ["rows", "rows"], ["product"]),
        helper.make_node("ConstantOfShape", ["many" if length == "recorded" else "product"], ["long"], value=INTEGER),
        helper.make_node("ConstantOfShape", ["many" if length == "recorded" else "product"], ["real"]),
        helper.make_node(case.split()[0], inputs, ["y"], **attributes),
    ]
    constants = {"many": [MANY], "zero": [0], "one": [1], "four": [4]}
    model = model_of(nodes, {name: np.array(value) for name, value in constants.items()})
    model.graph.input.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [2**20, 1]))
    return model


def measure():
    """Print as JSON the shape, or the error, of each operator and kind of length, inferred with little memory."""
    resource.setrlimit(resource.RLIMIT_AS, (ALLOWED, ALLOWED))
    found = {}
    for case in FOLLOWING:
        for length in LENGTHS:
            try:
                found[f"{case}, {length}"] = shape_of(long_vector_model(case, length), "y")
            except MemoryError:
                found[f"{case}, {length}"] = "out of memory"
    print(json.dumps({"shapes": found, "kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


@pytest.fixture(scope="module")
def measured():
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_propagation; test_propagation.measure()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("case", FOLLOWING)
def test_no_operator_holds_a_long_vector_element_by_element(case, length, measured):
    assert measured["shapes"][f"{case}, {length}"] == FOLLOWING[case][2]


def test_a_long_vector_in_a_body_or_a_function_is_not_followed():
    one = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    body = helper.make_graph(
        [helper.make_node("Cast", ["long"], ["cast"], to=7), helper.make_node("Identity", ["cast"], ["y"])], "b", [], [one]
    )
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["long"], value=INTEGER),
        helper.make_node("If", ["yes"], ["branch"], then_branch=body, else_branch=body),
        helper.make_node("Twice", ["long"], ["twice"], domain="local"),
        helper.make_node("Concat", ["branch", "twice"], ["z"], axis=0),
    ]
    model = model_of(nodes, {"many": np.array([MANY]), "yes": np.array(True)})
    opsets = [helper.make_opsetid("", 20)]
    double = helper.make_node("Concat", ["v", "v"], ["w"], axis=0)
    model.functions.append(helper.make_function("local", "Twice", ["v"], ["w"], [double], opsets))
    model.opset_import.append(helper.make_opsetid("local", 1))
    before = model.SerializeToString()
    assert shape_of(model, "z") == [3 * MANY]
    assert model.SerializeToString() == before


@pytest.mark.parametrize("between", ["Neg", "Identity", "Cast", "Expand", "Reshape"])
def test_a_long_vector_is_not_followed_behind_other_operators(between):
    operands = {"Expand": ["one"], "Reshape": ["all"]}.get(between, [])
    attributes = {"to": TensorProto.INT64} if between == "Cast" else {}
    nodes = [
        helper.make_node("Shape", ["table"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "one"], ["rows"]),
        helper.make_node("ConstantOfShape", ["rows"], ["t0"], value=INTEGER),
    ]
    for at in range(20):
        nodes.append(helper.make_node(between, [f"t{at}", *operands], [f"u{at}"], **attributes))
        nodes.append(helper.make_node("Cast", [f"u{at}"], [f"t{at + 1}"], to=TensorProto.INT64))
    model = model_of(nodes, {"one": np.array([1]), "all": np.array([-1])})
    model.graph.input.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [1, MANY]))
    length = shape_of(model, "t20")
    assert length == [MANY] or between in ("Expand", "Reshape")


@pytest.mark.parametrize("source", ["Shape", "Concat"])
def test_a_length_found_in_a_later_pass_is_not_followed(source):
    nodes = [
        helper.make_node("Shape", ["table"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["two"]),
        helper.make_node("ConstantOfShape", ["two"], ["pair"], value=INTEGER),
        helper.make_node("Concat", ["pair", "many"], ["mixed"], axis=0),
        helper.make_node("ConstantOfShape", ["mixed"], ["wide"], value=INTEGER),
        helper.make_node("Shape", ["wide"], ["wide_sizes"]),
        helper.make_node("Gather", ["mixed" if source == "Concat" else "wide_sizes", "two"], ["last"]),
        helper.make_node("ConstantOfShape", ["last"], ["long"], value=INTEGER),
        helper.make_node("Cast", ["long"], ["cast"], to=TensorProto.INT64),
        helper.make_node("Concat", ["cast", "cast"], ["y"], axis=0),
    ]
    model = model_of(nodes, {"zero": np.array([0]), "many": np.array([MANY])})
    model.graph.input.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [2, 1]))
    assert shape_of(model, "y") == [2 * MANY]


def test_a_recorded_length_that_contradicts_a_shape_is_not_followed():
    nodes = [helper.make_node("Shape", ["x"], ["sizes"]), helper.make_node("Cast", ["sizes"], ["y"], to=TensorProto.INT32)]
    model = model_of(nodes, {})
    model.graph.value_info.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, [MANY]))
    assert shape_of(model, "y") == [MANY]


def test_the_shape_of_a_short_vector_behind_a_long_one_is_still_followed():
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Shape", ["sizes"], ["rank"]),
        helper.make_node("ConstantOfShape", ["rank"], ["zeros"], value=INTEGER),
        helper.make_node("Cast", ["zeros"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["cast", "zero"], ["row"]),
        helper.make_node("Cast", ["weights"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Reshape", ["x", "sizes"], ["same"]),
        helper.make_node("Unsqueeze", ["double", "zero"], ["y"]),
    ]
    model = model_of(nodes, {"zero": np.array([0]), "weights": np.zeros(300, np.float32)})
    assert shape_of(model, "row") == [1, 3]
    assert shape_of(model, "y") == [1, 300]
    assert shape_of(model, "same") == ["N", 3, 4]


def test_what_is_gathered_from_a_long_vector_has_the_symbols_of_the_indices():
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Gather", ["table", "found"], ["gathered"]),
        helper.make_node("Identity", ["gathered"], ["y"]),
    ]
    model = model_of(nodes, {"table": np.zeros(300, np.float32)})
    assert shape_of(model, "y") == shape_of(model, "found")
    inferred = infer_with_values(model)
    assert inferred.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


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
