"""Time on a GPU, its clocks and its limits: the arithmetic, on test doubles that are no measurement of anything."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from doubles import CudaDriver, bundle_of, engine_in, plan_of, tensorrt

from relu_deploy.backends.nvidia.cuda import Device
from relu_deploy.backends.tensorrt.session import TensorRtSession
from relu_deploy.benchmark.device import GROUP_MS, DeviceMeter
from relu_deploy.benchmark.gpu_limits import GpuLimits, calibrate_gpu, share_of_gpu_limit
from relu_deploy.benchmark.gpu_telemetry import GpuWatch, Sample, energy_per_image, summary
from relu_deploy.benchmark.result import Ratios, Run
from relu_deploy.benchmark.run import ratios_of
from relu_deploy.benchmark.runner import BenchmarkPlan, Key, Timings, _device, _keys, _row
from relu_deploy.errors import Unsupported
from relu_deploy.graph import Cost
from relu_deploy.latency_stats import Ratio


@pytest.fixture
def meter(tmp_path):
    """A meter of an engine on test doubles: one run takes the doubled GPU exactly 2 ms of its own clock."""
    runtime = CudaDriver()
    trt, _ = tensorrt(runtime, [((1, 3), (4, 3), (8, 3))])
    gpu = Device(0, runtime)
    session = TensorRtSession("tensorrt", bundle_of(tmp_path), engine_in(tmp_path, plan_of()), gpu, trt)
    feeds = [{"x": np.full((2, 3), turn, np.float32)} for turn in range(4)]
    made = DeviceMeter(session, feeds, 0, gpu)
    made.runtime, made.session = runtime, session
    return made


def test_gpu_time_is_that_of_one_run_however_many_share_a_sample(meter):
    kinds = meter.measure(0.05)
    assert set(kinds) == {"run", "single", "enqueue", "upload", "download"}
    assert kinds["run"] == pytest.approx([2.0] * len(kinds["run"]))
    assert meter.group * 2.0 >= GROUP_MS
    assert meter.group % 4 == 0
    assert all(len(values) >= 1 for values in kinds.values())
    assert all(one <= whole for one, whole in zip(kinds["enqueue"], kinds["single"], strict=True))


def test_inputs_take_turns_and_all_is_given_back(meter):
    assert len(meter.bounds) == 4
    assert meter.memory_bytes >= 4 * 4 * 2 * 3 * 4
    meter.measure(0.01)
    meter.close()
    meter.session.close()
    assert not meter.runtime.alive
    assert not meter.runtime.events


def test_a_batch_too_large_for_all_sets_of_buffers_takes_turns_with_fewer(tmp_path):
    runtime = CudaDriver()
    trt, _ = tensorrt(runtime, [((1, 3), (4, 3), (8, 3))])
    gpu = Device(0, runtime)
    session = TensorRtSession("tensorrt", bundle_of(tmp_path), engine_in(tmp_path, plan_of()), gpu, trt)
    feeds = [{"x": np.zeros((8, 3), np.float32)}] * 4
    runtime.left = 9 * 96  # a set of buffers takes four times 96 bytes
    assert len(DeviceMeter(session, feeds, 0, gpu).bounds) == 2
    runtime.left = 10
    with pytest.raises(Unsupported, match="CUDA_ERROR_OUT_OF_MEMORY"):
        DeviceMeter(session, feeds, 0, gpu)


# ---------------------------------------------------------------- clocks


def watch(samples, reason=""):
    seen = GpuWatch("0000:65:00.0", library=SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByPciBusId=lambda bus: bus))
    seen.samples, seen.reason = samples, reason
    return seen


def sample(mhz, reasons=0, watts=300.0, celsius=50):
    return Sample(mhz, 2600, watts, celsius, reasons)


@pytest.mark.parametrize(
    ("clocks", "reasons", "steady", "throttled"),
    [
        ([1980, 1980, 1965], 0, True, []),
        ([1980, 1700], 0, False, []),
        ([1980, 1980], 0x4, False, ["power limit"]),
        ([1980, 1975], 0x40 | 0x8, False, ["hardware slowdown", "temperature, by the hardware"]),
        ([1200, 1200], 0x2, True, []),
    ],
)
def test_clocks_are_steady_only_when_nothing_slowed_them(clocks, reasons, steady, throttled):
    verdict = summary(watch([sample(mhz, reasons) for mhz in clocks]))["clocks"]
    assert (verdict["steady"], verdict["throttled"]) == (steady, throttled)
    assert (verdict["min"], verdict["max"]) == (min(clocks), max(clocks))


def test_an_idle_gpu_says_nothing_about_the_clocks_of_a_busy_one():
    seen = summary(watch([sample(210, reasons=1), sample(1980, watts=400), sample(1980, watts=200)]))
    assert (seen["clocks"]["min"], seen["clocks"]["samples"]) == (1980, 2)
    assert seen["power_w"] == {"mean": 300.0, "max": 400.0}
    nothing = summary(watch([sample(210, reasons=1)]))
    assert nothing["clocks"] is None
    assert "first sample" in nothing["clocks_not_seen"]


def test_what_cannot_be_read_is_null_with_the_reason():
    class NvmlError(Exception):
        pass

    def absent():
        raise NvmlError("NVML Shared Library Not Found")

    seen = GpuWatch("x", library=SimpleNamespace(nvmlInit=absent))
    with seen.looking():
        pass
    assert summary(seen)["clocks"] is None
    assert "NVML Shared Library Not Found" in summary(seen)["clocks_not_seen"]
    assert seen.millijoules() is None


def test_a_gpu_is_read_while_it_is_looked_at_and_never_set():
    requested = []

    class Library:
        NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

        def __getattr__(self, name):
            requested.append(name)
            return lambda *_: 1000

    seen = GpuWatch("x", library=Library())
    with seen.looking():
        deadline = time.perf_counter() + 5
        while not seen.samples and time.perf_counter() < deadline:
            pass
    assert seen.samples[0] == Sample(1000, 1000, 1.0, 1000, 1000)
    assert not [name for name in requested if "Set" in name or "Reset" in name]


def test_energy_needs_a_counter_that_moved():
    assert energy_per_image(1000, 4000, 600) == 5.0
    for before, after, images in ((None, 5, 1), (5, None, 1), (5, 5, 1), (5, 9, 0)):
        assert energy_per_image(before, after, images) is None


# ---------------------------------------------------------------- limits

LIMITS = GpuLimits({"float16": 100e12, "float32": 10e12}, 1e12, l2_bytes=10_000_000)


def test_the_limit_is_whatever_takes_longer():
    compute = share_of_gpu_limit(Cost(10**12, 10**9, 1, 1, (), 20_000_000), 0.02, "float16", LIMITS)
    assert (compute["bound"], compute["limit_ms"], compute["share"]) == ("compute", 10.0, 0.5)
    assert compute["memory_ms"] == 0.02
    memory = share_of_gpu_limit(Cost(10**9, 10**9, 1, 1, (), 500_000_000), 0.001, "float16", LIMITS)
    assert (memory["bound"], memory["limit_ms"], memory["share"]) == ("memory", 0.5, 0.5)
    slower = share_of_gpu_limit(Cost(10**12, 10**9, 1, 1, (), 0), 0.2, "float32", LIMITS)
    assert slower["limit_ms"] == 100.0


def test_bytes_that_stay_in_the_cache_are_no_limit():
    small = share_of_gpu_limit(Cost(10**6, 10**7, 1, 1, (), 9_000_000), 0.001, "float16", LIMITS)
    assert (small["bound"], small["memory_ms"]) == ("compute", 0.0)


def test_no_share_without_a_rate_for_the_precision_or_all_shapes():
    cost = Cost(10**9, 10**9, 1, 1, (), 10**6)
    assert share_of_gpu_limit(cost, 1.0, "int8", LIMITS) is None
    assert share_of_gpu_limit(cost, 1.0, "float32", None) is None
    assert share_of_gpu_limit(Cost(10**9, 1, 1, 1, ("node",), 1), 1.0, "float32", LIMITS) is None


def test_without_a_gpu_the_calibration_says_why():
    from relu_deploy.backends.nvidia.driver import Missing, find_gpu

    missing = find_gpu()
    if not isinstance(missing, Missing):
        pytest.skip("tests what happens without a GPU: run it on a machine that has none")
    why = calibrate_gpu()
    assert isinstance(why, str)
    assert why == missing.reason or "cuda-bindings" in why


# ---------------------------------------------------------------- rows


def test_a_row_on_a_gpu_tells_its_times_apart_in_json(meter, tmp_path):
    kinds = {}
    for _ in range(3):
        for kind, values in meter.measure(0.02).items():
            kinds.setdefault(kind, []).append(values)
    process = SimpleNamespace(request=lambda command, batch, seconds: meter.facts(batch, 0.02))
    facts = {"can_bind": True, "facts": {"precision": "float32", "tf32": True}, "peak_bytes": 1, "load_seconds": 1.0}
    facts |= {"first_run_seconds": 1.0, "stable": True, "verified": True, "error_ratio": 1.0, "checked_rows": 2}
    plan = BenchmarkPlan(["tensorrt"], 1.0, 1, 0, gpu=GpuLimits({"tf32": 1e9}, 1e9, 0))
    facts |= _device(process, 2, plan, kinds, facts)
    row = _row(bundle_of(tmp_path), "tensorrt", 2, [[3.0], [5.0]], facts, Cost(10**6, 1, 1, 2, (), 1), plan).to_json()
    json.dumps(row, allow_nan=False)
    device = row["device"]
    assert device["run_ms"]["mean"] == pytest.approx(2.0)
    assert device["run_ms"]["rounds"] == 3
    assert device["throughput"] == pytest.approx(1000)
    assert device["rotation"] == 4
    assert device["runs_per_sample"] == meter.group
    assert {"single_ms", "enqueue_ms", "upload_ms", "download_ms", "memory_bytes", "energy_mj_per_image", "clocks"} <= set(device)
    # The call from arrays to arrays stays the row's latency; the share of the limit is of the GPU's own time.
    assert row["latency_ms"]["mean"] == 4.0
    assert row["precision"] == "tf32"
    assert row["roofline"]["share"] == pytest.approx(0.5)


def test_a_queue_that_runs_dry_is_said_to_measure_launching(meter):
    process = SimpleNamespace(request=lambda *_, **__: {})
    for enqueue, bound in ((0.4, False), (2.0, True)):
        kinds = {"run": [[2.0]], "enqueue": [[enqueue]]}
        assert _device(process, 1, BenchmarkPlan([], 1, 1, 0), kinds, {"can_bind": True})["device"]["launch_bound"] is bound


def test_on_a_cpu_there_is_no_device_and_without_buffers_the_reason():
    plan = BenchmarkPlan([], 1.0, 1, 0)
    assert _device(None, 1, plan, {}, {"can_bind": False}) == {"device": None}
    reported = _device(None, 1, plan, {}, {"can_bind": True, "error": "cudaMalloc failed"})
    assert reported == {"device": {"not_measured": "cudaMalloc failed"}, "error": ""}
    assert Run("m", "onnxruntime-cpu", 1).to_json()["device"] is None


def testratios_of_are_of_calls_and_of_the_gpus_time_where_both_have_it(tmp_path):
    fast, slow, cpu = Key("tensorrt", ""), Key("torch-cuda", ""), Key("onnxruntime-cpu", "")
    calls = {fast: [[2.0]], slow: [[4.0]], cpu: [[8.0]]}
    found = ratios_of(bundle_of(tmp_path), 1, Timings(calls, {fast: [[1.0]], slow: [[4.0]]}), "torch-cuda")
    reported = {one.backend: one.to_json() for one in found}
    assert (reported["tensorrt"]["speedup"], reported["tensorrt"]["device_speedup"]) == (2.0, 4.0)
    assert (reported["onnxruntime-cpu"]["speedup"], reported["onnxruntime-cpu"]["device_speedup"]) == (0.5, None)
    assert Ratios("m", 1, "a", "b", Ratio(1.0, None)).to_json()["device_ci95"] is None


def test_a_named_variant_stands_in_the_models_place_on_its_backend_only():
    made_for = {"fp16-tensorrt": {"target": "tensorrt"}, "int8-tensorrt": {"target": "tensorrt"}}
    bundle = SimpleNamespace(variant="", manifest={"variants": made_for})
    backends = ["tensorrt", "torch-cuda"]
    all_of_them = [str(key) for key in _keys(bundle, BenchmarkPlan(backends, 1, 1, 0))]
    assert all_of_them == ["tensorrt", "tensorrt fp16-tensorrt", "tensorrt int8-tensorrt", "torch-cuda"]
    named = [str(key) for key in _keys(bundle, BenchmarkPlan(backends, 1, 1, 0, variants=["int8-tensorrt"]))]
    assert named == ["tensorrt int8-tensorrt", "torch-cuda"]
    assert [str(key) for key in _keys(bundle, BenchmarkPlan(backends, 1, 1, 0, variants=[]))] == ["tensorrt", "torch-cuda"]


def test_a_reading_that_the_gpu_does_not_have_takes_no_other_with_it():
    class NotSupported(Exception):
        pass

    class Library:
        NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

        def __init__(self, *missing):
            self.missing = missing

        def __getattr__(self, name):
            def read(*_):
                if any(part in name for part in self.missing):
                    raise NotSupported("Not Supported")
                return 1000

            return read

    seen = GpuWatch("x", library=Library("PowerUsage", "Temperature"))
    assert seen.look() == Sample(1000, 1000, None, None, 1000)
    seen.samples = [sample(1980, watts=None, celsius=None), sample(1980, watts=None, celsius=None)]
    reported = summary(seen)
    assert (reported["clocks"]["max"], reported["power_w"], reported["temperature_c"], reported["clocks_not_seen"]) == (
        1980,
        None,
        None,
        "",
    )
    without_clocks = GpuWatch("x", library=Library("ClockInfo"))
    assert without_clocks.look() == Sample(None, None, 1.0, 1000, 1000)
    without_clocks.samples = [Sample(None, None, 250.0, 60, 0)]
    reported = summary(without_clocks)
    assert (reported["clocks"], reported["power_w"]["mean"], reported["temperature_c"]["max"]) == (None, 250.0, 60)
    assert reported["clocks_not_seen"] == "this GPU does not report its clocks"
    with pytest.raises(NotSupported):
        GpuWatch("x", library=Library("nvmlDevice")).look()


@pytest.mark.parametrize(("bit", "reason"), [(0x200, "power, shared with the CPU"), (0x400, "temperature, shared with the CPU")])
def test_what_a_superchip_shares_with_its_cpu_slows_it_too(bit, reason):
    clocks = summary(watch([sample(1980, bit)]))["clocks"]
    assert (clocks["throttled"], clocks["steady"]) == ([reason], False)
