"""The kind of a difference, from the two tensors alone: one word, and a sentence."""

from __future__ import annotations

import numpy as np

from relu_deploy.tensors import Array

__all__ = ["describe"]

#: share of the difference that an explanation must account for
EXPLAINED = 0.99


def describe(got: Array, true: Array) -> tuple[str, str]:
    """Return the kind of a difference and a sentence about it.

    Args:
        got: The tensor, of any float dtype.
        true: The truth, float64.

    Returns:
        "shape", "NaN", "overflow", "sign", "saturation", "scale", "offset", "channel", "precision" or "values" (none of the
        others), and a sentence.
    """
    if got.shape != true.shape:
        return "shape", f"has shape {got.shape} instead of {true.shape}"
    if not np.issubdtype(true.dtype, np.floating):
        return "values", f"{int(np.count_nonzero(got != true))} of {true.size} integers differ"
    got = got.astype(np.float64)
    if reason := _non_finite(got, true):
        return reason
    finite = np.isfinite(true)
    if not finite.all():
        got, true = np.where(finite, got, 0), np.where(finite, true, 0)
    error = got - true
    power = float(np.sum(np.square(error)))
    if power == 0:
        return "values", "equal in this evaluation"
    channels = _channels(error)
    return (
        _sign(got, true)
        or _saturated(got, true, power)
        or _swapped(got, true, power)
        or _linear(got, true, power, channels)
        or _one_channel(channels, power)
        or _small(error, true)
        or ("values", f"differs in {np.count_nonzero(error):,} of {error.size:,} elements, by up to {np.max(np.abs(error)):.3g}")
    )


def _non_finite(got: Array, true: Array) -> tuple[str, str] | None:
    spoiled = ~np.isfinite(got) & np.isfinite(true)
    if not spoiled.any():
        lost = int(np.count_nonzero(np.isfinite(got) & ~np.isfinite(true)))
        return ("NaN", f"{lost} NaN or infinite elements of the truth came out finite") if lost else None
    nans = int(np.count_nonzero(np.isnan(got) & spoiled))
    if nans:
        return "NaN", f"{nans:,} of {got.size:,} elements are NaN where the truth is finite"
    largest = float(np.max(np.abs(true[spoiled])))
    return "overflow", f"{int(spoiled.sum()):,} of {got.size:,} elements are infinite where the truth is up to {largest:.4g}"


def _sign(got: Array, true: Array) -> tuple[str, str] | None:
    if np.allclose(got, -true, rtol=1e-3, atol=1e-3 * float(np.max(np.abs(true)))):
        return "sign", "every element has the other sign"
    if np.min(true) >= 0 and np.min(got) < 0:
        positive = true > 0
        if np.allclose(got[positive], true[positive], rtol=1e-3):
            share = float(np.mean(got < 0))
            return "sign", f"negative values pass ({share:.0%} of the elements, down to {np.min(got):.3g}): not a Relu"
    if np.min(true) >= 0 and np.min(got) >= 0 and not np.any((true > 0) & (np.abs(got - true) > 1e-3 * true)):
        share = float(np.mean((got > 0) & (true == 0)))
        if share > 0.01:
            return (
                "sign",
                f"{share:.0%} of the elements are positive where the Relu of the truth gives 0: negative values turned around",
            )
    return None


def _saturated(got: Array, true: Array, power: float) -> tuple[str, str] | None:
    for bound, name in ((float(np.max(got)), "above"), (float(np.min(got)), "below")):
        at = got == bound
        if np.count_nonzero(at) < 2 or bound == 0:
            continue
        cut_off = at & ((true > bound) if name == "above" else (true < bound))
        if np.count_nonzero(cut_off) >= 2 and np.sum(np.square((got - true)[cut_off])) >= EXPLAINED * power:
            furthest = true[cut_off].max() if name == "above" else true[cut_off].min()
            held = f"{int(cut_off.sum()):,} elements are held {name} at {bound:.4g}"
            return "saturation", f"{held}; the truth goes to {furthest:.4g}"
    return None


def _swapped(got: Array, true: Array, power: float) -> tuple[str, str] | None:
    if got.ndim < 3 or not 2 <= got.shape[1] <= 4096:
        return None
    errors = _channels(got - true)
    wrong = np.flatnonzero(errors > (1 - EXPLAINED) * power / max(1, errors.size))
    if not 2 <= len(wrong) <= 64:
        return None
    rows = np.moveaxis(got, 1, 0).reshape(got.shape[1], -1)
    truths = np.moveaxis(true, 1, 0).reshape(got.shape[1], -1)
    pairs = []
    for here in wrong:
        apart = [float(np.sum(np.square(rows[here] - truths[there]))) for there in wrong]
        nearest = int(np.argmin(apart))
        if wrong[nearest] == here or apart[nearest] > (1 - EXPLAINED) * errors[here]:
            return None
        pairs.append(f"{here}←{wrong[nearest]}")
    return "channel", f"channels stand in other places: {', '.join(pairs[:6])}{' …' if len(pairs) > 6 else ''}"


def _linear(got: Array, true: Array, power: float, channels: Array) -> tuple[str, str] | None:
    """Return a factor or an offset that explains the difference, of all or of one channel."""
    where = ""
    if channels.size > 1 and np.max(channels) >= EXPLAINED * power:
        channel = int(np.argmax(channels))
        got, true, where = got[:, channel], true[:, channel], f" in channel {channel} only"
    within = float(np.sum(np.square(got - true)))
    offset = float(np.mean(got - true))
    if float(np.sum(np.square(got - true - offset))) <= (1 - EXPLAINED) * within:
        return "offset", f"all elements are off by {offset:.4g}{where}"
    scale = float(np.sum(got * true)) / max(float(np.sum(true * true)), 1e-300)
    if float(np.sum(np.square(got - scale * true))) <= (1 - EXPLAINED) * within:
        return "scale", f"is {scale:.4g} times the truth{where}"
    if got.ndim >= 3 and not where:
        means = np.mean(got - true, axis=tuple(axis for axis in range(got.ndim) if axis != 1), keepdims=True)
        if float(np.sum(np.square(got - true - means))) <= (1 - EXPLAINED) * within:
            return "offset", f"each channel is off by a number of its own (up to {np.max(np.abs(means)):.4g}): a bias"
    return None


def _one_channel(channels: Array, power: float) -> tuple[str, str] | None:
    if channels.size < 2 or np.max(channels) < EXPLAINED * power:
        return None
    return "channel", f"only channel {int(np.argmax(channels))} of {channels.size} differs"


def _small(error: Array, true: Array) -> tuple[str, str] | None:
    relative = float(np.sqrt(np.mean(np.square(error)) / max(float(np.mean(np.square(true))), 1e-300)))
    if relative < 2.0**-6:
        return "precision", f"everywhere by about {relative:.2g} of the value, as if {-np.log2(relative):.0f} bits were kept"
    return None


def _channels(error: Array) -> Array:
    """Return the sum of squares of each channel (axis 1), or one sum where there are no channels."""
    if error.ndim < 2:
        return np.array([np.sum(np.square(error))])
    return np.sum(np.square(error), axis=tuple(axis for axis in range(error.ndim) if axis != 1))  # type: ignore[no-any-return]
