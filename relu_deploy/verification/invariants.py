"""The Relu contract, and checks of a model that need no reference.

Contract, per Relu: nothing negative, nothing above the bound of a ReLU6, zero exactly where the truth is zero (beyond
noise), a NaN that comes in goes out.

Reference-free, per model: the same input twice gives the same answer; identical rows of a batch give identical answers;
permuting the rows permutes the answers; every batch size agrees with batch 1, at odd picture sizes too where they may vary. A runtime may round differently for
another batch size, so a spread within the verdict's limit passes and is stated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends import Session
from relu_deploy.bundle import Bundle
from relu_deploy.errors import ReluDeployError
from relu_deploy.graph import Relu, nodes_between
from relu_deploy.tensors import Array, Feeds, random_feeds
from relu_deploy.verification.tapping import same_bits
from relu_deploy.verification.verdict import LIMITS, compare, rms

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Check", "Contract", "InvarianceCheck", "check_contract", "judge", "nan_is_kept", "poisoned", "try_model"]

#: rows of the largest batch tried, by how many seconds one row takes: a detector of 5 s a picture is not run forty times
ROWS = ((0.03, 8), (0.5, 4), (np.inf, 2))
BATCH_CHECKS = ("identical rows", "permuted rows", "batch sizes")
#: operators through which an all-NaN input stays all NaN by IEEE 754, so that a Relu behind them must see one
LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "BatchNormalization", "Identity", "Concat", "Reshape"}
LINEAR |= {"Flatten", "Transpose", "Dropout", "Relu", "Clip", "GlobalAveragePool", "AveragePool", "ReduceMean"}


@dataclass(frozen=True)
class Check:
    """One check of a model on a backend. passed: None when it could not be made, with the reason in `detail`."""

    name: str
    passed: bool | None
    detail: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "passed": self.passed, "detail": self.detail}


@dataclass(frozen=True)
class Contract:
    """One Relu's side of the contract. mask_errors: elements that are zero on one side only, beyond noise.

    nan_kept: None when no NaN could be brought before it. sparsity: share of zeros. dead, channels: channels (axis 1) that
    are zero everywhere on these inputs, of how many.
    """

    minimum: float
    maximum: float
    upper: float | None
    mask_errors: int | None
    nan_kept: bool | None
    sparsity: float
    dead: int
    channels: int

    @property
    def broken(self) -> str:
        """Return what is broken, "" when nothing is."""
        if self.minimum < 0:
            return f"negative output {self.minimum:.3g}"
        if self.upper is not None and self.maximum > self.upper:
            return f"output {self.maximum:.6g} above {self.upper:g}"
        if self.mask_errors:
            return f"{self.mask_errors} elements are zero where the truth is not, or the other way round"
        return "swallows NaN" if self.nan_kept is False else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "broken": self.broken,
            "minimum": _finite(self.minimum),
            "maximum": _finite(self.maximum),
            "mask_errors": self.mask_errors,
            "nan_kept": self.nan_kept,
            "sparsity": self.sparsity,
            "dead": self.dead,
            "channels": self.channels,
        }


def check_contract(
    relu: Relu, got: Array, true: Array | None, single: float | Array, precision: str, nan_kept: bool | None
) -> Contract:
    """Return how the Relu's output `got` keeps the contract.

    true: float64 of its shape, None when there is none. single: how far off correct arithmetic may leave a single element,
    of the tensor or of each channel.
    """
    wrong = None
    if true is not None and true.shape == got.shape:
        noise = LIMITS[precision] * single
        wide = got.astype(np.float64)
        with np.errstate(invalid="ignore"):
            wrong = int(np.count_nonzero(((wide == 0) & (true > noise)) | ((true == 0) & (wide > noise))))
    finite = got[np.isfinite(got)] if got.dtype.kind == "f" else got
    channels = got.shape[1] if got.ndim > 1 else 1
    fired = (
        np.any(np.moveaxis(got, 1, 0).reshape(channels, -1) > 0, axis=1) if got.ndim > 1 and got.size else np.ones(channels, bool)
    )
    return Contract(
        minimum=float(np.min(finite, initial=0)) if finite.size else 0.0,
        maximum=float(np.max(finite, initial=0)) if finite.size else 0.0,
        upper=relu.upper,
        mask_errors=wrong,
        nan_kept=nan_kept,
        sparsity=float(np.mean(got == 0)) if got.size else 0.0,
        dead=int(np.count_nonzero(~fired)),
        channels=channels,
    )


def poisoned(feeds: Feeds) -> Feeds:
    """Return `feeds` with nothing but NaN in every floating-point input; {} when there is no such input."""
    if not any(array.dtype.kind == "f" for array in feeds.values()):
        return {}
    return {name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array for name, array in feeds.items()}


def nan_is_kept(model: ir.Model, relus: Sequence[Relu], fed: Feeds, results: Feeds) -> dict[str, bool | None]:
    """Return for each Relu's tensor whether NaN went through it; None where it cannot be told that one reached it.

    fed: from `poisoned`. results: what the Relus of a session gave for it.
    """
    whole = {name for name, array in (fed | results).items() if array.dtype.kind == "f" and array.size and np.isnan(array).all()}
    kept: dict[str, bool | None] = {}
    for relu in relus:
        if relu.output not in results:
            kept[relu.output] = None
        elif np.isnan(results[relu.output]).any():
            kept[relu.output] = True
        else:
            starts = {other.output for other in relus if other.output != relu.output} | set(fed)
            piece = nodes_between(model, starts, [relu.output])
            reads = {value.name for node in piece for value in node.inputs if value is not None} & starts
            # Only where everything before it is NaN and nothing between may drop one is it this Relu that did.
            sure = reads <= whole and all(node.op_type in LINEAR for node in piece)
            kept[relu.output] = False if sure else None
    return kept


@dataclass(frozen=True)
class InvarianceCheck:
    """Answers of a session that should be the same, pair by pair, before it is judged. without: why there are none."""

    name: str
    pairs: Sequence[tuple[Feeds, Feeds]] = ()
    without: str = ""


def judge(
    trials: Sequence[InvarianceCheck], noise_floor: Mapping[str, float], truth: Mapping[str, Array], precision: str
) -> list[Check]:
    """Return the checks that `trials` come to. noise floor, truth: of the outputs; they say how large noise is, not what is right."""
    limits = {
        name: LIMITS[precision] * max(noise_floor[name], 0.0) / max(rms(true), 1e-300)
        for name, true in truth.items()
        if true.dtype.kind == "f"
    }
    return [Check(one.name, None, one.without) if one.without else _spread(one.name, one.pairs, limits) for one in trials]


def try_model(bundle: Bundle, session: Session, feeds: Feeds, seed: int, many_batches: bool = True) -> list[InvarianceCheck]:
    """Return the trials that need no reference, made with `session`.

    many_batches: False leaves out what needs other batch sizes, for a backend that would be compiled anew for each.
    """
    started = time.perf_counter()
    first = session.run(feeds)
    seconds = (time.perf_counter() - started) / max(1, len(next(iter(feeds.values()), [0])))
    trials = [InvarianceCheck("same input twice", [(first, session.run(feeds)) for _ in range(2)])]
    batch = bundle.inputs[0].batch if bundle.inputs else None
    follow = [spec.name for spec in bundle.outputs if spec.batch == batch and isinstance(batch, str)]
    rows = next(rows for limit, rows in ROWS if seconds <= limit)
    why, many = "", {}
    if not many_batches:
        why = "another batch size is another compiled program"
    elif not follow:
        why = "the batch is fixed" if not isinstance(batch, str) else "no output has the batch as its first dimension"
    else:
        try:
            many = _rows(bundle, feeds, rows, seed)
        except ReluDeployError as error:
            why = error.message
    if why:
        return [*trials, *(InvarianceCheck(name, without=why) for name in BATCH_CHECKS)]
    return [*trials, *_batches(session, many, rows, follow, seed), *_odd_sizes(bundle, session, feeds, follow, seed)]


def _batches(session: Session, many: Feeds, rows: int, follow: Sequence[str], seed: int) -> Iterator[InvarianceCheck]:
    def run(feeds: Feeds) -> Feeds:
        results = session.run(feeds)
        return {name: results[name] for name in follow}

    def some(feeds: Feeds, picked: Any) -> Feeds:
        return {name: array[picked] for name, array in feeds.items()}

    whole = run(many)
    alike = run(some(many, [0] * rows))
    pairs = [(some(alike, slice(0, 1)), some(alike, slice(row, row + 1))) for row in range(1, rows)]
    yield InvarianceCheck(f"identical rows ({rows})", pairs)
    order = np.roll(np.random.default_rng(seed).permutation(rows), 1)
    yield InvarianceCheck("permuted rows", [(some(whole, order), run(some(many, order)))])
    sizes = sorted({1, 2, min(3, rows), rows})
    pairs = [(run(some(many, slice(0, size))), some(whole, slice(0, size))) for size in sizes[:-1]]
    yield InvarianceCheck(f"batch sizes {', '.join(map(str, sizes))}", pairs)


def _odd_sizes(bundle: Bundle, session: Session, feeds: Feeds, follow: Sequence[str], seed: int) -> Iterator[InvarianceCheck]:
    """Yield, where a dimension besides the batch may vary, the trial that rows agree with batch 1 at sizes next to the given ones."""
    sizes = {
        dim: size
        for spec in bundle.inputs
        for dim, size in zip(spec.shape[1:], feeds[spec.name].shape[1:], strict=True)
        if isinstance(dim, str)
    }
    for change in (1, -1) if sizes else ():
        odd = {dim: size + change for dim, size in sizes.items()}
        name = "size " + ", ".join(f"{dim}={size}" for dim, size in odd.items())
        two = random_feeds(bundle.inputs, 2, seed, odd)
        try:
            whole = session.run(two)
            parts = [session.run({key: array[row : row + 1] for key, array in two.items()}) for row in (0, 1)]
        except Exception as why:  # a runtime may raise anything for a size that the graph does not take after all
            yield InvarianceCheck(name, without=f"does not run: {str(why).strip().splitlines()[0]}"[:200])
            continue
        pairs = [({n: part[n] for n in follow}, {n: whole[n][row : row + 1] for n in follow}) for row, part in enumerate(parts)]
        yield InvarianceCheck(name, pairs)


def _rows(bundle: Bundle, feeds: Feeds, rows: int, seed: int) -> Feeds:
    """Return `rows` different rows: those of `feeds`, filled up with random ones of the same spread."""
    have = len(next(iter(feeds.values())))
    if have >= rows:
        return {name: array[:rows] for name, array in feeds.items()}
    fill = {
        dim: size
        for spec in bundle.inputs
        for dim, size in zip(spec.shape[1:], feeds[spec.name].shape[1:], strict=True)
        if isinstance(dim, str)
    }
    more = random_feeds(bundle.inputs, rows - have, seed + 1, fill)
    return {name: np.concatenate([array, more[name]]) for name, array in feeds.items()}


def _spread(name: str, pairs: Sequence[tuple[Feeds, Feeds]], limits: Mapping[str, float]) -> Check:
    """Return the check that each pair is one answer. limits: RMS error relative to the RMS of the output that still is noise."""
    worst, where, identical = 0.0, "", True
    for one, other in pairs:
        for tensor, a in one.items():
            b = other[tensor]
            if same_bits(a, b):
                continue
            identical = False
            if a.shape != b.shape:
                return Check(name, False, f"{tensor} has shape {b.shape} instead of {a.shape}")
            verdict = compare(
                b, a.astype(np.float64) if a.dtype.kind == "f" else a, max(rms(a), 1e-300) * limits.get(tensor, 0.0), 1.0
            )
            if verdict.error_ratio >= worst:
                worst, where = verdict.error_ratio, f"{tensor} by up to {verdict.max_abs:.3g}"
    if identical:
        return Check(name, True, "bit-identical")
    return Check(
        name,
        worst <= 1,
        f"{where}, {worst:.2g} of what noise may be" if worst <= 1 else f"{where}, {worst:.3g} times what noise may be",
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
