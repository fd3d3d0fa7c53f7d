"""Files whose scales are chosen when they run (quantize_dynamic): correct ones pass against their float32 graph, wrong weights are located."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.verification.run import verify

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
quantization = pytest.importorskip("onnxruntime.quantization", reason="onnxruntime.quantization is not installed")
NODE = helper.make_node


def saved(path, nodes, ends, weights):
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in ends)
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def lstm(path, random):
    weights = {"w": 0.7 * random.standard_normal((1, 32, 6)), "r": 0.5 * random.standard_normal((1, 32, 8))}
    weights = {name: value.astype(np.float32) for name, value in weights.items()} | {"axes": np.array([1])}
    nodes = [
        NODE("LSTM", ["x", "w", "r"], ["h"], "cell", hidden_size=8),
        NODE("Squeeze", ["h", "axes"], ["s"]),
        NODE("Relu", ["s"], ["y"], "relu"),
    ]
    return saved(path, nodes, (("x", ["time", "batch", 6]), ("y", ["time", "batch", 8])), weights), (5, 3, 6)


def products(path, random):
    weights = {"w": random.standard_normal((12, 16)).astype(np.float32), "v": random.standard_normal((16, 5)).astype(np.float32)}
    nodes = [
        NODE("MatMul", ["x", "w"], ["m"], "first"),
        NODE("Relu", ["m"], ["r"], "relu"),
        NODE("MatMul", ["r", "v"], ["n"], "second"),
        NODE("Relu", ["n"], ["y"], "relu2"),
    ]
    return saved(path, nodes, (("x", ["batch", 12]), ("y", ["batch", 5])), weights), (3, 12)


def convolutions(path, random):
    weights = {
        "w": random.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "v": random.standard_normal((4, 8, 3, 3)).astype(np.float32),
    }
    nodes = [
        NODE("Conv", ["x", "w"], ["c"], "first", pads=[1] * 4),
        NODE("Relu", ["c"], ["r"], "relu"),
        NODE("Conv", ["r", "v"], ["d"], "second"),
        NODE("Relu", ["d"], ["y"], "relu2"),
    ]
    return saved(path, nodes, (("x", ["batch", 3, 8, 8]), ("y", ["batch", 4, 6, 6])), weights), (2, 3, 8, 8)


MAKERS = {"lstm": lstm, "products": products, "convolutions": convolutions}


def quantized(file, name):
    made = file.with_name(f"{name}.int8.onnx")
    # ONNX Runtime's ConvInteger takes unsigned weights.
    kind = quantization.QuantType.QUInt8 if name == "convolutions" else quantization.QuantType.QInt8
    quantization.quantize_dynamic(file, made, weight_type=kind, reduce_range=True)
    return made


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MAKERS)
def test_a_file_whose_scales_are_chosen_when_it_runs_passes_against_itself_and_its_float32_graph(tmp_path, name, seed, size):
    random = np.random.default_rng(seed)
    file, shape = MAKERS[name](tmp_path / "float.onnx", random)
    made = quantized(file, name)
    feeds = {"x": (size * random.standard_normal(shape)).astype(np.float32)}
    for against in (None, str(file)):
        report = verify(made, feeds=feeds, against=against, seed=seed)
        assert report.precision == "int8"
        assert report.passed, report.to_json()


def test_rows_that_share_a_scale_are_said_to_depend_on_each_other(tmp_path):
    """A row a hundred times as large as the others takes their levels, in the quantized file and not in the float32 one."""
    random = np.random.default_rng(0)
    file, shape = products(tmp_path / "float.onnx", random)
    x = 0.01 * random.standard_normal((8, *shape[1:]))
    x[-1] *= 100
    report = verify(quantized(file, "products"), feeds={"x": x.astype(np.float32)}, against=str(file))
    checks = {check.name.split(" ")[0]: check for check in report.backends[0].checks}
    assert checks["batch"].passed is None
    assert "the rows of this model depend on each other" in checks["batch"].detail
    assert checks["permuted"].passed


@pytest.mark.parametrize(
    ("name", "operator"), [("lstm", "DynamicQuantizeLSTM"), ("products", "MatMulInteger"), ("convolutions", "ConvInteger")]
)
@pytest.mark.parametrize("position", [0, -1])
def test_a_wrong_weight_is_located_at_its_node(tmp_path, name, operator, position):
    random = np.random.default_rng(4)
    file, shape = MAKERS[name](tmp_path / "float.onnx", random)
    made = quantized(file, name)
    proto = onnx.load(made)
    node = [each for each in proto.graph.node if each.op_type == operator][position]
    tensor = next(each for each in proto.graph.initializer if each.name == node.input[1])
    array = numpy_helper.to_array(tensor).copy()
    # The rows or filters the other way round.
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.flip(array, -2 if array.ndim < 4 else 0)), tensor.name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    feeds = {"x": random.standard_normal(shape).astype(np.float32)}
    report = verify(tmp_path / "wrong.onnx", feeds=feeds, against=str(file))
    assert not report.passed
    assert report.first_divergence == node.name


@pytest.mark.parametrize("level", [0, 1, 4])
def test_a_product_of_packed_bits_that_may_round_its_operand_is_judged_in_that_precision(tmp_path, level):
    random = np.random.default_rng(0)
    weights = {"q": random.integers(0, 256, (6, 2, 16)).astype(np.uint8), "s": random.uniform(0.01, 0.2, 12).astype(np.float32)}
    attributes = {"K": 64, "N": 6, "bits": 4, "block_size": 32, "accuracy_level": level}
    nodes = [
        NODE("MatMulNBits", ["x", "q", "s"], ["m"], "product", domain="com.microsoft", **attributes),
        NODE("Relu", ["m"], ["y"], "relu"),
    ]
    right = saved(tmp_path / "m.onnx", nodes, (("x", ["n", 64]), ("y", ["n", 6])), weights)
    feeds = {"x": random.standard_normal((16, 64)).astype(np.float32)}
    report = verify(right, feeds=feeds)
    assert report.precision == ("int8" if level == 4 else "float32")
    assert report.passed, report.to_json()
    wrong = dict(weights, s=np.where(np.arange(12) == 3, -1.5, 1).astype(np.float32) * weights["s"])
    path = saved(tmp_path / "wrong.onnx", nodes, (("x", ["n", 64]), ("y", ["n", 6])), wrong)
    assert verify(path, feeds=feeds, against=str(right)).first_divergence == "product"


@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
@pytest.mark.parametrize("level", [None, 4])
def test_weights_of_4_bits_are_judged_by_their_own_steps_against_a_float32_graph(tmp_path, form, level):
    quantizers = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer", reason="it is not installed")
    random = np.random.default_rng(2)
    weights = {"w": 0.1 * random.standard_normal((128, 64)), "v": 0.1 * random.standard_normal((64, 32))}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    nodes = [
        NODE("MatMul", ["x", "w"], ["m"], "first"),
        NODE("Relu", ["m"], ["r"], "relu"),
        NODE("MatMul", ["r", "v"], ["n"], "second"),
        NODE("Relu", ["n"], ["y"], "relu2"),
    ]
    ends = ("x", ["batch", 128]), ("y", ["batch", 32])
    file = saved(tmp_path / "float.onnx", nodes, ends, weights)
    onnx.save(onnx.version_converter.convert_version(onnx.load(file), 21), file)

    def packed(source, target):
        options = {"block_size": 32, "is_symmetric": True, "accuracy_level": level}
        made = quantizers.MatMulNBitsQuantizer(onnx.load(source), quant_format=quantization.QuantFormat[form], **options)
        made.process()
        onnx.save(made.model.model, target)
        return target

    feeds = {"x": random.standard_normal((8, 128)).astype(np.float32)}
    report = verify(packed(file, tmp_path / "packed.onnx"), feeds=feeds, against=str(file))
    assert report.passed, report.to_json()
    proto = onnx.load(file)
    tensor = next(each for each in proto.graph.initializer if each.name == "v")
    tensor.CopyFrom(numpy_helper.from_array(np.flip(numpy_helper.to_array(tensor), 0).copy(), "v"))
    onnx.save(proto, tmp_path / "other.onnx")
    report = verify(packed(tmp_path / "other.onnx", tmp_path / "wrong.onnx"), feeds=feeds, against=str(file))
    assert not report.passed
    assert report.first_divergence.startswith("second")
