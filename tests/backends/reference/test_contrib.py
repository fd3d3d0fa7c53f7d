"""Operators that ONNX Runtime's optimizer and quantizer write, each with the value worked out by hand."""

import math

import numpy as np
import pytest
from one_node import evaluate

from relu_deploy.errors import Unsupported

CONTRIB = {"domain": "com.microsoft", "opset": 17}


def f32(values):
    return np.array(values, np.float32)


def u8(values):
    return np.array(values, np.uint8)


def test_quantized_sums_and_products_are_of_the_values_that_the_levels_stand_for():
    a, b = [u8([10, 20]), f32(0.5), u8(10)], [u8([4, 8]), f32(2), u8(2)]  # 0, 5 and 4, 12
    assert evaluate("QLinearAdd", [*a, *b, f32(1), u8(3)], **CONTRIB)[0].tolist() == [7, 20]
    assert evaluate("QLinearMul", [*a, *b, f32(1), u8(3)], **CONTRIB)[0].tolist() == [3, 63]


def test_a_quantized_mean_over_space_is_rounded_once():
    x = [u8([[[[1, 2], [3, 6]]]]), f32(1), u8(0)]
    assert evaluate("QLinearGlobalAveragePool", [*x, f32(0.5), u8(1)], **CONTRIB)[0].item() == 7


def test_a_quantized_average_pool_does_not_count_what_hangs_over_the_padding():
    # The second window holds 4, a zero of the padding and nothing. ONNX Runtime 1.32 divides it by three, and by two in its
    # other pools.
    x = [u8([[[[1, 2, 3, 4]]]]), f32(1), u8(0)]
    attributes = {"kernel_shape": [1, 3], "strides": [1, 3], "pads": [0, 0, 0, 1], "ceil_mode": 1, "count_include_pad": 1}
    assert evaluate("QLinearAveragePool", [*x, f32(0.5), u8(0)], **CONTRIB, **attributes)[0].tolist() == [[[[4, 4]]]]


def test_quantized_parts_are_joined_on_one_scale():
    parts = [u8([[2]]), f32(1), u8(0), u8([[9]]), f32(2), u8(8)]
    assert evaluate("QLinearConcat", [f32(0.5), u8(1), *parts], axis=1, **CONTRIB)[0].tolist() == [[5, 5]]


def test_quantized_activations():
    x = [u8([0, 128, 130]), f32(0.5), u8(128)]
    assert evaluate("QLinearLeakyRelu", [*x, f32(0.5), u8(128)], alpha=0.5, **CONTRIB)[0].tolist() == [64, 128, 130]
    assert evaluate("QLinearSigmoid", [*x, f32(1 / 256), u8(0)], **CONTRIB)[0].tolist() == [0, 128, 187]


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_a_quantized_convolution_sums_integers_exactly(domain):
    x, w, bias = u8([[[[3, 5]]]]), np.array([[[[2, -1]]]], np.int8), np.array([10], np.int32)
    operands = [x, f32(0.5), u8(1), w, f32([0.25]), np.array([0], np.int8), f32(0.25), u8(7), bias]
    # (3 - 1) * 2 - (5 - 1) + 10 = 10, times 0.5 * 0.25 / 0.25 = 5, plus 7
    assert evaluate("QLinearConv", operands, domain=domain, opset=17)[0].tolist() == [[[[12]]]]


def test_quantized_matrix_products():
    a, b = u8([[3, 5]]), np.array([[2], [-1]], np.int8)
    scales = [a, f32(0.5), u8(1), b, f32(0.25), np.array(0, np.int8)]
    assert evaluate("QLinearMatMul", [*scales, f32(0.25), u8(7)], opset=17)[0].tolist() == [[7]]
    assert evaluate("MatMulInteger", [a, b, u8(1), np.array(1, np.int8)], opset=17)[0].tolist() == [[-6]]
    assert evaluate("QGemm", [*scales, np.array([8], np.int32)], alpha=1.0, **CONTRIB)[0].tolist() == [[1.0]]
    assert evaluate("MatMulIntegerToFloat", [a, b, f32(0.5), f32(0.25), u8(1), None, f32([2])], **CONTRIB)[0].tolist() == [[2.0]]


def test_a_fused_convolution_applies_its_activation_last():
    x, w, b, z = f32([[[1, -2]]]), f32([[[3]]]), f32([1]), f32([[[-5, 7]]])
    assert evaluate("FusedConv", [x, w, b, z], activation="Relu", **CONTRIB)[0].tolist() == [[[0, 2]]]
    clipped = evaluate("FusedConv", [x, w, b], activation="Clip", activation_params=[0.0, 3.0], **CONTRIB)
    assert clipped[0].tolist() == [[[3, 0]]]


def test_fused_products_transpose_and_scale():
    a, b = f32([[1, 2], [3, 4]]), f32([[1], [1]])
    assert evaluate("FusedMatMul", [a, b], transA=1, alpha=0.5, **CONTRIB)[0].tolist() == [[2], [3]]
    assert evaluate("FusedGemm", [a, b, f32([-4])], activation="Relu", **CONTRIB)[0].tolist() == [[0], [3]]


def test_the_gelus():
    x = f32([-1, 0, 2])
    exact = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()]
    tanh = [value * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3))) for value in x.tolist()]
    quick = [value / (1 + math.exp(-1.702 * value)) for value in x.tolist()]
    for name, operands, expected in (
        ("Gelu", [x], exact), ("BiasGelu", [x - 1, f32([1, 1, 1])], exact), ("FastGelu", [x], tanh),
        ("FastGelu", [x - 1, f32([1, 1, 1])], tanh), ("QuickGelu", [x], quick),
    ):  # fmt: skip
        np.testing.assert_allclose(evaluate(name, operands, **CONTRIB)[0], expected, rtol=1e-7)


def test_a_skipped_layer_normalization_adds_before_it_normalizes():
    x, skip, gamma, beta = f32([[[1, 2]]]), f32([[[0, 3]]]), f32([2, 2]), f32([1, 1])
    results = evaluate("SkipLayerNormalization", [x, skip, gamma, beta], epsilon=0.0, **CONTRIB)
    np.testing.assert_allclose(results[0], [[[-1, 3]]])


def test_packed_weights_of_four_bits_have_the_low_half_first():
    a, packed = f32([[1] + [0] * 15]), np.full((1, 1, 8), 0x9A, np.uint8)
    attributes = {"K": 16, "N": 1, "bits": 4, "block_size": 16}
    assert evaluate("MatMulNBits", [a, packed, f32([0.5])], **attributes, **CONTRIB)[0].item() == 0.5 * (0xA - 8)


def test_a_biased_softmax_takes_a_bias_that_repeats():
    x, bias = np.zeros((2, 1, 2), np.float32), f32([0, math.log(3)]).reshape(1, 1, 2)
    results = evaluate("BiasSoftmax", [x, bias], axis=2, is_inner_broadcast=1, **CONTRIB)
    np.testing.assert_allclose(results[0], np.broadcast_to([0.25, 0.75], (2, 1, 2)), rtol=1e-7)


def test_channels_may_come_last():
    x, w = f32([1, 10, 2, 20]).reshape(1, 2, 2), f32([[[1], [-1]]])
    assert evaluate("NhwcFusedConv", [x, w], activation="Relu", **CONTRIB)[0].tolist() == [[[0], [0]]]
    assert evaluate("NhwcFusedConv", [x, -w], activation="Relu", **CONTRIB)[0].tolist() == [[[9], [18]]]
    assert evaluate("NhwcMaxPool", [x], kernel_shape=[2], **CONTRIB)[0].tolist() == [[[2, 20]]]


def test_a_quantized_mean_over_axes_is_rounded_once():
    x = [u8([[1, 2], [4, 8]]), f32(1), u8(1)]
    assert evaluate("QLinearReduceMean", [*x, f32(0.5), u8(0)], axes=[1], keepdims=0, **CONTRIB)[0].tolist() == [1, 10]


def test_normalization_by_the_root_mean_square():
    x, scale = f32([[3, 4]]), f32([1, 2])
    root = math.sqrt(12.5)
    for domain in ("", "com.microsoft"):
        results = evaluate("SimplifiedLayerNormalization", [x, scale], domain=domain, opset=17, epsilon=0.0)
        np.testing.assert_allclose(results[0], [[3 / root, 8 / root]])
    results = evaluate("SkipSimplifiedLayerNormalization", [x - 1, f32([[1, 1]]), scale], epsilon=0.0, **CONTRIB)
    np.testing.assert_allclose(results[0], [[3 / root, 8 / root]])


def test_embeddings_are_added_and_normalized():
    ids, words, places = np.array([[1, 0]], np.int32), f32([[0, 0], [1, 5]]), f32([[0, 0], [2, 8]])
    operands = [ids, None, words, places, None, f32([1, 1]), f32([0, 10]), np.array([[1, 0]], np.int32)]
    y, lengths = evaluate("EmbedLayerNormalization", operands, outputs=2, epsilon=0.0, **CONTRIB)
    assert (y.tolist(), lengths.tolist()) == ([[[-1, 11], [-1, 11]]], [1])


def test_the_old_name_of_a_transposing_product():
    assert evaluate("TransposeMatMul", [f32([[1, 2], [3, 4]]), f32([[1], [1]])], transA=1, **CONTRIB)[0].tolist() == [[4], [6]]


def test_forms_that_are_not_evaluated_are_refused_by_name():
    x, w, b, past = f32(np.ones((1, 2, 4))), f32(np.ones((4, 12))), f32(np.ones(12)), f32(np.ones((2, 1, 2, 1, 2)))
    with pytest.raises(Unsupported, match=r"com\.microsoft\.Attention with past keys .*\(node 'node'\)"):
        evaluate("Attention", [x, w, b, None, past], num_heads=2, **CONTRIB)
    with pytest.raises(Unsupported, match="the fused activation 'Mystery'"):
        evaluate("FusedConv", [f32([[[1]]]), f32([[[1]]])], activation="Mystery", **CONTRIB)
