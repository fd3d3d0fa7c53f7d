"""What an engine shows of itself. The library and the GPU are test doubles; the capsule and the base class are real."""

import ctypes
import json

import numpy as np
import pytest
from doubles import CudaDriver, CUresult, Named, bundle_of, engine_in, plan_of, tensorrt
from hypothesis import given
from hypothesis import strategies as st

from relu_deploy.backends.nvidia.cuda import CudaError, Device
from relu_deploy.backends.tensorrt.capture import ObservedSession, _listener, _pointer
from relu_deploy.backends.tensorrt.formats import formats_by_tensor
from relu_deploy.backends.tensorrt.options import BuildOptions
from relu_deploy.backends.tensorrt.session import TensorRtSession
from relu_deploy.verification.engine.layers import EngineTensor
from relu_deploy.verification.engine.tensor_format import decode


@pytest.fixture
def observed(tmp_path):
    """A session of an engine that was built to be observed, on doubles."""
    runtime = CudaDriver()
    trt, engine = tensorrt(runtime, [((1, 3), (4, 3), (8, 3))])
    kept = engine_in(tmp_path, plan_of(), **BuildOptions(observable=True).to_json())
    session = TensorRtSession("tensorrt", bundle_of(tmp_path), kept, Device(0, runtime), trt)
    session.runtime_double, session.engine_double = runtime, engine
    return ObservedSession(session)


def test_each_tensor_is_copied_when_it_is_written(observed):
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    (shown,) = observed.capture({"x": x})
    assert (shown.name, shown.dtype, shown.shape) == ("y", "float32", (2, 3))
    np.testing.assert_array_equal(np.frombuffer(shown.data, np.float32).reshape(2, 3), np.maximum(x, 0))


@pytest.mark.parametrize(
    ("layout", "stored", "order"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", (1, 1, 2, 2, 32), (0, 1, 4, 2, 3)),
        ("Channel major INT8 format where channel % 16 == 0", (1, 2, 2, 16), (0, 3, 1, 2)),
        ("Row major Int8 format", (1, 3, 2, 2), (0, 1, 2, 3)),
    ],
)
def test_a_tensor_is_copied_with_the_padding_of_its_format(layout, stored, order):
    driver = CudaDriver()
    gpu = Device(0, driver)
    trt, _ = tensorrt(driver, [((1, 3), (4, 3), (8, 3))])
    buffer, stream = gpu.buffer(int(np.prod(stored))), gpu.stream()
    codes = driver.array_at(buffer.pointer, stored, np.int8)
    codes[...] = np.arange(codes.size).reshape(stored)
    layers = {"Layers": [{"Name": "conv", "Outputs": [{"Name": "t", "Dimensions": [1, 3, 2, 2], "Format/Datatype": layout}]}]}
    listener = _listener(trt, gpu, formats_by_tensor(json.dumps(layers)))
    assert listener.process_debug_tensor(buffer.pointer, Named("DEVICE"), Named("INT8"), (1, 3, 2, 2), "t", int(stream))
    (shown,) = listener.seen
    assert len(shown.data) == codes.size
    decoded = decode(shown, EngineTensor("t", (1, 3, 2, 2), layout, "int8"))
    expected = codes.transpose(order).reshape(1, -1, 2, 2)[:, :3]
    np.testing.assert_array_equal(decoded, expected)


def test_a_tensor_in_several_formats_is_copied_as_the_smallest():
    driver = CudaDriver()
    gpu = Device(0, driver)
    trt, _ = tensorrt(driver, [((1, 3), (4, 3), (8, 3))])
    buffer, stream = gpu.buffer(12), gpu.stream()
    formats = {"t": {"Row major Int8 format", "Thirty-two wide channel vectorized row major Int8 format"}}
    listener = _listener(trt, gpu, formats)
    assert listener.process_debug_tensor(buffer.pointer, Named("DEVICE"), Named("INT8"), (1, 3, 2, 2), "t", int(stream))
    assert len(listener.seen[0].data) == 12


def test_an_engine_that_is_looked_into_makes_no_cuda_graph(observed):
    x = np.ones((2, 3), np.float32)
    for _ in range(3):
        observed.run({"x": x})
        observed.capture({"x": x})
    assert "launch" not in observed._session.runtime_double.calls
    observed.close()
    assert not observed._session.runtime_double.alive


def test_a_copy_that_fails_is_told_and_does_not_travel_through_the_library(observed, monkeypatch):
    session = observed._session
    bound = session.bind({"x": np.ones((2, 3), np.float32)})
    monkeypatch.setattr(session.runtime_double, "cuMemHostAlloc", lambda size, flags: (CUresult.CUDA_ERROR_OUT_OF_MEMORY, None))
    listener = _listener(session.trt, session.gpu)
    context = session.engine_double.contexts[-1]
    context.set_debug_listener(listener)
    context.unfused_tensors_debug_state = True
    assert not context.execute_async_v3(int(session.stream))
    assert isinstance(listener.error, CudaError)
    bound.close()


def test_the_layers_are_asked_for_at_the_shapes_of_the_last_run(observed):
    observed.run({"x": np.ones((2, 3), np.float32)})
    assert '"Layers"' in observed.inspect()


@pytest.mark.parametrize("name", [None, b"void*", b"debug"])
def test_the_address_in_a_capsule_is_found_whatever_it_is_called(name):
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    assert _pointer(new(0x1234560, name, None)) == 0x1234560


def test_the_real_library_takes_our_listener():
    trt = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'relu-deploy[rtx]')", exc_type=ImportError
    )
    listener = _listener(trt, None)
    assert isinstance(listener, trt.IDebugListener)
    assert {"FLOAT", "HALF", "BF16", "FP8", "INT8", "UINT8", "INT32", "INT64", "BOOL"} <= set(trt.DataType.__members__)
    for method in ("set_debug_listener", "unfused_tensors_debug_state"):
        assert hasattr(trt.IExecutionContext, method)
    for method in ("execution_context", "get_engine_information"):
        assert hasattr(trt.EngineInspector, method)


sizes = st.integers(1, 64)
batches = st.tuples(sizes, sizes, sizes)


@given(
    st.builds(
        BuildOptions,
        profiles=st.lists(
            batches | st.dictionaries(st.text(min_size=1), st.tuples(*[st.tuples(sizes, sizes)] * 3)), max_size=3
        ).map(tuple),
        compute_capabilities=st.lists(st.sampled_from(["SM86", "SM89"]), unique=True).map(sorted).map(tuple),
        optimization_level=st.none() | st.integers(0, 5),
        tf32=st.booleans(),
        refit=st.booleans(),
        observable=st.booleans(),
    )
)
def test_options_come_back_from_a_note_as_they_were(options):
    assert BuildOptions.from_json(options.to_json()) == options
