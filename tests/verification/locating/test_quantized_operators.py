"""Files of QLinear operators, as ONNX Runtime's quantizer writes them: their weights are judged node by node, like those of Q/DQ files."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.verification.run import verify

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
quantization = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime.quantization is not installed")
FLOAT = TensorProto.FLOAT
FEEDS = {"x": np.random.default_rng(7).standard_normal((2, 3, 16, 16)).astype(np.float32)}


def residual_network(path):
    """Two convolutions beside a skip, a pool, a depthwise convolution, and a linear layer."""
    random = np.random.default_rng(3)

    def weight(*shape):
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {"w0": weight(16, 3, 3, 3), "w1": weight(16, 16, 3, 3), "w2": weight(16, 1, 3, 3), "w3": weight(16, 10)}
    weights |= {f"b{layer}": 0.1 * random.standard_normal(16).astype(np.float32) for layer in range(3)}
    weights["b3"] = 0.1 * random.standard_normal(10).astype(np.float32)
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w0", "b0"], ["c0"], "conv0", pads=[1] * 4),
        make("Relu", ["c0"], ["r0"], "relu0"),
        make("Conv", ["r0", "w1", "b1"], ["c1"], "conv1", pads=[1] * 4),
        make("Add", ["c1", "r0"], ["a"], "add"),
        make("Relu", ["a"], ["r1"], "relu1"),
        make("MaxPool", ["r1"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["m", "w2", "b2"], ["c2"], "conv2", pads=[1] * 4, group=16),
        make("Relu", ["c2"], ["r2"], "relu2"),
        make("GlobalAveragePool", ["r2"], ["g"], "mean"),
        make("Flatten", ["g"], ["f"], "flatten"),
        make("Gemm", ["f", "w3", "b3"], ["y"], "linear"),
    ]
    ends = [[helper.make_tensor_value_info(*end)] for end in (("x", FLOAT, ["n", 3, 16, 16]), ("y", FLOAT, ["n", 10]))]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "network", *ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class Rows(quantization.CalibrationDataReader):
    def __init__(self):
        random = np.random.default_rng(5)
        self.rows = iter([FEEDS, *({"x": random.standard_normal((2, 3, 16, 16)).astype(np.float32)} for _ in range(3))])

    def get_next(self):
        return next(self.rows, None)


OPTIONS = {
    "uint8": {},
    "channels": {"per_channel": True},
    "int8": {"activation_type": quantization.QuantType.QInt8, "per_channel": True},
    "symmetric": {
        "activation_type": quantization.QuantType.QInt8,
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True},
    },
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return residual_network(tmp_path_factory.mktemp("qoperator") / "float.onnx")


@pytest.fixture(scope="module", params=OPTIONS)
def quantized(network, request):
    path = network.with_name(f"{request.param}.onnx")
    options = {"weight_type": quantization.QuantType.QInt8, "reduce_range": True, **OPTIONS[request.param]}
    quantization.quantize_static(network, path, Rows(), quant_format=quantization.QuantFormat.QOperator, **options)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    # The Relus stay where zero points do not clip.
    pool = set() if request.param == "symmetric" else {"QLinearGlobalAveragePool"}
    assert {"QLinearConv", "QLinearAdd", "QGemm"} | pool <= operators
    return path


def initializer(proto, name):
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def change(source, target, name, function):
    """Write a copy of a file in which one initializer is changed."""
    proto = onnx.load(source)
    tensor = initializer(proto, name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(function(array.copy())).astype(array.dtype), name))
    onnx.save(proto, target)
    return target


def node_of(path, position):
    """Return the convolution or linear layer at a position."""
    return [node for node in onnx.load(path).graph.node if node.op_type in ("QLinearConv", "QGemm")][position]


def first_channel(factor):
    def changed(array):
        array[0] = np.clip(np.rint(array[0].astype(np.float64) * factor), -127, 127)
        return array

    return changed


def located(network, path):
    report = verify(path, feeds=FEEDS, against=str(network))
    assert not report.passed
    return [fault.node for fault in report.backends[0].faults]


def test_a_file_that_the_quantizer_wrote_passes_with_every_relu_observed(network, quantized):
    report = verify(quantized, feeds=FEEDS, against=str(network))
    assert report.passed, report.to_json()
    backend = report.backends[0]
    assert not backend.faults
    assert [(relu.passed, relu.as_deployed) for relu in backend.relus] == [(True, True)] * 3


@pytest.mark.parametrize("seed", range(4))
def test_random_inputs_raise_no_false_alarm(network, quantized, seed):
    report = verify(quantized, against=str(network), seed=seed, samples=2)
    assert report.passed, report.to_json()


@pytest.mark.parametrize("position", range(3))
def test_a_weight_channel_with_the_other_sign_is_located_at_its_convolution(network, quantized, tmp_path, position):
    node = node_of(quantized, position)
    wrong = change(quantized, tmp_path / "wrong.onnx", node.input[3], first_channel(-1.5))
    assert located(network, wrong) == [node.name]


@pytest.mark.parametrize("position", range(3))
def test_two_swapped_channels_are_located_at_their_convolution(network, quantized, tmp_path, position):
    node = node_of(quantized, position)
    wrong = change(quantized, tmp_path / "wrong.onnx", node.input[3], lambda w: w[[1, 0, *range(2, len(w))]])
    assert located(network, wrong) == [node.name]


@pytest.mark.parametrize("position", range(4))
def test_a_wrong_weight_scale_is_located_at_its_layer(network, quantized, tmp_path, position):
    node = node_of(quantized, position)
    wrong = change(quantized, tmp_path / "wrong.onnx", node.input[4], lambda scale: scale * 1.5)
    assert located(network, wrong) == [node.name]


@pytest.mark.parametrize("position", range(3))
def test_a_wrong_zero_point_of_a_result_is_located_at_its_convolution(network, quantized, tmp_path, position):
    """All that read the result use the same one, so that only what it clips is lost."""
    node = node_of(quantized, position)
    wrong = change(quantized, tmp_path / "wrong.onnx", node.input[7], lambda zero: zero + np.asarray(70, zero.dtype))
    assert located(network, wrong)[0] == node.name


@pytest.mark.parametrize("position", range(3))
def test_a_zero_point_that_only_the_writer_of_a_tensor_has_is_located_at_its_writer_or_reader(
    network, quantized, tmp_path, position
):
    node = node_of(quantized, position)
    proto = onnx.load(quantized)
    zero = numpy_helper.to_array(initializer(proto, node.input[7]))
    proto.graph.initializer.append(numpy_helper.from_array((zero.astype(np.int64) + 40).astype(zero.dtype), "moved"))
    next(each for each in proto.graph.node if each.name == node.name).input[7] = "moved"
    onnx.save(proto, tmp_path / "wrong.onnx")
    readers = [each.name for each in proto.graph.node if node.output[0] in each.input]
    assert located(network, tmp_path / "wrong.onnx")[0] in (node.name, *readers)


def test_a_missing_bias_is_located_at_its_convolution(network, quantized, tmp_path):
    node = node_of(quantized, 2)
    wrong = change(quantized, tmp_path / "wrong.onnx", node.input[8], lambda bias: bias * 0)
    assert located(network, wrong) == [node.name]


def test_a_wrong_scale_of_one_reader_is_located_at_that_reader(network, quantized, tmp_path):
    proto = onnx.load(quantized)
    add = next(node for node in proto.graph.node if node.op_type == "QLinearAdd")
    scale = numpy_helper.to_array(initializer(proto, add.input[4]))
    proto.graph.initializer.append(numpy_helper.from_array(scale * np.float32(1.7), "wrong_scale"))
    add.input[4] = "wrong_scale"
    onnx.save(proto, tmp_path / "wrong.onnx")
    assert located(network, tmp_path / "wrong.onnx") == [add.name]


def test_a_file_with_other_tensor_names_is_compared_by_the_order_of_its_layers(network, quantized, tmp_path):
    def renamed(source, target):
        proto = onnx.load(source)
        names = {name: f"t{place}" for place, node in enumerate(proto.graph.node) for name in node.output if name != "y"}
        for node in proto.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        onnx.save(proto, target)
        return target

    assert verify(renamed(quantized, tmp_path / "right.onnx"), feeds=FEEDS, against=str(network)).passed
    node = node_of(quantized, 1)
    wrong = change(quantized, tmp_path / "wrong.onnx", node.input[3], first_channel(-1.5))
    assert located(network, renamed(wrong, tmp_path / "renamed.onnx")) == [node.name]


def test_a_wrong_copy_of_a_quantized_file_is_located_against_the_right_one(quantized, tmp_path):
    assert verify(quantized, feeds=FEEDS, against=str(quantized)).passed
    node = node_of(quantized, 1)
    wrong = change(quantized, tmp_path / "wrong.onnx", node.input[3], first_channel(-1.5))
    report = verify(wrong, feeds=FEEDS, against=str(quantized))
    assert not report.passed
    assert report.first_divergence == node.name


def test_a_graph_that_onnx_runtime_fused_from_q_and_dq_pairs_is_compared_too(network, tmp_path):
    pairs, fused = tmp_path / "pairs.onnx", tmp_path / "fused.onnx"
    quantization.quantize_static(network, pairs, Rows(), per_channel=True, reduce_range=True)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(fused)
    onnxruntime.InferenceSession(str(pairs), settings, providers=["CPUExecutionProvider"])
    assert "QLinearConv" in {node.op_type for node in onnx.load(fused).graph.node}
    assert verify(fused, feeds=FEEDS, against=str(network)).passed
    node = node_of(fused, 0)
    wrong = change(fused, tmp_path / "wrong.onnx", node.input[3], first_channel(-1.5))
    assert located(network, wrong) == [node.name]
