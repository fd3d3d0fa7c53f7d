"""The kernels that run an int8 variant: residual Adds, Concats, pools and nearest Resizes in 8 bits, and nothing between them."""

from contextlib import closing

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.optimization.run import OptimizeOptions, optimize_bundle

FLOAT = TensorProto.FLOAT
CHANNELS = 32


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """An int8 variant of a network with a pool, a residual Add, a feature pyramid's Resize and Add, a Concat and a classifier."""
    folder = tmp_path_factory.mktemp("int8")
    generator = np.random.default_rng(0)
    constants, nodes = {}, []

    def conv(name, source, inner, kernel=3, relu=True):
        shape = (CHANNELS, inner, kernel, kernel)
        constants[f"{name}_w"] = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        constants[f"{name}_b"] = generator.standard_normal(CHANNELS) * 0.1
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [source, f"{name}_w", f"{name}_b"], [f"{name}_c"], name, pads=pads))
        if relu:
            nodes.append(helper.make_node("Relu", [f"{name}_c"], [name], f"{name}_relu"))
        return name if relu else f"{name}_c"

    first = conv("first", "x", 3)
    nodes.append(helper.make_node("MaxPool", [first], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]))
    branch = conv("second", conv("inner", "pooled", CHANNELS), CHANNELS, relu=False)
    nodes += [
        helper.make_node("Add", [branch, "pooled"], ["sum"], "residual"),
        helper.make_node("Relu", ["sum"], ["top"], "residual_relu"),
        helper.make_node(
            "Resize",
            ["top", "", "scales"],
            ["large"],
            "resize",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
    ]
    lateral = conv("lateral", first, CHANNELS, 1, relu=False)
    nodes.append(helper.make_node("Add", [lateral, "large"], ["merged"], "pyramid"))
    nodes.append(
        helper.make_node(
            "Concat", [conv("left", "merged", CHANNELS), conv("right", "merged", CHANNELS, 1)], ["both"], "join", axis=1
        )
    )
    nodes += [
        helper.make_node("GlobalAveragePool", [conv("last", "both", 2 * CHANNELS)], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "fc_w", "fc_b"], ["y"], "fc", transB=1),
    ]
    constants |= {"fc_w": generator.standard_normal((10, CHANNELS)) * 0.3, "fc_b": np.zeros(10)}
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    tensors.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    inputs, outputs = (
        [helper.make_tensor_value_info(name, FLOAT, ["n", *shape])] for name, shape in (("x", (3, 16, 16)), ("y", (10,)))
    )
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "rows.npz", x=generator.standard_normal((32, 3, 16, 16)).astype(np.float32))
    options = OptimizeOptions(calibration=folder / "rows.npz", threads=1, max_drop=1.0)
    report = optimize_bundle(folder / "m.onnx", "cpu", "int8", out=folder / "m.rdb", options=options)
    assert report.fallbacks == []
    return report.bundle.with_variant("int8-cpu")


def kernels_of(variant, backend):
    with closing(load(variant, backend, threads=2, profile=True)) as session:
        session.run({"x": np.zeros((1, 3, 16, 16), np.float32)})
        return session.executed()


def test_onnxruntime_computes_everything_in_8_bits_and_converts_only_the_input(variant):
    kernels = kernels_of(variant, "onnxruntime-cpu")
    wide = [(kernel.node, kernel.operator) for kernel in kernels if not kernel.converts and kernel.precision not in ("int8", "")]
    # The classifier's result is float: its kernel reads 8 bits.
    assert wide == [(wide[0][0], "QGemm")]
    assert [kernel.operator for kernel in kernels if kernel.converts] == ["QuantizeLinear"]
    operators = {kernel.operator for kernel in kernels}
    assert {"QLinearConv", "QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool"} <= operators


def test_openvino_computes_everything_in_8_bits(variant):
    pytest.importorskip("openvino", reason="openvino is not installed (pip install 'relu-deploy[openvino]')")
    kernels = kernels_of(variant, "openvino")
    wide = [kernel.operator for kernel in kernels if not kernel.converts and kernel.precision not in ("int8", "")]
    assert wide == []
    assert [kernel.operator for kernel in kernels if kernel.operator == "FakeQuantize"] == ["FakeQuantize"]
