"""Execution providers of other packages: found, explained when they are not usable, and run in the requested precision."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from relu_deploy.backends import capabilities, load, probe
from relu_deploy.backends.nvidia.driver import Missing
from relu_deploy.backends.onnxruntime import load_gpu, plugins
from relu_deploy.backends.onnxruntime.plugins import PLUGINS
from relu_deploy.errors import BackendUnavailable
from relu_deploy.graph import find_relus, load_model

OPENVINO = PLUGINS["onnxruntime-openvino"]


class Runtime:
    """The part of onnxruntime that plug-ins meet. refusal: why a library is not loaded."""

    __version__ = "1.32.0"

    def __init__(self, devices=(), refusal=""):
        self.devices, self.refusal = devices, refusal

    def register_execution_provider_library(self, name, path):
        if self.refusal:
            raise RuntimeError(self.refusal)

    def get_ep_devices(self):
        return self.devices


def device(provider, kind="GPU", **metadata):
    hardware = SimpleNamespace(type=f"OrtHardwareDeviceType.{kind}", metadata=metadata)
    return SimpleNamespace(ep_name=provider, device=hardware, ep_metadata={})


@pytest.fixture
def packaged(monkeypatch):
    """Let every plug-in's module be importable."""
    module = SimpleNamespace(get_library_path=lambda: "/plugin.so")
    monkeypatch.setattr(plugins, "import_module", lambda name: module)


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plug_in_that_is_not_installed_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr(plugins, "installed", lambda plugin: {})
    found = plugins.unavailable(Runtime(), "onnxruntime 1.32.0", PLUGINS[name])
    assert found.reason.endswith("is not installed")
    assert found.reason.startswith("onnxruntime-ep-")
    assert found.fix == f"pip install {PLUGINS[name].install}"


def test_a_runtime_that_takes_no_plug_ins_is_to_be_upgraded():
    found = plugins.unavailable(SimpleNamespace(), "onnxruntime 1.22.0", OPENVINO)
    assert found == Missing("onnxruntime 1.22.0 does not support plug-in providers", "pip install --upgrade 'onnxruntime>=1.24'")


def test_a_plug_in_of_another_interface_version_says_so(packaged):
    refusal = "[ONNXRuntimeError] : 1 : FAIL : The requested API version [99] is not available"
    found = plugins.register(Runtime(refusal=refusal), OPENVINO)
    assert "ONNX Runtime 1.32.0 cannot load OpenVINOExecutionProvider" in found.reason
    assert found.reason.endswith("The requested API version [99] is not available")
    assert "pip install --upgrade onnxruntime" in found.fix


def test_a_plug_in_that_is_registered_already_is_taken_as_it_is(packaged):
    assert plugins.register(Runtime(refusal="library already registered under this name"), OPENVINO) is None


def test_devices_are_those_of_the_provider_and_of_its_kind():
    mine, gpu = device(OPENVINO.provider, "CPU"), device(OPENVINO.provider, "GPU")
    runtime = Runtime([device("CPUExecutionProvider", "CPU"), gpu, device(f"{OPENVINO.provider}.AUTO", "CPU"), mine])
    assert plugins.devices_of(runtime, OPENVINO) == [mine]


def test_a_gpu_is_found_by_its_address_and_not_by_its_place_in_the_list(packaged):
    name = "onnxruntime-tensorrt-rtx"
    first, second = (device(PLUGINS[name].provider, pci_bus_id=each) for each in ("0000:17:00.0", "0000:CA:00.0"))
    runtime = Runtime([first, second])
    # CUDA's first GPU is the fastest one, and this plug-in's second.
    gpu = SimpleNamespace(bus_id=lambda: "00000000:ca:00.0")
    assert load_gpu._plugin_device(runtime, name, gpu, 0) is second
    with pytest.raises(BackendUnavailable, match=r"does not offer GPU 1 \(PCI address 0000:65:00\.0\)"):
        load_gpu._plugin_device(runtime, name, SimpleNamespace(bus_id=lambda: "0000:65:00.0"), 1)


def test_without_addresses_the_place_in_the_list_counts(packaged):
    name = "onnxruntime-tensorrt-rtx"
    devices = [device(PLUGINS[name].provider) for _ in range(2)]
    assert load_gpu._plugin_device(Runtime(devices), name, None, 1) is devices[1]
    with pytest.raises(BackendUnavailable, match="offers 2 GPUs, and none with index 2"):
        load_gpu._plugin_device(Runtime(devices), name, None, 2)
    with pytest.raises(BackendUnavailable, match="finds no device: it needs a GPU of compute capability"):
        load_gpu._plugin_device(Runtime(), name, None, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs Linux and a C compiler, cc")
@pytest.mark.parametrize(
    "place", ["nvidia/cu13/lib/libcudart-made-up.so.13", "onnxruntime_ep_nv_tensorrt_rtx/libcudart-made-up.so.13.4.36"]
)
def test_a_plug_in_finds_the_cuda_runtime_of_a_python_package(tmp_path, place):
    # Real libraries: the plug-in is linked to a CUDA runtime that lies where the system's loader does not look, in the package
    # of NVIDIA's, or in its own under the name of its full version.
    site = tmp_path / "site"
    package = site / "onnxruntime_ep_nv_tensorrt_rtx"
    (site / place).parent.mkdir(parents=True)
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (tmp_path / "cudart.c").write_text("int cudaFake(void) { return 7; }")
    (tmp_path / "plugin.c").write_text("int cudaFake(void); int answer(void) { return cudaFake(); }")
    cudart, plugin = site / place, package / "libonnxruntime_providers_nv_tensorrt_rtx.so"
    build = ["cc", "-shared", "-fPIC", "-o"]
    subprocess.run([*build, cudart, tmp_path / "cudart.c", "-Wl,-soname,libcudart-made-up.so.13"], check=True)
    subprocess.run([*build, plugin, tmp_path / "plugin.c", cudart], check=True)
    code = (
        "import ctypes, sys\nfrom relu_deploy.backends.onnxruntime.plugins import PLUGINS, open_plugin_libraries\n"
        "if sys.argv[2] == 'first': open_plugin_libraries(PLUGINS['onnxruntime-tensorrt-rtx'])\n"
        "print(ctypes.CDLL(sys.argv[1]).answer())"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    answers = [
        subprocess.run(
            [sys.executable, "-c", code, plugin, when], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        for when in ("first", "never")
    ]
    assert answers[0].stdout.strip() == "7", answers[0].stderr
    assert "libcudart-made-up.so.13: cannot open shared object file" in answers[1].stderr


def test_only_those_on_a_gpu_say_so():
    assert {name: capabilities(name).on_gpu for name in PLUGINS} == {
        "onnxruntime-openvino": False,
        "onnxruntime-webgpu": True,
        "onnxruntime-mlx": True,
        "onnxruntime-tensorrt-rtx": True,
    }


# ---------------------------------------------------------------- where one is installed


@pytest.fixture
def openvino():
    found = probe("onnxruntime-openvino")
    if not found.usable:
        pytest.skip(f"onnxruntime-openvino is not usable here: {found.reason}: {found.fix}")
    return found


def test_openvinos_plug_in_runs_the_whole_model_in_float32(openvino, digits_bundle):
    relus = tuple(find_relus(load_model(digits_bundle.onnx)))
    x = np.random.default_rng(0).standard_normal((4, 1, 28, 28)).astype(np.float32)
    session = load(digits_bundle, "onnxruntime-openvino", taps=relus)
    got, true = session.run({"x": x}), load(digits_bundle, "reference", taps=relus).evaluate({"x": x})
    assert got.keys() == true.keys()
    for name, array in got.items():
        # Its default on processors with AVX512-BF16, bfloat16, is wrong by 1e-3 of the largest number or more.
        assert np.max(np.abs(array - true[name])) < 1e-5 * np.max(np.abs(true[name]))
    assert session.facts["providers"][0] == "OpenVINOExecutionProvider"
    assert set(session.facts["nodes_by_provider"]) == {"OpenVINOExecutionProvider"}
    assert "plug-in" in openvino.version


def test_a_plug_in_without_a_device_is_explained_by_what_it_needs():
    found = probe("onnxruntime-webgpu")
    if found.usable:
        pytest.skip("this machine has a GPU that WebGPU runs on: run it on one without")
    assert found.reason in ("onnxruntime-ep-webgpu is not installed", "WebGpuExecutionProvider finds no device here")
    assert found.fix
