"""Show which backends are usable."""

from __future__ import annotations

import argparse

from relu_deploy.cli.output import finish

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "say which backends are usable here, and what to fix for those that are not"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor` to `parser`."""


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from relu_deploy.backends import probe_all
    from relu_deploy.backends.nvidia.system import examine
    from relu_deploy.reporting.tables.doctor import print_doctor

    result = {
        "schema": "relu-deploy/doctor/1",
        "backends": [probe.to_json() for probe in probe_all()],
        "system": examine().to_json(),
    }
    return finish(options, result, lambda: print_doctor(result))
