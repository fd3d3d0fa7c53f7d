"""LSTM, GRU and RNN with lengths, clips and other activations, each with the value worked out by hand."""

import math

import numpy as np
from one_node import evaluate


def check(results, expected):
    np.testing.assert_allclose(results[0], expected, rtol=1e-12, atol=1e-12)


def lstm(**attributes):
    """Gates i, o, f are open and each step adds 0.5 to the cell: after t steps it holds t / 2."""
    x, zero = np.zeros((2, 2, 1), np.float32), np.zeros((1, 4, 1), np.float32)
    bias = np.array([[100, 100, 100, math.atanh(0.5), 0, 0, 0, 0]])
    return evaluate("LSTM", [x.astype(np.float64), zero.astype(np.float64), zero.astype(np.float64), bias, np.array([2, 1], np.int32)],
                    opset=14, outputs=3, hidden_size=1, **attributes)  # fmt: skip


def test_lstm_stops_at_the_length_of_each_sequence():
    y, h, c = lstm()
    np.testing.assert_allclose(y[:, 0, :, 0], [[math.tanh(0.5)] * 2, [math.tanh(1), 0]])
    np.testing.assert_allclose(h.ravel(), [math.tanh(1), math.tanh(0.5)])
    np.testing.assert_allclose(c.ravel(), [1, 0.5])


def test_lstm_clips_the_sums_of_its_gates():
    _, _, c = lstm(clip=0.25)
    gate = 1 / (1 + math.exp(-0.25))
    first = gate * math.tanh(0.25)
    np.testing.assert_allclose(c.ravel(), [gate * first + first, first])


def test_lstm_has_the_activations_that_the_node_names():
    x, zero, bias = np.zeros((1, 1, 1)), np.zeros((1, 4, 1)), np.array([[0.0, 0, 0, 1, 0, 0, 0, 0]])
    results = evaluate("LSTM", [x, zero, zero, bias], opset=14, hidden_size=1, activations=["HardSigmoid", "Softsign", "Relu"])
    check(results, [[[[0.5 * 0.5 * 0.5]]]])


def test_gru_stops_at_the_length_of_each_sequence():
    x, zero = np.zeros((2, 2, 1)), np.zeros((1, 3, 1))
    bias = np.array([[-100.0, 0, 0.5, 0, 0, 0]])
    y, h = evaluate("GRU", [x, zero, zero, bias, np.array([2, 1], np.int32)], opset=14, outputs=2, hidden_size=1)
    np.testing.assert_allclose(y[:, 0, :, 0], [[math.tanh(0.5)] * 2, [math.tanh(0.5), 0]])
    np.testing.assert_allclose(h.ravel(), [math.tanh(0.5)] * 2)


def test_gru_resets_the_state_before_or_after_its_product():
    # One step from h = 2 with all gates at 1/2: tanh(1/2 * 2 * 1 + 1/2 * bias) after, tanh(1/2 * 2 * 1 + bias) before.
    x, w, r = np.zeros((1, 1, 1)), np.zeros((1, 3, 1)), np.array([[[0.0], [0], [1]]])
    operands = [x, w, r, np.array([[0.0, 0, 0, 0, 0, 4]]), None, np.full((1, 1, 1), 2.0)]
    for after, inner in ((1, 3.0), (0, 5.0)):
        y = evaluate("GRU", operands, opset=14, hidden_size=1, linear_before_reset=after)[0]
        np.testing.assert_allclose(y.item(), 0.5 * math.tanh(inner) + 1)


def test_rnn_with_relu_is_no_tanh():
    x, one = np.array([1.0, 2, -9]).reshape(3, 1, 1), np.ones((1, 1, 1))
    check(evaluate("RNN", [x, one, one], opset=14, hidden_size=1, activations=["Relu"]), np.reshape([1, 3, 0], (3, 1, 1, 1)))


def test_rnn_clips_the_argument_of_its_activation():
    x, one = np.full((1, 1, 1), 3.0), np.ones((1, 1, 1))
    check(evaluate("RNN", [x, one, one], opset=14, hidden_size=1, clip=0.5), [[[[math.tanh(0.5)]]]])


def test_a_reversed_sequence_starts_at_its_own_end():
    x, one = np.array([1.0, 2, 9]).reshape(3, 1, 1), np.ones((1, 1, 1))
    operands = [x, one, one, None, np.array([2], np.int32)]
    y, h = evaluate("RNN", operands, opset=14, outputs=2, hidden_size=1, direction="reverse", activations=["Relu"])
    assert (y.ravel().tolist(), h.item()) == ([3, 2, 0], 3)


def test_a_plain_lstm_is_one_whose_sequences_all_have_every_step():
    random = np.random.default_rng(0)
    x, w, r, b = (random.standard_normal(shape) for shape in ((6, 2, 3), (2, 16, 3), (2, 16, 4), (2, 32)))
    h, c = random.standard_normal((2, 2, 2, 4))
    attributes = {"opset": 14, "outputs": 3, "hidden_size": 4, "direction": "bidirectional"}
    plain = evaluate("LSTM", [x, w, r, b, None, h, c], **attributes)
    # Lengths and the peepholes of 0 are the long way round.
    lengths, peepholes = np.array([6, 6], np.int32), np.zeros((2, 12))
    for others in ([lengths, h, c], [None, h, c, peepholes]):
        for one, other in zip(plain, evaluate("LSTM", [x, w, r, b, *others], **attributes), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13)
