"""Every broken installation gets one reason, and the one thing that removes it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drivers import Driver
from installations import BARE_METAL, CUBLAS, CUDA, CUDNN, Installation, elf

from relu_deploy import backends
from relu_deploy.backends import probe, probe_all, registry
from relu_deploy.backends.nvidia import driver as nvidia
from relu_deploy.backends.nvidia.container import Host
from relu_deploy.backends.nvidia.driver import Gpu, Missing, find_driver, find_gpu
from relu_deploy.backends.nvidia.shared_libraries import SharedLibraries, linked_to

CONTAINER = Host(container=True, kernel_driver="", devices=False, visible=None, platform="linux")
WITH_GPUS = (
    "start the container with docker run --gpus all (Kubernetes: request nvidia.com/gpu), "
    "on a host with NVIDIA's driver and its Container Toolkit"
)
L4 = "NVIDIA L4 (compute capability 8.9)"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Installation(monkeypatch, tmp_path)


def reported(name):
    found = probe(name)
    assert not found.usable
    return found.reason, found.fix


def other(**changes):
    return Host(**{**vars(BARE_METAL), **changes})


# ---------------------------------------------------------------- driver and GPU


@pytest.mark.parametrize(
    ("host", "driver", "reason", "fix"),
    [
        (BARE_METAL, None, "no NVIDIA driver is installed", "install NVIDIA's driver, on a machine with an NVIDIA GPU"),
        (CONTAINER, None, "no NVIDIA driver is visible in this container", WITH_GPUS),
        (
            other(container=True, kernel_driver="580.65.06"),
            None,
            "this container was started without the GPUs of its host (driver 580.65.06)",
            WITH_GPUS,
        ),
        (
            other(kernel_driver="580.65.06"),
            None,
            "NVIDIA's kernel module 580.65.06 is loaded but the driver's library libcuda.so.1 is not found",
            "install that part of driver 580.65.06 (Debian: apt install libcuda1)",
        ),
        (other(platform="darwin"), None, "NVIDIA has no driver for macOS", "run it on Linux or Windows with an NVIDIA GPU"),
        (
            CONTAINER,
            Driver(error=100),
            "NVIDIA's driver is in this container but no GPU is (cuInit: error 100, no device)",
            WITH_GPUS,
        ),
        (
            BARE_METAL,
            Driver(gpus=[]),
            "NVIDIA's driver finds no usable GPU (cuInit: error 100, no device)",
            "run it on a machine with an NVIDIA GPU: nvidia-smi -L lists what there is",
        ),
        (
            other(visible=""),
            Driver(error=100),
            "CUDA_VISIBLE_DEVICES='' hides every GPU from this process (cuInit: error 100, no device)",
            "unset CUDA_VISIBLE_DEVICES, or set it to the numbers of the GPUs to use, for instance 0",
        ),
        (
            other(visible="7"),
            Driver(error=100),
            "CUDA_VISIBLE_DEVICES='7' names no GPU of this machine (cuInit: error 100, no device)",
            "unset CUDA_VISIBLE_DEVICES, or set it to what nvidia-smi -L lists",
        ),
        (
            BARE_METAL,
            Driver(error=803),
            "NVIDIA's driver finds no usable GPU (cuInit: error 803, its library and its kernel module are of different versions)",
            "reboot, which loads the module that was installed last",
        ),
        (
            BARE_METAL,
            Driver(error=719),
            "NVIDIA's driver finds no usable GPU (cuInit: error 719)",
            "run nvidia-smi, and reboot if it fails",
        ),
    ],
    ids=lambda value: value.replace(" ", "-")[:50] if isinstance(value, str) else "",
)
def test_a_driver_or_gpu_that_is_not_there_is_explained(machine, host, driver, reason, fix):
    machine.machine(host).driver(driver).onnxruntime().torch()
    assert find_gpu() == find_driver() == Missing(reason, fix)
    # Whatever packages are installed, without a GPU none of these can run, and nothing else is in the way before it.
    for name in (
        *("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"),
        *("torch-cuda", "torch-compile-cuda"),
    ):
        assert reported(name) == (reason, fix)


def test_gpus_are_told_apart_and_one_that_is_not_there_is_an_error(machine):
    machine.driver(Driver(cuda=12040, gpus=[("NVIDIA A10", (8, 6), 24 << 30), ("Tesla T4", (7, 5), 16 << 30)]))
    assert find_gpu(1) == Gpu(1, "Tesla T4", (7, 5), 16 << 30)
    assert find_driver().cuda == (12, 4)
    for index in (2, -1):
        missing = find_gpu(index)
        assert missing == Missing(
            f"there is no GPU {index}: this process sees 0 (NVIDIA A10), 1 (Tesla T4)", "use --device 0 to 1"
        )
    machine.machine(other(visible="0,1"))
    assert "CUDA_VISIBLE_DEVICES=0,1 shows no more" in find_gpu(2).reason


def test_a_gpu_that_the_driver_does_not_describe_is_no_gpu(machine, monkeypatch):
    driver = Driver("NVIDIA L4", 8, 9)
    monkeypatch.setattr(driver, "cuDeviceTotalMem_v2", lambda size, device: 999, raising=False)
    machine.driver(driver)
    assert find_gpu().reason == "NVIDIA's driver does not describe GPU 0 (error 999)"


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, (False, "", False, None)),
        ({".dockerenv": ""}, {"CUDA_VISIBLE_DEVICES": ""}, (True, "", False, "")),
        ({"proc/1/cgroup": "0::/kubepods/besteffort/pod1\n"}, {}, (True, "", False, None)),
        ({"proc/1/cgroup": "0::/init.scope\n"}, {"container": "podman"}, (True, "", False, None)),
        ({"sys/module/nvidia/version": "580.65.06\n", "dev/nvidia0": ""}, {}, (False, "580.65.06", True, None)),
        (
            {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n"},
            {},
            (False, "535.183.01", False, None),
        ),
        (
            {"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"},
            {},
            (False, "580.65.06", False, None),
        ),
    ],
)
def test_what_the_host_is_stands_in_files(tmp_path, files, environment, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    host = Host.here(tmp_path, environment)
    assert (host.container, host.kernel_driver, host.devices, host.visible) == expected


# ---------------------------------------------------------------- ONNX Runtime with CUDA and TensorRT

COMPLETE = (CUDA, CUBLAS, CUDNN)


def test_a_complete_installation_is_usable(machine):
    machine.gpu().onnxruntime().libraries(*COMPLETE)
    found = probe("onnxruntime-cuda")
    assert (found.usable, found.version, found.device, found.reason) == (True, "1.31.1", L4, "")
    # A provider that is linked to TensorRT 10 needs it as well.
    machine.libraries({"tensorrt_libs": ("libnvinfer.so.10", "libnvonnxparser.so.10")})
    assert probe("onnxruntime-tensorrt").usable


def test_nothing_is_installed(machine):
    assert reported("onnxruntime-cpu") == ("onnxruntime is not installed", "pip install 'relu-deploy[cpu]'")
    machine.gpu()
    assert reported("onnxruntime-cuda") == ("onnxruntime-gpu is not installed", "pip install 'relu-deploy[cuda]'")
    assert reported("onnxruntime-tensorrt-rtx") == ("onnxruntime is not installed", "pip install 'relu-deploy[cpu,rtx]'")
    assert reported("torch") == reported("torch-cuda") == ("torch is not installed", "pip install 'relu-deploy[torch]'")


def test_both_flavors_are_a_broken_installation_for_every_provider(machine):
    machine.gpu().onnxruntime().package("onnxruntime", "1.32.0").libraries(*COMPLETE)
    for name, extra in (("onnxruntime-cpu", "cpu"), ("onnxruntime-cuda", "cuda"), ("onnxruntime-tensorrt", "cuda")):
        assert reported(name) == (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'relu-deploy[{extra}]'",
        )


def test_the_cpu_flavor_has_no_cuda(machine):
    machine.gpu().onnxruntime("onnxruntime", "1.32.0", cuda="", providers=("CPUExecutionProvider",))
    assert reported("onnxruntime-cuda") == (
        "onnxruntime 1.32.0 is the CPU flavor, which has no CUDAExecutionProvider",
        "pip uninstall -y onnxruntime && pip install 'relu-deploy[cuda]'",
    )
    assert probe("onnxruntime-cpu").usable


def test_a_package_that_cannot_be_imported_says_why(machine):
    machine.package("onnxruntime", "1.32.0")
    reason, fix = reported("onnxruntime-cpu")
    assert reason.startswith("onnxruntime is installed but cannot be imported: ")
    assert fix == "pip install --force-reinstall --no-deps onnxruntime"


def test_a_driver_that_is_older_than_the_packages_is_named_with_the_one_that_is_needed(machine):
    machine.machine(other(kernel_driver="535.183.01")).gpu(cuda=12020).onnxruntime().libraries(*COMPLETE).torch()
    machine.package("tensorrt-cu13", "11.4.0").plugin()
    driver = "NVIDIA's driver 535.183.01 (CUDA 12.2) is too old for"
    fix = "update NVIDIA's driver to 580 or later, or install a build of the package for CUDA 12"
    assert reported("onnxruntime-cuda") == (f"{driver} onnxruntime-gpu 1.31.1, which was built with CUDA 13", fix)
    assert reported("onnxruntime-tensorrt") == reported("onnxruntime-cuda")
    assert reported("torch-cuda") == (f"{driver} torch 2.13.0, which was built with CUDA 13", fix)
    plugin = "onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0"
    assert reported("onnxruntime-tensorrt-rtx") == (f"{driver} {plugin}, which was built with CUDA 13", fix)
    # In a container it is the host that has to be updated.
    machine.machine(other(container=True, kernel_driver="535.183.01"))
    assert reported("torch-cuda")[1].startswith("update NVIDIA's driver of the container's host to 580 or later")


def test_a_newer_driver_runs_older_packages(machine):
    machine.gpu(cuda=13010).onnxruntime(cuda="12.8").libraries(*COMPLETE)
    assert probe("onnxruntime-cuda").usable


def test_a_gpu_older_than_the_packages_know_is_named(machine):
    machine.gpu("Tesla V100-SXM2-16GB", (7, 0)).onnxruntime().libraries(*COMPLETE).torch()
    v100 = "Tesla V100-SXM2-16GB (compute capability 7.0)"
    assert reported("onnxruntime-cuda") == (
        f"onnxruntime-gpu 1.31.1 (CUDA 13) needs compute capability 7.5 or newer, and this is {v100}",
        "use a newer GPU",
    )
    assert reported("onnxruntime-tensorrt")[0] == f"TensorRT needs compute capability 7.5 or newer, and this is {v100}"
    assert reported("torch-cuda")[0] == f"torch 2.13.0 has no kernels for {v100}: it has sm_80, sm_90, compute_120"


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ((), "libcublasLt.so.13, libcublas.so.13, libcurand.so.10, libcudart.so.13, libcudnn.so.9, which are not found"),
        (
            (CUDA,),
            "libcublasLt.so.13, libcublas.so.13, libcudnn.so.9, which are not found; "
            "its extra [cuda] alone leaves out cuBLAS and cuDNN",
        ),
        ((CUDA, CUBLAS), "libcudnn.so.9, which is not found"),
    ],
)
def test_libraries_that_are_missing_are_named_with_the_extras_that_bring_them(machine, there, missing):
    machine.gpu().onnxruntime().libraries(*there)
    assert reported("onnxruntime-cuda") == (
        f"onnxruntime-gpu 1.31.1 needs {missing}",
        "pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'",
    )


def test_libraries_are_found_where_the_system_has_them(machine, monkeypatch, tmp_path):
    machine.gpu().onnxruntime().libraries(CUDA, CUBLAS)
    (tmp_path / "libcudnn.so.9").write_bytes(b"")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    assert probe("onnxruntime-cuda").usable


def test_tensorrt_of_another_major_version_does_not_serve_the_provider(machine):
    machine.gpu().onnxruntime().libraries(*COMPLETE)
    linked = "onnxruntime-gpu 1.31.1 is linked to TensorRT 10 (libnvinfer.so.10), which is not found"
    install = "pip install 'tensorrt-cu13==10.*'"
    assert reported("onnxruntime-tensorrt") == (linked, f"{install}, where NVIDIA's own package index can be reached")
    machine.libraries({"tensorrt_libs": ("libnvinfer.so.11", "libnvonnxparser.so.11")})
    assert reported("onnxruntime-tensorrt") == (
        f"{linked}; TensorRT 11, which is installed, is not compatible with it",
        f"use --backend tensorrt, which runs TensorRT 11; or in another environment: {install}",
    )
    assert probe("onnxruntime-cuda").usable


# ---------------------------------------------------------------- TensorRT-RTX's plug-in


def test_the_plug_in_goes_with_either_flavor(machine):
    cpu_flavor = {"flavor": "onnxruntime", "version": "1.32.0", "cuda": "", "providers": ("CPUExecutionProvider",)}
    machine.gpu().onnxruntime(**cpu_flavor)
    assert reported("onnxruntime-tensorrt-rtx") == (
        "onnxruntime-ep-nv-tensorrt-rtx is not installed",
        "pip install 'relu-deploy[rtx]'",
    )
    machine.plugin()
    assert reported("onnxruntime-tensorrt-rtx") == (
        "onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0 needs libnvidia-ml.so.1 of NVIDIA's driver, which is not found",
        "start the container with -e NVIDIA_DRIVER_CAPABILITIES=compute,utility, or install the whole driver",
    )
    machine.libraries({"nvidia/driver/lib": ("libcuda.so.1", "libnvidia-ml.so.1")})
    assert reported("onnxruntime-tensorrt-rtx") == (
        "onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0 needs libcudart.so.13, which is not found",
        "pip install 'nvidia-cuda-runtime==13.*'",
    )
    machine.libraries(CUDA)
    assert probe("onnxruntime-tensorrt-rtx").usable
    machine.package("onnxruntime-ep-nv-tensorrt-rtx-cu12", "0.5.0")
    assert "both installed" in reported("onnxruntime-tensorrt-rtx")[0]


@pytest.mark.parametrize(
    ("name", "capability", "runs"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), False),
        ("NVIDIA A100-SXM4-40GB", (8, 0), False),
        ("NVIDIA B200", (10, 0), False),
        ("NVIDIA A10", (8, 6), True),
        ("NVIDIA GeForce RTX 5090", (12, 0), True),
    ],
)
def test_the_plug_in_runs_on_rtx_alone(machine, name, capability, runs):
    machine.gpu(name, capability).onnxruntime().plugin()
    machine.libraries({"nvidia/driver/lib": ("libcuda.so.1", "libnvidia-ml.so.1")}, CUDA)
    found = probe("onnxruntime-tensorrt-rtx")
    assert found.usable == runs
    assert runs or found.reason.endswith(f"and this is {name} (compute capability {capability[0]}.{capability[1]})")


def test_a_runtime_that_takes_no_plug_ins_is_too_old(machine):
    machine.gpu().onnxruntime(version="1.20.0").plugin()
    del sys.modules["onnxruntime"].register_execution_provider_library
    assert reported("onnxruntime-tensorrt-rtx") == (
        "onnxruntime-gpu 1.20.0 does not support plug-in providers",
        "pip install --upgrade 'onnxruntime-gpu>=1.24'",
    )


# ---------------------------------------------------------------- PyTorch


def test_a_cpu_build_of_torch_is_told_from_one_that_finds_no_gpu(machine, tmp_path):
    machine.gpu().torch("2.13.0+cpu", cuda="")
    assert reported("torch-cuda") == (
        "torch 2.13.0+cpu is a CPU build",
        "replace it with a CUDA build: https://pytorch.org/get-started/locally has the command",
    )
    assert probe("torch").usable


def test_torch_that_finds_no_gpu_is_not_usable_whatever_the_driver_says(machine):
    machine.gpu().torch(available=False)
    assert reported("torch-cuda")[0] == "torch 2.13.0 finds no GPU, though NVIDIA's driver does"


@pytest.mark.parametrize(
    ("capability", "runs"), [((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True), ((7, 5), False), ((10, 0), False)]
)
def test_kernels_run_on_later_gpus_of_their_generation_and_intermediate_code_on_all_later_ones(machine, capability, runs):
    machine.gpu(capability=capability).torch()
    assert probe("torch-cuda").usable == runs


def test_without_a_gpu_torch_is_not_even_imported(machine, monkeypatch):
    machine.torch()
    monkeypatch.setitem(sys.modules, "torch", None)  # an import would raise
    assert reported("torch-cuda")[0] == "no NVIDIA driver is installed"


# ---------------------------------------------------------------- libraries


def test_what_a_library_is_linked_to_is_read_from_its_file(tmp_path):
    names = ("libcublas.so.13", "libnvinfer.so.10", "libc.so.6")
    (tmp_path / "made.so").write_bytes(elf(names))
    assert linked_to(tmp_path / "made.so") == names
    for content in (b"", b"MZ\x90\0" + bytes(200), b"\x7fELF\x02", b"\x7fELF\x01" + bytes(200), elf(names)[:150]):
        (tmp_path / "other").write_bytes(content)
        assert linked_to(tmp_path / "other") == ()
    assert linked_to(tmp_path / "nosuch.so") == ()


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf is not installed (Debian: apt install binutils)")
def test_real_libraries_are_read_as_readelf_reads_them():
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    files = [*folder.glob("*.so*")]
    assert files
    for file in files:
        listed = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
        expected = [line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line]
        assert list(linked_to(file)) == expected
        # This very process has loaded some of them, and whatever those need.
        assert SharedLibraries.here().missing(expected) == []


# ---------------------------------------------------------------- the verb


def test_doctor_tells_of_the_whole_machine(machine, command, monkeypatch):
    machine.machine(other(kernel_driver="580.65.06")).driver(
        Driver(cuda=13010, gpus=[("NVIDIA L4", (8, 9), 24 << 30), ("Tesla T4", (7, 5), 16 << 30)])
    )
    machine.onnxruntime().libraries(*COMPLETE)
    answer = command("doctor", "--json", "-")
    assert answer.code == 0
    system = answer.json["system"]
    assert system["driver"] == {"version": "580.65.06", "cuda": "13.1"}
    assert [(gpu["name"], gpu["compute_capability"], gpu["memory_bytes"] >> 30) for gpu in system["gpus"]] == [
        ("NVIDIA L4", "8.9", 24),
        ("Tesla T4", "7.5", 16),
    ]
    assert list(system["libraries"]) == ["libcudart.so.13", "libcublas.so.13", "libcudnn.so.9"]
    assert system["onnxruntime"] == {"onnxruntime-gpu": "1.31.1"}
    assert system["reason"] == system["fix"] == ""
    by_name = {probe["name"]: probe for probe in answer.json["backends"]}
    assert list(by_name) == list(backends.names())
    assert by_name["onnxruntime-cuda"] == {
        "name": "onnxruntime-cuda",
        "usable": True,
        "version": "1.31.1",
        "device": L4,
        "reason": "",
        "fix": "",
    }
    assert all(bool(probe["reason"]) == bool(probe["fix"]) == (not probe["usable"]) for probe in by_name.values())


def test_the_table_fits_a_terminal_of_80_columns(machine, command, monkeypatch):
    import rich.console

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(rich.console.Console, "is_terminal", property(lambda self: True))
    monkeypatch.setenv("NO_COLOR", "1")
    machine.machine(CONTAINER).onnxruntime()
    answer = command("doctor")
    assert answer.code == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", answer.stdout).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    # What several backends want is said once.
    assert text.count("no NVIDIA driver is visible in this container") == 2
    assert "torch-cuda, torch-compile-cuda, onnxruntime-cuda, onnxruntime-tensorrt" in text
    assert f"fix: {WITH_GPUS}" in text


def test_on_this_machine_doctor_says_what_loading_does(command, digits_bundle):
    for found in probe_all():
        if not found.usable:
            assert found.reason
            assert found.fix
        elif not backends.capabilities(found.name).compiles_in_place:
            session = digits_bundle.session(found.name)
            assert session.outputs == digits_bundle.outputs
            session.close()


@pytest.mark.parametrize("verb", ["verify", "prove", "census"])
def test_the_gpu_that_was_chosen_is_the_one_that_is_loaded_on(command, digits_copy, monkeypatch, verb):
    chosen = []

    def options(**fields):
        chosen.append(fields.get("device"))
        return backends.base.Options(**fields)

    monkeypatch.setattr(registry, "Options", options)
    arguments = {
        "verify": (digits_copy.path, "--against", "reference"),
        "prove": ("--dtype", "int8"),
        "census": (digits_copy.path, "--data", "digits", "--samples", "8"),
    }
    answer = command(verb, *arguments[verb], "--device", "2", "--quiet")
    assert answer.code == 0, answer.stderr
    # The truth is found on the CPU, wherever the backend runs.
    assert set(chosen) - {None} == {2}


@pytest.mark.skipif(
    isinstance(nvidia.find_driver(), nvidia.Driver),
    reason="tests what happens without an NVIDIA driver: run it on a machine that has none",
)
@pytest.mark.parametrize("verb", ["bench", "verify", "prove"])
def test_without_a_gpu_asking_for_one_by_name_is_exit_3_with_the_reason(command, digits_bundle, verb):
    path = () if verb == "prove" else (digits_bundle.path,)
    answer = command(verb, *path, "--backend", "onnxruntime-cuda")
    assert answer.code == 3
    assert "error: backend 'onnxruntime-cuda' is not usable here: " in answer.stderr
    driver = nvidia.find_driver()
    assert driver.reason in answer.stderr
    assert f"hint: {driver.fix}" in answer.stderr
