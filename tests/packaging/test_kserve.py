"""Manifests for KServe, against the fields that its own Python package knows, and the command line that they start."""

import gzip
import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from relu_deploy.bundle import Bundle
from relu_deploy.cli.main import create_parser
from relu_deploy.errors import UsageError
from relu_deploy.packaging.run import package
from relu_deploy.packaging.text_format import yaml as written

SCHEMA = Path(__file__).parent.parent / "resources" / "kserve.schema.json.gz"
FLAVORS = [
    {},
    {"flavor": "onnxruntime"},
    {"flavor": "python", "threads": 4},
    {"flavor": "onnxruntime", "accelerator": "tensorrt"},
]


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def manifests(folder):
    return {file.name: yaml.safe_load(file.read_text()) for file in sorted(Path(folder).glob("*.yaml"))}


def faults(validator, manifest):
    return [f"{'/'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in validator.iter_errors(manifest)]


@pytest.mark.parametrize(
    "options", [*FLAVORS, {"device": "gpu"}, {"image": "registry.example/relu:1", "max_batch": 16, "max_delay": 1.5}]
)
def test_manifests_have_only_fields_that_kserve_knows_and_all_that_it_needs(validator, tmp_path, digits_bundle, options):
    package(digits_bundle, "kserve", tmp_path / "out", storage_uri="s3://bucket/digits", **options)
    made = manifests(tmp_path / "out")
    assert set(made) == (
        {"inference-service.yaml", "serving-runtime.yaml"} if "flavor" not in options else {"inference-service.yaml"}
    )
    for manifest in made.values():
        assert faults(validator, manifest) == []


def test_the_schema_refuses_what_kserve_does_not_know(validator, tmp_path, digits_bundle):
    package(digits_bundle, "kserve", tmp_path / "out")
    made = manifests(tmp_path / "out")
    service, runtime = made["inference-service.yaml"], made["serving-runtime.yaml"]
    service["spec"]["predictor"]["model"]["storageURI"] = "s3://a/b"
    assert "storageURI" in "".join(faults(validator, service))
    container = runtime["spec"]["containers"][0]
    container["readinessProbe"]["periodSeconds"] = "5"
    del container["name"]
    found = "".join(faults(validator, runtime))
    assert "periodSeconds" in found
    assert "'name' is a required property" in found


def test_a_service_says_protocol_format_storage_and_names_its_runtime(tmp_path, digits_bundle):
    package(digits_bundle, "kserve", tmp_path / "out", storage_uri="gs://bucket/digits", threads=3)
    made = manifests(tmp_path / "out")
    service, runtime = made["inference-service.yaml"], made["serving-runtime.yaml"]
    model = service["spec"]["predictor"]["model"]
    assert model["protocolVersion"] == "v2"
    assert model["storageUri"] == "gs://bucket/digits"
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert model["resources"]["limits"]["cpu"] == "3"
    assert model["resources"]["requests"] == model["resources"]["limits"]


def test_the_container_runs_serve_with_options_that_there_are_on_the_ports_that_are_probed(tmp_path, digits_bundle):
    package(digits_bundle, "kserve", tmp_path / "out", max_batch=16, max_delay=1.5, threads=2)
    spec = manifests(tmp_path / "out")["serving-runtime.yaml"]["spec"]
    (container,) = spec["containers"]
    options = create_parser().parse_args(container["args"])
    assert options.verb == "serve"
    assert options.paths == ["/mnt/models"]
    assert (options.host, options.threads, options.max_batch, options.max_delay) == ("0.0.0.0", 2, 16, 1.5)
    assert container["ports"] == [{"containerPort": options.http_port, "protocol": "TCP"}]
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": options.http_port}
    assert container["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": options.http_port}
    assert spec["annotations"]["prometheus.kserve.io/port"] == str(options.metrics_port)
    assert container["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_what_belongs_at_the_storage_uri_opens_as_a_bundle_without_the_pytorch_program(tmp_path, digits_bundle):
    package(digits_bundle, "kserve", tmp_path / "out")
    bundle = Bundle.open(tmp_path / "out" / "model")
    assert bundle.name == "digits"
    assert bundle.source is None
    assert bundle.onnx.read_bytes() == digits_bundle.onnx.read_bytes()


def test_a_plain_graph_is_served_by_its_file(tmp_path, digits_bundle):
    (tmp_path / "My Model.onnx").write_bytes(digits_bundle.onnx.read_bytes())
    package(tmp_path / "My Model.onnx", "kserve", tmp_path / "out")
    made = manifests(tmp_path / "out")
    assert made["inference-service.yaml"]["metadata"]["name"] == "my-model"
    assert made["serving-runtime.yaml"]["spec"]["containers"][0]["args"][1] == "/mnt/models/My Model.onnx"
    assert (tmp_path / "out" / "model" / "My Model.onnx").is_file()


@pytest.mark.parametrize("options", FLAVORS[1:])
def test_the_other_flavors_are_a_triton_repository_on_kserves_own_runtime(tmp_path, digits_bundle, options):
    package(digits_bundle, "kserve", tmp_path / "out", image="triton:25.10", **options)
    model = manifests(tmp_path / "out")["inference-service.yaml"]["spec"]["predictor"]["model"]
    assert model["modelFormat"]["name"] == "triton"
    assert (model["runtime"], model["image"]) == ("kserve-tritonserver", "triton:25.10")
    assert (tmp_path / "out/model/digits/config.pbtxt").is_file()
    assert ("nvidia.com/gpu" in model["resources"]["limits"]) == ("accelerator" in options)


def test_a_placeholder_for_the_storage_is_said_to_be_one(command, digits_bundle):
    made = command("package", digits_bundle.path, "--for", "kserve", "-o", "out", "--json", "-")
    assert made.code == 0
    assert any("placeholder" in note for note in made.json["notes"])
    given = command(
        "package", digits_bundle.path, "--for", "kserve", "-o", "other", "--storage-uri", "pvc://claim/digits", "--json", "-"
    )
    assert not any("placeholder" in note for note in given.json["notes"])


def test_a_variant_goes_to_the_backend_that_it_was_made_for(tmp_path, digits_copy):
    facts = {
        f"fp16-{target}": {"precision": "float16", "target": target, "checked_against": "model.onnx"}
        for target in ("cuda", "tensorrt")
    }
    bundle = digits_copy
    for name in facts:
        bundle = bundle.add(f"variants/{name}.onnx", bundle.onnx.read_bytes(), variants=facts)
    for name, backend in (("fp16-cuda", "onnxruntime-cuda"), ("fp16-tensorrt", "tensorrt")):
        package(bundle.with_variant(name), "kserve", tmp_path / name)
        made = manifests(tmp_path / name)
        options = create_parser().parse_args(made["serving-runtime.yaml"]["spec"]["containers"][0]["args"])
        assert options.backend == backend
        assert made["inference-service.yaml"]["spec"]["predictor"]["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    with pytest.raises(UsageError, match="optimized for cuda"):
        package(bundle.with_variant("fp16-cuda"), "kserve", tmp_path / "cpu", device="cpu")


@pytest.mark.parametrize(
    "value",
    [
        {"a": "yes", "b": "1", "c": 1, "d": True, "e": "x: y", "f": "# no comment", "g": "", "h": [], "i": {}, "j": "0.0.0.0"},
        {"list": [{"a": 1, "b": [1, 2]}, "plain", ["nested", {"deep": "- dash"}]], "é": 'ü\n\t"quoted"'},
        {"n": None, "y": "NULL", "o": "0o17", "t": "12:30:00", "s": " lead", "dash": "-x", "e": "1e3"},
    ],
)
def test_yaml_comes_back_as_it_was(value):
    assert yaml.safe_load(written(value)) == value
