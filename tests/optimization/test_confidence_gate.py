"""The gate sees confidence: a variant that keeps its accuracy and loses its scores is measured, and refused if a limit is set."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from relu_deploy.data.datasets import Dataset
from relu_deploy.errors import InputError, UsageError
from relu_deploy.optimization.accuracy.confidence import confidence_to_json
from relu_deploy.optimization.accuracy.gate import AccuracyEvaluator
from relu_deploy.optimization.exclusion import check_patterns, excluded_nodes
from relu_deploy.optimization.search import CandidateRunner, find_passing
from relu_deploy.reporting.optimize_phrases import confidence_of

ROWS = 21
X = np.arange(ROWS, dtype=np.float32)[:, None]


def evaluator_of(run, targets=None, threshold=0.5, **manifest):
    bundle = SimpleNamespace(name="m", manifest={"task": None, **manifest})
    return AccuracyEvaluator.prepare(bundle, Dataset("d", {"x": X}, targets or {}), run, 8, threshold)


def measured(evaluator, run):
    """Return the metric, and the confidence as the report has it."""
    recording = evaluator.meter.recording(run)
    metric = evaluator.score(recording)
    return metric, confidence_to_json(evaluator.meter.before, recording.confidence(), evaluator.meter.threshold, None)


def classifier(scale=1.0):
    def run(feeds):
        return {"y": np.eye(4, dtype=np.float32)[feeds["x"][:, 0].astype(int) % 4] * np.float32(scale)}

    return run


def test_a_classifier_that_keeps_every_class_and_halves_its_logits_is_less_confident():
    labels = np.arange(ROWS) % 4
    labels[0] = 2
    evaluator = evaluator_of(classifier(4.0), {"labels": labels}, task="classification")
    metric, found = measured(evaluator, classifier(2.0))
    assert metric.value == evaluator.before.value == pytest.approx(20 / 21)
    before, after = (np.exp(scale) / (np.exp(scale) + 3) for scale in (4.0, 2.0))
    assert found["mean"] == {"before": pytest.approx(before, abs=1e-6), "after": pytest.approx(after, abs=1e-6)}
    assert found["shift"] == pytest.approx(after - before, abs=1e-6)
    # All confidences are in one bin, so the error is the gap between it and the accuracy.
    assert found["calibration_error"]["after"] == pytest.approx(abs(after - 20 / 21), abs=1e-6)
    assert found["ap_at_threshold"] is None


def test_without_labels_there_is_a_shift_and_no_calibration_error():
    _, found = measured(evaluator_of(classifier(4.0)), classifier(2.0))
    assert found["shift"] < -0.2
    assert found["calibration_error"] == {"before": None, "after": None}
    assert "calibration error" not in confidence_of({"confidence": found})


def detector(share=1.0):
    def run(feeds):
        rows = len(feeds["x"])
        boxes = np.tile(np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32), (rows, 1, 1))
        return {
            "boxes": boxes,
            "scores": np.tile(np.array([[0.9, 0.0], [0.0, 0.6]], np.float32) * np.float32(share), (rows, 1, 1)),
        }

    return run


@pytest.mark.parametrize("labeled", [True, False])
def test_a_detector_that_keeps_its_ap_and_loses_its_scores_is_seen(labeled):
    targets = {
        "boxes": np.tile(np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32), (ROWS, 1)),
        "labels": np.tile([0, 1], ROWS),
        "image": np.arange(ROWS).repeat(2),
    }
    postprocess = {"decode": "boxes", "score_threshold": 0.05}
    evaluator = evaluator_of(detector(), targets if labeled else None, task="detection", postprocess=postprocess)
    metric, found = measured(evaluator, detector(0.7))
    assert metric.value == pytest.approx(evaluator.before.value) == pytest.approx(1.0)
    assert found["mean"] == {"before": pytest.approx(0.75), "after": pytest.approx(0.525)}
    # At a score of 0.5 the second class is gone: half of the mean over classes.
    assert found["score_threshold"] == 0.5
    assert found["ap_at_threshold"] == {"before": pytest.approx(1.0), "after": pytest.approx(0.5)}
    if labeled:
        assert found["calibration_error"]["before"] == pytest.approx(0.25)
        assert found["calibration_error"]["after"] == pytest.approx(1 - 0.525)


def test_a_segmenters_confidence_is_that_of_its_pixels_and_void_ones_have_no_calibration():
    def run(feeds, scale=4.0):
        stripes = (np.arange(6)[None, None] + np.zeros((len(feeds["x"]), 4, 1), int)) % 3
        return {"y": (np.eye(3, dtype=np.float32)[stripes] * np.float32(scale)).transpose(0, 3, 1, 2)}

    mask = np.tile(np.arange(6) % 3, (ROWS, 4, 1))
    mask[:, 0] = 255
    evaluator = evaluator_of(run, {"mask": mask}, task="segmentation")
    _, found = measured(evaluator, lambda feeds: run(feeds, 2.0))
    before, after = (np.exp(scale) / (np.exp(scale) + 2) for scale in (4.0, 2.0))
    assert found["mean"] == {"before": pytest.approx(before, abs=1e-6), "after": pytest.approx(after, abs=1e-6)}
    assert found["calibration_error"]["after"] == pytest.approx(1 - after, abs=1e-6)


def test_outputs_that_are_no_predictions_have_no_confidence():
    evaluator = evaluator_of(lambda feeds: {"a": np.ones((len(feeds["x"]), 2, 3), np.float32)})
    assert evaluator.meter.before is None
    assert "not measured" in confidence_of({"confidence": None})


class Scaled:
    """A target whose "models" are the factor of the logits."""

    @contextmanager
    def session(self, model, **_):
        yield SimpleNamespace(run=classifier(model))


class Factors:
    """Segments that each halve the logits unless they are in float32."""

    segments = ("a", "b")

    def build(self, off=()):
        return 6.0 * 0.5 ** (2 - len(off))

    def float_nodes(self, off=()):
        return {}


def test_segments_return_to_float32_until_the_confidence_is_back():
    runner = CandidateRunner(evaluator_of(classifier(6.0)), Scaled(), 6.0)
    assert find_passing(Factors(), runner, 0.01).off == ()
    result = find_passing(Factors(), runner, 0.01, max_shift=0.3)
    assert result.passed
    assert len(result.off) == 1
    assert [step.passed for step in result.curve] == [False, True]
    assert abs(result.curve[0].confidence_shift) > 0.3 >= abs(result.curve[1].confidence_shift)
    assert not find_passing(Factors(), runner, 0.01, max_shift=0.01).passed


def test_known_costs_decide_the_order_and_are_not_measured_again():
    runner = CandidateRunner(evaluator_of(classifier(6.0)), Scaled(), 6.0)
    result = find_passing(Factors(), runner, 0.01, 0.3, known_costs=(("b", 2.0), ("a", 1.0), ("gone", 9.0)))
    assert result.off == ["b"]
    assert result.costs == [("b", 2.0), ("a", 1.0)]


# ---------------------------------------------------------------- the verb

FAST = ("--precision", "int8", "--calibration", "digits", "--samples", "16", "--eval-samples", "40", "--quiet", "--json", "-")


def test_confidence_is_in_the_answer_and_the_page_and_a_limit_that_nothing_meets_is_exit_1(command, digits_copy):
    made = command("optimize", "digits.rdb", *FAST, "--html", "page.html")
    assert made.code == 0, made.stderr
    confidence = made.json["confidence"]
    assert 0.5 < confidence["mean"]["before"] <= 1
    assert confidence["shift"] == pytest.approx(confidence["mean"]["after"] - confidence["mean"]["before"], abs=2e-6)
    assert confidence["max_shift"] is None
    assert confidence["calibration_error"]["before"] is not None
    assert "mean confidence" in Path("page.html").read_text()
    made = command("optimize", "digits.rdb", *FAST, "--max-confidence-shift", "0", "--max-drop", "1", "--force")
    assert made.code == 1, made.stderr
    assert "--max-confidence-shift" in made.json["remedy"]


def test_excluded_nodes_stay_float32_and_the_list_is_written_once_and_read_again(command, digits_copy):
    made = command("optimize", "digits.rdb", *FAST, "--exclude", "stage1.*", "--sensitivity", "list.json")
    assert made.code == 0, made.stderr
    excluded = [one["node"] for one in made.json["fallbacks"] if one["reason"] == "excluded"]
    assert excluded
    assert all(name.startswith("stage1.") for name in excluded)
    written = json.loads(Path("list.json").read_text())
    assert written["schema"] == "relu-deploy/sensitivity/1"
    errors = [one["relative_error"] for one in written["segments"]]
    assert len(errors) > 2
    assert errors == sorted(errors, reverse=True)
    # The order of the file is the one in which segments return to float32, whatever the numbers are.
    written["segments"].reverse()
    Path("list.json").write_text(json.dumps(written))
    made = command("optimize", "digits.rdb", *FAST, "--sensitivity", "list.json", "-o", "other.rdb")
    assert [one["segment"] for one in made.json["costs"]] == [one["segment"] for one in written["segments"]]
    for change in ({"precision": "fp8"}, {"model_sha256": "0"}, {"segments": [{}]}):
        Path("bad.json").write_text(json.dumps({**written, **change}))
        made = command("optimize", "digits.rdb", *FAST, "--sensitivity", "bad.json", "-o", "third.rdb")
        assert made.code == 2
        assert "bad.json" in made.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--exclude", "stage1.1.conv/Conv"), "no node has such a name"),
        (("--max-confidence-shift", "2"), "must be between 0 and 1"),
        (("--score-threshold", "-1"), "must be between 0 and 1"),
        (("--precision", "fp32", "--exclude", "*"), "--precision fp32 keeps all"),
        (("--precision", "auto", "--sensitivity", "s.json"), "name one"),
    ],
)
def test_options_that_make_no_sense_are_exit_2(command, digits_bundle, arguments, says):
    made = command("optimize", digits_bundle.path, "-o", "out.rdb", *FAST, *arguments)
    assert made.code == 2
    assert says in made.stderr
    assert "\nhint: " in made.stderr
    assert not Path("out.rdb").exists()
    assert not Path("s.json").exists()


def test_a_pattern_is_matched_with_what_the_user_sees_and_a_misspelled_one_gets_near_names():
    from small import residual

    from relu_deploy.graph.rewriting.simplify import fold_batch_norms

    model = residual()
    names = [str(node.name) for node in model.graph]
    assert set(excluded_nodes(model, fold_batch_norms(model), ["*"])) == {str(n.name) for n in fold_batch_norms(model).graph}
    assert excluded_nodes(model, model, [names[0]]) == {names[0]: "excluded"}
    with pytest.raises(UsageError, match="no node") as raised:
        check_patterns([model], [names[0], f"{names[0]}x"])
    assert names[0] in raised.value.hint


def test_a_limit_on_confidence_needs_outputs_that_have_one():
    from relu_deploy.optimization.options import OptimizeOptions
    from relu_deploy.optimization.run import _check_confidence

    without = evaluator_of(lambda feeds: {"a": np.ones((len(feeds["x"]), 2, 3), np.float32)})
    with pytest.raises(UsageError, match="have no confidence"):
        _check_confidence(without, OptimizeOptions(max_confidence_shift=0.1))
    unsure = evaluator_of(detector(0.1), task="detection", postprocess={"decode": "boxes", "score_threshold": 0.05})
    with pytest.raises(InputError, match=r"nothing with a score of 0\.5"):
        _check_confidence(unsure, OptimizeOptions(max_confidence_shift=0.1))
