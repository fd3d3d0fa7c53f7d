"""The ONNX graph in NumPy: float64 for the truth, float32 for the noise floor.

The operators are those of ONNX's own reference evaluator, except the few that would take minutes there (convolution,
matrix product, pooling): these are written here as matrix products, in whatever precision they are given. In float64
every floating-point weight, constant and cast of the graph is widened first, so nothing is rounded to float32 on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_deploy.backends.base import Executed, Options, Probe, Rounding, Seen
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError, Unsupported
from relu_deploy.graph.model import load_model
from relu_deploy.graph.taps import with_taps
from relu_deploy.tensors import Feeds, TensorSpec, check_feeds

if TYPE_CHECKING:
    import onnx


#: operators whose further operands are sizes, bounds and counts, which nobody rounds: 1.9999999 times 32 pixels are 63
COUNTING = ("Clip", "NonMaxSuppression", "OneHot", "Pad", "Range", "Resize", "TopK", "Upsample")
#: operators whose result does not depend on the numbers that they read
SIZING = ("Shape", "Size")


def probe(name: str) -> Probe:
    import onnx

    return Probe(name, True, version=f"onnx {onnx.__version__}, numpy {np.__version__}", device="CPU")


def load(_: str, bundle: Bundle, options: Options) -> ReferenceSession:
    import onnx_ir as ir

    return ReferenceSession(bundle, ir.to_proto(with_taps(load_model(bundle.onnx), [relu.output for relu in options.taps])))


class ReferenceSession:
    """A graph evaluated by NumPy, one operator after the other. Threads are the BLAS library's own."""

    def __init__(self, bundle: Bundle, model: onnx.ModelProto) -> None:
        self._bundle, self._model = bundle, model
        self._evaluators: dict[bool, Any] = {}
        self.inputs: tuple[TensorSpec, ...] = bundle.inputs
        self.outputs: tuple[TensorSpec, ...] = bundle.outputs
        self.facts: Mapping[str, Any] = {"precision": "float32", "device": "CPU"}
        self._evaluator(wide=False)

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        return self.evaluate(feeds, wide=False)

    def evaluate(
        self, feeds: Mapping[str, Any], *, wide: bool = True, rounding: Rounding | None = None, seen: Seen | None = None
    ) -> Feeds:
        """Return every output and tap; see `TruthSession`."""
        evaluator = self._evaluator(wide)
        arrays = check_feeds(feeds, self.inputs, self._bundle.name)
        if wide:
            arrays = {name: _wide(array) for name, array in arrays.items()}
        exact, done = _never_rounded(evaluator.rt_nodes_), _last_readers(evaluator.rt_nodes_, evaluator.output_names)

        def rounded(name: str, value: Any) -> Any:
            return value if rounding is None or name in exact else rounding.result(value)

        constant = set(evaluator.rt_inits_)
        values: dict[str, Any] = {name: rounded(name, array) for name, array in evaluator.rt_inits_.items()} | arrays | {"": None}
        try:
            # Overflow and 0/0 are values like any other here: they are compared, not warned about.
            with np.errstate(all="ignore"):
                for place, node in enumerate(evaluator.rt_nodes_):
                    context = {"context": values} if node.need_context() else {}
                    operands = [values[name] for name in node.input]
                    if rounding:
                        operands = rounding.operands(node.op_type, operands, [name in constant for name in node.input])
                    results = {
                        name: rounded(name, value)
                        for name, value in zip(node.output, node.run(*operands, **context), strict=False)
                    }
                    values.update({name: seen(name, value) for name, value in results.items()} if seen else results)
                    if all(name in constant for name in node.input if name):
                        # A weight behind a DequantizeLinear or Transpose is still a weight.
                        constant.update(node.output)
                    for name in done.get(place, ()):
                        del values[name]
        except ReluDeployError:
            raise
        except Exception as error:
            raise InputError(
                f"{self._bundle.name}: the reference evaluator failed: {type(error).__name__}: {error}",
                "check the input shapes; if they are right, compare against another backend",
            ) from error
        return {name: values[name] for name in evaluator.output_names}

    def executed(self) -> Sequence[Executed]:
        return ()

    def close(self) -> None:
        self._evaluators.clear()

    def _evaluator(self, wide: bool) -> Any:
        if wide not in self._evaluators:
            import onnx
            from onnx.reference import ReferenceEvaluator

            from relu_deploy.backends.reference.operators import fast_operators

            model = self._model
            if wide:
                model = onnx.ModelProto()
                model.CopyFrom(self._model)
                widen(model)
            try:
                self._evaluators[wide] = ReferenceEvaluator(model, new_ops=list(fast_operators()))
            except Exception as error:  # the evaluator raises whatever a missing operator leads to
                raise Unsupported(
                    f"reference cannot run {self._bundle.name}: {type(error).__name__}: {error}", "use --backend onnxruntime-cpu"
                ) from error
        return self._evaluators[wide]


def _never_rounded(nodes: Sequence[Any]) -> set[str]:
    """Return the tensors that hold sizes, bounds and counts, and those that they alone are made of."""
    exact: set[str] = set()
    for node in reversed(nodes):
        if node.op_type in COUNTING:
            exact.update(node.input[1:])
        elif node.op_type not in SIZING and node.output and all(name in exact for name in node.output):
            exact.update(node.input)
    return exact


def _last_readers(nodes: Sequence[Any], kept: Sequence[str]) -> dict[int, list[str]]:
    """Return for the places of `nodes` the tensors that nothing reads any more after that node: in float64 they fill a memory.

    kept: tensors that are wanted in the end. Nothing where a subgraph may read any tensor around it.
    """
    if any(node.need_context() for node in nodes):
        return {}
    last = {name: place for place, node in enumerate(nodes) for name in (*node.input, *node.output) if name and name not in kept}
    done: dict[int, list[str]] = {}
    for name, place in last.items():
        done.setdefault(place, []).append(name)
    return done


def _wide(array: Any) -> Any:
    return array.astype(np.float64) if array.dtype.name in ("float32", "float16", "bfloat16") else array


def widen(model: onnx.ModelProto) -> None:
    """Turn every floating-point type in `model` into float64, in place: weights, constants, casts, inputs, outputs."""
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_type in floats:
                _widen_tensor(tensor)
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in floats:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        del graph.value_info[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t") and attribute.t.data_type in floats:
                    _widen_tensor(attribute.t)
                elif attribute.name in ("to", "dtype") and attribute.i in floats:
                    attribute.i = TensorProto.DOUBLE
            if node.op_type == "Constant" and node.attribute[0].name in ("value_float", "value_floats"):
                _widen_constant(node.attribute[0])
            if node.op_type == "ConstantOfShape" and not node.attribute:
                attribute = node.attribute.add(name="value", type=4)
                attribute.t.CopyFrom(_tensor(np.zeros(1)))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    from onnx import numpy_helper

    name = tensor.name
    tensor.CopyFrom(_tensor(numpy_helper.to_array(tensor).astype(np.float64)))
    tensor.name = name


def _widen_constant(attribute: onnx.AttributeProto) -> None:
    value = np.float64(attribute.f) if attribute.name == "value_float" else np.array(attribute.floats, np.float64)
    attribute.Clear()
    attribute.name, attribute.type = "value", 4
    attribute.t.CopyFrom(_tensor(np.asarray(value)))


def _tensor(array: Any) -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(array)
