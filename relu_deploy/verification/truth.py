"""The truth and the noise floor: the same Relus and outputs from PyTorch's program or from an ONNX graph, in float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from relu_deploy.backends import load
from relu_deploy.backends.base import Rounding, Seen, TruthSession
from relu_deploy.backends.threads import default_threads, limited_blas
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph import TORCH_NODE_KEY, Relu, clamped_tensors, find_relus
from relu_deploy.graph.bodies import iterate_nodes
from relu_deploy.graph.model import read_model
from relu_deploy.graph.precision import EIGHT_BITS, Quantized
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.judging.graph_noise import GraphNoise
from relu_deploy.verification.judging.noise import LargeRounding, behind_decisions, draws_for, rounded_numbers
from relu_deploy.verification.judging.overflow import LargeOperands, NonFinite, PossibleOverflows, behind_overflow
from relu_deploy.verification.judging.sum_order import LONG, SumOrder
from relu_deploy.verification.judging.tensor_noise import ANYTHING, NOT_FINITE
from relu_deploy.verification.judging.verdict import LIMITS, Comparison, compare
from relu_deploy.verification.tapping import arrays_of

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ITERATING", "Source", "Truth", "find_truth", "open_source", "program_source"]

#: operators whose body runs several times: its tensors have a value for each iteration
ITERATING = ("Loop", "Scan", "SequenceMap")
#: iterations, and bytes of all tensors together, up to which the values inside such bodies are kept
MOST_ITERATIONS, MOST_BYTES = 64, 2**28


@dataclass(frozen=True)
class Truth:
    """The values that are right, and how far correct arithmetic is off.

    Attributes:
        against: The source: "torch", "reference" or a path.
        values: Outputs and Relus in float64, by tensor name.
        noise_floor: The RMS error of correct arithmetic, by the same names.
        precision: The precision of the graph under test.
        single: How far off correct arithmetic may leave a single element, of a shape that broadcasts to the tensor: by channel,
            because rounding one channel's weights may be many times as noisy as rounding another's.
        undecided: By tensor of integers or booleans, the elements that change where the noise is at its limit: two candidates
            are too close to tell which is right.
        overflows: By tensor behind a sum whose terms exceed float32 together: for each element whether it may be `NOT_FINITE`, or
            `ANYTHING` that follows from such a number; 0 for others.
        list_noise: By tensor behind a decision, how far off it may be as a list of rows, of which there may be more or fewer.
        is_blurred: The noise of some tensors could hide a fault: that of a coarse precision, of a long sum or of a decision.
    """

    against: str
    values: Mapping[str, Array]
    noise_floor: Mapping[str, float]
    precision: str = "float32"
    single: Mapping[str, Array] = field(default_factory=dict)
    undecided: Mapping[str, Array] = field(default_factory=dict)
    list_noise: Mapping[str, float] = field(default_factory=dict)
    is_blurred: bool = False
    overflows: Mapping[str, Array] = field(default_factory=dict)

    def compare(self, name: str, measured: Array) -> Comparison:
        """Return the verdict on the tensor `name` of a backend. What may have overflown counts only where it passes with it."""
        true, floor, limit = self.values[name], self.noise_floor[name], LIMITS[self.precision]
        verdict = compare(measured, true, floor, limit, self.undecided.get(name))
        open_elements = self.overflows.get(name)
        if verdict.passed or open_elements is None or measured.shape != true.shape:
            return verdict
        left_out = (open_elements == ANYTHING) | ((open_elements == NOT_FINITE) & ~np.isfinite(measured.astype(np.float32)))
        return replace(compare(measured[~left_out], true[~left_out], floor, limit), left_out=int(np.count_nonzero(left_out)))

    def is_plain(self, name: str) -> bool:
        """Return whether the tensor `name` is compared number by number, with one noise for all of them."""
        return not any(name in special for special in (self.list_noise, self.undecided, self.single, self.overflows))


@dataclass(frozen=True)
class Source:
    """The source of the truth, loaded.

    Attributes:
        against: "torch", "reference" or a path.
        names: Its outputs and taps → the names in the graph under test, where they differ.
        inner: The tensors inside it → the tensors of the graph under test that they correspond to.
        iterated: The tensors inside its bodies of `ITERATING` operators that the graph under test has as well.
        model: The graph that it evaluates, or the one that its program was exported to.
        reference: Options of the reference evaluator.
    """

    against: str
    session: TruthSession
    model: ir.Model
    names: Mapping[str, str] = field(default_factory=dict)
    inner: Mapping[str, str] = field(default_factory=dict)
    iterated: frozenset[str] = frozenset()
    reference: Mapping[str, Any] = field(default_factory=dict)

    def close(self) -> None:
        self.session.close()

    def evaluate(self, feeds: Feeds, **options: Any) -> Feeds:
        """Return the outputs and taps that are arrays, under the names of the graph under test; options as for `TruthSession`."""
        results = arrays_of(self.session.evaluate(feeds, **options))
        return {self.names.get(name, name): value for name, value in results.items()}

    def evaluate_each(self, feeds: Feeds, consume: Callable[[str, Array], None], **options: Any) -> None:
        """Call `consume` with what `evaluate` would return, as soon as each array is computed; it is not kept."""

        def renamed(name: str, value: Any) -> None:
            for each, array in arrays_of({name: value}).items():
                consume(self.names.get(each, each), array)

        self.session.evaluate(feeds, consume=renamed, **options)

    def everything(self, feeds: Feeds) -> dict[str, Array]:
        """Return every tensor that corresponds to one of the graph under test, in float64, under the names of that graph."""
        values: dict[str, Array] = {}

        def keep(name: str, value: Array) -> Array:
            if name in self.inner and isinstance(value, np.ndarray):
                values[self.inner[name]] = value
            return value

        return values | self.evaluate(feeds, seen=cast(Seen, keep))

    def iterations(self, feeds: Feeds) -> dict[str, list[Array]]:
        """Return the values of each tensor of `iterated` in float64, one for each of the first iterations."""
        values: dict[str, list[Array]] = {name: [] for name in self.iterated}
        size = 0

        def keep(name: str, value: Any) -> Any:
            nonlocal size
            if name in values and isinstance(value, np.ndarray) and len(values[name]) < MOST_ITERATIONS and size < MOST_BYTES:
                values[name].append(value)
                size += value.nbytes
            return value

        if self.iterated:
            # Taps make other tensors of those that they expose.
            with closing(cast(TruthSession, load(self.against, "reference", **self.reference))) as session:
                session.evaluate(feeds, seen=keep)
        return {name: arrays for name, arrays in values.items() if arrays}


def open_source(bundle: Bundle, against: str, relus: Sequence[Relu], reference: Mapping[str, Any] | None = None) -> Source:
    """Return the loaded source of the truth.

    Args:
        bundle: The graph under test.
        against: "torch", "reference", or the path of another bundle or ONNX file. That one must have the same inputs and as
            many outputs, which are taken in order; its inner tensors are those of the same name, and its Relus, where none
            has the name of one of `relus` and there are as many, are taken in order.
        relus: The Relus to compare.
        reference: Options of the reference evaluator, as for `load`.

    Raises:
        InputError: If the other file is missing or its inputs and outputs differ.
        UsageError: If there is nothing to compare with.
    """
    options = dict(reference or {})
    if against == "torch":
        return _torch_source(bundle, relus, options.get("threads", 0))
    if against == "reference":
        session = load(bundle, "reference", taps=_existing(relus, bundle), **options)
        return Source(against, cast(TruthSession, session), read_model(bundle.onnx))
    other = _other(bundle, Path(against))
    other_model, model = read_model(other.onnx), read_model(bundle.onnx)
    theirs = [relu for relu in find_relus(other_model) if relu.observable]
    (made, iterated), (made_by_other, iterated_by_other) = _tensors_made(model), _tensors_made(other_model)
    inner = {name: name for name in made_by_other & made}
    outputs = {relu.output for relu in relus}
    clamped = clamped_tensors(model)
    if not outputs & {clamped.get(name, name) for name in inner} and len(theirs) == len(relus):
        inner |= {them.output: us.output for them, us in zip(theirs, relus, strict=True)}
    inner |= dict(zip((spec.name for spec in other.outputs), (spec.name for spec in bundle.outputs), strict=True))
    # Where a quantization is the Relu, the dequantized tensor has the Relu's values.
    names = {their_name: clamped.get(name, name) for their_name, name in inner.items()}
    taps = tuple(relu for relu in theirs if relu.observable and names.get(relu.output) in outputs)
    session = cast(TruthSession, load(other, "reference", taps=taps, **options))
    return Source(against, session, other_model, names, inner, frozenset(iterated & iterated_by_other), options)


def _torch_source(bundle: Bundle, relus: Sequence[Relu], threads: int) -> Source:
    if bundle.source is None:
        raise UsageError(
            f"{bundle.path} has no PyTorch program to compare with",
            "verify --against reference, or export it from PyTorch",
        )
    session = load(bundle, "torch", taps=tuple(relu for relu in relus if relu.torch_node), threads=threads)
    return program_source(cast(TruthSession, session), read_model(bundle.onnx))


def program_source(session: TruthSession, model: ir.Model) -> Source:
    """Return the source of the truth for a session that runs the PyTorch program of the graph `model`."""
    nodes = [node for node in model.graph if TORCH_NODE_KEY in node.metadata_props]
    inner = {node.metadata_props[TORCH_NODE_KEY]: str(node.outputs[0].name) for node in nodes}
    return Source("torch", session, model, {}, inner)


def _existing(relus: Sequence[Relu], bundle: Bundle) -> tuple[Relu, ...]:
    """Return the Relus whose tensors the graph of `bundle` has and shows."""
    if not relus:
        return ()
    known = {relu.output for relu in find_relus(read_model(bundle.onnx)) if relu.observable}
    return tuple(relu for relu in relus if relu.output in known)


def _tensors_made(model: ir.Model) -> tuple[set[str], set[str]]:
    """Return the tensors of a graph and of the branches in it, and those inside bodies of `ITERATING` operators."""
    once: set[str] = set()
    iterated: set[str] = set()
    for node, path in iterate_nodes(model):
        made = iterated if any(step.node.op_type in ITERATING for step in path) else once
        made.update(str(value.name) for value in node.outputs if value.name)
    return once, iterated


def find_truth(source: Source, feeds: Feeds, precision: str = "float32", quantized: Quantized = EIGHT_BITS) -> Truth:
    """Return the truth for `feeds`: every output and every Relu that `source` knows, under the names of the graph under test.

    precision: Of the graph under test, whose rounding makes the noise floor. quantized: As for `Rounding`.
    """
    if source.against == "torch":
        return _find_truth(source, feeds, precision, quantized)
    # Two evaluations run at a time, and often a runtime beside them.
    with limited_blas(max(1, default_threads() // 2)):
        return _find_truth(source, feeds, precision, quantized)


def _find_truth(source: Source, feeds: Feeds, precision: str, quantized: Quantized) -> Truth:
    started = time.perf_counter()
    torch_names = source.inner if source.against == "torch" else {}
    counted = SumOrder.of(source.model, torch_names, feeds, replace=False)
    true = source.evaluate(feeds, seen=counted.seen)
    seconds = time.perf_counter() - started
    decided = behind_decisions(source.model)
    rounded = rounded_numbers(source.model)
    if not torch_names:
        decided, rounded = ({source.inner.get(name, name) for name in names} for names in (decided, rounded))
    noise = GraphNoise.of(true, precision, decided, rounded)

    def measure(evaluation: str, draw: int = 0, **options: Any) -> None:
        def add(name: str, value: Array) -> None:
            noise.add(name, value, evaluation, draw)

        source.evaluate_each(feeds, add, **options)
        noise.end(evaluation, draw)

    finite, large = NonFinite(), LargeOperands()
    watching: dict[str, Any] = {} if torch_names else {"seen": finite.seen, "rounding": large}
    runs = [partial(measure, "float32", wide=False, **watching)]
    runs += [
        partial(measure, "draw", seed, rounding=Rounding(precision, seed, quantized))
        for seed in range(draws_for(true, precision))
    ]
    ordered = counted.longest >= LONG or counted.is_faint
    if ordered:
        sums = SumOrder.of(source.model, torch_names, feeds, replace=True)
        runs.append(partial(measure, "ordered", seen=sums.seen))
    draws = 0 if not decided & true.keys() else 24 if seconds < 0.05 else 8 if seconds < 1 else 3
    factor = LIMITS[precision]
    runs += [partial(measure, "large", seed, rounding=LargeRounding(precision, seed, factor, quantized)) for seed in range(draws)]
    # NumPy uses one core for most of an evaluation. Each holds its weights and the tensors in use, so two at a time.
    with ThreadPoolExecutor(1 if source.against == "torch" else 2) as pool:
        for run in [pool.submit(run) for run in runs]:
            run.result()
    if finite.counts or large.squares:
        own = NonFinite()
        source.evaluate_each(feeds, lambda *_: None, seen=own.seen)
        for name in behind_overflow(source.model, finite, own, squares=large.squares):
            noise.forget_overflow(source.names.get(name, name))
    if large.sums and precision == "float32":
        _add_possible_overflows(source, feeds, measure)
    return Truth(
        against=source.against,
        values=true,
        noise_floor=noise.floors(),
        precision=precision,
        single=noise.singles(),
        undecided=noise.undecided(),
        list_noise=noise.list_noise(),
        is_blurred=precision not in ("float32", "float64") or ordered or draws > 0 or large.sums or large.squares,
        overflows=noise.overflows(),
    )


def _add_possible_overflows(source: Source, feeds: Feeds, measure: Callable[..., None]) -> None:
    """Find the sums that overflow float32 in some order, and measure what follows from that. measure: Adds an evaluation."""
    sums = PossibleOverflows(source.model)
    source.evaluate_each(feeds, lambda *_: None, seen=sums.keep)
    source.evaluate_each(feeds, lambda *_: None, seen=sums.compare, rounding=sums)
    for infinity in (np.inf, -np.inf) if sums.found else ():
        measure("overflow", wide=False, seen=sums.overflowing(infinity))


def _other(bundle: Bundle, path: Path) -> Bundle:
    other = Bundle.open(path)
    if [spec.name for spec in other.inputs] != [spec.name for spec in bundle.inputs]:
        raise InputError(f"{path} has other inputs than {bundle.path}", "compare models with the same input names")
    if len(other.outputs) != len(bundle.outputs):
        raise InputError(
            f"{path} has {len(other.outputs)} outputs, {bundle.path} has {len(bundle.outputs)}", "compare like with like"
        )
    return other
