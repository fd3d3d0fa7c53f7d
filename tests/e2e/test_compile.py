"""`relu-deploy compile` as a user calls it, with the real TensorRT-RTX on a machine without a GPU."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import python

from relu_deploy.bundle import Bundle

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'relu-deploy[rtx]')", exc_type=ImportError)


@pytest.fixture
def bundle(digits_bundle, tmp_path):
    return shutil.copytree(digits_bundle.path, tmp_path / "digits.rdb")


def test_the_second_call_is_a_cache_hit_and_says_so(command, bundle):
    arguments = ("compile", bundle, "--backend", "tensorrt-rtx", "--json", "-")
    first, second = command(*arguments), command(*arguments)
    assert (first.code, second.code) == (0, 0)
    assert next(iter(first.json)) == "schema"
    assert first.json["schema"] == "relu-deploy/compile/1"
    assert (first.json["cache_hit"], second.json["cache_hit"]) == (False, True)
    assert first.json["engine"] == second.json["engine"]
    assert first.json["backend"] == "tensorrt-rtx"
    assert (Bundle.open(bundle).path / "engines").is_dir()
    assert first.json["bytes"] == Path(first.json["engine"]).stat().st_size


def test_the_answer_for_people_says_what_was_built_and_for_which_gpus(command, bundle):
    done = command("compile", bundle, "--backend", "tensorrt-rtx", "--compute-capability", "8.9,sm120", "--batch", "1,4,64")
    assert done.code == 0
    assert "SM120 SM89" in done.stdout
    assert "x=1x1x28x28,4x1x28x28,64x1x28x28" in done.stdout.replace("\n", " ")
    assert (
        "found in the cache"
        in command("compile", bundle, "--backend", "tensorrt-rtx", "--compute-capability", "12.0,8.9", "--batch", "1,4,64").stdout
    )


def test_an_engine_file_is_written_where_it_is_wanted_and_never_over_another(command, bundle, tmp_path):
    arguments = ("compile", bundle, "--backend", "tensorrt-rtx", "-o", "digits.engine", "--json", "-")
    first = command(*arguments)
    assert first.json["engine"] == "digits.engine"
    plan = (tmp_path / "digits.engine").read_bytes()
    assert command(*arguments).json["cache_hit"]
    refused = command(*arguments, "--batch", "4")
    assert refused.code == 2
    assert "already exists" in refused.stderr
    assert (tmp_path / "digits.engine").read_bytes() == plan
    assert command(*arguments, "--batch", "4", "--force").code == 0
    assert (tmp_path / "digits.engine").read_bytes() != plan


def test_an_engine_is_written_into_a_device_and_never_over_a_file_of_a_bundle(command, bundle):
    before = (bundle / "model.onnx").read_bytes()
    refused = command("compile", bundle, "--backend", "tensorrt-rtx", "-o", bundle / "model.onnx", "--force")
    assert refused.code == 2
    assert "is a file of a bundle" in refused.stderr
    assert (bundle / "model.onnx").read_bytes() == before
    assert command("compile", bundle, "--backend", "tensorrt-rtx", "-o", "/dev/null").code == 0


def test_a_folder_keeps_engines_and_a_bundle_is_copied_with_its_engine(command, bundle, tmp_path):
    for _ in range(2):
        kept = command("compile", bundle, "--backend", "tensorrt-rtx", "-o", "cache/", "--json", "-")
    assert kept.json["cache_hit"]
    assert kept.json["engine"].startswith("cache/")
    made = command("compile", bundle, "--backend", "tensorrt-rtx", "-o", "shipped.rdb", "--json", "-")
    assert made.code == 0
    assert made.json["engine"].startswith("shipped.rdb/engines/")
    assert not (bundle / "engines").exists()
    assert command("compile", bundle, "--backend", "tensorrt-rtx", "-o", "shipped.rdb", "--json", "-").json["cache_hit"]


def test_a_variant_is_compiled_by_its_name_or_its_path(command, bundle):
    assert (
        command("optimize", bundle, "--for", "tensorrt-rtx", "--precision", "fp16", "--eval-samples", "64", "--quiet").code == 0
    )
    named = command("compile", bundle, "--backend", "tensorrt-rtx", "--variant", "fp16-tensorrt-rtx", "--json", "-")
    assert named.code == 0
    assert named.json["precision"] == "float16"
    pointed = command("compile", bundle / "variants/fp16-tensorrt-rtx.onnx", "--backend", "tensorrt-rtx", "--json", "-")
    assert pointed.json["cache_hit"]
    assert pointed.json["engine"] == named.json["engine"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--backend", "onnxruntime-cpu"), 2, "compiles nothing ahead of time"),
        (("--backend", "tensorrt-rxt"), 2, "tensorrt-rtx"),
        (("--backend", "tensorrt"), 3, "not installed"),
        (("--backend", "tensorrt-rtx", "--compute-capability", "9.0"), 2, "compute capability 9.0"),
        (("--backend", "tensorrt-rtx", "--level", "9"), 2, "optimization level 9"),
        (("--backend", "tensorrt-rtx", "--batch", "8,1"), 2, "--batch"),
        (("--backend", "tensorrt-rtx", "--batch", "8,1,4"), 2, "--batch"),
        (("--backend", "tensorrt-rtx", "--profile", "x"), 2, "shape"),
        (("--backend", "tensorrt-rtx", "--profile", "y=1x1x28x28,1x1x28x28,1x1x28x28"), 2, "no input 'y'"),
        (("--backend", "tensorrt-rtx", "--batch", "1", "--profile", "x=1x2,1x2,1x2"), 2, "both"),
        (("--backend", "tensorrt-rtx", "--variant", "int8-cuda"), 2, "no variant"),
        (("--backend", "tensorrt-rtx", "--hardware-compatible", "ampere-plus"), 2, "compute capabilities"),
        (("--backend", "tensorrt-rtx", "--version-compatible"), 3, "--version-compatible"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(command, bundle, arguments, code, words):
    if "tensorrt" in arguments:
        try:
            import tensorrt  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("tests what happens without TensorRT: run it where tensorrt is not installed")
    done = command("compile", bundle, *arguments, "-o", "out.engine")
    assert done.code == code, done.stderr
    assert words in done.stderr
    assert "hint:" in done.stderr
    assert not (bundle.parent / "out.engine").exists()


def test_a_compile_killed_at_any_moment_leaves_what_the_next_one_uses_or_rebuilds(bundle):
    """Six moments here; benchmarks/compile_kills.py does it fifty times on a large model."""
    words = [sys.executable, "-m", "relu_deploy", "compile", str(bundle), "--backend", "tensorrt-rtx", "--json", "-", "--quiet"]
    started = time.perf_counter()
    whole = json.loads(subprocess.run([*words, "--rebuild"], capture_output=True, check=True).stdout)
    lasts = time.perf_counter() - started
    draw = random.Random(0)
    for turn in range(6):
        if turn % 2:
            shutil.rmtree(bundle / "engines")
        with subprocess.Popen([*words, "--rebuild"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
            time.sleep(draw.uniform(0.4, 1.05) * lasts)
            killed.send_signal(signal.SIGKILL)
        after = json.loads(subprocess.run([python(), *words[1:]], capture_output=True, check=True).stdout)
        plan = Path(after["engine"]).read_bytes()
        note = json.loads(Path(after["engine"]).with_suffix(".json").read_text())
        assert hashlib.sha256(plan).hexdigest() == note["sha256"]
        assert len(plan) == whole["bytes"]
