"""Loads the PyTorch program in a bundle (source.pt2) for the CPU or a GPU, eager or compiled with torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from relu_deploy.backends.base import TORCH_MODES, Options
from relu_deploy.backends.torch.program_file import load_program
from relu_deploy.backends.torch.session import TorchSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import Unsupported, UsageError
from relu_deploy.graph import Relu

if TYPE_CHECKING:
    import torch

__all__ = ["load", "program_module", "program_session"]


def load(name: str, bundle: Bundle, options: Options) -> TorchSession:
    """Return a session that runs the PyTorch program of `bundle`.

    Raises:
        InputError: If the program cannot be loaded.
        Unsupported: If the bundle has no program, there is no such GPU, or the Relus cannot be tapped.
        UsageError: If an option has an unknown value.
    """
    import torch

    if bundle.source is None:
        raise Unsupported(
            f"{bundle.name} has no PyTorch program, so {name} cannot run it",
            "export it from PyTorch with relu-deploy export, or use --backend reference",
        )
    compiled = name.startswith("torch-compile")
    if compiled and options.taps:
        raise Unsupported(
            f"{name} cannot show the Relus inside a fused kernel", "use verify --backend torch, or verify only the outputs"
        )
    if name.endswith("-cuda") and options.device >= torch.cuda.device_count():
        raise Unsupported(f"there is no CUDA device {options.device}", f"devices 0 to {torch.cuda.device_count() - 1} exist")
    cuda = name.endswith("-cuda")
    if options.torch_mode not in TORCH_MODES:
        raise UsageError(f"torch.compile has no mode {options.torch_mode!r}", f"it is one of {', '.join(TORCH_MODES)}")
    if options.autocast not in ("", "float16", "bfloat16"):
        raise UsageError(f"PyTorch cannot cast to {options.autocast!r} on its own", "it is float16 or bfloat16")
    if options.autocast and options.taps:
        raise Unsupported(f"{name} casts inside its operators: its Relus are not the graph's", "omit the taps or autocast")
    if blind := [relu.node for relu in options.taps if not relu.torch_node]:
        raise Unsupported(f"{name} does not know which PyTorch node {blind[0]} came from", "verify --against reference")
    torch.set_num_threads(options.thread_count)
    if not cuda:
        return TorchSession(bundle, program_module(bundle), torch.device("cpu"), compiled, options)
    from relu_deploy.backends.nvidia.tf32 import require_tf32
    from relu_deploy.backends.torch.cuda import TorchCudaSession

    if options.tf32:
        require_tf32(name)
    device = torch.device("cuda", options.device)
    return TorchCudaSession(bundle, program_module(bundle, device), device, compiled, options)


def program_session(program: torch.export.ExportedProgram, bundle: Bundle, taps: Sequence[Relu]) -> TorchSession:
    """Return a session on the CPU for a program that is not in a file, with the inputs and outputs of `bundle`."""
    import torch

    options = Options(taps=tuple(taps))
    module = program.module(check_guards=False)
    return TorchSession(bundle, module, torch.device("cpu"), False, options)  # type: ignore[arg-type]


def program_module(bundle: Bundle, device: torch.device | None = None) -> torch.fx.GraphModule:
    """Return the program of `bundle` as a module.

    Args:
        bundle: A bundle with a PyTorch program.
        device: Device for its weights and the tensors that it creates, None for the CPU.

    Raises:
        InputError: If the program cannot be loaded.
    """
    from torch.export.passes import move_to_device_pass

    assert bundle.source is not None
    program = load_program(bundle.source, trust=bundle.trusted)
    if device is not None:
        program = move_to_device_pass(program, str(device))
    # The guards would repeat the checks that `run` makes of each feed.
    return program.module(check_guards=False)  # type: ignore[return-value]
