"""The tensors on which a candidate is compared with the float32 model where no task's metric applies.

These are the outputs, with two exceptions (see `graph.selection`). Where the graph selects its outputs they are the tensors that enter
the selection, and the outputs that it does not select; where all outputs are texts, maps or sequences, the tensors that these are
made of. Every graph that is measured shows them as additional outputs; the stored variant does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.data.datasets import Dataset, spread_evenly
from relu_deploy.errors import InputError, ReluDeployError
from relu_deploy.graph.selection import EnteringTensor, Selection, expose_entering, find_numbers, find_selection, measured_name
from relu_deploy.tensors import Array, Feeds

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ComparedTensors", "Run", "answers_of", "rows_that_fit"]

#: bytes of the answers that are kept, and the rows that are measured on whatever they take
KEPT_BYTES, FEWEST_ROWS = 1 << 28, 8

Run = Callable[[Feeds], Feeds]


@dataclass(frozen=True)
class ComparedTensors:
    """What is known about the outputs of a model, and the tensors that are compared.

    Attributes:
        rounded: Outputs of integers that are rounded numbers.
        selection: The selection of the outputs.
        exposed: The tensors that enter it. Empty where the outputs are not selected, or a graph does not have such tensors.
        names: Names of the compared tensors among what a run returns; empty for all outputs.
        has_numbers: Whether an output is a tensor of numbers. Else the tensors that texts, maps and sequences are made of are exposed.
    """

    rounded: Collection[str] = ()
    selection: Selection = field(default_factory=Selection)
    exposed: tuple[EnteringTensor, ...] = ()
    names: frozenset[str] = frozenset()
    has_numbers: bool = True

    @classmethod
    def find(cls, original: ir.Model, prepared: ir.Model, rounded: Collection[str] = ()) -> ComparedTensors:
        """Return what is known about the outputs of a model.

        Args:
            original: The float32 model.
            prepared: The graph that candidates are made from.
            rounded: Outputs of integers that are rounded numbers.
        """
        numbers = find_numbers(prepared)
        selection = numbers if numbers.entering else find_selection(prepared)
        if not selection.entering:
            return cls(rounded, selection)
        both = all(expose_entering(model, selection.entering) is not None for model in (original, prepared))
        return cls(rounded, selection, selection.entering if both else (), has_numbers=not (both and numbers.entering))

    def expose(self, model: ir.Model) -> ir.Model:
        """Return `model` with the tensors that enter the selection as additional outputs; itself where there are none.

        Raises:
            ReluDeployError: If it has no such tensor.
        """
        if not self.exposed:
            return model
        shown = expose_entering(model, self.exposed)
        if shown is None:
            listed = ", ".join(tensor.name for tensor in self.exposed)
            raise ReluDeployError(
                f"a variant does not have the tensors {listed}", "this is a bug in relu_deploy; please report it"
            )
        return shown

    def outputs_of(self, run: Run) -> Run:
        """Return `run` without the additional outputs."""
        added = {measured_name(tensor.name) for tensor in self.exposed}
        return (lambda feeds: {name: value for name, value in run(feeds).items() if name not in added}) if added else run

    def selects(self, metric: str, answers: Collection[str]) -> bool:
        """Return whether the outputs that a metric compares are selected.

        Args:
            metric: Name of the metric.
            answers: Names of the outputs that are tensors of numbers.
        """
        found = {"signal": self.selection.floats, "agreement": self.selection.outputs}.get(metric, frozenset())
        return not found.isdisjoint(answers)

    def entering(self, answers: Mapping[str, Array]) -> frozenset[str]:
        """Return the names to compare: of the tensors that enter the selection, and of the float outputs that are not selected.

        answers: The outputs.
        """
        kept = {name for name, array in answers.items() if array.dtype.kind == "f" or name in self.rounded}
        return frozenset(kept - self.selection.outputs) | {measured_name(tensor.name) for tensor in self.exposed}

    @property
    def shown_names(self) -> tuple[str, ...]:
        """Names of the compared tensors as the graph has them; () for the outputs."""
        entering = {measured_name(tensor.name): tensor.name for tensor in self.exposed}
        return (*(name for name in sorted(self.names) if name not in entering), *entering.values()) if self.names else ()

    @property
    def behind(self) -> tuple[str, ...]:
        """Names of the nodes whose errors the compared tensors do not show."""
        return self.selection.behind if self.names else ()


def answers_of(run: Run, dataset: Dataset, batch: int, names: Collection[str] = ()) -> dict[str, Array]:
    """Return outputs of `run` that are tensors of numbers, for all rows of `dataset`, fed `batch` rows at a time.

    Strings, sequences and maps are left out. Results of different sizes are returned flat.

    Args:
        run: A model.
        dataset: The data.
        batch: Rows in one run.
        names: Names of the outputs; empty for all.

    Raises:
        InputError: If no output is a tensor of numbers.
    """
    parts: list[Feeds] = []
    for full, rows in dataset.full_batches(batch):
        results = {
            name: value
            for name, value in run(full).items()
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and (not names or name in names)
        }
        if not results:
            raise InputError("no output of the model is a tensor of numbers", "optimize a model whose scores are an output")
        parts.append({name: value[:rows] if value.ndim and len(value) == batch else value for name, value in results.items()})
    return {name: _joined([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}


def _joined(parts: list[Array]) -> Array:
    same = len({part.shape[1:] for part in parts}) == 1
    return np.concatenate(parts if same else [part.reshape(-1) for part in parts])


def rows_that_fit(run: Run, dataset: Dataset, batch: int, names: Collection[str]) -> Dataset:
    """Return as many rows of `dataset`, spread evenly, as have answers that fit into `KEPT_BYTES`. Arguments: as for `answers_of`."""
    first = dataset.picked(np.arange(min(batch, len(dataset))))
    size = sum(array.nbytes for array in answers_of(run, first, batch, names).values()) / len(first)
    most = max(FEWEST_ROWS, int(KEPT_BYTES // max(1, size)))
    return dataset if len(dataset) <= most else dataset.picked(spread_evenly(len(dataset), most))
