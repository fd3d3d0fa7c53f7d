"""Reads the address, shape and dtype of other libraries' GPU arrays through the DLPack protocol.

https://dmlc.github.io/dlpack/latest/python_spec.html; the structures are those of dlpack.h, version 0.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relu_deploy.backends.nvidia.cuda import Device
from relu_deploy.errors import InputError
from relu_deploy.tensors import Array, Feeds, check_feeds

__all__ = ["DeviceArray", "from_dlpack", "is_on_gpu"]

CUDA = 2
#: the stream that stands for "do not synchronize" in the protocol
NO_STREAM = -1
#: (code, bits) of DLDataType → NumPy's name
DTYPES = {
    (0, 8): "int8",
    (0, 16): "int16",
    (0, 32): "int32",
    (0, 64): "int64",
    (1, 8): "uint8",
    (1, 16): "uint16",
    (1, 32): "uint32",
    (1, 64): "uint64",
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (4, 16): "bfloat16",
    (6, 8): "bool",
    (10, 8): "float8_e4m3fn",
}


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Place(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("place", _Place),
        ("ndim", ctypes.c_int32),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array on a GPU.

    Attributes:
        pointer: Address of the first element.
        shape: Its shape.
        dtype: NumPy's name of its dtype.
        device: Index of its GPU.
        owner: An object that keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: int
    owner: Any = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def outline(self) -> Array:
        """Return an array of zeros of the same shape and dtype that takes no memory, for checks of shape and dtype."""
        return np.broadcast_to(np.zeros((), np.dtype(self.dtype)), self.shape)


def is_on_gpu(array: Any) -> bool:
    """Return whether `array` supports DLPack and is on an NVIDIA GPU."""
    place = getattr(array, "__dlpack_device__", None)
    return place is not None and int(place()[0]) == CUDA


def from_dlpack(array: Any, stream: int, name: str = "array", gpu: Device | None = None) -> DeviceArray:
    """Return the location of `array`. Pending writes to it come before what is enqueued on `stream` afterwards.

    Args:
        array: An array with `__dlpack__` and `__dlpack_device__`.
        stream: The CUDA stream that will read it.
        name: Name of the input, for errors.
        gpu: The GPU of `stream`. An array on another one is waited for, and can be copied from there; without `gpu` its library
            decides whether it can be read.

    Raises:
        InputError: If the array is not contiguous, has a dtype that NumPy and ml_dtypes do not have, or cannot be read.
    """
    import ml_dtypes  # noqa: F401  # registers the dtypes bfloat16 and float8_e4m3fn with NumPy

    where = int(array.__dlpack_device__()[1])
    try:
        if gpu is None or where == gpu.index:
            return describe(array.__dlpack__(stream=stream), name)
        return _elsewhere(array, name, gpu, where)
    except BufferError as error:
        raise InputError(
            f"input {name!r} on GPU {where} cannot be read there: {error}", "copy it to the GPU that the model runs on"
        ) from error


def _elsewhere(array: Any, name: str, gpu: Device, where: int) -> DeviceArray:
    """Return the location of an array on another GPU, after its pending writes: a stream of `gpu` cannot be given to its library."""
    other = Device(where, gpu.driver)
    try:
        found = describe(array.__dlpack__(stream=NO_STREAM), name)
        other.finish()
    finally:
        gpu.make_current()
    return found


def check_feeds_anywhere(
    feeds: Mapping[str, Any],
    session: Any,
    stream: int,
    shapes: Mapping[str, tuple[int, ...]] | None,
    gpu: Device | None = None,
) -> tuple[Feeds, dict[str, DeviceArray]]:
    """Check feeds of which some may be on the GPU.

    Args:
        feeds: Arrays by input name, NumPy's or with `__dlpack__`.
        session: The session; its `inputs` are the specifications, its `title` is used in errors.
        stream: The CUDA stream that will read the arrays on the GPU.
        shapes: The shapes that buffers were bound for, None if there are none yet.
        gpu: The GPU of `stream`.

    Returns:
        All feeds as NumPy arrays, with `DeviceArray.outline` for those on the GPU, and the locations of the latter.

    Raises:
        InputError: If the feeds do not fit the inputs or the bound shapes.
    """
    resident = {name: from_dlpack(array, stream, name, gpu) for name, array in feeds.items() if is_on_gpu(array)}
    outlines = {name: found.outline() for name, found in resident.items()}
    arrays = check_feeds({**feeds, **outlines}, session.inputs, session.title)
    for name, array in arrays.items():
        if shapes is not None and shapes[name] != array.shape:
            raise InputError(
                f"{session.title}: input {name!r} has shape {array.shape} and was bound for {shapes[name]}",
                "bind again for the new shape",
            )
    return arrays, resident


def describe(capsule: Any, name: str) -> DeviceArray:
    """Return the location of the tensor in a DLPack capsule.

    Raises:
        InputError: If the tensor is not contiguous or has an unknown dtype.
    """
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    # DLManagedTensor begins with its DLTensor.
    tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    kind = DTYPES.get((tensor.type.code, tensor.type.bits)) if tensor.type.lanes == 1 else None
    if kind is None:
        raise InputError(f"input {name!r} has a dtype that no model accepts", "convert it first")
    if tensor.strides and not _is_contiguous(shape, [tensor.strides[axis] for axis in range(tensor.ndim)]):
        raise InputError(
            f"input {name!r} on the GPU is not contiguous", "make it contiguous, for instance with tensor.contiguous()"
        )
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, kind, tensor.place.index, capsule)


def _is_contiguous(shape: tuple[int, ...], strides: list[int]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True
