"""The truth and the yardstick: the same Relus and outputs from PyTorch's program or from an ONNX graph, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from relu_deploy.backends import load
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph import Relu, find_relus, load_model
from relu_deploy.tensors import Array, Feeds
from relu_deploy.verify.verdict import yardstick_error

__all__ = ["Truth", "choose_against", "find_truth"]


@dataclass(frozen=True)
class Truth:
    """values: float64 by tensor name, outputs and Relus. yardstick: RMS error of correct float32, by the same names."""

    against: str
    values: Mapping[str, Array]
    yardstick: Mapping[str, float]


def choose_against(bundle: Bundle, against: str | None) -> str:
    """Return what to hold `bundle` against: as asked, else PyTorch's program where it travels along, else the graph itself."""
    if against is not None:
        return against
    if bundle.source is None:
        return "reference"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "reference"
    return "torch"


def find_truth(bundle: Bundle, against: str, relus: Sequence[Relu], feeds: Feeds, threads: int = 0) -> Truth:
    """Return the truth for `feeds`: every output of `bundle` and every Relu of `relus`, under this bundle's names.

    against: "torch", "reference", or the path of another bundle or ONNX file with the same inputs and outputs, whose
    Relus are taken in order. Raises InputError or UsageError when there is nothing to compare with.
    """
    if against in ("torch", "reference"):
        if against == "torch" and bundle.source is None:
            raise UsageError(
                f"{bundle.path} carries no PyTorch program to compare with",
                "verify --against reference, or export it from PyTorch",
            )
        runner, names = bundle, None
        taps = tuple(relu for relu in relus if against == "reference" or relu.torch_node)
    else:
        runner, taps, names = _other(bundle, Path(against), relus)
    evaluations = []
    for options in ({"precision": "float64"}, {"precision": "float64", "rounding_seed": 0}, {}):
        backend = "torch" if against == "torch" else "reference"
        session = load(runner, backend, taps=taps, threads=threads, **options)
        results = session.run(feeds)
        session.close()
        evaluations.append({names[name]: value for name, value in results.items()} if names else results)
    true, *others = evaluations
    yardstick = {name: yardstick_error(value, *(other[name] for other in others)) for name, value in true.items()}
    return Truth(against, true, yardstick)


def _other(bundle: Bundle, path: Path, relus: Sequence[Relu]) -> tuple[Bundle, tuple[Relu, ...], dict[str, str]]:
    """Return the other model, its Relus, and for each of its tensors the name of ours that it stands for."""
    if path.suffix != ".onnx" and not path.is_dir():
        raise UsageError(
            f"cannot verify against {str(path)!r}", "one of: torch, reference, or the path of an .onnx file or bundle"
        )
    other = Bundle.open(path)
    if [spec.name for spec in other.inputs] != [spec.name for spec in bundle.inputs]:
        raise InputError(f"{path} has other inputs than {bundle.path}", "compare models with the same input names")
    if len(other.outputs) != len(bundle.outputs):
        raise InputError(
            f"{path} has {len(other.outputs)} outputs, {bundle.path} has {len(bundle.outputs)}", "compare like with like"
        )
    theirs = find_relus(load_model(other.onnx))
    names = dict(zip((spec.name for spec in other.outputs), (spec.name for spec in bundle.outputs), strict=True))
    if len(theirs) != len(relus):
        # Without a one-to-one match only the outputs can be compared; the report says so.
        return other, (), names
    return other, tuple(theirs), names | {them.output: us.output for them, us in zip(theirs, relus, strict=True)}
