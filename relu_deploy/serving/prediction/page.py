"""The page at `/`, what it needs to know of the models, and all that is served for pictures and texts as one route."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from relu_deploy.data.images import plane_of
from relu_deploy.data.texts import takes_texts
from relu_deploy.serving.bounded_executor import BoundedExecutor
from relu_deploy.serving.models import Model, Models
from relu_deploy.serving.prediction.images import PictureLimits
from relu_deploy.serving.prediction.predict import Predict, least_score, unsupported_reason
from relu_deploy.serving.prediction.relu_view import ReluView
from relu_deploy.serving.protocol.http import Request, Response
from relu_deploy.serving.protocol.json_codec import dump

__all__ = ["WebApp", "policy_of"]

#: an input of one channel and at most so many pixels a side is one that can be drawn by hand
DRAWABLE = 256


class WebApp:
    """The route for `/`, `/page/models`, predict and relus."""

    def __init__(self, models: Models, limits: PictureLimits) -> None:
        self._models = models
        self._decoding = BoundedExecutor("pictures", limits.decoders, limits.waiting)
        self._predict = Predict(models, self._decoding, limits)
        self._relus = ReluView(models, self._decoding, limits)
        page = Path(__file__).with_name("page.html").read_bytes()
        headers = {
            "content-security-policy": policy_of(page.decode()),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        self._page = Response([page], content_type="text/html; charset=utf-8", headers=headers)

    async def __call__(self, ask: Request) -> Response | None:
        match (ask.method, *ask.parts):
            case ("GET" | "HEAD", ""):
                return self._page
            case ("GET", "page", "models"):
                return Response([dump({"models": [_shown(model) for model in self._models.loaded()]})])
        return await self._predict(ask) or await self._relus(ask)

    def __enter__(self) -> WebApp:
        return self

    def __exit__(self, *_: Any) -> None:
        self._relus.close()
        self._decoding.close()


def policy_of(page: str) -> str:
    """Return the Content-Security-Policy under which `page` may do what it does: its own script and styles, this server."""
    hashes = {}
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        hashes[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _shown(model: Model) -> dict[str, Any]:
    """Return what the page shows of a model. reason: why it takes neither pictures nor texts, "" when it does.

    watched: whether there is a Relu monitor to ask, which may be off all the same. text: how many bytes of UTF-8 it takes,
    for a model that takes texts.
    """
    manifest = model.bundle.manifest
    missing = unsupported_reason(model.bundle)
    told: dict[str, Any] = {"name": model.name, "task": manifest.get("task"), "backend": model.settings.backend}
    told["watched"] = model.watch is not None
    told["reason"] = "" if missing is None else f"{missing[0]}; {missing[1]}"
    if missing is not None:
        return told
    if takes_texts(manifest):
        return told | {"text": model.bundle.inputs[0].shape[1], "classes": len(manifest.get("labels") or ())}
    channels, height, width = plane_of(model.inputs[0], manifest["preprocess"])
    sides = [side if isinstance(side, int) else None for side in (width, height)]
    told |= {
        "channels": channels,
        "width": sides[0],
        "height": sides[1],
        "classes": len(manifest.get("labels") or ()),
        "threshold": least_score(manifest),
        "drawable": channels == 1 and all(side is not None and side <= DRAWABLE for side in sides),
    }
    return told
