"""Which candidates `auto` considers, which one it chooses, and what it says where none passes. Speeds and verdicts are given."""

from types import SimpleNamespace

import pytest

import relu_deploy.optimization.auto.run as auto
from relu_deploy import backends
from relu_deploy.backends import Capabilities, Probe, registry
from relu_deploy.bundle import Bundle
from relu_deploy.errors import AccuracyTooLow, BackendUnavailable, Unsupported, UsageError
from relu_deploy.graph import load_model
from relu_deploy.optimization.auto.candidates import base_candidates, find_backends, tuned
from relu_deploy.optimization.auto.report import Check, Kernels
from relu_deploy.optimization.run import OptimizeOptions, optimize, optimize_bundle
from relu_deploy.tasks.metrics import Metric
from relu_deploy.verification.report import BackendReport, VerifyReport

DATA = {"calibration": "digits", "samples": 8, "eval_samples": 20}


@pytest.fixture
def other_backend():
    """A backend of another package that runs variants for the CPU and declares settings."""
    tunables = ({"threads": 1}, {"optimization": "basic", "spin": False}, {"torch_mode": "max-autotune"})
    module = SimpleNamespace(
        probe=lambda name: Probe(name, True, version="1"),
        capabilities=lambda name: Capabilities(targets=("cpu",), tunables=tunables, autocasts=True),
        load=None,
    )
    backends.register("other", module)
    yield "other"
    del registry._registered["other"]


def test_backends_and_their_settings_are_found_by_what_they_declare(other_backend):
    usable, _ = find_backends("cpu")
    assert other_backend in usable
    assert "reference" not in usable
    candidates = list(base_candidates([other_backend], ["int8", "fp32", "bf16"]))
    assert [one.precision for one in candidates] == ["int8", "fp32", "bf16"]
    assert [one.settings for one in tuned(candidates[0], {})] == [{"threads": 1}, {"optimization": "basic", "spin": False}]
    # What the user chose is not varied; a runtime that casts is told so in every set of settings.
    assert [one.settings for one in tuned(candidates[2], {"threads": 4})] == [
        {"optimization": "basic", "spin": False, "autocast": "bfloat16"}
    ]


def test_onnxruntime_on_the_cpu_has_no_bfloat16_candidate():
    assert [one.precision for one in base_candidates(["onnxruntime-cpu"], ["bf16", "fp32"])] == ["fp32"]


def test_backends_that_are_not_usable_are_listed_with_their_reasons(monkeypatch):
    real = registry.probe
    missing = Probe("openvino", False, reason="openvino is not installed", fix="pip install openvino")
    monkeypatch.setattr(
        "relu_deploy.optimization.auto.candidates.probe", lambda name: missing if name == "openvino" else real(name)
    )
    usable, unusable = find_backends("cpu")
    assert "openvino" not in usable
    assert unusable["openvino"] == "openvino is not installed"


class GivenSessions:
    """Sessions whose runs take the given milliseconds, by candidate as text; others cannot be loaded."""

    def __init__(self, times):
        self.times = times

    def __call__(self, *_):
        return self

    def start(self, candidates):
        pass

    def load(self, candidate):
        if str(candidate) not in self.times:
            raise Unsupported(f"no kernels for {candidate}")
        return self.times[str(candidate)]

    def measure(self, candidate, seconds):
        return [self.times[str(candidate)]] * 2

    def free(self, candidate):
        pass

    def close(self):
        pass


@pytest.fixture
def given(monkeypatch, digits_copy):
    """Return a function that runs `auto` on digits with given times and verdicts; verdicts: what does not pass, with the reason."""

    def run(times, verdicts=(), **options):
        reasons = dict(verdicts)

        def check(self, candidate):
            reason = reasons.get(f"{candidate.backend} {candidate.precision}", "")
            verified = VerifyReport("digits", "reference", "int8", {}, [BackendReport("x", {}, [], None, {})], 0.0)
            return Check(Metric("top1", 1.0, 20), 0.01, None if reason else verified, Kernels(), reason)

        monkeypatch.setattr(auto, "CandidateSessions", GivenSessions(times))
        monkeypatch.setattr(auto.Checker, "__init__", lambda *_: None)
        monkeypatch.setattr(auto.Checker, "check", check)
        monkeypatch.setattr(auto, "find_backends", lambda target: (["onnxruntime-cpu", "openvino"], {"third": "not installed"}))
        return optimize_bundle(digits_copy, "cpu", "auto", options=OptimizeOptions(**DATA, **options))

    return run


def outcomes(report):
    """Return the outcome of each candidate with default settings."""
    return {
        f"{one.backend} {one.precision}": one.outcome for one in report.auto.candidates if not one.settings.keys() - {"autocast"}
    }


def test_the_fastest_that_passes_is_chosen_over_backends_and_its_backend_is_stored(given):
    times = {"onnxruntime-cpu fp32": 8.0, "onnxruntime-cpu int8": 4.0, "openvino int8": 2.0, "openvino fp32": 6.0}
    report = given(times)
    assert (report.backend, report.precision, report.settings) == ("openvino", "int8", {})
    assert report.speed.value == pytest.approx(4.0)
    assert Bundle.open(report.bundle.path).manifest["variants"]["int8-cpu"]["backend"] == "openvino"
    assert {one["precision"]: one["speedup"] for one in report.to_json()["tried"]} == {
        "int8": 4.0,
        "fp32": pytest.approx(8 / 6, abs=1e-4),
    }
    assert report.to_json()["auto"]["unusable"] == {"third": "not installed"}
    assert "no kernels for openvino bf16" in {one.reason for one in report.auto.candidates}


def test_settings_that_are_faster_are_stored_and_those_within_a_percent_are_not(given):
    times = {"onnxruntime-cpu fp32": 8.0, "onnxruntime-cpu int8": 4.0, "onnxruntime-cpu int8, spin off": 3.0}
    assert given(times).settings == {"spin": False}
    times["onnxruntime-cpu int8, spin off"] = 3.98
    report = given(times, minimize="throughput")
    assert (report.settings, report.auto.batch) == ({}, 8)


def test_a_faster_candidate_that_does_not_pass_is_not_chosen_and_has_its_reason(given):
    times = {"onnxruntime-cpu fp32": 8.0, "onnxruntime-cpu int8": 4.0, "openvino bf16": 2.0}
    report = given(times, [("openvino bf16", "stage1.0.relu/Relu: swallows NaN")])
    assert (report.backend, report.precision) == ("onnxruntime-cpu", "int8")
    assert outcomes(report)["openvino bf16"] == "failed"
    assert "stage1.0.relu/Relu: swallows NaN" in {one.reason for one in report.auto.candidates}


def test_a_variant_that_is_slower_than_float32_is_never_chosen(given):
    times = {"onnxruntime-cpu fp32": 2.0, "onnxruntime-cpu int8": 4.0, "openvino int8": 3.0}
    report = given(times)
    assert (report.backend, report.precision) == ("onnxruntime-cpu", "fp32")
    assert outcomes(report)["openvino int8"] == "slower"


def test_where_no_finalist_passes_the_others_are_checked_in_the_order_of_their_speed(given):
    times = {"onnxruntime-cpu fp32": 8.0, "onnxruntime-cpu int8": 4.0, "openvino int8": 2.0, "openvino fp32": 9.0}
    report = given(times, [(name, "it differs") for name in ("openvino int8", "onnxruntime-cpu int8", "onnxruntime-cpu fp32")])
    assert (report.backend, report.precision) == ("openvino", "fp32")


def test_a_candidate_that_faster_ones_drove_out_is_chosen_where_these_do_not_pass(given):
    fast = ("openvino int8", "openvino int8, spin off", "openvino int8, threads 1", "openvino bf16", "openvino bf16, spin off")
    times = {"onnxruntime-cpu fp32": 8.0, "onnxruntime-cpu int8": 4.0, **dict.fromkeys(fast, 2.0)}
    report = given(times, [("openvino int8", "it differs"), ("openvino bf16", "it differs")])
    assert (report.backend, report.precision) == ("onnxruntime-cpu", "int8")
    assert report.speed.value == pytest.approx(2.0)


def test_candidates_of_different_levels_are_timed_together_before_one_is_chosen(given, monkeypatch):
    measured = []

    def measure(self, candidate, seconds):
        """In the second level float32 takes five times as long: what is dropped there seems to be faster than it is."""
        measured.append(str(candidate))
        slow = str(candidate) == "onnxruntime-cpu fp32" and measured.count(str(candidate)) in (4, 5, 6)
        return [self.times[str(candidate)] * (5 if slow else 1)] * 2

    monkeypatch.setattr(GivenSessions, "measure", measure)
    fast = ("openvino int8", "openvino int8, spin off", "openvino int8, threads 1", "openvino bf16")
    times = {"onnxruntime-cpu fp32": 8.0, "onnxruntime-cpu int8": 4.0, "onnxruntime-cpu int8, spin off": 3.9}
    report = given({**times, **dict.fromkeys(fast, 2.0)})
    assert (report.backend, report.precision, report.settings) == ("openvino", "int8", {})
    assert report.speed.value == pytest.approx(4.0)


def test_settings_are_not_stored_that_are_faster_by_chance(given, monkeypatch):
    turns = []

    def measure(self, candidate, seconds):
        turns.append(candidate)
        lucky = str(candidate).endswith("spin off") and len(turns) % 3
        return [self.times[str(candidate)] * (0.8 if lucky else 1.3 if "spin" in str(candidate) else 1)] * 2

    monkeypatch.setattr(GivenSessions, "measure", measure)
    times = {"onnxruntime-cpu fp32": 8.0, "onnxruntime-cpu int8": 4.0, "onnxruntime-cpu int8, spin off": 4.0}
    assert given(times).settings == {}


def test_a_backend_gets_the_8_bit_graph_that_its_kernels_fuse(given):
    def kinds_of_zero_points(report):
        graph = load_model(report.bundle.path / "variants" / "int8-cpu.onnx").graph
        return {node.inputs[2].const_value.dtype.name for node in graph if node.op_type == "QuantizeLinear"}

    times = {"onnxruntime-cpu fp32": 8.0, "onnxruntime-cpu int8": 4.0, "openvino int8": 2.0}
    assert kinds_of_zero_points(given(times)) == {"INT8", "UINT8"}
    times["openvino int8"] = 6.0
    assert kinds_of_zero_points(given(times)) == {"UINT8"}


def test_nothing_is_stored_where_nothing_passes_and_every_candidate_has_a_reason(given, digits_copy):
    before = (digits_copy.path / "manifest.json").read_bytes()
    times = {"onnxruntime-cpu fp32": 2.0, "onnxruntime-cpu int8": 4.0}
    report = given(times, [("onnxruntime-cpu fp32", "it differs")])
    assert not report.passed
    assert report.bundle is None
    assert report.remedy
    assert (digits_copy.path / "manifest.json").read_bytes() == before
    assert not list(digits_copy.path.glob("variants/*"))
    assert {one.outcome for one in report.auto.candidates} == {"failed", "slower", "unusable"}
    assert all(one.reason for one in report.auto.candidates)


def test_nothing_is_stored_where_no_candidate_can_be_loaded_and_python_raises_with_the_reasons(given, digits_copy):
    report = given({})
    assert not report.passed
    assert {one.outcome for one in report.auto.candidates} == {"unusable"}
    with pytest.raises(AccuracyTooLow, match="no kernels for onnxruntime-cpu int8"):
        optimize(digits_copy, **DATA)
    assert not Bundle.open(digits_copy.path).manifest["variants"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"minimize": "size"}, "neither latency nor throughput"),
        ({"batch": -1}, "--batch must be at least 1"),
        ({"precision": "int8", "batch": 4}, "go with --precision auto"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(digits_bundle, options, says):
    with pytest.raises(UsageError, match=says):
        optimize(digits_bundle, **DATA, **options)


# ---------------------------------------------------------------- variants that name their backend


@pytest.fixture
def stored(digits_copy):
    """Return a function that adds a variant which is the float32 graph itself, for a backend with settings."""

    def add(backend, settings, name="fp32-cpu"):
        entry = {"precision": "fp32", "target": "cpu", "checked_against": "model.onnx", "backend": backend, "settings": settings}
        files = {f"variants/{name}.onnx": digits_copy.onnx.read_bytes()}
        return digits_copy.update(files, variants={name: entry}).with_variant(name)

    return add


def test_a_variant_runs_on_its_own_backend_with_its_settings_unless_others_are_named(stored):
    bundle = stored("onnxruntime-cpu", {"threads": 1, "spin": False})
    assert bundle.session().facts["threads"] == 1
    assert bundle.session(threads=2).facts["threads"] == 2
    opened = Bundle.open(bundle.path)
    assert opened.session(variant="fp32-cpu").facts["threads"] == 1
    # The settings are those of the variant, not of the model.
    assert backends.stored_settings(opened, "onnxruntime-cpu") == {}
    assert bundle.session("reference").facts["precision"] == "float32"


def test_the_backend_of_a_variant_that_is_not_installed_is_named_with_what_to_do(stored, monkeypatch):
    bundle = stored("openvino", {})
    missing = Probe("openvino", False, reason="openvino is not installed", fix="pip install openvino")
    monkeypatch.setattr(registry, "probe", lambda name: missing)
    with pytest.raises(
        BackendUnavailable, match="optimized for the backend openvino, which is not usable here: openvino is not installed"
    ) as error:
        bundle.session()
    assert "name another backend" in error.value.hint


def test_a_variant_in_bfloat16_is_not_run_in_float32_by_another_backend(stored):
    bundle = stored("openvino", {"autocast": "bfloat16"}, "bf16-cpu")
    with pytest.raises(Unsupported, match="would compute digits bf16-cpu in float32, not in bfloat16"):
        bundle.session("onnxruntime-cpu")


def test_predict_serve_and_package_use_the_backend_of_a_variant(stored, tmp_path):
    from relu_deploy.packaging.run import package
    from relu_deploy.prediction.predictor import Predictor
    from relu_deploy.serving.loading import ModelOptions

    pytest.importorskip("openvino", reason="openvino is not installed (pip install 'relu-deploy[openvino]')")
    bundle = stored("openvino", {"threads": 1})
    assert Predictor(bundle.onnx).backend == "openvino"
    assert Predictor(bundle.onnx, "onnxruntime-cpu").backend == "onnxruntime-cpu"
    assert ModelOptions().backend_of(bundle) == "openvino"
    assert ModelOptions("reference").backend_of(bundle) == "reference"
    package(bundle.onnx, "docker", tmp_path / "docker")
    assert "openvino==" in (tmp_path / "docker" / "requirements.txt").read_text()
    assert "--backend" not in (tmp_path / "docker" / "Dockerfile").read_text()
    package(bundle.onnx, "kserve", tmp_path / "kserve")
    arguments = (tmp_path / "kserve" / "serving-runtime.yaml").read_text()
    assert "openvino" in arguments
    report = package(bundle.onnx, "triton", tmp_path / "triton")
    assert "openvino" in " ".join(report.model.notes)


@pytest.mark.parametrize("settings", [{"threads": 0}, {"device": 3}, {"autocast": "int4"}, {"spin": "yes"}])
def test_settings_that_no_search_stores_are_refused_when_the_bundle_is_opened(stored, settings):
    from relu_deploy.errors import InputError

    with pytest.raises(InputError, match=r"manifest\.json: variants/fp32-cpu/settings"):
        Bundle.open(stored("onnxruntime-cpu", settings).path)
