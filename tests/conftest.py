"""Shared by all tests: one export of each shipped model, and the command line as a user calls it."""

import contextlib
import gc
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import internal_errors
import processes
import pytest
import workers
from hypothesis import HealthCheck, settings
from progress import Progress
from timing import measure_briefly

# Before anything imports NumPy or torch.
workers.take_share_of_processors()
# Imports and collection make millions of objects that live until the end: looking through them takes seconds.
gc.disable()

from relu_deploy.cli.main import main  # noqa: E402

# The same examples in each run, so that a change is judged by itself; HYPOTHESIS_PROFILE=random looks for others.
# An example that takes long on a busy machine is no failure.
BUSY = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, **BUSY)
settings.register_profile("random", derandomize=False, **BUSY)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

#: whether this process is the one that all others of this run belong to
IS_FIRST = pytest.StashKey[bool]()


def pytest_configure(config):
    config.stash[IS_FIRST] = processes.begin()
    if config.stash[IS_FIRST] and config.get_verbosity() < 1:
        config.pluginmanager.register(Progress(config), "progress")


@pytest.fixture(autouse=True, scope="session")
def brief_timings():
    measure_briefly()


@pytest.fixture(autouse=True)
def no_internal_error(request):
    """Fail a test that runs a command which exits with 70, unless it is marked as one that expects this."""
    yield
    notes = internal_errors.taken()
    if notes and request.node.get_closest_marker("internal_error") is None:
        pytest.fail(f"exit code 70, a bug in relu-deploy: {'; '.join(notes)}", pytrace=False)


@pytest.fixture
def forked_workers(monkeypatch):
    """Fork the worker processes of a benchmark; see `processes`."""
    monkeypatch.setattr(sys, "executable", processes.python())


def pytest_unconfigure(config):
    if config.stash[IS_FIRST]:
        processes.end()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    return workers.worker_count()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return workers.create_scheduling(config, log)


def pytest_collection_modifyitems(items):
    workers.put_slow_first(items)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def digits_bundle():
    """The digit classifier, exported once. Tests that change it copy it first."""
    from bundles import exported

    return exported("digits")


@pytest.fixture
def digits_copy(tmp_path):
    from bundles import copied

    return copied("digits", tmp_path / "digits.rdb")


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
        if code == internal_errors.EXIT_INTERNAL:
            internal_errors.note(
                Path(os.environ["RELU_DEPLOY_TEST_FOLDER"]),
                os.environ.get(internal_errors.WORKER, ""),
                f"{' '.join(words)}: {stderr.getvalue()}",
            )
        printed = json.loads(stdout.getvalue()) if "-" in words and stdout.getvalue() else None
        return SimpleNamespace(code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue(), json=printed)

    yield run
    # A model's module is imported from the test's folder; another test's may have the same name.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]


def pytest_make_parametrize_id(config, val, argname):
    """Name long bytes by their length: compressed ones hold the time, and workers must agree on the names of all tests."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) and len(val) > 16 else None
