"""The context of an image: a Dockerfile whose parts exist in it, that serves with options that there are, and not as root."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from relu_deploy.bundle import Bundle
from relu_deploy.cli.main import create_parser
from relu_deploy.errors import UsageError
from relu_deploy.packaging.run import package


def instructions(folder):
    text = (Path(folder) / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [line.split(maxsplit=1) for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if line.strip()]


def last(folder, word):
    return [rest for each, rest in instructions(folder) if each == word][-1]


@pytest.fixture
def context(tmp_path, digits_bundle):
    package(digits_bundle, "docker", tmp_path / "context", max_batch=16, max_delay=2, threads=3)
    return tmp_path / "context"


def test_everything_that_is_copied_is_there(context):
    sources = [source for word, rest in instructions(context) if word == "COPY" for source in rest.split()[:-1]]
    assert set(sources) == {"requirements.txt", "constraints.txt", "relu_deploy", "models"}
    assert [source for source in sources if not (context / source).exists()] == []


def test_it_serves_the_copied_bundle_with_options_that_there_are_as_a_user_who_is_not_root(context):
    assert json.loads(last(context, "ENTRYPOINT")) == ["relu-deploy"]
    options = create_parser().parse_args(json.loads(last(context, "CMD")))
    assert options.verb == "serve"
    assert (options.host, options.max_batch, options.max_delay, options.threads) == ("0.0.0.0", 16, 2.0, 3)
    (path,) = options.paths
    bundle = Bundle.open(context / path.removeprefix("/"))
    assert (bundle.name, bundle.source) == ("digits", None)
    assert last(context, "USER") == "10001:10001"
    assert f":{options.http_port}/v2/health/ready" in last(context, "HEALTHCHECK")


def test_the_copied_package_runs_from_there_alone(context, tmp_path):
    code = "import relu_deploy, sys; from relu_deploy.cli.main import main; print(relu_deploy.__file__); main(['inspect', sys.argv[1], '--json', '-'])"
    answer = subprocess.run(
        [sys.executable, "-c", code, context / "models" / "digits.rdb"],
        env={**os.environ, "PYTHONPATH": str(context)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    where, _, report = answer.stdout.partition("\n")
    assert Path(where) == context / "relu_deploy" / "__init__.py"
    assert json.loads(report)["model"] == "digits"


def test_what_serving_needs_is_pinned_to_what_is_installed_here(context):
    ours = [Requirement(line) for line in importlib.metadata.requires("relu-deploy")]
    direct = {
        canonicalize_name(one.name)
        for one in ours
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", "cpu", "serve"))
    }
    expected = [Requirement(line) for line in (context / "requirements.txt").read_text().splitlines()]
    assert {canonicalize_name(one.name) for one in expected} == direct
    pinned = dict(line.split("==") for line in (context / "constraints.txt").read_text().splitlines())
    for name, version in pinned.items():
        assert importlib.metadata.version(name).split("+")[0] == version
    for one in expected:
        if one.name in pinned:
            assert pinned[canonicalize_name(one.name)] in one.specifier
    assert "numpy" in pinned
    assert {"torch", "pytest"}.isdisjoint(pinned)


def test_the_base_can_be_named_and_no_host_is(tmp_path, digits_bundle):
    package(digits_bundle, "docker", tmp_path / "context", image="python:3.11-slim")
    text = (tmp_path / "context" / "Dockerfile").read_text()
    assert "\nARG BASE=python:3.11-slim\nFROM ${BASE}\n" in text
    assert set(re.findall(r"\w+://[^/'\s]+", text)) == {"http://127.0.0.1:8000"}


def test_measured_batching_becomes_options_of_serve(tmp_path, digits_copy):
    runs = [
        {
            "model": "digits", "variant": "", "backend": "onnxruntime-cpu", "batch": batch, "throughput": throughput,
            "latency_ms": {"p50": 1.0}, "verified": True, "error": "",
        }
        for batch, throughput in ((1, 100.0), (16, 900.0))
    ]  # fmt: skip
    environment = {"cpu": {"model": "Some CPU"}, "gpus": [], "time": "2026-11-26T00:51:44+00:00"}
    bundle = digits_copy.add("reports/bench.json", json.dumps({"runs": runs, "environment": environment}))
    package(bundle, "docker", tmp_path / "context")
    options = create_parser().parse_args(json.loads(last(tmp_path / "context", "CMD")))
    assert (options.max_batch, options.max_delay) == (16, 0.5)
    assert "# Measured with onnxruntime-cpu on Some CPU" in (tmp_path / "context" / "Dockerfile").read_text()


def test_a_variant_for_gpus_has_no_place_in_an_image_for_cpus(tmp_path, digits_copy):
    facts = {"fp16-cuda": {"precision": "float16", "target": "cuda", "checked_against": "model.onnx"}}
    bundle = digits_copy.add("variants/fp16-cuda.onnx", digits_copy.onnx.read_bytes(), variants=facts)
    with pytest.raises(UsageError, match="optimized for cuda"):
        package(bundle.with_variant("fp16-cuda"), "docker", tmp_path / "context")
