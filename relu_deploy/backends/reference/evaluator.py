"""Runs a compiled graph: one node after the other, in float64 or in the graph's own types."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy import run_limit
from relu_deploy.backends.base import Consume, Rounding, Seen
from relu_deploy.backends.reference.delegate import Delegate
from relu_deploy.backends.reference.loop_turns import LoopTurns
from relu_deploy.backends.reference.program import Node, Program, Scope, attribute_value, compile_graph, opsets_of, schema_of
from relu_deploy.backends.reference.registry import Call
from relu_deploy.backends.reference.types import HALF, element_type, narrowed, widened
from relu_deploy.errors import InputError, ReluDeployError, TooLong
from relu_deploy.gc_pause import without_collecting
from relu_deploy.run_limit import ALLOW_MORE, runs_are_limited

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["Evaluation", "Evaluator", "Limits"]


@dataclass(frozen=True)
class Limits:
    """What one evaluation may take: iterations of one Loop, and seconds of everything together (None for no limit).

    Loops that would take minutes are ended besides, see `LoopTurns`.
    """

    iterations: int | None = None
    seconds: float | None = None


@dataclass
class Evaluation:
    """The state of one evaluation.

    generators: one a random node, so that a node in a loop draws anew in each iteration. weights: rounded initializers of each
    program. expansions: compiled bodies of the operators that the specification defines by others. delegate: runs the nodes
    that cannot be evaluated. turns: those of Loops and Scans.
    """

    rounding: Rounding | None = None
    seen: Seen | None = None
    limits: Limits = field(default_factory=Limits)
    started: float = field(default_factory=time.monotonic)
    generators: dict[str, np.random.RandomState] = field(default_factory=dict)
    weights: dict[int, dict[str, Any]] = field(default_factory=dict)
    expansions: dict[Any, Program] = field(default_factory=dict)
    delegate: Delegate | None = None
    turns: LoopTurns = field(default_factory=LoopTurns)

    def inside_function(self, *, rounded: bool) -> Evaluation:
        """Return the state for the body of a function, whose tensors have the same names at every call: they are not shown."""
        return replace(self, rounding=self.rounding if rounded else None, seen=None)

    def generator(self, node: str, seed: float | None) -> np.random.RandomState:
        """Return the random generator of a node: of its `seed`, else of its name, so that every evaluation draws the same.

        RandomState, because its numbers for a seed are the same in every version of NumPy.
        """
        if node not in self.generators:
            text = node.encode() if seed is None else np.float64(seed).tobytes()
            number = int(seed) if seed is not None and float(seed).is_integer() else zlib.crc32(text)
            self.generators[node] = np.random.RandomState(number % 2**32)
        return self.generators[node]

    def check_time(self, node: str) -> None:
        """Raise InputError when the evaluation has taken longer than its limit, TooLong when runs are limited and it took an hour."""
        limit = self.limits.seconds
        if limit is not None and time.monotonic() - self.started > limit:
            raise InputError(f"the reference evaluation took longer than {limit:g} s, at node {node!r}", "use smaller inputs")
        if runs_are_limited() and time.monotonic() - self.started > run_limit.RUN_SECONDS:
            raise TooLong(f"the reference evaluation took longer than {run_limit.RUN_SECONDS:g} s, at node {node!r}", ALLOW_MORE)


@dataclass
class Tensors:
    """The tensors of a graph that is being evaluated, for operators that evaluate graphs of their own (a `Frame`)."""

    values: Mapping[str, Any]
    evaluation: Evaluation

    def run(self, body: Program, arguments: Sequence[Any]) -> list[Any]:
        """Evaluate `body` on `arguments`; it reads the tensors around it."""
        values = {name: self.values[name] for name in body.captures}
        return run_program(body, dict(zip(body.inputs, arguments, strict=True)), self.evaluation, values)


class Evaluator:
    """A model that is ready to be evaluated.

    Args:
        model: The graph, whose external weights are read, or what another evaluator has compiled in the graph's own types.
        wide: Evaluate in float64: every floating-point weight, constant and cast is widened, so nothing is rounded.
        delegate: Runs the nodes that have neither an operator nor a function body.
        taps: Tensors of the top graph that are outputs as well.

    Raises:
        Unsupported: If there is such a node and no delegate.
    """

    @without_collecting()
    def __init__(
        self, model: ir.Model | Program, *, wide: bool, delegate: Delegate | None = None, taps: Sequence[ir.Value] = ()
    ) -> None:
        program = model if isinstance(model, Program) else _compile(model, delegates=delegate is not None, taps=taps)
        self.program, self._delegate = program.widened() if wide else program, delegate
        self._expansions: dict[Any, Program] = {}

    @property
    def random_nodes(self) -> tuple[str, ...]:
        """Return the names of the nodes whose results are drawn at random."""
        return tuple(node.name for program in self.program.all_programs() for node in program.nodes if _draws(node, program))

    def run(
        self,
        feeds: Mapping[str, Any],
        rounding: Rounding | None = None,
        seen: Seen | None = None,
        limits: Limits | None = None,
        consume: Consume | None = None,
    ) -> dict[str, Any]:
        """Return every output of the graph by name.

        Args:
            feeds: Arrays, sequences (lists) or None by input name; widened as the graph is.
            rounding: The rounding applied to each weight, operand and result.
            seen: Called with each tensor of the graph and of the bodies of If, Loop and Scan (once an iteration).
            limits: What the evaluation may take.
            consume: Called with the name and value of each output as soon as it is computed. The output is not returned, and
                freed once no node reads it any more.
        """
        inputs = {name: widened(value) for name, value in feeds.items()} if self.program.wide else dict(feeds)
        limits = limits or Limits()
        evaluation = Evaluation(rounding, seen, limits, expansions=self._expansions, delegate=self._delegate)
        evaluation.turns = LoopTurns(limits.iterations)
        # Overflow and 0/0 are values like any other here: they are compared, not warned about.
        with np.errstate(all="ignore"):
            results = run_program(self.program, inputs, evaluation, {}, consume)
        return {} if consume else dict(zip(self.program.outputs, results, strict=True))


def _compile(model: ir.Model, *, delegates: bool, taps: Sequence[ir.Value]) -> Program:
    functions = {(str(key[0]), str(key[1]), str(key[2])): function for key, function in model.functions.items()}
    return compile_graph(model.graph, Scope(opsets_of(model.opset_imports), functions, {}, delegates=delegates), taps)


def run_program(
    program: Program,
    feeds: Mapping[str, Any],
    evaluation: Evaluation,
    captured: Mapping[str, Any],
    consume: Consume | None = None,
) -> list[Any]:
    """Return the outputs of `program` in its order; none of them with `consume`, which gets each as soon as it is computed."""
    values: dict[str, Any] = {**captured, **_weights(program, evaluation, keep=consume is None), **feeds, "": None}
    pending = dict.fromkeys(program.outputs) if consume else {}
    rounding, seen, tensors = evaluation.rounding, evaluation.seen, Tensors(values, evaluation)
    for node in program.nodes:
        operands = [values[name] for name in node.inputs]
        if rounding:
            operands = rounding.operands(node.op_type, operands, node.weights)
        evaluation.check_time(node.name)
        results = _run_node(node, operands, tensors, program)
        for name, result in zip(node.outputs, results, strict=False):
            if not name:
                continue
            value = rounding.result(result) if rounding and name not in program.exact else result
            values[name] = seen(name, value) if seen else value
            if consume and name in pending:
                del pending[name]
                consume(name, values[name])
        for name in (*node.done, *node.done_outputs) if consume else node.done:
            if name not in pending:
                values.pop(name, None)
    if not consume:
        return [values[name] for name in program.outputs]
    # Outputs that are inputs or constants.
    for name in pending:
        consume(name, values[name])
    return []


def _run_node(node: Node, operands: list[Any], frame: Tensors, program: Program) -> tuple[Any, ...]:
    try:
        if node.operator:
            if program.wide and node.sizes:
                operands = [narrowed(value) for value in operands]
            wide = program.wide and not node.sizes
            call = Call(node.attributes, node.version, outputs=node.outputs, wide=wide, name=node.name, frame=frame)
            return _call(node, call, operands)
        if node.delegated:
            return _delegated(node, operands, frame.evaluation, wide=program.wide)
        if node.function:
            return tuple(_run_function(node.function, operands, frame.evaluation.inside_function(rounded=True), node))
        # What the specification defines by other operators is one operation: only its results are rounded.
        body = _expanded(node, operands, program, frame.evaluation.expansions)
        return tuple(_run_function(body, operands, frame.evaluation.inside_function(rounded=False), node))
    except ReluDeployError:
        raise
    except Exception as error:
        shapes = ", ".join(_described(value) for value in operands)
        raise InputError(
            f"node {node.name!r} ({node.op_type}) cannot be evaluated on {shapes or 'no operands'}: {type(error).__name__}: {error}",
            "check the shapes and the values of the inputs, and give real ones with --inputs or --data where they are random; "
            "if they are right, the graph does not fit together at this node",
        ) from error


def _call(node: Node, call: Call, operands: list[Any]) -> tuple[Any, ...]:
    """Run an operator; halves are computed in float32 and rounded once, as runtimes do."""
    assert node.operator is not None
    half = None
    if not call.wide and not node.operator.keeps_types:
        kinds = [value.dtype for value in operands if isinstance(value, np.ndarray)]
        half = next((kind for kind in kinds if kind.name in HALF), None)
        if half is not None and np.dtype(np.float32) not in kinds:
            operands = [
                value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == half else value for value in operands
            ]
    results = node.operator.run(call, *operands)
    results = results if isinstance(results, tuple) else (results,)
    if half is not None:
        results = tuple(
            value.astype(half) if isinstance(value, np.ndarray | np.floating) and value.dtype == np.float32 else value
            for value in results
        )
    return tuple(np.asarray(value) if isinstance(value, np.generic) else value for value in results)


def _delegated(node: Node, operands: list[Any], evaluation: Evaluation, *, wide: bool) -> tuple[Any, ...]:
    """Run a node elsewhere. The rounding of its operands stands for that inside it, which is not known."""
    assert evaluation.delegate is not None
    assert node.source is not None
    if evaluation.rounding:
        operands = [evaluation.rounding.result(value) for value in operands]
    results = evaluation.delegate.run(node.source, operands, wide=wide)
    return tuple(widened(value) for value in results) if wide else results


def _run_function(body: Program, operands: Sequence[Any], evaluation: Evaluation, node: Node) -> list[Any]:
    padded = [*operands, *[None] * (len(body.inputs) - len(operands))]
    return run_program(body, dict(zip(body.inputs, padded, strict=True)), evaluation, {})[: len(node.outputs)]


def _weights(program: Program, evaluation: Evaluation, *, keep: bool) -> Mapping[str, Any]:
    """Return the rounded weights of a program. keep: For its next run in this evaluation."""
    rounding = evaluation.rounding
    if rounding is None:
        return program.initializers
    rounded = evaluation.weights.get(id(program))
    if rounded is None:
        rounded = {
            name: value if name in program.exact else rounding.result(value) for name, value in program.initializers.items()
        }
        if keep:
            evaluation.weights[id(program)] = rounded
    return rounded


def _expanded(node: Node, operands: Sequence[Any], program: Program, compiled: dict[Any, Program]) -> Program:
    """Return the body that the specification gives for the operator of `node`, for operands of these types."""
    import onnx
    import onnx_ir as ir

    types = tuple(element_type(value.dtype) if isinstance(value, np.ndarray) else 0 for value in operands)
    shapes = tuple(value.shape if isinstance(value, np.ndarray) else () for value in operands)
    key = (id(node), types, shapes)
    if key in compiled:
        return compiled[key]
    schema = schema_of(node.domain, node.op_type, node.version)
    assert schema is not None
    body = onnx.FunctionProto()
    body.CopyFrom(schema.function_body if schema.has_function else _body_of_context(schema, node, types, shapes))
    declared = list(body.output)
    made = {name for inner in body.node for name in inner.output} | set(body.input)
    del body.output[:]
    body.output.extend(name for name in declared if name in made)
    function = ir.serde.deserialize_function(body)
    defaults = {
        name: attribute_value(ir.serde.deserialize_attribute(attribute.default_value).value)
        for name, attribute in schema.attributes.items()
        if attribute.default_value.type != onnx.AttributeProto.UNDEFINED
    }
    opsets = {**program.opsets, **opsets_of(function.opset_imports)}
    bindings = {**defaults, **node.attributes}
    expansion = compile_graph(function, Scope(opsets, {}, bindings))
    expansion = expansion.widened() if program.wide else expansion
    # Optional outputs that the body does not make for this node are empty.
    compiled[key] = replace(expansion, outputs=tuple(name if name in made else "" for name in declared))
    return compiled[key]


def _body_of_context(schema: Any, node: Node, types: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> onnx.FunctionProto:
    import onnx
    import onnx_ir as ir
    from onnx import helper

    assert node.source is not None
    proto = ir.serde.serialize_node(node.source)
    referring = [attribute.name for attribute in proto.attribute if attribute.ref_attr_name]
    plain = [attribute for attribute in proto.attribute if not attribute.ref_attr_name]
    plain += [helper.make_attribute(name, node.attributes[name]) for name in referring if name in node.attributes]
    del proto.attribute[:]
    proto.attribute.extend(plain)
    input_types = [
        helper.make_tensor_type_proto(kind, shape).SerializeToString() if kind else b""
        for kind, shape in zip(types, shapes, strict=True)
    ]
    version = max(schema.context_dependent_function_opset_versions)
    body = onnx.FunctionProto()
    body.ParseFromString(
        schema.get_context_dependent_function_with_opset_version(version, proto.SerializeToString(), input_types)
    )
    return body


def _draws(node: Node, program: Program) -> bool:
    """Return whether the results of `node` depend on a random generator: a Dropout does where it may be training."""
    if node.operator is None or not node.operator.random:
        return False
    if node.op_type != "Dropout":
        return True
    training = node.inputs[2] if len(node.inputs) > 2 else ""
    return bool(training) and bool(np.any(program.constant(training, True)))


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name}[{'x'.join(map(str, value.shape))}]"
    return "a sequence" if isinstance(value, list) else "nothing"
