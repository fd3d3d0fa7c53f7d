"""Checks of a model on a backend that need no reference.

The same input twice gives the same answer; identical rows of a batch give identical answers; permuting the rows permutes the
answers; every batch size agrees with batch 1, at odd picture sizes too where they may vary. A runtime may round differently
for another batch size, so a spread within the verdict's limit passes and is reported.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from relu_deploy.bundle import Bundle
from relu_deploy.errors import ReluDeployError, Unsupported
from relu_deploy.records import JsonRecord
from relu_deploy.tensors import Array, Feeds, random_feeds
from relu_deploy.verification.judging.batch_rows import BatchRows
from relu_deploy.verification.judging.verdict import LIMITS, compare, rms
from relu_deploy.verification.tapping import same_bits

__all__ = ["Check", "InvarianceCheck", "check_invariance", "confirm_by_truth", "run_invariance_checks"]

#: rows of the largest batch, by how many seconds one row takes: a detector of 5 s a picture is not run forty times
ROWS = ((0.03, 8), (0.5, 4), (np.inf, 2))
BATCH_CHECKS = ("identical rows", "permuted rows", "batch sizes")

Run = Callable[[Feeds], Feeds]


@dataclass(frozen=True)
class Check(JsonRecord):
    """One check of a model on a backend. passed: None when it could not be made, with the reason in `detail`."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class InvarianceCheck:
    """Results of a session that should be the same, pair by pair, before they are judged. skipped: why there are none."""

    name: str
    pairs: Sequence[tuple[Feeds, Feeds]] = ()
    skipped: str = ""


def run_invariance_checks(
    bundle: Bundle, run: Run, feeds: Feeds, first: Feeds, seed: int, skip_batches: str = ""
) -> list[InvarianceCheck]:
    """Run the checks that need no reference.

    Args:
        bundle: The model.
        run: Returns its outputs for inputs.
        feeds: The inputs.
        first: What `run` returned for them.
        seed: Of the rows that are added to `feeds`.
        skip_batches: Why the checks with other batch sizes are left out, "" to make them.
    """
    batch = BatchRows.find(bundle, feeds, first)
    started = time.perf_counter()
    again = run(feeds)
    seconds = (time.perf_counter() - started) / max(1, batch.count if batch else 1)
    checks = [InvarianceCheck("same input twice", [(first, again), (first, run(feeds))])]
    rows = next(rows for limit, rows in ROWS if seconds <= limit)
    if skip_batches:
        skipped = skip_batches
    elif batch is None:
        skipped = "the batch is fixed"
    elif not batch.output_axes:
        skipped = "no output has the batch as a dimension"
    else:
        try:
            many = _rows(bundle, batch, feeds, rows, seed)
            alone = first if batch.count == 1 else None
            return [*checks, *_batches(run, batch, many, rows, seed, alone), *_odd_sizes(bundle, run, batch, feeds, seed)]
        except ReluDeployError as error:
            skipped = error.message
    return [*checks, *(InvarianceCheck(name, skipped=skipped) for name in BATCH_CHECKS)]


def check_invariance(
    checks: Sequence[InvarianceCheck], noise_floor: Mapping[str, float], truth: Mapping[str, Array], precision: str
) -> list[Check]:
    """Return the verdicts on `checks`.

    noise_floor, truth: Of the outputs; they give the size of the noise, not the right values.
    """
    limits = {
        name: LIMITS[precision] * max(noise_floor[name], 0.0) / max(rms(true), 1e-300)
        for name, true in truth.items()
        if true.dtype.kind == "f"
    }
    # The noise of what an operator without a truth makes is not known: it is taken to be that of the noisiest tensor.
    unknown = max([*limits.values(), LIMITS[precision] * float(np.finfo(np.float32).eps)])
    limits = defaultdict(lambda: unknown, limits)
    return [Check(one.name, None, one.skipped) if one.skipped else _spread(one.name, one.pairs, limits) for one in checks]


def confirm_by_truth(checks: Sequence[Check], of_truth: Sequence[Check]) -> list[Check]:
    """Return `checks` without the failures that the model itself has: where its rows depend on each other, the truth fails too.

    of_truth: The same checks of the float64 evaluation.
    """
    dependent = {one.name.split(" ")[0]: one.detail for one in of_truth if one.passed is False}
    return [
        replace(one, passed=None, detail=f"the rows of this model depend on each other: {dependent[kind]}")
        if one.passed is False and (kind := one.name.split(" ")[0]) in dependent
        else one
        for one in checks
    ]


def _batches(run: Run, batch: BatchRows, many: Feeds, rows: int, seed: int, alone: Feeds | None) -> Iterator[InvarianceCheck]:
    """Yield the checks of `BATCH_CHECKS`. alone: What `run` returned for the first row of `many`, where that was run."""

    def outputs(indices: Sequence[int]) -> Feeds:
        return _rows_of(run(batch.take_inputs(many, indices)), batch, len(indices))

    whole = outputs(range(rows))
    alike = outputs([0] * rows)
    pairs = [(batch.take_outputs(alike, [0]), batch.take_outputs(alike, [row])) for row in range(1, rows)]
    yield InvarianceCheck(f"identical rows ({rows})", pairs)
    order = np.roll(np.random.default_rng(seed).permutation(rows), 1).tolist()
    yield InvarianceCheck("permuted rows", [(batch.take_outputs(whole, order), outputs(order))])
    sizes = sorted({1, 2, min(3, rows), rows})
    parts = [outputs(range(size)) if alone is None or size > 1 else _rows_of(alone, batch, 1) for size in sizes[:-1]]
    pairs = [(part, batch.take_outputs(whole, range(size))) for part, size in zip(parts, sizes, strict=False)]
    yield InvarianceCheck(f"batch sizes {', '.join(map(str, sizes))}", pairs)


def _odd_sizes(bundle: Bundle, run: Run, batch: BatchRows, feeds: Feeds, seed: int) -> Iterator[InvarianceCheck]:
    """Yield, where a dimension besides the batch may vary, the check that rows agree with batch 1 at sizes next to the given ones."""
    sizes = batch.other_sizes(bundle, feeds)
    for change in (1, -1) if sizes else ():
        # No steps at all are not a size that rows could be compared at.
        odd = {dim: max(1, size + change) for dim, size in sizes.items()}
        if odd == sizes:
            continue
        name = "size " + ", ".join(f"{dim}={size}" for dim, size in odd.items())
        try:
            two = random_feeds(bundle.inputs, 2, seed, {**odd, **dict.fromkeys(batch.dims, 2)}, _ranges(feeds))
            whole = _rows_of(run(two), batch, 2)
            parts = [_rows_of(run(batch.take_inputs(two, [row])), batch, 1) for row in (0, 1)]
        except Exception as error:  # a runtime may raise anything for a size that the graph does not take after all
            yield InvarianceCheck(name, skipped=f"does not run: {_first_line(error)}"[:200])
            continue
        yield InvarianceCheck(name, [(part, batch.take_outputs(whole, [row])) for row, part in enumerate(parts)])


def _rows_of(results: Feeds, batch: BatchRows, rows: int) -> Feeds:
    """Return the outputs that have rows. Raises Unsupported if one has another number of them than the input."""
    for name, axis in batch.output_axes.items():
        if np.shape(results[name])[axis : axis + 1] != (rows,):
            found = "x".join(map(str, np.shape(results[name]))) or "no dimensions"
            raise Unsupported(
                f"{name} has shape {found} for {rows} rows of the input, and {rows} along axis {axis} were declared"
            )
    return {name: results[name] for name in batch.output_axes}


def _rows(bundle: Bundle, batch: BatchRows, feeds: Feeds, rows: int, seed: int) -> Feeds:
    """Return `rows` different rows: those of `feeds`, and random ones of the same spread for the missing ones."""
    if batch.count >= rows:
        return batch.take_inputs(feeds, range(rows))
    sizes = {**batch.other_sizes(bundle, feeds), **dict.fromkeys(batch.dims, rows - batch.count)}
    return batch.concatenate(feeds, random_feeds(bundle.inputs, rows - batch.count, seed + 1, sizes, _ranges(feeds)))


def _ranges(feeds: Feeds) -> dict[str, tuple[int, int]]:
    """Return the smallest and largest value of each input of integers: numbers beyond may be the index of nothing."""
    wide = {name: array for name, array in feeds.items() if array.dtype.kind in "iu" and array.dtype != np.uint8 and array.size}
    return {name: (int(array.min()), int(array.max())) for name, array in wide.items()}


def _spread(name: str, pairs: Sequence[tuple[Feeds, Feeds]], limits: Mapping[str, float]) -> Check:
    """Return the verdict that each pair is one answer.

    limits: RMS error relative to the RMS of the output up to which a difference is noise, by output.
    """
    worst, where, identical = 0.0, "", True
    for one, other in pairs:
        for tensor, a in one.items():
            b = other[tensor]
            if same_bits(a, b):
                continue
            identical = False
            if a.shape != b.shape:
                return Check(name, False, f"{tensor} has shape {b.shape} instead of {a.shape}")
            noise = max(rms(a), 1e-300) * limits[tensor] if a.dtype.kind == "f" else 0.0
            verdict = compare(b, a.astype(np.float64) if a.dtype.kind == "f" else a, noise, 1.0)
            if verdict.error_ratio >= worst:
                worst, where = verdict.error_ratio, f"{tensor} by up to {verdict.max_abs:.3g}"
    if identical:
        return Check(name, True, "bit-identical")
    share = f"{worst:.2g} of the largest noise" if worst <= 1 else f"{worst:.3g} times the largest noise"
    return Check(name, worst <= 1, f"{where}, {share}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
