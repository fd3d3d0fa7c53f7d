"""Fourier transforms and the mel filter bank."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_deploy.backends.reference.ops.tensor.shape import integers
from relu_deploy.backends.reference.registry import Call, operator
from relu_deploy.backends.reference.types import is_float
from relu_deploy.tensors import Array


@operator("DFT", until=19)
def dft_with_attribute(call: Call, x: Array, length: Array | None = None) -> Array:
    return _transformed(call, x, length, call.get("axis", 1))


@operator("DFT", since=20)
def dft(call: Call, x: Array, length: Array | None = None, axis: Array | None = None) -> Array:
    return _transformed(call, x, length, -2 if axis is None else integers(axis)[0])


def _transformed(call: Call, x: Array, length: Array | None, axis: int) -> Array:
    """The last axis holds real and imaginary parts, or real parts alone."""
    axis = axis % x.ndim
    onesided, inverse = bool(call.get("onesided", 0)), bool(call.get("inverse", 0))
    values = x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]
    count = values.shape[axis] if length is None else integers(length)[0]
    if inverse and onesided:
        if length is None:
            count = 2 * (values.shape[axis] - 1)
        return np.fft.irfft(values, count, axis)[..., None].astype(x.dtype)
    result = np.fft.ifft(values, count, axis) if inverse else np.fft.fft(values, count, axis)
    if onesided:
        result = np.take(result, np.arange(count // 2 + 1), axis)
    return _parts(result, x.dtype)


def _parts(values: Array, dtype: np.dtype[Any]) -> Array:
    return np.stack([values.real, values.imag], -1).astype(dtype)


@operator("STFT")
def short_time_fourier_transform(
    call: Call, signal: Array, step: Array, window: Array | None = None, length: Array | None = None
) -> Array:  # fmt: skip
    """signal (N, samples, 1 or 2) or (N, samples). Returns (N, frames, frequencies, 2)."""
    hop = integers(step)[0]
    size = integers(length)[0] if length is not None else window.shape[0] if window is not None else signal.shape[1]
    real = signal.ndim == 2 or signal.shape[2] == 1
    values = signal.reshape(*signal.shape[:2]) if real else signal[..., 0] + 1j * signal[..., 1]
    frames = 1 + (signal.shape[1] - size) // hop
    index = np.arange(frames)[:, None] * hop + np.arange(size)
    cut = values[:, index]
    if window is not None:
        cut = cut * window
    result = np.fft.fft(cut, axis=-1)
    if call.get("onesided", 1):
        result = result[..., : size // 2 + 1]
    return _parts(result, signal.dtype)


@operator("MelWeightMatrix", keeps_types=True)
def mel_weight_matrix(
    call: Call, bins: Array, length: Array, rate: Array, low: Array, high: Array
) -> Array:  # fmt: skip
    """Triangles between edges that are equally spaced on the mel scale, over the bins of the spectrum."""
    count, size = integers(bins)[0], integers(length)[0]
    frequencies = size // 2 + 1
    edges = np.array([float(low.reshape(())), float(high.reshape(()))])
    mel = 2595 * np.log10(1 + edges / 700)
    spaced = mel[0] + np.arange(count + 2) * ((mel[1] - mel[0]) / (count + 2))
    hertz = 700 * (10 ** (spaced / 2595) - 1)
    places = (((size + 1) * hertz) // float(rate.reshape(()))).astype(np.int64)
    left, middle, right = places[:-2], places[1:-1], places[2:]
    place = np.arange(frequencies)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        up, down = (place - left) / (middle - left), (right - place) / (right - middle)
    rising, falling = (place >= left) & (place < middle), (place > middle) & (place < right)
    result = np.where(rising, up, np.where(falling, down, np.where(place == middle, 1.0, 0.0)))
    dtype = call.dtype("output_datatype", 1)
    return result.astype(dtype if dtype is not None else np.float32)


def _window(name: str, coefficients: tuple[float, ...]) -> None:
    @operator(name, keeps_types=True)
    def run(call: Call, size: Array) -> Array:
        count = integers(size)[0]
        over = count if call.get("periodic", 1) else count - 1
        angles = 2 * np.pi * np.arange(count) / over
        total = sum((-1) ** order * c * np.cos(order * angles) for order, c in enumerate(coefficients))
        dtype = call.dtype("output_datatype", 1)
        values = np.asarray(total)
        return values.astype(dtype) if dtype is not None and is_float(np.zeros(0, dtype)) else np.rint(values).astype(dtype)


_window("HannWindow", (0.5, 0.5))
_window("HammingWindow", (25 / 46, 21 / 46))
_window("BlackmanWindow", (0.42, 0.5, 0.08))
