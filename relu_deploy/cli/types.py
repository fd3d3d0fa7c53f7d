"""How the texts of the command line's options become values. Every error names the option and says how to write it."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError, UsageError

if TYPE_CHECKING:
    from relu_deploy.backends.tensorrt.options import BuildOptions

__all__ = [
    "argument",
    "batch_axis",
    "build_options",
    "floats",
    "input_shape",
    "label_names",
    "number",
    "numbers",
    "pixels",
    "share",
    "tensor_shape",
]

#: Largest file of class names, in bytes.
MAX_LABELS = 64 * 2**20


def input_shape(text: str) -> tuple[str, tuple[tuple[int, ...], str]]:
    """Return the name, the shape and the type in `name=1x3x224x224` or `name=1x64:int64`; no size is a scalar."""
    from relu_deploy.tensors import parse_shape

    name, separator, given = text.partition("=")
    shape, _, dtype = given.partition(":")
    if not separator or not name:
        raise UsageError(f"not an input: {text!r}", "write it as name=1x3x224x224, or with its type as name=1x64:int64")
    return name, (parse_shape(shape) if shape else (), dtype)


def tensor_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the name and the shape in `name=1x3x320x320`; no size is a scalar."""
    name, (shape, dtype) = input_shape(text)
    if dtype:
        raise UsageError(f"not a shape: {text!r}", "a type cannot be changed here: write name=1x3x320x320")
    return name, shape


def batch_axis(text: str) -> tuple[str, int | None]:
    """Return the name and the axis in `name=1`; None for `name=none`."""
    name, separator, axis = text.rpartition("=")
    if not separator or not name or not (axis == "none" or (axis.isascii() and axis.isdigit())):
        raise UsageError(f"not a batch axis: {text!r}", "write it as name=1, counted from 0, or name=none for no batch")
    return name, None if axis == "none" else int(axis)


def argument(text: str) -> tuple[str, Any]:
    """Return the name and the value in `key=value`; a value that is no JSON is a text."""
    import json

    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise UsageError(f"not an argument: {text!r}", "write it as key=value, for instance --arg num_classes=10")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def floats(text: str) -> list[float]:
    """Return the numbers in `text`, separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"not numbers: {text!r}", "separate them by commas, for instance 0.485,0.456,0.406") from None


def label_names(text: str) -> list[str]:
    """Return the names in the file `text`, one a line. Raises InputError for a file without names or with one twice."""
    from relu_deploy.storage.files import read_regular

    hint = "write one name a line, in the order of the outputs"
    try:
        content = read_regular(Path(text), MAX_LABELS).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--labels {text} cannot be read: {error}", hint) from None
    except InputError as error:
        raise InputError(f"--labels {text} cannot be read: {error.message}", hint) from None
    names = [line.strip() for line in content.splitlines() if line.strip()]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InputError(f"--labels {text} names {twice[0]!r} twice", "write each class once, in the order of the outputs")
    if not names:
        raise InputError(f"--labels {text} is empty", "write one name a line, in the order of the outputs")
    return names


def number(text: str, option: str) -> int:
    """Return the first of `numbers`."""
    return numbers(text, option)[0]


def numbers(text: str, option: str) -> list[int]:
    """Return the positive whole numbers in `text`, separated by commas. Raises UsageError that names `option`."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"{option} {text!r} is not a positive whole number or a list of them", f"for instance {option} 1,8")
    return found


def build_options(options: argparse.Namespace) -> BuildOptions:
    """Return what `compile` was asked to build. Raises UsageError for sizes that are no profile."""
    from relu_deploy.backends.tensorrt.options import BuildOptions

    if options.batch and options.profile:
        raise UsageError("--batch and --profile both say what sizes the engine is for", "give whole shapes with --profile alone")
    batches = [_profile_of_batches(text) for text in options.batch or ()]
    capabilities = (options.compute_capability or "").replace(" ", "").split(",")
    return BuildOptions(
        profiles=tuple(batches) or tuple(_profiles(options.profile or ())),
        compute_capabilities=tuple(each for each in capabilities if each),
        optimization_level=options.level,
        workspace_bytes=None if options.workspace is None else int(options.workspace * 2**30),
        tf32=options.tf32,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        weight_streaming=options.weight_streaming,
        refit=options.refit,
    )


def _profile_of_batches(text: str) -> tuple[int, int, int]:
    sizes = numbers(text, "--batch")
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3 or sizes != sorted(sizes):
        raise UsageError(f"--batch {text!r} is not smallest, usual and largest batch", "for instance --batch 1,8,32")
    return sizes[0], sizes[1], sizes[2]


def _profiles(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the profiles in NAME=MIN,OPT,MAX texts; a name that was there already starts the next profile."""
    from relu_deploy.tensors import parse_shape

    profiles: list[dict[str, Any]] = []
    for text in texts:
        name, separator, shapes = text.rpartition("=")
        triple = tuple(parse_shape(shape) for shape in shapes.split(","))
        if not separator or not name or len(triple) != 3:
            raise UsageError(f"not a profile: {text!r}", "write it as name=1x3x224x224,8x3x224x224,32x3x512x512")
        if not profiles or name in profiles[-1]:
            profiles.append({})
        profiles[-1][name] = triple
    return profiles


def pixels(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return what --mean and --std say about pixels, None when they are not given. Raises UsageError for half of it."""
    if options.mean is None and options.std is None:
        return None
    if options.mean is None or options.std is None or len(options.mean) != len(options.std):
        raise UsageError("--mean and --std go together, one number a channel", "for instance --mean 0.5 --std 0.25")
    if min(options.std) <= 0:
        raise UsageError(f"--std must be positive, got {min(options.std)}", "give the standard deviation of each channel")
    return {"scale": 1 / 255, "mean": options.mean, "std": options.std}


def share(text: str, option: str) -> float:
    """Return the share in `text`: 0.05 for "5%" and for "0.05". Raises UsageError that names `option`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    # 5 without a sign could mean either.
    if not 0 <= value < math.inf or (value >= 1 and not text.endswith("%")):
        raise UsageError(f"{option} {text!r} is not a percentage", f"for instance {option} 5%")
    return value
