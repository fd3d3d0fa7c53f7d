"""Model packages, loaded by ONNX Runtime itself."""

import json

import numpy as np
import pytest

from relu_deploy.backends import load
from relu_deploy.errors import InputError, Unsupported, UsageError
from relu_deploy.packaging.run import package

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
needs_packages = pytest.mark.skipif(
    not hasattr(ort, "ModelPackageContext"), reason="this ONNX Runtime has no model packages: install 1.32 or later"
)
X = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)


@pytest.fixture
def with_variants(digits_copy):
    """A bundle with two variants for the CPU and one for CUDA, which are the model with their own names in it."""
    import onnx

    variants = {}
    bundle = digits_copy
    for name, target, verified in (("slow-cpu", "cpu", True), ("int8-cpu", "cpu", True), ("fp16-cuda", "cuda", True)):
        graph = onnx.load(digits_copy.onnx)
        graph.doc_string = name
        variants[name] = {
            "precision": name.split("-")[0],
            "target": target,
            "checked_against": "model.onnx",
            "verified": verified,
        }
        bundle = bundle.update({f"variants/{name}.onnx": graph.SerializeToString()}, variants=dict(variants))
    return bundle


def measured(bundle, **latencies):
    """Store a report of bench: latencies by "variant on backend"."""
    runs = []
    for key, (latency, verified) in latencies.items():
        variant, backend = key.split("__")
        runs.append(
            {
                "model": bundle.name,
                "variant": "" if variant == "model" else variant.replace("_", "-"),
                "backend": backend.replace("_", "-"),
                "batch": 1,
                "latency_ms": {"p50": latency},
                "verified": verified,
                "error": "",
            }
        )
    return bundle.add("reports/bench.json", json.dumps({"runs": runs}))


def body(folder, name="digits"):
    return json.loads((folder / name / "component.json").read_text())["variants"]


def opened(folder, provider="CPUExecutionProvider"):
    """Return the variant that ONNX Runtime chooses, and a session of it."""
    options = ort.SessionOptions()
    options.add_provider(provider, {})
    context = ort.ModelPackageContext(str(folder))
    chosen = context.select_component(context.get_component_names()[0], ort.ModelPackageOptions(options))
    return chosen.get_selected_variant_name(), chosen.create_session()


@needs_packages
def test_onnx_runtime_takes_the_fastest_variant_that_was_verified(tmp_path, with_variants):
    bundle = measured(
        with_variants,
        slow_cpu__onnxruntime_cpu=(2.0, True),
        int8_cpu__onnxruntime_cpu=(0.5, True),
        model__onnxruntime_cpu=(1.0, True),
    )
    package(bundle, "onnxruntime", tmp_path / "p")
    name, session = opened(tmp_path / "p")
    assert name == "int8-cpu"
    expected = load(bundle.with_variant("int8-cpu"), "onnxruntime-cpu").run({"x": X})
    answer = dict(zip(expected, session.run(list(expected), {"x": X}), strict=True))
    assert all(np.array_equal(answer[output], expected[output]) for output in expected)
    on_cpu = [name for name, variant in body(tmp_path / "p").items() if variant["ep"] == "CPUExecutionProvider"]
    assert on_cpu == ["int8-cpu", "model-cpu", "slow-cpu"]
    ort.ModelPackage.open(str(tmp_path / "p")).close()


@needs_packages
def test_the_order_is_that_of_the_measurements_and_not_of_the_names(tmp_path, with_variants):
    bundle = measured(with_variants, slow_cpu__onnxruntime_cpu=(0.1, True), int8_cpu__onnxruntime_cpu=(0.5, True))
    package(bundle, "onnxruntime", tmp_path / "p")
    assert opened(tmp_path / "p")[0] == "slow-cpu"


@needs_packages
def test_a_plain_model_is_a_package_too_and_no_provider_is_silently_replaced(tmp_path, digits_bundle):
    made = package(digits_bundle.onnx, "onnxruntime", tmp_path / "p", device="cpu")
    assert opened(tmp_path / "p")[0] == "model-cpu"
    assert any("not verified: model-cpu" in note for note in made.model.notes)
    with pytest.raises(Exception, match="variant"):
        opened(tmp_path / "p", "AzureExecutionProvider")


def test_verdicts_and_measurements_are_in_the_metadata_and_failures_are_left_out(tmp_path, with_variants):
    bundle = measured(
        with_variants,
        int8_cpu__onnxruntime_cpu=(0.5, False),
        slow_cpu__onnxruntime_cpu=(2.0, True),
        fp16_cuda__onnxruntime_cuda=(0.2, True),
    )
    made = package(bundle, "onnxruntime", tmp_path / "p")
    variants = body(tmp_path / "p")
    assert "int8-cpu is left out: its verification failed" in made.model.notes
    assert list(variants) == ["fp16-cuda", "model-cuda", "model-tensorrt-rtx", "slow-cpu", "model-cpu"]
    metadata = variants["fp16-cuda"]["additional_metadata"]["relu_deploy"]
    assert metadata["verified"] is True
    assert metadata["measured"] == {"batch": 1, "latency_ms_p50": 0.2}
    assert variants["model-cpu"]["additional_metadata"]["relu_deploy"]["verified"] is None
    assert variants["fp16-cuda"]["executor_info"]["ort"]["provider_options"] == {"use_tf32": "0"}
    # One copy of a graph that several providers run.
    assert sorted(each.name for each in (tmp_path / "p/digits").iterdir()) == ["component.json", "fp16-cuda", "model", "slow-cpu"]


@pytest.mark.parametrize("passed", [True, False])
def test_the_verdict_on_the_model_is_that_of_verify(tmp_path, with_variants, passed):
    backends = [{"name": "onnxruntime-cpu", "passed": passed}]
    report = {"model": with_variants.title, "against": "torch", "backends": backends}
    package(with_variants.add("reports/verify.json", json.dumps(report)), "onnxruntime", tmp_path / "p")
    variants = body(tmp_path / "p")
    assert ("model-cpu" in variants) is passed
    if passed:
        verdict = variants["model-cpu"]["additional_metadata"]["relu_deploy"]["verdict"]
        assert verdict == {"passed": True, "against": "torch", "backend": "onnxruntime-cpu"}
    # One of a variant says nothing about the model.
    report["model"] = with_variants.with_variant("int8-cpu").title
    package(with_variants.add("reports/verify.json", json.dumps(report)), "onnxruntime", tmp_path / "q")
    assert body(tmp_path / "q")["model-cpu"]["additional_metadata"]["relu_deploy"]["verified"] is None


def test_one_variant_alone_and_one_kind_of_device(tmp_path, with_variants):
    package(with_variants.with_variant("fp16-cuda"), "onnxruntime", tmp_path / "one")
    assert list(body(tmp_path / "one", "digits-fp16-cuda")) == ["fp16-cuda"]
    package(with_variants, "onnxruntime", tmp_path / "gpu", device="gpu")
    assert {variant["device"] for variant in body(tmp_path / "gpu").values()} == {"gpu"}
    with pytest.raises(UsageError, match="has no variant for cpu"):
        package(with_variants.with_variant("fp16-cuda"), "onnxruntime", tmp_path / "none", device="cpu")


def test_what_cannot_be_packaged_is_an_error_and_leaves_nothing(tmp_path, with_variants):
    bundle = measured(with_variants, int8_cpu__onnxruntime_cpu=(0.5, False))
    with pytest.raises(Unsupported, match="passed its verification"):
        package(bundle.with_variant("int8-cpu"), "onnxruntime", tmp_path / "p")
    with pytest.raises(InputError, match="is not a report of bench"):
        package(bundle.add("reports/bench.json", "[]"), "onnxruntime", tmp_path / "p")
    with pytest.raises(UsageError, match="means nothing for onnxruntime"):
        package(bundle, "onnxruntime", tmp_path / "p", instances=2)
    assert not (tmp_path / "p").exists()
