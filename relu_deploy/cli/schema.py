"""Print the JSON Schema of what a verb writes with --json."""

from __future__ import annotations

import argparse
import json

from relu_deploy.cli.output import finish
from relu_deploy.errors import UsageError, nearest
from relu_deploy.paths import schema_file, schema_names

__all__ = ["SUMMARY", "add_options", "run"]

SUMMARY = "print the JSON Schema of what a verb writes with --json, or of a bundle's manifest"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `schema` to `parser`."""
    parser.add_argument("name", metavar="VERB", help="a verb, or bundle for manifest.json")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    names = schema_names()
    if options.name not in names:
        raise UsageError(f"there is no schema {options.name!r}", nearest(options.name, names))
    schema = json.loads(schema_file(options.name).read_text(encoding="utf-8"))
    result = {"schema": "relu-deploy/schema/1", "name": options.name, "json_schema": schema}
    return finish(options, result, lambda: print(json.dumps(schema, indent=2, ensure_ascii=False)))
