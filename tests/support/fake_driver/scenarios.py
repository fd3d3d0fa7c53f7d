"""Runs the GPU code against the fake driver, in a process that has loaded it: `python -m fake_driver.scenarios FOLDER`.

It prints one JSON object: what each check found, the lines that ran, the errors that were injected and what became of them.
FOLDER is empty, for the model and the engine of the double.
"""

import gc
import json
import os
import sys
import threading
import traceback
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from doubles import bundle_of, engine_in, plan_of, tensorrt
from fake_driver.fake import POISON, FakeCuda
from fake_driver.lines import Lines

from relu_deploy.backends.nvidia import cuda, dlpack, driver, rates
from relu_deploy.backends.nvidia.cuda import CudaError, Device
from relu_deploy.backends.tensorrt import buffers, session
from relu_deploy.backends.tensorrt.session import TensorRtSession
from relu_deploy.benchmark import device, gpu_telemetry
from relu_deploy.errors import ReluDeployError

FAKE = FakeCuda()
#: read once: hundreds of sessions of two models are made
session.read_model = cache(session.read_model)
#: what the fake returns where an error is injected: allocations run out of memory, everything else meets a lost context
OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700


# ---------------------------------------------------------------- what is run, once plainly and once with each call failing


def facts(folder):
    gpu = Device(0)
    assert gpu.bus_id() == "0000:65:00.0"
    assert gpu.attribute("L2_CACHE_SIZE") == 50 << 20
    assert gpu.free_bytes() > 0


def copies(folder):
    gpu = Device(0)
    with (
        gpu.stream() as stream,
        gpu.buffer(12) as there,
        gpu.pinned((3,), "f4") as here,
        gpu.pinned((3,), "f4") as back,
        gpu.event() as start,
        gpu.event() as end,
    ):
        here.array[:] = 1, 2, 3
        start.record(stream)
        gpu.copy(there.pointer, here.pointer, 12, stream)
        FAKE.enqueue(int(stream), lambda: None, 1.5)
        gpu.copy(back.pointer, there.pointer, 12, stream)
        gpu.copy(back.pointer, there.pointer, 0, stream)
        end.record(stream)
        assert not end.is_past()
        assert (back.array.view(np.uint8) == POISON).all(), "a copy that nobody waited for has arrived"
        end.synchronize()
        assert end.is_past()
        assert abs(end.milliseconds_since(start) - 1.502) < 1e-6  # two copies of 1 µs, which is the fake's duration of any
        assert back.array.tolist() == [1, 2, 3]


def graphs(folder):
    gpu, done = Device(0), []
    with gpu.stream() as stream, gpu.capture(stream, lambda: FAKE.enqueue(int(stream), lambda: done.append(1))) as graph:
        stream.synchronize()
        assert done == []
        for _ in range(2):
            graph.launch(stream)
        gpu.synchronize(stream)
        assert done == [1, 1]
    with gpu.stream() as stream:
        try:
            gpu.capture(stream, lambda: done.index(2))
        except ValueError:
            assert not FAKE.captures(int(stream))


class OnGpu:
    """An array of another library in the memory of a GPU."""

    def __init__(self, buffer, array):
        self.held = FAKE.array_at(buffer.pointer, array.shape, array.dtype)
        self.held[...] = array

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, stream):
        return self.held.__dlpack__()


@cache
def saved(folder, outputs):
    """Return the bundle of the double's model, and an engine of it."""
    place = folder / "-".join(outputs)
    place.mkdir()
    return bundle_of(place, outputs=outputs), engine_in(place, plan_of())


class OnAnotherGpu(OnGpu):
    """An array of a library that, as PyTorch does, refuses streams of another GPU. A stream of its GPU has yet to write it."""

    def __init__(self, gpu, array):
        gpu.make_current()
        self.gpu, self.stream = gpu, gpu.stream()
        self.buffer, self.pinned = gpu.buffer(array.nbytes), gpu.pinned(array.shape, array.dtype)
        self.pinned.array[...] = array
        super().__init__(self.buffer, np.zeros_like(array))
        gpu.copy(self.buffer.pointer, self.pinned.pointer, array.nbytes, self.stream)

    def __dlpack_device__(self):
        return (2, self.gpu.index)

    def __dlpack__(self, stream):
        if FAKE.current != self.gpu.index or stream not in (-1, int(self.stream)):
            raise BufferError(f"Can't export tensors on a different CUDA device index. Current: {FAKE.current}")
        return super().__dlpack__(stream)


def session_in(folder, gpu, outputs=("y",)):
    trt, _ = tensorrt(FAKE, [((1, 3), (4, 3), (8, 3))], outputs=outputs)
    return TensorRtSession("tensorrt", *saved(folder, outputs), gpu, trt)


def engine(folder):
    x = np.float32([[1, -2, 3], [-4, 5, -6]])
    opened = session_in(folder, Device(0))
    try:
        for turn in range(2):
            assert np.array_equal(opened.run({"x": x * turn})["y"], np.maximum(x * turn, 0))
        bound = opened.bind({"x": x})
        with opened.gpu.buffer(x.nbytes) as buffer:
            for feed in (x, OnGpu(buffer, x)):
                bound.upload({"x": feed})
                bound.run()
                assert np.array_equal(bound.download()["y"], np.maximum(x, 0))
        bound.close()
    finally:
        opened.close()


def elsewhere(folder):
    x = np.float32([[1, -2, 3], [-4, 5, -6]])
    first, second = Device(0), Device(1)
    opened = session_in(folder, first)
    try:
        array = OnAnotherGpu(second, x)
        first.make_current()
        bound = opened.bind({"x": x})
        bound.upload({"x": array})
        assert FAKE.current == 0
        bound.run()
        assert np.array_equal(bound.download()["y"], np.maximum(x, 0))
    finally:
        opened.close()


def growing(folder):
    opened = session_in(folder, Device(0), outputs=("y", "kept"))
    try:
        for batch in (1, 4):
            x = np.full((batch, 3), 2, np.float32)
            assert np.array_equal(opened.run({"x": x})["kept"], x[x > 0])
    finally:
        opened.close()


def copy_rate(folder):
    left, gpu = FAKE.memory(1 << 16), Device(0)
    try:
        assert abs(rates._copy(gpu, 1e-9) - 2 * (1 << 14) / 1e-6) < 1e6
    finally:
        FAKE.memory(left)


def meter(folder):
    x = [{"x": np.full((2, 3), turn, np.float32)} for turn in range(2)]
    opened = session_in(folder, Device(0))
    try:
        measured = device.DeviceMeter(opened, x, 0, opened.gpu)
        assert measured.measure(0.001)["run"]
        measured.close()
    finally:
        opened.close()


SCENARIOS = (facts, copies, graphs, engine, elsewhere, growing, copy_rate)


def outcome_of(scenario, folder):
    """Return what became of a scenario: "right", "raised" one of our errors, or the traceback of anything else."""
    try:
        scenario(folder)
    except ReluDeployError as error:
        return "raised", error.message
    except BaseException:
        return "broken", traceback.format_exc()
    return "right", ""


def inject(scenario, folder):
    """Run a scenario once for each call that it makes, with that call failing."""
    FAKE.forget_calls()
    assert outcome_of(scenario, folder) == ("right", ""), outcome_of(scenario, folder)
    counts = {name: count for name, count in FAKE.calls().items() if name != "cuDriverGetVersion"}
    rows = []
    for name, count in counts.items():
        for call in range(count):
            before, failed = FAKE.alive(), FAKE.failed()
            FAKE.fail(name, call, OUT_OF_MEMORY if name in ("cuMemAlloc", "cuMemHostAlloc") else ILLEGAL_ADDRESS)
            outcome, text = outcome_of(scenario, folder)
            reached = FAKE.failed() > failed
            FAKE.fail("", 0, 0)
            gc.collect()
            leaks = {kind: now - before.get(kind, 0) for kind, now in FAKE.alive().items() if now > before.get(kind, 0)}
            rows.append({"call": f"{name} {call}", "reached": reached, "outcome": outcome, "text": text, "leaks": leaks})
    return rows


# ---------------------------------------------------------------- single checks


def in_thread(work):
    """Return what `work` returns in a thread of its own, in which no GPU is current."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(30)
    return found[0] if found else "the thread ended with an exception"


def without_context():
    """Return the driver's own answer to a call without a current context, and ours in the same place."""
    bindings, gpu = cuda.load_bindings(), Device(0)

    def plain():
        return int(bindings.cuMemAlloc(16)[0])

    def ours():
        gpu.make_current()
        with gpu.buffer(16) as buffer:
            return FAKE.device_of(buffer.pointer)

    return {"plain": in_thread(plain), "ours": in_thread(ours)}


def closed_elsewhere(folder):
    """Return the faults of closing, from threads in which another GPU or none is current, what a second GPU holds."""
    faults = FAKE.faults()
    gpu = Device(1)
    buffer, opened = gpu.buffer(16), session_in(folder, gpu)
    x = np.ones((2, 3), np.float32)
    opened.run({"x": x})
    bound = opened.bind({"x": x})
    on = FAKE.device_of(buffer.pointer)

    def close():
        Device(0)
        buffer.close()
        bound.close()
        opened.close()

    in_thread(close)
    gc.collect()
    Device(0)
    return {"device": on, "faults": FAKE.faults() == faults, "alive": FAKE.alive()}


def hints():
    """Return the error of a GPU that does not exist and of memory that is not there."""
    found = []
    for work in (lambda: Device(7), lambda: Device(0).buffer(1 << 40)):
        try:
            work()
        except CudaError as error:
            found.append([error.name, error.message, error.hint])
    return found


READINGS = (
    "nvmlInit",
    "nvmlDeviceGetHandleByPciBusId",
    "nvmlDeviceGetClockInfo.SM",
    "nvmlDeviceGetClockInfo.MEM",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetTotalEnergyConsumption",
)


def telemetry(*unsupported):
    """Return what the management library's fake answers through `GpuWatch`, where some readings are not supported."""
    os.environ["FAKE_NVML_UNSUPPORTED"] = ",".join(unsupported)
    watch = gpu_telemetry.GpuWatch("0000:65:00.0")
    if watch.reason:
        return {"reason": watch.reason}
    with watch.looking():
        threading.Event().wait(0.05)
    if watch.reason:
        return {"reason": watch.reason}
    sample = watch.samples[-1]
    first, second = watch.millijoules(), watch.millijoules()
    energy = gpu_telemetry.energy_per_image(first, second, 10)
    return {"sample": vars(sample), "summary": gpu_telemetry.summary(watch), "energy": energy, "samples": len(watch.samples)}


def found_driver():
    """Return what `doctor` reads from the driver's library."""
    found = driver.find_driver(SimpleNamespace(platform="linux", kernel_driver="580.95", container=False))
    return {"driver": str(found), "gpus": [gpu.to_json() for gpu in found.gpus]}


FILES = (cuda, dlpack, driver, rates, buffers, device, gpu_telemetry)


def main():
    folder = Path(sys.argv[1])
    # What is imported stays: the many collections below need not look at it.
    gc.freeze()
    lines = Lines(module.__file__ for module in FILES)
    with lines.recording():
        result = {"driver": found_driver(), "hints": hints(), "without context": without_context()}
        result["injected"] = {scenario.__name__: inject(scenario, folder) for scenario in SCENARIOS}
        result["elsewhere"] = outcome_of(elsewhere, folder)
        result["meter"] = outcome_of(meter, folder)
        result["closed elsewhere"] = closed_elsewhere(folder)
        result["telemetry"] = {
            "all": telemetry(),
            "none": telemetry(*READINGS[2:]),
            "another GPU": gpu_telemetry.GpuWatch("0000:01:00.0").reason,
            **{reading: telemetry(reading) for reading in READINGS},
        }
    gc.collect()
    result |= {"alive": FAKE.alive(), "faults": FAKE.faults(), "lines": lines.report()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
