"""OpenVINO computes what was requested, in the precision that was requested, and says what it cannot run."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load, probe
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported, UsageError
from relu_deploy.graph import find_relus, load_model
from relu_deploy.verification.exhaustive import prove
from relu_deploy.verification.run import verify

openvino = pytest.importorskip("openvino", reason="openvino is not installed (pip install 'relu-deploy[openvino]')")
load_openvino = pytest.importorskip("relu_deploy.backends.openvino.load")
FLOAT = TensorProto.FLOAT
info = helper.make_tensor_value_info


def has(capability):
    return capability in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


needs_bf16 = pytest.mark.skipif(
    not has("BF16"), reason="this processor has no bfloat16 arithmetic: run it on one with AVX512-BF16"
)


@pytest.fixture
def model(tmp_path):
    """Return a function that writes a graph and opens it as a bundle."""

    def write(nodes, inputs, outputs, weights=(), domains=()):
        weights = [numpy_helper.from_array(array, name) for name, array in weights]
        graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
        opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        path = tmp_path / f"model{len(list(tmp_path.iterdir()))}.onnx"
        onnx.save(made, path)
        return Bundle.open(path)

    return write


@pytest.fixture
def convolution(model):
    """A convolution and a Relu whose results are sums of 27 products of numbers with 12 bits or more."""
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    return model(nodes, [info("x", FLOAT, ["n", 3, 8, 8])], [info("y", FLOAT, ["n", 4, 8, 8])], [("w", weights)])


def picture(rows=2):
    return np.random.default_rng(1).standard_normal((rows, 3, 8, 8)).astype(np.float32)


def truth(bundle, feeds):
    return load(bundle, "reference").evaluate(feeds)["y"]


def relative_error(got, true):
    return float(np.sqrt(np.mean((got.astype(np.float64) - true) ** 2) / np.mean(true**2)))


# ---------------------------------------------------------------- precision


def test_a_float32_graph_is_computed_in_float32_on_a_processor_that_prefers_bfloat16(convolution):
    session = load(convolution, "openvino", profile=True)
    got = session.run({"x": picture()})["y"]
    # bfloat16 has 8 bits of mantissa: its error is about 2e-3.
    assert relative_error(got, truth(convolution, {"x": picture()})) < 1e-6
    assert session.facts["precision"] == "float32"
    kernels = session.executed()
    assert {kernel.precision for kernel in kernels} == {"float32"}
    assert "conv" in {kernel.node for kernel in kernels}
    assert {kernel.provider for kernel in kernels} == {"CPU"}


@needs_bf16
def test_bfloat16_is_computed_when_it_is_requested_and_is_reported(convolution):
    session = load(convolution, "openvino", profile=True, autocast="bfloat16")
    got = session.run({"x": picture()})["y"]
    assert 1e-4 < relative_error(got, truth(convolution, {"x": picture()})) < 2e-2
    assert session.facts["precision"] == "bfloat16"
    assert {kernel.node: kernel.precision for kernel in session.executed()}["conv"] == "bfloat16"


@needs_bf16
def test_a_precision_that_was_not_requested_is_refused_when_it_is_read_back(convolution, monkeypatch):
    default = load_openvino._settings

    def without_hint(options, hint):
        return {**default(options, hint), "INFERENCE_PRECISION_HINT": "bf16", "EXECUTION_MODE_HINT": "PERFORMANCE"}

    monkeypatch.setattr(load_openvino, "_settings", without_hint)
    with pytest.raises(Unsupported, match="would compute model0 in bfloat16, and float32 was requested"):
        load(convolution, "openvino")


def test_a_precision_that_the_processor_lacks_is_refused_with_its_name(convolution, monkeypatch):
    monkeypatch.setitem(load_openvino.HINTS, "bfloat16", ("bf16", "BF16_OF_ANOTHER_PROCESSOR"))
    with pytest.raises(Unsupported, match="this processor has no bfloat16 arithmetic"):
        load(convolution, "openvino", autocast="bfloat16")


def test_a_precision_that_does_not_exist_is_a_usage_error(convolution):
    with pytest.raises(UsageError, match="cannot compute in 'float12'"):
        load(convolution, "openvino", autocast="float12")


def test_int8_kernels_run_where_the_graph_is_quantized(model):
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], name="weights"),
        helper.make_node("Conv", ["d", "dw"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    constants = [
        ("xs", np.float32(0.03)),
        ("xz", np.uint8(128)),
        ("w", weights),
        ("ws", np.float32(0.01)),
        ("wz", np.int8(0)),
    ]
    bundle = model(nodes, [info("x", FLOAT, ["n", 3, 8, 8])], [info("y", FLOAT, ["n", 4, 8, 8])], constants)
    session = load(bundle, "openvino", profile=True)
    got = session.run({"x": picture()})["y"]
    # The products are of integers: what is left is the rounding of the input, which is the same in both.
    assert relative_error(got, truth(bundle, {"x": picture()})) < 1e-6
    assert {kernel.node: kernel.precision for kernel in session.executed()}["conv"] == "int8"


@pytest.mark.parametrize(("element", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.BFLOAT16, ml_dtypes.bfloat16)])
def test_half_precision_arrays_go_in_and_come_out_as_they_are(model, element, dtype):
    if not has("BF16" if dtype is ml_dtypes.bfloat16 else "FP16"):
        pytest.skip("this processor has no such arithmetic, as OpenVINO reports: run it on one that has")
    bundle = model(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")], [info("x", element, ["n"])], [info("y", element, ["n"])]
    )
    x = np.array([-2, -0.0, 0.5, 3, 1e-3, np.inf], np.float32).astype(dtype)
    got = load(bundle, "openvino").run({"x": x})["y"]
    assert got.dtype == x.dtype
    assert got.tolist() == [0, 0, 0.5, 3, float(x[4]), np.inf]


# ---------------------------------------------------------------- what it does not run


def test_a_float64_graph_is_refused_for_it_would_be_computed_in_float32(model):
    double = TensorProto.DOUBLE
    bundle = model([helper.make_node("Relu", ["x"], ["y"], name="wide")], [info("x", double, [2])], [info("y", double, [2])])
    with pytest.raises(Unsupported, match="would compute the float64 node 'wide' in float32"):
        load(bundle, "openvino")


def test_an_operator_that_it_does_not_have_is_named(model):
    nodes = [
        helper.make_node("Foo", ["x"], ["t"], name="foo", domain="mine"),
        helper.make_node("Relu", ["t"], ["y"], name="relu"),
    ]
    bundle = model(nodes, [info("x", FLOAT, [2])], [info("y", FLOAT, [2])], domains=["mine"])
    with pytest.raises(Unsupported, match=r"cannot run model0: .*mine\.Foo"):
        load(bundle, "openvino")


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_run_names_the_node_and_the_shapes(model, threads):
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="rows of three")]
    bundle = model(nodes, [info("x", FLOAT, ["n"])], [info("y", FLOAT, ["a", 3])], [("shape", np.array([-1, 3]))])
    session = load(bundle, "openvino", threads=threads)
    assert session.run({"x": np.zeros(6, np.float32)})["y"].shape == (2, 3)
    with pytest.raises(Unsupported, match=r"stopped while running model0 on x 7: .*'rows of three'") as caught:
        session.run({"x": np.zeros(7, np.float32)})
    assert "src/" not in caught.value.message
    # The session goes on.
    assert session.run({"x": np.ones(3, np.float32)})["y"].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("value", [2**24 + 1, -(2**24) - 1, 2**31])
def test_integers_that_it_may_round_are_refused(model, value):
    int64 = TensorProto.INT64
    bundle = model([helper.make_node("Relu", ["x"], ["y"], name="relu")], [info("x", int64, ["n"])], [info("y", int64, ["n"])])
    session = load(bundle, "openvino")
    assert session.run({"x": np.array([-5, 2**24])})["y"].tolist() == [0, 2**24]
    with pytest.raises(InputError, match="input 'x' has integers beyond 16,777,216"):
        session.run({"x": np.array([value])})


def test_without_the_package_the_probe_says_what_to_install(monkeypatch):
    from relu_deploy.backends.openvino import probe as module

    monkeypatch.setattr(module, "is_installed", lambda name: False)
    found = probe("openvino")
    assert (found.usable, found.reason, found.fix) == (
        False,
        "openvino is not installed",
        "pip install 'relu-deploy[openvino]'",
    )


# ---------------------------------------------------------------- what the rest of the package does with it


def test_taps_come_back_beside_the_outputs(digits_bundle):
    relus = find_relus(load_model(digits_bundle.onnx))
    x = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    got = load(digits_bundle, "openvino", taps=tuple(relus)).run({"x": x})
    true = load(digits_bundle, "reference", taps=tuple(relus)).evaluate({"x": x})
    assert got.keys() == true.keys() == {"y", *(relu.output for relu in relus)}
    for name, array in got.items():
        np.testing.assert_allclose(array, true[name], rtol=1e-3, atol=1e-4)


def test_threads_that_share_a_session_get_their_own_answers(convolution):
    session = load(convolution, "openvino", threads=1)
    rows = [picture(1) * scale for scale in range(1, 17)]
    alone = [session.run({"x": row})["y"] for row in rows]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda row: session.run({"x": row})["y"], rows))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_inputs_are_told_apart_by_name_and_one_that_no_node_reads_is_taken(model):
    nodes = [helper.make_node("Sub", ["b", "a"], ["d"]), helper.make_node("Relu", ["d"], ["y"])]
    inputs = [info(name, FLOAT, ["n", 3]) for name in ("a", "unread", "b")]
    bundle = model(nodes, inputs, [info("y", FLOAT, ["n", 3]), info("d", FLOAT, ["n", 3])])
    session = load(bundle, "openvino")
    one, two = np.full((2, 3), 1, np.float32), np.full((2, 3), 5, np.float32)
    assert (session.run({"b": two, "unread": one, "a": one})["y"] == 4).all()
    results = session.run({"a": two, "unread": two, "b": one})
    assert [results[name].max() for name in ("y", "d")] == [0, -4]


def test_an_array_that_only_the_last_run_read_may_be_freed(convolution):
    session, pictures = load(convolution, "openvino"), picture(64)
    expected = session.run({"x": pictures[:3].copy()})["y"]
    for _ in range(20):
        session.run({"x": np.array(pictures)})
        assert (session.run({"x": pictures[:3].copy()})["y"] == expected).all()


def test_a_result_is_not_overwritten_by_the_next_run(convolution):
    session = load(convolution, "openvino")
    first = session.run({"x": picture()})["y"]
    kept = first.copy()
    session.run({"x": -picture()})
    np.testing.assert_array_equal(first, kept)


def test_verify_finds_every_number_right_and_that_nan_is_not_kept(digits_bundle):
    report = verify(digits_bundle, ["openvino"], against="reference")
    (backend,) = report.backends
    assert all(relu.comparison.passed for relu in backend.relus)
    assert all(output.passed for output in backend.outputs.values())
    assert backend.facts["precision"] == "float32"
    # OpenVINO's Relu gives 0 for NaN, which IEEE 754 and ONNX's definition of max do not.
    assert not report.passed
    assert any("NaN" in relu.contract.broken for relu in backend.relus if relu.contract and relu.contract.broken)


def test_the_command_names_the_lost_nan_and_how_to_accept_it(digits_bundle, command):
    arguments = ("verify", digits_bundle.path, "--backend", "openvino", "--against", "reference", "--quiet")
    refused = command(*arguments)
    assert refused.code == 1
    assert "NaN is not propagated: 1 of 1 Relus that it reached return a number for NaN" in refused.stdout
    assert "--accept nan-not-propagated" in refused.stdout
    accepted = command(*arguments, "--accept", "nan-not-propagated")
    assert accepted.code == 0
    assert "accepted: NaN is not propagated" in accepted.stdout


def test_prove_goes_through_every_int8():
    assert prove("openvino", "int8").passed


@pytest.mark.skipif(
    not has("FP16"), reason="this processor has no float16 arithmetic, as OpenVINO reports: run it on one with AVX512-FP16"
)
def test_prove_finds_what_happens_to_nan_in_float16():
    report = prove("openvino", "float16")
    assert not report.passed
    assert {kind for _, kind in report.failures} == {"nan"}
