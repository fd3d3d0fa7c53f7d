"""Measure the accuracy of a candidate: by labels where there are any, else by its agreement with the float32 model.

    labels, a classifier      top1                 share of rows that are classified correctly
    labels, a detector        AP                   COCO's, against the boxes that are true
    labels, a segmenter       mIoU                 mean IoU over the classes of pixels, against the masks that are true
    none, a classifier        top1_agreement       share of rows with the float32 model's class
    none, a detector          AP_agreement         COCO's AP, against the float32 model's confident detections
    none, a segmenter         mIoU_agreement       mean IoU, against the float32 model's masks
    none, classes             top1_agreement       the same, of a model whose only output is the class of each row
    none, other integers      agreement            share of equal elements, or of equal rows, the worst output's
    none, anything else       signal               1 - RMS(difference) / RMS(float32 answer), the worst output's

Where the graph selects what a signal or an agreement would compare (NonMaxSuppression, TopK and Gather), the signal is that of the
tensors that enter the selection; see `compared_tensors`.
Integers that are rounded numbers have a signal. Where there are outputs of both kinds, the floating-point ones are measured.
Without labels the float32 model scores 1 by definition, and a candidate loses points for every answer that is another one
although some of those answers were wrong to begin with: the limits are wider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import Dataset
from relu_deploy.errors import InputError
from relu_deploy.optimization.accuracy.compared_tensors import ComparedTensors, Run, answers_of, rows_that_fit
from relu_deploy.optimization.accuracy.confidence import SCORE_THRESHOLD, Confidence, ConfidenceMeter
from relu_deploy.tasks.metrics import Metric, score
from relu_deploy.tasks.segmentation import classes_of_pixels
from relu_deploy.tensors import Array
from relu_deploy.verification.judging.verdict import rms

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["MAX_DROP", "AccuracyEvaluator", "distance"]

#: how much of each metric a variant may lose by default
MAX_DROP = {
    "top1": 0.005,
    "AP": 0.005,
    "mIoU": 0.005,
    "top1_agreement": 0.05,
    "AP_agreement": 0.05,
    "mIoU_agreement": 0.05,
    "agreement": 0.05,
    "signal": 0.1,
}
#: certainty from which a detection of the float32 model counts as true, where there are no labels
SURE = SCORE_THRESHOLD


@dataclass(frozen=True)
class AccuracyEvaluator:
    """Scores candidates on `dataset`, `batch` rows at a time.

    before: the float32 model's score. meter: measures confidence in the same runs; its `before` is the float32 model's.
    compared: the tensors that candidates are compared on where there is no task's metric.
    """

    manifest: Mapping[str, Any]
    dataset: Dataset
    batch: int
    before: Metric
    answers: Mapping[str, Array]
    meter: ConfidenceMeter | None = None
    compared: ComparedTensors = field(default_factory=ComparedTensors)

    @classmethod
    def prepare(
        cls,
        bundle: Bundle,
        dataset: Dataset,
        run: Run,
        batch: int,
        score_threshold: float = SCORE_THRESHOLD,
        compared: ComparedTensors | None = None,
    ) -> AccuracyEvaluator:
        """Return the evaluator of `bundle`'s variants.

        Args:
            bundle: The float32 model's.
            dataset: The data.
            run: The float32 model, which `compared.expose` has returned.
            batch: Rows in one run.
            score_threshold: Score at which detections are cut.
            compared: What is known about the outputs.

        Raises:
            InputError: If the data are no rows at all, or the float32 model itself is not finite on them.
        """
        if not len(dataset):
            raise InputError("there are no data to measure accuracy on", "give some with --data")
        manifest, compared = dict(bundle.manifest), compared or ComparedTensors()
        plain = compared.outputs_of(run)
        meter = ConfidenceMeter(manifest, dataset, batch, score_threshold)
        recording = meter.recording(plain)
        labeled = score(manifest, recording, dataset, batch)
        if labeled is not None and labeled.samples:
            return cls(manifest, dataset, batch, labeled, {}, meter.with_reference(recording))
        recording = meter.recording(plain)
        if (
            manifest.get("task") == "segmentation"
            and (labeled_by_model := _reference_masks(bundle, recording, dataset, batch)) is not None
        ):
            before = Metric("mIoU_agreement", 1.0, len(dataset))
            return cls(manifest, labeled_by_model, batch, before, {}, meter.with_reference(recording))
        if not compared.has_numbers:
            return cls._of_numbers(bundle, dataset, run, batch, compared)
        recording = meter.recording(plain)
        answers = answers_of(recording, dataset, batch)
        if not _are_finite(answers):
            raise InputError(f"{bundle.name} itself gives NaN or infinities on these data", "relu-deploy verify finds the node")
        kind = _kind(manifest, answers, compared.rounded, len(dataset))
        before = Metric(kind, 1.0, len(dataset))
        evaluator = cls(manifest, dataset, batch, before, answers, meter.with_reference(recording), compared)
        if kind == "top1_agreement" and _is_list(bundle, compared, answers, len(dataset)):
            evaluator = replace(evaluator, before=replace(before, name=_kind_of_list(answers)), meter=None)
        if kind == "AP_agreement" and not len(evaluator._true_boxes()["labels"]):
            evaluator = replace(evaluator, before=replace(before, name="signal"))
        return evaluator._before_selection(run)

    @classmethod
    def _of_numbers(cls, bundle: Bundle, dataset: Dataset, run: Run, batch: int, compared: ComparedTensors) -> AccuracyEvaluator:
        """Return the evaluator that measures what texts, maps and sequences are made of. Arguments: as for `prepare`."""
        names = compared.entering({})
        rows = rows_that_fit(run, dataset, batch, names)
        answers = answers_of(run, rows, batch, names)
        if not _are_finite(answers):
            raise InputError(f"{bundle.name} itself gives NaN or infinities on these data", "relu-deploy verify finds the node")
        before = Metric(_kind({}, answers, (), len(rows)), 1.0, len(rows))
        return cls(dict(bundle.manifest), rows, batch, before, answers, None, replace(compared, names=names))

    def _before_selection(self, run: Run) -> AccuracyEvaluator:
        """Return the evaluator that measures what enters the selection, where the outputs that it compares are selected.

        run: The float32 model.
        """
        if not self.compared.exposed or not self.compared.selects(self.before.name, self.answers):
            return self
        names = self.compared.entering(self.answers)
        rows = rows_that_fit(run, self.dataset, self.batch, names)
        answers = answers_of(run, rows, self.batch, names)
        # A score of minus infinity leaves a row out, and has no difference.
        if not _are_finite(answers):
            return self
        compared = replace(self.compared, names=names)
        return replace(
            self, dataset=rows, before=Metric("signal", 1.0, len(rows)), answers=answers, meter=None, compared=compared
        )

    @property
    def max_drop(self) -> float:
        return MAX_DROP[self.before.name]

    @property
    def selected_by(self) -> tuple[str, ...]:
        """The operators that select the outputs which would be compared, () where none does."""
        if not self.compared.has_numbers:
            return self.compared.selection.operators
        metric = "signal" if self.compared.names else self.before.name
        is_selected = bool(self.compared.names) or self.compared.selects(metric, self.answers)
        return self.compared.selection.operators if is_selected else ()

    def exposed(self, model: ir.Model) -> ir.Model:
        """Return `model` as it has to be run to be measured: with the compared tensors among its outputs."""
        return self.compared.expose(model) if self.compared.names else model

    def answers_on(self, run: Run, dataset: Dataset) -> dict[str, Array]:
        """Return the compared tensors of the candidate behind `run` on `dataset`."""
        return answers_of(run, dataset, self.batch, self.compared.names)

    def distance(self, answers: Mapping[str, Array], true: Mapping[str, Array]) -> float:
        """Return the distance of a candidate's answers from those of the float32 model, as `distance` does."""
        return distance(answers, true, self.compared.rounded)

    def measure(self, run: Run) -> tuple[Metric, Confidence | None]:
        """Return the score and the confidence of the candidate behind `run`; None for outputs without confidence."""
        if self.meter is None or self.meter.before is None:
            return self.score(run), None
        recording = self.meter.recording(run)
        return self.score(recording), recording.confidence()

    def shift(self, confidence: Confidence | None) -> float | None:
        """Return the shift of the mean confidence from the float32 model's, None where there is none."""
        before = self.meter.before if self.meter else None
        return None if before is None or confidence is None else confidence.mean - before.mean

    def score(self, run: Run) -> Metric:
        """Return the score of the candidate behind `run`, of the metric that `before` is of."""
        name = self.before.name
        if not self.answers:
            metric = score(self.manifest, run, self.dataset, self.batch)
            assert metric is not None  # it was not for the float32 model on the same data
            return replace(metric, name=name)
        answers = self.answers_on(run, self.dataset)
        value = {
            "top1_agreement": self._same_class,
            "AP_agreement": self._same_boxes,
            "agreement": self._signal,
            "signal": self._signal,
        }[name](answers)
        return Metric(name, value, len(self.dataset))

    def _same_class(self, answers: Mapping[str, Array]) -> float:
        (one, other) = (next(iter(them.values())) for them in (answers, self.answers))
        if other.dtype.kind != "f":
            return _agreement(one, other)
        return float(np.mean(one.reshape(len(one), -1).argmax(1) == other.reshape(len(other), -1).argmax(1)))

    def _signal(self, answers: Mapping[str, Array]) -> float:
        return max(0.0, 1 - self.distance(answers, self.answers))

    def _same_boxes(self, answers: Mapping[str, Array]) -> float:
        from relu_deploy.tasks.metrics import coco_ap

        return coco_ap(self._detections(answers), self._true_boxes(), len(self.dataset))["AP"]

    def _detections(self, answers: Mapping[str, Array]) -> list[dict[str, Array]]:
        from relu_deploy.tasks.detection import postprocess

        fields = self.manifest.get("postprocess") or {}
        limits = {key: value for key, value in fields.items() if key not in ("decode", "label_offset")}
        return postprocess(answers["boxes"], answers["scores"], **limits)

    def _true_boxes(self) -> dict[str, Array]:
        found = [(row, one) for row, one in enumerate(self._detections(self.answers))]
        sure = [(row, one, one["scores"] >= SURE) for row, one in found]
        return {
            "boxes": np.concatenate([one["boxes"][mine] for _, one, mine in sure]),
            "labels": np.concatenate([one["labels"][mine] for _, one, mine in sure]),
            "image": np.concatenate([np.full(int(mine.sum()), row) for row, _, mine in sure]),
        }


def _reference_masks(bundle: Bundle, run: Run, dataset: Dataset, batch: int) -> Dataset | None:
    """Return `dataset` with the masks that the model behind `run` finds as the true ones, None where it gives no masks.

    Masks are kept, and not what they are made of: logits of every pixel are some hundred times as large.
    """
    masks = []
    for start in range(0, len(dataset), batch):
        (output, *_) = answers_of(run, dataset.picked(np.arange(start, min(start + batch, len(dataset)))), batch).values()
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise InputError(f"{bundle.name} itself gives NaN or infinities on these data", "relu-deploy verify finds the node")
        try:
            masks.append(classes_of_pixels(output))
        except ValueError:
            return None
    return replace(dataset, targets={"mask": np.concatenate(masks).astype(np.int16)})


def _kind(manifest: Mapping[str, Any], answers: Mapping[str, Array], rounded: Collection[str], rows: int) -> str:
    decoded = (manifest.get("postprocess") or {}).get("decode") == "boxes"
    if manifest.get("task") == "detection":
        return "AP_agreement" if decoded and {"boxes", "scores"} <= set(answers) else "signal"
    only = next(iter(answers.values()))
    if not any(name in rounded or array.dtype.kind == "f" for name, array in answers.items()):
        return "top1_agreement" if len(answers) == 1 and only.shape in ((rows,), (rows, 1)) else "agreement"
    # What is not declared but has one row of at least two numbers for each input is a classifier's answer.
    looks = len(answers) == 1 and only.dtype.kind == "f" and only.reshape(len(only), -1).shape[1] > 1 and only.ndim == 2
    return "top1_agreement" if looks else "signal"


def _are_finite(answers: Mapping[str, Array]) -> bool:
    return all(np.isfinite(array).all() for array in answers.values() if array.dtype.kind == "f")


def _is_list(bundle: Bundle, compared: ComparedTensors, answers: Mapping[str, Array], rows: int) -> bool:
    """Return whether the only output is a list of what the graph selects, and no row of it belongs to a row of the inputs.

    rows: Of the inputs.
    """
    if bundle.manifest.get("task") == "classification" or compared.selection.outputs.isdisjoint(answers):
        return False
    # Exporters may give the axis of the list the name of the batch.
    return all(spec.batch_axis is None or len(answers[spec.name]) != rows for spec in bundle.outputs if spec.name in answers)


def _kind_of_list(answers: Mapping[str, Array]) -> str:
    return "signal" if any(array.dtype.kind == "f" for array in answers.values()) else "agreement"


def _agreement(answer: Array, true: Array) -> float:
    """Return the share of equal elements; of a table, that of equal rows in any order where it is larger."""
    same = float(np.mean(answer == true)) if answer.shape == true.shape and true.size else float(answer.shape == true.shape)
    if true.ndim != 2 or answer.shape[1:] != true.shape[1:]:
        return same
    ours, theirs = (Counter(map(bytes, np.ascontiguousarray(each))) for each in (answer, true))
    return max(same, sum((ours & theirs).values()) / max(len(answer), len(true), 1))


def distance(answers: Mapping[str, Array], true: Mapping[str, Array], rounded: Collection[str] = ()) -> float:
    """Return the worst output's RMS difference from the float32 answers, as a share of their RMS; infinite when broken.

    Of answers that are all integers and no numbers, it is the share that disagrees.

    Args:
        answers: Outputs by name.
        true: The float32 answers.
        rounded: Outputs of integers that are measured like floating-point numbers.
    """
    shares = []
    for name, array in true.items():
        if array.dtype.kind != "f" and name not in rounded:
            continue
        expected, got = array.astype(np.float64), answers[name].astype(np.float64)
        if got.shape != expected.shape or not np.isfinite(got).all():
            return float("inf")
        shares.append(rms(got - expected) / max(rms(expected), 1e-30))
    if not shares:
        return 1 - min((_agreement(answers[name], array) for name, array in true.items()), default=1.0)
    return max(shares)
