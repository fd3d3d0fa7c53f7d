"""`optimize` as a user calls it: variants that pass their gate, are verified, travel in the bundle and are what they say."""

import importlib
import importlib.util
import json
import shutil

import numpy as np
import onnx
import pytest
from jsonschema import Draft202012Validator

import relu_deploy
from relu_deploy.backends import backend_for
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import load_dataset
from relu_deploy.errors import AccuracyTooLow, InputError, Unsupported, UsageError
from relu_deploy.graph import load_model, precision_of
from relu_deploy.paths import schema_file

FAST = ("--calibration", "digits", "--samples", "64", "--eval-samples", "200", "--quiet")


def test_an_int8_variant_for_the_cpu_is_right_small_and_travels_in_the_copy(command, digits_bundle):
    answer = command("optimize", digits_bundle.path, "-o", "small.rdb", "--precision", "int8", *FAST, "--json", "-")
    assert answer.code == 0, answer.stderr
    result = answer.json
    assert next(iter(result)) == "schema"
    assert (result["schema"], result["precision"], result["target"]) == ("relu-deploy/optimize/1", "int8", "cpu")
    accuracy = result["accuracy"]
    assert accuracy["metric"] == "top1"
    assert accuracy["drop"] == pytest.approx(accuracy["before"] - accuracy["after"])
    assert accuracy["drop"] <= accuracy["max_drop"] == 0.005
    assert result["speedup"] > 0
    assert result["bytes"]["after"] < 0.35 * result["bytes"]["before"]
    assert (result["verified"]["passed"], result["verified"]["relus"], result["verified"]["relus_passed"]) == (True, 6, 6)
    assert result["evidence"]["held_out"]
    bundle = Bundle.open("small.rdb")
    assert precision_of(load_model(bundle.with_variant("int8-cpu").onnx)) == "int8"
    assert "int8-cpu" not in digits_bundle.manifest["variants"]
    session = bundle.session("onnxruntime-cpu", variant="int8-cpu")
    rows = load_dataset(bundle, "digits").picked(np.arange(50))
    right = session.run(dict(rows.feeds))["y"].argmax(1) == rows.targets["labels"]
    assert right.mean() > 0.95
    # The variant is verified by its path as anything else is, and its int8 nodes really ran in int8.
    answer = command("verify", "small.rdb/variants/int8-cpu.onnx", "--backend", "onnxruntime-cpu", "--quiet", "--json", "-")
    assert answer.code == 0, answer.json
    assert answer.json["precision"] == "int8"
    assert answer.json["as_requested"]


@pytest.mark.parametrize(
    ("target", "precision"), [("tensorrt", "int8"), ("tensorrt-rtx", "fp8"), ("cuda", "fp16"), ("tensorrt", "bf16")]
)
def test_variants_for_gpus_are_simulated_and_say_so(command, digits_copy, target, precision):
    answer = command("optimize", digits_copy.path, "--for", target, "--precision", precision, *FAST, "--json", "-")
    assert answer.code == 0, answer.stderr
    assert answer.json["accuracy"]["simulated"] is True
    assert answer.json["speedup"] is None
    assert answer.json["verified"]["passed"] is True
    variant = Bundle.open(digits_copy.path).with_variant(f"{precision}-{target}")
    names = {"fp16": "float16", "bf16": "bfloat16", "fp8": "float8"}
    assert precision_of(load_model(variant.onnx)) == names.get(precision, precision)
    onnx.checker.check_model(str(variant.onnx), full_check=True)


def test_auto_takes_the_fastest_that_passes_and_tells_what_it_tried(command, digits_copy, forked_workers):
    answer = command("optimize", digits_copy.path, *FAST, "--json", "-")
    assert answer.code == 0, answer.stderr
    tried = {one["precision"]: one for one in answer.json["tried"]}
    assert set(tried) == {"int8", "fp32"} | ({"bf16"} if openvino_computes_in_bfloat16() else set())
    best = max((one for one in tried.values() if one["passed"]), key=lambda one: one["speedup"])
    assert answer.json["precision"] == best["precision"]
    Draft202012Validator(json.loads(schema_file("optimize").read_text())).validate(answer.json)
    first, *others = answer.json["auto"]["candidates"]
    assert first["outcome"] == "chosen"
    assert first["verified"] is True
    assert all(one["reason"] for one in others)
    # The bundle runs the variant on the backend that was the fastest although none is named.
    bundle = Bundle.open(digits_copy.path).with_variant(answer.json["variant"])
    assert backend_for(bundle) == answer.json["backend"] == first["backend"]
    assert bundle.manifest["variants"][bundle.variant]["settings"] == answer.json["settings"]
    page = (digits_copy.path / "reports" / f"optimize-{bundle.variant}.html").read_text()
    assert page.count("<rect") >= len([one for one in answer.json["auto"]["candidates"] if one["latency_ms"]])
    answer = command("bench", bundle.onnx, "--seconds", "0.1", "--quiet", "--json", "-")
    assert [(run["backend"], run["variant"]) for run in answer.json["runs"]] == [(first["backend"], bundle.variant)]
    assert command("verify", bundle.onnx, "--quiet", "--json", "-").json["backends"][0]["name"] == first["backend"]


def openvino_computes_in_bfloat16():
    if importlib.util.find_spec("openvino") is None:
        return False
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_a_gate_that_nothing_passes_stores_nothing_and_exits_1(command, digits_copy, monkeypatch):
    from relu_deploy.optimization import search

    # As if every candidate lost half of its accuracy.
    monkeypatch.setattr(
        search.AccuracyEvaluator, "score", lambda self, _: relu_deploy.tasks.metrics.Metric("top1", self.before.value / 2, 10)
    )
    before = json.loads((digits_copy.path / "manifest.json").read_text())
    answer = command("optimize", digits_copy.path, "--precision", "int8", *FAST, "--json", "-")
    assert answer.code == 1
    assert answer.json["passed"] is False
    assert answer.json["file"] is None
    assert len(answer.json["curve"]) > 1
    assert json.loads((digits_copy.path / "manifest.json").read_text()) == before
    with pytest.raises(AccuracyTooLow, match="is allowed"):
        relu_deploy.optimize(digits_copy, precision="int8", calibration="digits", samples=32, eval_samples=50)


def test_segments_go_back_to_float_until_the_gate_is_passed_and_are_listed(digits_copy, monkeypatch):
    from relu_deploy.optimization import search
    from relu_deploy.optimization.run import OptimizeOptions, optimize_bundle

    real = search.AccuracyEvaluator.score
    seen = []

    def score(self, run):
        # Only the third try, with two segments in float32, passes.
        seen.append(real(self, run))
        return seen[-1] if len(seen) == 3 else relu_deploy.tasks.metrics.Metric("top1", 0.0, 10)

    monkeypatch.setattr(search.AccuracyEvaluator, "score", score)
    settings = OptimizeOptions(calibration="digits", samples=32, eval_samples=50)
    report = optimize_bundle(digits_copy, "cpu", "int8", options=settings).to_json()
    assert [step["float_segments"] for step in report["curve"]] == [0, 1, 2]
    assert report["passed"]
    assert {one["segment"] for one in report["fallbacks"]} == {name["segment"] for name in report["costs"][:2]}
    assert {one["reason"] for one in report["fallbacks"]} == {"accuracy"}


def test_a_compacted_and_equalized_graph_answers_as_the_model_and_its_variant_is_held_against_it(command, digits_copy):
    from relu_deploy.bundle import Bundle as Opened
    from relu_deploy.graph import save_model

    # Two channels of the second layer are made to die: their bias is far below what any picture brings.
    model = load_model(digits_copy.onnx)
    conv = next(node for node in model.graph if node.name == "stage1.1.bn/Conv")
    import onnx_ir as ir

    bias = conv.inputs[2].const_value.numpy().copy()
    bias[[3, 7]] = -1e4
    conv.inputs[2].const_value = ir.tensor(bias, name=conv.inputs[2].name)
    save_model(model, digits_copy.onnx)
    digits_copy.add("model.onnx", digits_copy.onnx.read_bytes())
    answer = command(
        *("optimize", digits_copy.path, "-o", "c.rdb", "--precision", "int8", "--compact", "--weights", "per-tensor"),
        *(*FAST, "--max-drop", "1", "--json", "-"),
    )
    assert answer.code == 0, answer.stderr
    prepared = answer.json["prepared"]
    assert [(one["node"], one["channels"]) for one in prepared["compact"]["removed"]] == [("stage1.1.bn/Conv", 2)]
    assert prepared["flops_after"] < prepared["flops_before"]
    assert prepared["equalize"]["pairs"]
    assert prepared["error_ratio"] < 32
    assert answer.json["verified"]["passed"]
    assert Opened.open("c.rdb").manifest["variants"]["int8-cpu"]["checked_against"] == "prepared/int8-cpu.onnx"
    assert command("verify", "c.rdb/variants/int8-cpu.onnx", "--quiet").code == 0


def test_a_preparation_that_changes_the_answers_is_refused(digits_copy, monkeypatch):
    from relu_deploy.errors import ReluDeployError
    from relu_deploy.graph.quantization.equalization import EqualizationReport
    from relu_deploy.graph.rewriting.pass_result import PassResult

    prepare = importlib.import_module("relu_deploy.optimization.prepare")

    def broken(model):
        changed = model.clone()
        next(node for node in changed.graph if node.op_type == "Relu").op_type = "Identity"
        return PassResult(changed, True, EqualizationReport((), (), (), {}, True))

    monkeypatch.setattr(prepare, "equalize", broken)
    with pytest.raises(ReluDeployError, match="changed"):
        relu_deploy.optimize(digits_copy, precision="int8", calibration="digits", samples=16, eval_samples=20, equalize=True)
    assert not Bundle.open(digits_copy.path).manifest["variants"]


def test_the_table_of_bench_has_a_row_for_each_variant_on_its_own_backend(command, digits_copy):
    assert command("optimize", digits_copy.path, "--precision", "int8", *FAST).code == 0
    answer = command("bench", digits_copy.path, "--backend", "onnxruntime-cpu", "--seconds", "0.2", "--quiet", "--json", "-")
    assert answer.code == 0, answer.stderr
    rows = [(run["backend"], run["variant"], run["precision"], run["verified"]) for run in answer.json["runs"]]
    assert rows == [("onnxruntime-cpu", "", "float32", True), ("onnxruntime-cpu", "int8-cpu", "int8", True)]
    assert [(one["variant"], one["against"]) for one in answer.json["ratios"]] == [("int8-cpu", "onnxruntime-cpu")]


# ---------------------------------------------------------------- graphs from elsewhere


@pytest.fixture
def foreign(tmp_path):
    """An opset 9 graph with folded batch norms, a Clip with attributes and a leading Transpose from NHWC."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    constants = {
        "w0": generator.standard_normal((16, 3, 3, 3)) * 0.3,
        "b0": generator.standard_normal(16) * 0.1,
        "w1": generator.standard_normal((24, 16, 3, 3)) * 0.1,
        "w2": generator.standard_normal((10, 24)) * 0.3,
        "b2": generator.standard_normal(10) * 0.1,
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Clip", ["c0"], ["r0"], min=0.0, max=6.0),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("ReduceMean", ["r1"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["m", "w2", "b2"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 32, 32, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    path = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4), path)
    np.savez(tmp_path / "rows.npz", image=generator.standard_normal((120, 32, 32, 3)).astype(np.float32))
    return path


@pytest.mark.parametrize(
    ("target", "precision"), [("cpu", "int8"), ("tensorrt", "int8"), ("tensorrt", "fp16"), ("tensorrt", "bf16")]
)
def test_an_old_graph_from_elsewhere_with_a_fixed_batch_is_optimized(command, foreign, target, precision):
    answer = command(
        *("optimize", foreign, "-o", "f.rdb", "--for", target, "--precision", precision, "--calibration", "rows.npz"),
        *("--max-drop", "0.2", "--quiet", "--json", "-"),
    )
    assert answer.code == 0, answer.stderr or answer.json
    assert answer.json["accuracy"]["metric"] == "top1_agreement"
    assert answer.json["verified"]["passed"]
    assert Bundle.open("f.rdb").with_variant(f"{precision}-{target}").onnx.is_file()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--precision", "int8", "--calibration", "nowhere"), "no folder of pictures"),
        (("--precision", "fp16", *FAST), "the target cpu does not support fp16"),
        (("--for", "cuda", "--precision", "int8", *FAST), "the target cuda does not support int8"),
        (("--for", "abacus", *FAST), "no target called 'abacus'"),
        (("--precision", "int4", *FAST), "no precision 'int4'"),
        (("--precision", "int8", *FAST, "--method", "magic"), "no calibration method 'magic'"),
        (("--precision", "int8", *FAST, "--max-drop", "5"), "--max-drop must be between 0 and 1"),
        (("--precision", "int8", *FAST, "--weights", "some"), "neither per-channel nor per-tensor"),
        (("--precision", "int8", *FAST, "--allow-observed"), "--allow-observed goes with --compact"),
        (("--precision", "int8", "--calibration", "digits", "--samples", "0"), "must be at least 1"),
        (("--precision", "int8", "--calibration", "raw.npz"), "ranges from 0 to 255"),
        (("--precision", "int8", "--calibration", "shape.npz"), "must have shape"),
        (("--precision", "int8", "--calibration", "nan.npz"), "NaN"),
        (("--precision", "int8", "--calibration", "other.npz"), "no array 'x'"),
    ],
)
def test_bad_input_is_exit_2_says_what_is_wrong_and_leaves_nothing_behind(command, digits_bundle, tmp_path, arguments, says):
    np.savez(tmp_path / "raw.npz", x=np.linspace(0, 255, 784 * 4, dtype=np.float32).reshape(4, 1, 28, 28))
    np.savez(tmp_path / "shape.npz", x=np.zeros((4, 3, 28, 28), np.float32))
    np.savez(tmp_path / "nan.npz", x=np.full((4, 1, 28, 28), np.nan, np.float32))
    np.savez(tmp_path / "other.npz", y=np.zeros((4, 1, 28, 28), np.float32))
    answer = command("optimize", digits_bundle.path, "-o", "out.rdb", *arguments)
    assert answer.code == 2, answer.stderr
    assert says in answer.stderr
    assert "\nhint: " in answer.stderr
    assert not (tmp_path / "out.rdb").exists()


def test_auto_for_a_target_that_is_not_here_is_exit_3(digits_bundle):
    with pytest.raises(
        Unsupported,
        match=r"the fastest precision for tensorrt is chosen by measuring .* on tensorrt, .*; here tensorrt is not usable",
    ):
        relu_deploy.optimize(digits_bundle, target="tensorrt", calibration="digits")


def test_a_graph_without_anything_to_quantize_is_refused_by_int8(command, tmp_path):
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "relu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "relu.onnx")
    np.savez(tmp_path / "rows.npz", x=np.ones((4, 4), np.float32))
    answer = command("optimize", "relu.onnx", "-o", "r.rdb", "--precision", "int8", "--calibration", "rows.npz")
    assert answer.code == 2
    assert "no node that int8 could be used for" in answer.stderr


def test_a_variant_and_what_exists_are_not_overwritten_without_force(command, digits_copy):
    assert command("optimize", digits_copy.path, "--precision", "int8", *FAST).code == 0
    with pytest.raises(InputError, match="already has the variant int8-cpu"):
        relu_deploy.optimize(digits_copy.path, precision="int8", calibration="digits")
    with pytest.raises(UsageError, match="is already a variant"):
        relu_deploy.optimize(digits_copy.path / "variants" / "int8-cpu.onnx", precision="int8", calibration="digits")
    shutil.rmtree(digits_copy.path / "variants")
    with pytest.raises(InputError, match="missing"):
        Bundle.open(digits_copy.path)


# ---------------------------------------------------------------- the data set that a bundle names


def test_without_calibration_data_8_bits_are_calibrated_on_the_bundles_own_set_and_that_is_said(command, digits_copy):
    given = ("--precision", "int8", "--samples", "64", "--eval-samples", "200", "--json", "-")
    own = command("optimize", digits_copy.path, "-o", "own.rdb", *given)
    assert own.code == 0, own.stderr
    assert "note: " in own.stderr
    assert "calibrated on the model's own data set 'digits'; --calibration takes another" in own.stderr
    named = command("optimize", digits_copy.path, "-o", "named.rdb", "--calibration", "digits", *given)
    assert "own data set" not in named.stderr
    assert own.json["evidence"] == named.json["evidence"]
    assert own.json["evidence"]["held_out"]
    variants = [Bundle.open(name).with_variant("int8-cpu").onnx.read_bytes() for name in ("own.rdb", "named.rdb")]
    assert variants[0] == variants[1]


def test_a_model_without_a_set_of_its_own_needs_calibration_data_for_8_bits_and_for_nothing_else(command, digits_copy):
    refused = command("optimize", digits_copy.path / "model.onnx", "-o", "out.rdb", "--precision", "int8", "--quiet")
    assert refused.code == 2
    assert "8-bit precisions need calibration data, and none was given" in refused.stderr
    assert "--calibration" in refused.stderr.splitlines()[1]
    made = command(
        "optimize", digits_copy.path / "model.onnx", "-o", "out.rdb", "--for", "cuda", "--precision", "fp16", "--quiet"
    )
    assert made.code == 0, made.stderr


def test_a_set_of_the_bundle_that_is_not_here_is_named_with_the_reason(command, digits_copy):
    digits_copy.update({}, dataset="elsewhere")
    refused = command("optimize", digits_copy.path, "--precision", "int8", "--quiet")
    assert refused.code == 2
    assert "the model's own data set 'elsewhere' is not available" in refused.stderr
