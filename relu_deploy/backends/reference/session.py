"""The session of the reference backend: a graph evaluated by NumPy, in float64 for the truth or in its own types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from relu_deploy.backends.base import Consume, Executed, Rounding, Seen
from relu_deploy.backends.reference.delegate import Delegate
from relu_deploy.backends.reference.evaluator import Evaluator
from relu_deploy.backends.reference.program import unsupported_nodes
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, ReluDeployError, Unsupported
from relu_deploy.run_limit import ending_process
from relu_deploy.tensors import Feeds, TensorSpec, check_feeds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ReferenceSession"]

#: seconds that the node may take which is evaluated when the time of an evaluation is over
NODE_SECONDS = 600.0


class ReferenceSession:
    """A graph evaluated by NumPy, one operator after the other. Threads are the BLAS library's own.

    delegate: Runs the nodes whose operators the evaluator does not have; without one such a graph is refused.
    taps: Tensors of the top graph of `model` that are outputs as well.
    """

    def __init__(self, bundle: Bundle, model: ir.Model, delegate: Delegate | None = None, taps: Sequence[ir.Value] = ()) -> None:
        missing = unsupported_nodes(model)
        if missing and delegate is None:
            listed = ", ".join(f"{domain or 'ai.onnx'}.{operator} (node {node!r})" for node, domain, operator in missing[:3])
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise Unsupported(
                f"{bundle.name}: the reference evaluator does not have the operators of {listed}{more}",
                "compare with the PyTorch program or with a graph of standard operators (--against), or cut these nodes off",
            )
        self._bundle, self._delegate = bundle, delegate if missing else None
        self._evaluators = {False: Evaluator(model, wide=False, delegate=self._delegate, taps=taps)}
        self.inputs: tuple[TensorSpec, ...] = bundle.inputs
        self.outputs: tuple[TensorSpec, ...] = bundle.outputs
        self.facts: Mapping[str, Any] = {"precision": "float32", "device": "CPU"}

    @property
    def random_nodes(self) -> tuple[str, ...]:
        """Return the names of the nodes that draw random numbers. They draw the same in every evaluation."""
        return self._evaluator(wide=False).random_nodes

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        """Return every output and tap in the graph's own types."""
        return self.evaluate(feeds, wide=False)

    def evaluate(
        self,
        feeds: Mapping[str, Any],
        *,
        wide: bool = True,
        rounding: Rounding | None = None,
        seen: Seen | None = None,
        consume: Consume | None = None,
    ) -> Feeds:
        """Return every output and tap; see `TruthSession`."""
        evaluator = self._evaluator(wide)
        arrays = check_feeds(feeds, self.inputs, self._bundle.name, by_name=False)
        try:
            # The evaluator looks at the clock between two nodes; one that takes long by itself takes the process with it.
            with ending_process(self._bundle.title, "the reference evaluator", loops=False, patience=NODE_SECONDS):
                if wide and self._delegate is not None and not self._delegate.types:
                    # The types of operands are those of the graph, which a float64 evaluation has lost.
                    self._evaluator(wide=False).run(arrays)
                return evaluator.run(arrays, rounding, seen, consume=consume)
        except ReluDeployError as error:
            raise type(error)(f"{self._bundle.name}: {error.message}", error.hint) from error
        except Exception as error:
            raise InputError(
                f"{self._bundle.name}: the reference evaluator failed: {type(error).__name__}: {error}",
                "check the input shapes; if they are right, compare against another backend",
            ) from error

    def executed(self) -> Sequence[Executed]:
        """Return nothing: there are no kernels to name."""
        return ()

    def close(self) -> None:
        self._evaluators.clear()
        if self._delegate is not None:
            self._delegate.close()

    def _evaluator(self, wide: bool) -> Evaluator:
        if wide not in self._evaluators:
            self._evaluators[wide] = Evaluator(self._evaluators[False].program, wide=wide, delegate=self._delegate)
        return self._evaluators[wide]
