"""The layers of a TensorRT engine, as its inspector lists them, and the tensors that it shows while it runs.

A layer of an engine is one kernel. It stands for several nodes of the ONNX graph, which its metadata names one after the
other, and the tensors between the nodes inside it are never written to memory:

    {"Name": "c1/Conv + c1/Relu", "LayerType": "CaskConvolution", "Metadata": "[ONNX Layer: c1/Conv]\\x1f[ONNX Layer: c1/Relu]",
     "Inputs": [{"Name": "x", "Dimensions": [1,3,8,8], "Format/Datatype": "Row major linear FP32"}], "Outputs": [...], ...}

TensorRT 10 has `Format/Datatype` and `Bindings`, TensorRT 11 has `Format`, `DataType` and `I/O Tensors`. Inside Myelin, its
own compiler, tensors have internal names (`__myln_k_arg__bb1_3`) that later layers use again, and a type without a format.
Nothing here imports a runtime: the sessions of the backend are passed in (`InspectedEngine`, `ObservedEngine`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from relu_deploy.backends.base import Captured
from relu_deploy.backends.tensorrt.formats import DTYPES, format_of
from relu_deploy.errors import Unsupported
from relu_deploy.tensors import Feeds

__all__ = [
    "Captured",
    "EngineDifference",
    "EngineLayer",
    "EngineTensor",
    "InspectedEngine",
    "ObservedEngine",
    "compare_layers",
    "dtype_in",
    "read_layers",
]

#: one node in a layer's metadata; nodes are separated by a unit separator, groups of them by a record separator, or by nothing
NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|\[ONNX Layer: |\s*$)", re.DOTALL)
#: the suffix that Myelin adds to a layer's name: its group and place, which a layer inserted before it changes
PLACE = re.compile(r"_myl\d+_\d+$")
COPIES = ("copy", "noop", "reformat")
#: layers that keep streams in step and hold no tensor
BARRIERS = ("signal", "wait")
#: the suffix of the names of layers of an optimization profile other than the first
PROFILE = re.compile(r"\[profile +\d+\]")


@dataclass(frozen=True)
class EngineTensor:
    """A tensor as a layer reads or writes it. dims: -1 where it varies. format: As the inspector writes it, with or without the type."""

    name: str
    dims: tuple[int, ...]
    format: str
    dtype: str


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine: one kernel. nodes: The nodes of the ONNX graph that it computes. tactic: The name of the kernel."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    tactic: str = ""

    @property
    def is_copy(self) -> bool:
        """Return whether it computes nothing: one tensor is written again, of the same type, in another format."""
        if self.nodes or len(self.inputs) != 1 or len(self.outputs) != 1 or self.kind.lower() not in COPIES:
            return False
        return self.inputs[0].dtype == self.outputs[0].dtype


class InspectedEngine(Protocol):
    """An engine that is loaded, and was built with detailed profiling verbosity."""

    def inspect(self) -> str:
        """Return the inspector's JSON for the whole engine, at the shapes of the last run."""
        ...

    def run(self, feeds: Mapping[str, Any]) -> Feeds:
        """Return every output for `feeds`."""
        ...


class ObservedEngine(InspectedEngine, Protocol):
    """An engine that was built with `BuildOptions.observable`, with a listener for the tensors that it writes."""

    def capture(self, feeds: Mapping[str, Any]) -> Sequence[Captured]:
        """Return every tensor that one run on `feeds` writes, in its order."""
        ...


def dtype_in(text: str) -> str:
    """Return the element type that `text` names, "" for an unknown one."""
    return next((dtype for dtype, words in DTYPES.items() if re.search(rf"\bk?(?:{words})\b", text, re.IGNORECASE)), "")


def read_layers(text: str, engine: str) -> tuple[EngineLayer, ...]:
    """Return the layers of the first optimization profile, in the order in which they run.

    Args:
        text: The inspector's JSON.
        engine: What to call the engine in an error.

    Raises:
        Unsupported: If `text` is not a list of layers, or one of names only.
    """
    try:
        # Separators are not escaped in the metadata, which strict JSON forbids.
        listed = json.loads(text, strict=False)["Layers"]
        names_only = any(isinstance(layer, str) for layer in listed)
        if not names_only:
            layers = (_layer(layer) for layer in listed if not PROFILE.search(layer["Name"]))
            return tuple(layer for layer in layers if layer.kind.lower() not in BARRIERS)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"the inspector of {engine} returned no list of layers that can be read: {type(error).__name__}: {error}"
        raise Unsupported(message, "verify it with a version of TensorRT that this package knows: 10 or 11") from error
    raise Unsupported(
        f"{engine} lists only the names of its layers: it was built without detailed profiling verbosity",
        "build it again with relu-deploy compile --rebuild",
    )


def _layer(fields: Mapping[str, Any]) -> EngineLayer:
    return EngineLayer(
        fields["Name"],
        fields.get("LayerType", ""),
        tuple(dict.fromkeys(NODE.findall(fields.get("Metadata") or ""))),
        tuple(map(_tensor, fields.get("Inputs", ()))),
        tuple(map(_tensor, fields.get("Outputs", ()))),
        fields.get("TacticName", ""),
    )


def _tensor(fields: Mapping[str, Any]) -> EngineTensor:
    layout = format_of(fields)
    stated = str(fields.get("DataType") or fields.get("Datatype") or "")
    return EngineTensor(
        fields["Name"], tuple(map(int, fields.get("Dimensions", ()))), layout or stated, dtype_in(stated) or dtype_in(layout)
    )


@dataclass(frozen=True)
class EngineDifference:
    """How the layers of the observed engine differ from those of the engine that ships.

    Attributes:
        shipping, observed: Layers that only one of them has.
        kernels: Layers for which another kernel was chosen.
        copies: Layers that only write a tensor again and that one of them has more often; they change no number.
    """

    shipping: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()

    @property
    def is_same(self) -> bool:
        return not (self.shipping or self.observed or self.kernels)

    def to_json(self) -> dict[str, Any]:
        return {
            "same_layers": self.is_same,
            "only_shipping": list(self.shipping),
            "only_observed": list(self.observed),
            "other_kernels": list(self.kernels),
            "copies": list(self.copies),
        }


def compare_layers(shipping: Iterable[EngineLayer], observed: Iterable[EngineLayer]) -> EngineDifference:
    """Return how the layers of two engines of one graph differ: by name and nodes, in any order."""
    theirs, ours = list(shipping), list(observed)
    mine, others = (Counter(_identity(layer) for layer in layers if not layer.is_copy) for layers in (ours, theirs))
    kernels = {_identity(layer): layer.tactic for layer in theirs if not layer.is_copy}
    changed = [layer.name for layer in ours if kernels.get(_identity(layer), layer.tactic) != layer.tactic]
    copies = (Counter(layer.name for layer in layers if layer.is_copy) for layers in (ours, theirs))
    more, fewer = copies
    return EngineDifference(
        tuple(name for name, _ in (others - mine).elements()),
        tuple(name for name, _ in (mine - others).elements()),
        tuple(changed),
        tuple(sorted([*(more - fewer).elements(), *(fewer - more).elements()])),
    )


def _identity(layer: EngineLayer) -> tuple[str, frozenset[str]]:
    return PLACE.sub("", layer.name), frozenset(layer.nodes)
