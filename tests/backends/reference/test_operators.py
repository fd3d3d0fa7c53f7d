"""Operators with unusual attributes, each with the value worked out by hand from the ONNX specification."""

import math

import numpy as np
import pytest
from one_node import evaluate

from relu_deploy.backends.reference.ops.imaging import sampling
from relu_deploy.backends.reference.ops.layers import convolution


def f32(values):
    return np.array(values, np.float32)


def check(results, expected):
    np.testing.assert_allclose(results[0], expected, rtol=1e-12, atol=1e-12)


def test_a_depthwise_transposed_convolution_adds_its_bias():
    x, w, b = f32([[[1, 2], [3, 4]]]), f32([[[1, 10]], [[2, 0]]]), f32([100, 200])
    check(evaluate("ConvTranspose", [x, w, b], group=2), [[[101, 112, 120], [206, 208, 200]]])


def test_a_grouped_transposed_convolution_keeps_its_groups_apart():
    x, w = f32([[[1], [2], [3], [4]]]), f32([[[1, 2]], [[3, 4]], [[5, 6]], [[7, 8]]])
    check(evaluate("ConvTranspose", [x, w], group=2), [[[7, 10], [43, 50]]])


def test_large_transposed_convolutions_are_done_in_strips_with_the_same_result(monkeypatch):
    random = np.random.default_rng(0)
    x, w = random.standard_normal((2, 4, 5, 6)), random.standard_normal((4, 3, 3, 2))
    attributes = {"group": 2, "strides": [2, 3], "dilations": [2, 1], "pads": [1, 0, 0, 1]}
    (whole,) = evaluate("ConvTranspose", [x, w], **attributes)
    monkeypatch.setattr(convolution, "PATCHES", 1)
    np.testing.assert_allclose(evaluate("ConvTranspose", [x, w], **attributes)[0], whole, rtol=1e-12)


@pytest.mark.parametrize("elements", [1, 40, 2**40])
def test_depthwise_convolutions_are_summed_up_in_blocks_of_channels_with_the_same_result(monkeypatch, elements):
    random = np.random.default_rng(0)
    x, w = random.standard_normal((2, 3, 6, 7)), random.standard_normal((3, 1, 3, 2))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    expected = np.zeros((2, 3, 3, 5))
    for i in range(3):
        for j in range(2):
            expected += padded[:, :, i : i + 5 : 2, 2 * j : 2 * j + 5] * w[:, 0, i, j].reshape(-1, 1, 1)
    monkeypatch.setattr(convolution, "BLOCK", elements)
    (y,) = evaluate("Conv", [x, w], group=3, strides=[2, 1], dilations=[1, 2], pads=[1, 0, 1, 0])
    np.testing.assert_allclose(y, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("auto_pad", "expected"), [("NOTSET", [1, 3, 2, 2]), ("SAME_UPPER", [1, 1, 3, 2]), ("SAME_LOWER", [1, 3, 2, 2])]
)
def test_output_shape_of_a_transposed_convolution_sets_its_padding(auto_pad, expected):
    x, w = f32([[[1, 2]]]), f32([[[1, 1, 1]]])
    check(evaluate("ConvTranspose", [x, w], strides=[2], output_shape=[4], auto_pad=auto_pad), [[expected]])


def test_output_padding_of_a_transposed_convolution_adds_zeros_behind():
    x, w = f32([[[1, 2]]]), f32([[[1, 1]]])
    check(evaluate("ConvTranspose", [x, w], strides=[3], output_padding=[2]), [[[1, 1, 0, 2, 2, 0, 0]]])


def test_negative_pads_cut():
    check(evaluate("Pad", [f32([1, 2, 3, 4]), np.array([-1, 2])]), [2, 3, 4, 0, 0])


@pytest.mark.parametrize(("include", "expected"), [(1, [1.5, 2.5, 1.5]), (0, [1.5, 2.5, 3])])
def test_average_pool_counts_the_padding_of_same_when_asked(include, expected):
    results = evaluate("AveragePool", [f32([[[1, 2, 3]]])], kernel_shape=[2], auto_pad="SAME_UPPER", count_include_pad=include)
    check(results, [[expected]])


@pytest.mark.parametrize(("include", "expected"), [(1, [0.5, 2.5]), (0, [1, 2.5])])
def test_average_pool_in_ceil_mode_starts_no_window_on_the_padding_behind(include, expected):
    attributes = {"kernel_shape": [2], "strides": [2], "pads": [1, 1], "ceil_mode": 1, "count_include_pad": include}
    check(evaluate("AveragePool", [f32([[[1, 2, 3]]])], **attributes), [[expected]])


@pytest.mark.parametrize(("include", "expected"), [(1, 4), (0, 8)])
def test_average_pool_in_ceil_mode_does_not_count_what_hangs_over_the_padding(include, expected):
    attributes = {"kernel_shape": [3], "strides": [2], "pads": [1, 1], "ceil_mode": 1, "count_include_pad": include}
    assert evaluate("AveragePool", [f32([[range(1, 9)]])], **attributes)[0][0, 0, -1] == expected


def test_lp_pool_in_ceil_mode_has_the_last_window():
    results = evaluate("LpPool", [f32([[[3, 4, 1, 5, 12]]])], opset=18, kernel_shape=[2], strides=[2], ceil_mode=1)
    check(results, [[[5, math.sqrt(26), 12]]])


def test_same_padding_of_a_kernel_smaller_than_the_stride_is_none():
    # ONNX Runtime 1.32 pads by a negative number and reads other elements; PyTorch's max_pool1d agrees with these.
    results = evaluate("MaxPool", [f32([[range(9)]])], kernel_shape=[2], strides=[3], auto_pad="SAME_UPPER")
    check(results, [[[1, 4, 7]]])


@pytest.mark.parametrize(("order", "expected"), [(0, 1), (1, 2)])
def test_max_pool_gives_the_places_of_the_largest_elements(order, expected):
    y, places = evaluate("MaxPool", [f32([[[[1, 3], [2, 0]]]])], outputs=2, kernel_shape=[2, 2], storage_order=order)
    assert (y.item(), places.item(), places.dtype) == (3, expected, np.int64)


def test_places_of_max_pool_count_through_batch_and_channels():
    x = f32(np.arange(8).reshape(2, 2, 2))
    assert evaluate("MaxPool", [x], outputs=2, kernel_shape=[2])[1].ravel().tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize("opset", [1, 11, 12])
def test_log_softmax_before_opset_13_counts_the_axes_behind_as_one(opset):
    check(evaluate("LogSoftmax", [np.zeros((1, 2, 2), np.float32)], opset=opset, axis=1), np.full((1, 2, 2), math.log(0.25)))


@pytest.mark.parametrize(("opset", "expected"), [(11, [[[0, 0], [1, 0]]]), (13, [[[0, 0], [1, 1]]])])
def test_hardmax_marks_one_element_of_all_axes_behind_before_opset_13(opset, expected):
    check(evaluate("Hardmax", [f32([[[1, 2], [4, 3]]])], opset=opset, axis=1), expected)


def test_lp_normalization_of_one_divides_by_the_sum_of_sizes():
    check(evaluate("LpNormalization", [f32([[1, -3], [0, 0]])], p=1), [[0.25, -0.75], [0, 0]])


def test_mean_variance_normalization_takes_batch_and_space():
    x = f32([1, 3]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(evaluate("MeanVarianceNormalization", [x], opset=13)[0].ravel(), [-1, 1], rtol=1e-8)


@pytest.mark.parametrize("opset", [10, 13, 17, 19, 21, 25])
def test_dequantize_linear_exists_in_every_opset(opset):
    results = evaluate("DequantizeLinear", [np.array([130, 0], np.uint8), f32(0.5), np.array(128, np.uint8)], opset=opset)
    check(results, [1, -64])


def test_quantization_of_an_axis_has_a_scale_for_each_of_its_elements():
    x, scale = np.array([[4, 8], [4, 8]], np.int8), f32([0.5, 0.25])
    check(evaluate("DequantizeLinear", [x, scale], opset=13, axis=0), [[2, 4], [1, 2]])
    check(evaluate("DequantizeLinear", [x, scale], opset=13), [[2, 2], [2, 2]])


def test_blocks_of_a_quantization_share_a_scale():
    x, scale = np.array([[1, 1, 1, 1, 1]], np.int8), f32([[1, 10, 100]])
    check(evaluate("DequantizeLinear", [x, scale], opset=21, axis=1, block_size=2), [[1, 1, 10, 10, 100]])


def test_halves_between_levels_go_to_the_even_one_and_sums_saturate():
    x = f32([0.5, 1.5, 2.5, -0.5, 1e9, -1e9])
    results = evaluate("QuantizeLinear", [x, f32(1), np.array(10, np.uint8)], opset=13)
    assert results[0].tolist() == [10, 12, 12, 10, 255, 0]


@pytest.mark.parametrize("wide", [False, True])
def test_dynamic_quantization_is_computed_in_float32_whatever_evaluates_it(wide):
    # 0.5 / float32(5 / 255) is 25.4999991, but 25.5 in float32, where the operator is defined: it becomes 26.
    results = evaluate("DynamicQuantizeLinear", [f32([0, 2, -3, -2.5, 1.34, 0.5])], opset=11, outputs=3, wide=wide)
    assert results[0].tolist() == [153, 255, 0, 26, 221, 179]
    assert (float(results[1]), int(results[2])) == (float(np.float32(5 / 255)), 153)


@pytest.mark.parametrize(("opset", "mode"), [(16, "bilinear"), (20, "linear"), (22, "linear")])
def test_grid_sample_reads_between_pixels_and_zeros_outside(opset, mode):
    x, grid = f32([[[[1, 2], [3, 4]]]]), f32([[[[0, 0], [-1, -1], [0.5, -0.5]]]])
    check(evaluate("GridSample", [x, grid], opset=opset, mode=mode), [[[[2.5, 0.25, 2]]]])


def test_scatter_of_old_graphs_writes_elements():
    check(evaluate("Scatter", [f32([1, 2, 3]), np.array([1, -1]), f32([8, 9])], opset=9), [1, 8, 9])


@pytest.mark.parametrize("wide", [False, True])
def test_bit_cast_keeps_the_bits_of_the_graphs_type(wide):
    (y,) = evaluate("BitCast", [f32([1, -2])], opset=26, to=6, wide=wide)
    assert y.tolist() == [0x3F800000, -0x40000000]


def test_range_counts_by_fractions():
    check(evaluate("Range", [f32(0), f32(1), f32(0.25)], opset=11), [0, 0.25, 0.5, 0.75])
    assert evaluate("Range", [np.array(10), np.array(4), np.array(-2)], opset=11)[0].tolist() == [10, 8, 6]


def test_gather_elements_takes_indices_smaller_than_the_data():
    check(evaluate("GatherElements", [f32([[1, 2], [3, 4]]), np.array([[1]])], axis=1), [[2]])


def test_one_hot_takes_a_depth_of_one_element():
    check(evaluate("OneHot", [np.array([0, -1, 9]), np.array([3]), f32([0, 1])], opset=11), [[1, 0, 0], [0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 2, 1, 3), (1, 2, 1, 1, 3)])
def test_global_pools_take_every_number_of_axes(shape):
    x = f32([[3, 4, 0], [1, 2, 3]]).reshape(shape)
    for name, expected in (("GlobalMaxPool", [4, 3]), ("GlobalAveragePool", [7 / 3, 2]), ("GlobalLpPool", [5, math.sqrt(14)])):
        np.testing.assert_allclose(evaluate(name, [x])[0].ravel(), expected)


@pytest.mark.parametrize(
    ("operator", "opset", "attributes"), [("Upsample", 7, {"scales": [1.0, 1, 1, 2]}), ("Upsample", 9, {}), ("Resize", 10, {})]
)
def test_upsampling_of_old_graphs_repeats_pixels(operator, opset, attributes):
    operands = [f32([[[[1, 2]]]])] + ([] if attributes else [f32([1, 1, 1, 2])])
    check(evaluate(operator, operands, opset=opset, mode="nearest", **attributes), [[[[1, 1, 2, 2]]]])


def test_a_backward_slice_to_the_end_of_the_axis_is_empty():
    # The specification clamps the end to the last element; ONNX Runtime 1.32 takes INT_MAX as the beginning.
    operands = [f32([1, 2, 3]), np.array([1]), np.array([2**31 - 1]), np.array([0]), np.array([-1])]
    assert evaluate("Slice", operands)[0].shape == (0,)
    operands[2] = np.array([-(2**31)])
    check(evaluate("Slice", operands), [2, 1])


def test_a_fraction_of_a_length_is_rounded_as_in_float32():
    # Ten times float32(0.7) is a little less than 7 in float64, and 7 in the arithmetic of every runtime.
    x = f32(np.arange(10)).reshape(1, 1, 1, 10)
    assert evaluate("Resize", [x, None, f32([1, 1, 1, 0.7])], mode="linear")[0].shape[-1] == 7


@pytest.mark.parametrize(("mode", "expected"), [("round_prefer_ceil", 4), ("round_prefer_floor", 3)])
def test_halves_between_pixels_are_exact_where_the_sizes_are_given(mode, expected):
    # Element 8 of 16 lies at 8 * 7 / 16 = 3.5, which a division by float32(16 / 7) misses.
    operands = [f32([range(7)]), None, None, np.array([1, 16])]
    results = evaluate("Resize", operands, mode="nearest", nearest_mode=mode, coordinate_transformation_mode="asymmetric")
    assert results[0][0, 8] == expected


def test_whole_numbers_of_pixels_are_those_of_float32():
    # Element 3 lies at 3 / float32(0.3): 9.9999996 in float64, and 10 in the arithmetic of every runtime.
    operands = [f32([range(20)]), None, f32([1, 0.3])]
    results = evaluate("Resize", operands, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric")
    assert results[0][0, 3] == 10


def test_roi_align_before_opset_16_starts_at_pixels_corners():
    x, rois, batch = f32(np.arange(16)).reshape(1, 1, 4, 4), f32([[0, 0, 2, 2]]), np.array([0])
    sizes = {"output_height": 1, "output_width": 1, "sampling_ratio": 1}
    assert evaluate("RoiAlign", [x, rois, batch], opset=10, **sizes)[0].item() == 5
    assert evaluate("RoiAlign", [x, rois, batch], opset=16, **sizes)[0].item() == 2.5


def test_integers_divide_toward_zero_and_have_a_remainder_of_the_divisors_sign():
    a, b = np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])
    assert evaluate("Div", [a, b])[0].tolist() == [3, -3, -3, 3]
    assert evaluate("Mod", [a, b])[0].tolist() == [1, 1, -1, -1]
    assert evaluate("Mod", [a, b], fmod=1)[0].tolist() == [1, -1, 1, -1]


def test_the_upper_bound_of_a_clip_wins_where_the_bounds_cross():
    check(evaluate("Clip", [f32([0, 3, 9]), f32(4), f32(2)]), [2, 2, 2])


def test_the_error_function_is_right_to_the_last_digits():
    x = np.concatenate([np.linspace(-7, 7, 4001), [1e-300, -1e-20, np.inf, -np.inf]])
    (y,) = evaluate("Erf", [x])
    np.testing.assert_allclose(y, [math.erf(value) for value in x], rtol=1e-15, atol=0)
    assert np.isnan(evaluate("Erf", [np.array([np.nan])])[0]).all()


def test_halves_are_computed_in_float32_and_rounded_once():
    x = np.full((1, 4096), 1, np.float16)
    (y,) = evaluate("ReduceSum", [x + np.float16(0.0009765625)], wide=False)
    assert (y.dtype, y.item()) == (np.float16, 4100)


def test_random_numbers_have_the_moments_that_the_node_names():
    shape = {"shape": [100_000], "seed": 3.0}
    like = [np.zeros(100_000, np.float32)]
    normal = {"mean": 2.0, "scale": 3.0}
    for y in (evaluate("RandomNormal", [], **normal, **shape)[0], evaluate("RandomNormalLike", like, **normal, seed=3.0)[0]):
        assert abs(y.mean() - 2) < 0.05
        assert abs(y.std() - 3) < 0.05
    uniform = {"low": -1.0, "high": 3.0}
    for y in (evaluate("RandomUniform", [], **uniform, **shape)[0], evaluate("RandomUniformLike", like, **uniform, seed=3.0)[0]):
        assert (y.min() >= -1) & (y.max() < 3)
        assert abs(y.mean() - 1) < 0.02
    assert abs(evaluate("Bernoulli", [np.full(100_000, 0.3, np.float32)], opset=22, seed=3.0)[0].mean() - 0.3) < 0.01
    logs = np.log(f32([[0.1, 0.2, 0.7]]))
    (classes,) = evaluate("Multinomial", [logs], sample_size=100_000, seed=3.0)
    np.testing.assert_allclose(np.bincount(classes[0]) / 100_000, [0.1, 0.2, 0.7], atol=0.01)


def test_graphs_of_the_first_versions_say_where_a_smaller_operand_is_added():
    x, b = f32(np.zeros((2, 3, 1))), f32([1, 2, 3])
    check(evaluate("Add", [x, b], opset=6, broadcast=1, axis=1), np.broadcast_to([[[1], [2], [3]]], (2, 3, 1)))
    check(evaluate("Sub", [f32([[1, 2]]), f32([1])], opset=6, broadcast=1), [[0, 1]])


def test_graphs_of_the_first_versions_have_their_sizes_in_attributes():
    x = f32([[1, 2, 3]])
    check(evaluate("Slice", [x], opset=9, starts=[-2], ends=[9], axes=[1]), [[2, 3]])
    check(evaluate("Pad", [x], opset=2, pads=[0, 1, 0, 0], value=5.0), [[5, 1, 2, 3]])
    check(evaluate("Reshape", [x], opset=1, shape=[3, -1]), [[1], [2], [3]])
    check(evaluate("Tile", [x, np.array(2), np.array(0)], opset=1), [[1, 2, 3], [1, 2, 3]])
    check(evaluate("Squeeze", [x], opset=11, axes=[0]), [1, 2, 3])
    check(evaluate("Clip", [x], opset=6, max=2.0), [[1, 2, 2]])
    assert evaluate("Cast", [x], opset=1, to="INT32")[0].dtype == np.int32
    assert [y.tolist() for y in evaluate("Split", [x], opset=2, outputs=2, axis=1, split=[1, 2])] == [[[1]], [[2, 3]]]


def test_a_slope_of_the_first_versions_is_of_the_channels():
    check(evaluate("PRelu", [f32([[[-1], [-1]]]), f32([2, 3])], opset=6), [[[-2], [-3]]])


def test_a_batch_normalization_of_the_first_versions_may_normalize_each_element():
    x, one, zero = f32([[[3, 5]]]), f32([[1, 1]]), f32([[0, 0]])
    results = evaluate("BatchNormalization", [x, one, zero, f32([[1, 2]]), f32([[4, 9]])], opset=7, spatial=0, epsilon=0.0)
    check(results, [[[1, 1]]])


def test_a_batch_normalization_that_trains_takes_the_batch_and_moves_its_statistics():
    x, one = f32([[[1, 3]], [[5, 7]]]), f32([1])
    y, mean, variance = evaluate(
        "BatchNormalization", [x, one, f32([0]), f32([0]), one], outputs=3, training_mode=1, momentum=0.5, epsilon=0.0
    )
    np.testing.assert_allclose(y.ravel(), np.array([-3, -1, 1, 3]) / math.sqrt(5))
    np.testing.assert_allclose([mean.item(), variance.item()], [2, 3])


def test_large_tensors_are_shared_among_threads_with_the_same_result(monkeypatch):
    x = np.random.default_rng(0).standard_normal((40, 5000))
    x[3, 7] = np.nan
    results = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(evaluate("Erf", [x]) + evaluate("Softmax", [x]))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isnan(results[0][0][3, 7])


def test_large_grids_are_read_in_parts_with_the_same_result(monkeypatch):
    random = np.random.default_rng(0)
    x, grid = random.standard_normal((2, 3, 5, 6)), random.uniform(-1, 1, (2, 7, 4, 2))
    (whole,) = evaluate("GridSample", [x, grid])
    monkeypatch.setattr(sampling, "BLOCK", 5)
    np.testing.assert_array_equal(evaluate("GridSample", [x, grid])[0], whole)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("levels", [0, 40], ids=["all different", "many equal"])
def test_a_few_of_many_elements_are_those_of_a_stable_sort(levels, largest):
    random = np.random.default_rng(0)
    x = random.integers(0, levels, (3, 2, 500)).astype(np.float32) if levels else random.standard_normal((3, 2, 500))
    values, places = evaluate("TopK", [x, np.array([7])], outputs=2, largest=largest)
    expected = np.argsort(-x if largest else x, axis=-1, kind="stable")[..., :7]
    assert np.array_equal(places, expected)
    assert np.array_equal(values, np.take_along_axis(x, expected, -1))


@pytest.mark.parametrize("alpha", [0.01, 0.0, 1.0, 2.0, -0.5])
def test_a_leaky_relu_of_any_slope_takes_every_number(alpha):
    x = np.array([-2.0, -0.0, 0.0, 3.0, np.inf, np.nan])
    expected = [np.float32(alpha).astype(float) * -2, 0.0, 0.0, 3.0, np.inf, np.nan]
    check(evaluate("LeakyRelu", [x], alpha=alpha), expected)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0, 2.5])
def test_a_power_is_that_of_the_specification_for_negative_and_infinite_numbers(exponent):
    x = np.array([-2.0, -0.5, 0.0, 3.0, -np.inf, np.inf, np.nan])
    with np.errstate(invalid="ignore"):
        check(evaluate("Pow", [x, np.array(exponent)]), np.power(x, exponent))


def test_a_depthwise_convolution_adds_its_taps_a_few_channels_at_a_time_with_the_same_result(monkeypatch):
    random = np.random.default_rng(0)
    x, w = random.standard_normal((2, 5, 7, 6)), random.standard_normal((5, 1, 3, 2))
    attributes = {"group": 5, "strides": [2, 1], "pads": [1, 0, 1, 1]}
    expected = np.concatenate(
        [
            evaluate("Conv", [x[:, channel : channel + 1], w[channel : channel + 1]], strides=[2, 1], pads=[1, 0, 1, 1])[0]
            for channel in range(5)
        ],
        1,
    )
    for size in (1, convolution.BLOCK):
        monkeypatch.setattr(convolution, "BLOCK", size)
        check(evaluate("Conv", [x, w], **attributes), expected)


@pytest.mark.parametrize("terms", [1, 256, 257, 900])
def test_sums_of_8_bit_products_are_exact_for_any_number_of_terms(terms):
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 256, shape).astype(np.uint8) for shape in ((3, terms), (terms, 4)))
    zeros = np.array(255, np.uint8), np.array(0, np.uint8)
    expected = (a.astype(np.int64) - 255) @ b.astype(np.int64)
    assert np.array_equal(evaluate("MatMulInteger", [a, b, *zeros])[0], expected)


def test_a_level_far_out_of_range_is_clipped_and_a_nan_is_the_zero_point():
    x = np.array([1e30, -1e30, np.inf, -np.inf, np.nan, 1.5, 2.5], np.float32)
    levels = evaluate("QuantizeLinear", [x, np.float32(1), np.uint8(7)])[0]
    assert levels.tolist() == [255, 0, 255, 0, 7, 9, 9]


@pytest.mark.parametrize("corners", [0, 1])
def test_an_affine_grid_holds_the_transformed_places_of_the_pixels(corners):
    theta = np.random.default_rng(0).standard_normal((2, 2, 3))
    (grid,) = evaluate("AffineGrid", [theta, np.array([2, 3, 2, 3])], align_corners=corners)
    # The centers of 2 rows and 3 columns of pixels, or of the pixels at the corners.
    rows, columns = ([-1, 1], [-1, 0, 1]) if corners else ([-1 / 2, 1 / 2], [-2 / 3, 0, 2 / 3])
    expected = [[[one @ [x, y, 1] for x in columns] for y in rows] for one in theta]
    np.testing.assert_allclose(grid, expected, atol=1e-14)


def test_an_affine_grid_of_volumes_has_the_last_axis_first():
    theta = np.random.default_rng(1).standard_normal((1, 3, 4))
    (grid,) = evaluate("AffineGrid", [theta, np.array([1, 1, 2, 1, 2])])
    expected = [[[theta[0] @ [x, 0, z, 1] for x in (-0.5, 0.5)]] for z in (-0.5, 0.5)]
    np.testing.assert_allclose(grid[0], expected, atol=1e-14)
