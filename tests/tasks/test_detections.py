"""NMS and post-processing, against ONNX Runtime's operator and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from relu_deploy.tasks.detection import nms, postprocess


def onnxruntime_nms(boxes, scores, iou, least, limit):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("boxes", "scores")]
    constants = [
        helper.make_tensor("limit", TensorProto.INT64, [1], [limit]),
        helper.make_tensor("iou", TensorProto.FLOAT, [1], [iou]),
        helper.make_tensor("least", TensorProto.FLOAT, [1], [least]),
    ]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "limit", "iou", "least"], ["kept"])
    kept = helper.make_tensor_value_info("kept", TensorProto.INT64, None)
    graph = helper.make_graph([node], "nms", values, [kept], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"boxes": boxes, "scores": scores})[0]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7]), st.sampled_from([0.0, 0.2, 0.6]), st.sampled_from([1, 5, 100])
)
def test_nms_keeps_what_onnxruntime_keeps_in_the_same_order(seed, iou, least, limit):
    generator = np.random.default_rng(seed)
    low = generator.uniform(0, 50, (2, 40, 2))
    boxes = np.concatenate([low, low + generator.uniform(1, 40, (2, 40, 2))], 2).astype(np.float32)
    # All scores differ, so that no order is left to chance.
    scores = (generator.permutation(2 * 3 * 40).reshape(2, 3, 40) / 240).astype(np.float32)
    np.testing.assert_array_equal(nms(boxes, scores, iou, least, limit), onnxruntime_nms(boxes, scores, iou, least, limit))


def test_boxes_without_area_and_empty_inputs_do_no_harm():
    boxes, scores = np.zeros((1, 3, 4), np.float32), np.full((1, 1, 3), 0.9, np.float32)
    assert nms(boxes, scores, 0.5, 0.1, 10).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert nms(np.zeros((1, 0, 4)), np.zeros((1, 2, 0)), 0.5, 0.1, 10).shape == (0, 3)


def test_postprocess_gives_each_image_its_best_detections_first():
    boxes = np.array([[[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60]]] * 2, np.float32)
    scores = np.array([[[0.6, 0], [0.9, 0], [0, 0.7]], [[0, 0], [0, 0], [0.01, 0]]], np.float32)
    first, second = postprocess(boxes, scores, iou_threshold=0.5, score_threshold=0.05)
    assert first["labels"].tolist() == [0, 1]
    assert first["scores"].tolist() == pytest.approx([0.9, 0.7])
    assert first["boxes"].tolist() == [[1, 1, 11, 11], [50, 50, 60, 60]]
    assert len(second["scores"]) == 0
    assert len(postprocess(boxes, scores, iou_threshold=0.5, max_detections=1)[0]["scores"]) == 1
