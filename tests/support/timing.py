"""Timings of the tests: none depends on how precise a speed is, so none is measured for as long as a user wants it."""

from __future__ import annotations

__all__ = ["measure_briefly"]


def measure_briefly() -> None:
    """Time a variant for half a second instead of four, and warm a benchmark up for at most half a second instead of two."""
    from relu_deploy.benchmark import runner
    from relu_deploy.optimization import speed

    speed.SECONDS = runner.WARM_UP_SECONDS = 0.5
