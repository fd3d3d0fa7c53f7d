"""Models whose outputs are texts, maps or sequences are measured on the numbers that these are made of."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.errors import InputError
from relu_deploy.graph.model import read_model
from relu_deploy.graph.selection import find_numbers
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.optimization.run import optimize_bundle

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

FLOAT = TensorProto.FLOAT
node, value = helper.make_node, helper.make_tensor_value_info
SCORES = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, [])))
LAYERS = [
    node("MatMul", ["x", "w"], ["h"], "first"),
    node("Relu", ["h"], ["r"], "relu"),
    node("MatMul", ["r", "v"], ["s"], "last"),
    node("Softmax", ["s"], ["p"], "softmax"),
]
BEST = node("ArgMax", ["p"], ["best"], "best", axis=1, keepdims=0)
NAMES = node("LabelEncoder", ["best"], ["name"], "names", domain="ai.onnx.ml", keys_int64s=[0, 1, 2], values_strings=list("abc"))
MAPS = node("ZipMap", ["p"], ["scores"], "maps", domain="ai.onnx.ml", classlabels_strings=list("abc"))
PARTS = node("SplitToSequence", ["p"], ["parts"], "parts", axis=1)
#: Last nodes, outputs, what is compared, and before which operators.
CASES = {
    "texts": ([BEST, NAMES], [value("name", TensorProto.STRING, ["n"])], ["LabelEncoder"]),
    "maps": ([MAPS], [helper.make_value_info("scores", SCORES)], ["ZipMap"]),
    "a text and a map": (
        [BEST, NAMES, MAPS],
        [value("name", TensorProto.STRING, ["n"]), helper.make_value_info("scores", SCORES)],
        ["ZipMap", "LabelEncoder"],
    ),
    "sequences": ([PARTS], [helper.make_tensor_sequence_value_info("parts", FLOAT, ["n", 1])], ["SplitToSequence"]),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    last, outputs, operators = CASES[request.param]
    generator = np.random.default_rng(3)
    tensors = {"w": generator.standard_normal((8, 16)), "v": generator.standard_normal((16, 3))}
    graph = helper.make_graph(
        [*LAYERS, *last],
        "g",
        [value("x", FLOAT, ["n", 8])],
        outputs,
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "m.npz", x=generator.standard_normal((60, 8)).astype(np.float32))
    return tmp_path / "m.onnx", operators


def optimized(path, **options):
    settings = OptimizeOptions(calibration=str(path.with_suffix(".npz")), threads=1, measure_speed=False, **options)
    return optimize_bundle(path, "cpu", "int8", out=path.with_suffix(".rdb"), force=True, options=settings)


def test_a_variant_is_measured_on_the_probabilities_and_gives_the_outputs_of_the_model(case):
    path, operators = case
    report = optimized(path, max_drop=0.1)
    assert report.passed
    # Rows of several numbers each are a classifier's.
    assert (report.before.name, report.before.samples) == ("top1_agreement", 60)
    fields = report.to_json()
    json.dumps(fields, allow_nan=False)
    assert fields["accuracy"]["tensors"] == ["p"]
    assert sorted(fields["accuracy"]["selected_by"]) == sorted(operators)
    variant = report.bundle.with_variant("int8-cpu")
    assert [spec.name for spec in variant.outputs] == [output.name for output in onnx.load(path).graph.output]
    rows = {"x": np.load(path.with_suffix(".npz"))["x"][:4]}
    answers = [made.session("onnxruntime-cpu", threads=1).run(rows) for made in (report.bundle, variant)]
    assert answers[0].keys() == answers[1].keys()
    if "name" in answers[0]:
        assert (answers[0]["name"] == answers[1]["name"]).all()


def test_a_variant_with_other_probabilities_misses_the_gate(case, monkeypatch):
    from relu_deploy.optimization import recipes

    path, _ = case
    quantize = recipes.quantize

    def broken(*arguments):
        made = quantize(*arguments)
        weights = next(tensor for name, tensor in made.graph.initializers.items() if name.startswith("v"))
        import onnx_ir as ir

        weights.const_value = ir.tensor(-weights.const_value.numpy(), name=weights.name)
        return made

    monkeypatch.setattr(recipes, "quantize", broken)
    report = optimized(path, max_drop=0.1)
    assert not report.search.passed
    assert report.search.metric.value < 0.5


def test_where_one_output_is_a_tensor_of_numbers_that_one_is_compared(case):
    path, _ = case
    model = onnx.load(path)
    model.graph.output.append(value("p", FLOAT, ["n", 3]))
    onnx.save(model, path)
    assert find_numbers(read_model(path)).outputs == frozenset()
    assert optimized(path, max_drop=0.1).to_json()["accuracy"].get("tensors") in (None, [])


def test_texts_that_are_made_of_no_number_that_changes_are_refused(tmp_path):
    nodes = [*LAYERS[:2], node("LabelEncoder", ["i"], ["name"], domain="ai.onnx.ml", keys_int64s=[0], values_strings=["a"])]
    inputs = [value("x", FLOAT, ["n", 8]), value("i", TensorProto.INT64, ["n"])]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [value("name", TensorProto.STRING, ["n"])],
        [numpy_helper.from_array(np.ones((8, 4), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "m.npz", x=np.ones((60, 8), np.float32), i=np.zeros(60, np.int64))
    with pytest.raises(InputError, match="no output of the model is a tensor of numbers"):
        optimized(tmp_path / "m.onnx")
