"""What a graph says about its inputs: batch axes, valid integers, fixed shapes."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.errors import InputError, UsageError
from relu_deploy.graph.shapes import batching
from relu_deploy.graph.shapes.batching import batch_axes
from relu_deploy.graph.shapes.dimensions import set_input_shapes
from relu_deploy.graph.shapes.input_ranges import integer_ranges

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node, value = helper.make_node, helper.make_tensor_value_info


def graph(nodes, inputs, outputs, **weights):
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    model = ir.from_proto(proto)
    model.graph.sort()
    return model


def out(name, dtype=FLOAT, shape=None):
    return value(name, dtype, shape)


def test_outputs_whose_first_axis_is_not_the_batch_have_another_axis_or_none():
    model = graph(
        [
            node("Transpose", ["x"], ["time_first"], perm=[1, 0, 2]),
            node("NonZero", ["x"], ["found"]),
            node("Reshape", ["x", "flat"], ["flat_rows"]),
            node("Reshape", ["x", "rows"], ["rows_out"]),
            node("ReduceMean", ["x"], ["mean"], axes=[0]),
        ],
        [value("x", FLOAT, ["batch", 3, 4])],
        [out("time_first"), out("found", INT64), out("flat_rows"), out("rows_out"), out("mean")],
        flat=[-1, 4],
        rows=[0, -1],
    )
    expected = {"x": 0, "time_first": 1, "found": None, "flat_rows": None, "rows_out": 0, "mean": None}
    assert batch_axes(model) == expected


def test_one_batch_under_different_names_is_one_batch():
    inputs = [value("a", FLOAT, ["unk__1", 4]), value("b", FLOAT, ["unk__2", 4])]
    model = graph([node("Add", ["a", "b"], ["y"])], inputs, [out("y", shape=["unk__3", 4])])
    assert batch_axes(model) == {"a": 0, "b": 0, "y": 0}


def test_the_state_of_a_recurrent_layer_has_its_batch_on_axis_1():
    model = graph(
        [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("LSTM", ["t", "w", "r", "", "", "h0"], ["o", "h"], hidden_size=5)],
        [value("x", FLOAT, ["batch", "time", 4]), value("h0", FLOAT, [1, "batch", 5])],
        [out("o"), out("h")],
        w=np.zeros((1, 20, 4), np.float32),
        r=np.zeros((1, 20, 5), np.float32),
    )
    assert batch_axes(model) == {"x": 0, "h0": 1, "o": 2, "h": 1}


def test_anchors_and_scalars_are_no_batch():
    model = graph(
        [node("Mul", ["x", "rate"], ["y"]), node("Identity", ["anchors"], ["a"])],
        [value("x", FLOAT, ["batch", 4]), value("rate", FLOAT, []), value("anchors", FLOAT, ["count", 4])],
        [out("y"), out("a")],
    )
    assert batch_axes(model) == {"x": 0, "rate": None, "anchors": None, "y": 0, "a": None}


def test_an_input_that_only_fits_with_the_size_of_the_batch_is_batched():
    inputs = [value("x", FLOAT, ["batch", 4]), value("weights", FLOAT, ["number", 1])]
    model = graph([node("Mul", ["x", "weights"], ["y"])], inputs, [out("y")])
    assert batch_axes(model) == {"x": 0, "weights": 0, "y": 0}


def test_a_fixed_first_dimension_is_the_batch_of_outputs_with_the_same():
    inputs = [value("x", FLOAT, [2, 3, 4, 4])]
    model = graph(
        [node("Flatten", ["x"], ["y"]), node("Shape", ["x"], ["s"])], inputs, [out("y", shape=[2, 48]), out("s", INT64, [4])]
    )
    assert batch_axes(model) == {"x": 0, "y": 0, "s": None}


def test_indices_stay_inside_the_tables_that_they_index():
    model = graph(
        [
            node("Unsqueeze", ["ids", "zero"], ["u"]),
            node("Gather", ["words", "u"], ["e"]),
            node("Cast", ["kind"], ["k"], to=INT64),
            node("Sub", ["k", "one"], ["shifted"]),
            node("Gather", ["kinds", "shifted"], ["t"]),
            node("OneHot", ["label", "depth", "values"], ["l"]),
            node("Add", ["free", "one"], ["f"]),
        ],
        [value(name, INT64, ["n"]) for name in ("ids", "kind", "label", "free")],
        [out("e"), out("t"), out("l"), out("f", INT64)],
        words=np.zeros((21, 4), np.float32),
        kinds=np.zeros((2, 4), np.float32),
        zero=[0],
        one=np.int64(1),
        depth=np.int64(5),
        values=np.array([0, 1], np.float32),
    )
    # kind - 1 indexes two rows, so kind is 1 or 2.
    assert integer_ranges(model) == {"ids": (0, 20), "kind": (1, 2), "label": (0, 4)}


def test_sizes_that_no_shape_records_limit_what_is_indexed_too():
    """Lengths of sequences whose steps are on axis 0 only behind a Transpose."""
    model = graph(
        [
            node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
            node("GRU", ["t", "w", "r", "", "lengths"], ["o"], hidden_size=2),
        ],
        [value("x", FLOAT, ["n", 5, 3]), value("lengths", TensorProto.INT32, ["n"])],
        [out("o")],
        w=np.zeros((1, 6, 3), np.float32),
        r=np.zeros((1, 6, 2), np.float32),
    )
    for each in model.graph:
        each.outputs[0].shape = None
    assert integer_ranges(model) == {"lengths": (1, 5)}


def test_an_input_that_indexes_two_tables_stays_inside_the_smaller():
    model = graph(
        [node("Gather", ["a", "i"], ["x"]), node("Gather", ["b", "i"], ["y"], axis=1)],
        [value("i", TensorProto.INT32, ["n"])],
        [out("x"), out("y")],
        a=np.zeros((9, 2), np.float32),
        b=np.zeros((2, 3), np.float32),
    )
    assert integer_ranges(model) == {"i": (0, 2)}


def test_indices_of_every_indexing_operator_stay_inside_what_they_index():
    model = graph(
        [
            node("ScatterND", ["table", "places", "rows"], ["s"]),
            node("ReverseSequence", ["steps", "lengths"], ["r"], time_axis=0, batch_axis=1),
            node("RoiAlign", ["pictures", "boxes", "picture"], ["b"], output_height=1, output_width=1),
            node("TopK", ["scores", "count"], ["v", "i"], axis=1),
        ],
        [
            value("places", INT64, [3, 1]),
            value("rows", FLOAT, [3, 4]),
            value("steps", FLOAT, [6, "n", 2]),
            value("lengths", INT64, ["n"]),
            value("pictures", FLOAT, [2, 1, 8, 8]),
            value("boxes", FLOAT, ["m", 4]),
            value("picture", INT64, ["m"]),
            value("scores", FLOAT, ["n", 9]),
            value("count", INT64, [1]),
        ],
        [out("s"), out("r"), out("b"), out("v")],
        table=np.zeros((5, 4), np.float32),
    )
    # Five rows of the table, lengths of up to 6 steps, two pictures, and at most 9 scores.
    assert integer_ranges(model) == {"places": (0, 4), "lengths": (1, 6), "picture": (0, 1), "count": (1, 9)}


def test_indices_are_followed_through_limits():
    model = graph(
        [node("Clip", ["i", "zero"], ["c"]), node("Max", ["c", "zero"], ["m"]), node("Gather", ["table", "m"], ["y"])],
        [value("i", INT64, ["n"])],
        [out("y")],
        zero=np.int64(0),
        table=np.zeros((7, 2), np.float32),
    )
    assert integer_ranges(model) == {"i": (0, 6)}


def test_samples_of_a_signal_are_no_batch_and_those_in_front_are():
    signal = graph([node("Relu", ["x"], ["y"])], [value("x", FLOAT, [1, "samples"])], [out("y")])
    assert batch_axes(signal)["x"] == 0
    table = graph([node("Relu", ["x"], ["y"])], [value("x", FLOAT, ["samples", 4])], [out("y")])
    assert batch_axes(table) == {"x": 0, "y": 0}


def test_indices_of_something_whose_size_varies_follow_from_the_shapes_of_the_inputs():
    model = graph(
        [node("MatMul", ["x", "w"], ["m"]), node("Gather", ["m", "edges"], ["y"])],
        [value("x", FLOAT, ["nodes", 4]), value("edges", INT64, [2, "edges"])],
        [out("y")],
        w=np.zeros((4, 3), np.float32),
    )
    assert integer_ranges(model) == {}
    assert integer_ranges(model, {"x": [6, 4], "edges": [2, 9]}) == {"edges": (0, 5)}


def test_indices_are_followed_into_a_branch():
    branch = helper.make_graph([node("Gather", ["table", "i"], ["t"])], "then", [], [out("t")])
    other = helper.make_graph([node("Cast", ["i"], ["e"], to=FLOAT)], "else", [], [out("e")])
    model = graph(
        [node("If", ["c"], ["y"], then_branch=branch, else_branch=other)],
        [value("i", INT64, ["n"]), value("c", TensorProto.BOOL, [])],
        [out("y")],
        table=np.zeros(6, np.float32),
    )
    assert integer_ranges(model) == {"i": (0, 5)}


def convolution():
    inputs = [value("x", FLOAT, ["n", 3, "h", "w"])]
    return graph([node("Conv", ["x", "k"], ["y"], strides=[2, 2])], inputs, [out("y")], k=np.zeros((4, 3, 3, 3), np.float32))


def test_fixed_input_shapes_reach_every_tensor():
    model = convolution()
    fixed = set_input_shapes(model, {"x": (1, 3, 9, 21)})
    assert list(fixed.graph.outputs[0].shape) == [1, 4, 4, 10]
    assert not isinstance(next(iter(model.graph.inputs[0].shape)), int)


@pytest.mark.parametrize(
    "shapes", [{"z": (1, 3, 9, 9)}, {"x": (1, 3, 9)}, {"x": (1, 4, 9, 9)}], ids=["no such input", "rank", "fixed size"]
)
def test_shapes_that_do_not_fit_the_inputs_are_refused(shapes):
    with pytest.raises(UsageError):
        set_input_shapes(convolution(), shapes)


def test_a_shape_that_the_graph_cannot_compute_is_refused():
    inputs = [value("a", FLOAT, ["n", 2]), value("b", FLOAT, ["m", 2])]
    model = graph([node("Add", ["a", "b"], ["y"])], inputs, [out("y")])
    with pytest.raises(InputError, match="does not accept"):
        set_input_shapes(model, {"a": (3, 2), "b": (4, 2)})


def test_the_recorded_shape_of_an_output_stays_where_inference_does_not_reach_it():
    # The sizes of `to` are not known, so nothing follows for y; the file says that it has two axes.
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"])]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k"])]
    values.append(helper.make_tensor_value_info("to", TensorProto.INT64, ["rank"]))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    proto = helper.make_model(helper.make_graph(nodes, "g", values, [output]), opset_imports=[helper.make_opsetid("", 17)])
    fixed = set_input_shapes(ir.from_proto(proto), {"x": (5, 3), "to": (2,)})
    assert list(fixed.graph.outputs[0].shape) == [5, 1]


def test_nodes_that_edges_refer_to_are_no_batch():
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Gather", ["edges", "first"], ["start"], axis=0),
        node("Gather", ["m", "start"], ["y"]),
    ]
    inputs = [value("x", FLOAT, ["nodes", 4]), value("edges", INT64, [2, "count"])]
    model = graph(nodes, inputs, [out("y")], w=np.zeros((4, 3), np.float32), first=np.int64(0))
    assert batch_axes(model) == {"x": None, "edges": None, "y": None}


def test_ids_of_a_table_and_lengths_of_sequences_leave_the_batch_where_it_is():
    nodes = [
        node("Gather", ["table", "ids"], ["e"]),
        node("Unsqueeze", ["lengths", "last"], ["places"]),
        node("GatherND", ["e", "places"], ["y"], batch_dims=1),
    ]
    inputs = [value("ids", INT64, ["n", "time"]), value("lengths", INT64, ["n"])]
    model = graph(nodes, inputs, [out("y")], table=np.zeros((30, 4), np.float32), last=[-1])
    assert batch_axes(model) == {"ids": 0, "lengths": 0, "y": 0}


def test_rows_pass_through_operators_of_trees_and_scalers_whose_shapes_are_not_inferred():
    def learned(*more):
        scaler = node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0])
        constants = [numpy_helper.from_array(np.zeros((4, 1), np.float32), "w")]
        outputs = [value("y", FLOAT, ["unk__0", 1])]
        nodes = [scaler, node("MatMul", ["s", "w"], ["m"]), *more]
        inputs = [value("x", FLOAT, ["rows", 4])]
        proto = helper.make_model(
            helper.make_graph(nodes, "g", inputs, outputs, constants),
            opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
        )
        return ir.from_proto(proto)

    assert batch_axes(learned(node("Relu", ["m"], ["y"]))) == {"x": 0, "y": 0}
    selected = [node("NonZero", ["m"], ["z"]), node("Transpose", ["z"], ["t"]), node("GatherND", ["m", "t"], ["y"])]
    assert batch_axes(learned(*selected)) == {"x": 0, "y": None}


def test_a_graph_of_very_many_inputs_is_inferred_a_bounded_number_of_times(monkeypatch):
    calls = []
    infer = batching.infer_sizes
    monkeypatch.setattr(batching, "infer_sizes", lambda *arguments: calls.append(1) or infer(*arguments))
    names = [f"x{index}" for index in range(300)]
    nodes = [node("Relu", [name], [f"y_{name}"]) for name in names]
    model = graph(nodes, [value(name, FLOAT, [f"rows of {name}", 3]) for name in names], [out(f"y_{name}") for name in names])
    axes = batch_axes(model)
    assert (axes["x0"], axes["y_x0"], axes["x299"]) == (0, 0, None)
    assert len(calls) < 2 * batching.MOST_TRIALS + 5
