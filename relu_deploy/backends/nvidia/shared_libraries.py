"""Reads which shared libraries a file is linked to and finds them, without loading any.

A missing library can so be named before a load that could terminate the process.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["SharedLibraries", "linked_to"]

#: folders below site-packages with NVIDIA's libraries
PACKAGES = ("nvidia/*/lib", "nvidia/*/bin", "tensorrt_libs", "tensorrt_rtx_libs", "onnxruntime_ep_nv_tensorrt_rtx")
#: constants of the ELF format (elf.h)
_LOAD, _DYNAMIC, _NEEDED, _STRINGS = 1, 2, 1, 5


def linked_to(file: Path) -> tuple[str, ...]:
    """Return the names of the libraries that `file` is linked to; empty if it is not a 64-bit ELF file.

    These are its DT_NEEDED entries, which the dynamic loader of Linux resolves (System V ABI, chapter 5).
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _needed(data) if data[:5] == b"\x7fELF\x02" else ()
    except (OSError, ValueError, struct.error, StopIteration):
        return ()


def _needed(data: mmap.mmap) -> tuple[str, ...]:
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    # type, flags, offset in the file, address, physical address, bytes in the file
    segments = [struct.unpack_from("<IIQQQQ", data, start + number * size) for number in range(count)]
    _, _, table, _, _, length = next(one for one in segments if one[0] == _DYNAMIC)
    entries = [struct.unpack_from("<qQ", data, table + place) for place in range(0, length, 16)]
    entries = entries[: next((number for number, (tag, _) in enumerate(entries) if tag == 0), len(entries))]
    strings = next(value for tag, value in entries if tag == _STRINGS)
    base = next(
        strings - address + offset
        for kind, _, offset, address, _, held in segments
        if kind == _LOAD and address <= strings < address + held
    )
    names = [base + value for tag, value in entries if tag == _NEEDED]
    return tuple(data[place : data.find(b"\0", place)].decode() for place in names)


@dataclass(frozen=True)
class SharedLibraries:
    """The search path for shared libraries.

    Attributes:
        folders: Folders that are searched first, in this order.
        known: Libraries by file name that the system's loader finds.
    """

    folders: tuple[Path, ...]
    known: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def here(cls) -> SharedLibraries:
        """Return the search path of this process: Python packages, LD_LIBRARY_PATH, loaded libraries and the system's."""
        variable = "PATH" if sys.platform == "win32" else "LD_LIBRARY_PATH"
        named = [Path(part) for part in os.environ.get(variable, "").split(os.pathsep) if part]
        return cls((*_package_folders(sys.path), *named), {**_system(), **_loaded()})

    def find(self, name: str) -> Path | None:
        """Return the path of the library called `name`, None if it is not found."""
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        return self.known.get(name)

    def like(self, stem: str) -> list[Path]:
        """Return the files of all versions of a library: libnvinfer.so.10 and libnvinfer.so.11 for "nvinfer"."""
        pattern = re.compile(rf"lib{re.escape(stem)}\.so\.\d+$")
        found = dict(self.known)
        for folder in reversed(self.folders):
            found.update((path.name, path) for path in folder.glob(f"lib{stem}.so.*"))
        return [path for name, path in sorted(found.items()) if pattern.match(name)]

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the names among `names` that are not found."""
        return [name for name in names if self.find(name) is None]


def _package_folders(paths: Sequence[str]) -> list[Path]:
    roots = [Path(path) for path in dict.fromkeys(paths) if path and Path(path).is_dir()]
    return [folder for root in roots for pattern in PACKAGES for folder in sorted(root.glob(pattern)) if folder.is_dir()]


def _system() -> dict[str, Path]:
    """Return the libraries in the cache of Linux's dynamic loader, by name."""
    if not sys.platform.startswith("linux"):
        return {}
    for program in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        try:
            listed = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        pairs = re.findall(r"^\s*(\S+) \(.*\) => (\S+)$", listed, re.MULTILINE)
        return {name: Path(path) for name, path in reversed(pairs)}
    return {}


def _loaded() -> dict[str, Path]:
    """Return the libraries that this process has loaded, by name: the loader reuses them for other libraries."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    paths = [Path(line.split(maxsplit=5)[5]) for line in lines if ".so" in line and len(line.split(maxsplit=5)) == 6]
    return {path.name: path for path in paths}
