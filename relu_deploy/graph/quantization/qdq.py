"""Insert the Q/DQ pairs that `qdq_placement.place_qdq` chose, with scales from the tensors' ranges.

    uint8     asymmetric   scale = (high - low) / 255, zero point = round(-low / scale): 0 behind a Relu, all 255 steps
    int8      symmetric    scale = max(|low|, |high|) / 127, zero point 0
    float8    symmetric    scale = max(|low|, |high|) / 448, the largest number of E4M3
    weights   symmetric, to 127 (or 63 where a CPU adds up pairs of products in 16 bits), of each output channel or of the tensor

Biases stay float32, but for one: ONNX Runtime computes a Gemm that gives float in 8 bits only when its bias is stored as int32,
in steps of the product of both scales. Quantized weights have a mean error in each output channel, which the inputs' means turn into an offset;
it is taken out of the bias (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019,
section 4.2): b - sum_k (W_quantized - W)[k] E[x_k].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from relu_deploy.graph.quantization.qdq_placement import QdqPlacement
from relu_deploy.graph.quantization.shared_scales import shared_ranges
from relu_deploy.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["SCHEMES", "Scheme", "quantize", "quantized_weights", "scale_and_zero"]

#: the least scale: products of two scales stay normal float32 numbers
TINY = 2.0**-60
#: the scale of a tensor that was always 0: any number represents it
SCALE_OF_ZERO = 1 / 255
#: most steps of the product of both scales that a bias may take, of the 2^31 of an int32; the rest is for its correction
BIAS_STEPS = 2**30


@dataclass(frozen=True)
class Scheme:
    """How numbers are stored. activation, weight: "uint8", "int8" or "float8". levels: largest stored weight.

    per_channel: whether each output channel of the weights has a scale of its own. signed: how activations are stored that may be
    negative, "" for the same as others.
    """

    activation: str
    weight: str
    levels: int
    per_channel: bool = True
    signed: str = ""

    def kind(self, low: float) -> str:
        """Return how activations are stored whose least number is `low`."""
        return self.signed if self.signed and low < 0 else self.activation


#: by placement and precision. OpenVINO fuses an Add into the Conv before it only if no zero point has to be subtracted in between.
SCHEMES = {
    ("cpu", "int8"): Scheme("uint8", "int8", 127),
    ("openvino", "int8"): Scheme("uint8", "int8", 127, signed="int8"),
    ("tensorrt", "int8"): Scheme("int8", "int8", 127),
    ("tensorrt", "float8"): Scheme("float8", "float8", 448),
}
_STORED: dict[str, Any] = {"uint8": np.uint8, "int8": np.int8, "float8": ml_dtypes.float8_e4m3fn}
#: operator → the axis of its weights along which output channels lie
_OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def scale_and_zero(low: float, high: float, stored: str) -> tuple[float, int]:
    """Return scale and zero point for numbers from `low` to `high`, which are widened to contain 0. stored: as in `Scheme`."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return SCALE_OF_ZERO, 0
    if stored == "uint8":
        scale = max((high - low) / 255, TINY)
        return scale, int(np.clip(np.round(-low / scale), 0, 255))
    return max(max(-low, high) / (127 if stored == "int8" else 448), TINY), 0


def quantized_weights(weights: Array, axis: int | None, scheme: Scheme, least: Array | float = 0.0) -> tuple[Array, Array]:
    """Return `weights` as stored, and their scales.

    Args:
        weights: Float32, any rank.
        axis: Axis of the output channels; None for one scale for the whole tensor.
        scheme: How numbers are stored.
        least: Smallest scale of each channel, (C,), or of all. A channel whose weights are too small for it keeps fewer steps.

    Returns:
        The stored weights, and the float32 scales: (C,) along `axis`, or () for the whole tensor.
    """
    others = None if axis is None else tuple(one for one in range(weights.ndim) if one != axis)
    largest = np.max(np.abs(weights), axis=others, keepdims=True)
    smallest = np.max(least, initial=0.0) if axis is None else np.asarray(least, np.float64)
    if axis is not None and smallest.ndim:
        smallest = smallest.reshape([-1 if one == axis else 1 for one in range(weights.ndim)])
    # A channel without weights takes the tensor's largest scale: its zeros are exact with any.
    own = np.where(largest > 0, largest, largest.max(initial=0.0) or scheme.levels * SCALE_OF_ZERO).astype(np.float64)
    scale = np.maximum(own / scheme.levels, np.maximum(smallest, TINY)).astype(np.float32)
    shares = np.clip(weights.astype(np.float64) / scale, -scheme.levels, scheme.levels)
    stored = np.round(shares) if scheme.weight == "int8" else shares
    return stored.astype(_STORED[scheme.weight]), scale.reshape(()) if axis is None else scale.reshape(-1)


def quantize(
    model: ir.Model,
    placement: QdqPlacement,
    ranges: Mapping[str, tuple[float, float]],
    scheme: Scheme,
    means: Mapping[str, Array] | None = None,
) -> ir.Model:
    """Return a new model in which what `placement` says is quantized.

    ranges: (low, high) by tensor. means: of each channel (C,) by tensor, to correct biases with; None leaves them alone.
    Raises KeyError when a tensor that is to be quantized has no range.
    """
    quantized = model.clone()
    nodes = {str(node.name): node for node in quantized.graph}
    ranges = shared_ranges(ranges, placement.moved, placement.joined)
    for name in placement.nodes:
        node = nodes[name]
        if node.op_type in _OUTPUT_AXIS:
            source, result = str(node.inputs[0].name), str(node.outputs[0].name)  # type: ignore[union-attr]
            step = scale_and_zero(*ranges[source], scheme.kind(ranges[source][0]))[0]
            scale = _store_weights(quantized, node, scheme, means or {}, step)
            if scheme.activation == "uint8" and node.op_type == "Gemm" and result not in placement.results:
                _store_bias(quantized, node, step * scale)
    values = {str(value.name): value for node in quantized.graph for value in node.outputs}
    values |= {str(value.name): value for value in quantized.graph.inputs}
    readers: dict[str, list[tuple[ir.Node, int]]] = {}
    for name, position in sorted(placement.reads):
        readers.setdefault(str(nodes[name].inputs[position].name), []).append((nodes[name], position))  # type: ignore[union-attr]
    for name in values:
        if name in placement.results:
            _quantize_tensor(quantized, values[name], None, ranges[name], scheme)
        elif name in readers:
            _quantize_tensor(quantized, values[name], readers[name], ranges[name], scheme)
    return quantized


def _quantize_tensor(
    model: ir.Model, value: ir.Value, uses: list[tuple[ir.Node, int]] | None, span: tuple[float, float], scheme: Scheme
) -> None:
    """Put a Q/DQ pair behind `value` and let `uses` read it; with None every reader, and the graph's output if it is one."""
    import onnx_ir as ir

    kind = scheme.kind(span[0])
    scale, zero = scale_and_zero(*span, kind)
    name = str(value.name)
    parameters = [
        _constant(model, f"{name}/scale", np.asarray(scale, np.float32)),
        _constant(model, f"{name}/zero_point", np.asarray(zero).astype(_STORED[kind])),
    ]
    read = list(value.uses()) if uses is None else uses
    leaves = uses is None and value.is_graph_output()
    store = ir.node("QuantizeLinear", [value, *parameters], name=f"{name}/QuantizeLinear")
    load = ir.node("DequantizeLinear", [store.outputs[0], *parameters], name=f"{name}/DequantizeLinear")
    store.outputs[0].name, load.outputs[0].name = f"{name}/quantized", f"{name}/dequantized"
    store.outputs[0].type = ir.TensorType(parameters[1].const_value.dtype)  # type: ignore[union-attr]
    load.outputs[0].type, load.outputs[0].shape = value.type, value.shape
    store.outputs[0].shape = value.shape
    maker = value.producer()
    if maker is None:
        model.graph.insert_before(model.graph[0], [store, load])
    else:
        model.graph.insert_after(maker, [store, load])
    for node, position in read:
        node.replace_input_with(position, load.outputs[0])
    if leaves:
        # A graph output keeps its name.
        value.name, load.outputs[0].name = f"{name}/float", name
        outputs = model.graph.outputs
        for index in [index for index, one in enumerate(outputs) if one is value]:
            outputs[index] = load.outputs[0]


def _store_weights(model: ir.Model, node: ir.Node, scheme: Scheme, means: Mapping[str, Array], step: float) -> Array:
    """Replace the constant weights of `node` by 8-bit ones and a DequantizeLinear, and return their scales.

    step: scale of the node's input.
    """
    import onnx_ir as ir

    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    weights = value.const_value.numpy()
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int()
    axis = 0 if transposed else _OUTPUT_AXIS[node.op_type]
    if node.op_type == "ConvTranspose" and _groups(node) > 1:
        axis = None  # type: ignore[assignment]  # its output channels lie on two axes
    stored, scale = quantized_weights(weights, axis if scheme.per_channel else None, scheme, _least_scale(node, scheme, step))
    name = str(value.name)
    parameters = [
        _constant(model, f"{name}/quantized", stored),
        _constant(model, f"{name}/scale", scale),
        _constant(model, f"{name}/zero_point", np.zeros(scale.shape, _STORED[scheme.weight])),
    ]
    attributes = {"axis": axis} if scale.ndim else {}
    load = ir.node("DequantizeLinear", parameters, attributes, name=f"{node.name}/weights/DequantizeLinear")
    load.outputs[0].name = f"{node.name}/weights/dequantized"
    load.outputs[0].type, load.outputs[0].shape = value.type, value.shape
    model.graph.insert_before(node, [load])
    mean = means.get(str(node.inputs[0].name))  # type: ignore[union-attr]
    if mean is not None and node.op_type in ("Conv", "Gemm"):
        back = stored.astype(np.float64) * (scale.reshape(-1, *(1,) * (weights.ndim - 1)) if axis == 0 else scale)
        _correct_bias(model, node, back - weights, mean, bool(transposed))
    node.replace_input_with(1, load.outputs[0])
    _drop_unread(model, value)
    return scale


def _least_scale(node: ir.Node, scheme: Scheme, step: float) -> Array | float:
    """Return the smallest scale of each output channel with which the node's bias fits into an int32.

    Integer kernels store the bias in steps of the product of both scales. With a channel of tiny weights and a bias of 5 that
    product is so small that the bias overflows, and the runtime computes zeros.
    """
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if scheme.weight != "int8" or bias is None or bias.const_value is None:
        return 0.0
    numbers = np.abs(bias.const_value.numpy().astype(np.float64))
    return numbers.reshape(-1) / (step * BIAS_STEPS) if numbers.ndim <= 1 else float(numbers.max()) / (step * BIAS_STEPS)


def _store_bias(model: ir.Model, node: ir.Node, step: Array) -> None:
    """Replace the constant bias of the Gemm `node` by int32 ones, in steps of `step`, where they fit."""
    import onnx_ir as ir

    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.const_value is None:
        return
    numbers = bias.const_value.numpy()
    steps = np.maximum(np.broadcast_to(step, numbers.shape), TINY).astype(np.float32)
    counted = np.round(numbers.astype(np.float64) / steps)
    if np.abs(counted).max(initial=0) >= 2**31:
        return
    parameters = [
        _constant(model, f"{bias.name}/quantized", counted.astype(np.int32)),
        _constant(model, f"{bias.name}/scale", steps),
        _constant(model, f"{bias.name}/zero_point", np.zeros(numbers.shape, np.int32)),
    ]
    load = ir.node("DequantizeLinear", parameters, {"axis": 0}, name=f"{node.name}/bias/DequantizeLinear")
    load.outputs[0].name = f"{node.name}/bias/dequantized"
    load.outputs[0].type, load.outputs[0].shape = bias.type, bias.shape
    model.graph.insert_before(node, [load])
    node.replace_input_with(2, load.outputs[0])
    _drop_unread(model, bias)


def _correct_bias(model: ir.Model, node: ir.Node, error: Array, mean: Array, transposed: bool) -> None:
    """Subtract from `node`'s bias what `error` in its weights adds to the mean of each output channel."""
    if node.op_type == "Gemm":
        offset = (error if transposed else error.T) @ mean if len(mean) == error.shape[1 if transposed else 0] else None
    else:
        groups = _groups(node)
        # Where the kernel hangs over a padded border it meets fewer inputs: the offset is that of the inside.
        grouped = error.sum(axis=tuple(range(2, error.ndim))).reshape(groups, -1, error.shape[1])
        inputs = mean.reshape(groups, error.shape[1]) if len(mean) == groups * error.shape[1] else None
        offset = None if inputs is None else np.einsum("goi,gi->go", grouped, inputs).reshape(-1)
    if offset is None or not np.isfinite(offset).all():
        return
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const_value is None:
        return
    old = 0.0 if bias is None else bias.const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
    new = _constant(model, f"{node.name}/bias/corrected", (old - offset).astype(np.float32))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, new)
    if bias is not None:
        _drop_unread(model, bias)


def _drop_unread(model: ir.Model, value: ir.Value) -> None:
    """Remove the initializer `value` if nothing reads it any more and the graph does not return it."""
    if not value.uses() and not value.is_graph_output() and str(value.name) in model.graph.initializers:
        del model.graph.initializers[str(value.name)]


def _groups(node: ir.Node) -> int:
    return int(node.attributes["group"].as_int()) if "group" in node.attributes else 1


def _constant(model: ir.Model, name: str, array: Array) -> ir.Value:
    """Return a new initializer; where the name is taken (weights that two nodes share), the one that has it."""
    import onnx_ir as ir

    if name in model.graph.initializers:
        known = model.graph.initializers[name]
        if known.const_value is not None and np.array_equal(known.const_value.numpy(), array):
            return known
        return _constant(model, f"{name}/{len(model.graph.initializers)}", array)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    model.graph.register_initializer(value)
    return value
