"""The activations of every Relu of a model for one picture or text: which channels fire, and how strongly.

    POST /v2/models/M/relus     the body as for predict

Each model gets a second session for this at the first such request, of the same backend and with every Relu as an output.
One request at a time runs through these sessions, so that they take little from inference.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relu_deploy.backends import Session, load
from relu_deploy.graph import Relu, find_relus, read_model
from relu_deploy.serving.bounded_executor import BoundedExecutor
from relu_deploy.serving.models import VERSION, Model, Models
from relu_deploy.serving.prediction.predict import Preparation, PreparedPicture, refuse_unsupported
from relu_deploy.serving.prediction.texts import PreparedText
from relu_deploy.serving.protocol.http import Request, Response, json_response
from relu_deploy.tensors import Array

__all__ = ["ReluView", "channels_of"]

#: requests that may wait
WAITING = 8


class ReluView:
    """The handler of relus."""

    def __init__(self, models: Models, preparation: Preparation) -> None:
        self._models, self._preparation = models, preparation
        self._tapped: dict[str, tuple[Model, Sequence[Relu], Session]] = {}
        self._executor = BoundedExecutor("relus", 1, WAITING)

    async def __call__(self, request: Request) -> Response:
        context = request.context
        refuse_unsupported(self._models.get(context.route.model, context.route.version).bundle)
        model, prepared = await self._preparation.run(request, await request.body())
        answer = await self._executor.run(context.cancel_on_disconnect, self._activations, model, prepared, self._models.loaded())
        return json_response({"model_name": context.route.model, "model_version": VERSION, **answer})

    def close(self) -> None:
        """End the sessions. Blocks until a running request has finished."""
        self._executor.close()
        for _, _, session in self._tapped.values():
            session.close()
        self._tapped.clear()

    def _activations(self, model: Model, prepared: PreparedPicture | PreparedText, loaded: Sequence[Model]) -> dict[str, Any]:
        """Return the answer's fields. Runs in the executor's only thread, so that nothing else touches the sessions."""
        self._close_all_but(loaded)
        started = time.perf_counter()
        if model.name not in self._tapped:
            relus = find_relus(read_model(model.bundle.onnx))
            settings = model.settings
            session = load(model.bundle, model.backend, threads=settings.threads, device=settings.device, taps=tuple(relus))
            self._tapped[model.name] = model, relus, session
        ready = time.perf_counter()
        _, tapped, session = self._tapped[model.name]
        outputs = session.run(prepared.feeds)
        ran = time.perf_counter()
        found = [{**_identity(relu), **channels_of(outputs[relu.output][:1])} for relu in tapped]
        timing = {"load_ms": round((ready - started) * 1e3, 3), "compute_ms": round((ran - ready) * 1e3, 3)}
        return {"relus": found, "timing": timing}

    def _close_all_but(self, loaded: Sequence[Model]) -> None:
        for name in [name for name, (model, _, _) in self._tapped.items() if model not in loaded]:
            self._tapped.pop(name)[2].close()


def channels_of(values: Array) -> Mapping[str, Any]:
    """Return statistics of the channels (axis 1) of one Relu's output (1, C, …).

    Returns:
        fired: share of channels that are above 0 somewhere; positive: share of all numbers above 0; peak: the largest
        channel's mean; means: each channel's mean as 0 to 255 of `peak`, at least 1 for a channel that fired.
    """
    flat = values.reshape(values.shape[1] if values.ndim > 1 else 1, -1).astype(np.float64)
    above = flat > 0
    fired = above.any(1)
    means = np.where(np.isfinite(flat), flat, 0).clip(0).mean(1)
    peak = float(means.max(initial=0))
    levels = np.maximum(np.rint(means / peak * 255), fired) if peak > 0 else np.zeros(len(means))
    return {
        "channels": len(flat),
        "fired": float(fired.mean()) if len(flat) else 0.0,
        "positive": float(above.mean()) if flat.size else 0.0,
        "peak": peak,
        "means": levels.astype(int).tolist(),
    }


def _identity(relu: Relu) -> dict[str, Any]:
    return {"name": relu.node, "scope": relu.scope, "kind": relu.kind, "upper": relu.upper}
