"""Small float32 graphs written as lists of nodes, with shapes inferred."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper


def graph_of(nodes, inputs, outputs, initializers=(), opset=20):
    """Return an onnx_ir model. inputs, outputs: (name, shape). initializers: (name, array)."""

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "g",
        [value(*one) for one in inputs],
        [value(*one) for one in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def residual(seed=0, channels=16):
    """Return x → Conv → Relu → Conv → Add(x's Conv) → Relu → GlobalAveragePool → Flatten → Gemm → y."""
    generator = np.random.default_rng(seed)

    def weights(*shape):
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def conv(name, source, weight):
        return helper.make_node("Conv", [source, weight, f"{weight}_b"], [name], name, pads=[1, 1, 1, 1])

    nodes = [
        conv("stem", "x", "w0"),
        helper.make_node("Relu", ["stem"], ["stem_relu"], "relu0"),
        conv("inner", "stem_relu", "w1"),
        helper.make_node("Relu", ["inner"], ["inner_relu"], "relu1"),
        conv("last", "inner_relu", "w2"),
        helper.make_node("Add", ["last", "stem_relu"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["sum_relu"], "relu2"),
        helper.make_node("GlobalAveragePool", ["sum_relu"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "w3", "w3_b"], ["y"], "head", transB=1),
    ]
    shapes = {
        "w0": (channels, 16, 3, 3),
        "w1": (channels, channels, 3, 3),
        "w2": (channels, channels, 3, 3),
        "w3": (10, channels),
    }
    constants = [(name, weights(*shape)) for name, shape in shapes.items()]
    constants += [(f"{name}_b", weights(shape[0])) for name, shape in shapes.items()]
    return graph_of(nodes, [("x", ["batch", 16, 8, 8])], [("y", ["batch", 10])], constants)
