"""Test doubles of the CUDA driver's bindings and of TensorRT, for machines without a GPU. Nothing here is measured or quoted.

The driver is lazy where a GPU is: what is enqueued on a stream happens when somebody waits for it, so that code which
reads too early, or overwrites what a copy has yet to read, gets wrong numbers.
"""

import ctypes
import json
from collections import deque
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from relu_deploy.bundle import Bundle

CUresult = IntEnum(
    "CUresult",
    {
        "CUDA_SUCCESS": 0,
        "CUDA_ERROR_INVALID_VALUE": 1,
        "CUDA_ERROR_OUT_OF_MEMORY": 2,
        "CUDA_ERROR_INVALID_DEVICE": 101,
        "CUDA_ERROR_NOT_READY": 600,
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": 901,
    },
)
OK = CUresult.CUDA_SUCCESS
KINDS = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "float8_e4m3fn": "FP8", "int64": "INT64"}


class CudaDriver:
    """cuda.bindings.driver with one GPU, whose memory is this process's."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute = SimpleNamespace(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE=38)

    def __init__(self, devices=1, memory=1 << 30):
        self.devices, self.left = devices, memory
        self.alive, self.freed, self.queues, self.captured = {}, [], {}, {}
        self.events, self.capturing, self.clock, self.calls = {}, None, 0.0, []
        self._next = 0x1000

    def handle(self):
        self._next += 0x10
        return self._next

    # ---------------------------------------------------------------- work

    def enqueue(self, stream, work, milliseconds=0.0):
        if self.captures(stream):
            self.captured[stream].append((work, milliseconds))
        else:
            self.queues[stream].append((work, milliseconds))

    def finish(self, stream):
        while self.queues[stream]:
            work, milliseconds = self.queues[stream].popleft()
            self.clock += milliseconds
            work()

    def captures(self, stream):
        return self.capturing == stream

    def bytes_at(self, address, count):
        for start, (memory, size) in self.alive.items():
            if start <= address and address + count <= start + max(size, 1):
                return np.frombuffer(memory, np.uint8)[address - start : address - start + count]
        raise AssertionError(f"{address:#x} was freed or never allocated")

    def array_at(self, address, shape, dtype):
        kind = np.dtype(dtype)
        return self.bytes_at(address, int(np.prod(shape)) * kind.itemsize).view(kind).reshape(shape)

    # ---------------------------------------------------------------- calls

    def cuInit(self, flags):
        return (OK,)

    def cuDeviceGet(self, index):
        return (OK, index) if index < self.devices else (CUresult.CUDA_ERROR_INVALID_DEVICE, None)

    def cuDevicePrimaryCtxRetain(self, device):
        return OK, device

    def cuCtxSetCurrent(self, context):
        return (OK,)

    def cuGetErrorString(self, code):
        return OK, code.name.removeprefix("CUDA_ERROR_").lower().replace("_", " ").encode()

    def cuDeviceGetAttribute(self, attribute, device):
        return OK, 1 << 20

    def cuDeviceGetPCIBusId(self, length, device):
        return OK, b"0000:65:00.0"

    def cuMemGetInfo(self):
        return OK, self.left, 1 << 30

    def _allocate(self, size, flags=0):
        if size > self.left:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        self.left -= size
        memory = (ctypes.c_uint8 * size)(*([0xCD] * min(size, 64)))
        self.alive[ctypes.addressof(memory)] = (memory, size)
        return OK, ctypes.addressof(memory)

    cuMemAlloc = cuMemHostAlloc = _allocate

    def _free(self, address):
        assert address in self.alive, "freed twice"
        for stream in self.queues:
            self.finish(stream)
        self.freed.append(self.alive.pop(address))
        ctypes.memset(address, 0xDD, self.freed[-1][1])
        return (OK,)

    cuMemFree = cuMemFreeHost = _free

    def cuStreamCreate(self, flags):
        stream = self.handle()
        self.queues[stream] = deque()
        return OK, stream

    def cuStreamDestroy(self, stream):
        self.finish(stream)
        del self.queues[stream]
        return (OK,)

    def cuStreamSynchronize(self, stream):
        self.finish(stream)
        return (OK,)

    def cuMemcpyAsync(self, target, source, count, stream):
        def work():
            self.bytes_at(target, count)[:] = self.bytes_at(source, count)

        self.enqueue(stream, work)
        return (OK,)

    def cuEventCreate(self, flags):
        event = self.handle()
        self.events[event] = None
        return OK, event

    def cuEventDestroy(self, event):
        del self.events[event]
        return (OK,)

    def cuEventRecord(self, event, stream):
        self.events[event] = (stream, None)

        def passed():
            if event in self.events:
                self.events[event] = (stream, self.clock)

        self.enqueue(stream, passed)
        return (OK,)

    def cuEventSynchronize(self, event):
        if self.events[event] is not None:
            self.finish(self.events[event][0])
        return (OK,)

    def cuEventQuery(self, event):
        pending = self.events[event] is not None and self.events[event][1] is None
        return (CUresult.CUDA_ERROR_NOT_READY if pending else OK,)

    def cuEventElapsedTime(self, start, end):
        return OK, self.events[end][1] - self.events[start][1]

    def cuStreamBeginCapture(self, stream, mode):
        self.capturing, self.captured[stream] = stream, []
        return (OK,)

    def cuStreamEndCapture(self, stream):
        self.capturing = None
        work = self.captured.pop(stream)
        if work is None:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        return OK, tuple(work)

    def cuGraphInstantiate(self, graph, flags):
        self.calls.append("instantiate")
        return OK, graph

    def cuGraphDestroy(self, graph):
        return (OK,)

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, graph, stream):
        self.calls.append("launch")
        for work, milliseconds in graph:
            self.enqueue(stream, work, milliseconds)
        return (OK,)


class Named(str):
    """A member of one of TensorRT's enumerations."""

    @property
    def name(self):
        return str(self)


class Context:
    """An execution context of `Engine`."""

    active_optimization_profile = 0
    unfused_tensors_debug_state = False
    listener = None
    memory = None

    def set_device_memory(self, memory, size):
        self.memory = memory, size

    def set_debug_listener(self, listener):
        self.listener = listener
        return True

    def __init__(self, engine):
        self.engine, self.addresses, self.allocators, self.shape = engine, {}, {}, None

    def set_optimization_profile_async(self, index, stream):
        self.active_optimization_profile = index
        return True

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.ranges[self.active_optimization_profile]
        self.shape = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def infer_shapes(self):
        return [] if self.shape else ["x"]

    def get_tensor_shape(self, name):
        return (-1,) if name == "kept" else self.shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name, allocator):
        self.allocators[name] = allocator
        return True

    def array(self, name):
        return self.engine.runtime.array_at(self.addresses[name], self.shape, self.engine.dtype)

    def execute_async_v3(self, stream):
        runtime, dtype = self.engine.runtime, self.engine.dtype
        if self.engine.device_memory_size_v2:
            # Fails where the memory was freed, or is too small.
            runtime.array_at(self.memory[0], (self.engine.device_memory_size_v2,), np.uint8)

        def compute():
            self.array("y")[...] = np.maximum(self.array("x"), 0).astype(dtype)

        runtime.enqueue(stream, compute, milliseconds=2.0)
        if self.listener is not None and self.unfused_tensors_debug_state:
            if runtime.captures(stream):
                return False
            # Called while the work is merely enqueued; whoever reads has to wait for the stream.
            kind = Named(KINDS[dtype])
            for name, reported in (("y", kind), ("half of it", Named("FP4"))):
                if not self.listener.process_debug_tensor(
                    self.addresses["y"], Named("DEVICE"), reported, self.shape, name, stream
                ):
                    return False
        if not self.allocators:
            return True
        if runtime.captures(stream):
            return False
        # The size is known only once the numbers are.
        runtime.finish(stream)
        found = self.array("x")[self.array("x") > 0]
        address = self.allocators["kept"].reallocate_output_async("kept", 0, found.nbytes, 256, stream)
        if not address:
            return False
        self.allocators["kept"].notify_shape("kept", found.shape)
        runtime.enqueue(stream, lambda: runtime.array_at(address, found.shape, dtype).__setitem__(..., found))
        return True


class Engine:
    """Gives relu(x) as "y", and as "kept" the positive elements of x in a row."""

    def __init__(self, runtime, ranges, names, dtype):
        self.runtime, self.ranges, self.names, self.dtype = runtime, ranges, names, dtype
        self.num_optimization_profiles, self.num_io_tensors = len(ranges), len(names)
        self.contexts = []

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return Named("INPUT" if name == "x" else "OUTPUT")

    def get_tensor_dtype(self, name):
        return Named(KINDS[self.dtype])

    def get_tensor_location(self, name):
        return Named("DEVICE")

    def get_tensor_shape(self, name):
        return (-1, *self.ranges[0][0][1:])

    def get_tensor_profile_shape(self, name, index):
        return self.ranges[index]

    def create_engine_inspector(self):
        return SimpleNamespace(
            execution_context=None, get_engine_information=lambda form: json.dumps({"Layers": [], "form": form})
        )

    #: of the activations, for the largest profile
    device_memory_size_v2 = 0

    def create_execution_context(self, strategy="STATIC"):
        self.contexts.append(Context(self))
        self.contexts[-1].strategy = strategy
        return self.contexts[-1]


def tensorrt(runtime, ranges, outputs=("y",), dtype="float32", refuses="", names=None):
    """Return a module like tensorrt, and the engine that it deserializes.

    ranges: one (min, opt, max) shape of the input for each profile. refuses: what is logged instead. names: the engine's
    outputs where they are not the model's.
    """
    trt = ModuleType("tensorrt_double")
    engine = Engine(runtime, ranges, ["x", *(names or outputs)], dtype)

    class Deserializer:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if refuses:
                self.logger.log(Named("ERROR"), refuses)
            return None if refuses else engine

    trt.__version__ = "11.4.0.106"
    trt.ILogger = type("ILogger", (), {"__init__": lambda self: None})
    trt.IOutputAllocator = type("IOutputAllocator", (), {"__init__": lambda self: None})
    trt.IDebugListener = type("IDebugListener", (), {"__init__": lambda self: None})
    trt.LayerInformationFormat = SimpleNamespace(JSON="json")
    trt.ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="STATIC", USER_MANAGED="USER_MANAGED")
    trt.ProfilingVerbosity = SimpleNamespace(NONE="NONE", DETAILED="DETAILED")
    trt.Runtime = Deserializer
    return trt, engine


def plan_of(version="11.4.0.106", magic=b"ftrt"):
    """Return bytes that begin as a serialized engine of `version` does."""
    return magic + bytes(20) + bytes(map(int, version.split("."))) + bytes(100)


def engine_in(folder, plan, **options):
    """Return what `engine_for` gives for a plan that is kept in `folder`."""
    file = folder / "m.engine"
    file.write_bytes(plan)
    return SimpleNamespace(
        file=file,
        read=file.read_bytes,
        key="5f0c",
        cache_hit=True,
        runtime_cache=file.with_suffix(".runtime"),
        facts={"options": options},
    )


def bundle_of(folder, dtype="float32", outputs=("y",)):
    """A bundle of one Relu; with "kept" also of an output whose length depends on the data."""
    kind = {"float32": TensorProto.FLOAT, "bfloat16": TensorProto.BFLOAT16, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN}[dtype]
    shapes = {"y": ["batch", 3], "kept": ["found"]}
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    if "kept" in outputs:
        nodes += [helper.make_node("Identity", ["x"], ["kept"], "kept")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["batch", 3])],
        [helper.make_tensor_value_info(name, kind, shapes[name]) for name in outputs],
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return Bundle.open(path)


FLOAT8 = ml_dtypes.float8_e4m3fn
