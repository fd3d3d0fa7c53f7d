"""When two tensors differ: noise or a fault? The rule, and why no tolerance has to be guessed.

    truth        the graph in float64
    noise floor    the error that correct arithmetic makes on the same input, as the larger of three:
                   computed   | float32 evaluation - truth |
                   expected   | float64 evaluation with every weight and every result rounded at random - truth |
                   least      | truth rounded to the precision - truth |
    error_ratio  RMS(backend - truth) / RMS(noise floor)

Any correct float32 implementation sums the same products in some order, so its error is of the noise floor's size: the
`computed` one catches what long sums lose, the `expected` one what the graph itself amplifies (cancellation, a Softmax
of large numbers), the `least` one keeps tensors that happen to be exact from having a noise floor of zero. A fault of the
kind that people ship is far above it: weights rounded to float16, or TF32 products, are 2^-11 against float32's 2^-24,
three to four orders of magnitude; a wrong weight, channel or operator is larger still.

A tensor passes when its error ratio is at most the limit of the graph's precision, it has NaN and infinities exactly
where the truth has them (a float64 truth beyond float32's range counts as infinite), and its shape and kind are right.

    precision   random rounding                               limit   why
    float32     2^-24 of each weight and result               32      five bits, for another order of summation: n terms summed one
                                                                      after the other lose about sqrt(n) roundings against log2(n)
                                                                      in pairs, and n is at most a few thousand in a convolution
    float16     2^-11                                         4       sums are kept in float32, so their order does not show: two
    bfloat16    2^-8                                          4       bits, for rounding at other places (fused or not) and for one
    float8      2^-4 (E4M3)                                   4       random draw standing for the real one
    int8        half a step on operands of Conv, Gemm,        4       the same, and for a scale that was calibrated narrower or wider
                MatMul and Add; step = max|x| / 127                   than the data at hand

The precision is read from the graph under test (`graph.precision_of`), never from a wish. Overflow is not noise in any of
them: an infinity where the truth is finite fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from relu_deploy.tensors import Array

__all__ = [
    "LIMIT",
    "LIMITS",
    "SINGLE",
    "Comparison",
    "compare",
    "error_ratio",
    "estimate_noise_floor",
    "reason_of",
    "rms",
    "rms_error",
    "ulp_distance",
]

#: largest error ratio that is called noise, by precision; the module's docstring gives the reasons
LIMITS = {"float64": 32.0, "float32": 32.0, "float16": 4.0, "bfloat16": 4.0, "float8": 4.0, "int8": 4.0}
LIMIT = LIMITS["float32"]
#: RMS errors that a single element may be off by: a normal distribution leaves one in 16,000 beyond
SINGLE = 4.0
#: dtype in which each precision keeps a tensor between two kernels
STORED = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float8": ml_dtypes.float8_e4m3fn}


@dataclass(frozen=True)
class Comparison:
    """How one tensor of a backend compares with the truth.

    Attributes:
        max_abs: Largest absolute error.
        max_ulp: Largest distance in representable float32 numbers.
        error_ratio: RMS error in units of the noise floor.
        reason: "" when passed.
        relative_error: RMS error over the RMS of the truth.
        left_out: Elements that do not count, because a sum before them may overflow.
    """

    passed: bool
    max_abs: float
    max_ulp: int
    error_ratio: float
    reason: str = ""
    relative_error: float = np.inf
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        numbers = (self.error_ratio, self.max_abs, self.relative_error)
        ratio, worst, relative = (float(value) if np.isfinite(value) else None for value in numbers)
        return {
            "passed": self.passed,
            "max_abs": worst,
            "max_ulp": self.max_ulp,
            "error_ratio": ratio,
            "relative_error": relative,
            "reason": self.reason,
            **({"left_out": self.left_out} if self.left_out else {}),
        }


def compare(
    measured: Array, truth: Array, noise_floor: float, limit: float = LIMIT, undecided: Array | None = None
) -> Comparison:
    """Return the verdict on a tensor.

    Args:
        measured: Backend output, of any dtype.
        truth: Float64 or integer evaluation, same shape.
        noise_floor: RMS error of correct arithmetic on the same input, as from `estimate_noise_floor`. Of integers it is above 0
            where they are numbers that were rounded in a coarse precision.
        limit: Largest error ratio that passes.
        undecided: Elements of a tensor of integers that depend on rounding, bool of its shape; they may be anything.
    """
    measured = np.asarray(measured)
    if measured.shape != truth.shape:
        return Comparison(False, np.inf, 0, np.inf, f"shape {measured.shape} instead of {truth.shape}")
    if not np.issubdtype(truth.dtype, np.floating):
        exact = _compare_exactly(measured, truth, undecided)
        return exact if exact.passed or not noise_floor > 0 else _compare_rounded(measured, truth, noise_floor, limit, exact)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = truth.astype(np.float32)
    finite = np.isfinite(rounded)
    measured = measured.astype(np.float32) if measured.dtype != np.float32 else measured
    if reason := _non_finite_difference(measured, rounded, finite):
        return Comparison(False, np.inf, 0, np.inf, reason)
    got, true = measured[finite], truth[finite]
    error = got.astype(np.float64) - true
    ratio = error_ratio(got, true, noise_floor)
    return Comparison(
        ratio <= limit,
        float(np.max(np.abs(error), initial=0)),
        int(np.max(ulp_distance(got, rounded[finite]), initial=0)),
        float(ratio),
        reason_of(ratio, limit),
        rms(error) / max(rms(true), 1e-300),
    )


def reason_of(ratio: float, limit: float) -> str:
    """Return why a tensor of this error ratio fails, "" where it passes."""
    return "" if ratio <= limit else f"error is {ratio:.3g} times that of correct arithmetic (limit {limit:g})"


def _compare_exactly(measured: Array, truth: Array, undecided: Array | None) -> Comparison:
    """Compare integers, booleans or strings, but for the elements that depend on rounding."""
    different = np.asarray(measured != truth)
    if undecided is not None and undecided.shape == different.shape:
        different &= ~undecided
    wrong = int(np.count_nonzero(different))
    numbers = truth.dtype.kind in "iub" and measured.dtype.kind in "iubf"
    apart = np.abs(measured[different].astype(np.float64) - truth[different]) if numbers else np.zeros(0)
    verb = "differs" if wrong == 1 else "differ"
    noun = {"b": "booleans"}.get(truth.dtype.kind, "integers" if numbers else "strings")
    reason = f"{wrong} of {truth.size} {noun} {verb}" if wrong else ""
    return Comparison(wrong == 0, float(np.max(apart, initial=0)), 0, np.inf if wrong else 0.0, reason)


def _compare_rounded(measured: Array, truth: Array, noise_floor: float, limit: float, exact: Comparison) -> Comparison:
    """Compare integers that are rounded numbers by the size of their error, as the numbers before them are.

    Args:
        measured: Integers.
        truth: Integers of the same shape.
        noise_floor: RMS error of correct arithmetic, in units.
        limit: Largest error ratio that passes.
        exact: The verdict on the same tensors if every integer counted.
    """
    error = measured.astype(np.float64) - truth
    ratio = rms(error) / noise_floor
    largest, relative = float(np.max(np.abs(error), initial=0)), rms(error) / max(rms(truth), 1e-300)
    reason = "" if ratio <= limit else f"{exact.reason}, by {ratio:.3g} times the error of correct arithmetic (limit {limit:g})"
    return Comparison(ratio <= limit, largest, 0, ratio, reason, relative)


def error_ratio(measured: Array, truth: Array, noise_floor: float) -> float:
    """Return the RMS error of `measured` in units of the noise floor.

    Args:
        measured: Backend output, any shape, finite.
        truth: Float64 evaluation, same shape.
        noise_floor: RMS error of correct arithmetic on the same input.

    Returns:
        1.0 means "as good as plain float32"; above `LIMITS` the difference is a fault.

    Raises:
        ValueError: If the shapes differ.
    """
    if measured.shape != truth.shape:
        raise ValueError(f"shapes differ: {measured.shape} and {truth.shape}")
    error = measured.astype(np.float64) - truth
    if noise_floor > 0:
        return rms(error) / noise_floor
    return float(np.inf) if np.any(error) else 0.0


def estimate_noise_floor(truth: Array, *evaluations: Array, precision: str = "float32") -> float:
    """Return the RMS error of correct arithmetic: the largest of `evaluations`, at least that of rounding to `precision`.

    Args:
        truth: Float64.
        evaluations: Other evaluations of the same tensor, of its shape. Non-finite elements do not count.
        precision: The precision that the tensor is stored in.

    Returns:
        The RMS error. Its least value is that of a tensor whose every element is the smallest normal number.
    """
    if not np.issubdtype(truth.dtype, np.floating):
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = truth.astype(np.float32)
        stored = _stored(truth, precision)
    least = float(np.finfo(np.float32).tiny) * 2.0**-24
    return max(least, *(rms_error(evaluation, truth) for evaluation in (rounded, stored, *evaluations)))


def rms_error(evaluation: Array, truth: Array) -> float:
    """Return the RMS error of an evaluation, of the elements that are finite in it and, as float32, in `truth`."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(truth.astype(np.float32)) & np.isfinite(evaluation)
        if finite.all():
            return rms((evaluation.astype(np.float64) - truth).reshape(-1))
    return rms(evaluation[finite].astype(np.float64) - truth[finite])


def _stored(truth: Array, precision: str) -> Array:
    """Return `truth` as a tensor of `precision` keeps it; int8 in 127 steps to the largest finite magnitude."""
    if precision != "int8":
        return truth.astype(np.float32).astype(STORED.get(precision, np.float32)).astype(np.float32)
    largest = float(np.max(np.abs(truth[np.isfinite(truth)]), initial=0))
    return np.round(truth / (largest / 127)) * (largest / 127) if largest else truth


def ulp_distance(a: Array, b: Array) -> Array:
    """Return how many representable float32 numbers lie between `a` and `b`, element by element, as int64.

    a, b: float32 of one shape, finite. The two zeros are the same number.
    """
    return np.abs(_ordinal(a) - _ordinal(b))


def _ordinal(x: Array) -> Array:
    bits = np.ascontiguousarray(x, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def rms(x: Array) -> float:
    """Return the root mean square of `x`, 0 when it is empty. Numbers whose squares are beyond float64 count like any other."""
    if not x.size:
        return 0.0
    with np.errstate(over="ignore"):
        mean = float(np.mean(np.square(x, dtype=np.float64)))
    if np.isinf(mean) and np.isfinite(largest := float(np.max(np.abs(x)))):
        return largest * rms(x / largest)
    return float(np.sqrt(mean))


def _non_finite_difference(measured: Array, rounded: Array, finite: Array) -> str:
    spoiled = int(np.count_nonzero(~np.isfinite(measured[finite])))
    if spoiled:
        what = "NaN" if np.isnan(measured[finite]).any() else "infinite"
        return f"{spoiled} of {rounded.size} elements are {what} where the truth is finite"
    if not np.array_equal(measured[~finite], rounded[~finite], equal_nan=True):
        return "NaN or infinity of the truth is missing"
    return ""
