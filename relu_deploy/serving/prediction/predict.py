"""A picture or a text in, labels, boxes or a mask out: the pre- and post-processing of the bundle's manifest, around `Model.infer`.

    POST /v2/models/M/predict?top=5             classification: the likeliest labels, of a picture or a text
    POST /v2/models/M/predict?threshold=0.3     detection: boxes in the picture's own pixels
    POST /v2/models/M/predict?mask=png          segmentation: the mask alone, as image/png; without it JSON that holds it

The body is the picture's file, or a form with one file, or the text itself (text/plain). Decoding and resizing happen in threads; the model runs the result
in one batch with whatever else is asked of it.
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
from relu_deploy.serving.bounded_executor import BoundedExecutor
from relu_deploy.serving.errors import InternalError, InvalidArgument, TooLarge
from relu_deploy.serving.models import VERSION, Model, Models
from relu_deploy.serving.prediction.images import PictureLimits, decode_picture, file_of
from relu_deploy.serving.prediction.masks import background_of, classes_found, mask_of, png_of, told_of_mask
from relu_deploy.serving.prediction.texts import PreparedText, lacking_text, prepare_text
from relu_deploy.serving.protocol.http import Request, Response
from relu_deploy.serving.protocol.json_codec import InferRequest, dump
from relu_deploy.serving.telemetry.statistics import Timings
from relu_deploy.tasks.detection import postprocess
from relu_deploy.tensors import Array, Feeds

__all__ = ["Predict", "PredictOptions", "Prepared", "prepare", "prepared_by", "probabilities_of", "unsupported_reason"]

#: labels of a classification when ?top does not say
TOP = 5
#: score of a box when neither ?threshold nor the manifest says
SCORE = 0.05
#: where the mask of a segmentation goes: into the JSON, alone as the answer, or nowhere
MASKS = ("json", "png", "none")
TASKS = ("classification", "detection", "segmentation")
#: a picture above this many pixels is not fed to a model that takes any size: its activations are many times larger
FREE_PIXELS = 4_000_000


@dataclass(frozen=True)
class PredictOptions:
    """What the query asks for. threshold: None for the manifest's own. mask: one of MASKS, None when nothing is said."""

    top: int = TOP
    threshold: float | None = None
    mask: str | None = None

    @classmethod
    def of(cls, query: str) -> PredictOptions:
        """Return the wishes in `query`. Raises Invalid for an unknown one or one out of range."""
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
                    raise InvalidArgument(f"there is no option {name[:40]!r}", "there are top, threshold and mask")
            except ValueError:
                fits = False
            if not fits:
                wanted = {
                    "top": "a whole number from 1",
                    "threshold": "a number from 0 to 1",
                    "mask": f"one of {', '.join(MASKS)}",
                }[name]
                raise InvalidArgument(f"{name} is {text[:40]!r}, and must be {wanted}")
        return cls(**found)


@dataclass(frozen=True)
class Prepared:
    """A picture as the model takes it. feeds: of as many rows as a fixed batch has, else one. seconds: it took."""

    feeds: Feeds
    placement: ImagePlacement
    format: str
    seconds: float

    @property
    def told(self) -> dict[str, Any]:
        """Return what the answer says of it."""
        width, height = self.placement.picture
        return {"picture": {"width": width, "height": height, "format": self.format, "seen": self.placement.seen}}


class Predict:
    """Answers `POST /v2/models/M/predict`."""

    def __init__(self, models: Models, aside: BoundedExecutor, limits: PictureLimits) -> None:
        self._models, self._aside, self._limits = models, aside, limits

    async def __call__(self, ask: Request) -> Response | None:
        match (ask.method, *ask.parts):
            case ("POST", "v2", "models", name, "predict"):
                return await self._predict(ask, name)
            case ("POST", "v2", "models", name, "versions", version, "predict"):
                return await self._predict(ask, name, version)
        return None

    async def _predict(self, ask: Request, name: str, version: str = "") -> Response:
        wishes = PredictOptions.of(ask.query)
        refuse_lacking(self._models.get(name, version).bundle)
        body = await ask.body()
        model, prepared = await prepared_by(self._models, self._aside, self._limits, ask, body, name, version)
        least = least_score(model.bundle.manifest)
        if wishes.threshold is not None and wishes.threshold < least:
            raise InvalidArgument(f"threshold is {wishes.threshold:g}, and model {name!r} finds nothing below {least:g}")
        if wishes.mask is not None and model.bundle.manifest["task"] != "segmentation":
            raise InvalidArgument(
                f"mask is {wishes.mask!r}, and model {name!r} makes none: its task is {model.bundle.manifest['task']}"
            )
        outputs, timings = await model.timed(InferRequest(prepared.feeds), ask.on_disconnect)
        # Suppressing overlapping boxes, or packing a mask, may take longer than the model.
        return await asyncio.to_thread(answer_of, model, prepared, outputs, timings, wishes)


async def prepared_by(
    models: Models, aside: BoundedExecutor, limits: PictureLimits, ask: Request, body: bytes, name: str, version: str
) -> tuple[Model, Prepared | PreparedText]:
    """Return the picture or text in `body` as the model called `name` takes it, and that model as it is by then."""
    kind = ask.headers.get("content-type", "")
    while True:
        model = models.get(name, version)
        model.check_room()
        prepared = await aside.run(ask.on_disconnect, prepare, model.bundle, body, kind, limits)
        # Decoding takes its time: by now the model may be a newer one, with another input.
        if models.get(name, version) is model:
            return model, prepared


def unsupported_reason(bundle: Bundle) -> tuple[str, str] | None:
    """Return why `bundle`'s model takes neither pictures nor texts and what to do about it, None when it takes one of them."""
    if takes_texts(bundle.manifest):
        return lacking_text(bundle)
    named, manifest = bundle.name, bundle.manifest
    steps = manifest.get("preprocess")
    if len(bundle.inputs) != 1:
        return f"model {named!r} has {len(bundle.inputs)} inputs, and a picture feeds one", "use /infer"
    if not steps:
        return f"the manifest of {named!r} has no 'preprocess': how pictures become its input", "export it with --mean and --std"
    channels, _, _ = plane_of(bundle.inputs[0], steps)
    if channels not in (1, 3):
        return f"the input of {named!r}, {bundle.inputs[0]}, is no picture of 1 or 3 channels", "use /infer"
    if manifest.get("task") not in TASKS:
        return (
            f"the manifest of {named!r} has no 'task': what its outputs mean",
            f"set it to one of {', '.join(TASKS)} in manifest.json, or use /infer",
        )
    if manifest["task"] == "detection" and (manifest.get("postprocess") or {}).get("decode") not in ("boxes", "nms"):
        return f"the outputs of {named!r} are raw head maps", "export it with --decode boxes"
    return None


def refuse_lacking(bundle: Bundle) -> None:
    """Raise Invalid with what is missing when `bundle`'s model takes neither pictures nor texts."""
    if (missing := unsupported_reason(bundle)) is not None:
        raise InvalidArgument(*missing)


def prepare(bundle: Bundle, body: bytes, content_type: str, limits: PictureLimits) -> Prepared | PreparedText:
    """Return what `body` holds as `bundle`'s model takes it. Raises Invalid or TooLarge that say what is wrong with it."""
    if takes_texts(bundle.manifest):
        return prepare_text(bundle, body, content_type)
    return _prepare_picture(bundle, body, content_type, limits)


def _prepare_picture(bundle: Bundle, body: bytes, content_type: str, limits: PictureLimits) -> Prepared:
    started = time.perf_counter()
    spec, steps = bundle.inputs[0], bundle.manifest["preprocess"]
    channels, *sides = plane_of(spec, steps)
    picture, name = decode_picture(file_of(body, content_type), int(channels), limits)
    if "crop" not in steps and not all(isinstance(side, int) for side in sides) and picture.width * picture.height > FREE_PIXELS:
        raise TooLarge(
            f"a picture of {picture.width}x{picture.height} pixels is more than the {FREE_PIXELS} that {bundle.name!r}, "
            "which takes any size, is fed",
            "make it smaller",
        )
    pixels, placement = place(picture, spec, steps, limits.max_pixels)
    array = to_input(bundle, pixels)
    # A fixed batch is filled up with the same picture; the first row is the answer.
    rows = spec.batch if isinstance(spec.batch, int) else 1
    return Prepared({spec.name: np.repeat(array, rows, 0)}, placement, name, time.perf_counter() - started)


def least_score(manifest: Mapping[str, Any]) -> float:
    """Return the score that a detector's boxes have to be above, as its manifest says; 0 for other models."""
    if manifest.get("task") != "detection":
        return 0.0
    return float(manifest["postprocess"].get("score_threshold", SCORE))


def answer_of(
    model: Model, prepared: Prepared | PreparedText, outputs: Mapping[str, Array], timings: Timings, wishes: PredictOptions
) -> Response:
    """Return the answer as it goes out: JSON, or the picture of a mask where only that is wanted."""
    if wishes.mask == "png" and isinstance(prepared, Prepared):
        mask = mask_of(outputs[model.outputs[0].name], prepared.placement)
        return Response([png_of(mask, background_of(model.bundle.manifest))], content_type="image/png")
    return Response([dump(told_of(model, prepared, outputs, timings, wishes))])


def told_of(
    model: Model, prepared: Prepared | PreparedText, outputs: Mapping[str, Array], timings: Timings, wishes: PredictOptions
) -> dict[str, Any]:
    """Return the answer: what was found, the picture and its part that the model saw or the text's size, and milliseconds."""
    manifest = model.bundle.manifest
    told: dict[str, Any] = {"model_name": model.name, "model_version": VERSION, "task": manifest["task"]}
    if manifest["task"] == "classification":
        told["predictions"] = classes_of(outputs[model.outputs[0].name], manifest.get("labels"), wishes.top)
    elif isinstance(prepared, Prepared) and manifest["task"] == "segmentation":
        mask, background = mask_of(outputs[model.outputs[0].name], prepared.placement), background_of(manifest)
        told["classes"] = classes_found(mask, manifest.get("labels"), background)
        if wishes.mask != "none":
            told["mask"] = told_of_mask(png_of(mask, background), mask)
    elif isinstance(prepared, Prepared):
        told["detections"] = boxes_of(outputs, manifest, prepared.placement, wishes.threshold)
    told |= prepared.told
    told["timing"] = {
        "decode_ms": round(prepared.seconds * 1e3, 3),
        "queue_ms": round(timings.queue * 1e3, 3),
        "compute_ms": round(timings.compute_infer * 1e3, 3),
    }
    return told


def probabilities_of(logits: Array) -> Array:
    """Return softmax of the first row of `logits`, (N, K) or with further dimensions of size 1: float64 (K,).

    Raises Failed when they are not finite: such a model has no answer.
    """
    row = logits[0].astype(np.float64).ravel()
    if not np.isfinite(row).all():
        raise InternalError("the model's output for this input holds NaN or an infinity", "relu-deploy verify finds out why")
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def classes_of(logits: Array, labels: Sequence[str] | None, top: int) -> list[dict[str, Any]]:
    """Return the `top` likeliest classes, likeliest first; of equal ones the lower first."""
    probabilities = probabilities_of(logits)
    best = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return [{"label": _label(labels, index), "index": index, "probability": float(probabilities[index])} for index in best]


def boxes_of(
    outputs: Mapping[str, Array], manifest: Mapping[str, Any], placement: ImagePlacement, threshold: float | None
) -> list[dict[str, Any]]:
    """Return the detections above the threshold, best first, `box` as left, top, right, bottom in the picture's pixels."""
    limits = {key: value for key, value in manifest["postprocess"].items() if key not in ("decode", "label_offset")}
    if manifest["postprocess"]["decode"] == "nms":
        mine = outputs["image"] == 0
        found = {name: outputs[name][mine] for name in ("boxes", "scores", "labels")}
        sure = found["scores"] > (threshold if threshold is not None else -1)
        found = {name: array[sure] for name, array in found.items()}
    else:
        limits["score_threshold"] = least_score(manifest) if threshold is None else threshold
        found = postprocess(outputs["boxes"][:1], outputs["scores"][:1], **limits)[0]
    boxes = placement.to_picture(found["boxes"])
    return [
        {
            "label": _label(manifest.get("labels"), int(index)),
            "index": int(index),
            "score": float(certainty),
            "box": [round(edge, 2) for edge in box],
        }
        for box, index, certainty in zip(boxes.tolist(), found["labels"], found["scores"], strict=True)
    ]


def _label(labels: Sequence[str] | None, index: int) -> str:
    return labels[index] if labels and index < len(labels) else str(index)
