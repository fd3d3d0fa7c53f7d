"""What `relu-deploy serve` is told in a container, so that it batches as measurements say."""

from __future__ import annotations

from relu_deploy.bundle import Bundle
from relu_deploy.packaging.batching import batching_for
from relu_deploy.packaging.settings import PackageOptions

__all__ = ["served"]


def served(bundle: Bundle, backend: str, settings: PackageOptions) -> tuple[list[str], tuple[str, ...]]:
    """Return options of `serve`, and lines that say why: what was asked for, else what was measured, else none and its own defaults."""
    batching = batching_for(bundle, (backend,), settings.max_batch, settings.max_delay)
    options: list[str] = []
    if batching.measured or settings.max_batch is not None:
        options += ["--max-batch", str(batching.max_batch)]
    if batching.measured or settings.max_delay is not None:
        options += ["--max-delay", f"{batching.delay / 1e3:g}"]
    return options, batching.why if options else ()
