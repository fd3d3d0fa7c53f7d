"""The options of `relu-deploy serve` in a container."""

from __future__ import annotations

from relu_deploy.bundle import Bundle
from relu_deploy.packaging.batching import choose_batching
from relu_deploy.packaging.options import PackageOptions
from relu_deploy.packaging.protocol_types import require_protocol_types

__all__ = ["serve_options"]


def serve_options(bundle: Bundle, backend: str, options: PackageOptions) -> tuple[list[str], tuple[str, ...]]:
    """Return the batching options of `serve`, and lines that explain them.

    They come from `options`, else from measurements of `backend`; without either, `serve` uses its defaults.

    Raises:
        Unsupported: If `serve` would refuse the model, because the protocol has no type for an input or output.
    """
    require_protocol_types(bundle)
    batching = choose_batching(bundle, (backend,), options.max_batch, options.max_delay)
    arguments: list[str] = []
    if batching.measured or options.max_batch is not None:
        arguments += ["--max-batch", str(batching.max_batch)]
    if batching.measured or options.max_delay is not None:
        arguments += ["--max-delay", f"{batching.delay / 1e3:g}"]
    return arguments, batching.reasons if arguments else ()
