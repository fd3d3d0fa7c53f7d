"""A piece that was cut out computes what the whole graph computes there."""

from itertools import pairwise

import numpy as np
import onnx
import pytest

from relu_deploy.backends import load
from relu_deploy.errors import InputError
from relu_deploy.graph import extract_subgraph, load_model, node_precisions, nodes_between, precision_of, save_model

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


@pytest.fixture
def everything(digits_bundle):
    """The graph of the digit classifier and every tensor of it on one input."""
    values = {"x": np.random.default_rng(0).random((2, 1, 28, 28), np.float32)}

    def seen(name, value):
        values[name] = value
        return value

    load(digits_bundle, "reference").evaluate(values.copy(), wide=False, seen=seen)
    return load_model(digits_bundle.onnx), values


def test_any_piece_gives_its_part_of_the_whole(everything, tmp_path):
    model, values = everything
    made = [node.outputs[0].name for node in model.graph if node.op_type in ("Relu", "Gemm", "MaxPool")]
    for start, end in pairwise(made):
        piece = extract_subgraph(model, [start], [end])
        save_model(piece, tmp_path / "piece.onnx")
        onnx.checker.check_model(str(tmp_path / "piece.onnx"))
        assert [value.name for value in piece.graph.inputs] == [start]
        got = load(tmp_path / "piece.onnx", "onnxruntime-cpu").run({start: values[start]})
        np.testing.assert_allclose(got[end], values[end], rtol=1e-4, atol=1e-5)


def test_cutting_leaves_the_model_as_it_was(everything):
    model, _ = everything
    before = [(node.name, [value.name for value in node.inputs]) for node in model.graph]
    relu = next(node for node in model.graph if node.op_type == "Relu")
    extract_subgraph(model, [relu.outputs[0].name], [model.graph.outputs[0].name])
    assert [(node.name, [value.name for value in node.inputs]) for node in model.graph] == before


def test_a_piece_without_an_inner_start_begins_at_the_inputs(everything):
    model, _ = everything
    first = next(node for node in model.graph if node.op_type == "Relu")
    assert [node.op_type for node in nodes_between(model, [], [first.outputs[0].name])] == ["Conv", "Relu"]


def test_a_tensor_that_no_node_makes_is_refused(everything):
    with pytest.raises(InputError, match="no node of the graph computes a tensor called 'nothing'"):
        extract_subgraph(everything[0], [], ["nothing"])


def test_the_precision_of_a_graph_is_its_coarsest(digits_bundle, tmp_path):
    assert precision_of(load_model(digits_bundle.onnx)) == "float32"
    converters = pytest.importorskip(
        "onnxruntime.transformers.float16",
        reason="this onnxruntime has no onnxruntime.transformers.float16: install another release of it",
    )
    onnx.save(converters.convert_float_to_float16(onnx.load(digits_bundle.onnx), keep_io_types=True), tmp_path / "half.onnx")
    half = load_model(tmp_path / "half.onnx")
    assert precision_of(half) == "float16"
    assert set(node_precisions(half).values()) == {"float16", "float32"}


def test_a_quantized_graph_is_int8_in_its_convolutions(digits_bundle, tmp_path):
    quantization = pytest.importorskip(
        "onnxruntime.quantization", reason="this onnxruntime has no onnxruntime.quantization: install another release of it"
    )

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.feeds = iter([{"x": np.random.default_rng(0).random((1, 1, 28, 28), np.float32)}])

        def get_next(self):
            return next(self.feeds, None)

    quantization.quantize_static(digits_bundle.onnx, tmp_path / "int8.onnx", Reader())
    model = load_model(tmp_path / "int8.onnx")
    assert precision_of(model) == "int8"
    convolutions = [node.name for node in model.graph if node.op_type == "Conv"]
    assert {node_precisions(model)[name] for name in convolutions} == {"int8"}
