"""Prediction from a picture or text to labels, boxes or a mask: the manifest's pre- and post-processing around `Model.infer`.

    POST /v2/models/M/predict?top=5             classification: the likeliest labels, of a picture or a text
    POST /v2/models/M/predict?threshold=0.3     detection: boxes in the picture's own pixels
    POST /v2/models/M/predict?mask=png          segmentation: the mask alone, as image/png; without it JSON that holds it

The body is the picture's file, a form with one file, or the text itself (text/plain). Decoding and resizing happen in threads;
the model runs the result in one batch with other requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import to_input
from relu_deploy.data.images import ImagePlacement, place, plane_of
from relu_deploy.data.texts import takes_texts
from relu_deploy.prediction.masks import background_of, classes_found, mask_json, png_of
from relu_deploy.serving.bounded_executor import BoundedExecutor
from relu_deploy.serving.errors import InternalError, InvalidArgument, TooLarge
from relu_deploy.serving.models import VERSION, Model, Models
from relu_deploy.serving.prediction.images import PictureLimits, decode_picture, file_of
from relu_deploy.serving.prediction.masks import mask_of
from relu_deploy.serving.prediction.texts import PreparedText, prepare_text, unsupported_text_reason
from relu_deploy.serving.protocol.http import Request, Response, json_response
from relu_deploy.serving.protocol.tensors import InferRequest
from relu_deploy.serving.telemetry.statistics import Timings
from relu_deploy.serving.transport.admission import AdmissionControl
from relu_deploy.tasks.detection import postprocess
from relu_deploy.tensors import Array, Feeds

__all__ = [
    "Predict",
    "PredictOptions",
    "Preparation",
    "PreparedPicture",
    "min_score",
    "prepare",
    "probabilities_of",
    "refuse_unsupported",
    "unsupported_reason",
]

#: labels of a classification without ?top
TOP = 5
#: score of a box when neither ?threshold nor the manifest gives one
SCORE = 0.05
#: where the mask of a segmentation goes: into the JSON, alone as the answer, or left out
MASKS = ("json", "png", "none")
TASKS = ("classification", "detection", "segmentation")
#: most pixels of a picture for a model that takes any size: its activations are many times larger
MAX_FREE_PIXELS = 4_000_000


@dataclass(frozen=True)
class PredictOptions:
    """The options in a request's query.

    Attributes:
        top: Labels of a classification.
        threshold: Score of a box, None for the manifest's own.
        mask: One of MASKS, None when the query has none.
    """

    top: int = TOP
    threshold: float | None = None
    mask: str | None = None

    @classmethod
    def parse(cls, query: str) -> PredictOptions:
        """Return the options in `query`. Raises InvalidArgument for an unknown one or one out of range."""
        found: dict[str, Any] = {}
        for name, text in parse_qsl(query, keep_blank_values=True):
            try:
                if name == "top":
                    found[name] = int(text)
                    fits = found[name] >= 1
                elif name == "threshold":
                    found[name] = float(text)
                    fits = 0 <= found[name] <= 1
                elif name == "mask":
                    found[name] = text
                    fits = text in MASKS
                else:
                    raise InvalidArgument(f"there is no option {name[:40]!r}", "the options are top, threshold and mask")
            except ValueError:
                fits = False
            if not fits:
                expected = {
                    "top": "a whole number from 1",
                    "threshold": "a number from 0 to 1",
                    "mask": f"one of {', '.join(MASKS)}",
                }[name]
                raise InvalidArgument(f"{name} is {text[:40]!r}, and must be {expected}")
        return cls(**found)


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as the model takes it.

    Attributes:
        feeds: Of as many rows as a fixed batch has, else one.
        placement: How the picture was placed in the input.
        format: Of the file.
        seconds: That the preparation took.
    """

    feeds: Feeds
    placement: ImagePlacement
    format: str
    seconds: float

    @property
    def description(self) -> dict[str, Any]:
        """Return the answer's fields about the picture."""
        width, height = self.placement.picture
        return {"picture": {"width": width, "height": height, "format": self.format, "seen": self.placement.seen}}


class Preparation:
    """Prepares the pictures and texts of requests in threads."""

    def __init__(self, models: Models, executor: BoundedExecutor, limits: PictureLimits) -> None:
        self._models, self._executor, self._limits = models, executor, limits

    async def run(self, request: Request, body: bytes) -> tuple[Model, PreparedPicture | PreparedText]:
        """Return the picture or text in `body` as the request's model takes it, and that model as it is by then."""
        context, content_type = request.context, request.headers.get("content-type", "")
        while True:
            model = self._models.get(context.route.model, context.route.version)
            on_disconnect = context.cancel_on_disconnect
            prepared = await self._executor.run(on_disconnect, prepare, model.bundle, body, content_type, self._limits)
            # The model may have been replaced meanwhile by one with another input.
            if self._models.get(context.route.model, context.route.version) is model:
                return model, prepared


class Predict:
    """The handler of predict."""

    def __init__(self, models: Models, admission: AdmissionControl, preparation: Preparation) -> None:
        self._models, self._admission, self._preparation = models, admission, preparation

    async def __call__(self, request: Request) -> Response:
        context, options = request.context, PredictOptions.parse(request.query)
        name = context.route.model
        refuse_unsupported(self._models.get(name, context.route.version).bundle)
        body = await request.body()
        self._admission.admit(context)
        model, prepared = await self._preparation.run(request, body)
        smallest = min_score(model.bundle.manifest)
        if options.threshold is not None and options.threshold < smallest:
            raise InvalidArgument(f"threshold is {options.threshold:g}, and model {name!r} finds nothing below {smallest:g}")
        if options.mask is not None and model.bundle.manifest["task"] != "segmentation":
            raise InvalidArgument(
                f"mask is {options.mask!r}, and model {name!r} makes none: its task is {model.bundle.manifest['task']}"
            )
        outputs = await model.infer(InferRequest(prepared.feeds), context)
        # Suppressing overlapping boxes, or packing a mask, may take longer than the model.
        return await asyncio.to_thread(_response, model, prepared, outputs, context.timings or Timings(0, 0, 0, 0), options)


def unsupported_reason(bundle: Bundle) -> tuple[str, str] | None:
    """Return why predict does not support `bundle`'s model, and a hint; None when it does."""
    if takes_texts(bundle.manifest):
        return unsupported_text_reason(bundle)
    name, manifest = bundle.name, bundle.manifest
    steps = manifest.get("preprocess")
    if len(bundle.inputs) != 1:
        return f"model {name!r} has {len(bundle.inputs)} inputs, and a picture feeds one", "use /infer"
    if not steps:
        return f"the manifest of {name!r} has no 'preprocess': how pictures become its input", "export it with --mean and --std"
    channels, _, _ = plane_of(bundle.inputs[0], steps)
    if channels not in (1, 3):
        return f"the input of {name!r}, {bundle.inputs[0]}, is not a picture of 1 or 3 channels", "use /infer"
    if manifest.get("task") not in TASKS:
        return (
            f"the manifest of {name!r} has no 'task': what its outputs mean",
            f"set it to one of {', '.join(TASKS)} in manifest.json, or use /infer",
        )
    if manifest["task"] == "detection" and (manifest.get("postprocess") or {}).get("decode") not in ("boxes", "nms"):
        return f"the outputs of {name!r} are raw head maps", "export it with --decode boxes"
    return None


def refuse_unsupported(bundle: Bundle) -> None:
    """Raise InvalidArgument with the reason if predict does not support `bundle`'s model."""
    if (reason := unsupported_reason(bundle)) is not None:
        raise InvalidArgument(*reason)


def prepare(bundle: Bundle, body: bytes, content_type: str, limits: PictureLimits) -> PreparedPicture | PreparedText:
    """Return the picture or text in `body` as `bundle`'s model takes it.

    Raises:
        InvalidArgument: If it is malformed or damaged.
        TooLarge: If it exceeds a limit.
    """
    if takes_texts(bundle.manifest):
        return prepare_text(bundle, body, content_type)
    return _prepare_picture(bundle, body, content_type, limits)


def _prepare_picture(bundle: Bundle, body: bytes, content_type: str, limits: PictureLimits) -> PreparedPicture:
    started = time.perf_counter()
    spec, steps = bundle.inputs[0], bundle.manifest["preprocess"]
    channels, *sides = plane_of(spec, steps)
    picture, name = decode_picture(file_of(body, content_type), int(channels), limits)
    if (
        "crop" not in steps
        and not all(isinstance(side, int) for side in sides)
        and picture.width * picture.height > MAX_FREE_PIXELS
    ):
        raise TooLarge(
            f"a picture of {picture.width}x{picture.height} pixels exceeds the limit of {MAX_FREE_PIXELS} for {bundle.name!r}, "
            "which takes any size",
            "make it smaller",
        )
    pixels, placement = place(picture, spec, steps, limits.max_pixels)
    array = to_input(bundle, pixels)
    # A fixed batch is filled with the same picture; only the first row is answered.
    rows = spec.batch if isinstance(spec.batch, int) else 1
    return PreparedPicture({spec.name: np.repeat(array, rows, 0)}, placement, name, time.perf_counter() - started)


def min_score(manifest: Mapping[str, Any]) -> float:
    """Return the score threshold in a detector's manifest; 0 for other models."""
    if manifest.get("task") != "detection":
        return 0.0
    return float(manifest["postprocess"].get("score_threshold", SCORE))


def _response(
    model: Model,
    prepared: PreparedPicture | PreparedText,
    outputs: Mapping[str, Array],
    timings: Timings,
    options: PredictOptions,
) -> Response:
    """Return the response: JSON, or the mask alone where the query has ?mask=png."""
    if options.mask == "png" and isinstance(prepared, PreparedPicture):
        mask = mask_of(outputs[model.outputs[0].name], prepared.placement)
        return Response([png_of(mask, background_of(model.bundle.manifest))], content_type="image/png")
    return json_response(_answer(model, prepared, outputs, timings, options))


def _answer(
    model: Model,
    prepared: PreparedPicture | PreparedText,
    outputs: Mapping[str, Array],
    timings: Timings,
    options: PredictOptions,
) -> dict[str, Any]:
    """Return the answer: the predictions, the picture and its part in the model's input or the text's size, and milliseconds."""
    manifest = model.bundle.manifest
    answer: dict[str, Any] = {"model_name": model.name, "model_version": VERSION, "task": manifest["task"]}
    if manifest["task"] == "classification":
        answer["predictions"] = classes_of(outputs[model.outputs[0].name], manifest.get("labels"), options.top)
    elif isinstance(prepared, PreparedPicture) and manifest["task"] == "segmentation":
        mask, background = mask_of(outputs[model.outputs[0].name], prepared.placement), background_of(manifest)
        answer["classes"] = classes_found(mask, manifest.get("labels"), background)
        if options.mask != "none":
            answer["mask"] = mask_json(png_of(mask, background), mask)
    elif isinstance(prepared, PreparedPicture):
        answer["detections"] = boxes_of(outputs, manifest, prepared.placement, options.threshold)
    answer |= prepared.description
    answer["timing"] = {
        "decode_ms": round(prepared.seconds * 1e3, 3),
        "queue_ms": round(timings.queue * 1e3, 3),
        "compute_ms": round(timings.compute_infer * 1e3, 3),
    }
    return answer


def probabilities_of(logits: Array) -> Array:
    """Return the softmax of the first row of `logits`, (N, K) or with further dimensions of size 1: float64 (K,).

    Raises:
        InternalError: If the logits are not finite.
    """
    row = logits[0].astype(np.float64).ravel()
    if not np.isfinite(row).all():
        raise InternalError("the model's output for this input holds NaN or an infinity", "run relu-deploy verify on the model")
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def classes_of(logits: Array, labels: Sequence[str] | None, top: int) -> list[dict[str, Any]]:
    """Return the `top` most probable classes, in descending order; of equal ones the lower index first."""
    probabilities = probabilities_of(logits)
    best = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return [{"label": _label(labels, index), "index": index, "probability": float(probabilities[index])} for index in best]


def boxes_of(
    outputs: Mapping[str, Array], manifest: Mapping[str, Any], placement: ImagePlacement, threshold: float | None
) -> list[dict[str, Any]]:
    """Return the detections above the threshold, best first, `box` as left, top, right, bottom in the picture's pixels."""
    limits = {key: value for key, value in manifest["postprocess"].items() if key not in ("decode", "label_offset")}
    if manifest["postprocess"]["decode"] == "nms":
        first = outputs["image"] == 0
        found = {name: outputs[name][first] for name in ("boxes", "scores", "labels")}
        kept = found["scores"] > (threshold if threshold is not None else -1)
        found = {name: array[kept] for name, array in found.items()}
    else:
        limits["score_threshold"] = min_score(manifest) if threshold is None else threshold
        found = postprocess(outputs["boxes"][:1], outputs["scores"][:1], **limits)[0]
    boxes = placement.to_picture(found["boxes"])
    return [
        {
            "label": _label(manifest.get("labels"), int(index)),
            "index": int(index),
            "score": float(score),
            "box": [round(edge, 2) for edge in box],
        }
        for box, index, score in zip(boxes.tolist(), found["labels"], found["scores"], strict=True)
    ]


def _label(labels: Sequence[str] | None, index: int) -> str:
    return labels[index] if labels and index < len(labels) else str(index)
