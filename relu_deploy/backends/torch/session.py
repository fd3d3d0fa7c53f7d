"""PyTorch, eager or compiled, on the CPU or an NVIDIA GPU: runs the very program that was exported (source.pt2).

Relus are tapped by interpreting that program node by node, which runs the same eager kernels. In float64 the program is
interpreted with every float32 weight, constant and cast widened: this is the truth that `verify --against torch` uses.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.base import TORCH_MODES, Executed, Options, Probe, Rounding, Seen
from relu_deploy.backends.nvidia.driver import Gpu, Missing, find_driver, find_gpu, too_old
from relu_deploy.backends.torch.program_file import load_program
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported, UsageError
from relu_deploy.gc_pause import without_collecting
from relu_deploy.tensors import Feeds, TensorSpec, check_feeds

if TYPE_CHECKING:
    import torch


def probe(name: str) -> Probe:
    """Return whether programs can run here. What can be told without importing torch, which takes seconds, is told first."""
    version, cuda = _installed_build()
    gpu = find_gpu() if name.endswith("-cuda") else None
    if isinstance(gpu, Missing):
        return Probe(name, False, version=version, reason=gpu.reason, fix=gpu.fix)
    device = "CPU" if gpu is None else str(gpu)
    missing = (
        _torch_obstacle(version, cuda, gpu)
        or _import_obstacle(version, gpu)
        or (_compiler_obstacle(gpu) if "compile" in name else None)
    )
    if missing is not None:
        return Probe(name, False, version=version, device="" if gpu is None else device, reason=missing.reason, fix=missing.fix)
    return Probe(name, True, version=version, device=device)


def _installed_build() -> tuple[str, str]:
    """Return the version of the installed torch, and of the CUDA that it was built with; "" for neither."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return "", ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown", ""
    named = re.findall(r"^(__version__|cuda)\b[^=]*= *['\"]([^'\"]*)['\"]", text, re.MULTILINE)
    return dict(named).get("__version__", "unknown"), dict(named).get("cuda", "")


def _torch_obstacle(version: str, cuda: str, gpu: Gpu | None) -> Missing | None:
    if not version:
        return Missing("torch is not installed", "pip install 'relu-deploy[torch]'")
    if gpu is None:
        return None
    if not cuda:
        return Missing(
            f"torch {version} is a CPU build",
            "replace it by a CUDA build: https://pytorch.org/get-started/locally has the command",
        )
    driver = find_driver()
    return driver if isinstance(driver, Missing) else too_old(driver, int(cuda.partition(".")[0]), f"torch {version}")


def _import_obstacle(version: str, gpu: Gpu | None) -> Missing | None:
    try:
        with without_collecting():
            import torch
    except (ImportError, OSError) as error:
        return Missing(f"torch {version} is installed but cannot be imported: {error}", "pip install --force-reinstall torch")
    if gpu is None:
        return None
    if not torch.cuda.is_available():
        return Missing(
            f"torch {version} finds no GPU, though NVIDIA's driver does", "python -c 'import torch; torch.cuda.init()' says why"
        )
    built = torch.cuda.get_arch_list()
    if built and not any(_runs(each, gpu.capability) for each in built):
        return Missing(
            f"torch {version} has no kernels for {gpu}: it has {', '.join(built)}",
            "install a build of torch that has them: https://pytorch.org/get-started/locally",
        )
    return None


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Return whether code for `architecture`, such as sm_86 or compute_90, runs on a GPU of that capability."""
    kind, _, digits = architecture.partition("_")
    digits = digits.rstrip("af")
    major, minor = int(digits[:-1]), int(digits[-1])
    # Machine code runs on later GPUs of its own generation, intermediate code on all later ones.
    return (major, minor) <= capability and (kind == "compute" or major == capability[0])


def _compiler_obstacle(gpu: Gpu | None) -> Missing | None:
    if gpu is not None and find_spec("triton") is None:
        return Missing("torch.compile needs triton for a GPU", "pip install triton")
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return Missing("torch.compile needs a C++ compiler", "install g++ (Debian: apt install g++)")
    return None


def load(name: str, bundle: Bundle, options: Options) -> TorchSession:
    import torch

    if bundle.source is None:
        raise Unsupported(
            f"{bundle.name} carries no PyTorch program, so {name} cannot run it",
            "export it from PyTorch with relu-deploy export, or use --backend reference",
        )
    compiled = name.startswith("torch-compile")
    if compiled and options.taps:
        raise Unsupported(f"{name} cannot show the Relus inside a fused kernel", "verify --backend torch, or only the outputs")
    if name.endswith("-cuda") and options.device >= torch.cuda.device_count():
        raise Unsupported(f"there is no CUDA device {options.device}", f"devices 0 to {torch.cuda.device_count() - 1} exist")
    cuda = name.endswith("-cuda")
    if options.torch_mode not in TORCH_MODES:
        raise UsageError(f"torch.compile has no mode {options.torch_mode!r}", f"it is one of {', '.join(TORCH_MODES)}")
    if options.autocast not in ("", "float16", "bfloat16"):
        raise UsageError(f"PyTorch cannot cast to {options.autocast!r} on its own", "it is float16 or bfloat16")
    if options.autocast and options.taps:
        raise Unsupported(f"{name} casts inside its operators: its Relus are not the graph's", "leave the taps or autocast out")
    if blind := [relu.node for relu in options.taps if not relu.torch_node]:
        raise Unsupported(f"{name} does not know which PyTorch node {blind[0]} came from", "verify --against reference")
    torch.set_num_threads(options.thread_count)
    if not cuda:
        return TorchSession(bundle, _load_program(bundle), torch.device("cpu"), compiled, options)
    from relu_deploy.backends.torch.cuda import TorchCudaSession

    device = torch.device("cuda", options.device)
    return TorchCudaSession(bundle, _load_program(bundle, device), device, compiled, options)


def _load_program(bundle: Bundle, device: torch.device | None = None) -> torch.fx.GraphModule:
    """Return the program as a module on `device`. Its weights move, and so do the tensors that it makes while it runs."""
    from torch.export.passes import move_to_device_pass

    assert bundle.source is not None
    program = load_program(bundle.source, trust=False)
    if device is not None:
        program = move_to_device_pass(program, str(device))
    # The guards repeat, slowly, the check that `run` makes of every feed.
    return program.module(check_guards=False)  # type: ignore[return-value]


class TorchSession:
    """An exported PyTorch program, loaded."""

    def __init__(
        self, bundle: Bundle, module: torch.fx.GraphModule, device: torch.device, compiled: bool, options: Options
    ) -> None:
        import torch

        self._bundle, self._device = bundle, device
        self._taps = {relu.torch_node: relu.output for relu in options.taps}
        self.inputs: tuple[TensorSpec, ...] = bundle.inputs
        self.outputs: tuple[TensorSpec, ...] = bundle.outputs
        self.facts: Mapping[str, Any] = {
            "device": str(device),
            "precision": (device.type == "cuda" and options.autocast) or "float32",
            "threads": torch.get_num_threads(),
            "tf32": device.type == "cuda" and options.tf32,
            **({"torch_mode": options.torch_mode} if compiled else {}),
        }
        mode = None if options.torch_mode == "default" else options.torch_mode
        info = getattr(module.graph._codegen, "pytree_info", None)
        self._in_spec = None if info is None else info.in_spec
        self._module: Any = torch.compile(module, dynamic=False, mode=mode) if compiled else module
        known = {node.name for node in module.graph.nodes}
        if missing := [node for node in self._taps if node not in known]:
            raise InputError(f"{bundle.source} has no node {missing[0]!r}", "export the model again")

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        return self._run(feeds, None)

    def evaluate(
        self, feeds: Mapping[str, Any], *, wide: bool = True, rounding: Rounding | None = None, seen: Seen | None = None
    ) -> Feeds:
        """Return every output and tap; see `TruthSession`."""
        return self._run(feeds, _Way(wide, rounding, seen))

    def _run(self, feeds: Mapping[str, Any], way: _Way | None) -> Feeds:
        import torch
        from torch.utils._pytree import tree_leaves

        arrays = check_feeds(feeds, self.inputs, self._bundle.name)
        tensors = [_to_torch(arrays[spec.name]).to(self._device) for spec in self.inputs]
        tapped: dict[str, Any] = {}
        with torch.inference_mode(), self._arithmetic():
            whole = way is None and not self._taps
            run = self._module if whole else _interpreter(self._module, self._taps, way or _Way(), tapped).run
            # The interpreter takes the flattened arguments; the module is called as the program was exported.
            arguments, keywords = _as_called(self._in_spec, tensors) if whole else (tensors, {})
            results = run(*arguments, **keywords)
        results = [value for value in tree_leaves(results) if value is not None]
        named = zip((spec.name for spec in self.outputs), results, strict=True)
        return {name: _to_numpy(value) for name, value in (*named, *tapped.items())}

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Return what holds while the program runs, for a device where there is a choice."""
        return nullcontext()

    def executed(self) -> Sequence[Executed]:
        return ()

    def close(self) -> None:
        self._module = None


def _as_called(in_spec: Any, tensors: list[torch.Tensor]) -> tuple[Any, Any]:
    """Return the positional and keyword arguments of a program whose flattened arguments are `tensors`."""
    from torch.utils._pytree import tree_unflatten

    return (tensors, {}) if in_spec is None else tree_unflatten(tensors, in_spec)


def _to_torch(array: Any) -> torch.Tensor:
    import torch

    # torch shares the array's memory and warns about one that it must not write to; the program never writes to inputs.
    array = array if array.flags.writeable and array.flags.c_contiguous else np.array(array)
    # NumPy's bfloat16 is a stranger to torch: its bits are not.
    return (
        torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if array.dtype.name == "bfloat16" else torch.from_numpy(array)
    )


def _to_numpy(tensor: torch.Tensor) -> Any:
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.cpu().numpy()


@dataclass(frozen=True)
class _Way:
    """How the program is interpreted: see `TruthSession.evaluate`."""

    wide: bool = False
    rounding: Rounding | None = None
    seen: Seen | None = None


#: aten operators whose operands int8 graphs quantize, by the name of the ONNX operator that they become
_ONNX_NAME = {"conv": "Conv", "linear": "Gemm", "addmm": "Gemm", "matmul": "MatMul", "mm": "MatMul", "add": "Add"}


def _interpreter(module: torch.fx.GraphModule, taps: Mapping[str, str], way: _Way, tapped: dict[str, Any]) -> Any:
    """Return an interpreter that runs `module` node by node, copying the value of each tapped node into `tapped`."""
    import torch
    from torch.utils._pytree import tree_map

    rounding = way.rounding

    def widened(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.float16, torch.bfloat16):
            return value.double()
        return torch.float64 if value is torch.float32 else value

    def rounded(value: Any) -> Any:
        return (
            torch.from_numpy(np.asarray(rounding.result(value.numpy())))
            if rounding and isinstance(value, torch.Tensor)
            else value
        )

    class Stepping(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, n: torch.fx.Node) -> Any:
            if n.op == "call_function" and way.wide:
                args, kwargs = tree_map(widened, self.fetch_args_kwargs_from_env(n))
                value = n.target(*self.stored(n, args), **kwargs)
            else:
                value = super().run_node(n)
            if way.wide:
                value = tree_map(rounded, tree_map(widened, value))
            if way.seen and n.op == "call_function" and isinstance(value, torch.Tensor):
                # A copy: in-place operators may overwrite the value later in the program.
                shown = value.clone().numpy()
                returned = way.seen(n.name, shown)
                value = value if returned is shown else torch.from_numpy(np.array(returned))
            if n.name in taps:
                tapped[taps[n.name]] = value.clone()
            return value

        def stored(self, n: torch.fx.Node, args: Any) -> Any:
            """Return the operands of `n` as the precision stores them."""
            family = re.sub(r"(\d+d)?_?$", "", getattr(n.target, "__name__", "").split(".")[0]) if rounding else ""
            operator = _ONNX_NAME.get(family, "")
            if rounding is None or not operator or not all(isinstance(value, torch.Tensor) for value in args[:2]):
                return args
            # addmm takes its bias first.
            first = 1 if family == "addmm" else 0
            pair = [value.numpy() for value in args[first : first + 2]]
            weights = [getattr(node, "op", "") == "get_attr" for node in n.args[first : first + 2]]
            noisy = [torch.from_numpy(value) for value in rounding.operands(operator, pair, weights)]
            return (*args[:first], *noisy, *args[first + 2 :])

    return Stepping(module)
