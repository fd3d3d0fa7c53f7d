"""Explains why TensorRT rejects an engine, from its header, the log messages and the validity diagnostics.

The first 28 bytes of a serialized engine contain the tag of the library at offset 0 (`ftrt` or `vtrt`) and the four parts of
its version at offset 24 (the layout that NVIDIA's trtexec --getPlanVersionOnly reads, and that TensorRT-RTX writes).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ["Reason", "plan_version", "refusal_reason"]

HEADER_BYTES = 28
LIBRARIES = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}
#: name of a bit of TensorRT-RTX's EngineInvalidityDiagnostics → reason and fix
DIAGNOSES = {
    "VERSION_MISMATCH": ("another version of TensorRT-RTX built it", "compile it again with this version"),
    "UNSUPPORTED_CC": ("it was not built for this GPU's compute capability", "compile it again for this GPU"),
    "OLD_CUDA_DRIVER": ("NVIDIA's driver is too old for it", "install a newer driver"),
    "OLD_CUDA_RUNTIME": ("the CUDA runtime is too old for it", "install a newer CUDA runtime"),
    "INSUFFICIENT_GPU_MEMORY": ("the GPU has too little memory for it", "free memory: nvidia-smi shows who holds it"),
    "MALFORMED_ENGINE": ("the file is no engine, or is damaged", "compile it again"),
    "CUDA_ERROR": ("the CUDA driver or runtime does not work here", "relu-deploy doctor says what is missing"),
}


class Reason(NamedTuple):
    """The reason why an engine cannot be used, and a fix."""

    text: str
    fix: str = "compile it again on this machine: relu-deploy compile"


def plan_version(plan: bytes) -> tuple[str, str] | None:
    """Return the library and version that wrote `plan`, None if it does not have the header of an engine."""
    library = LIBRARIES.get(plan[:4])
    if library is None or len(plan) < HEADER_BYTES:
        return None
    return library, ".".join(str(part) for part in plan[24:HEADER_BYTES])


def refusal_reason(
    library: str, version: str, plan: bytes, log_lines: Sequence[str], diagnoses: int = 0, members: Any = None
) -> Reason:
    """Return why `plan` was rejected.

    Args:
        library: The installed library, "TensorRT" or "TensorRT-RTX".
        version: Its version, such as 11.4.0.106.
        plan: The serialized engine.
        log_lines: Messages that the library logged while it deserialized the engine.
        diagnoses: Bit mask of TensorRT-RTX's diagnostics, 0 for none.
        members: The enumeration of its bits.
    """
    text = " ".join(log_lines)
    return (
        _by_header(library, plan)
        or _by_message(library, version, plan, text)
        or _by_diagnosis(diagnoses, members)
        or _by_version(library, version, plan)
        or Reason(_last(log_lines) or "the library does not say why")
    )


def _by_header(library: str, plan: bytes) -> Reason | None:
    if not plan.strip(b"\0"):
        return Reason("the file is empty")
    wrote = plan_version(plan)
    if wrote is None:
        # Ultralytics writes a JSON text, with its length before it, in front of the engine.
        length = int.from_bytes(plan[:4], "little")
        if plan[4:5] == b"{" and plan[4 + length : 8 + length] in LIBRARIES:
            return Reason(f"{4 + length} bytes of another tool's metadata precede the engine", "remove them, or compile it again")
        return Reason("it does not begin as an engine does: it is another kind of file, or damaged")
    if wrote[0] != library:
        other = "tensorrt-rtx" if wrote[0] == "TensorRT-RTX" else "tensorrt"
        return Reason(f"{wrote[0]} {wrote[1]} built it, and this is {library}", f"run it with --backend {other}")
    return None


def _by_version(library: str, version: str, plan: bytes) -> Reason | None:
    wrote = plan_version(plan)
    if wrote is None or wrote[1] == version:
        return None
    return Reason(f"{library} {wrote[1]} built it, and {library} {version} is installed")


def _by_message(library: str, version: str, plan: bytes, text: str) -> Reason | None:
    for pattern, reason in MESSAGES:
        if found := re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            wrote = plan_version(plan)
            built = f"{library} {wrote[1]}" if wrote else f"another version of {library}"
            return reason(found, built, f"{library} {version}")
    return None


def _by_diagnosis(diagnoses: int, members: Any) -> Reason | None:
    for name, (text, fix) in DIAGNOSES.items():
        bit = getattr(members, name, None)
        if bit is not None and diagnoses & int(bit):
            return Reason(text, fix)
    return None


Explain = Callable[[re.Match[str], str, str], Reason]

#: pattern of a log message → function that returns the reason, given the match and the building and installed version
MESSAGES: tuple[tuple[str, Explain], ...] = (
    (
        r"incompatible device, expecting compute ([\d.]+) got compute ([\d.]+)",
        lambda found, *_: Reason(
            f"it was built for compute capability {found[2].rstrip('.')}, and this GPU has {found[1].rstrip('.')}",
            "compile it again on this GPU, or with hardware compatibility",
        ),
    ),
    (
        r"Current Version:\s*(\d+),\s*Serialized Engine Version:\s*(\d+)",
        lambda found, built, installed: Reason(
            f"{built} built it, and {installed} is installed ({found[2]} and {found[1]} are their numbers of the file's format)"
        ),
    ),
    (
        r"target runtime platform|platform specific tag",
        lambda *_: Reason("it was built on another operating system or processor"),
    ),
    (
        r"engineHostCodeAllowed|engine_host_code_allowed|host code",
        lambda *_: Reason(
            "it is version-compatible, which means that it carries code to run on the CPU, and that was not allowed"
        ),
    ),
    (
        r"could not find plugin:?\s*(\S+)|plugin (?:creator )?(\S+) (?:is )?not found",
        lambda found, *_: Reason(
            f"it needs the plugin {(found[1] or found[2]).strip('.,')}, which is not loaded",
            "load the library that the plugin is in before the engine",
        ),
    ),
    (
        r"out of memory|cudaError 2\b|OutOfMemory",
        lambda *_: Reason("the GPU has too little free memory for it", "free memory: nvidia-smi shows who holds it"),
    ),
    (
        r"cudaError (?:35|100)\b",
        lambda *_: Reason(
            "no NVIDIA driver, or too old a one, and an engine needs its GPU even to be read", "relu-deploy doctor"
        ),
    ),
    (
        r"magicTag|Magic tag",
        lambda *_: Reason("it does not begin as this library's engines do: another tool or library wrote it"),
    ),
    (
        r"Serialization assertion|checksum",
        lambda _, built, installed: Reason(
            "it is truncated or damaged" if built == installed else f"{built} built it, and {installed} is installed"
        ),
    ),
)


def _last(log_lines: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(log_lines[-3:]))
