"""The GPU code on the real bindings of CUDA and NVML, over a fake of NVIDIA's driver in host memory: see tests/support/fake_driver.

All scenarios run once, in one process that loads the fake; each test looks at a part of what it found.
"""

import pytest
from fake_driver.__main__ import run, summary
from fake_driver.fake import missing

#: where a failing call does not fail the whole: what frees or drains, what falls back to plain launches, and error texts
ABSORBED = {
    *("cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy"),
    *("cuCtxSetCurrent", "cuStreamSynchronize", "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"),
    "cuGetErrorString",
}
#: calls that describe the GPU in a session's facts, where a failure is described instead
DESCRIBING = {"cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDeviceTotalMem"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if why := missing():
        pytest.skip(why)
    return run(tmp_path_factory.mktemp("driver"))


def test_every_call_of_the_driver_may_fail_without_a_leak_or_a_foreign_exception(found):
    rows = [row for rows in found["injected"].values() for row in rows]
    assert len(rows) > 200
    assert [row for row in rows if row["outcome"] == "broken" or row["leaks"] or not row["reached"]] == []
    for scenario, its in found["injected"].items():
        allowed = ABSORBED | (DESCRIBING if scenario in ("engine", "elsewhere", "growing") else set())
        assert {row["call"].split()[0] for row in its if row["outcome"] == "right"} <= allowed
    named = [row["text"] for row in rows if row["outcome"] == "raised"]
    assert all("CUDA_ERROR_ILLEGAL_ADDRESS" in text or "CUDA_ERROR_OUT_OF_MEMORY" in text for text in named)


def test_nothing_is_left_and_nothing_was_freed_twice(found):
    assert found["alive"] == {}
    # The one call without a context is the test's own.
    assert found["faults"] == {"no current context": 1}


def test_a_thread_without_a_current_gpu_makes_it_current_itself(found):
    assert found["without context"] == {"plain": 201, "ours": 0}


def test_what_a_second_gpu_holds_is_freed_there_from_a_thread_that_uses_the_first(found):
    assert found["closed elsewhere"] == {"device": 1, "faults": True, "alive": {}}


def test_an_array_on_another_gpu_is_waited_for_and_copied_across(found):
    assert found["elsewhere"] == ["right", ""]


def test_errors_have_cudas_name_and_a_hint(found):
    device, memory = found["hints"]
    assert device[:2] == ["CUDA_ERROR_INVALID_DEVICE", "cuDeviceGet failed: CUDA_ERROR_INVALID_DEVICE (invalid device ordinal)"]
    assert "nvidia-smi -L" in device[2]
    assert memory[0] == "CUDA_ERROR_OUT_OF_MEMORY"
    assert "smaller batch" in memory[2]


def test_the_driver_and_its_gpus_are_found(found):
    assert found["driver"]["driver"] == "NVIDIA's driver 580.95 (CUDA 13.0)"
    assert [gpu["name"] for gpu in found["driver"]["gpus"]] == ["Fake GPU 0", "Fake GPU 1"]
    assert found["driver"]["gpus"][1]["compute_capability"] == "8.9"


def test_a_meter_of_gpu_time_works_on_the_real_bindings(found):
    assert found["meter"] == ["right", ""]


def test_the_wrapper_of_cuda_is_covered(found):
    lines = found["lines"]["cuda.py"]
    # What does not run there is what says that the bindings or the driver are missing.
    assert lines["covered"] / lines["lines"] > 0.9, summary(found)


# ---------------------------------------------------------------- readings of the management library


@pytest.fixture
def telemetry(found):
    if "not installed" in found["telemetry"]["all"].get("reason", ""):
        pytest.skip("nvidia-ml-py is not installed (pip install 'relu-deploy[dev]')")
    return found["telemetry"]


def test_all_readings_arrive(telemetry):
    sample = telemetry["all"]["sample"]
    assert sample == {"sm_mhz": 1980, "memory_mhz": 2619, "watts": 312.5, "celsius": 41, "reasons": 0x404}
    assert telemetry["all"]["summary"]["clocks"]["throttled"] == ["power limit", "temperature, shared with the CPU"]
    # 250 mJ on 10 images.
    assert telemetry["all"]["energy"] == 25


@pytest.mark.parametrize(
    ("function", "reading"),
    [
        ("nvmlDeviceGetClockInfo.SM", "sm_mhz"),
        ("nvmlDeviceGetClockInfo.MEM", "memory_mhz"),
        ("nvmlDeviceGetPowerUsage", "watts"),
        ("nvmlDeviceGetTemperature", "celsius"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "reasons"),
    ],
)
def test_a_reading_that_is_not_supported_leaves_the_others(telemetry, function, reading):
    expected = {**telemetry["all"]["sample"], reading: None}
    assert telemetry[function]["sample"] == expected
    assert telemetry[function]["energy"] == 25


def test_energy_that_is_not_supported_leaves_the_samples(telemetry):
    found = telemetry["nvmlDeviceGetTotalEnergyConsumption"]
    assert found["energy"] is None
    assert found["sample"] == telemetry["all"]["sample"]


def test_a_library_that_does_not_start_or_reports_nothing_says_why(telemetry):
    for case in ("nvmlInit", "nvmlDeviceGetHandleByPciBusId", "none"):
        assert telemetry[case] == {"reason": "NVIDIA's management library says: Not Supported"}
    assert telemetry["another GPU"] == "NVIDIA's management library says: Not Found"
