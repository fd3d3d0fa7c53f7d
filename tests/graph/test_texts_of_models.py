"""A text of a model that is not UTF-8 is an error in words, wherever it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy.errors import InputError
from relu_deploy.graph import load_model


def model() -> onnx.ModelProto:
    """Return a valid model with a text in each field that can hold one, of which each begins with "text_"."""
    relu = helper.make_node("Relu", ["text_a"], ["text_b"], "text_inner")
    inner = [helper.make_opsetid("", 17), helper.make_opsetid("text_function_domain", 1)]
    function = helper.make_function("text_domain", "text_function", ["text_a"], ["text_b"], [relu], inner, ["text_attribute"])
    function.attribute_proto.add(name="text_default", type=onnx.AttributeProto.INT, i=1, doc_string="text_default_doc")
    function.value_info.add(name="text_b").type.tensor_type.elem_type = TensorProto.FLOAT
    call = helper.make_node("text_function", ["text_x"], ["text_m"], "text_call", domain="text_domain")
    add = helper.make_node("Add", ["text_m", "text_w"], ["text_y"], "text_add", doc_string="text_node_doc")
    x, y, m = (
        helper.make_tensor_value_info(f"text_{name}", TensorProto.FLOAT, ["text_n", 2], f"text_doc_{name}") for name in "xym"
    )
    x.type.denotation = "text_denotation"
    x.type.tensor_type.shape.dim[0].denotation = "text_dim_denotation"
    weight = helper.make_tensor("text_w", TensorProto.FLOAT, [2], [1.0, 2.0])
    weight.doc_string = "text_weight_doc"
    graph = helper.make_graph([call, add], "text_graph", [x], [y], [weight], "text_graph_doc", [m])
    annotation = graph.quantization_annotation.add(tensor_name="text_m")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("text_domain", 1)]
    made = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10, producer_name="text_producer")
    made.domain, made.doc_string, made.producer_version = "text_model_domain", "text_model_doc", "text_version"
    described: Any
    for at, described in enumerate((made, graph, function, add, x, weight)):
        described.metadata_props.add(key=f"text_key_{at}", value=f"text_value_{at}")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="text_w")
    return made


WHOLE = model().SerializeToString()
#: where a text begins
PLACES = [at for at in range(len(WHOLE)) if WHOLE.startswith(b"text_", at)]


def test_the_model_is_valid(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(WHOLE)
    load_model(tmp_path / "m.onnx")
    assert len(PLACES) > 40


@pytest.mark.parametrize("place", PLACES)
def test_a_text_that_is_not_utf_8_is_refused(place: int, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(WHOLE[:place] + b"\xff" + WHOLE[place + 1 :])
    with pytest.raises(InputError, match=r"UTF-8|which nothing provides|computed by no node"):
        load_model(tmp_path / "m.onnx")
