"""Clip of integers as Max and Min."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.graph import load_model, save_model
from relu_deploy.graph.rewriting.integer_clip import has_integer_clip, without_integer_clip
from relu_deploy.graph.shapes.shape_inference import infer_shapes

INT64 = TensorProto.INT64


def saved(folder, low, high, dtype=np.int64):
    bounds = [(name, bound) for name, bound in (("low", low), ("high", high)) if bound is not None]
    inputs = ["x", "low" if low is not None else "", "high" if high is not None else ""]
    node = helper.make_node("Clip", inputs, ["y"], "clip")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = [helper.make_tensor_value_info(name, kind, [4]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.array(bound, dtype), name) for name, bound in bounds]
    graph = helper.make_graph([node], "g", values[:1], values[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load_model(path)
    infer_shapes(model)
    return model


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, None, [0, 0, 2, 9]),
        (None, 3, [-5, 0, 2, 3]),
        (-1, 3, [-1, 0, 2, 3]),
        (4, 1, [1, 1, 1, 1]),
        (None, None, [-5, 0, 2, 9]),
    ],
)
def test_a_clip_of_integers_is_max_then_min_under_its_name(tmp_path, low, high, expected):
    model = saved(tmp_path, low, high)
    assert has_integer_clip(model)
    changed = without_integer_clip(model)
    assert {one.op_type for one in changed.graph} <= {"Max", "Min", "Identity"}
    assert changed.graph[-1].name == "clip"
    save_model(changed, tmp_path / "changed.onnx")
    x = np.array([-5, 0, 2, 9])
    np.testing.assert_array_equal(load(tmp_path / "changed.onnx", "onnxruntime-cpu").run({"x": x})["y"], expected)


def test_a_clip_of_floating_point_numbers_stays(tmp_path):
    model = saved(tmp_path, 0, 6, np.float32)
    assert not has_integer_clip(model)
    assert [one.op_type for one in without_integer_clip(model).graph] == ["Clip"]
