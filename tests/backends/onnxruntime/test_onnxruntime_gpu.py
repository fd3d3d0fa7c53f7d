"""ONNX Runtime's GPU providers without a GPU: their options, the refusal to fall back, and buffers that are bound once.

The session is always the real ONNX Runtime's. Buffers are bound on its CPU provider, to a double of the CUDA driver whose
memory is this process's; the provider that takes no node is the Azure one, which the CPU flavor has.
"""

import ctypes

import ml_dtypes
import numpy as np
import onnx
import pytest
from doubles import CudaDriver
from onnx import TensorProto, helper

from relu_deploy.backends import BACKENDS, Options, load, probe
from relu_deploy.backends.nvidia.cuda import Device
from relu_deploy.backends.nvidia.driver import Gpu, Missing
from relu_deploy.backends.onnxruntime import load_gpu as onnx_runtime_gpu
from relu_deploy.backends.onnxruntime import session as onnx_runtime
from relu_deploy.backends.onnxruntime.errors import message_of
from relu_deploy.backends.onnxruntime.gpu import OnnxRuntimeGpuSession
from relu_deploy.backends.onnxruntime.io_binding import OnnxRuntimeIoBinding
from relu_deploy.backends.onnxruntime.load_gpu import load_on_gpu
from relu_deploy.backends.onnxruntime.placement import require_provider
from relu_deploy.backends.onnxruntime.probe import needs_nvidia
from relu_deploy.backends.onnxruntime.providers import cache_folder, default_profile, options_for, require_in_profile
from relu_deploy.backends.onnxruntime.session import OnnxRuntimeSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import BackendUnavailable, InputError, Unsupported
from relu_deploy.tensors import TensorSpec

ON_GPU = [name for name in BACKENDS if name.startswith("onnxruntime-") and needs_nvidia(name)]
L4 = Gpu(0, "NVIDIA L4", (8, 9), 24 << 30)


class Eager(CudaDriver):
    """The CUDA driver's double, but every copy happens at once: the CPU provider does not wait for a stream either."""

    def enqueue(self, stream, work, milliseconds=0.0):
        work()

    def bytes_at(self, address, count):
        try:
            return super().bytes_at(address, count)
        except AssertionError:
            # What ONNX Runtime allocated itself.
            return np.frombuffer((ctypes.c_uint8 * count).from_address(address), np.uint8)


def model(folder, kind=TensorProto.FLOAT, found=False):
    """A bundle of relu(x) as "y", and if asked for where it is positive, as "found": nobody knows how often before the run."""
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    outputs = [helper.make_tensor_value_info("y", kind, ["batch", 3])]
    if found:
        nodes.append(helper.make_node("NonZero", ["y"], ["found"], "found"))
        outputs.append(helper.make_tensor_value_info("found", TensorProto.INT64, [2, "found"]))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, ["batch", 3])], outputs)
    file = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return Bundle.open(file)


@pytest.fixture
def bind(tmp_path):
    """Bind a model's buffers: bind(feeds, found=, profile=) -> what `bind` returns, with the session and the double."""

    def begin(feeds, bundle=None, profile=None, **changes):
        bundle = bundle or model(tmp_path, **changes)
        session = load(bundle, "onnxruntime-cpu")
        runtime = Eager()
        bound = OnnxRuntimeIoBinding(session, Device(0, runtime).stream(), feeds, "cpu", profile)
        bound.session, bound.double = session, runtime
        return bound

    return begin


def numbers(batch, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3)).astype(np.float32)


# ---------------------------------------------------------------- bound buffers


def test_bound_buffers_give_what_the_session_gives(bind, digits_bundle):
    draw = np.random.default_rng(0).standard_normal
    feeds = [{"x": draw((5, 1, 28, 28)).astype(np.float32)} for _ in range(3)]
    bound = bind(feeds[0], digits_bundle)
    for each in (*feeds, feeds[0]):
        bound.upload(each)
        bound.run()
        results, expected = bound.download(), bound.session.run(each)
        assert list(results) == list(expected)
        assert all(np.array_equal(results[name], expected[name]) for name in expected)
        assert len(np.unique(results[digits_bundle.outputs[0].name])) > 1


def test_outputs_are_the_callers_to_keep(bind):
    bound = bind({"x": numbers(2)})
    bound.upload({"x": numbers(2)})
    bound.run()
    kept = bound.download()["y"]
    before = kept.copy()
    bound.upload({"x": -numbers(2)})
    bound.run()
    assert not np.array_equal(bound.download()["y"], before)
    assert np.array_equal(kept, before)


def test_an_output_of_unknown_size_has_another_one_each_run(bind):
    bound = bind({"x": numbers(4)}, found=True)
    for x in (numbers(4), -np.ones((4, 3), np.float32), np.ones((4, 3), np.float32), numbers(4, seed=1)):
        bound.upload({"x": x})
        bound.run()
        results = bound.download()
        assert np.array_equal(results["y"], np.maximum(x, 0))
        assert results["found"].dtype == np.int64
        assert np.array_equal(results["found"], np.stack(np.nonzero(x > 0)))


def test_half_precision_and_taps_are_bound_too(bind, digits_bundle):
    from relu_deploy.graph import find_relus, load_model

    x = numbers(4).astype(np.float16)
    bound = bind({"x": x}, kind=TensorProto.FLOAT16)
    bound.upload({"x": x})
    bound.run()
    assert np.array_equal(bound.download()["y"], np.maximum(x, 0))
    relus = tuple(find_relus(load_model(digits_bundle.onnx)))
    feeds = {"x": np.ones((2, 1, 28, 28), np.float32)}
    tapped = load(digits_bundle, "onnxruntime-cpu", taps=relus)
    bound = OnnxRuntimeIoBinding(tapped, Device(0, Eager()).stream(), feeds, "cpu")
    bound.upload(feeds)
    bound.run()
    results, expected = bound.download(), tapped.run(feeds)
    assert {relu.output for relu in relus} < set(results)
    assert all(np.array_equal(results[name], expected[name]) for name in expected)


def test_bfloat16_is_bound_by_its_number(tmp_path):
    # Identity is one of the few things that the CPU provider does with bfloat16.
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"], "same")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["batch", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    x = numbers(2).astype(ml_dtypes.bfloat16)
    session = load(Bundle.open(tmp_path / "m.onnx"), "onnxruntime-cpu")
    bound = OnnxRuntimeIoBinding(session, Device(0, Eager()).stream(), {"x": x}, "cpu")
    bound.upload({"x": x})
    bound.run()
    y = bound.download()["y"]
    assert y.dtype == x.dtype
    assert np.array_equal(y.view(np.uint16), x.view(np.uint16))


def test_what_does_not_fit_is_refused_and_what_was_bound_still_runs(bind):
    bound = bind({"x": numbers(2)})
    with pytest.raises(Unsupported, match="no outputs yet"):
        bound.download()
    with pytest.raises(InputError, match="was bound for"):
        bound.upload({"x": numbers(3)})
    with pytest.raises(InputError, match="must be float32"):
        bound.upload({"x": numbers(2).astype(np.float64)})
    with pytest.raises(InputError, match="no array for input"):
        bound.upload({})
    bound.upload({"x": numbers(2)})
    bound.run()
    assert np.array_equal(bound.download()["y"], np.maximum(numbers(2), 0))


def test_closing_gives_everything_back_once(bind):
    bound = bind({"x": numbers(4)}, found=True)
    bound.upload({"x": np.ones((4, 3), np.float32)})
    bound.run()
    bound.download()
    assert bound.double.alive
    bound.close()
    bound.close()
    assert not bound.double.alive
    assert not bound.double.events


def test_buffers_that_do_not_fit_the_gpu_leave_nothing_behind(tmp_path):
    runtime = Eager(memory=100)
    session = load(model(tmp_path), "onnxruntime-cpu")
    with pytest.raises(Unsupported, match="CUDA_ERROR_OUT_OF_MEMORY") as refused:
        OnnxRuntimeIoBinding(session, Device(0, runtime).stream(), {"x": numbers(6)}, "cpu")
    assert "smaller batch" in refused.value.hint
    assert not runtime.alive


def test_a_batch_that_the_engine_is_not_compiled_for_is_refused_before_it_is_bound(bind):
    profile = {"x": ((1, 3), (2, 3), (4, 3))}
    assert bind({"x": numbers(4)}, profile=profile).shapes == {"x": (4, 3)}
    with pytest.raises(InputError, match=r"outside the range that the engine was compiled for, \(1, 3\) to \(4, 3\)") as refused:
        bind({"x": numbers(5)}, profile=profile)
    assert refused.value.hint == "split the batch into parts of at most 4"


def test_outputs_keep_their_names_when_one_of_unknown_size_comes_first(bind, tmp_path):
    bundle = model(tmp_path, found=True)
    graph = onnx.load(bundle.onnx)
    y, found = graph.graph.output
    del graph.graph.output[:]
    graph.graph.output.extend([found, y])
    onnx.save(graph, bundle.onnx)
    feeds = {"x": numbers(4)}
    bound = bind(feeds, bundle=Bundle.open(bundle.onnx))
    for _ in range(2):
        bound.upload(feeds)
        bound.run()
        got = bound.download()
        np.testing.assert_array_equal(got["y"], np.maximum(feeds["x"], 0))
        np.testing.assert_array_equal(got["found"], np.nonzero(feeds["x"] > 0))


class OnHost(OnnxRuntimeGpuSession):
    """A session on a GPU whose memory is the host's."""

    place = "cpu"


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A session as it is on a GPU, of ONNX Runtime's CPU provider, with a stream of the double."""
    bundle, runtime = model(tmp_path), Eager()
    profile = {"x": ((1, 3), (8, 3), (32, 3))}
    plain = load(bundle, "onnxruntime-cpu").runtime
    for module in (onnx_runtime, onnx_runtime_gpu):
        monkeypatch.setattr(module, "PROVIDERS", {"onnxruntime-cuda": "CPUExecutionProvider"})
    made = OnHost("onnxruntime-cuda", bundle, plain, Options(), L4, Device(0, runtime).stream(), profile)
    made.double = runtime
    return made


def test_closing_a_session_closes_what_is_bound_before_the_stream(session):
    bounds = [session.bind({"x": numbers(batch)}) for batch in (2, 4)]
    for bound, batch in zip(bounds, (2, 4), strict=True):
        assert bound.stream == int(session.stream)
        bound.upload({"x": numbers(batch)})
        bound.run()
        assert np.array_equal(bound.download()["y"], session.run({"x": numbers(batch)})["y"])
    session.close()
    assert not session.double.alive
    assert not session.double.queues
    for bound in bounds:
        bound.close()


def test_a_session_says_what_it_runs_on_and_what_it_is_compiled_for(session):
    assert session.facts["device"] == str(L4)
    assert session.facts["stream"] == "shared"
    assert session.facts["profile"] == {"x": [[1, 3], [8, 3], [32, 3]]}
    with pytest.raises(InputError, match="outside the range that the engine was compiled for"):
        session.run({"x": numbers(33)})
    with pytest.raises(InputError, match="no array for input"):
        session.run({})


def test_without_cuda_bindings_a_session_runs_and_cannot_be_bound(session):
    session.stream.close()
    session.stream = None
    assert np.array_equal(session.run({"x": numbers(2)})["y"], np.maximum(numbers(2), 0))
    with pytest.raises(BackendUnavailable, match="cuda-bindings") as refused:
        session.bind({"x": numbers(2)})
    assert refused.value.hint == "pip install cuda-bindings"


# ---------------------------------------------------------------- options


def test_float32_is_computed_in_float32_unless_tf32_is_asked_for():
    assert options_for("onnxruntime-cuda", 2) == {
        "device_id": "2",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    assert options_for("onnxruntime-cuda", 0, tf32=True)["use_tf32"] == "1"


def test_a_stream_is_handed_over_as_a_number():
    for name in ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"):
        options = options_for(name, 0, stream=0x7F00)
        assert (options["has_user_compute_stream"], options["user_compute_stream"]) == ("1", "32512")
        assert "user_compute_stream" not in options_for(name, 0)


@pytest.mark.parametrize(
    ("precisions", "switches"),
    [
        ({"float32"}, set()),
        ({"float32", "int8"}, {"trt_int8_enable"}),
        ({"float16", "float32"}, {"trt_fp16_enable"}),
        ({"bfloat16", "int8"}, {"trt_bf16_enable", "trt_int8_enable"}),
    ],
)
def test_tensorrt_is_allowed_the_precisions_of_the_graph_and_no_others(precisions, switches):
    options = options_for("onnxruntime-tensorrt", 0, precisions=frozenset(precisions))
    assert {name for name in options if name.endswith("_enable")} == switches
    assert all(options[name] == "1" for name in switches)


def test_float8_has_no_switch_in_that_provider():
    with pytest.raises(Unsupported, match="no option to enable float8"):
        options_for("onnxruntime-tensorrt", 0, precisions=frozenset({"float8"}))
    # TensorRT-RTX takes every precision from the graph.
    assert options_for("onnxruntime-tensorrt-rtx", 0, precisions=frozenset({"float8"})) == {}


def test_compiled_engines_and_profiles_are_named_to_each_provider_in_its_own_words(tmp_path):
    inputs = (
        TensorSpec("x", "float32", ("n", 3, 8, 8)),
        TensorSpec("scale", "float32", (1,)),
        TensorSpec("z", "int64", ("n", 2)),
    )
    profile = default_profile(inputs)
    assert profile == {
        "x": ((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8)),
        "z": ((1, 2), (8, 2), (32, 2)),
    }
    options = options_for("onnxruntime-tensorrt", 0, profile=profile, cache=tmp_path)
    assert options["trt_profile_min_shapes"] == "x:1x3x8x8,z:1x2"
    assert options["trt_profile_opt_shapes"] == "x:8x3x8x8,z:8x2"
    assert options["trt_profile_max_shapes"] == "x:32x3x8x8,z:32x2"
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)
    options = options_for("onnxruntime-tensorrt-rtx", 0, profile=profile, cache=tmp_path)
    assert options["nv_profile_max_shapes"] == "x:32x3x8x8,z:32x2"
    assert options["nv_runtime_cache_path"] == str(tmp_path)


def test_sizes_that_are_not_known_are_left_to_the_provider():
    fixed, anywhere = TensorSpec("x", "float32", (2, 3)), TensorSpec("x", "float32", ("n", 3, "h", "w"))
    numbers_alone = TensorSpec("x", "float32", ("n",))
    assert [default_profile((spec,)) for spec in (fixed, anywhere, numbers_alone)] == [None, None, None]
    require_in_profile(None, {"x": (1000, 3)}, "m")


def test_graphs_of_other_weights_do_not_share_a_folder_of_engines(digits_copy):
    one = cache_folder("onnxruntime-tensorrt", digits_copy, None, "1.31.1")
    assert one.is_dir()
    assert one.parent == digits_copy.path / "engines"
    assert cache_folder("onnxruntime-tensorrt", digits_copy, None, "1.31.1") == one
    assert cache_folder("onnxruntime-tensorrt", digits_copy, None, "1.32.0") != one
    assert cache_folder("onnxruntime-tensorrt", digits_copy, b"tapped", "1.31.1") != one
    # The same nodes and shapes, one weight changed.
    graph = onnx.load(digits_copy.onnx)
    weight = next(each for each in graph.graph.initializer if len(each.raw_data) > 64)
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    onnx.save(graph, digits_copy.onnx)
    assert cache_folder("onnxruntime-tensorrt", digits_copy, None, "1.31.1") != one


# ---------------------------------------------------------------- no falling back


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Let loading find a GPU, and stand ONNX Runtime's Azure provider in for one that takes no node."""
    import onnxruntime

    other = "AzureExecutionProvider"
    if other not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has no AzureExecutionProvider: install its build for the CPU")
    monkeypatch.setattr(onnx_runtime_gpu, "gpu_of", lambda name, index: L4)
    monkeypatch.setattr(onnx_runtime_gpu, "PROVIDERS", {"onnxruntime-cuda": other})
    monkeypatch.setattr(onnx_runtime_gpu, "options_for", lambda *_, **__: {})
    monkeypatch.setattr(onnx_runtime_gpu, "_stream", lambda device: None)
    monkeypatch.setattr(onnx_runtime_gpu, "_open_libraries", lambda *_: None)


def test_nodes_that_the_provider_does_not_take_are_named_and_nothing_runs(on_a_gpu, tmp_path):
    bundle = model(tmp_path, found=True)
    with pytest.raises(Unsupported) as refused:
        load_on_gpu("onnxruntime-cuda", bundle, Options(), str(bundle.onnx))
    assert refused.value.message == "onnxruntime-cuda has no kernel for 2 nodes of m: Relu 'relu', NonZero 'found'"
    assert refused.value.exit_code == 3


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_told_from_nodes_that_it_does_not_take(on_a_gpu, monkeypatch, tmp_path):
    bundle = model(tmp_path)
    monkeypatch.setattr(onnx_runtime_gpu, "PROVIDERS", {"onnxruntime-cuda": "NoSuchExecutionProvider"})
    with pytest.raises((Unsupported, BackendUnavailable)) as refused:
        load_on_gpu("onnxruntime-cuda", bundle, Options(), str(bundle.onnx))
    assert "has no kernel" not in refused.value.message
    # What the real CUDA provider does without a driver: the session is made, and is the CPU's.
    session = load(bundle, "onnxruntime-cpu").runtime
    with pytest.raises(BackendUnavailable, match="ONNX Runtime could not start NoSuchExecutionProvider"):
        require_provider("onnxruntime-cuda", "NoSuchExecutionProvider", session, bundle)


def test_a_session_that_is_another_providers_is_refused(tmp_path):
    bundle = model(tmp_path)
    cpu = load(bundle, "onnxruntime-cpu")
    with pytest.raises(Unsupported, match="would run part of m on CPUExecutionProvider"):
        OnnxRuntimeSession("onnxruntime-cuda", bundle, cpu.runtime, Options())


@pytest.mark.parametrize("name", ON_GPU)
def test_loading_on_a_gpu_that_is_not_there_says_which_are(monkeypatch, tmp_path, name):
    missing = Missing("there is no GPU 3: this process sees 0 (NVIDIA L4)", "use --device 0 to 0")
    monkeypatch.setattr(onnx_runtime_gpu, "gpu_of", lambda name, index: missing if index == 3 else L4)
    bundle = model(tmp_path)
    with pytest.raises(BackendUnavailable, match="there is no GPU 3: this process sees 0") as refused:
        load_on_gpu(name, bundle, Options(device=3), str(bundle.onnx))
    assert refused.value.hint == missing.fix


def test_errors_are_told_without_the_runtimes_source_lines():
    for reported, expected in (
        (
            "/onnxruntime_src/onnxruntime/python/state.cc:729 void onnxruntime::python::Register(Options&, const Other&) "
            "Please install TensorRT libraries.\n",
            "Please install TensorRT libraries.",
        ),
        (
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Relu(14)",
            "Could not find an implementation for Relu(14)",
        ),
        ("plain words", "plain words"),
        ("", "RuntimeError"),
    ):
        assert message_of(RuntimeError(reported)) == expected


# ---------------------------------------------------------------- where there is a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_on_a_gpu_bound_runs_give_the_answers_of_plain_ones_and_of_the_cpu(digits_bundle, name):
    found = probe(name)
    if not found.usable:
        pytest.skip(f"{name} is not usable here: {found.reason}")
    session, cpu = load(digits_bundle, name), load(digits_bundle, "onnxruntime-cpu")
    draw = np.random.default_rng(0).standard_normal
    feeds = [{"x": draw((4, 1, 28, 28)).astype(np.float32)} for _ in range(3)]
    bound = session.bind(feeds[0])
    for each in feeds:
        bound.upload(each)
        bound.run()
        results, plain, expected = bound.download(), session.run(each), cpu.run(each)
        for output, array in expected.items():
            assert np.array_equal(results[output], plain[output])
            np.testing.assert_allclose(plain[output], array, rtol=1e-3, atol=1e-4)
    assert set(session.facts["nodes_by_provider"]) == {onnx_runtime.PROVIDERS[name]}
    session.close()
