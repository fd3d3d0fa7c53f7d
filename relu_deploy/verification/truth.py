"""The truth and the noise floor: the same Relus and outputs from PyTorch's program or from an ONNX graph, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from relu_deploy.backends import load
from relu_deploy.backends.base import Rounding, Seen, TruthSession
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph import TORCH_NODE_KEY, Relu, clamped_tensors, find_relus, load_model
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verification.verdict import SINGLE, estimate_noise_floor

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Source", "Truth", "choose_against", "find_truth", "open_source", "relus_to_compare"]


@dataclass(frozen=True)
class Truth:
    """values: float64 by tensor name, outputs and Relus. noise floor: RMS error of correct arithmetic, by the same names.

    single: what correct arithmetic may leave a single element off by, of a shape that broadcasts to the tensor: by channel, as
    rounding one channel's weights may be many times as noisy as rounding another's.
    """

    against: str
    values: Mapping[str, Array]
    noise_floor: Mapping[str, float]
    precision: str = "float32"
    single: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where the truth comes from, loaded.

    names: its outputs and taps → ours, where they differ. inner: what it computes on the way → the tensor of ours that it
    stands for.
    """

    session: TruthSession
    names: Mapping[str, str]
    inner: Mapping[str, str]

    def everything(self, feeds: Feeds) -> dict[str, Array]:
        """Return every tensor that stands for one of ours, in float64, under our names."""
        values: dict[str, Array] = {}

        def keep(name: str, value: Array) -> Array:
            if name in self.inner:
                values[self.inner[name]] = value
            return value

        results = self.session.evaluate(feeds, seen=cast(Seen, keep))
        return values | {self.names.get(name, name): value for name, value in results.items()}


def choose_against(bundle: Bundle, against: str | None) -> str:
    """Return what to hold `bundle` against: as asked, else PyTorch's program where it travels along, else the graph itself.

    A variant is held against the float32 graph that it was made of.
    """
    if against is not None:
        return against
    if bundle.variant:
        return str(bundle.file(bundle.manifest["variants"][bundle.variant]["checked_against"]))
    if bundle.source is None:
        return "reference"
    return "torch" if find_spec("torch") else "reference"


def relus_to_compare(model: ir.Model, against: str) -> list[Relu]:
    """Return the Relus of `model`, and what stands in the place of the other graph's: tensors that a Relu makes there.

    The second kind is what a rewrite merged (FusedConv, a quantization whose zero point is the Relu) or a fault replaced
    (LeakyRelu). In the graph's order.
    """
    mine = find_relus(model)
    if against in ("torch", "reference"):
        return mine
    made = {str(value.name): (place, node) for place, node in enumerate(model.graph) for value in node.outputs}
    known = {relu.output for relu in mine}
    replaced = [relu for relu in find_relus(load_model(_graph_file(against))) if relu.output in made and relu.output not in known]
    clamped = clamped_tensors(model)
    stand_ins = [
        replace(
            relu, node=str(made[relu.output][1].name), output=clamped.get(relu.output, relu.output), torch_node="", fused_with=()
        )
        for relu in replaced
    ]
    # A Relu that nothing but a quantization reads ships merged into it: it is seen where the numbers come back.
    mine = [replace(relu, output=clamped.get(relu.output, relu.output)) for relu in mine]
    ordered = sorted([*mine, *stand_ins], key=lambda relu: made[relu.output][0])
    return [replace(relu, index=index) for index, relu in enumerate(ordered)]


def open_source(bundle: Bundle, against: str, relus: Sequence[Relu], threads: int = 0) -> Source:
    """Return what the truth comes from: "torch", "reference", or the path of another bundle or ONNX file.

    That one must have the same inputs and as many outputs, which are taken in order; its inner tensors are those of the
    same name, and its Relus, where none has the name of one of ours and there are as many, are taken in order.
    Raises InputError or UsageError when there is nothing to compare with.
    """
    if against == "torch":
        if bundle.source is None:
            raise UsageError(
                f"{bundle.path} carries no PyTorch program to compare with",
                "verify --against reference, or export it from PyTorch",
            )
        session = load(bundle, "torch", taps=tuple(relu for relu in relus if relu.torch_node), threads=threads)
        nodes = {
            node.metadata_props[TORCH_NODE_KEY]: node
            for node in load_model(bundle.onnx).graph
            if TORCH_NODE_KEY in node.metadata_props
        }
        return Source(cast(TruthSession, session), {}, {name: str(node.outputs[0].name) for name, node in nodes.items()})
    if against == "reference":
        session = load(bundle, "reference", taps=tuple(relus), threads=threads)
        return Source(cast(TruthSession, session), {}, {})
    other = _other(bundle, Path(against))
    theirs = find_relus(load_model(other.onnx))
    made = {str(value.name) for node in load_model(other.onnx).graph for value in node.outputs}
    graph = load_model(bundle.onnx)
    ours = {str(value.name) for node in graph.graph for value in node.outputs}
    inner = {name: name for name in made & ours}
    mine = {relu.output for relu in relus}
    clamped = clamped_tensors(graph)
    if not mine & {clamped.get(name, name) for name in inner} and len(theirs) == len(relus):
        inner |= {them.output: us.output for them, us in zip(theirs, relus, strict=True)}
    inner |= dict(zip((spec.name for spec in other.outputs), (spec.name for spec in bundle.outputs), strict=True))
    # Where a quantization is the Relu, the tensor behind it is what has the Relu's values.
    names = {theirs_name: clamped.get(name, name) for theirs_name, name in inner.items()}
    taps = tuple(relu for relu in theirs if names.get(relu.output) in mine)
    return Source(cast(TruthSession, load(other, "reference", taps=taps, threads=threads)), names, inner)


def find_truth(source: Source, against: str, feeds: Feeds, precision: str = "float32") -> Truth:
    """Return the truth for `feeds`: every output and every Relu that `source` knows, under our names.

    precision: of the graph under test, whose rounding the noise floor is made of.
    """
    session = source.session
    evaluations = [
        session.evaluate(feeds),
        session.evaluate(feeds, rounding=Rounding(precision)),
        session.evaluate(feeds, wide=False),
    ]
    true, *others = ({source.names.get(name, name): value for name, value in results.items()} for results in evaluations)
    noise_floor = {
        name: estimate_noise_floor(value, *(other[name] for other in others), precision=precision) for name, value in true.items()
    }
    single = {
        name: _single_noise(value, *(other[name] for other in others))
        for name, value in true.items()
        if value.ndim > 2 and np.issubdtype(value.dtype, np.floating)
    }
    return Truth(against, true, noise_floor, precision, single)


def _single_noise(truth: Array, *evaluations: Array) -> Array:
    """Return how far off `evaluations` leave single elements of each channel (axis 1): the largest of three.

    `SINGLE` RMS errors of the channel's elements that have an error at all, because most of a sparse Relu's are 0 on every side
    and say nothing about the others; as much of all channels; and the channel's largest error, because some noise has long
    tails: along the edges in a picture 8 bits are much further off than on the even ground that fills most of it.
    """
    axes = tuple(axis for axis in range(truth.ndim) if axis != 1)
    noise = np.zeros((1, truth.shape[1], *(1,) * (truth.ndim - 2)))
    for one in evaluations:
        with np.errstate(over="ignore", invalid="ignore"):
            square = np.nan_to_num(np.square(one.astype(np.float64) - truth), nan=0.0, posinf=0.0)
        active = np.count_nonzero(square, axis=axes, keepdims=True)
        sums = square.sum(axis=axes, keepdims=True)
        mean = np.maximum(sums / np.maximum(active, 1), sums.sum() / max(1, active.sum()))
        noise = np.maximum(noise, np.sqrt(np.maximum(SINGLE**2 * mean, square.max(axis=axes, keepdims=True, initial=0))))
    return noise


def _graph_file(against: str) -> Path:
    path = Path(against)
    if path.suffix != ".onnx" and not path.is_dir():
        raise UsageError(f"cannot verify against {against!r}", "one of: torch, reference, or the path of an .onnx file or bundle")
    return Bundle.open(path).onnx


def _other(bundle: Bundle, path: Path) -> Bundle:
    other = Bundle.open(path)
    if [spec.name for spec in other.inputs] != [spec.name for spec in bundle.inputs]:
        raise InputError(f"{path} has other inputs than {bundle.path}", "compare models with the same input names")
    if len(other.outputs) != len(bundle.outputs):
        raise InputError(
            f"{path} has {len(other.outputs)} outputs, {bundle.path} has {len(bundle.outputs)}", "compare like with like"
        )
    return other
