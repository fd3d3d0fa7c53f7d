"""The wrapper of the CUDA driver, with a lazy test double; `test_fake_driver.py` runs it on the real bindings."""

import gc
import threading
from contextlib import contextmanager
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from doubles import OK, CudaDriver

from relu_deploy.backends.nvidia import cuda, rates
from relu_deploy.backends.nvidia.cuda import CudaError, Device
from relu_deploy.backends.nvidia.dlpack import describe, from_dlpack, is_on_gpu
from relu_deploy.backends.nvidia.driver import Gpu, Missing, find_gpu
from relu_deploy.backends.nvidia.tf32 import forbid_tf32, require_tf32
from relu_deploy.errors import BackendUnavailable, InputError, Unsupported


@pytest.fixture
def gpu():
    return Device(0, CudaDriver())


@pytest.mark.skipif(
    not isinstance(find_gpu(), Missing), reason="tests what happens without a GPU: run it on a machine that has none"
)
def test_without_a_driver_the_error_says_what_is_missing_and_what_to_do():
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed (pip install 'relu-deploy[dev]')")
    missing = find_gpu()
    with pytest.raises(BackendUnavailable) as failed:
        Device()
    assert failed.value.message == missing.reason
    assert failed.value.hint == missing.fix
    assert failed.value.exit_code == 3


def test_bindings_that_are_not_installed_are_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(cuda, "import_module", missing)
    with pytest.raises(BackendUnavailable, match="cuda-bindings"):
        Device()


def test_the_hint_fits_the_error():
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_DEVICE") as failed:
        Device(7, CudaDriver())
    assert "nvidia-smi -L" in failed.value.hint
    gpu = Device(0, CudaDriver(memory=1000))
    with pytest.raises(CudaError, match="CUDA_ERROR_OUT_OF_MEMORY") as failed:
        gpu.buffer(1001)
    assert "smaller batch" in failed.value.hint


def test_everything_is_freed_once_however_it_ends(gpu):
    runtime = gpu.driver
    with gpu.buffer(100) as buffer, gpu.pinned((5,), np.float32):
        assert len(runtime.alive) == 2
        buffer.close()
        assert not buffer.is_open
    assert len(runtime.freed) == 2
    forgotten = gpu.buffer(10)
    del forgotten
    gc.collect()
    assert len(runtime.freed) == 3
    assert not runtime.alive


def test_an_exception_inside_still_frees(gpu):
    with pytest.raises(ZeroDivisionError), gpu.stream(), gpu.event(), gpu.buffer(4):
        raise ZeroDivisionError
    assert not gpu.driver.alive
    assert not gpu.driver.queues
    assert not gpu.driver.events


@pytest.mark.parametrize("dtype", [np.float32, np.int8, bool, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
def test_pinned_arrays_have_any_dtype_and_shape(gpu, dtype, shape):
    with gpu.pinned(shape, dtype) as pinned:
        pinned.array[...] = np.ones(shape).astype(dtype)
        assert pinned.array.shape == shape
        assert pinned.array.dtype == dtype
        assert pinned.array.astype(np.float32).sum() == np.prod(shape, dtype=int)


def test_copies_arrive_once_the_stream_was_waited_for_and_events_keep_time(gpu):
    with (
        gpu.stream() as stream,
        gpu.event() as start,
        gpu.event() as end,
        gpu.buffer(12) as there,
        gpu.pinned((3,), "f4") as here,
    ):
        here.array[:] = 1, 2, 3
        start.record(stream)
        gpu.copy(there.pointer, here.pointer, 12, stream)
        gpu.driver.enqueue(int(stream), lambda: None, milliseconds=1.5)
        end.record(stream)
        assert not end.is_past()
        end.synchronize()
        assert end.is_past()
        assert end.milliseconds_since(start) == 1.5
        assert gpu.driver.array_at(there.pointer, (3,), np.float32).tolist() == [1, 2, 3]


def test_captured_work_runs_when_launched_and_not_before(gpu):
    done = []
    with gpu.stream() as stream:
        with gpu.capture(stream, lambda: gpu.driver.enqueue(int(stream), lambda: done.append(1))) as graph:
            stream.synchronize()
            assert done == []
            graph.launch(stream)
            graph.launch(stream)
            stream.synchronize()
        assert done == [1, 1]


def test_a_capture_that_fails_leaves_the_stream_usable(gpu):
    def broken():
        raise InputError("no", "")

    with gpu.stream() as stream:
        with pytest.raises(InputError):
            gpu.capture(stream, broken)
        assert gpu.driver.capturing is None


# ---------------------------------------------------------------- DLPack, with capsules that real libraries made


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_an_array_of_another_library_is_found_where_it_lies(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = describe(array.__dlpack__(), "x")
    assert (found.pointer, found.shape, found.dtype, found.nbytes) == (array.ctypes.data, (2, 3, 4), dtype, array.nbytes)
    assert found.outline().shape == (2, 3, 4)
    assert found.outline().dtype == dtype


def test_bfloat16_tensors_have_numpys_name():
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(4, 5, dtype=torch.bfloat16)[1:]
    found = describe(tensor.__dlpack__(), "x")
    assert (found.dtype, found.shape, found.pointer) == ("bfloat16", (3, 5), tensor.data_ptr())


def test_what_is_not_contiguous_is_refused_by_name():
    with pytest.raises(InputError, match="'pixels' on the GPU is not contiguous"):
        describe(np.zeros((4, 6), np.float32).T.__dlpack__(), "pixels")
    # A dimension of one element has no stride to speak of.
    assert describe(np.zeros((6, 1, 4), np.float32)[:, :, :].__dlpack__(), "x").shape == (6, 1, 4)


def test_arrays_of_the_cpu_are_told_from_the_gpus():
    assert not is_on_gpu(np.zeros(3))
    assert not is_on_gpu([1, 2, 3])
    assert is_on_gpu(type("Tensor", (), {"__dlpack_device__": lambda self: (2, 0)})())


def test_memory_is_given_back_on_its_own_gpu_from_any_thread():
    class TwoGpus(CudaDriver):
        """Every thread starts on the first GPU, and frees what is on the one that is current."""

        def __init__(self):
            super().__init__(devices=2)
            self.current, self.freed_on = {}, []

        def cuCtxSetCurrent(self, context):
            self.current[threading.get_ident()] = context
            return super().cuCtxSetCurrent(context)

        def cuMemFree(self, handle):
            self.freed_on.append(self.current.get(threading.get_ident(), 0))
            return super().cuMemFree(handle)

    runtime = TwoGpus()
    buffer = Device(1, runtime).buffer(16)
    thread = threading.Thread(target=buffer.close)
    thread.start()
    thread.join(20)
    assert runtime.freed_on == [1]


def test_an_array_on_another_gpu_is_an_input_error():
    class Elsewhere:
        def __dlpack_device__(self):
            return (2, 3)

        def __dlpack__(self, stream):
            raise BufferError("Can't export tensors on a different CUDA device index")

    with pytest.raises(InputError, match="input 'x' on GPU 3 cannot be read there"):
        from_dlpack(Elsewhere(), 0, "x")


# ---------------------------------------------------------------- rates, TF32


def test_rates_are_those_of_the_gpu_that_was_named(monkeypatch):
    current = [0]

    class Torch:
        class cuda:
            @staticmethod
            @contextmanager
            def device(index):
                current.append(index)
                yield
                current.pop()

    driver = CudaDriver(devices=2)
    contexts = []
    monkeypatch.setattr(driver, "cuCtxSetCurrent", lambda context: (contexts.append(context), (OK,))[1])
    monkeypatch.setattr(rates, "Device", lambda index: Device(index, driver))
    monkeypatch.setattr(rates, "_torch", Torch)
    monkeypatch.setattr(rates, "_products", lambda torch, index: {"float32": lambda seconds: float(current[-1])})
    monkeypatch.setattr(rates, "_copy", lambda gpu, seconds: float(contexts[-1]))
    found = rates.measure_rates(1)
    assert found["operations_per_second"] == {"float32": 1.0}
    assert found["bytes_per_second"] == 1.0
    assert len(contexts) >= 2


@pytest.fixture
def forbidden(monkeypatch):
    """Forbid TF32, as a session of onnxruntime-tensorrt does to its process."""
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    require_tf32("torch-cuda")
    # So that the value is taken back after the test.
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    forbid_tf32()


def test_tf32_that_the_process_forbids_is_refused(forbidden):
    with pytest.raises(Unsupported, match="torch-cuda cannot use TF32: NVIDIA_TF32_OVERRIDE=0") as refused:
        require_tf32("torch-cuda")
    assert "another process" in refused.value.hint


def test_every_backend_on_a_gpu_refuses_tf32_that_is_forbidden(forbidden, digits_bundle, monkeypatch):
    torch = pytest.importorskip("torch")
    from relu_deploy.backends.base import Options, Probe
    from relu_deploy.backends.onnxruntime import load_gpu
    from relu_deploy.backends.tensorrt.building import build
    from relu_deploy.backends.torch.load import load

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(load_gpu, "gpu_of", lambda name, index: Gpu(0, "L4", (8, 9)))
    monkeypatch.setattr(build, "can_build", lambda name, device: Probe(name, True))
    monkeypatch.setattr(build, "import_module", lambda name: ModuleType("tensorrt"))
    for work in (
        lambda: load("torch-cuda", digits_bundle, Options(tf32=True)),
        lambda: load_gpu.load_on_gpu("onnxruntime-cuda", digits_bundle, Options(tf32=True), str(digits_bundle.onnx)),
        lambda: build.build_engine("tensorrt", digits_bundle.onnx, build.BuildOptions(tf32=True)),
    ):
        with pytest.raises(Unsupported, match="NVIDIA_TF32_OVERRIDE=0"):
            work()
