"""Requests and responses as bytes: what is sent comes out, and what is malformed is named."""

import contextlib
import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from relu_deploy.serving.errors import InvalidArgument, TooLarge
from relu_deploy.serving.protocol.json_codec import decode, encode, parse
from relu_deploy.serving.protocol.tensors import DATATYPES, RequestedOutput, from_raw, to_raw
from relu_deploy.tensors import TensorSpec

SPECS = (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("n", "int8", ("batch",)))
NUMBERS = [name for name in DATATYPES if name != "object"]


def dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def body(*inputs, **fields):
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def tensor(name="x", shape=(1, 3), datatype="FP32", data=(1.0, 2.0, 3.0), **fields):
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": list(data), **fields}


N = tensor("n", (1,), "INT8", (4,))


def test_json_data_may_be_flat_or_nested():
    for data in ([1, 2.5, 3, 4, 5, 6], [[1, 2.5, 3], [4, 5, 6]]):
        request = decode(body(tensor(shape=(2, 3), data=data), tensor("n", (2,), "INT8", (1, -1))), None, SPECS)
        assert request.inputs["x"].dtype == np.float32
        assert request.inputs["x"].tolist() == [[1, 2.5, 3], [4, 5, 6]]
        assert request.inputs["n"].tolist() == [1, -1]


def test_binary_tensors_follow_the_json_in_its_order():
    n, x = np.array([7, -7], np.int8), np.arange(6, dtype=np.float32).reshape(2, 3)
    head = body(
        {"name": "n", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}},
        {"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}},
        id="seven",
    )
    request = decode(head + n.tobytes() + x.tobytes(), len(head), SPECS)
    assert request.id == "seven"
    np.testing.assert_array_equal(request.inputs["x"], x)
    np.testing.assert_array_equal(request.inputs["n"], n)


def test_a_body_without_json_is_the_one_input():
    specs = (TensorSpec("x", "uint8", ("batch", 4, "width")),)
    request = decode(bytes(range(20)), 0, specs)
    assert request.inputs["x"].shape == (1, 4, 5)
    assert request.binary
    with pytest.raises(InvalidArgument, match="does not make"):
        decode(bytes(21), 0, specs)
    with pytest.raises(InvalidArgument, match="one input"):
        decode(bytes(20), 0, SPECS)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_type_survives_as_bytes(name):
    array = np.arange(6).astype(dtype(name)).reshape(2, 3)
    back = from_raw(to_raw(array), (2, 3), TensorSpec("x", name, (2, 3)))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@given(
    npst.arrays(np.float32, npst.array_shapes(max_dims=3), elements=st.floats(allow_nan=False, allow_infinity=False, width=32))
)
def test_float32_survives_json_to_the_bit(array):
    """Shortest decimal forms of float32 are read back as the same float32."""
    parts, length = encode({"model_name": "m"}, {"y": array}, [RequestedOutput("y", False)])
    assert length is None
    answer = json.loads(b"".join(parts))["outputs"][0]
    spec = TensorSpec("y", "float32", array.shape)
    sent = body({"name": "y", "shape": answer["shape"], "datatype": answer["datatype"], "data": answer["data"]})
    np.testing.assert_array_equal(decode(sent, None, (spec,)).inputs["y"], array)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_strings_survive_as_bytes_and_as_json(texts):
    spec = TensorSpec("t", "object", (len(texts),))
    array = np.array(texts, object)
    assert from_raw(to_raw(array), [len(texts)], spec).tolist() == texts
    sent = body({"name": "t", "shape": [len(texts)], "datatype": "BYTES", "data": texts})
    assert decode(sent, None, (spec,)).inputs["t"].tolist() == texts


def test_an_outputs_own_binary_data_overrides_the_requests():
    sent = body(
        tensor(),
        N,
        outputs=[{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
        parameters={"binary_data_output": True},
    )
    request = decode(sent, None, SPECS)
    assert request.outputs == (RequestedOutput("a", True), RequestedOutput("b", False))
    specs = tuple(TensorSpec(name, "float32", (1,)) for name in "ab")
    assert request.select(specs) == request.outputs
    with pytest.raises(InvalidArgument, match="no output 'a'"):
        request.select(specs[1:])


def test_a_response_with_bytes_says_how_many_belong_to_each_output():
    results = {"a": np.float32([1, 2]), "b": np.int8([3])}
    parts, length = encode({"id": "q"}, results, [RequestedOutput("a", True), RequestedOutput("b", True)])
    whole = b"".join(parts)
    head = json.loads(whole[:length])
    sizes = [one["parameters"]["binary_data_size"] for one in head["outputs"]]
    assert sizes == [8, 1]
    assert whole[length:] == results["a"].tobytes() + results["b"].tobytes()


def test_what_json_cannot_say_is_refused_by_name():
    for value in (np.float32([np.nan]), np.float32([np.inf]), np.float16([1])):
        with pytest.raises(InvalidArgument, match="'y'"):
            encode({}, {"y": value}, [RequestedOutput("y", False)])
        assert encode({}, {"y": value}, [RequestedOutput("y", True)])[1]


def test_a_request_may_have_no_rows():
    request = decode(body(tensor(shape=(0, 3), data=()), tensor("n", (0,), "INT8", ())), None, SPECS)
    assert [array.shape for array in request.inputs.values()] == [(0, 3), (0,)]


@pytest.mark.parametrize("datatype", [[], {}, ["FP32"], 3, True, "x" * 10_000])
def test_a_datatype_of_any_type_is_refused_in_words(datatype):
    with pytest.raises(InvalidArgument) as refused:
        decode(body({**tensor(), "datatype": datatype}), None, SPECS)
    assert "has datatype" in refused.value.text
    assert len(refused.value.text) < 300


@pytest.mark.parametrize(
    "text", [b'{"inputs":[' + b"{}," * 2**20 + b"{}]}", b"[" + b"0," * 2**24 + b"0]"], ids=["objects", "numbers"]
)
def test_json_of_too_many_values_is_refused_before_it_is_parsed(text):
    with pytest.raises(TooLarge, match="send tensors as binary data"):
        parse(text)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b"{}", "'inputs' must be a list"),
        (b'{"inputs": 3}', "'inputs' must be a list"),
        (body(), "no tensor for input 'x'"),
        (body(tensor()), "no tensor for input 'n'"),
        (body(3, N), "has no name"),
        (body(tensor(), tensor(), N), "given twice"),
        (body(tensor("z"), N), "no input 'z'"),
        (body(tensor(datatype="FP64"), N), "the model takes FP32"),
        (body(tensor(datatype="float"), N), "datatype 'float'"),
        (body(tensor(datatype=None), N), "datatype None"),
        (body(tensor(shape=(1, 4)), N), "needs 4 numbers, and has 3"),
        (body(tensor(shape=(1, 2), data=(1, 2)), N), "the model takes"),
        (body(tensor(shape=(3,)), N), "the model takes"),
        (body(tensor(shape=(-1, 3)), N), "list of sizes"),
        (body(tensor(shape=(1.0, 3)), N), "list of sizes"),
        (body(tensor(shape=(True, 3)), N), "list of sizes"),
        (body({**tensor(), "shape": None}, N), "list of sizes"),
        (body(tensor(shape=(2**31, 3)), N), "list of sizes"),
        (body(tensor(shape=(2**20, 2**20)), N), "list of sizes"),
        (body(tensor(data=(1, 2, None)), N), "not"),
        (body(tensor(data=(1, 2, "3")), N), "not"),
        (body(tensor(data=([1, 2], 3)), N), "not one array"),
        (body(tensor(data=({}, 2, 3)), N), "not"),
        (body({**tensor(), "data": 3}, N), "has no data"),
        (body(tensor(), tensor("n", (1,), "INT8", (300,))), "beyond INT8"),
        (body(tensor(), tensor("n", (1,), "INT8", (10**30,))), "not"),
        (body(tensor(), tensor("n", (1,), "INT8", (1.5,))), "not INT8"),
        (body(tensor(), tensor("n", (2,), "INT8", (1, 2))), "'n' has shape"),
        (body(tensor(data=(1e39, 0, 0)), N), "NaN or an infinity"),
        (b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [NaN, 1, 2]}]}', "not JSON"),
        (body(tensor(parameters=3), N), "'parameters' must be an object"),
        (body(tensor(), N, parameters=[]), "'parameters' must be an object"),
        (body(tensor(), N, id=3), "'id' must be a string"),
        (body(tensor(), N, outputs=3), "'outputs' must be a list"),
        (body(tensor(), N, outputs=[{"nam": "y"}]), "'outputs' must be a list"),
        (body(tensor(parameters={"binary_data_size": 12}), N), "both data and binary_data_size"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_malformed_requests_are_refused_with_what_is_wrong(sent, words):
    with pytest.raises(InvalidArgument) as refused:
        decode(sent, None, SPECS)
    assert words in refused.value.text
    assert "\n" not in refused.value.text


@pytest.mark.parametrize(
    ("size", "behind", "words"),
    [
        (12, 11, "11 bytes are left"),
        (12, 13, "belong to no input"),
        (11, 11, "needs 12 bytes"),
        (-1, 12, "binary_data_size -1"),
        ("12", 12, "binary_data_size '12'"),
        (True, 12, "binary_data_size True"),
        (2**62, 12, "12 bytes are left"),
    ],
)
def test_sizes_that_disagree_with_the_body_are_refused(size, behind, words):
    head = body({"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": size}}, N)
    with pytest.raises(InvalidArgument) as refused:
        decode(head + bytes(behind), len(head), SPECS)
    assert words in refused.value.text


def test_a_header_that_is_longer_than_the_body_is_refused():
    with pytest.raises(InvalidArgument, match="Content-Length is 99"):
        decode(b"{}", 99, SPECS)


def test_numbers_that_are_none_are_refused_in_bytes_too():
    head = body({"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}, N)
    with pytest.raises(InvalidArgument, match="NaN or an infinity"):
        decode(head + np.float32([1, np.nan, 2]).tobytes(), len(head), SPECS)


def test_a_bool_byte_is_0_or_1():
    with pytest.raises(InvalidArgument, match="neither 0 nor 1"):
        from_raw(bytes([0, 1, 2]), [3], TensorSpec("b", "bool", (3,)))


def test_strings_whose_lengths_do_not_fit_are_refused():
    spec = TensorSpec("t", "object", (1,))
    for raw in (b"\x05\0\0\0abc", b"\x01\0", b"\x01\0\0\0\xff", b""):
        with pytest.raises(InvalidArgument):
            from_raw(raw, [1], spec)


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 250)))
def test_any_bytes_at_all_are_either_a_request_or_invalid(raw, length):
    with contextlib.suppress(InvalidArgument):
        decode(raw, length, SPECS)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["inputs", "name", "shape", "datatype", "data", "parameters", "id", "x", "binary_data_size"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_at_all_is_either_a_request_or_invalid(answer):
    text = json.dumps({"inputs": [answer, answer]})
    with contextlib.suppress(InvalidArgument):
        decode(text.encode(), None, SPECS)


def test_an_empty_body_is_an_empty_object():
    assert parse(b"") == {}


def test_a_long_text_among_many_numbers_takes_no_memory_for_each_of_them():
    """NumPy's array of texts has room for the longest one in each place: 40 GB of this request."""
    sent = body({**tensor(), "data": ["x" * 10**4, *[0] * 10**6]}, N)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument, match="not one array of numbers"):
            decode(sent, None, SPECS)
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [[[1, 2, 3]], [[[1], [2], [3]]], [1, 2, 3]])
def test_nested_and_flat_numbers_are_the_same_tensor(data):
    assert decode(body({**tensor(), "data": data}, N), None, SPECS).inputs["x"].tolist() == [[1.0, 2.0, 3.0]]


def test_an_output_that_is_requested_twice_is_refused():
    request = decode(body(tensor(), N, outputs=[{"name": "a"}, {"name": "a"}]), None, SPECS)
    with pytest.raises(InvalidArgument, match="output 'a' is requested twice"):
        request.select([TensorSpec("a", "float32", (1,))])


def test_more_strings_than_a_tensor_may_have_are_refused_before_they_are_made():
    with pytest.raises(InvalidArgument, match="more than 1048576 strings"):
        from_raw(bytes(4 * (2**20 + 1)), [2**20 + 1], TensorSpec("t", "object", ("n",)))
    with pytest.raises(InvalidArgument, match="needs 2 strings"):
        from_raw(bytes(4 * 10**6), [2], TensorSpec("t", "object", ("n",)))
