"""Models whose outputs are not tensors are exported like others, and the bundle names the type."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy.backends import load
from relu_deploy.bundle import Bundle
from relu_deploy.exporting.exporter import export_source

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

ROWS = np.array([[-1, 2], [3, -4]], np.float32)
SCORES = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
CASES = {
    "sequence": (
        helper.make_node("SplitToSequence", ["r"], ["y"], axis=1),
        helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None),
    ),
    "unknown": (
        helper.make_node("ZipMap", ["r"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[5, 7]),
        helper.make_value_info("y", helper.make_sequence_type_proto(SCORES)),
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_model_with_an_output_that_is_no_tensor_makes_a_bundle_that_runs(tmp_path, kind):
    node, output = CASES[kind]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["r"]), node], "g", inputs, [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    export_source(tmp_path / "m.onnx", tmp_path / "m.rdb")
    bundle = Bundle.open(tmp_path / "m.rdb")
    assert [(spec.name, spec.dtype) for spec in bundle.outputs] == [("y", kind)]
    answer = load(bundle, "onnxruntime-cpu").run({"x": ROWS})["y"]
    if kind == "sequence":
        assert [column.ravel().tolist() for column in answer] == [[0, 3], [2, 0]]
    else:
        assert answer == [{5: 0, 7: 2}, {5: 3, 7: 0}]
