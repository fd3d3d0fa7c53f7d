"""The noise of all tensors that are compared: of each alone, and of many small ones of one shape together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from relu_deploy.tensors import Array
from relu_deploy.verification.judging.stacked_noise import StackedNoise, stacks_of
from relu_deploy.verification.judging.tensor_noise import TensorNoise

__all__ = ["GraphNoise"]


@dataclass(frozen=True)
class GraphNoise:
    """How far off correct arithmetic leaves each tensor.

    Attributes:
        alone: By tensor.
        together: By tensor; several have one.
    """

    alone: Mapping[str, TensorNoise]
    together: Mapping[str, StackedNoise]

    @classmethod
    def of(cls, true: Mapping[str, Array], precision: str, decided: Collection[str], rounded: Collection[str]) -> GraphNoise:
        """Return the noise of tensors of which nothing has been evaluated.

        Args:
            true: The truth by name.
            precision: Of the graph under test.
            decided: The tensors that depend on a decision.
            rounded: The tensors of rounded numbers.
        """
        plain = {name: value for name, value in true.items() if name not in decided and name not in rounded}
        together = {name: stack for stack in stacks_of(plain, precision) for name in stack.names}
        return cls(
            {
                name: TensorNoise(value, precision, decided=name in decided, rounded=name in rounded)
                for name, value in true.items()
                if name not in together
            },
            together,
        )

    def add(self, name: str, value: Array, evaluation: str, draw: int = 0) -> None:
        """Add an evaluation of a tensor; see `TensorNoise.add`. A sequence may have more elements than in the truth."""
        if name in self.together:
            self.together[name].add(name, value, evaluation, draw)
        elif name in self.alone:
            self.alone[name].add(value, evaluation, draw)

    def end(self, evaluation: str, draw: int = 0) -> None:
        """Count an evaluation that is complete."""
        for stack in self._stacks():
            stack.end(evaluation, draw)

    def forget_overflow(self, name: str) -> None:
        """See `TensorNoise.forget_overflow`."""
        if name in self.together:
            self.together[name].forget_overflow(name)
        elif name in self.alone:
            self.alone[name].forget_overflow()

    def floors(self) -> dict[str, float]:
        """Return the RMS error of correct arithmetic by name."""
        floors = {name: each.floor for name, each in self.alone.items()}
        for stack in self._stacks():
            floors |= stack.floors()
        return floors

    def singles(self) -> dict[str, Array]:
        """Return how far off single elements may be, by name; see `TensorNoise.single`."""
        singles = {name: single for name, each in self.alone.items() if (single := each.single) is not None}
        for stack in self._stacks():
            singles |= stack.singles()
        return singles

    def overflows(self) -> dict[str, Array]:
        """Return what sums that may overflow leave open, by name; see `TensorNoise.overflows`."""
        overflows = {name: each.overflows for name, each in self.alone.items() if each.overflows is not None}
        for stack in self._stacks():
            overflows |= stack.overflows
        return overflows

    def undecided(self) -> dict[str, Array]:
        """Return the elements that change with the rounding, by tensor of integers or booleans."""
        return {name: each.undecided for name, each in self.alone.items() if each.undecided is not None}

    def list_noise(self) -> dict[str, float]:
        """Return how far off tensors behind a decision may be as lists of rows, by name."""
        return {name: each.list_noise for name, each in self.alone.items() if each.list_noise is not None}

    def _stacks(self) -> list[StackedNoise]:
        return list(dict.fromkeys(self.together.values()))
