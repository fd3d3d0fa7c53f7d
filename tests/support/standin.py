"""What stands in for an engine where there is no GPU: an ONNX graph run piece by piece, each piece being one "kernel".

The pieces are the fusions that TensorRT makes: a Conv or Gemm with the Add, Relu, Clip and QuantizeLinear behind it, and the
DequantizeLinears before it. ONNX Runtime runs each from what the pieces before it gave; what lies inside a piece is seen by
nobody. The layers are told in the inspector's own form, of TensorRT 10 or 11, with the graph's tensor names or Myelin's.
"""

import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto
from onnx_ir.passes.common import ShapeInferencePass

from relu_deploy.graph import extract_subgraph, load_model, save_model
from relu_deploy.verification.engine.layers import Captured

FOLLOWERS = ("Add", "Clip", "QuantizeLinear", "Relu")
HEADS = ("Conv", "Gemm", "MatMul")
TYPES = {
    "float32": ("Float", "FP32"),
    "float16": ("Half", "FP16"),
    "int8": ("Int8", "Int8"),
    "float8_e4m3fn": ("FP8", "FP8"),
}
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass
class Piece:
    nodes: list
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    session: object = None


def pieces_of(model):
    """Return the pieces in the graph's order; a DequantizeLinear is a part of every piece that reads it."""
    piece_of, pieces = {}, []
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            continue
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        sources = [value.producer() for value in node.inputs if value is not None and value.producer() is not None]
        alone = [one for one in sources if one in piece_of and len(one.outputs[0].consumers()) == 1 and is_headed(piece_of[one])]
        if node.op_type in FOLLOWERS and alone and not (node.op_type == "QuantizeLinear" and source not in alone):
            # At a residual Add the last of the two branches takes it in.
            piece = max((piece_of[one] for one in alone), key=pieces.index)
            piece.nodes.append(node)
        else:
            piece = Piece([node])
            pieces.append(piece)
        piece_of[node] = piece
    for piece in pieces:
        before = dict.fromkeys(value.producer() for node in piece.nodes for value in node.inputs if value is not None)
        piece.nodes = [node for node in before if node is not None and node.op_type == "DequantizeLinear"] + piece.nodes
    return sorted(pieces, key=lambda piece: list(model.graph).index(piece.nodes[-1]))


def is_headed(piece):
    return any(node.op_type in HEADS for node in piece.nodes)


class StandIn:
    """An engine of the graph in a file.

    fault: called with a piece's node names and its results by tensor, changes them. names: "onnx" or "myelin". version: of the
    inspector's form. drop: tensors that are not shown. formats: tensor → format it is stored in. copies: tensors that a
    Reformat layer writes again before they are read. tactic: what the names of its kernels begin with. unnamed: operators that
    the metadata leaves out. level: how far ONNX Runtime may rewrite a piece.
    """

    def __init__(
        self, path, *, fault=None, names="onnx", version=10, drop=(), formats=None, copies=(), tactic="k", unnamed=(), level="ALL"
    ):
        self.model = ShapeInferencePass()(load_model(Path(path))).model
        self.fault, self.names, self.version, self.tactic = fault, names, version, tactic
        self.drop, self.formats, self.copies, self.unnamed = set(drop), formats or {}, set(copies), unnamed
        self.level = f"ORT_ENABLE_{level}"
        self.pieces = pieces_of(self.model)
        self.inputs = [value.name for value in self.model.graph.inputs]
        self.outputs = [value.name for value in self.model.graph.outputs]
        self._prepare()
        self.shapes = {}

    def _prepare(self):
        home = {node: index for index, piece in enumerate(self.pieces) for node in piece.nodes}
        counted = Counter(node for piece in self.pieces for node in piece.nodes)
        for index, piece in enumerate(self.pieces):
            inside = set(piece.nodes)
            piece.outputs = [
                value.name
                for node in piece.nodes
                if counted[node] == 1
                for value in node.outputs
                if value.is_graph_output()
                or any(home[one] != index or counted[one] > 1 or one not in inside for one in value.consumers())
            ]
        for piece in self.pieces:
            before = [name for other in self.pieces if other is not piece for name in other.outputs]
            part = extract_subgraph(self.model, [*before, *self.inputs], piece.outputs)
            with tempfile.TemporaryDirectory() as folder:
                save_model(part, Path(folder) / "piece.onnx")
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = 1
                options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, self.level)
                piece.session = onnxruntime.InferenceSession(Path(folder) / "piece.onnx", options, ["CPUExecutionProvider"])
            piece.inputs = [one.name for one in piece.session.get_inputs()]

    def _execute(self, feeds):
        values = dict(feeds)
        for piece in self.pieces:
            given = piece.session.run(piece.outputs, {name: for_onnxruntime(values[name]) for name in piece.inputs})
            results = {name: self._of_its_type(name, array) for name, array in zip(piece.outputs, given, strict=True)}
            if self.fault:
                self.fault([node.name for node in piece.nodes], results)
            values |= results
        self.shapes = {name: array.shape for name, array in values.items()}
        self.dtypes = {name: array.dtype.name for name, array in values.items()}
        return values

    def _of_its_type(self, name, array):
        """Return what ONNX Runtime gave in the graph's type: NumPy has no float8, so it gives bytes."""
        value = next(value for node in self.model.graph for value in node.outputs if value.name == name)
        return array.view(FLOAT8) if value.dtype is not None and value.dtype.name == "FLOAT8E4M3FN" else array

    def run(self, feeds):
        values = self._execute(feeds)
        results = {name: values[name].copy() for name in self.outputs}
        for name in self.copies & results.keys():
            if self.fault:
                self.fault(["copy of " + name], {name: results[name]})
        return results

    def capture(self, feeds):
        values = self._execute(feeds)
        captured = []
        for piece in self.pieces:
            for name in piece.outputs:
                if name not in self.drop:
                    data, shape = stored(values[name], self.formats.get(name, "")), values[name].shape
                    captured.append(Captured(self.called(name), data, values[name].dtype.name.removesuffix("_e4m3fn"), shape))
                if name in self.copies:
                    again = values[name].copy()
                    if self.fault:
                        self.fault(["copy of " + name], {name: again})
                    if name not in self.outputs:
                        captured.append(Captured(f"Reformatted {name}", again, again.dtype.name, again.shape))
        return captured

    def called(self, name):
        """Return what the engine calls a tensor: Myelin gives a name again once everybody has read what had it."""
        if name in self.outputs and name in self.copies:
            return f"Reformatted Output Tensor of {name}"
        if self.names == "onnx" or name in self.inputs or name in self.outputs:
            return name
        last = {name: place for place, piece in enumerate(self.pieces) for name in piece.inputs}
        held = {}
        for place, piece in enumerate(self.pieces):
            held = {number: one for number, one in held.items() if last.get(one, -1) >= place}
            for one in piece.outputs:
                number = next(number for number in range(len(held) + 1) if number not in held)
                held[number] = one
                if one == name:
                    return f"__myln_k_arg__bb1_{number}"
        raise KeyError(name)

    def inspect(self):
        assert self.shapes, "run it first: the inspector tells the shapes of the context"
        layers = []
        for index, piece in enumerate(self.pieces):
            names = [node.name for node in piece.nodes]
            copied = [name for name in piece.inputs if name in self.copies]
            layers += [
                self._copy(name)
                for name in copied
                if not any(each["Name"] == f"Reformatting CopyNode for {name}" for each in layers)
            ]
            layers.append(
                {
                    "Name": " + ".join(names) if self.names == "onnx" else f"__myl_{piece.nodes[-1].op_type}_myl0_{index}",
                    "LayerType": "CaskConvolution" if self.names == "onnx" else "kgen",
                    "Inputs": [self._tensor(name, name in self.copies) for name in piece.inputs],
                    "Outputs": [self._tensor(name) for name in piece.outputs],
                    "TacticName": f"{self.tactic}{index}",
                    "StreamId": 0,
                    "Metadata": ("\x1f" if index % 2 else "\x1e").join(
                        f"[ONNX Layer: {node.name}]" for node in piece.nodes if node.op_type not in self.unnamed
                    ),
                }
            )
        layers += [self._copy(name) for name in self.outputs if name in self.copies]
        ends = {"Bindings": [*self.inputs, *self.outputs]}
        if self.version >= 11:
            ends = {"I/O Tensors": [{"Name": name} for name in (*self.inputs, *self.outputs)]}
        return json.dumps({"Layers": layers, **ends}).replace("\\u001f", "\x1f").replace("\\u001e", "\x1e")

    def _copy(self, name):
        layer = {
            "Name": f"Reformatting CopyNode for {name}",
            "LayerType": "Reformat",
            "ParameterType": "Reformat",
            "Metadata": "",
        }
        return {**layer, "Inputs": [self._tensor(name)], "Outputs": [self._tensor(name, True)], "TacticValue": "0x0"}

    def _tensor(self, name, copy=False):
        bare, short = TYPES.get(self.dtypes[name], ("Int32", "Int32"))
        layout = self.formats.get(name, "") if not copy else ""
        words = layout or (bare if self.names == "myelin" else f"Row major linear {short}")
        reported = {"Format/Datatype": words}
        if self.version >= 11:
            reported = {"DataType": bare, **({} if words == bare else {"Format": layout or f"{words} format (kLINEAR)"})}
        return {
            "Name": self.called(name) if not copy else name if name in self.outputs else f"Reformatted {name}",
            "Location": "Device",
            "Dimensions": list(self.shapes[name]),
            **reported,
        }


def for_onnxruntime(array):
    if array.dtype != FLOAT8:
        return array
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint8), TensorProto.FLOAT8E4M3FN)


def stored(array, layout):
    """Return the buffer of `array` in a format that is not linear, or the array."""
    if "channel major" in layout.lower():
        batch, channels, height, width = array.shape
        padded = np.zeros((batch, height, width, -(-channels // 8) * 8), array.dtype)
        padded[..., :channels] = np.moveaxis(array, 1, -1)
        return padded.tobytes()
    if "wide channel" in layout.lower():
        batch, channels, height, width = array.shape
        padded = np.zeros((batch, -(-channels // 32) * 32, height, width), array.dtype)
        padded[:, :channels] = array
        return np.moveaxis(padded.reshape(batch, -1, 32, height, width), 2, -1).tobytes()
    return array
