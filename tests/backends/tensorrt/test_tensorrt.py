"""Engines are built by the real TensorRT-RTX, which needs no GPU for it; what needs one is told apart with a made-up driver."""

import ctypes
import itertools
import subprocess
import sys
import threading
import time
from importlib.metadata import packages_distributions
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from drivers import Driver
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import Options
from relu_deploy.backends.tensorrt import probe as backend
from relu_deploy.backends.tensorrt.building.build import Refused, build_engine
from relu_deploy.backends.tensorrt.load import load
from relu_deploy.backends.tensorrt.options import BuildOptions
from relu_deploy.backends.tensorrt.probe import can_build, probe
from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable, InputError, Unsupported, UsageError

rtx = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'relu-deploy[rtx]')", exc_type=ImportError
)

FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
STORED = {"float8_e4m3fn": TensorProto.FLOAT8E4M3FN, "bfloat16": TensorProto.BFLOAT16}
FLOAT8 = ml_dtypes.float8_e4m3fn


def tensor(name, array):
    array = np.asarray(array)
    kind = STORED.get(array.dtype.name) or helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def save(path, nodes, constants, inputs, outputs=("y",), dtype="float32", opset=20, domains=()):
    """Write a graph. inputs: name → shape; outputs have the inputs' dtype and whatever shape comes out."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, FLOATS[dtype], shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOATS[dtype], None) for name in outputs],
        [tensor(name, array) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def network(path, dtype="float32", batch=1, spatial=12):
    """Conv, Relu, global average pool, Gemm."""
    draw = np.random.default_rng(0).standard_normal
    kind = np.dtype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)
    weights = {"w": draw((8, 3, 3, 3)), "b": draw(8), "w2": draw((10, 8)), "b2": draw(10)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], "gemm", transB=1),
    ]
    constants = {name: array.astype(kind) for name, array in weights.items()}
    return save(path, nodes, constants, {"x": [batch, 3, spatial, spatial]}, dtype=dtype)


def quantized(path, dtype=np.int8, zero_point=0, zero_type=None, bias="float32"):
    """Conv of quantized activations (one scale) and weights (a scale each channel), then Relu."""
    draw = np.random.default_rng(0).standard_normal
    largest = 127 if dtype == np.int8 else 448
    weights = draw((16, 16, 3, 3)).astype(np.float32)
    scales = np.abs(weights).max((1, 2, 3)) / largest
    steps = weights / scales.reshape(-1, 1, 1, 1)
    constants = {
        "xs": np.float32(0.05),
        "xz": np.asarray(zero_point, zero_type or dtype),
        "wq": (np.rint(steps) if dtype == np.int8 else steps).astype(dtype),
        "ws": scales,
        "wz": np.zeros(16, dtype),
        "b": draw(16).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "quantize"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "dequantize"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "weights", axis=0),
        helper.make_node("Conv", ["xd", "wd", "b" if bias == "float32" else "bd"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    if bias == "int32":
        constants |= {"bq": np.arange(16, dtype=np.int32), "bs": scales * np.float32(0.05), "bz": np.zeros(16, np.int32)}
        nodes.insert(3, helper.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["bd"], "bias", axis=0))
    return save(path, nodes, constants, {"x": [1, 16, 8, 8]})


def build(name, path, *, batch=None, progress=None, **options):
    """Build with one optimization profile, or none."""
    return build_engine(name, path, BuildOptions(() if batch is None else (batch,), **options), progress=progress)


@pytest.fixture
def driver(monkeypatch):
    """Put a driver in place of this machine's; None takes it away."""

    def install(driver):
        def load_library(name, *arguments):
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        monkeypatch.setattr(ctypes, "CDLL", load_library)

    return install


@pytest.fixture
def native(monkeypatch):
    """Stand in for TensorRT itself: TensorRT-RTX's own classes without what TensorRT lacks."""

    def install(version="11.4.0.106", **changes):
        module = ModuleType("tensorrt")
        module.__dict__.update({name: value for name, value in vars(rtx).items() if name != "ComputeCapability"})
        module.__dict__.update({"__version__": version, **changes})
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    return install


@pytest.mark.parametrize(("name", "extra"), [("tensorrt", "relu-deploy[gpu]"), ("tensorrt-rtx", "relu-deploy[rtx]")])
def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path, name, extra):
    # None makes `import` fail as it does for a module that is not there.
    monkeypatch.setitem(sys.modules, backend.MODULES[name], None)
    for found in (probe(name), can_build(name)):
        assert not found.usable
        assert "not installed" in found.reason
        assert f"pip install '{extra}'" in found.fix
    with pytest.raises(BackendUnavailable, match="not installed"):
        build(name, network(tmp_path / "m.onnx"))


def test_libraries_that_do_not_load_and_versions_of_another_interface_are_told_apart(monkeypatch, native):
    def broken(name):
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    with monkeypatch.context() as patch:
        patch.setattr(backend, "import_module", broken)
        assert "libnvinfer.so.11" in probe("tensorrt").reason
    native("8.6.1")
    assert "8.6.1 is installed" in can_build("tensorrt").reason


def test_without_a_driver_no_session_but_tensorrt_rtx_still_builds(driver, native, digits_bundle):
    native()
    driver(None)
    for name in backend.MODULES:
        assert not probe(name).usable
        assert "no NVIDIA driver" in probe(name).reason
        with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
            load(name, digits_bundle, Options())
    assert can_build("tensorrt-rtx").usable
    assert can_build("tensorrt-rtx").version == rtx.__version__
    assert not can_build("tensorrt").usable
    assert "tensorrt-rtx" in can_build("tensorrt").fix


def test_a_driver_that_finds_no_gpu_says_so(driver):
    driver(Driver("", 0, 0, error=100))
    assert "error 100" in probe("tensorrt-rtx").reason


def test_a_gpu_that_tensorrt_rtx_has_no_code_for_is_named(driver, native):
    native()
    driver(Driver("NVIDIA H100 80GB HBM3", 9, 0))
    assert "H100 80GB HBM3 (compute capability 9.0)" in probe("tensorrt-rtx").reason
    assert can_build("tensorrt").usable
    driver(Driver("NVIDIA L4", 8, 9))
    assert probe("tensorrt-rtx").device.startswith("NVIDIA L4")


def test_the_cuda_that_the_library_was_built_for_is_that_of_its_distribution():
    from relu_deploy.backends.tensorrt.probe import _built_with

    names = {name for name in packages_distributions()["tensorrt_rtx"] if "-cu" in name.replace("_", "-")}
    assert {f"cu{_built_with(rtx)}"} == {part for name in names for part in name.replace("_", "-").split("-") if part[:2] == "cu"}


def test_a_gpu_that_is_not_the_first_is_probed_itself(driver, native):
    # TensorRT-RTX has code for the second alone.
    driver(Driver(gpus=[("NVIDIA H100", (9, 0), 80 << 30), ("NVIDIA L4", (8, 9), 24 << 30)]))
    assert "does not run on NVIDIA H100" in probe("tensorrt-rtx").reason
    assert "NVIDIA H100" not in probe("tensorrt-rtx", 1).reason
    assert probe("tensorrt-rtx", 1).device.startswith("NVIDIA L4")


def test_with_a_gpu_sessions_can_run_where_the_cuda_bindings_are(driver, monkeypatch, digits_bundle):
    driver(Driver("NVIDIA L4", 8, 9))
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert "cuda-bindings" in probe("tensorrt-rtx").fix
    with pytest.raises(BackendUnavailable, match="cuda-bindings"):
        load("tensorrt-rtx", Bundle.open(digits_bundle.path), Options())
    monkeypatch.setattr(backend, "find_spec", lambda name: True)
    assert probe("tensorrt-rtx").usable


def test_an_engine_is_built_without_a_gpu_and_without_a_word(tmp_path, capfd):
    path = network(tmp_path / "m.onnx")
    reported = []
    built = build(
        "tensorrt-rtx", path, compute_capabilities=["8.6", "sm89"], progress=lambda done, total: reported.append((done, total))
    )
    assert built.compute_capabilities == ("SM86", "SM89")
    assert len(built.plan) > 8 * 3 * 3 * 3 * 4
    assert built.layers >= 5
    assert built.warnings == ()
    assert built.to_json()["bytes"] == len(built.plan)
    assert reported == sorted(set(reported))
    assert reported[-1] == (1000, 1000)
    assert capfd.readouterr() == ("", "")


def test_ahead_of_time_the_same_graph_gives_an_engine_of_the_same_size(digits_bundle):
    # Not the same bytes: the compiler numbers its temporaries as its threads get to them.
    sizes = {len(build("tensorrt-rtx", digits_bundle.onnx, batch=(1, 1, 8)).plan) for _ in range(4)}
    assert len(sizes) == 1


def test_a_shipped_model_builds_for_a_range_of_batches(digits_bundle):
    built = build("tensorrt-rtx", digits_bundle.onnx, batch=(1, 8, 64))
    ((name, profile), *others) = built.profiles[0].items()
    assert others == []
    assert name == digits_bundle.inputs[0].name
    assert [shape[0] for shape in profile] == [1, 8, 64]
    assert {shape[1:] for shape in profile} == {digits_bundle.inputs[0].shape[1:]}


def test_weights_beside_the_graph_are_read(tmp_path):
    inside = network(tmp_path / "inside.onnx")
    beside = tmp_path / "beside.onnx"
    onnx.save(onnx.load(inside), beside, save_as_external_data=True, location="beside.data", size_threshold=0)
    assert (tmp_path / "beside.data").stat().st_size > 0
    bias = next(numpy_helper.to_array(one) for one in onnx.load(inside).graph.initializer if one.name == "b")
    assert bias.tobytes() in build("tensorrt-rtx", beside).plan


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_precision_is_what_the_graph_says(tmp_path, dtype):
    built = build("tensorrt-rtx", network(tmp_path / "m.onnx", dtype))
    single = build("tensorrt-rtx", network(tmp_path / "single.onnx"))
    assert len(built.plan) != len(single.plan)


def test_tf32_is_used_only_when_asked_for(tmp_path):
    path = network(tmp_path / "m.onnx")
    without, allowed = ({build("tensorrt-rtx", path, tf32=tf32).plan for _ in range(3)} for tf32 in (False, True))
    assert without.isdisjoint(allowed)


def test_an_engine_that_shows_its_tensors_is_the_same_but_for_that(tmp_path):
    path = network(tmp_path / "m.onnx")
    plain, observable = ({build("tensorrt-rtx", path, observable=shows).plan for _ in range(3)} for shows in (False, True))
    assert plain.isdisjoint(observable)
    # Not one kernel more or less: the library's word that this bars no fusion shows in the plan.
    assert {len(plan) for plan in plain} == {len(plan) for plan in observable}
    assert BuildOptions(observable=True).to_json() != BuildOptions().to_json()


@pytest.mark.parametrize("answer", [None, False])
def test_a_library_that_cannot_show_tensors_is_unsupported(tmp_path, monkeypatch, answer):
    class Network:
        """The real network, less the method, or with one that refuses."""

        def __init__(self, network):
            self._network = network

        def __getattr__(self, name):
            if name != "mark_unfused_tensors_as_debug_tensors":
                return getattr(self._network, name)
            if answer is None:
                raise AttributeError(name)
            return lambda: answer

    from relu_deploy.backends.tensorrt.building import build as tensorrt_build

    parsed = tensorrt_build._parsed
    monkeypatch.setattr(tensorrt_build, "_parsed", lambda *args: (Network((found := parsed(*args))[0]), found[1]))
    with pytest.raises(Unsupported, match="shows its tensors"):
        build("tensorrt-rtx", network(tmp_path / "m.onnx"), observable=True)


def test_dimensions_that_vary_need_sizes_that_fit(tmp_path):
    path = network(tmp_path / "m.onnx", batch="N", spatial="S")
    built = build("tensorrt-rtx", path, batch={"x": ((1, 3, 8, 8), (4, 3, 16, 16), (8, 3, 32, 32))})
    assert built.profiles == ({"x": ((1, 3, 8, 8), (4, 3, 16, 16), (8, 3, 32, 32))},)
    for wrong, words in (
        (None, r"'x' of shape \?x3x\?x\? varies"),
        ((1, 2, 4), "more than its batch"),
        ({"x": ((1, 3, 8, 8), (4, 3, 16, 16), (2, 3, 32, 32))}, "cannot be built for"),
        ({"x": ((1, 4, 8, 8), (4, 4, 16, 16), (8, 4, 32, 32))}, "cannot be built for"),
        ({"x": ((0, 3, 8, 8), (4, 3, 16, 16), (8, 3, 32, 32))}, "cannot be built for"),
        ({"x": ((1, 3, 8, 8),) * 3, "z": ((1,),) * 3}, "no input 'z'"),
    ):
        with pytest.raises(UsageError, match=words):
            build("tensorrt-rtx", path, batch=wrong)


def test_arguments_that_make_no_sense_are_refused(tmp_path, driver, native):
    path = network(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="compute capability 9") as refused:
        build("tensorrt-rtx", path, compute_capabilities=["9.0"])
    assert "SM89" in refused.value.hint
    with pytest.raises(UsageError, match="level 6"):
        build("tensorrt-rtx", path, optimization_level=6)
    native()
    driver(Driver("NVIDIA L4", 8, 9))
    with pytest.raises(UsageError, match="GPU of this machine"):
        build("tensorrt", path, compute_capabilities=["8.9"])


def test_the_module_is_the_only_difference(tmp_path, driver, native):
    native("10.16.0")
    driver(Driver("NVIDIA L4", 8, 9))
    path = network(tmp_path / "m.onnx")
    options = {"optimization_level": 2, "workspace_bytes": 2**26}
    built = build("tensorrt", path, **options)
    assert (built.backend, built.version) == ("tensorrt", "10.16.0")
    assert len(built.plan) == len(build("tensorrt-rtx", path, **options).plan)


def test_a_builder_that_cannot_start_is_unavailable(tmp_path, driver, native):
    def builder(logger):
        logger.log(SimpleNamespace(name="ERROR"), "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    native(Builder=builder)
    driver(Driver("NVIDIA L4", 8, 9))
    with pytest.raises(BackendUnavailable, match="CUDA initialization failure"):
        build("tensorrt", network(tmp_path / "m.onnx"))


def test_what_is_no_graph_is_bad_input(tmp_path):
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)) * 4)
    for name, words in (("noise.onnx", "not an ONNX model"), ("nosuch.onnx", "does not exist")):
        with pytest.raises(InputError, match=words):
            build("tensorrt-rtx", tmp_path / name)


def test_every_node_that_the_parser_refuses_is_named(tmp_path):
    nodes = [
        helper.make_node("Mystery", ["x"], ["a"], "riddle", domain="com.example"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Det", ["b"], ["y"], "determinant"),
    ]
    path = save(tmp_path / "m.onnx", nodes, {}, {"x": [2, 4, 4]}, domains=["com.example"])
    with pytest.raises(Refused) as refused:
        build("tensorrt-rtx", path)
    assert [(each.node, each.operator) for each in refused.value.refusals] == [("riddle", "Mystery"), ("determinant", "Det")]
    assert all(each.reason for each in refused.value.refusals)
    assert "Mystery 'riddle'" in refused.value.message
    assert "Det 'determinant'" in refused.value.message
    assert "int8" not in refused.value.hint


def test_a_clip_of_integers_builds_although_the_parser_clips_floats_only(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Clip", ["i", "zero", "six"], ["c"], "clip"),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    bounds = {"zero": np.array(0), "six": np.array(6)}
    build("tensorrt-rtx", save(tmp_path / "m.onnx", nodes, bounds, {"x": [2, 4]}))


def test_an_operator_that_the_parser_does_not_know_is_named_without_talk_of_quantization(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Det", ["r"], ["y"])]
    with pytest.raises(Refused, match="Det: this operator is not supported") as refused:
        build("tensorrt-rtx", save(tmp_path / "m.onnx", nodes, {}, {"x": [2, 4, 4]}))
    assert "quantization" not in refused.value.hint


def test_a_dynamically_quantized_product_is_refused_as_made_for_another_runtime(tmp_path):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "quantize"),
        helper.make_node("MatMulInteger", ["q", "w"], ["p"], "product"),
        helper.make_node("Cast", ["p"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"w": np.ones((3, 16), np.int8)}, {"x": [4, 3]})
    with pytest.raises(Refused, match="MatMulInteger 'product': this operator is not supported") as refused:
        build("tensorrt-rtx", path)
    assert "optimize FLOAT32_MODEL --for tensorrt-rtx --precision int8" in refused.value.hint


def test_an_operator_of_another_runtime_is_refused_in_words(tmp_path):
    weights = {"w": np.ones((1, 3, 16), np.int8), "r": np.ones((1, 4, 16), np.int8)}
    scales = {name: np.ones(1, np.float32) for name in ("ws", "rs")} | {name: np.zeros(1, np.int8) for name in ("wz", "rz")}
    operands = ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
    node = helper.make_node("DynamicQuantizeLSTM", operands, ["y"], "lstm", domain="com.microsoft", hidden_size=4)
    path = save(tmp_path / "m.onnx", [node], weights | scales, {"x": [4, 2, 3]}, domains=["com.microsoft"])
    with pytest.raises(Refused, match="DynamicQuantizeLSTM 'lstm': this operator is not supported") as refused:
        build("tensorrt-rtx", path)
    assert "optimize FLOAT32_MODEL --for tensorrt-rtx --precision int8" in refused.value.hint


def test_an_error_of_the_parser_without_a_node_names_the_operator(tmp_path):
    constants = {"i": np.zeros((1, 4), np.int64), "u": np.ones((1, 4), np.float32)}
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], "scatter", axis=0, reduction="add")
    with pytest.raises(Refused, match="ScatterElements: Unsupported reduction") as refused:
        build("tensorrt-rtx", save(tmp_path / "m.onnx", [node], constants, {"x": [2, 4]}))
    assert [each.operator for each in refused.value.refusals] == ["ScatterElements"]


def test_symmetric_int8_with_a_float_bias_builds(tmp_path):
    built = build("tensorrt-rtx", quantized(tmp_path / "m.onnx"), compute_capabilities=["SM86", "SM89"])
    assert built.warnings == ()


@pytest.mark.parametrize(
    ("changes", "node", "words"), [({"zero_point": 3}, "quantize", "zero point"), ({"bias": "int32"}, "bias", "Int32")]
)
def test_what_tensorrt_cannot_quantize_is_refused_by_name_and_without_talk_of_drivers(tmp_path, changes, node, words):
    with pytest.raises(Refused, match=words) as refused:
        build("tensorrt-rtx", quantized(tmp_path / "m.onnx", **changes))
    assert [each.node for each in refused.value.refusals] == [node]
    assert "driver" not in refused.value.message
    assert "optimize FLOAT32_MODEL --for tensorrt-rtx --precision int8" in refused.value.hint


def test_unsigned_activations_are_not_taken_for_signed_ones_without_a_warning(tmp_path):
    built = build("tensorrt-rtx", quantized(tmp_path / "m.onnx", zero_type=np.uint8))
    assert len(built.warnings) == 1
    assert "Defaulting to INT8" in built.warnings[0]


def test_what_the_compiler_prints_past_its_logger_becomes_a_warning(tmp_path, capfd):
    clip = helper.make_node("Clip", ["x", "low"], ["y"], "clip")
    path = save(tmp_path / "m.onnx", [clip], {"low": np.float16(0.5)}, {"x": [1, 16]}, dtype="float16")
    built = build("tensorrt-rtx", path)
    assert len(built.warnings) == 1
    assert "clip" in built.warnings[0]
    print("stdout is back")
    assert capfd.readouterr() == ("stdout is back\n", "")


def test_fp8_builds_for_ada_and_later_and_elsewhere_the_builder_says_why_not(tmp_path):
    path = quantized(tmp_path / "m.onnx", FLOAT8)
    assert build("tensorrt-rtx", path, compute_capabilities=["SM89", "SM120"]).plan
    with pytest.raises(Unsupported, match="sm86, because the model contains HW-specific datatypes: fp8_e4m3"):
        build("tensorrt-rtx", path, compute_capabilities=["SM86"])


INTERRUPTED = """
import signal, sys, threading, time
from pathlib import Path
from relu_deploy.backends.tensorrt.building.build import build_engine
from relu_deploy.backends.tensorrt.options import BuildOptions

# A process that a script started in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
path, steps = Path(sys.argv[1]), []

def interrupt(done, total):
    steps.append(done)
    if len(steps) == 3:
        time.sleep(0.1)  # the main thread may still be starting this one
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(3.0)  # and has to wake up to notice, on a busy machine too

before = set(threading.enumerate())
try:
    build_engine("tensorrt-rtx", path, BuildOptions(), progress=interrupt)
    sys.exit("the build was not cancelled")
except KeyboardInterrupt:
    pass
assert 1000 not in steps, steps
assert set(threading.enumerate()) <= before, threading.enumerate()
assert build_engine("tensorrt-rtx", path, BuildOptions()).plan
print("built")
"""


def test_an_interrupt_cancels_the_build_and_the_next_one_works(tmp_path):
    # In a process of its own: a signal that comes late would end the tests.
    command = [sys.executable, "-c", INTERRUPTED, network(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "built\n"), done.stderr


def test_what_progress_raises_cancels_the_build_and_goes_on_up(tmp_path):
    reported = []

    def fail(done, total):
        reported.append(done)
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        build("tensorrt-rtx", network(tmp_path / "m.onnx"), progress=fail)
    assert len(reported) == 1


def test_builds_of_several_threads_wait_for_each_other(tmp_path):
    path = network(tmp_path / "m.onnx")
    order = []

    def work():
        me = threading.get_ident()

        def note(done, total):
            order.append(me)
            time.sleep(0.001)  # lets the other thread in, if anything does

        build("tensorrt-rtx", path, progress=note)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) > 10
    assert sum(one != other for one, other in itertools.pairwise(order)) == 1
