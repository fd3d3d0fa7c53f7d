"""List the models of the zoo."""

from __future__ import annotations

import argparse

from relu_deploy.cli.output import finish

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "list the models: task, size, weights and measured metric"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `zoo` to `parser`."""


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.reporting.tables.zoo import print_zoo
    from relu_deploy.zoo.recipes import recipes

    result = {"schema": "relu-deploy/zoo/1", "models": [entry.to_json() for entry in recipes().values()]}
    return finish(options, result, lambda: print_zoo(result))
