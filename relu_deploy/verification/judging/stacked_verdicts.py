"""The verdicts on many small Relus of one shape, reached for all of them at once.

As with `stacked_noise`: what NumPy takes for a call is most of what comparing each of them alone takes. The verdicts are those of
`compare` and `check_contract`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from relu_deploy.graph import Relu
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.judging.contract import Contract
from relu_deploy.verification.judging.stacked_noise import FEWEST, LARGEST, rms_of_rows
from relu_deploy.verification.judging.verdict import LIMITS, SINGLE, Comparison, reason_of, ulp_distance
from relu_deploy.verification.truth import Truth

__all__ = ["stacked_verdicts"]

#: Relus of one shape and type, with their outputs and the truth, a row each
_Group = tuple[list[Relu], Array, Array]


def stacked_verdicts(
    relus: Sequence[Relu],
    outputs: Feeds,
    truth: Truth,
    nan_kept: Mapping[str, bool | None],
    accepts_lost_nan: bool,
) -> dict[str, tuple[Comparison, Contract]]:
    """Return the comparison and the contract of each Relu that is small and finite and of which there are many of one shape, by its tensor.

    Args:
        relus: The Relus.
        outputs: What a backend returned, by tensor.
        truth: The truth.
        nan_kept: Whether a NaN passed through each.
        accepts_lost_nan: A NaN that is not kept does not break the contract.
    """
    verdicts, limit = {}, LIMITS[truth.precision]
    plain = [relu for relu in relus if truth.is_plain(relu.output)]
    for group, got, true in _groups(plain, outputs, truth.values):
        noise = np.array([truth.noise_floor.get(relu.output, 0.0) for relu in group])
        compared = _compare(got, true, noise, limit)
        contracts = _check(got, true, limit * SINGLE * noise, truth.values[group[0].output].shape)
        for relu, comparison, contract in zip(group, compared, contracts, strict=True):
            minimum, maximum, wrong, sparsity, dead, channels = contract
            kept = nan_kept.get(relu.output)
            verdicts[relu.output] = (
                comparison,
                Contract(minimum, maximum, relu.upper, wrong, kept, sparsity, dead, channels, accepts_lost_nan),
            )
    return verdicts


def _groups(relus: Sequence[Relu], outputs: Feeds, truth: Mapping[str, Array]) -> Iterator[_Group]:
    """Yield the Relus of the same shape and type whose numbers are all finite."""
    groups: dict[tuple[tuple[int, ...], str], list[Relu]] = {}
    for relu in relus:
        got, true = outputs.get(relu.output), truth.get(relu.output)
        if got is None or true is None or got.shape != true.shape or got.dtype.kind != "f" or true.dtype != np.float64:
            continue
        # A tensor of three or more dimensions has a noise for each channel.
        if got.ndim < 3 and 0 < got.size <= LARGEST:
            groups.setdefault((got.shape, got.dtype.str), []).append(relu)
    for group in groups.values():
        if len(group) < FEWEST:
            continue
        got, true = (np.stack([values[relu.output].reshape(-1) for relu in group]) for values in (outputs, truth))
        with np.errstate(over="ignore", invalid="ignore"):
            finite = np.asarray(np.isfinite(np.hstack((got, true)).astype(np.float32)).all(axis=1))
        if finite.any():
            yield [relu for relu, is_finite in zip(group, finite.tolist(), strict=True) if is_finite], got[finite], true[finite]


def _compare(got: Array, true: Array, noise: Array, limit: float) -> Iterator[Comparison]:
    single = got.astype(np.float32)
    error = single.astype(np.float64) - true
    size, largest = rms_of_rows(error), np.abs(error).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(noise > 0, size / noise, np.where(largest > 0, np.inf, 0.0))
        relative = size / np.maximum(rms_of_rows(true), 1e-300)
    steps = ulp_distance(single, true.astype(np.float32)).max(axis=1)
    for row in zip(ratio.tolist(), largest.tolist(), steps.tolist(), relative.tolist(), strict=True):
        yield Comparison(row[0] <= limit, row[1], row[2], row[0], reason_of(row[0], limit), row[3])


def _check(got: Array, true: Array, noise: Array, shape: tuple[int, ...]) -> Iterator[tuple[float, float, int, float, int, int]]:
    """Yield minimum, maximum, wrong zeros, sparsity, dead channels and channels of each row; see `Contract`.

    noise: How far off single elements may be.
    """
    wide = got.astype(np.float64)
    beyond = noise[:, np.newaxis]
    wrong = np.count_nonzero(((wide == 0) & (true > beyond)) | ((true == 0) & (wide > beyond)), axis=1)
    channels = shape[1] if len(shape) > 1 else 1
    dead = np.zeros(len(got), np.int64)
    if len(shape) > 1:
        dead = np.count_nonzero(~np.any(got.reshape(len(got), *shape) > 0, axis=1), axis=1)
    sparsity = np.mean(got == 0, axis=1)
    low, high = np.minimum(wide.min(axis=1), 0.0), np.maximum(wide.max(axis=1), 0.0)
    for row in zip(low.tolist(), high.tolist(), wrong.tolist(), sparsity.tolist(), dead.tolist(), strict=True):
        yield (*row, channels)
