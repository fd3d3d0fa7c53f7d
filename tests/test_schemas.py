"""The published JSON Schemas describe what the verbs write: every answer is valid, and no field of one is undescribed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import bundles
import jsonschema
import numpy as np
import pytest
from PIL import Image

from relu_deploy.cli.main import VERBS
from relu_deploy.paths import models_folder, schema_file, schema_names


def schema_of(name):
    return json.loads(schema_file(name).read_text(encoding="utf-8"))


def closed(schema):
    """Return the schema without room for fields that it does not describe, except where it says that there are some."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(inner) for name, inner in schema.items()}
    return made | {"additionalProperties": False} if "properties" in made and "additionalProperties" not in made else made


def check(answer):
    """Assert that an answer is valid by the schema that it names, and holds nothing else."""
    package, name, version = answer["schema"].split("/")
    assert (package, version) == ("relu-deploy", "1")
    assert next(iter(answer)) == "schema"
    schema = schema_of(name)
    for one in (schema, closed(schema)):
        errors = list(jsonschema.Draft202012Validator(one).iter_errors(answer))
        assert [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in errors] == []


def test_every_verb_has_a_schema_that_is_one():
    assert set(schema_names()) == {*VERBS, "bundle", "sensitivity"}
    for name in schema_names():
        jsonschema.Draft202012Validator.check_schema(schema_of(name))
    for name in VERBS:
        assert schema_of(name)["properties"]["schema"] == {"const": f"relu-deploy/{name}/1"}


def test_a_wrong_answer_is_not_valid():
    answer = {
        "schema": "relu-deploy/package/1",
        "target": "triton",
        "model": 3,
        "flavour": "",
        "folder": "",
        "files": [],
        "notes": [],
    }
    with pytest.raises(AssertionError, match="model: 3 is not of type 'string'"):
        check(answer)
    with pytest.raises(AssertionError, match="unexpected"):
        check({**answer, "model": "m", "undescribed": 1})


@pytest.fixture
def ready(command, digits_bundle, digits_copy):
    """A folder with a bundle that may be changed, a picture and rows."""
    Image.fromarray(np.load(models_folder() / "digits" / "test.npz")["x"][0, :, :, 0]).save("seven.png")
    Path("broken.png").write_bytes(b"x")
    np.savez("rows.npz", x=np.random.default_rng(0).standard_normal((80, 1, 28, 28), np.float32))
    return command


@pytest.mark.parametrize(
    "arguments",
    [
        "zoo",
        "doctor",
        "schema verify",
        "export digits.rdb/model.onnx -o adopted.rdb",
        "inspect digits.rdb",
        "verify digits.rdb --backend onnxruntime-cpu --backend reference",
        "verify digits.rdb/model.onnx",
        "prove --dtype int8",
        "prove --dtype float16",
        "census digits.rdb --data digits",
        "census digits.rdb/model.onnx --data rows.npz",
        "package digits.rdb --for triton -o out",
        "package digits.rdb --for kserve -o out",
        "predict digits.rdb seven.png broken.png",
        "predict digits.rdb seven.png -o rows.jsonl",
    ],
)
def test_answers_are_valid(ready, arguments):
    made = ready(*arguments.split(), "--json", "-", "--quiet")
    assert made.code == 0, made.stderr
    check(made.json)


def test_the_answers_of_optimize_are_valid(ready):
    for options in ("--precision int8", "--precision fp32 --compact", "--for tensorrt-rtx --precision fp16"):
        made = ready("optimize", "digits.rdb", "--calibration", "digits", *options.split(), "--json", "-", "--quiet")
        assert made.code in (0, 1), made.stderr
        check(made.json)


def test_the_answer_of_verify_about_a_fault_is_valid(ready):
    import onnx
    from onnx import numpy_helper

    model = onnx.load("digits.rdb/model.onnx")
    weight = next(one for one in model.graph.initializer if one.name == "stage2.1.conv.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    onnx.save(model, "changed.onnx")
    made = ready("verify", "changed.onnx", "--against", "digits.rdb", "--json", "-", "--quiet")
    assert made.code == 1, made.stderr
    check(made.json)


def test_the_answer_of_bench_is_valid_with_a_comparison_and_a_row_that_failed(ready, forked_workers):
    arguments = ("bench", "digits.rdb", "--backend", "onnxruntime-cpu", "--seconds", "0.1", "--quiet")
    assert ready(*arguments, "--json", "old.json").code == 0
    made = ready(*arguments, "--compare", "old.json", "--max-slower", "100000%", "--layers", "--json", "-")
    check(json.loads(Path("old.json").read_text()))
    check(made.json)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed: pip install -e '.[rtx-build]'")
def test_the_answers_of_compile_are_valid(ready):
    for _ in range(2):
        made = ready(
            *[
                "compile",
                "digits.rdb",
                "--backend",
                "tensorrt-rtx",
                "--compute-capability",
                "8.9",
                "--batch",
                "1,2,4",
                "--json",
                "-",
                "--quiet",
            ]
        )
        assert made.code == 0, made.stderr
        check(made.json)


@pytest.mark.skipif(find_spec("uvicorn") is None, reason="the server's packages are not installed: pip install -e '.[serve]'")
def test_the_answer_of_serve_is_valid(digits_bundle):
    from running import Running

    with Running(digits_bundle.path) as server:
        check(server.reported)


@pytest.mark.parametrize("name", ["digit_detector", "digit_segmenter"])
def test_rows_with_boxes_and_masks_are_valid(command, name):
    Image.fromarray(np.load(models_folder() / name / "test.npz")["x"][0, :, :, 0]).save("scene.png")
    check(command("predict", bundles.exported(name).path, "scene.png", "--json", "-", "--quiet").json)


def test_the_verb_prints_a_schema_and_refuses_an_unknown_name(command):
    printed = json.loads(command("schema", "verify").stdout)
    assert printed == schema_of("verify")
    assert json.loads(command("schema", "bundle").stdout)["properties"]["schema"] == {"const": "relu-deploy/bundle/1"}
    made = command("schema", "verfiy")
    assert made.code == 2
    assert "did you mean 'verify'" in made.stderr


def test_the_answers_of_sign_and_check_are_valid(ready):
    pytest.importorskip("model_signing", reason="model-signing is not installed: pip install -e '.[sign]'")
    pytest.importorskip("OpenSSL", reason="pyopenssl is not installed: pip install -e '.[sign]'")
    from keys import write_keys

    write_keys("k")
    check(ready("sign", "digits.rdb", "--key", "k.pem", "--json", "-").json)
    check(ready("check", "digits.rdb", "--key", "k.pub", "--json", "-").json)
    Path("digits.rdb/model.sig").unlink()
    check(ready("check", "digits.rdb", "--key", "k.pub", "--json", "-").json)
