"""The endpoints beside inference over HTTP: health, metadata, statistics, and the model repository."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from relu_deploy.serving.errors import NotFound, Unavailable
from relu_deploy.serving.models import VERSION, Model, Models
from relu_deploy.serving.protocol.http import Handler, Request, Response, json_response
from relu_deploy.serving.protocol.json_codec import parse
from relu_deploy.serving.protocol.routes import EXTENSIONS
from relu_deploy.serving.protocol.tensors import check_load_parameters
from relu_deploy.version import __version__

__all__ = ["Management"]


class Management:
    """Answers these endpoints for the models of a server."""

    def __init__(self, models: Models, ready: Callable[[], bool] = lambda: True) -> None:
        """ready: whether the server takes traffic, beside its models."""
        self._models, self._ready = models, ready

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by `Route.endpoint`."""
        return {
            "server_live": self._server_live,
            "server_ready": self._server_ready,
            "server_metadata": self._server_metadata,
            "server_statistics": self._server_statistics,
            "model_metadata": self._model_metadata,
            "model_ready": self._model_ready,
            "model_config": self._model_config,
            "model_monitor": self._model_monitor,
            "model_stats": self._model_statistics,
            "repository_index": self._index,
            "model_load": self._load,
            "model_unload": self._unload,
        }

    def _model(self, request: Request) -> Model:
        return self._models.get(request.context.route.model, request.context.route.version)

    async def _server_live(self, _request: Request) -> Response:
        return json_response({"live": True})

    async def _server_ready(self, _request: Request) -> Response:
        ready = self._ready() and self._models.all_ready()
        return json_response({"live": True, "ready": ready}, 200 if ready else 503)

    async def _server_metadata(self, _request: Request) -> Response:
        return json_response({"name": "relu_deploy", "version": __version__, "extensions": EXTENSIONS})

    async def _server_statistics(self, _request: Request) -> Response:
        statistics = self._models.statistics()
        return json_response({"model_stats": [each.to_json(name, VERSION) for name, each in statistics.items()]})

    async def _model_metadata(self, request: Request) -> Response:
        return json_response(self._model(request).metadata())

    async def _model_ready(self, request: Request) -> Response:
        name = request.context.route.model
        try:
            self._model(request)
        except Unavailable:
            return json_response({"name": name, "ready": False}, 503)
        return json_response({"name": name, "ready": True})

    async def _model_config(self, request: Request) -> Response:
        return json_response(self._model(request).config())

    async def _model_monitor(self, request: Request) -> Response:
        model = self._model(request)
        if model.monitor is None:
            raise NotFound(f"there is nothing at {request.context.method} {request.context.path}")
        return json_response(await asyncio.to_thread(model.monitor.to_json))

    async def _model_statistics(self, request: Request) -> Response:
        model = self._model(request)
        return json_response({"model_stats": [model.statistics.to_json(model.name, VERSION)]})

    async def _index(self, request: Request) -> Response:
        only_ready = parse(await request.body()).get("ready")
        return json_response([each for each in self._models.index() if each["state"] == "READY" or not only_ready])

    async def _load(self, request: Request) -> Response:
        check_load_parameters(parse(await request.body()).get("parameters") or {})
        await self._models.load(request.context.route.model)
        return json_response({})

    async def _unload(self, request: Request) -> Response:
        parse(await request.body())
        await self._models.unload(request.context.route.model)
        return json_response({})
