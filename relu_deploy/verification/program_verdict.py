"""The verdict on an exported graph: whether it computes in float64 what its PyTorch program computes in float64.

`export` makes it once, while it has the program in memory, and stores it in the manifest with the hashes of both files. A
graph that has passed is then a truth of its own: `verify` needs neither torch nor the program. Two evaluations are enough
where nothing differs, because float64 leaves rounding far below float32's; only a tensor that differs by more than the
rounding of its storage needs the noise floor of `find_truth`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import numpy as np

from relu_deploy.backends import load
from relu_deploy.backends.base import TruthSession
from relu_deploy.backends.reference.program import unsupported_nodes
from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import sample_feeds
from relu_deploy.errors import ReluDeployError, Unsupported
from relu_deploy.graph import Relu, find_relus, precision_of
from relu_deploy.graph.model import read_model
from relu_deploy.records import JsonRecord
from relu_deploy.storage.manifest import MODEL, SOURCE
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.judging.pinning import random_nodes_of
from relu_deploy.verification.judging.verdict import LIMITS, Comparison, compare, estimate_noise_floor
from relu_deploy.verification.tapping import arrays_of
from relu_deploy.verification.truth import Truth, find_truth, program_source
from relu_deploy.version import __version__

__all__ = ["ProgramVerdict", "compare_with_program", "relus_of_program"]


@dataclass(frozen=True)
class ProgramVerdict(JsonRecord):
    """The verdict on a graph against its PyTorch program.

    Attributes:
        passed: Whether every tensor agrees.
        relus: How many Relus were compared.
        outputs: How many outputs were compared.
        error_ratio: The largest RMS error in units of the rounding of the result or, if one is above the limit, of the error of
            correct arithmetic; None where a tensor has another shape, NaN or infinities.
        first_divergence: The first tensor that differs, None if all agree.
        inputs: Where the inputs came from, their seed and their shapes.
        files: The sha256 of the graph, its external weights and the program, by name.
        made_by: Versions of relu_deploy and torch.
    """

    passed: bool
    relus: int
    outputs: int
    error_ratio: float | None
    first_divergence: str | None
    inputs: Mapping[str, Any]
    files: Mapping[str, str]
    made_by: Mapping[str, str]


def relus_of_program(bundle: Bundle) -> list[Relu]:
    """Return the Relus of the graph of `bundle` that are nodes of its PyTorch program."""
    return [relu for relu in find_relus(read_model(bundle.onnx)) if relu.observable and relu.torch_node]


def compare_with_program(bundle: Bundle, program: TruthSession, relus: Sequence[Relu]) -> ProgramVerdict:
    """Return the verdict on the graph of `bundle` against its program, on one row of the model's data or of random numbers.

    Args:
        bundle: The graph, and the hashes of its files.
        program: A session that runs the program, with `relus` tapped.
        relus: The Relus to compare.

    Raises:
        Unsupported: If the graph draws random numbers, or one side cannot be evaluated in float64.
        InputError: If the graph cannot be evaluated on the inputs.
    """
    model = read_model(bundle.onnx)
    if random := random_nodes_of(model):
        raise Unsupported(f"the graph draws random numbers, at {random[0].name}")
    if unknown := unsupported_nodes(model):
        raise Unsupported(f"the reference evaluator does not have the operator of {unknown[0][0]}")
    feeds, described = sample_feeds(bundle, 1, 0)
    truth = _stored(_evaluated(program, feeds), precision_of(model))
    results = _compared(bundle, feeds, truth)
    if not all(result.passed for result in results.values()):
        results = _compared(bundle, feeds, find_truth(program_source(program, model), feeds, truth.precision))
    largest = max((result.error_ratio for result in results.values()), default=0.0)
    return ProgramVerdict(
        passed=all(result.passed for result in results.values()),
        relus=len(results.keys() & {relu.output for relu in relus}),
        outputs=len(results.keys() & {spec.name for spec in bundle.outputs}),
        error_ratio=float(f"{largest:.3g}") if np.isfinite(largest) else None,
        first_divergence=next((name for name, result in results.items() if not result.passed), None),
        inputs={**described, "shapes": {name: list(array.shape) for name, array in feeds.items()}},
        files=_hashes(bundle),
        made_by={"relu_deploy": __version__, "torch": version("torch")},
    )


def _hashes(bundle: Bundle) -> dict[str, str]:
    """Return the hashes of the graph, of its external weights, whose names start with its own, and of the program."""
    files = bundle.manifest["files"]
    return {name: facts["sha256"] for name, facts in files.items() if name == SOURCE or name.startswith(MODEL)}


def _evaluated(program: TruthSession, feeds: Feeds) -> Feeds:
    """Return the outputs and Relus of the program in float64."""
    try:
        return arrays_of(program.evaluate(feeds))
    except ReluDeployError:
        raise
    except Exception as error:  # torch raises any exception for an operator that has no kernel for float64
        line = str(error).strip().splitlines()[:1]
        raise Unsupported(f"PyTorch cannot evaluate the program in float64: {''.join(line)[:200]}") from error


def _stored(values: Feeds, precision: str) -> Truth:
    """Return a truth whose noise is the rounding of storage alone, which no other estimate is below."""

    def noise(value: Array) -> float:
        return estimate_noise_floor(value, precision=precision) if value.dtype.kind == "f" else 0.0

    return Truth("torch", values, {name: noise(value) for name, value in values.items()}, precision)


def _compared(bundle: Bundle, feeds: Feeds, truth: Truth) -> dict[str, Comparison]:
    """Return the verdict on each tensor of the truth, in the order in which the graph computes them."""
    results: dict[str, Comparison] = {}

    def judge(name: str, value: Any) -> Any:
        if name in truth.values and isinstance(value, np.ndarray):
            limit, undecided = LIMITS[truth.precision], truth.undecided.get(name)
            results[name] = compare(value, truth.values[name], truth.noise_floor[name], limit, undecided)
        return value

    with closing(cast(TruthSession, load(bundle, "reference"))) as session:
        outputs = arrays_of(session.evaluate(feeds, seen=judge))
    # An output that is an input, a constant or an element of a sequence is not the result of a node.
    for name in truth.values.keys() & outputs.keys() - results.keys():
        judge(name, outputs[name])
    return results
