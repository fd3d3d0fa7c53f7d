"""Options that several verbs share."""

from __future__ import annotations

import argparse
from typing import Any

from relu_deploy.cli.types import tensor_shape

__all__ = ["add_output_options", "add_shared_options", "add_summary_option", "add_timeout_option"]

SHARED: dict[str, dict[str, Any]] = {
    "backend": {"action": "append", "metavar": "NAME", "help": "backend to run on; repeatable (relu-deploy doctor lists them)"},
    "seed": {"type": int, "default": 0, "help": "of everything random (default 0)"},
    "threads": {"type": int, "default": 0, "metavar": "N", "help": "CPU threads (default: every CPU this process may use)"},
    "device": {"type": int, "default": 0, "metavar": "N", "help": "index of the GPU, for backends on one (default 0)"},
    "shape": {
        "action": "append",
        "type": tensor_shape,
        "default": [],
        "metavar": "NAME=1x3x320x320",
        "help": "sizes of an input whose dimensions may vary, and of dimensions of the same name; repeatable",
    },
    "force": {"action": "store_true", "help": "replace what exists"},
}


def add_shared_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the options called `names`, keys of `SHARED`, to `parser`."""
    for name in names:
        parser.add_argument(f"--{name}", **SHARED[name])


def add_timeout_option(parser: argparse.ArgumentParser, models: str) -> None:
    """Add the option of verbs that run models; they run in a process of their own, see `isolation`.

    Args:
        parser: The parser of the verb.
        models: The name of the option or argument that takes the paths of the models.
    """
    parser.set_defaults(models=models)
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="end with an error after this time (default: no limit, and graphs that may run for hours are refused)",
    )


def add_summary_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of verbs that write a summary for a CI run."""
    parser.add_argument(
        "--summary",
        metavar="FILE",
        help="write a Markdown summary; GITHUB_STEP_SUMMARY appends it to the summary of a job of GitHub Actions",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every verb has."""
    parser.add_argument("--json", metavar="FILE", help="write the result as one JSON object; - for stdout alone")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--debug", action="store_true", help="show a traceback for errors")
    parser.add_argument(
        "--max-memory",
        type=float,
        metavar="GB",
        help="largest tensor of a graph that is opened, and a sixteenth of what verify may hold (default: a sixteenth of the memory)",
    )
