"""A run of tests shows what it does, and its workers share the tests and the processors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HOOKS = (HERE / "conftest.py").read_text().partition("@pytest.fixture(scope=")[0].replace("autouse=True, ", "")
NOTE = """
import json, os, pathlib
def note(name):
    able = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    line = {"test": name, "worker": os.environ.get("PYTEST_XDIST_WORKER", ""), "processors": able}
    with open("notes", "a") as file:
        file.write(json.dumps(line) + "\\n")
"""
FILES = {
    # Two workers reach this file and the slow one at about the same time.
    "test_one.py": "from note import note\nimport time\nimport pytest\n"
    "def test_a(): time.sleep(1); note('one.a')\ndef test_b(): note('one.b')\n"
    "def test_no(): assert 1 == 2\n@pytest.mark.skip(reason='why not')\ndef test_skipped(): pass\n",
    "test_slow.py": "from note import note\nimport pytest\n@pytest.mark.slow\ndef test_a(): note('slow.a')\n",
    "docs/test_pages.py": "from note import note\nimport time\nimport pytest\n"
    "@pytest.mark.parametrize('n', range(8), ids='docs/{}.md'.format)\ndef test_a(n): note(f'page.{n}'); time.sleep(0.3)\n",
}


@pytest.fixture
def run(tmp_path):
    """Run a few small tests with the hooks of tests/conftest.py; return what was printed and what each test noted."""
    (tmp_path / "conftest.py").write_text(HOOKS)
    (tmp_path / "note.py").write_text(NOTE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: slow\n")
    (tmp_path / "docs").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def run_with(*options):
        path = os.pathsep.join(map(str, (HERE / "support", HERE.parent, tmp_path)))
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "RELU_DEPLOY_TEST"))}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
            cwd=tmp_path,
            env={**own, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "1 failed, 11 passed, 1 skipped" in done.stdout
        return done.stdout.splitlines(), [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]

    return run_with


def test_without_workers_files_are_shown_as_they_begin_and_failures_at_once(run):
    lines, notes = run()
    shown = [line for line in lines if "%] " in line or line.startswith("       FAILED")]
    assert shown == [
        *(f"[{100 * n // 13:3}%] docs/{n}.md" for n in range(8)),
        "[ 61%] test_one.py",
        "       FAILED test_one.py::test_no",
        "[ 92%] test_slow.py",
    ]
    assert [note["test"] for note in notes] == [*(f"page.{n}" for n in range(8)), "one.a", "one.b", "slow.a"]


def test_workers_share_the_tests_and_the_processors(run):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed (pip install 'relu-deploy[dev]')")
    lines, notes = run("-n", "2")
    by_test = {note["test"]: note for note in notes}
    assert by_test["one.a"]["worker"] == by_test["one.b"]["worker"]
    assert {by_test[f"page.{n}"]["worker"] for n in range(8)} == {"gw0", "gw1"}
    order = [note["test"].partition(".")[0] for note in notes]
    assert order.index("page") < order.index("slow") < order.index("one")
    assert "       FAILED test_one.py::test_no" in lines
    if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1:
        shares = [set(note["processors"]) for note in (by_test["page.0"], by_test["page.1"])]
        workers = [by_test[f"page.{n}"]["worker"] for n in (0, 1)]
        assert workers[0] == workers[1] or not shares[0] & shares[1]
