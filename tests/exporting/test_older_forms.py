"""Operators whose operands changed between operator sets are written in their older form, also inside bodies, or refused by name."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.errors import InputError
from relu_deploy.exporting.lower_opset import lower_opset
from relu_deploy.graph import save_model

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node
X = np.random.default_rng(0).standard_normal((2, 7, 5)).astype(np.float32)


def model_of(nodes, outputs, shape=("n", 7, 5), kind=FLOAT, rank=None, **constants):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    ends = [helper.make_tensor_value_info(name, made, rank and [None] * rank) for name, made in outputs.items()]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, list(shape))], ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def lowered(proto, opset, folder):
    """Return the path of the model at an older operator set, as valid there as the checker of onnx can tell."""
    made = lower_opset(ir.from_proto(proto), opset)
    save_model(made, folder / "old.onnx")
    written = onnx.load(folder / "old.onnx")
    assert [entry.version for entry in written.opset_import] == [opset]
    onnx.checker.check_model(written, full_check=True)
    return folder / "old.onnx"


def before_and_after(proto, opset, folder, x=X):
    """Return the results of a model as ONNX Runtime computes them at opset 18 and at an older one."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    onnx.save(proto, folder / "new.onnx")
    paths = folder / "new.onnx", lowered(proto, opset, folder)
    return [list(load(path, "onnxruntime-cpu").run({"x": x}).values()) for path in paths]


AXES = {"axes": np.array([-1, 1]), "one": np.array([1]), "none": np.zeros(0, np.int64)}
SCALES = {"f": np.array([1, 1, 2, 1.5], np.float32)}
CASES = {
    **{
        f"Reduce{name}": ([node(f"Reduce{name}", ["x", "axes"], ["y"], keepdims=0)], AXES)
        for name in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
    "reduction of all": ([node("ReduceMean", ["x"], ["y"])], {}),
    "reduction of empty axes": ([node("ReduceMean", ["x", "none"], ["y"])], AXES),
    "equal parts": ([node("Split", ["x"], list("yzuvw"), axis=2, num_outputs=5)], {}),
    "a smaller last part": ([node("Split", ["x"], ["y", "z", "u"], axis=1, num_outputs=3)], {}),
    "given parts": ([node("Split", ["x", "sizes"], ["y", "z"], axis=1)], {"sizes": np.array([2, 5])}),
    "padded axes": ([node("Pad", ["x", "pads", "", "axes"], ["y"])], {**AXES, "pads": np.array([1, 0, 2, 3])}),
    "padding with a value": ([node("Pad", ["x", "pads", "value"], ["y"])], {"pads": np.array([0, 1, 0, 0, 0, 2]), "value": np.float32(3)}),
    "a part of the shape": ([node("Shape", ["x"], ["s"], start=-2), node("Expand", ["c", "s"], ["y"])], {"c": np.float32(2)}),
    "the type of another": ([node("CastLike", ["c", "x"], ["y"])], {"c": np.array([1, 2])}),
    "scattered": (
        [node("ScatterElements", ["x", "i", "u"], ["y"], axis=1)],
        {"i": np.array([[[0] * 5], [[3] * 5]]), "u": np.ones((2, 1, 5), np.float32)},
    ),
    "resized": ([node("Unsqueeze", ["x", "one"], ["w"]), node("Resize", ["w", "", "f"], ["y"], mode="linear")], AXES | SCALES),
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 14, 17])
@pytest.mark.parametrize("case", CASES)
def test_an_older_form_computes_the_same(tmp_path, case, opset):
    nodes, constants = CASES[case]
    shape = (2, 7, 5) if case == "scattered" else ("n", 7, 5)
    proto = model_of(nodes, {name: FLOAT for name in "yzuvw" if name in nodes[-1].output}, shape, **constants)
    for new, old in zip(*before_and_after(proto, opset, tmp_path), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("kind", [np.int32, np.int8, np.int64])
def test_a_relu_of_integers_is_a_maximum_before_opset_14(tmp_path, kind):
    onnx_kind = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    path = lowered(model_of([node("Relu", ["x"], ["y"])], {"y": onnx_kind}, ("n", 3), onnx_kind), 13, tmp_path)
    x = np.array([[-5, 0, 6]], kind)
    assert load(path, "reference").run({"x": x})["y"].tolist() == [[0, 0, 6]]


def test_nodes_inside_branches_are_written_too(tmp_path):
    branch = helper.make_graph(
        [
            node("ReduceMax", ["x", "axes"], ["t"], keepdims=0),
            node("CastLike", ["i", "x"], ["f"]),
            node("Add", ["t", "f"], ["o"]),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("o", FLOAT, ["n"])],
    )
    other = helper.make_graph(
        [node("ReduceMin", ["x", "axes"], ["o2"], keepdims=0)], "else", [], [helper.make_tensor_value_info("o2", FLOAT, ["n"])]
    )
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], then_branch=branch, else_branch=other),
    ]
    proto = model_of(nodes, {"y": FLOAT}, **AXES, rank=1, zero=np.float32(0), i=np.array([1, 2]))
    for sign in (1, -1):
        for new, old in zip(*before_and_after(proto, 13, tmp_path, sign * np.abs(X)), strict=True):
            np.testing.assert_array_equal(old, new)


REFUSED = {
    "a filter": (
        [node("Unsqueeze", ["x", "one"], ["w"]), node("Resize", ["w", "", "f"], ["y"], "resize", mode="linear", antialias=1)],
        "the Resize 'resize' has no such form, it has an antialiasing filter",
        18,
    ),
    "a sum": (
        [node("ScatterElements", ["x", "i", "u"], ["y"], "scatter", reduction="add")],
        "the ScatterElements 'scatter' has no such form, its reduction 'add'",
        16,
    ),
    "a maximum": (
        [node("ScatterElements", ["x", "i", "u"], ["y"], "scatter", reduction="max")],
        "its reduction 'max' was introduced by opset 18",
        18,
    ),
    "computed axes": (
        [node("Shape", ["x"], ["a"], start=0, end=1), node("ReduceMax", ["x", "a"], ["y"], "largest")],
        "the ReduceMax 'largest' has no such form, its axes are computed",
        18,
    ),
    "an unknown axis": (
        [node("Split", ["x"], ["y", "z"], "halves", axis=0, num_outputs=2)],
        "the size of the axis that it splits is not known",
        18,
    ),
    "regions": (
        [node("Unsqueeze", ["x", "one"], ["w"]), node("RoiAlign", ["w", "boxes", "b"], ["y"], "regions")],
        "the RoiAlign 'regions' has no such form, its points are at the centers of pixels",
        16,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_older_form_is_refused_with_the_operator_set_that_has_it(tmp_path, case):
    nodes, words, since = REFUSED[case]
    constants = {
        "i": np.zeros((1, 1, 5), np.int64),
        "u": np.ones((1, 1, 5), np.float32),
        "f": np.array([1, 1, 0.5, 0.5], np.float32),
        "one": np.array([1]),
        "boxes": np.array([[0, 0, 1, 1]], np.float32),
        "b": np.zeros(1, np.int64),
    }
    proto = model_of(nodes, {"y": FLOAT}, **constants)
    with pytest.raises(InputError, match="cannot be written at opset 13") as refused:
        lower_opset(ir.from_proto(proto), 13)
    assert words in refused.value.message
    assert f"--opset {since} or later" in refused.value.hint
    assert "/" not in refused.value.message


def test_names_and_metadata_stay(tmp_path):
    proto = model_of([node("ReduceMax", ["x", "axes"], ["m"], "pool"), node("Relu", ["m"], ["y"], "relu")], {"y": FLOAT}, **AXES)
    model = ir.from_proto(proto)
    for each in model.graph:
        each.metadata_props["scope"] = f"of {each.name}"
    old = lower_opset(model, 13)
    assert [(each.name, each.metadata_props["scope"]) for each in old.graph] == [("pool", "of pool"), ("relu", "of relu")]
    assert str(old.graph.inputs[0].shape[0]) == "n"
