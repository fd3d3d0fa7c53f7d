"""How far off a single element may be: what decides whether a zero is at the wrong place or merely rounded there."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.graph import Relu, load_model
from relu_deploy.verification.against import relus_to_compare
from relu_deploy.verification.judging.contract import check_contract
from relu_deploy.verification.judging.tensor_noise import single_noise
from relu_deploy.verification.judging.verdict import LIMITS, SINGLE, rms

RELU = Relu("r", 0, "relu", "x", "y", None, "", "", ())


def scene(seed=0, ink=0.05):
    """Return the truth of a Relu on an even ground with some ink, and an evaluation that is off hardly at all on the ground."""
    random = np.random.default_rng(seed)
    inked = random.random((1, 4, 64, 64)) < ink
    before = np.where(inked, random.normal(0, 1, inked.shape), random.normal(0.5, 0.01, inked.shape))
    noise = np.where(inked, 0.1 * random.standard_t(3, inked.shape), 1e-3 * random.standard_normal(inked.shape))
    return np.maximum(before, 0), np.maximum(before + noise, 0), inked


@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("seed", range(5))
def test_another_draw_of_noise_with_long_tails_breaks_no_contract(seed, precision):
    true, evaluation, inked = scene(seed)
    tails = 0.1 * np.random.default_rng(seed + 100).standard_t(3, true.shape)
    got = np.maximum(true + np.where(inked, tails, 0), 0) * (true > 0)
    single = single_noise(true, evaluation)
    assert check_contract(RELU, got.astype(np.float32), true, single, precision, None).broken == ""


def test_a_zero_where_the_truth_is_far_above_all_noise_breaks_the_contract():
    true, evaluation, _ = scene()
    single = single_noise(true, evaluation)
    at = np.unravel_index(np.argmax(true), true.shape)
    true[at] = 1.1 * LIMITS["int8"] * single.max()
    got = true.astype(np.float32)
    got[at] = 0
    assert check_contract(RELU, got, true, single, "int8", None).mask_errors == 1
    true[at] = 0
    got[at] = 1.1 * LIMITS["int8"] * single.max()
    assert check_contract(RELU, got, true, single, "int8", None).mask_errors == 1


def test_a_single_element_may_be_off_by_four_rms_errors_or_the_largest_that_was_seen():
    true = np.zeros((1, 2, 1, 1000))
    even, spiked = np.full_like(true, 0.5), np.full_like(true, 0.5)
    spiked[0, 1, 0, 7] = 100
    assert np.allclose(single_noise(true, even), SINGLE * 0.5)
    both = single_noise(true, spiked)
    assert both[0, 1, 0, 0] == pytest.approx(100)
    # What all channels have together holds for each; a spike of one does not otherwise make up for another.
    assert both[0, 0, 0, 0] == pytest.approx(SINGLE * rms(spiked))
    assert single_noise(true, even, spiked)[0, 1, 0, 0] == pytest.approx(100)


def test_elements_without_any_error_do_not_dilute_the_others():
    true = np.zeros((1, 1, 1, 10_000))
    sparse = true.copy()
    sparse[..., :10] = 1.0
    assert single_noise(true, sparse).item() == pytest.approx(SINGLE)


def saved(file, *nodes):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    constants = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


CONVERTED = {
    "cast": [
        helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["x16"], ["y16"]),
        helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT),
    ],
    "quantized": [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ],
    "replaced": [helper.make_node("LeakyRelu", ["x"], ["y"])],
}


@pytest.mark.parametrize("how", CONVERTED)
def test_a_relu_whose_numbers_are_converted_back_counts_once(tmp_path, how):
    original = saved(tmp_path / "original.onnx", helper.make_node("Relu", ["x"], ["y"]))
    relus = relus_to_compare(load_model(saved(tmp_path / "converted.onnx", *CONVERTED[how])), str(original))
    assert [relu.output for relu in relus] == ["y"]
