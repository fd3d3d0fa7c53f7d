"""Shared by all tests: one export of each shipped model, and the command line as a user calls it."""

import contextlib
import io
import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from support import processes

from relu_deploy.cli import main

#: whether this process began the fork server and ends it
ENDS_PROCESSES = pytest.StashKey[bool]()


def pytest_configure(config):
    config.stash[ENDS_PROCESSES] = processes.begin()


def pytest_unconfigure(config):
    if config.stash[ENDS_PROCESSES]:
        processes.end()


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory):
    """The digit classifier, exported once. Tests that change it copy it first."""
    from relu_deploy.export import export_source

    return export_source("digits", tmp_path_factory.mktemp("bundles") / "digits.rdb").bundle


@pytest.fixture
def digits_copy(digits_bundle, tmp_path):
    from relu_deploy.bundle import Bundle

    shutil.copytree(digits_bundle.path, tmp_path / "digits.rdb")
    return Bundle.open(tmp_path / "digits.rdb")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run `relu-deploy` in a folder of its own: .code, .stdout, .stderr, and .json of what --json - printed.

    In this process, because importing torch anew for every command would take most of the time.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        words = [str(word) for word in arguments]
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                code = main(words)
            except SystemExit as left:
                code = left.code
        printed = json.loads(stdout.getvalue()) if "-" in words and stdout.getvalue() else None
        return SimpleNamespace(code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue(), json=printed)

    yield run
    # A model's module is imported from the test's folder; another test's may have the same name.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]
