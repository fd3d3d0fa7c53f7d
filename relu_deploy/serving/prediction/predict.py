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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.data.texts import takes_texts
from relu_deploy.prediction.masks import background_of, classes_found, mask_json, mask_of, png_of
from relu_deploy.prediction.outputs import boxes_of, classes_of, min_score
from relu_deploy.prediction.preparation import prepare_picture, unsupported_reason
from relu_deploy.preprocessing.placement import ImagePlacement
from relu_deploy.serving.bounded_executor import BoundedExecutor
from relu_deploy.serving.errors import InvalidArgument
from relu_deploy.serving.models import VERSION, Model, Models
from relu_deploy.serving.prediction.images import PictureLimits, file_of
from relu_deploy.serving.prediction.texts import PreparedText, prepare_text
from relu_deploy.serving.protocol.http import Request, Response, json_response
from relu_deploy.serving.protocol.tensors import InferRequest
from relu_deploy.serving.telemetry.statistics import Timings
from relu_deploy.serving.transport.admission import AdmissionControl
from relu_deploy.tensors import Array, Feeds

__all__ = ["Predict", "PredictOptions", "Preparation", "PreparedPicture", "prepare", "refuse_unsupported"]

#: labels of a classification without ?top
TOP = 5
#: where the mask of a segmentation goes: into the JSON, alone as the answer, or left out
MASKS = ("json", "png", "none")


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


def refuse_unsupported(bundle: Bundle) -> None:
    """Raise InvalidArgument with the reason if predict does not support `bundle`'s model."""
    if (reason := unsupported_reason(bundle)) is not None:
        raise InvalidArgument(*reason)


def prepare(bundle: Bundle, body: bytes, content_type: str, limits: PictureLimits) -> PreparedPicture | PreparedText:
    """Return the picture or text in `body` as `bundle`'s model takes it.

    Raises:
        InvalidArgument: If the body or its content type is malformed.
        InputError: If the picture or text is damaged, does not fit the model, or exceeds a limit.
    """
    if takes_texts(bundle.manifest):
        return prepare_text(bundle, body, content_type)
    started = time.perf_counter()
    prepared = prepare_picture(bundle, file_of(body, content_type), limits)
    assert prepared.placement is not None
    # A fixed batch is filled with the same picture; only the first row is answered.
    spec = bundle.inputs[0]
    rows = spec.batch if isinstance(spec.batch, int) else 1
    feeds = {name: np.repeat(array, rows, 0) for name, array in prepared.feeds.items()}
    return PreparedPicture(feeds, prepared.placement, prepared.format, time.perf_counter() - started)


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
