"""Small quantized graphs, written as the exports of quantization-aware training write them."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

__all__ = ["brevitas_graph", "modelopt_graph", "pytorch_graph"]

node, value = helper.make_node, helper.make_tensor_value_info


class Writer:
    """Collects nodes and initializers."""

    def __init__(self):
        self.nodes, self.tensors, self.random = [], [], np.random.default_rng(7)

    def constant(self, name, array):
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weights(self, *shape):
        return (self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def pair(self, name, scale, zero, clip=None, axis=None):
        """Put a Q/DQ pair behind tensor `name` and return what the next node reads."""
        parameters = [self.constant(f"{name}.scale", np.float32(scale)), self.constant(f"{name}.zero", zero)]
        attributes = {} if axis is None else {"axis": axis}
        self.nodes.append(node("QuantizeLinear", [name, *parameters], [f"{name}.q"], f"{name}/q", **attributes))
        stored = f"{name}.q"
        if clip is not None:
            ends = [self.constant(f"{name}.{end}", np.asarray(bound, zero.dtype)) for end, bound in zip("lh", clip, strict=True)]
            self.nodes.append(node("Clip", [stored, *ends], [f"{name}.c"], f"{name}/clip"))
            stored = f"{name}.c"
        self.nodes.append(node("DequantizeLinear", [stored, *parameters], [f"{name}.dq"], f"{name}/dq", **attributes))
        return f"{name}.dq"

    def weight_pair(self, name, array, clip=None, stored=False):
        """Quantize weights for each output channel: from float with a Q/DQ pair, or stored in 8 bits."""
        scale = np.abs(array).reshape(len(array), -1).max(1) / 127
        if not stored:
            return self.pair(self.constant(name, array), scale, np.zeros(len(array), np.int8), clip, axis=0)
        steps = np.rint(array / scale.reshape(-1, *(1,) * (array.ndim - 1)).astype(np.float32)).astype(np.int8)
        parameters = [
            self.constant(f"{name}.q", steps),
            self.constant(f"{name}.scale", scale.astype(np.float32)),
            self.constant(f"{name}.zero", np.zeros(len(array), np.int8)),
        ]
        self.nodes.append(node("DequantizeLinear", parameters, [f"{name}.dq"], f"{name}/dq", axis=0))
        return f"{name}.dq"

    def bias_pair(self, name, count, source, weights):
        """Store a bias as int32, in steps of the product of the scales of the layer's input and of its weights."""
        scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.tensors}
        scale = scales[f"{source}.scale"] * scales[f"{weights}.scale"]
        parameters = [
            self.constant(f"{name}.q", self.random.integers(-200, 200, count).astype(np.int32)),
            self.constant(f"{name}.scale", scale.astype(np.float32)),
            self.constant(f"{name}.zero", np.zeros(count, np.int32)),
        ]
        self.nodes.append(node("DequantizeLinear", parameters, [f"{name}.dq"], f"{name}/dq", axis=0))
        return f"{name}.dq"

    def add(self, operator, inputs, output, **attributes):
        self.nodes.append(node(operator, inputs, [output], output, **attributes))
        return output

    def model(self, opset=17):
        graph = helper.make_graph(
            self.nodes,
            "g",
            [value("x", TensorProto.FLOAT, ["n", 16, 8, 8])],
            [value("y", TensorProto.FLOAT, ["n", 10])],
            self.tensors,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _head(writer, source):
    writer.add("GlobalAveragePool", [source], "pool")
    return writer.add("Flatten", ["pool"], "flat")


def pytorch_graph(input_zero=116):
    """Fake-quantized by PyTorch: uint8 activations behind each Relu, weights as float with a Q/DQ pair for each channel."""
    writer = Writer()
    read = writer.pair("x", 0.03, np.uint8(input_zero))
    writer.add(
        "Conv",
        [read, writer.weight_pair("w0", writer.weights(16, 16, 3, 3)), writer.constant("b0", writer.weights(16))],
        "conv0",
        pads=[1] * 4,
    )
    read = writer.pair(writer.add("Relu", ["conv0"], "relu0"), 0.02, np.uint8(0))
    writer.add("MaxPool", [read], "pool0", kernel_shape=[2, 2], strides=[2, 2])
    writer.add(
        "Conv",
        ["pool0", writer.weight_pair("w1", writer.weights(32, 16, 3, 3)), writer.constant("b1", writer.weights(32))],
        "conv1",
        pads=[1] * 4,
    )
    read = writer.pair(writer.add("Relu", ["conv1"], "relu1"), 0.015, np.uint8(0))
    read = writer.pair(_head(writer, read), 0.01, np.uint8(0))
    operands = [read, writer.weight_pair("w2", writer.weights(10, 32)), writer.constant("b2", writer.weights(10))]
    writer.nodes.append(node("Gemm", operands, ["y"], "fc", transB=1))
    return writer.model()


def modelopt_graph():
    """By NVIDIA's ModelOpt: symmetric int8 at the inputs of layers and at the skip branch of an Add, nothing behind a layer."""
    writer = Writer()
    read = writer.pair("x", 0.03, np.int8(0))
    writer.add(
        "Conv",
        [read, writer.weight_pair("w0", writer.weights(16, 16, 3, 3)), writer.constant("b0", writer.weights(16))],
        "conv0",
        pads=[1] * 4,
    )
    writer.add("Relu", ["conv0"], "relu0")
    writer.add("MaxPool", ["relu0"], "pool0", kernel_shape=[2, 2], strides=[2, 2])
    read = writer.pair("pool0", 0.025, np.int8(0))
    writer.add(
        "Conv",
        [read, writer.weight_pair("w1", writer.weights(16, 16, 3, 3)), writer.constant("b1", writer.weights(16))],
        "conv1",
        pads=[1] * 4,
    )
    writer.add("Add", ["conv1", read], "sum")
    writer.add("Relu", ["sum"], "relu1")
    read = writer.pair(_head(writer, "relu1"), 0.02, np.int8(0))
    writer.add(
        "Gemm", [read, writer.weight_pair("w2", writer.weights(10, 16)), writer.constant("b2", writer.weights(10))], "y", transB=1
    )
    return writer.model()


def brevitas_graph():
    """By Brevitas as QCDQ: a Clip between Q and DQ, int32 biases, stored weights; int8 at the input, uint8 behind the Relus."""
    writer = Writer()
    read = writer.pair("x", 0.03, np.int8(0), clip=(-127, 127))
    weights = writer.weight_pair("w0", writer.weights(16, 16, 3, 3), stored=True)
    writer.add("Conv", [read, weights, writer.bias_pair("b0", 16, "x", "w0")], "conv0", pads=[1] * 4)
    read = writer.pair(writer.add("Relu", ["conv0"], "relu0"), 0.02, np.uint8(0))
    weights = writer.weight_pair("w1", writer.weights(32, 16, 3, 3), clip=(-127, 127))
    writer.add("Conv", [read, weights, writer.bias_pair("b1", 32, "relu0", "w1")], "conv1", pads=[1] * 4)
    read = writer.pair(writer.add("Relu", ["conv1"], "relu1"), 0.015, np.uint8(0))
    read = writer.pair(_head(writer, read), 0.01, np.uint8(0))
    weights = writer.weight_pair("w2", writer.weights(10, 32), stored=True)
    writer.add("Gemm", [read, weights, writer.bias_pair("b2", 10, "flat", "w2")], "y", transB=1)
    return writer.model()
