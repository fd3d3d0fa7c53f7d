"""An engine is audited as it is deployed: faults are found in the fusion that has them, and what was not seen is said.

There is no GPU here: `standin.py` stands in for the engine, everything else is the real thing.
"""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from standin import StandIn

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.graph import find_relus, load_model
from relu_deploy.verification.engine.audit import audit

CHW32 = "Thirty-two wide channel vectorized row major FP32 format"
HWC8 = "Channel major FP16 format where channel % 8 == 0"


def network(path, dtype=np.float32, gain=1.0):
    """Two residual blocks, a ReLU6, a pool and a Gemm: every fusion that a ResNet has."""
    draw = np.random.default_rng(3).standard_normal
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    nodes, weights = [], {}

    def conv(source, result, channels, before):
        weights[f"{result}.w"] = (draw((channels, before, 3, 3)) * gain / np.sqrt(9 * before)).astype(dtype)
        weights[f"{result}.b"] = draw(channels).astype(dtype)
        nodes.append(helper.make_node("Conv", [source, f"{result}.w", f"{result}.b"], [result], result, pads=[1] * 4))

    def node(kind, sources, result, **attributes):
        nodes.append(helper.make_node(kind, sources, [result], result, **attributes))

    conv("x", "c0", 12, 3)
    node("Relu", ["c0"], "r0")
    for block, before in ((1, "r0"), (2, "r1b")):
        conv(before, f"c{block}a", 12, 12)
        node("Relu", [f"c{block}a"], f"r{block}a")
        conv(f"r{block}a", f"c{block}b", 12, 12)
        node("Add", [f"c{block}b", before], f"s{block}")
        node("Relu", [f"s{block}"], f"r{block}b")
    conv("r2b", "c3", 16, 12)
    weights |= {"low": np.asarray(0, dtype), "high": np.asarray(6, dtype)}
    node("Clip", ["c3", "low", "high"], "r3")
    node("MaxPool", ["r3"], "p", kernel_shape=[2, 2], strides=[2, 2])
    node("GlobalAveragePool", ["p"], "g")
    node("Flatten", ["g"], "f")
    weights["y.w"] = draw((16, 5)).astype(dtype)
    node("Gemm", ["f", "y.w"], "y")
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", kind, [2, 3, 10, 10])],
        [helper.make_tensor_value_info("y", kind, [2, 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def x_of(dtype=np.float32):
    return {"x": np.random.default_rng(0).standard_normal((2, 3, 10, 10)).astype(dtype)}


def audited(path, feeds=None, shipping=None, **observed):
    return audit(Bundle.open(path), "tensorrt", feeds or x_of(), StandIn(path, **shipping or {}), StandIn(path, **observed))


def at(node, change):
    """Return a fault: what the kernel that computes `node` gives is changed."""

    def fault(nodes, results):
        if node in nodes:
            for array in results.values():
                array[...] = change(array.copy())

    return fault


def swapped(array):
    array[:, [1, 7]] = array[:, [7, 1]]
    return array


def one_channel_louder(array):
    array[:, 5] *= 1.2
    return array


def failing(report):
    return [one.region.tensor for one in report.regions if one.local is not None and not one.local.passed]


@pytest.mark.parametrize("version", [10, 11])
@pytest.mark.parametrize("names", ["onnx", "myelin"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_healthy_engine_passes_and_every_relu_is_seen_or_inside_a_fusion(tmp_path, dtype, names, version):
    path = network(tmp_path / "m.onnx", dtype)
    report = audited(path, x_of(dtype), names=names, version=version)
    assert report.passed
    assert report.first_divergence is None
    assert report.coverage == {"observed": 6, "inside": 0, "unobserved": 0}
    assert [one.relu.node for one in report.relus] == [relu.node for relu in find_relus(load_model(path))]
    assert all(one.local is not None for one in report.regions)
    assert report.to_json()["passed"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda array: array * array.dtype.type(1.02), "scale"),
        (np.negative, "sign"),
        (swapped, "channel"),
        (one_channel_louder, "scale"),
        (lambda array: array + array.dtype.type(0.25), "offset"),
        (lambda array: array.astype(np.float16).astype(array.dtype), "precision"),
    ],
    ids=["scale", "sign", "swap", "channel", "offset", "half"],
)
@pytest.mark.parametrize("node", ["r1a", "s1", "c3"])
def test_a_fault_is_local_to_the_fusion_that_has_it_and_told_in_kind(tmp_path, node, change, kind):
    path = network(tmp_path / "m.onnx")
    report = audited(path, names="myelin", fault=at(node, change))
    tensor = {"r1a": "r1a", "s1": "r1b", "c3": "r3"}[node]
    assert failing(report) == [tensor]
    assert not report.passed
    (fault,) = report.faults
    assert report.first_divergence == fault.node == tensor
    assert node in fault.region
    assert fault.where == "tensorrt"
    assert fault.kind == kind
    # Whatever runs after it is off the truth and right on what it was given.
    after = [
        one
        for one in report.regions
        if one.region.place > next(r.region.place for r in report.regions if r.region.tensor == tensor)
    ]
    assert after
    assert not after[0].accumulated.passed
    assert all(one.local.passed for one in after)
    assert report.worst.region.tensor == tensor


def test_two_faults_are_both_named_in_the_order_in_which_they_run(tmp_path):
    def fault(nodes, results):
        for node, factor in (("c1b", 1.01), ("y", 0.9)):
            if node in nodes:
                for array in results.values():
                    array *= np.float32(factor)

    report = audited(network(tmp_path / "m.onnx"), fault=fault)
    assert [one.node for one in report.faults] == ["r1b", "y"]


@pytest.mark.parametrize(
    ("node", "change", "broken"),
    [
        ("r1a", lambda array: np.where(array == 0, np.float32(-1e-12), array), "negative output"),
        ("r3", lambda array: np.where(array == 6, np.nextafter(np.float32(6), np.float32(7)), array), "above 6"),
    ],
    ids=["negative", "above"],
)
def test_a_relu_that_breaks_its_contract_within_the_noise_is_named_all_the_same(tmp_path, node, change, broken):
    report = audited(network(tmp_path / "m.onnx", gain=2.0), fault=at(node, change))
    assert not failing(report)
    assert not report.passed
    (fault,) = report.faults
    assert (fault.node, fault.kind) == (node, "contract")
    assert broken in fault.detail


def test_an_overflow_is_a_fault_where_it_happens_and_judges_nothing_behind_it(tmp_path):
    # Weights so large that the second convolution leaves float16 where float64 goes on.
    path = network(tmp_path / "m.onnx", np.float16, gain=60.0)
    with np.errstate(over="ignore"):
        report = audited(path, x_of(np.float16))
    assert not report.passed
    (first, *_) = report.faults
    assert first.kind == "overflow"
    behind = [one for one in report.regions if first.node in one.region.inputs]
    assert behind
    assert all(one.local is None and "holds NaN or infinity" in one.note for one in behind)


def test_what_was_not_captured_is_not_counted_as_seen_and_says_why(tmp_path):
    path = network(tmp_path / "m.onnx")
    report = audited(path, drop=("r1a", "r2b"))
    assert report.passed
    assert report.coverage == {"observed": 4, "inside": 0, "unobserved": 2}
    blind = {one.relu.output: one for one in report.relus if one.state == "unobserved"}
    assert set(blind) == {"r1a", "r2b"}
    assert "was not captured" in blind["r1a"].reason
    assert blind["r1a"].at == "r1b"
    wide = next(one for one in report.regions if one.region.tensor == "r1b")
    assert {"c1a", "r1a", "c1b", "s1", "r1b"} == set(wide.region.nodes)
    assert [each.split(":")[0] for each in wide.region.missing] == ["r1a"]
    assert "extends over other layers" in wide.note
    # A fault in what was not seen is still found, among the nodes between what was.
    found = audited(path, drop=("r1a", "r2b"), fault=at("r1a", lambda array: array * np.float32(1.1)))
    assert failing(found) == ["r1b"]
    assert "r1a" in found.faults[0].region


def test_an_engine_that_shows_nothing_covers_nothing(tmp_path):
    path = network(tmp_path / "m.onnx")
    everything = [name for piece in StandIn(path).pieces for name in piece.outputs]
    report = audited(path, drop=everything)
    assert report.captured == 0
    assert report.coverage == {"observed": 0, "inside": 0, "unobserved": 6}
    assert [one.region.tensor for one in report.regions] == ["y"]


def test_an_engine_of_one_kernel_is_one_fusion_with_every_relu_inside(tmp_path):
    path = network(tmp_path / "m.onnx")

    class Whole(StandIn):
        def inspect(self):
            nodes = [f"[ONNX Layer: {node.name}]" for node in self.model.graph]
            whole = {"Name": "{ForeignNode[c0...y]}", "LayerType": "Myelin", "Metadata": "\x1e".join(nodes)}
            return json.dumps({"Layers": [{**whole, "Inputs": [self._tensor("x")], "Outputs": [self._tensor("y")]}]})

        def capture(self, feeds):
            return []

    report = audit(Bundle.open(path), "tensorrt", x_of(), Whole(path), Whole(path))
    assert report.passed
    assert report.as_deployed
    assert report.coverage == {"observed": 0, "inside": 6, "unobserved": 0}
    wrong = audit(Bundle.open(path), "tensorrt", x_of(), Whole(path), Whole(path, fault=at("c1b", swapped)))
    assert len(wrong.faults[0].region) == len(list(load_model(path).graph))


@pytest.mark.parametrize(("dtype", "layout"), [(np.float32, CHW32), (np.float16, HWC8)])
def test_documented_vector_formats_are_taken_apart(tmp_path, dtype, layout):
    path = network(tmp_path / "m.onnx", dtype)
    formats = dict.fromkeys(("r0", "r1a", "r1b", "r2a", "r2b", "r3"), layout)
    report = audited(path, x_of(dtype), formats=formats, shipping={"formats": formats})
    assert report.passed
    assert report.coverage["observed"] == 6


@pytest.mark.parametrize(
    "layout", ["N/A due to dynamic shapes", "Row major FP32 format where column stride % 64 == 0", "Unknown format"]
)
def test_a_format_that_is_not_known_for_sure_leaves_its_relu_unobserved_and_is_named(tmp_path, layout):
    report = audited(network(tmp_path / "m.onnx"), formats={"r2a": layout})
    assert report.passed
    (blind,) = [one for one in report.relus if one.state == "unobserved"]
    assert blind.relu.node == "r2a"
    assert layout in blind.reason


def test_a_copy_in_another_format_is_checked_and_its_fault_is_not_its_readers(tmp_path):
    path = network(tmp_path / "m.onnx")
    report = audited(path, copies=("r1a",), shipping={"copies": ("r1a",)})
    assert report.passed
    assert report.as_deployed
    assert any(one.region.is_copy for one in report.regions)
    wrong = audited(path, copies=("r1a",), fault=at("copy of r1a", swapped))
    (fault,) = wrong.faults
    assert fault.node == "r1a"
    assert "copy" in fault.detail
    assert failing(wrong) == ["r1a"]


@pytest.mark.parametrize("names", ["onnx", "myelin"])
def test_an_output_that_is_copied_to_where_it_is_wanted_is_checked_on_both_sides(tmp_path, names):
    path = network(tmp_path / "m.onnx")
    report = audited(path, names=names, copies=("y",))
    assert report.passed
    assert [(one.region.tensor, one.region.is_copy) for one in report.regions][-2:] == [("y", False), ("y", True)]
    wrong = audited(path, names=names, copies=("y",), fault=at("copy of y", lambda array: array[:, ::-1]))
    assert [one.region.is_copy for one in wrong.regions if not one.local.passed] == [True]
    assert wrong.first_divergence == "y"
    assert wrong.spread is not None


def test_only_the_same_layers_kernels_and_bits_are_called_as_deployed(tmp_path):
    path = network(tmp_path / "m.onnx")
    assert audited(path).as_deployed
    other = audited(path, tactic="another")
    assert (other.passed, other.as_deployed) == (True, False)
    assert other.difference.kernels[0] == "c0 + r0"
    copies = audited(path, copies=("r1a",))
    assert copies.as_deployed
    assert copies.difference.copies == ("Reformatting CopyNode for r1a",)
    renamed = audited(path, names="myelin")
    assert not renamed.as_deployed
    assert renamed.difference.shipping[0] == "c0 + r0"
    shifted = audited(path, shipping={"fault": at("y", lambda array: array + np.float32(0.5))})
    assert shifted.spread == pytest.approx(0.5, abs=1e-5)
    assert not shifted.as_deployed
    # The outputs that are judged are those of the engine that ships.
    assert not shifted.passed
    assert not shifted.outputs["y"].passed
    assert shifted.first_divergence is None


def test_an_engine_of_another_graph_is_bad_input(tmp_path):
    path = network(tmp_path / "m.onnx")
    other = StandIn(path)
    other.outputs = ["f"]
    with pytest.raises(InputError, match="have the outputs"):
        audit(Bundle.open(path), "tensorrt", x_of(), other, StandIn(path))


# ---------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def variant_of_digits(digits_bundle, tmp_path_factory):
    pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    from relu_deploy.optimization.run import optimize

    def make(precision):
        out = tmp_path_factory.mktemp(precision) / "digits.rdb"
        small = optimize(digits_bundle, "tensorrt", precision, out=out, calibration="digits", samples=32, eval_samples=64)
        return small.with_variant(f"{precision}-tensorrt")

    return make


@pytest.fixture(scope="module")
def int8_digits(variant_of_digits):
    return variant_of_digits("int8")


@pytest.fixture(scope="module")
def fp8_digits(variant_of_digits):
    return variant_of_digits("fp8")


@pytest.fixture(scope="module")
def digits():
    from relu_deploy.data.datasets import sample_feeds  # real ones

    return sample_feeds


def test_an_int8_engine_is_seen_through_its_codes(int8_digits, digits):
    feeds, _ = digits(int8_digits, 4, 0)
    path = int8_digits.onnx
    report = audit(int8_digits, "tensorrt", feeds, StandIn(path), StandIn(path))
    assert report.precision == "int8"
    assert report.passed
    assert report.as_deployed
    assert report.coverage["unobserved"] == 0
    assert report.coverage["inside"] >= 3
    codes = {one.region.tensor for one in report.regions}
    assert "relu/quantized" in codes
    assert all(one.local is not None and not one.region.missing for one in report.regions)
    inside = next(one for one in report.relus if one.state == "inside")
    assert inside.at.endswith("/quantized")


@pytest.mark.parametrize("node", ["stage1.0.bn/Conv", "stage2.1.bn/Conv"])
@pytest.mark.parametrize("change", [swapped, lambda array: (array * 0.8).astype(array.dtype)], ids=["swap", "scale"])
def test_a_fault_in_an_int8_fusion_is_found_in_it(int8_digits, digits, node, change):
    feeds, _ = digits(int8_digits, 4, 0)
    path = int8_digits.onnx
    report = audit(int8_digits, "tensorrt", feeds, StandIn(path), StandIn(path, fault=at(node, change)))
    (fault,) = report.faults
    assert node in fault.region
    assert fault.operator == "Relu"


def test_codes_of_a_tensor_that_the_graph_has_in_float_stand_for_what_its_readers_quantize(int8_digits, digits):
    # Metadata without the quantizers: all that says what the codes mean is the graph.
    feeds, _ = digits(int8_digits, 4, 0)
    how = {"names": "myelin", "unnamed": ("QuantizeLinear", "DequantizeLinear")}
    path = int8_digits.onnx
    report = audit(int8_digits, "tensorrt", feeds, StandIn(path, **how), StandIn(path, **how))
    assert report.passed
    assert report.coverage["observed"] == 6
    # A region fed with codes rounds nothing more to codes, so its own error is float32's.
    assert next(one for one in report.regions if one.region.tensor == "relu_1").precision == "float32"
    wrong = audit(
        int8_digits, "tensorrt", feeds, StandIn(path, **how), StandIn(path, **how, fault=at("stage2.0.bn/Conv", swapped))
    )
    assert wrong.first_divergence == "stage2.0.relu/Relu"


def test_a_fault_in_int8_that_the_noise_of_int8_would_hide_shows_from_the_engines_own_codes(int8_digits, digits):
    feeds, _ = digits(int8_digits, 4, 0)
    path = int8_digits.onnx
    fault = at("stage1.1.bn/Conv", lambda array: array * np.float32(1.001))
    report = audit(int8_digits, "tensorrt", feeds, StandIn(path), StandIn(path, fault=fault))
    assert failing(report) == ["relu_1"]
    assert next(one for one in report.regions if one.region.tensor == "relu_1").accumulated.passed


def test_a_float8_engine_is_seen_through_its_codes(fp8_digits, digits):
    feeds, _ = digits(fp8_digits, 2, 0)
    how = {"level": "BASIC"}
    report = audit(fp8_digits, "tensorrt", feeds, StandIn(fp8_digits.onnx, **how), StandIn(fp8_digits.onnx, **how))
    assert report.precision == "float8"
    assert report.passed
    assert report.coverage["unobserved"] == 0
    assert report.coverage["inside"] >= 1


def test_a_relu_that_a_real_runtime_removes_before_a_float8_quantization_is_found(fp8_digits, digits):
    # ONNX Runtime 1.32 takes the zero point of float8 for its smallest number, and the QuantizeLinear for the Relu.
    feeds, _ = digits(fp8_digits, 2, 0)
    right, real = StandIn(fp8_digits.onnx, level="BASIC"), StandIn(fp8_digits.onnx)
    if all(np.array_equal(array, right.run(feeds)[name]) for name, array in real.run(feeds).items()):
        pytest.skip("this ONNX Runtime keeps the Relu: install 1.32, which removes it")
    report = audit(fp8_digits, "tensorrt", feeds, right, real)
    assert report.first_divergence == "stage2.0.relu/Relu"
    assert {fault.operator for fault in report.faults} == {"Relu"}
    assert report.faults[0].region[-1].endswith("QuantizeLinear")


# ---------------------------------------------------------------- the table


def test_the_report_says_what_was_seen_what_was_not_and_why(tmp_path, capsys):
    from relu_deploy.reporting.tables.audit import print_audit

    path = network(tmp_path / "m.onnx")
    print_audit(audited(path, drop=("r1a",)).to_json())
    printed = capsys.readouterr().out
    assert "of 6 Relus 5 observed, 0 inside a fusion, 1 unobserved" in printed
    assert "r1a: it was not captured" in " ".join(printed.split())
    assert "same layers, kernels and output bits" in printed
    print_audit(audited(path, fault=at("s1", np.negative), tactic="other").to_json())
    printed = capsys.readouterr().out
    assert "failed" in printed
    assert "r1b sign" in printed
    assert "another kernel was chosen: 10" in printed
    assert "outputs of the two engines differ" in printed


def test_the_answer_is_plain_json(tmp_path):
    with np.errstate(over="ignore"):
        report = audited(network(tmp_path / "m.onnx", np.float16, gain=60.0), x_of(np.float16)).to_json()
    answer = json.loads(json.dumps(report, allow_nan=False))
    assert answer["first_divergence"] == answer["faults"][0]["node"]
    assert {"passed", "as_deployed", "coverage", "engine", "outputs", "regions", "relus"} <= set(answer)
