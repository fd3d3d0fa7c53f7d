"""The web page at `/`, its description of the models, and the handlers of predict and relus that it calls."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from relu_deploy.data.texts import takes_texts
from relu_deploy.prediction.outputs import min_score
from relu_deploy.prediction.preparation import unsupported_reason
from relu_deploy.preprocessing.description import plane_of
from relu_deploy.serving.bounded_executor import BoundedExecutor
from relu_deploy.serving.models import Model, Models
from relu_deploy.serving.prediction.images import PictureLimits
from relu_deploy.serving.prediction.predict import Predict, Preparation
from relu_deploy.serving.prediction.relu_view import ReluView
from relu_deploy.serving.protocol.http import Handler, Request, Response, json_response
from relu_deploy.serving.transport.admission import AdmissionControl

__all__ = ["WebApp", "policy_of"]

#: most pixels a side of an input of one channel that the page offers to draw by hand
DRAWABLE = 256


class WebApp:
    """The endpoints of the page, and of predict and relus."""

    def __init__(self, models: Models, admission: AdmissionControl, limits: PictureLimits) -> None:
        self._models = models
        self._decoding = BoundedExecutor("pictures", limits.decoders, limits.waiting)
        preparation = Preparation(models, self._decoding, limits)
        self._predict = Predict(models, admission, preparation)
        self._relus = ReluView(models, preparation)
        page = Path(__file__).with_name("page.html").read_bytes()
        headers = {
            "content-security-policy": policy_of(page.decode()),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        self._page = Response([page], content_type="text/html; charset=utf-8", headers=headers)

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by `Route.endpoint`."""
        return {
            "page": self._show_page,
            "page_models": self._describe_models,
            "predict": self._predict,
            "relus": self._relus,
        }

    async def _show_page(self, _request: Request) -> Response:
        return self._page

    async def _describe_models(self, _request: Request) -> Response:
        return json_response({"models": [_description(model) for model in self._models.loaded()]})

    def __enter__(self) -> WebApp:
        return self

    def __exit__(self, *_: Any) -> None:
        self._relus.close()
        self._decoding.close()


def policy_of(page: str) -> str:
    """Return a Content-Security-Policy that allows the page's own script and styles, and requests to this server."""
    hashes = {}
    for tag in ("script", "style"):
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        hashes[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _description(model: Model) -> dict[str, Any]:
    """Return what the page shows of a model.

    Returns:
        reason: why predict does not support it, "" when it does; watched: whether it has a Relu monitor, which may be off all
        the same; text: how many bytes of UTF-8 it takes, for a model that takes texts.
    """
    manifest = model.bundle.manifest
    unsupported = unsupported_reason(model.bundle)
    description = {
        "name": model.name,
        "task": manifest.get("task"),
        "backend": model.backend,
        "watched": model.monitor is not None,
        "reason": "" if unsupported is None else f"{unsupported[0]}; {unsupported[1]}",
    }
    if unsupported is not None:
        return description
    if takes_texts(manifest):
        return description | {"text": model.bundle.inputs[0].shape[1], "classes": len(manifest.get("labels") or ())}
    channels, height, width = plane_of(model.inputs[0], manifest["preprocess"])
    sides = [side if isinstance(side, int) else None for side in (width, height)]
    return description | {
        "channels": channels,
        "width": sides[0],
        "height": sides[1],
        "classes": len(manifest.get("labels") or ()),
        "threshold": min_score(manifest),
        "drawable": channels == 1 and all(side is not None and side <= DRAWABLE for side in sides),
    }
