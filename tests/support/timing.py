"""Timings of the tests: none depends on how precise a speed is, so none is measured for as long as a user wants it."""

from __future__ import annotations

__all__ = ["measure_briefly"]


def measure_briefly() -> None:
    """Time a variant for half a second instead of four, warm a benchmark up for at most half a second instead of two, and time
    the candidates of a search in shorter slots and fewer rounds."""
    from relu_deploy.benchmark import runner
    from relu_deploy.optimization import speed
    from relu_deploy.optimization.auto import race, sessions
    from relu_deploy.optimization.auto import run as auto

    speed.SECONDS = runner.WARM_UP_SECONDS = 0.5
    race.SHORTEST, race.LONGEST, sessions.LEAD = 0.01, 0.05, 0.0
    auto.ROUNDS, auto.LAST_ROUNDS, auto.LEVEL_SECONDS, auto.FINAL_SECONDS = 2, 4, 0.0, 0.0
