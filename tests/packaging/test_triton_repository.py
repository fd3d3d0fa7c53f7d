"""A model repository for Triton: what stands in config.pbtxt, read back by protobuf, and what is refused."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from google.protobuf.text_format import ParseError
from model_config import parse
from onnx import TensorProto, helper

from relu_deploy.backends.tensorrt.building.engine_cache import kept_engines
from relu_deploy.bundle import Bundle, sha256
from relu_deploy.errors import InputError, Unsupported, UsageError
from relu_deploy.packaging.run import package
from relu_deploy.storage.engine_files import trust

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


def onnx_file(path, inputs, outputs, nodes=None):
    """Write a graph; inputs and outputs are {name: (ONNX type, sizes)}, the nodes by default pass inputs on to outputs in order."""
    values = [
        [helper.make_tensor_value_info(name, kind, sizes) for name, (kind, sizes) in those.items()] for those in (inputs, outputs)
    ]
    nodes = nodes or [helper.make_node("Identity", [source], [target]) for source, target in zip(inputs, outputs, strict=True)]
    graph = helper.make_graph(nodes, "test", *values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def config(folder):
    (file,) = Path(folder).glob("*/config.pbtxt")
    return parse(file.read_text())


def with_bench(bundle, *rows, **more):
    """Put a report in the bundle; rows are (batch, rows a second, p50 in ms), the rest may be overridden."""
    runs = [
        {
            "model": bundle.name, "variant": bundle.variant, "backend": "onnxruntime-cpu", "batch": batch, "throughput": throughput,
            "latency_ms": {"p50": p50}, "verified": True, "error": "", **more,
        }
        for batch, throughput, p50 in rows
    ]  # fmt: skip
    environment = {"cpu": {"model": "Some CPU"}, "gpus": [], "time": "2026-11-26T00:51:44+00:00"}
    return bundle.add("reports/bench.json", json.dumps({"runs": runs, "environment": environment}))


# ---------------------------------------------------------------- numbers


def test_a_batch_that_varies_is_left_out_of_the_sizes(command, digits_bundle):
    made = command("package", digits_bundle.path, "--for", "triton", "-o", "repository", "--json", "-")
    assert made.code == 0
    assert next(iter(made.json)) == "schema"
    assert made.json["schema"] == "relu-deploy/package/1"
    assert {"repository/digits/config.pbtxt", "repository/digits/1/model.onnx"} <= set(made.json["files"])
    assert all(Path(file).is_file() for file in made.json["files"])
    reported = config("repository")
    assert (reported.name, reported.backend, reported.max_batch_size) == ("digits", "onnxruntime", 8)
    assert [(one.name, list(one.dims)) for one in reported.input] == [("x", [1, 28, 28])]
    assert [(one.name, list(one.dims)) for one in reported.output] == [("y", [10])]
    assert sha256(Path("repository/digits/1/model.onnx")) == sha256(digits_bundle.onnx)
    assert [(one.batch_size, list(one.inputs[0].value.dims)) for one in reported.model_warmup] == [
        (1, [1, 28, 28]),
        (8, [1, 28, 28]),
    ]


def test_labels_of_a_classifier_stand_one_a_line_beside_the_output_they_name(tmp_path, digits_bundle):
    package(digits_bundle, "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert reported.output[0].label_filename == "labels.txt"
    assert (tmp_path / "repository/digits/labels.txt").read_text().splitlines() == list(digits_bundle.manifest["labels"])


def test_a_fixed_batch_is_part_of_the_sizes_and_nothing_is_run_together(tmp_path):
    file = onnx_file(tmp_path / "fixed.onnx", {"x": (TensorProto.FLOAT, [4, 3])}, {"y": (TensorProto.FLOAT, [4, 3])})
    package(file, "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert reported.max_batch_size == 0
    assert list(reported.input[0].dims) == [4, 3]
    assert not reported.HasField("dynamic_batching")
    with pytest.raises(UsageError, match="no variable batch size"):
        package(file, "triton", tmp_path / "other", max_batch=4)


def test_pictures_of_bytes_stay_bytes_and_channels_last(tmp_path):
    file = onnx_file(
        tmp_path / "pixels.onnx",
        {"x": (TensorProto.UINT8, ["n", 28, 28, 3])},
        {"y": (TensorProto.FLOAT, ["n", 28, 28, 3])},
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
    )
    package(file, "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert (
        reported.DESCRIPTOR.fields_by_name["input"]
        .message_type.fields_by_name["data_type"]
        .enum_type.values[reported.input[0].data_type]
        .name
        == "TYPE_UINT8"
    )
    assert list(reported.input[0].dims) == [28, 28, 3]
    assert reported.max_batch_size == 8


def test_detections_whose_number_varies_have_no_batch_and_so_has_the_picture(tmp_path):
    file = onnx_file(
        tmp_path / "detector.onnx",
        {"x": (TensorProto.FLOAT, ["batch", 1, 8, 8])},
        {"boxes": (TensorProto.INT64, ["found", 4])},
        [helper.make_node("NonZero", ["x"], ["at"]), helper.make_node("Transpose", ["at"], ["boxes"])],
    )
    package(file, "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert reported.max_batch_size == 0
    assert list(reported.input[0].dims) == [-1, 1, 8, 8]
    assert list(reported.output[0].dims) == [-1, 4]
    assert [list(one.inputs[0].value.dims) for one in reported.model_warmup] == [[1, 1, 8, 8]]


def test_a_batch_that_is_not_in_front_is_a_size_like_any_other(tmp_path):
    file = onnx_file(
        tmp_path / "steps.onnx", {"x": (TensorProto.FLOAT, [5, "batch", 8])}, {"y": (TensorProto.FLOAT, [5, "batch", 8])}
    )
    package(file, "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert reported.max_batch_size == 0
    assert [list(one.dims) for one in (*reported.input, *reported.output)] == [[5, -1, 8]] * 2


def test_rows_that_depend_on_each_other_do_not_run_together(tmp_path):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "normalized", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    package(tmp_path / "m.onnx", "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert reported.max_batch_size == 0
    assert [list(one.dims) for one in (*reported.input, *reported.output)] == [[-1, 8]] * 2


def test_a_batch_of_another_name_in_every_tensor_is_one_batch_where_a_trial_shows_it(tmp_path):
    file = onnx_file(
        tmp_path / "converted.onnx", {"x": (TensorProto.FLOAT, ["unk__1", 8])}, {"y": (TensorProto.FLOAT, ["unk__2", 8])}
    )
    package(file, "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert reported.max_batch_size == 8
    assert [list(one.dims) for one in (*reported.input, *reported.output)] == [[8]] * 2


def test_one_number_a_row_is_a_vector_of_one_that_is_reshaped_to_nothing(tmp_path):
    file = onnx_file(tmp_path / "scalar.onnx", {"x": (TensorProto.FLOAT, ["n"])}, {"y": (TensorProto.FLOAT, ["n"])})
    package(file, "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert list(reported.input[0].dims) == [1]
    assert reported.input[0].HasField("reshape")
    assert list(reported.input[0].reshape.shape) == []


def test_sizes_that_vary_are_minus_one_and_warm_up_guesses_none(tmp_path):
    file = onnx_file(
        tmp_path / "free.onnx", {"x": (TensorProto.FLOAT, ["n", 3, "h", "w"])}, {"y": (TensorProto.FLOAT, ["n", 3, "h", "w"])}
    )
    package(file, "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert list(reported.input[0].dims) == [3, -1, -1]
    assert len(reported.model_warmup) == 0


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_has_its_name(tmp_path, dtype):
    kind = getattr(TensorProto, {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper()))
    file = onnx_file(tmp_path / "typed.onnx", {"x": (kind, ["n", 2])}, {"y": (kind, ["n", 2])})
    package(file, "triton", tmp_path / "repository")
    assert f"data_type: {TYPES[dtype]}" in (tmp_path / "repository/typed/config.pbtxt").read_text()
    config(tmp_path / "repository")


def test_a_type_without_a_name_is_refused_and_bfloat16_cannot_pass_through_numpy(tmp_path):
    strange = onnx_file(
        tmp_path / "a.onnx", {"x": (TensorProto.FLOAT8E4M3FN, ["n", 2])}, {"y": (TensorProto.FLOAT8E4M3FN, ["n", 2])}
    )
    brain = onnx_file(tmp_path / "b.onnx", {"x": (TensorProto.BFLOAT16, ["n", 2])}, {"y": (TensorProto.BFLOAT16, ["n", 2])})
    for target in ("triton", "kserve", "docker"):  # each is served by this protocol
        with pytest.raises(Unsupported, match=r"x is of type .*, which the Open Inference Protocol has no type for"):
            package(strange, target, tmp_path / "repository")
    with pytest.raises(Unsupported, match="no bfloat16"):
        package(brain, "triton", tmp_path / "repository", flavor="python")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


# ---------------------------------------------------------------- batching from measurements


def test_the_batch_with_the_most_rows_a_second_is_preferred_and_the_file_says_why(tmp_path, digits_copy):
    bundle = with_bench(digits_copy, (1, 1000.0, 1.0), (16, 9000.0, 1.8), (64, 8000.0, 8.0))
    package(bundle, "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert reported.max_batch_size == 64
    assert list(reported.dynamic_batching.preferred_batch_size) == [16]
    assert reported.dynamic_batching.max_queue_delay_microseconds == 500
    text = (tmp_path / "repository/digits/config.pbtxt").read_text()
    assert "# Measured with onnxruntime-cpu on Some CPU, 2026-11-26: rows a second 1000 at batch 1, 9000 at batch 16" in text


def test_what_bench_itself_wrote_is_understood(command, digits_copy, forked_workers):
    measured = command(
        "bench", digits_copy.path, "--batch", "1,8", "--seconds", "0.2", "--backend", "onnxruntime-cpu", "--json", "-"
    )
    assert command("package", digits_copy.path, "--for", "triton", "-o", "repository").code == 0
    rows = {run["batch"]: run["throughput"] for run in measured.json["runs"]}
    best = max(rows, key=rows.get)
    assert list(config("repository").dynamic_batching.preferred_batch_size) == ([best] if best > 1 else [])
    text = Path("repository/digits/config.pbtxt").read_text()
    assert f"rows a second {rows[1]:.0f} at batch 1, {rows[8]:.0f} at batch 8." in text


def test_what_was_asked_for_goes_before_what_was_measured(tmp_path, digits_copy):
    bundle = with_bench(digits_copy, (1, 1000.0, 1.0), (16, 9000.0, 1.8), (64, 8000.0, 8.0))
    package(bundle, "triton", tmp_path / "repository", max_batch=8, max_delay=2.5, instances=3)
    reported = config(tmp_path / "repository")
    assert (reported.max_batch_size, reported.instance_group[0].count) == (8, 3)
    assert list(reported.dynamic_batching.preferred_batch_size) == []
    assert reported.dynamic_batching.max_queue_delay_microseconds == 2500


def test_nothing_is_waited_for_where_one_row_at_a_time_was_fastest(tmp_path, digits_copy):
    package(with_bench(digits_copy, (1, 1000.0, 1.0), (8, 900.0, 8.0)), "triton", tmp_path / "repository")
    reported = config(tmp_path / "repository")
    assert reported.dynamic_batching.max_queue_delay_microseconds == 0
    assert list(reported.dynamic_batching.preferred_batch_size) == []


@pytest.mark.parametrize(
    "more", [{"verified": False}, {"error": "it broke"}, {"variant": "int8-cpu"}, {"backend": "torch"}, {"model": "other"}]
)
def test_rows_that_were_wrong_or_of_something_else_tell_nothing(tmp_path, digits_copy, more):
    package(with_bench(digits_copy, (1, 1000.0, 1.0), (16, 9000.0, 1.8), **more), "triton", tmp_path / "repository")
    assert "# Not measured" in (tmp_path / "repository/digits/config.pbtxt").read_text()


def test_one_measured_batch_size_tells_nothing_about_others(tmp_path, digits_copy):
    package(with_bench(digits_copy, (1, 1000.0, 1.0)), "triton", tmp_path / "repository")
    assert "# Only one batch size was measured" in (tmp_path / "repository/digits/config.pbtxt").read_text()


def test_a_report_that_is_none_is_bad_input_that_names_the_file(command, digits_copy):
    digits_copy.add("reports/bench.json", '{"runs": [{}], "environment": {}}')
    made = command("package", digits_copy.path, "--for", "triton", "-o", "repository")
    assert made.code == 2
    assert "reports/bench.json is not a report of bench" in made.stderr
    assert not Path("repository").exists()


# ---------------------------------------------------------------- devices, TensorRT, variants


def as_variant(bundle, name, precision, target):
    """Return the bundle with its graph as a variant too; what is in the file does not matter to a package."""
    facts = {"precision": precision, "target": target, "checked_against": "model.onnx"}
    bundle = bundle.add(f"variants/{name}.onnx", bundle.onnx.read_bytes(), variants={name: facts})
    return bundle.with_variant(name)


def test_tensorrt_under_onnx_runtime_gets_the_variants_precision_and_one_profile_for_all_batches(tmp_path, digits_copy):
    variant = as_variant(digits_copy, "int8-tensorrt", "int8", "tensorrt")
    made = package(variant, "triton", tmp_path / "repository", accelerator="tensorrt", max_batch=32)
    reported = config(tmp_path / "repository")
    assert reported.name == made.model.name == "digits-int8-tensorrt"
    (accelerator,) = reported.optimization.execution_accelerators.gpu_execution_accelerator
    values = {entry.key: entry.value for entry in accelerator.parameters}
    assert accelerator.name == "tensorrt"
    assert values["precision_mode"] == "INT8"
    assert [values[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")] == [
        "x:1x1x28x28",
        "x:32x1x28x28",
        "x:32x1x28x28",
    ]
    assert reported.instance_group[0].kind == 1, "KIND_GPU"


def test_a_precision_that_tritons_accelerator_has_not_is_unsupported(tmp_path, digits_copy):
    with pytest.raises(Unsupported, match="float32, float16, int8"):
        package(as_variant(digits_copy, "fp8-tensorrt", "float8", "tensorrt"), "triton", tmp_path / "r", accelerator="tensorrt")


@pytest.mark.parametrize("options", [{"device": "gpu"}, {"accelerator": "tensorrt"}, {"flavor": "tensorrt"}])
def test_a_variant_for_cpus_goes_to_no_gpu(tmp_path, digits_copy, options):
    variant = as_variant(digits_copy, "int8-cpu", "int8", "cpu")
    package(variant, "triton", tmp_path / "fine")
    assert config(tmp_path / "fine").instance_group[0].kind == 2, "KIND_CPU"
    with pytest.raises(UsageError, match="optimized for CPUs"):
        package(variant, "triton", tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()


def test_threads_reach_each_flavors_own_parameter(tmp_path, digits_bundle):
    for flavor, key in (("onnxruntime", "intra_op_thread_count"), ("python", "threads")):
        package(digits_bundle, "triton", tmp_path / flavor, flavor=flavor, threads=3)
        assert [(one.key, one.value.string_value) for one in config(tmp_path / flavor).parameters] == [(key, "3")]


def keep_engine(bundle, backend, plan=b"what TensorRT serialized", profiles=((1, 8, 32),), graph=None, **more):
    """Put an engine and its note where `compile` keeps them; its bytes are only copied here, never loaded."""
    folder = bundle.path / "engines"
    folder.mkdir(exist_ok=True)
    file = folder / f"{bundle.name}-{backend}-{sum(plan):x}.engine"
    file.write_bytes(plan)
    shapes = [{"x": [[rows, 1, 28, 28] for rows in sizes]} for sizes in profiles]
    facts = {
        "schema": "relu-deploy/engine/1", "graph": graph or sha256(bundle.onnx), "backend": backend, "library": "11.4.0.106",
        "device": "NVIDIA H100", "options": {}, "profiles": shapes, "key": "k", "built": "2026-11-26T00:00:00",
        "bytes": len(plan), "sha256": sha256(file), **more,
    }  # fmt: skip
    file.with_suffix(".json").write_text(json.dumps(facts))
    trust([file, file.with_suffix(".json")])
    return file


def test_an_engine_of_tensorrt_becomes_a_tensorrt_plan_with_its_profiles_limits(tmp_path, digits_copy):
    keep_engine(digits_copy, "tensorrt", b"old", built="2026-01-01T00:00:00")
    engine = keep_engine(digits_copy, "tensorrt", profiles=((1, 1, 1), (1, 8, 24)))
    assert kept_engines(digits_copy, "tensorrt")[0].file == engine
    made = package(digits_copy, "triton", tmp_path / "repository", flavor="tensorrt")
    reported = config(tmp_path / "repository")
    assert (reported.platform, reported.backend, reported.max_batch_size) == ("tensorrt_plan", "", 24)
    assert list(reported.instance_group[0].profile) == ["0", "1"]
    assert (tmp_path / "repository/digits/1/model.plan").read_bytes() == engine.read_bytes()
    assert not (tmp_path / "repository/digits/1/model.onnx").exists()
    assert "TensorRT 11.4.0.106 and the GPU NVIDIA H100" in made.model.notes[0]
    with pytest.raises(UsageError, match="more than the 24 rows"):
        package(digits_copy, "triton", tmp_path / "larger", flavor="tensorrt", max_batch=32)


def test_an_engine_that_needs_more_than_one_row_is_unsupported(tmp_path, digits_copy):
    keep_engine(digits_copy, "tensorrt", profiles=((4, 8, 32),))
    with pytest.raises(Unsupported, match="no batch below 4"):
        package(digits_copy, "triton", tmp_path / "repository", flavor="tensorrt")


@pytest.mark.parametrize("fault", ["cut short", "of another graph", "to be observed"])
def test_an_engine_that_is_not_whole_or_not_of_this_graph_is_none(tmp_path, digits_copy, fault):
    graph = "0" * 64 if fault == "of another graph" else None
    engine = keep_engine(digits_copy, "tensorrt", graph=graph, options={"observable": fault == "to be observed"})
    if fault == "cut short":
        engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(Unsupported, match="has no engine for backend tensorrt"):
        package(digits_copy, "triton", tmp_path / "repository", flavor="tensorrt")


def test_engines_of_tensorrt_rtx_are_refused_because_triton_cannot_load_them(command, digits_copy):
    keep_engine(digits_copy, "tensorrt-rtx")
    made = command("package", digits_copy.path, "--for", "triton", "--flavor", "tensorrt", "-o", "repository")
    assert made.code == 3
    assert "which Triton's TensorRT backend cannot load" in made.stderr
    assert not Path("repository").exists()


# ---------------------------------------------------------------- the text


def test_the_parser_here_refuses_what_is_no_field_or_value(tmp_path, digits_bundle):
    package(digits_bundle, "triton", tmp_path / "repository")
    text = (tmp_path / "repository/digits/config.pbtxt").read_text()
    for wrong in (
        text + "no_such_field: 1",
        text.replace("TYPE_FP32", "TYPE_FLOAT"),
        text.replace("dims: [ 10 ]", 'dims: [ "10" ]'),
    ):
        with pytest.raises(ParseError):
            parse(wrong)


def test_names_with_quotes_and_other_letters_come_back_as_they_were(tmp_path):
    name = 'a "quoted\\" name\twith ü'
    file = onnx_file(tmp_path / "m.onnx", {name: (TensorProto.FLOAT, ["n", 2])}, {"y": (TensorProto.FLOAT, ["n", 2])})
    package(file, "triton", tmp_path / "repository")
    assert config(tmp_path / "repository").input[0].name == name


def test_tritons_own_messages_parse_every_flavor(tmp_path, digits_copy):
    venv = os.environ.get("RELU_DEPLOY_TRITON", "")
    python = Path(venv) / "bin" / "python"
    if not venv:
        pytest.skip("needs tritonclient: set RELU_DEPLOY_TRITON to an environment that benchmarks/triton_venv.sh made")
    keep_engine(digits_copy, "tensorrt", profiles=((1, 1, 1), (1, 8, 24)))
    files = []
    for number, options in enumerate(
        ({}, {"accelerator": "tensorrt"}, {"flavor": "python", "threads": 2}, {"flavor": "tensorrt"})
    ):
        package(digits_copy, "triton", tmp_path / str(number), **options)
        files.append(tmp_path / str(number) / "digits" / "config.pbtxt")
    code = (
        "import sys\nfrom google.protobuf.text_format import Parse\nfrom tritonclient.grpc.model_config_pb2 import ModelConfig\n"
        "for file in sys.argv[1:]: print(Parse(open(file).read(), ModelConfig()).max_batch_size)"
    )
    answer = subprocess.run([python, "-c", code, *files], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == ["8", "8", "8", "24"]


def test_the_python_flavors_model_needs_nothing_of_this_package(tmp_path, digits_bundle):
    package(digits_bundle, "triton", tmp_path / "repository", flavor="python")
    text = (tmp_path / "repository/digits/1/model.py").read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "triton_python_backend_utils"}


def test_weights_beside_the_graph_come_along_and_a_missing_file_of_them_is_named(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in/big.onnx", save_as_external_data=True, location="big.weights", size_threshold=0)
    package(tmp_path / "in/big.onnx", "triton", tmp_path / "repository")
    session = Bundle.open(tmp_path / "repository/big/1/model.onnx").session("onnxruntime-cpu")
    feeds = {"x": np.arange(64, dtype=np.float32)[None]}
    assert session.run(feeds)["y"].tolist() == feeds["x"].tolist()
    (tmp_path / "in/big.weights").unlink()
    with pytest.raises(InputError, match=r"big\.weights"):
        package(tmp_path / "in/big.onnx", "triton", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_version_compatible_engine_names_the_option_that_triton_needs(tmp_path, digits_copy):
    keep_engine(digits_copy, "tensorrt", options={"version_compatible": True})
    made = package(digits_copy, "triton", tmp_path / "repository", flavor="tensorrt")
    assert any("--backend-config=tensorrt,version-compatible=true" in note for note in made.model.notes)
    keep_engine(digits_copy, "tensorrt", b"of this version alone", built="2026-11-28T00:00:00")
    made = package(digits_copy, "triton", tmp_path / "other", flavor="tensorrt")
    assert not any("version-compatible" in note for note in made.model.notes)


# ---------------------------------------------------------------- the python flavor on a GPU


@pytest.fixture
def model_on_gpu(tmp_path, monkeypatch):
    """Start the python flavor's model as on a GPU: model_on_gpu(names of the nodes on the CPU) -> what was called."""
    import onnxruntime

    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["s"], name="shape"),
            helper.make_node("Gather", ["s", "zero"], ["b"], name="batch"),
            helper.make_node("Concat", ["b", "rest"], ["to"], name="sizes", axis=0),
            helper.make_node("Reshape", ["x", "to"], ["flat"], name="flatten"),
            helper.make_node("Relu", ["flat"], ["y"], name="relu"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [onnx.numpy_helper.from_array(np.array([value]), name) for name, value in (("zero", 0), ("rest", -1))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    package(tmp_path / "m.onnx", "triton", tmp_path / "repository", flavor="python", device="gpu")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    spec = importlib.util.spec_from_file_location("triton_model_here", tmp_path / "repository/m/1/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def begin(on_cpu):
        calls = []

        class Session:
            def __init__(self, file, options, providers, enable_fallback):
                calls.append(providers[0][0])

            def get_providers(self):
                return ["CUDAExecutionProvider", "CPUExecutionProvider"]

            def get_outputs(self):
                return []

            def get_provider_graph_assignment_info(self):
                nodes = [node for node in graph.node if node.name in on_cpu]
                return [SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)]

        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: calls.append("preload"))
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        config = json.dumps({"max_batch_size": 8, "input": [{"name": "x"}]})
        arguments = {"model_config": config, "model_repository": str(tmp_path / "repository/m"), "model_version": "1"}
        module.TritonPythonModel().initialize({**arguments, "model_instance_kind": "GPU", "model_instance_device_id": "0"})
        return calls

    return begin


def test_on_a_gpu_libraries_are_loaded_first_and_shape_arithmetic_may_be_on_the_cpu(model_on_gpu):
    assert model_on_gpu({"shape", "batch", "sizes"}) == ["preload", "CUDAExecutionProvider"]


def test_on_a_gpu_a_node_of_the_models_numbers_on_the_cpu_is_an_error_with_its_name(model_on_gpu):
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider has no kernel for 1 nodes: Relu 'relu'"):
        model_on_gpu({"shape", "relu"})
