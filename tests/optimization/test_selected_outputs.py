"""Optimizing detectors that select their boxes in the graph: accuracy is measured on the tensors that enter the selection."""

import json

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.bundle import Bundle
from relu_deploy.errors import AccuracyTooLow
from relu_deploy.graph.quantization import qdq
from relu_deploy.optimization.options import OptimizeOptions
from relu_deploy.optimization.run import optimize, optimize_bundle
from relu_deploy.paths import schema_file
from relu_deploy.reporting.optimize_phrases import accuracy_of
from relu_deploy.verification.run import verify
from tests.support import selecting_models as models

BUILDS = {"suppressed": models.suppressed, "top_k": models.top_k, "thresholded": models.thresholded}
ENTERING = {"suppressed": ["boxes", "by_class"], "top_k": ["boxes", "scores", "best"], "thresholded": ["each", "table"]}


def optimized(path, target, precision, **options):
    settings = OptimizeOptions(calibration=str(path.with_suffix(".npz")), threads=1, measure_speed=False, **options)
    report = optimize_bundle(path, target, precision, out=path.with_suffix(".rdb"), options=settings)
    result = report.to_json()
    jsonschema.validate(json.loads(json.dumps(result, allow_nan=False)), json.loads(schema_file("optimize").read_text()))
    return report, result


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize(("target", "precision"), [("cpu", "int8"), ("tensorrt-rtx", "fp16")])
def test_a_detector_that_selects_its_boxes_passes_and_is_stored_as_it_was(tmp_path, name, target, precision):
    model = BUILDS[name]()
    report, result = optimized(models.save(model, tmp_path), target, precision)
    assert report.passed, result["verified"]
    assert sorted(result["accuracy"]["tensors"]) == sorted(ENTERING[name])
    assert result["accuracy"]["metric"] == "signal"
    assert result["accuracy"]["after"] > 0.9
    stored = onnx.load(report.bundle.with_variant(report.variant).onnx)
    assert [one.name for one in stored.graph.output] == [one.name for one in model.graph.output]
    assert not any("measured" in each for one in stored.graph.node for each in one.output)
    assert f"of {', '.join(result['accuracy']['tensors'])}, before " in accuracy_of(result)
    # What computes with the selected rows stays float32: its error is not measured.
    nodes = {one.name: one for one in stored.graph.node}
    if precision == "fp16":
        halves = {value.name for value in stored.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
        assert halves & set(nodes["head"].output)
        last = {"suppressed": "join", "top_k": "join", "thresholded": "shifted"}[name]
        assert not halves & set(nodes[last].output)


def test_the_outputs_themselves_would_have_missed_the_gate(tmp_path):
    """The variant that is stored has its boxes in another order, or another number of them."""
    path = models.save(models.suppressed(), tmp_path)
    report, _ = optimized(path, "cpu", "int8")
    variant = report.bundle.with_variant("int8-cpu")
    sessions = [bundle.session("onnxruntime-cpu") for bundle in (Bundle.open(path), variant)]
    found = [[session.run({"x": x[None]})["detections"] for session in sessions] for x in models.pictures(40)]
    assert any(one.shape != other.shape for one, other in found)
    assert any(one.shape == other.shape and np.abs(one - other).max() > 4 for one, other in found)
    differing = next(row for row, (one, other) in enumerate(found) if one.shape != other.shape)
    feeds = {"x": models.pictures(40)[differing : differing + 1]}
    verified = verify(variant, feeds=feeds, against=str(path), threads=1)
    assert verified.passed
    assert f"instead of {found[differing][0].shape}" in verified.backends[0].note


def test_a_wrong_number_between_the_last_relu_and_the_selection_is_found_in_the_variant(tmp_path):
    path = models.save(models.suppressed(), tmp_path)
    report, _ = optimized(path, "cpu", "int8")
    wrong = onnx.load(report.bundle.with_variant("int8-cpu").onnx)
    stride = next(one for one in wrong.graph.initializer if one.name == "stride")
    stride.CopyFrom(numpy_helper.from_array(np.float32(4.6), "stride"))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    verified = verify(tmp_path / "wrong.onnx", feeds={"x": models.pictures(1)}, against=str(path), threads=1)
    assert not verified.passed
    assert verified.first_divergence == "center"


def test_a_list_whose_axis_has_the_name_of_the_batch_is_no_classification(tmp_path):
    model = models.suppressed()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    flat = next(one for one in model.graph.initializer if one.name == "flat")
    flat.CopyFrom(numpy_helper.from_array(np.array([0, 4 + models.CLASSES, models.ANCHORS]), "flat"))
    report, result = optimized(models.save(model, tmp_path), "cpu", "int8")
    assert result["accuracy"]["tensors"] == ENTERING["suppressed"]
    assert result["confidence"] is None
    assert report.passed


@pytest.mark.parametrize("name", BUILDS)
def test_a_variant_with_a_wrecked_scale_is_still_refused(tmp_path, monkeypatch, name):
    real = qdq.scale_and_zero

    def wrecked(low, high, stored):
        scale, zero = real(low, high, stored)
        return scale / 40, zero

    monkeypatch.setattr(qdq, "scale_and_zero", wrecked)
    report, result = optimized(models.save(BUILDS[name](), tmp_path), "cpu", "int8")
    assert not report.passed
    assert report.bundle is None
    assert not result["curve"][0]["passed"]
    assert result["accuracy"]["tensors"]


def test_layers_between_two_selections_stay_float32_and_their_rows_may_have_another_order(tmp_path):
    path = models.save(models.two_stages(), tmp_path)
    report, result = optimized(path, "cpu", "int8")
    assert report.passed, result["verified"]
    assert sorted(result["accuracy"]["tensors"]) == ["boxes", "objectness", "table"]
    kept = {one["node"]: one["reason"] for one in result["fallbacks"]}
    assert kept.keys() == {"hidden", "classify"}
    assert kept["hidden"] == "it follows the selection, and accuracy is measured before it"
    for row in range(4):
        feeds = {"x": models.pictures(4, 3)[row : row + 1]}
        verified = verify(report.bundle.with_variant("int8-cpu"), feeds=feeds, against=str(path), threads=1)
        assert verified.passed, verified.backends[0].to_json()["relus"]


def test_auto_measures_each_candidate_before_the_selection_and_stores_one(tmp_path, monkeypatch):
    import relu_deploy.optimization.auto.run as auto

    monkeypatch.setattr(auto, "find_backends", lambda _: (["onnxruntime-cpu"], {}))
    model = models.thresholded()
    path = models.save(model, tmp_path)
    settings = OptimizeOptions(calibration=str(path.with_suffix(".npz")), threads=1)
    report = optimize_bundle(path, "cpu", "auto", out=tmp_path / "auto.rdb", options=settings)
    assert report.passed
    checked = [one for one in report.auto.candidates if one.check is not None]
    assert {one.precision for one in checked} >= {"fp32", "int8"}
    assert all(one.check.passed and one.check.metric.value > 0.9 and one.check.error < 0.1 for one in checked), [
        (str(one.precision), one.reason) for one in checked
    ]
    stored = onnx.load(report.bundle.with_variant(report.variant).onnx)
    assert [one.name for one in stored.graph.output] == ["detected", "labels", "certainties"]


def selected_by_logarithms():
    """Return a detector whose scores may be minus infinity, which has no difference."""
    nodes, constants = models.backbone()
    nodes += [
        helper.make_node("ReduceMax", ["scores"], ["best"], "best", axes=[2], keepdims=0),
        helper.make_node("Sub", ["best", "least"], ["more"], "more"),
        helper.make_node("Relu", ["more"], ["likely"], "likely"),
        helper.make_node("Log", ["likely"], ["logarithms"], "log"),
        helper.make_node("TopK", ["logarithms", "k"], ["top_scores", "top"], "top", axis=1),
        helper.make_node("Exp", ["top_scores"], ["certainties"], "exp"),
        helper.make_node("Unsqueeze", ["certainties", "last"], ["detections"], "column"),
    ]
    constants |= {"k": np.array([models.KEPT]), "least": np.float32(0.5), "last": np.array([2])}
    graph = helper.make_graph(
        nodes,
        "logarithms",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("detections", TensorProto.FLOAT, [1, models.KEPT, 1])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_where_nothing_before_the_selection_can_be_compared_a_refusal_says_what_to_do(tmp_path):
    path = models.save(selected_by_logarithms(), tmp_path)
    report, result = optimized(path, "cpu", "int8", max_drop=0.0)
    assert not report.passed
    assert result["accuracy"]["tensors"] == []
    assert result["accuracy"]["selected_by"] == ["TopK"]
    assert "TopK" in result["remedy"]
    assert "--data" in result["remedy"]
    with pytest.raises(AccuracyTooLow) as caught:
        optimize(path, "cpu", "int8", out=tmp_path / "o.rdb", calibration=str(path.with_suffix(".npz")), max_drop=0.0, threads=1)
    assert "without the selection" in caught.value.hint
