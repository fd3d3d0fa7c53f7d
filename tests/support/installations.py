"""Made-up installations: packages, libraries and drivers as files and modules, in place of this machine's own."""

import struct
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import onnx  # noqa: F401  # loaded while it can be: what a machine has begins with nothing
import rich.table  # noqa: F401
from drivers import Driver

from relu_deploy.backends.nvidia import driver as nvidia
from relu_deploy.backends.nvidia import shared_libraries
from relu_deploy.backends.nvidia.container import Host
from relu_deploy.backends.torch import probe as pytorch

#: what the providers of onnxruntime-gpu 1.31.1 are linked to, as `readelf -d` says
LINKED = {
    "libonnxruntime_providers_cuda.so": (
        *("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13"),
        *("libcuda.so.1", "libdl.so.2", "libstdc++.so.6", "libc.so.6"),
    ),
    "libonnxruntime_providers_tensorrt.so": (
        *("libcublas.so.13", "libdl.so.2", "libnvinfer.so.10", "libnvonnxparser.so.10"),
        *("libcudart.so.13", "libcudnn.so.9", "libstdc++.so.6", "libc.so.6"),
    ),
}
PLUGIN_LINKED = ("libcudart.so.13", "libcuda.so.1", "libnvidia-ml.so.1", "libtensorrt_rtx.so.1", "libz.so.1", "libc.so.6")
#: what [cuda] and [cudnn] of onnxruntime-gpu install, by folder below site-packages
CUDA = {"nvidia/cu13/lib": ("libcudart.so.13", "libcurand.so.10", "libcufft.so.12", "libnvrtc.so.13")}
CUBLAS = {"nvidia/cu13/lib": ("libcublas.so.13", "libcublasLt.so.13")}
CUDNN = {"nvidia/cudnn/lib": ("libcudnn.so.9",)}
ALL = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")

BARE_METAL = Host(container=False, kernel_driver="", devices=False, visible=None, platform="linux")


def elf(needed):
    """Return a 64-bit ELF file that is linked to the libraries `needed` and holds nothing else."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    places, at = [], 1
    for name in needed:
        places.append(at)
        at += len(name) + 1
    # Addresses are not places in the file: here they are 0x1000 more.
    start, shift = 64 + 2 * 56, 0x1000
    table = [(1, place) for place in places] + [(5, start + shift + 16 * (len(needed) + 2)), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in table)
    size = start + len(dynamic) + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, shift, shift, size, size, 0x1000)
    dyn = struct.pack("<IIQQQQQQ", 2, 6, start, start + shift, start + shift, len(dynamic), len(dynamic), 8)
    return header + load + dyn + dynamic + names


class Installation:
    """A machine of Python packages, built up call by call. It begins with nothing: no driver, no package, no library."""

    def __init__(self, monkeypatch, folder):
        self.patch, self.site = monkeypatch, folder / "site-packages"
        self.site.mkdir()
        kept = [path for path in sys.path if "site-packages" not in path and path]
        monkeypatch.setattr(sys, "path", [str(self.site), *kept])
        monkeypatch.setattr(shared_libraries, "_system", dict)
        monkeypatch.setattr(shared_libraries, "_loaded", dict)
        monkeypatch.setattr(pytorch, "find_spec", lambda name: None)
        monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
        for name in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, None)
        self.machine(BARE_METAL)
        self.driver(None)

    def machine(self, host):
        self.patch.setattr(nvidia.Host, "here", classmethod(lambda cls, *_: host))
        return self

    def driver(self, driver):
        def load_library(name, *_, **__):
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        self.patch.setattr(nvidia.ctypes, "CDLL", load_library)
        return self

    def gpu(self, name="NVIDIA L4", capability=(8, 9), cuda=13000):
        return self.driver(Driver(cuda=cuda, gpus=[(name, capability, 24 << 30)]))

    def package(self, name, version):
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return self

    def libraries(self, *packages):
        for folder, names in (pair for package in packages for pair in package.items()):
            (self.site / folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                (self.site / folder / name).write_bytes(elf(()))
        return self

    def onnxruntime(self, flavor="onnxruntime-gpu", version="1.31.1", cuda="13.0", providers=ALL):
        """Install a flavor of ONNX Runtime. Like the real one, it lists providers whether they can run or not."""
        self.package(flavor, version)
        capi = self.site / "onnxruntime" / "capi"
        capi.mkdir(parents=True, exist_ok=True)
        for name, linked in LINKED.items() if "CUDAExecutionProvider" in providers else ():
            (capi / name).write_bytes(elf(linked))
        module = ModuleType("onnxruntime")
        module.__file__, module.__version__, module.cuda_version = str(capi.parent / "__init__.py"), version, cuda
        module.get_available_providers = lambda: list(providers)
        module.register_execution_provider_library = lambda name, path: None
        self.patch.setitem(sys.modules, "onnxruntime", module)
        return self

    def plugin(self, package="onnxruntime-ep-nv-tensorrt-rtx-cu13", version="0.5.0"):
        self.package(package, version)
        folder = self.site / "onnxruntime_ep_nv_tensorrt_rtx"
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text("raise ImportError('the check must not load the plug-in')\n")
        (folder / "libonnxruntime_providers_nv_tensorrt_rtx.so").write_bytes(elf(PLUGIN_LINKED))
        return self

    def torch(self, version="2.13.0", cuda="13.0", available=True, architectures=("sm_80", "sm_90", "compute_120")):
        folder = self.site / "torch"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        reported = repr(cuda or None)
        (folder / "version.py").write_text(
            f"__version__ = '{version}'\ndebug = False\ncuda: Optional[str] = {reported}\nhip = None\n"
        )
        spec = ModuleSpec("torch", None, origin=str(folder / "__init__.py"))
        self.patch.setattr(pytorch, "find_spec", lambda name: spec)
        module = ModuleType("torch")
        module.cuda = SimpleNamespace(is_available=lambda: available, get_arch_list=lambda: list(architectures))
        self.patch.setitem(sys.modules, "torch", module)
        return self
