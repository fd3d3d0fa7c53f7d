"""How engines are run: profiles, buffers, outputs of unknown size and refusals. The library and the GPU are test doubles;
the plan that is looked at and the base class of the allocator are the real TensorRT-RTX's where it is installed."""

import gc

import doubles
import ml_dtypes
import numpy as np
import pytest
from doubles import FLOAT8, CudaDriver, bundle_of, engine_in, plan_of, tensorrt

from relu_deploy.backends import Options
from relu_deploy.backends.nvidia.cuda import CudaError, Device
from relu_deploy.backends.tensorrt.buffers import GrowingOutput, allocator
from relu_deploy.backends.tensorrt.errors import plan_version, refusal_reason
from relu_deploy.backends.tensorrt.load import load_session
from relu_deploy.backends.tensorrt.session import Profile, TensorRtSession, choose_profile
from relu_deploy.errors import InputError, Unsupported

ONE = [((1, 3), (4, 3), (8, 3))]
TWO = [*ONE, ((4, 3), (64, 3), (128, 3))]


@pytest.fixture
def start(tmp_path):
    """Start a session on test doubles: start(ranges, dtype=, outputs=) -> session."""

    def begin(ranges=ONE, memory=1 << 30, **options):
        runtime = CudaDriver(memory=memory)
        trt, engine = tensorrt(runtime, ranges, **options)
        shared = {name: options[name] for name in ("dtype", "outputs") if name in options}
        bundle = bundle_of(tmp_path, **shared)
        session = TensorRtSession("tensorrt", bundle, engine_in(tmp_path, plan_of()), Device(0, runtime), trt)
        session.runtime_double, session.engine_double = runtime, engine
        return session

    return begin


def numbers(batch, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, 3)).astype(dtype)


# ---------------------------------------------------------------- profiles


def profiles(*ranges):
    return [Profile(index, {"x": one}) for index, one in enumerate(ranges)]


def test_the_profile_is_the_one_whose_usual_shape_is_nearest():
    both = profiles(*TWO)
    chosen = {batch: choose_profile(both, {"x": (batch, 3)}, "m").index for batch in (1, 3, 4, 8, 9, 128)}
    assert chosen == {1: 0, 3: 0, 4: 0, 8: 0, 9: 1, 128: 1}
    # 16 lies in both; 8 is twice, 64 four times as far.
    wide = profiles(((1, 3), (8, 3), (64, 3)), ((1, 3), (64, 3), (64, 3)))
    assert [choose_profile(wide, {"x": (batch, 3)}, "m").index for batch in (8, 16, 33)] == [0, 0, 1]


def test_shapes_that_no_profile_takes_are_answered_with_those_that_are():
    with pytest.raises(InputError, match=r"not built for x 200x3; it takes x 1x3 to 8x3 or x 4x3 to 128x3") as refused:
        choose_profile(profiles(*TWO), {"x": (200, 3)}, "m")
    assert "--batch" in refused.value.hint


def test_a_session_switches_profiles_with_the_batch(start):
    session = start(TWO)
    for batch in (1, 100, 8):
        x = numbers(batch)
        assert np.array_equal(session.run({"x": x})["y"], np.maximum(x, 0))
    assert [context.active_optimization_profile for context in session.engine_double.contexts] == [0, 1, 0]


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, FLOAT8])
def test_every_dtype_comes_back_as_itself(start, dtype):
    x = numbers(2, dtype)
    y = start(dtype=np.dtype(dtype).name).run({"x": x})["y"]
    assert y.dtype == dtype
    assert np.array_equal(y.astype(np.float32), np.maximum(x.astype(np.float32), 0))


def test_answers_stay_what_they_were_when_the_next_one_comes(start):
    session = start()
    first, second = numbers(2, seed=1), numbers(2, seed=2)
    kept = session.run({"x": first})["y"]
    session.run({"x": second})
    assert np.array_equal(kept, np.maximum(first, 0))


def test_a_bound_run_waits_for_nothing_until_its_answer_is_read(start):
    session = start()
    bound = session.bind({"x": numbers(2)})
    runs = [numbers(2, seed=seed) for seed in range(3)]
    for x in runs:
        bound.upload({"x": x})
        bound.run()
    # What is still to be copied must not be overwritten by the next upload, which comes after the run in the stream.
    bound.upload({"x": runs[0]})
    assert np.array_equal(bound.download()["y"], np.maximum(runs[-1], 0))
    bound.upload({"x": runs[0]})
    bound.run()
    assert session.runtime_double.queues[bound.stream]
    assert np.array_equal(bound.download()["y"], np.maximum(runs[0], 0))


def test_the_second_run_of_a_shape_is_a_cuda_graph(start):
    session = start()
    for seed in range(4):
        x = numbers(2, seed=seed)
        assert np.array_equal(session.run({"x": x})["y"], np.maximum(x, 0))
    assert session.runtime_double.calls == ["instantiate", "launch", "launch", "launch"]
    session.run({"x": numbers(3)})
    assert session.runtime_double.calls[-1] == "instantiate"


def test_an_input_that_is_on_the_gpu_is_copied_within_it(start):
    session = start()
    x = numbers(2)

    class OnGpu:
        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, stream):
            assert stream == int(session.stream)
            return held.__dlpack__()

    # Memory that the doubled runtime knows as the GPU's.
    buffer = session.gpu.buffer(x.nbytes)
    held = session.runtime_double.array_at(buffer.pointer, x.shape, "float32")
    held[...] = x
    bound = session.bind({"x": OnGpu()})
    bound.upload({"x": OnGpu()})
    bound.run()
    assert np.array_equal(bound.download()["y"], np.maximum(x, 0))


def test_wrong_feeds_are_refused_before_anything_runs(start):
    session = start()
    with pytest.raises(InputError, match="must be float32"):
        session.run({"x": np.zeros((1, 3))})
    with pytest.raises(InputError, match="not built for x 9x3"):
        session.run({"x": numbers(9)})
    bound = session.bind({"x": numbers(2)})
    with pytest.raises(InputError, match="was bound for"):
        bound.upload({"x": numbers(3)})


def test_old_shapes_make_room_and_closing_frees_all_of_it(start):
    session = start()
    for batch in range(1, 9):
        session.run({"x": numbers(batch)})
    runtime = session.runtime_double
    assert len(runtime.alive) <= 4 * 4
    bound = session.bind({"x": numbers(2)})
    session.close()
    session.close()
    bound.close()
    gc.collect()
    assert not runtime.alive
    assert not runtime.events
    assert not runtime.queues


def test_batches_of_any_size_share_the_contexts_of_a_few(start):
    session = start()
    for _ in range(2):
        for batch in (3, 1, 8, 5, 2, 7, 4, 6):
            x = numbers(batch, seed=batch)
            assert np.array_equal(session.run({"x": x})["y"], np.maximum(x, 0))
    # 1, 2, 4 and 8 rows: each context is captured once and never made again.
    assert len(session.engine_double.contexts) == 4
    assert session.runtime_double.calls.count("instantiate") == 4
    assert session.facts["batch_sizes"] == [1, 2, 4, 8]


def test_every_size_of_the_profiles_keeps_its_context(start):
    session = start(TWO)
    # Powers of two within the profiles; the usual and largest batches are among them.
    assert session.facts["batch_sizes"] == [1, 2, 4, 8, 16, 32, 64, 128]
    for batch in (*range(1, 9), 16, 32, 64, 128, *range(1, 9)):
        session.run({"x": numbers(batch)})
    assert len(session.engine_double.contexts) == 8


def test_batches_are_not_padded_where_an_output_has_no_rows(start):
    session = start(outputs=("y", "kept"))
    x = numbers(3)
    assert np.array_equal(session.run({"x": x})["kept"], x[x > 0])
    assert "batch_sizes" not in session.facts


def test_contexts_share_one_block_of_memory_for_activations(start):
    session = start(TWO)
    session.engine_double.device_memory_size_v2 = 4096
    for batch in (1, 2, 100):
        session.run({"x": numbers(batch)})
    bound = session.bind({"x": numbers(3)})
    contexts = session.engine_double.contexts
    assert {context.strategy for context in contexts} == {"USER_MANAGED"}
    assert len(contexts) == 4
    assert len({context.memory for context in contexts}) == 1
    assert contexts[0].memory[1] == 4096
    bound.close()
    session.close()
    assert not session.runtime_double.alive


def test_the_real_library_takes_memory_of_the_callers():
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'relu-deploy[rtx-build]')", exc_type=ImportError
    )
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert hasattr(trt.IRuntimeConfig, "set_execution_context_allocation_strategy")
    assert hasattr(trt.ICudaEngine, "device_memory_size_v2")
    assert "256-byte aligned device memory" in trt.IExecutionContext.set_device_memory.__doc__


def test_facts_say_what_runs_where(start):
    session = start(TWO)
    facts = session.facts
    assert facts["library"] == "TensorRT 11.4.0.106"
    assert facts["precision"] == "float32"
    assert facts["engine"] == "5f0c"
    assert facts["profiles"][1] == {"x": [[4, 3], [64, 3], [128, 3]]}
    assert "captured" in facts["cuda_graph"]


def test_an_engine_of_another_model_is_refused_by_name(start):
    with pytest.raises(InputError, match=r"has outputs z; m has y"):
        start(names=["z"])


def test_relus_inside_an_engine_are_refused_with_the_reason(digits_bundle):
    from relu_deploy.graph import find_relus, load_model

    relus = tuple(find_relus(load_model(digits_bundle.onnx)))
    with pytest.raises(Unsupported, match="exposes only its outputs"):
        load_session("tensorrt", digits_bundle, Options(taps=relus))


# ---------------------------------------------------------------- outputs whose size only the run tells


def test_outputs_that_depend_on_the_data_grow_as_they_need_to(start):
    session = start(outputs=("y", "kept"))
    for batch, low in ((1, -9.0), (8, 0.5), (2, 0.5), (8, -9.0)):
        x = np.full((batch, 3), low, np.float32)
        x[0, 0] = 4
        answer = session.run({"x": x})
        assert np.array_equal(answer["kept"], x[x > 0])
        assert np.array_equal(answer["y"], np.maximum(x, 0))
    assert session.runtime_double.calls == []
    assert session.facts["cuda_graph"] == "none: the shapes of outputs depend on the data"


def test_nothing_found_is_an_empty_array(start):
    answer = start(outputs=("y", "kept")).run({"x": -np.ones((2, 3), np.float32)})
    assert answer["kept"].shape == (0,)
    assert answer["kept"].dtype == np.float32


def test_memory_that_is_not_there_in_the_middle_of_a_run_is_said_after_it(start):
    session = start(outputs=("y", "kept"))
    bound = session.bind({"x": np.ones((8, 3), np.float32)})
    bound.upload({"x": np.ones((8, 3), np.float32)})
    session.runtime_double.left = 10
    with pytest.raises(CudaError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        bound.run()


def test_the_allocator_is_what_the_library_expects():
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'relu-deploy[rtx-build]')", exc_type=ImportError
    )
    gpu = Device(0, CudaDriver())
    output = GrowingOutput(gpu, "float32")
    made = allocator(trt, output)
    assert isinstance(made, trt.IOutputAllocator)
    first = made.reallocate_output("y", 0, 100, 256)
    assert made.reallocate_output_async("y", first, 60, 256, 0) == first
    made.reallocate_output_async("y", first, 101, 256, 0)
    assert len(gpu.driver.freed) == 1
    made.notify_shape("y", trt.Dims([5, 4]))
    assert output.shape == (5, 4)
    assert output.nbytes == 80
    gpu.driver.left = 0
    assert made.reallocate_output("y", 0, 10**6, 256) == 0
    assert "CUDA_ERROR_OUT_OF_MEMORY" in str(output.error)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is generated on an incompatible "
            "device, expecting compute 8.9 got compute 8.6, please rebuild.)",
            "it was built for compute capability 8.6, and this GPU has 8.9",
        ),
        (
            "Error Code 1: Serialization (Serialization assertion stdVersionRead == serializationVersion failed.Version tag does "
            "not match. Note: Current Version: 213, Serialized Engine Version: 205)",
            "TensorRT 10.3.0.26 built it, and TensorRT 11.4.0.106 is installed (205 and 213 are their numbers of the file's format)",
        ),
        (
            "Platform specific tag mismatch detected. TensorRT plan files are only supported on the target runtime platform",
            "system",
        ),
        ("could not find plugin: EfficientNMS_TRT version: 1", "the plugin EfficientNMS_TRT, which is not loaded"),
        ("Requested amount of GPU memory (17 bytes) could not be allocated: out of memory", "too little free memory"),
        (
            "Error Code 1: Serialization (Serialization assertion size >= 8 failed.)",
            "10.3.0.26 built it, and TensorRT 11.4.0.106",
        ),
        ("something nobody has seen before", "TensorRT 10.3.0.26 built it, and TensorRT 11.4.0.106 is installed"),
    ],
)
def test_a_refusal_is_explained_in_words(said, expected):
    reason = refusal_reason("TensorRT", "11.4.0.106", plan_of("10.3.0.26"), [said, "Engine deserialization failed."])
    assert expected in reason.text
    assert reason.fix


def test_files_that_are_no_engines_are_told_apart():
    def why(plan):
        return refusal_reason("TensorRT", "11.4.0.106", plan, ["magicTag"])

    assert why(b"").text == "the file is empty"
    assert "another kind of file" in why(b"\x08\x0a\x12\x07pytorch" * 9).text
    rtx = why(plan_of("1.7.1.116", b"vtrt"))
    assert "TensorRT-RTX 1.7.1.116 built it, and this is TensorRT" in rtx.text
    assert "tensorrt-rtx" in rtx.fix
    notes = b'{"names": ["cat"]}'
    assert "22 bytes of another tool's metadata" in why(len(notes).to_bytes(4, "little") + notes + plan_of()).text
    cut = refusal_reason("TensorRT", "11.4.0.106", plan_of(), ["Serialization assertion failed"])
    assert cut.text == "it is truncated or damaged"


def test_what_is_in_no_list_is_said_as_the_library_said_it():
    assert refusal_reason("TensorRT", "11.4.0.106", plan_of(), ["first", "last"]).text == "first; last"
    assert "does not say why" in refusal_reason("TensorRT", "11.4.0.106", plan_of(), []).text


def test_a_session_names_the_file_and_the_reason(start, tmp_path):
    with pytest.raises(Unsupported, match=r"m\.engine, the engine of m, cannot be used: .* capability 8\.6") as refused:
        start(refuses="incompatible device, expecting compute 9.0 got compute 8.6, please rebuild.")
    assert "compile it again" in refused.value.hint


def test_the_real_librarys_plans_say_which_version_wrote_them(tmp_path):
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'relu-deploy[rtx-build]')", exc_type=ImportError
    )
    from relu_deploy.backends.tensorrt.building.build import build_engine
    from relu_deploy.backends.tensorrt.logger import logger_of
    from relu_deploy.backends.tensorrt.options import BuildOptions

    bundle = bundle_of(tmp_path)
    plan = build_engine("tensorrt-rtx", bundle.onnx, BuildOptions(((1, 1, 8),))).plan
    assert plan_version(plan) == ("TensorRT-RTX", trt.__version__)
    runtime = trt.Runtime(logger_of(trt))
    validity, diagnoses = runtime.get_engine_validity(b"no engine at all " * 9)
    assert validity == trt.EngineValidity.INVALID
    reason = refusal_reason("TensorRT-RTX", trt.__version__, plan, [], diagnoses, trt.EngineInvalidityDiagnostics)
    assert reason.text == "the file is no engine, or is damaged"


@pytest.mark.parametrize("call", ["infer_shapes", "set_optimization_profile_async"])
def test_an_exception_of_the_bindings_is_an_error_with_its_words(start, monkeypatch, call):
    session = start(TWO)

    def fails(*_):
        raise RuntimeError("Input x has no shape")

    monkeypatch.setattr(doubles.Context, call, fails)
    with pytest.raises(Unsupported) as refused:
        session.run({"x": np.zeros((100, 3), np.float32)})
    assert refused.value.exit_code == 3


def test_contexts_announce_nothing_to_profilers(start):
    session = start()
    session.run({"x": np.zeros((2, 3), np.float32)})
    assert {context.nvtx_verbosity for context in session.engine_double.contexts} == {"NONE"}


def test_weights_are_streamed_within_the_automatic_budget_and_without_a_cuda_graph(tmp_path):
    runtime = CudaDriver()
    trt, engine = tensorrt(runtime, ONE)
    engine.get_weight_streaming_automatic_budget = lambda: 4096
    kept = engine_in(tmp_path, plan_of(), weight_streaming=True)
    session = TensorRtSession("tensorrt", bundle_of(tmp_path), kept, Device(0, runtime), trt)
    assert engine.weight_streaming_budget_v2 == 4096
    assert not engine.contexts
    for _ in range(2):
        session.run({"x": np.zeros((2, 3), np.float32)})
    assert session.facts["cuda_graph"] == "none: weights are streamed from host memory"
    assert session.facts["weight_budget_bytes"] == 4096


def test_standard_plug_ins_are_registered_once_with_the_logger():
    from types import ModuleType

    from relu_deploy.backends.tensorrt.logger import logger_of

    registered = []
    trt = ModuleType("with_plugins")
    trt.ILogger = type("ILogger", (), {"__init__": lambda self: None})
    trt.init_libnvinfer_plugins = lambda logger, namespace: registered.append((logger, namespace))
    logger = logger_of(trt)
    assert logger_of(trt) is logger
    assert registered == [(logger, "")]


def test_an_engine_is_built_on_the_gpu_that_was_named(tmp_path, monkeypatch):
    from relu_deploy.backends.base import Probe
    from relu_deploy.backends.tensorrt.building import build

    class Reached(Exception):
        pass

    def make_current(index):
        raise Reached(index)

    runtime = CudaDriver()
    trt, _ = tensorrt(runtime, ONE)
    trt.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
    monkeypatch.setattr(build, "can_build", lambda name, device: Probe(name, True, version="11.4"))
    monkeypatch.setattr(build, "import_module", lambda name: trt)
    monkeypatch.setattr(build, "Device", make_current)
    with pytest.raises(Reached, match="3"):
        build.build_engine("tensorrt", bundle_of(tmp_path).onnx, build.BuildOptions(), device=3)


class Timings:
    """A build configuration that takes the timing caches of this GPU only, or none at all."""

    def __init__(self, takes):
        self.takes = takes

    def create_timing_cache(self, content):
        return content

    def set_timing_cache(self, times, ignore_mismatch):
        assert not ignore_mismatch
        return times in self.takes


@pytest.mark.parametrize(
    ("takes", "used"), [((b"mine", b""), b"mine"), ((b"",), b""), ((), None)], ids=["taken", "of another GPU", "never taken"]
)
def test_a_timing_cache_that_the_builder_refuses_is_not_kept(takes, used):
    from relu_deploy.backends.tensorrt.building.build import _timing_cache

    assert _timing_cache(Timings(takes), b"mine") == used
