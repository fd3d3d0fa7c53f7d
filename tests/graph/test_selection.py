"""Where a graph selects its outputs: which tensors enter the selection, and graphs that only look as if they selected."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from relu_deploy.graph.selection import expose_entering, find_selection, measured_name
from tests.support import selecting_models as models
from tests.support.small import graph_of

node = helper.make_node


def inferred(proto):
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize(
    ("build", "operators", "entering", "outputs"),
    [
        (models.suppressed, ("NonMaxSuppression",), {"boxes", "by_class"}, {"detections"}),
        # The best score and the best class come from the scores, which are read behind the selection as well.
        (models.top_k, ("ArgMax", "TopK"), {"boxes", "best", "scores"}, {"detections"}),
        (models.thresholded, ("NonZero", "NonMaxSuppression"), {"each", "table"}, {"detected", "labels", "certainties"}),
    ],
)
def test_the_boxes_and_scores_enter_the_selection_of_a_detector(build, operators, entering, outputs):
    selection = find_selection(inferred(build()))
    assert set(selection.operators) == set(operators)
    assert {tensor.name for tensor in selection.entering} == entering
    assert selection.outputs == outputs
    assert selection.floats == outputs - {"labels"}
    assert "neck" not in selection.behind


def test_the_exposed_tensors_have_the_numbers_that_enter_and_the_outputs_stay():
    model = inferred(models.suppressed())
    shown = expose_entering(model, find_selection(model).entering)
    session = onnxruntime.InferenceSession(ir.to_proto(shown).SerializeToString(), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["detections", measured_name("boxes"), measured_name("by_class")]
    detections, boxes, scores = session.run(None, {"x": models.pictures(1)})
    assert boxes.shape == (1, models.ANCHORS, 4)
    assert len(detections) > 5
    for *box, score, label in detections:
        anchor = np.flatnonzero((boxes[0] == np.float32(box)).all(1))[0]
        assert scores[0, int(label), anchor] == score
    # The model itself is as it was.
    assert [value.name for value in model.graph.outputs] == ["detections"]


def test_a_reader_that_gets_a_rounded_copy_shows_the_copy():
    model = inferred(models.suppressed())
    entering = find_selection(model).entering
    boxes = next(value for each in model.graph for value in each.outputs if value.name == "boxes")
    readers = list(boxes.uses())
    half = ir.node("Mul", [boxes, model.graph.initializers["iou"]], name="halved")
    half.outputs[0].name, half.outputs[0].type, half.outputs[0].shape = "halved", boxes.type, boxes.shape
    model.graph.insert_after(boxes.producer(), half)
    for user, position in readers:
        user.replace_input_with(position, half.outputs[0])
    shown = expose_entering(model, entering)
    session = onnxruntime.InferenceSession(ir.to_proto(shown).SerializeToString(), providers=["CPUExecutionProvider"])
    session_of_model = onnxruntime.InferenceSession(models.suppressed().SerializeToString(), providers=["CPUExecutionProvider"])
    x = models.pictures(1)
    (halved,) = session.run([measured_name("boxes")], {"x": x})
    whole = session_of_model.run(["detections"], {"x": x})[0][:, :4]
    assert any((2 * halved[0] == box).all(1).any() for box in whole)


def test_a_graph_without_the_tensors_cannot_show_them():
    entering = find_selection(inferred(models.suppressed())).entering
    other = graph_of([node("Relu", ["x"], ["y"])], [("x", [1, 3])], [("y", [1, 3])])
    assert expose_entering(other, entering) is None


def layers(*tail, outputs=(("y", ["n", 4]),), constants=()):
    nodes = [node("MatMul", ["x", "w"], ["m"], "first"), node("Relu", ["m"], ["r"], "relu"), *tail]
    given = [("w", np.eye(4, dtype=np.float32)), ("v", np.eye(4, dtype=np.float32)), *constants]
    return graph_of(nodes, [("x", ["n", 4])], list(outputs), given)


K = ("k", np.array([2]))


def test_a_selection_inside_the_network_is_none_of_the_outputs():
    model = layers(
        node("TopK", ["r", "k"], ["top", "places"], "top"),
        node("ReduceMin", ["top"], ["least"], "least", axes=[1], keepdims=1),
        node("Greater", ["r", "least"], ["is_more"], "mask"),
        node("Where", ["is_more", "r", "zero"], ["sparse"], "sparse"),
        node("MatMul", ["sparse", "v"], ["y"], "last"),
        constants=[K, ("zero", np.float32(0))],
    )
    assert find_selection(model).outputs == frozenset()


def test_a_selection_among_constants_and_sizes_is_none():
    # Old exporters write a range as NonZero of ones.
    model = layers(
        node("Shape", ["r"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["ones"], value=helper.make_tensor("v", TensorProto.INT64, [1], [1])),
        node("NonZero", ["ones"], ["places"], "range"),
        node("Transpose", ["places"], ["pairs"]),
        node("GatherND", ["r", "pairs"], ["flat"]),
        node("Reshape", ["flat", "shape"], ["y"]),
    )
    assert find_selection(model).outputs == frozenset()


def test_the_best_class_is_no_list_of_rows():
    proto = helper.make_model(
        helper.make_graph(
            [node("Relu", ["x"], ["r"]), node("ArgMax", ["r"], ["y"], axis=1)],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 1])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    assert find_selection(inferred(proto)).outputs == frozenset()


def test_the_outer_tensors_that_a_body_with_a_selection_reads_enter_it():
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [node("TopK", ["r", "k"], ["top", "places"], "top"), node("Identity", ["top"], ["chosen"], "chosen")],
        "then",
        [],
        [value("chosen", TensorProto.FLOAT, ["n", 2])],
    )
    other = helper.make_graph(
        [node("Slice", ["r", "zero", "two", "one"], ["first"], "first_two")],
        "else",
        [],
        [value("first", TensorProto.FLOAT, ["n", 2])],
    )
    model = layers(
        node("ReduceSum", ["r"], ["sum"], keepdims=0),
        node("Greater", ["sum", "limit"], ["is_large"], "test"),
        node("If", ["is_large"], ["y"], "if", then_branch=then, else_branch=other),
        outputs=[("y", ["n", 2])],
        constants=[K, ("zero", np.array([0])), ("two", np.array([2])), ("one", np.array([1])), ("limit", np.float32(0))],
    )
    selection = find_selection(model)
    assert selection.operators == ("TopK",)
    assert {tensor.name for tensor in selection.entering} == {"r", "sum"}
    assert expose_entering(model, selection.entering) is not None


def test_scores_that_are_masked_by_a_constant_enter_as_they_are_before_the_mask():
    model = layers(
        node("Greater", ["r", "limit"], ["is_more"], "mask"),
        node("Where", ["is_more", "r", "none"], ["masked"], "masked"),
        node("TopK", ["masked", "k"], ["top", "places"], "top"),
        node("GatherElements", ["m", "places"], ["y"], "gather", axis=1),
        outputs=[("y", ["n", 2])],
        constants=[K, ("limit", np.float32(0.5)), ("none", np.float32(-np.inf))],
    )
    assert {tensor.name for tensor in find_selection(model).entering} == {"r", "m"}
