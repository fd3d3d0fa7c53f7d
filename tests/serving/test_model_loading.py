"""How a model is served follows from what it does: outputs are whole, and requests share a run only where rows are independent."""

import asyncio

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, Unsupported
from relu_deploy.packaging.run import package
from relu_deploy.serving.errors import InvalidArgument
from relu_deploy.serving.loading import ModelOptions, load_warm
from relu_deploy.serving.models import Models
from relu_deploy.serving.protocol.tensors import InferRequest

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
GENERATOR = np.random.default_rng(0)
WEIGHT = GENERATOR.standard_normal((8, 5)).astype(np.float32)


def tensor(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def written(path, nodes, inputs, outputs, **weights):
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    nodes = [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def ctc(path):
    nodes = [("MatMul", ["x", "w"], ["m"]), ("Relu", ["m"], ["r"]), ("Transpose", ["r"], ["y"], {"perm": [1, 0, 2]})]
    return written(path, nodes, [tensor("x", ["batch", 20, 8])], [tensor("y", [20, "batch", 5])], w=WEIGHT)


def detections(path):
    nodes = [
        ("Relu", ["x"], ["r"]),
        ("ReduceMax", ["r"], ["s"], {"axes": [2], "keepdims": 0}),
        ("NonZero", ["s"], ["z"]),
        ("Transpose", ["z"], ["t"]),
        ("GatherND", ["r", "t"], ["y"]),
    ]
    return written(path, nodes, [tensor("x", ["batch", 30, 4])], [tensor("y", ["number", 4])])


def state(path):
    nodes = [("MatMul", ["x", "w"], ["m"]), ("Relu", ["m"], ["y"]), ("Relu", ["h"], ["h_next"])]
    inputs = [tensor("x", ["batch", 8]), tensor("h", [2, "batch", 4])]
    return written(path, nodes, inputs, [tensor("y", ["batch", 5]), tensor("h_next", [2, "batch", 4])], w=WEIGHT)


def scalars(path):
    nodes = [("Relu", ["x"], ["r"]), ("Mul", ["r", "gain"], ["y"]), ("ReduceMax", ["y"], ["peak"], {"keepdims": 0})]
    return written(path, nodes, [tensor("x", ["batch", 8]), tensor("gain", [])], [tensor("y", ["batch", 8]), tensor("peak", [])])


def normalized_over_the_batch(path):
    nodes = [("ReduceMean", ["x"], ["m"], {"axes": [0], "keepdims": 1}), ("Sub", ["x", "m"], ["d"]), ("Relu", ["d"], ["y"])]
    return written(path, nodes, [tensor("x", ["batch", 8])], [tensor("y", ["batch", 8])])


def two_names(path):
    nodes = [("MatMul", ["x", "w"], ["m"]), ("Relu", ["m"], ["y"])]
    return written(path, nodes, [tensor("x", ["unk__1", 8])], [tensor("y", ["unk__2", 5])], w=WEIGHT)


def table(path):
    nodes = [("Gather", ["table", "ids"], ["g"]), ("Relu", ["g"], ["y"])]
    return written(path, nodes, [tensor("ids", ["batch", "length"], INT64)], [tensor("y", ["batch", "length", 5])], table=WEIGHT)


def edges(path):
    nodes = [("Gather", ["x", "edges"], ["g"]), ("Relu", ["g"], ["y"])]
    return written(path, nodes, [tensor("x", ["nodes", 4]), tensor("edges", ["edges"], INT64)], [tensor("y", ["edges", 4])])


def names_of_classes(path):
    nodes = [
        ("MatMul", ["x", "w"], ["m"]),
        ("Relu", ["m"], ["r"]),
        ("ArgMax", ["r"], ["i"], {"axis": 1, "keepdims": 0}),
        ("Gather", ["labels", "i"], ["y"]),
    ]
    labels = np.array(["cat", "dog", "eel", "fox", "gnu"], object)
    return written(
        path, nodes, [tensor("x", ["batch", 8])], [tensor("y", ["batch"], TensorProto.STRING)], w=WEIGHT, labels=labels
    )


def served(path, scenario):
    """Return what the coroutine `scenario(model)` returns for the model at `path`."""

    async def run():
        models = Models(ModelOptions(threads=1))
        try:
            return await scenario(await models.add(path))
        finally:
            await models.close()

    return asyncio.run(run())


def normal(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def expected_of(path, feeds):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return dict(zip([each.name for each in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.mark.parametrize(
    ("build", "feeds"),
    [
        (ctc, {"x": normal(1, 20, 8)}),
        (ctc, {"x": normal(3, 20, 8)}),
        (detections, {"x": normal(1, 30, 4)}),
        (detections, {"x": normal(2, 30, 4)}),
        (state, {"x": normal(1, 8), "h": normal(2, 1, 4)}),
        (state, {"x": normal(3, 8), "h": normal(2, 3, 4)}),
        (scalars, {"x": normal(3, 8), "gain": np.array(2, np.float32)}),
        (normalized_over_the_batch, {"x": normal(12, 8)}),
        (two_names, {"x": normal(4, 8)}),
        (two_names, {"x": normal(0, 8)}),
        (table, {"ids": np.int64([[0, 7, 3], [7, 7, 7]])}),
        (edges, {"x": normal(3, 4), "edges": np.int64([2, 0, 0, 1])}),
        (edges, {"x": normal(3, 4), "edges": np.zeros(0, np.int64)}),
    ],
)
def test_every_output_is_whole_and_the_runtimes_own(tmp_path, build, feeds):
    path = build(tmp_path / "m.onnx")
    expected = expected_of(path, feeds)

    async def together(model):
        return await asyncio.gather(*(model.infer(InferRequest(feeds)) for _ in range(5)))

    for outputs in served(path, together):
        assert {name: array.shape for name, array in outputs.items()} == {name: each.shape for name, each in expected.items()}
        for name, array in expected.items():
            np.testing.assert_allclose(outputs[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (ctc, "output 'y' is 1, not 0"),
        (detections, "output 'y'"),
        (state, "input 'h' is 1, not 0"),
        (scalars, "'gain' has no batch axis"),
        (normalized_over_the_batch, "depends on the other rows"),
        (two_names, ""),
        (table, ""),
        (edges, "'x' has no batch axis"),
        (names_of_classes, ""),
    ],
)
def test_requests_share_a_run_where_their_rows_are_independent_and_the_reason_is_told_where_not(tmp_path, build, words):
    async def described(model):
        return model.unbatched_reason, model.config()

    reason, config = served(build(tmp_path / "m.onnx"), described)
    assert words in reason
    assert (config["max_batch_size"], "dynamic_batching" in config) == ((0, False) if reason else (8, True))
    assert ("parameters" in config) == bool(reason)
    if reason:
        assert config["parameters"]["unbatched_reason"] == {"string_value": reason}


@pytest.mark.parametrize("wrong", [8, -9, 2**40])
def test_an_index_out_of_its_table_is_the_clients_mistake(tmp_path, wrong):
    async def infer(model):
        with pytest.raises(InvalidArgument, match=f"'ids' holds {wrong}, and the model accepts 0 to 7"):
            await model.infer(InferRequest({"ids": np.int64([[0, wrong]])}))
        return (await model.infer(InferRequest({"ids": np.int64([[0, -8]])})))["y"]

    np.testing.assert_array_equal(served(table(tmp_path / "m.onnx"), infer)[0], np.maximum(WEIGHT[[0, 0]], 0))


def test_the_probabilities_of_a_zipmap_are_refused_with_the_option_of_the_converter_that_leaves_it_out(tmp_path):
    """What scikit-learn's classifiers are converted to by default: a sequence of maps."""
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, [])))
    node = helper.make_node("ZipMap", ["x"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    graph = helper.make_graph([node], "g", [tensor("x", ["n", 2])], [helper.make_value_info("probabilities", kind)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "classifier.onnx")
    bundle = Bundle.open(tmp_path / "classifier.onnx")
    with pytest.raises(InputError, match="probabilities is a map or a sequence of maps") as served:
        load_warm(bundle, ModelOptions())
    with pytest.raises(Unsupported, match="probabilities is a map or a sequence of maps") as packaged:
        package(bundle, "triton", tmp_path / "repository")
    assert "zipmap=False" in served.value.hint
    assert packaged.value.hint == served.value.hint
