"""The cost of a run in multiply-adds, known from the shapes: a graph that takes hours is refused, every usual one is not."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.errors import TooLong
from relu_deploy.graph import count_cost, load_model
from relu_deploy.graph.loading.arithmetic import ELEMENT, MOST_MULTIPLY_ADDS, STEP, check_arithmetic, cost_of_run
from relu_deploy.graph.loading.resources import check_resources
from relu_deploy.run_limit import limited_runs

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
value = helper.make_tensor_value_info


@pytest.fixture
def limited():
    with limited_runs(True):
        yield


def model(nodes, inputs, initializers=(), output="y", opset=20):
    """A graph with inferred shapes, nothing of whose output but the type is known."""
    graph = helper.make_graph(
        nodes,
        "g",
        [value(name, FLOAT, shape) for name, shape in inputs.items()],
        [value(output, FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(initializers).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


NODE = helper.make_node


@pytest.mark.parametrize(
    ("node", "inputs", "cost"),
    [
        (NODE("MatMul", ["a", "b"], ["y"]), {"a": [7, 2, 3], "b": [3, 5]}, 7 * 2 * 5 * 3),
        (NODE("MatMul", ["a", "b"], ["y"]), {"a": ["N", 3], "b": [3, 5]}, 5 * 3),
        (NODE("Gemm", ["a", "b"], ["y"], transA=1), {"a": [3, 2], "b": [3, 5]}, 2 * 5 * 3),
        (NODE("Conv", ["a", "b"], ["y"], group=2), {"a": [1, 4, 9, 9], "b": [6, 2, 3, 3]}, 6 * 7 * 7 * 2 * 9),
        (NODE("ConvTranspose", ["a", "b"], ["y"]), {"a": [1, 4, 9, 9], "b": [4, 6, 3, 3]}, 4 * 81 * 6 * 9),
        (NODE("Relu", ["a"], ["y"]), {"a": [7, 9]}, ELEMENT * 63),
        (NODE("ReduceSum", ["a"], ["y"], keepdims=0), {"a": [7, 9]}, ELEMENT * 63),
        (NODE("MaxPool", ["a"], ["y"], kernel_shape=[3, 3]), {"a": [1, 1, 9, 9]}, ELEMENT * 49 * 9),
        (NODE("LRN", ["a"], ["y"], size=5), {"a": [1, 2, 9, 9]}, ELEMENT * 162 * 5),
        (NODE("Det", ["a"], ["y"]), {"a": [5, 9, 9]}, ELEMENT * 5 * 81 * 9),
        (NODE("Einsum", ["a", "b"], ["y"], equation="ij,jk->ik"), {"a": [7, 2], "b": [2, 5]}, 7 * 2 * 5),
        (NODE("Einsum", ["a", "b"], ["y"], equation="ij, kl -> i"), {"a": [7, 2], "b": [3, 5]}, 7 * 2 * 3 * 5),
        (NODE("Einsum", ["a", "b"], ["y"], equation="...ij,jk->...ik"), {"a": [9, 7, 2], "b": [2, 5]}, 7 * 2 * 5 * (9 * 7 * 5)),
        (
            NODE("LSTM", ["a", "b", "c"], ["y"], hidden_size=6),
            {"a": [9, 2, 5], "b": [1, 24, 5], "c": [1, 24, 6]},
            9 * STEP + 18 * 24 * 11 + ELEMENT * 9 * 2 * 6,
        ),
        (NODE("Reshape", ["a", "b"], ["y"]), {"a": [9, 9], "b": [1]}, 0),
    ],
    ids=lambda each: each.op_type if isinstance(each, onnx.NodeProto) else None,
)
def test_the_cost_of_a_node_follows_from_the_shapes(node, inputs, cost):
    assert cost_of_run(model([node], inputs))[0] == cost


def test_it_is_that_of_inspect_where_that_is_known(tmp_path):
    made = model([NODE("MatMul", ["a", "b"], ["y"], "m")], {"a": [40, 30]}, {"b": np.zeros((30, 20), np.float32)})
    onnx.save(made, tmp_path / "m.onnx")
    assert 2 * cost_of_run(made)[0] == count_cost(load_model(tmp_path / "m.onnx")).flops


def products(count, side=8000):
    names = ["x", *(f"t{place}" for place in range(1, count)), "y"]
    return model(
        [NODE("MatMul", [one, "x"], [other], f"m{place}") for place, (one, other) in enumerate(itertools.pairwise(names))],
        {"x": [side, side]},
    )


def test_matrix_products_that_take_hours_are_refused_where_runs_are_limited(limited):
    check_resources(products(100), "m.onnx")
    with pytest.raises(
        TooLong, match=r"m\.onnx: one run takes as long as 2e\+14 multiply-adds, most of all the MatMul 'm0'"
    ) as caught:
        check_resources(products(400), "m.onnx")
    assert "--timeout" in caught.value.hint
    with limited_runs(False):
        check_resources(products(400), "m.onnx")


@pytest.mark.parametrize(
    ("nodes", "inputs"),
    [
        # A kernel as large as the picture, at each place of a padded picture.
        ([NODE("Conv", ["x", "w"], ["y"], pads=[4000] * 4)], {"x": [1, 1, 4000, 4000], "w": [1, 1, 4000, 4000]}),
        ([NODE("MaxPool", ["x"], ["y"], kernel_shape=[4000, 4000], pads=[2000] * 4)], {"x": [1, 1, 4000, 4000]}),
        ([NODE("Einsum", ["x", "x", "x"], ["y"], equation="ab,cd,ef->a")], {"x": [1000, 1000]}),
        (
            [NODE("NonMaxSuppression", ["x", "s"], ["k"]), NODE("Cast", ["k"], ["y"], to=1)],
            {"x": [1, 10**7, 4], "s": [1, 1, 10**7]},
        ),
        ([NODE("RoiAlign", ["x", "r", "i"], ["y"], sampling_ratio=10**8)], {"x": [1, 1, 9, 9], "r": [9, 4], "i": [9]}),
        ([NODE("RNN", ["x", "w", "w"], ["y"], hidden_size=1)], {"x": [3 * 10**8, 1, 1], "w": [1, 1, 1]}),
    ],
    ids=["Conv", "MaxPool", "Einsum", "NonMaxSuppression", "RoiAlign", "RNN"],
)
def test_a_single_node_can_take_hours_too(nodes, inputs, limited):
    with pytest.raises(TooLong, match=f"most of all the {nodes[0].op_type}"):
        check_arithmetic(model(nodes, inputs), "m.onnx")


def test_what_is_inside_a_loop_counts_as_often_as_it_runs(limited):
    def loop(turns):
        body = helper.make_graph(
            [NODE("MatMul", ["a", "a"], ["next"], "inside"), NODE("Identity", ["go"], ["on"])],
            "body",
            [value("i", INT64, []), value("go", BOOL, []), value("a", FLOAT, [1000, 1000])],
            [value("on", BOOL, []), value("next", FLOAT, [1000, 1000])],
        )
        node = NODE("Loop", ["n", "yes", "x"], ["y"], "loop", body=body)
        return model([node], {"x": [1000, 1000]}, {"n": np.int64(turns), "yes": np.array(True)})

    assert cost_of_run(loop(5))[0] == 5 * 10**9
    check_resources(loop(50_000), "m.onnx")
    with pytest.raises(TooLong, match="most of all the MatMul 'inside'"):
        check_resources(loop(500_000), "m.onnx")


def test_a_language_model_of_seven_billion_weights_and_its_longest_text_is_not_refused(limited):
    # 32 layers of width 4,096 and 11,008 on 2,048 tokens, and a vocabulary of 32,000.
    weights = {"w": [4096, 4096], "up": [4096, 11008], "down": [11008, 4096], "v": [4096, 32000]}
    nodes, last = [], "x"
    for layer in range(32):
        names = [f"{layer}{each}" for each in "qkvo"]
        nodes += [NODE("MatMul", [last, "w"], [name]) for name in names]
        nodes += [NODE("MatMul", [last, "up"], [f"{layer}g"]), NODE("MatMul", [last, "up"], [f"{layer}u"])]
        nodes += [NODE("MatMul", [f"{layer}u", "down"], [f"{layer}d"])]
        last = f"{layer}d"
    nodes.append(NODE("MatMul", [last, "v"], ["y"]))
    made = model(nodes, {"x": [2048, 4096], **weights})
    assert 10**13 < cost_of_run(made)[0] < MOST_MULTIPLY_ADDS
    check_arithmetic(made, "m.onnx")


@pytest.mark.parametrize("words", [("verify",), ("bench",), ("export", "-o", "o.rdb")], ids=lambda words: words[0])
def test_a_command_names_the_option_that_allows_more(command, tmp_path, words):
    onnx.save(products(400), tmp_path / "m.onnx")
    ended = command(words[0], tmp_path / "m.onnx", *words[1:], "--quiet")
    assert ended.code == 2, ended.stderr
    assert "multiply-adds" in ended.stderr
    assert "--timeout" in ended.stderr


def test_inspect_runs_nothing_and_refuses_nothing(command, tmp_path):
    onnx.save(products(400), tmp_path / "m.onnx")
    assert command("inspect", tmp_path / "m.onnx", "--quiet").code == 0
