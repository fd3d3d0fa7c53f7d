"""Bundles of the shipped models, each exported once in a run of the tests, whatever workers there are."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from filelock import FileLock
from processes import python

from relu_deploy.bundle import Bundle

__all__ = ["copied", "exported"]

EXPORT = "import json, sys, relu_deploy; relu_deploy.export(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))"


def exported(source: str, **options: Any) -> Bundle:
    """Return the bundle of `source`; options: those of `relu_deploy.export`. Tests that change it copy it first."""
    return _exported(source, json.dumps(options, sort_keys=True))


def copied(source: str, path: Path, **options: Any) -> Bundle:
    """Return a copy of the bundle of `source` as it was exported, at `path`, for tests that change it."""
    shutil.copytree(exported(source, **options).path.with_name("as-exported"), path)
    return Bundle.open(path)


@functools.cache
def _exported(source: str, options: str) -> Bundle:
    name = "-".join([source, *(word for word in "".join(c if c.isalnum() else " " for c in options).split())])
    folder = Path(os.environ["RELU_DEPLOY_TEST_FOLDER"]) / "bundles" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{source}.rdb"
    with FileLock(folder / "lock"):
        if not path.exists():
            done = subprocess.run(
                [python(), "-c", EXPORT, source, str(path), options], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            # A verb that a test runs on the shared bundle may add a report to it.
            shutil.copytree(path, folder / "as-exported")
    return Bundle.open(path)
