"""ONNX Runtime's telemetry stays off unless the user turns it on, and leaves no file in the user's home."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

CODE = """
import os, sys
from relu_deploy.bundle import Bundle
session = Bundle.open(sys.argv[1]).session("onnxruntime-cpu")
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(("value", "expected"), [(None, "1"), ("0", "0"), ("1", "1")])
def test_the_switch_is_set_before_the_runtime_is_imported_and_the_users_own_is_kept(digits_bundle, tmp_path, value, expected):
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if value is not None:
        environment["ORT_DISABLE_TELEMETRY"] = value
    words = [sys.executable, "-c", CODE, str(digits_bundle.path)]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (answer.returncode, answer.stdout.strip()) == (0, expected), answer.stderr
    if expected == "1":
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
