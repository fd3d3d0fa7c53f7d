"""What loading accepts, repairs and refuses."""

import gc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.graph import (
    count_cost,
    find_relus,
    io_specs,
    load_model,
    load_normalized_model,
    read_model,
    save_model,
    to_bytes,
)
from relu_deploy.graph import model as model_module
from relu_deploy.graph.loading.resources import set_memory_limit
from relu_deploy.graph.weights import to_proto_without_weights

FLOAT = TensorProto.FLOAT
node, value = helper.make_node, helper.make_tensor_value_info


def model_of(nodes, inputs, outputs, functions=(), opsets=(("", 17),), info=(), **weights):
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants, value_info=info)
    imports = [helper.make_opsetid(*opset) for opset in opsets]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)


def linear():
    weights = {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["a"]), node("Relu", ["a"], ["y"])]
    return model_of(nodes, [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 4])], **weights)


def load(proto, folder):
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return load_model(path)


def test_a_small_file_is_parsed_once_by_the_steps_of_a_command_and_a_copy_can_be_changed(tmp_path, monkeypatch):
    path, parsed, read = tmp_path / "model.onnx", [], model_module._read
    path.write_bytes(linear().SerializeToString())
    monkeypatch.setattr(model_module, "_read", lambda file: parsed.append(file) or read(file))
    copy = load_model(path)
    copy.graph.node(0).name = "changed"
    del copy
    gc.collect()
    assert [one.node for one in find_relus(model_module.read_model(path))] == [one.node for one in find_relus(load_model(path))]
    assert "changed" not in {node.name for node in model_module.read_model(path).graph}
    assert parsed == [path]
    path.write_bytes(
        model_of([node("Relu", ["x"], ["y"])], [value("x", FLOAT, [1])], [value("y", FLOAT, [1])]).SerializeToString()
    )
    assert len(list(model_module.read_model(path).graph)) == 1


# ---------------------------------------------------------------- external weights


@pytest.fixture
def separate(tmp_path):
    """A model whose weights, of 16 and 64 bytes, are in another file."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    options = {"save_as_external_data": True, "location": "m.onnx.data", "size_threshold": 0}
    onnx.save(linear(), folder / "m.onnx", **options)
    return folder / "m.onnx"


def test_small_external_weights_are_read_from_the_models_folder(separate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load_normalized_model(separate)
    np.testing.assert_array_equal(model.graph.initializers["b"].const_value.numpy(), np.ones(4, np.float32))


def test_a_saved_model_holds_its_weights(separate, tmp_path):
    model = load_model(separate)
    save_model(model, tmp_path / "whole.onnx")
    expected = {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)}
    for proto in (onnx.load(tmp_path / "whole.onnx", load_external_data=False), onnx.load_from_string(to_bytes(model))):
        found = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def external(location, **fields):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=text)
    proto = model_of(
        [node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["y"])],
        [value("x", FLOAT, ["n", 2])],
        [value("y", FLOAT, ["n", 2])],
    )
    proto.graph.initializer.append(tensor)
    return proto


@pytest.mark.parametrize(
    "location", ["../secret", "{root}/secret", "link", "folder/../../secret", "", "c:\\secret", "\\\\host\\secret"]
)
def test_weights_outside_the_models_folder_are_refused(tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"outside the model's folder|no file name"):
        load(external(location.format(root=tmp_path)), folder)


@pytest.mark.parametrize("part", ["values", "indices"])
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_sparse_tensors_read_no_file(tmp_path, monkeypatch, place, part):
    # onnx reads the file from the current folder.
    (tmp_path / "secret").write_bytes(np.ones(1, np.float32).tobytes() * 2)
    monkeypatch.chdir(tmp_path)
    sparse = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.ones(1, np.float32), "s"),
        indices=numpy_helper.from_array(np.zeros(1, np.int64)),
        dims=[4],
    )
    stored = getattr(sparse, part)
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="secret")
    constant = node("Constant", [], ["s"], sparse_value=sparse) if place == "attribute" else None
    nodes = [*([constant] if constant else []), node("Add", ["x", "s"], ["y"])]
    proto = model_of(nodes, [value("x", FLOAT, [4])], [value("y", FLOAT, [4])])
    if constant is None:
        proto.graph.sparse_initializer.append(sparse)
    with pytest.raises(InputError, match="is stored in another file"):
        load(proto, tmp_path)


def test_a_link_inside_the_folder_is_followed(tmp_path):
    (tmp_path / "real").write_bytes(np.full(4, 2, np.float32).tobytes())
    (tmp_path / "link").symlink_to("real")
    model = load(external("link"), tmp_path)
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), np.full((2, 2), 2, np.float32))


@pytest.mark.parametrize(
    "fields", [{"offset": "1"}, {"length": "12"}, {"offset": "-4"}, {"length": "many"}, {"offset": "99999999999999999999"}]
)
def test_a_weights_file_that_does_not_hold_the_weights_is_refused(tmp_path, fields):
    (tmp_path / "data").write_bytes(bytes(16))
    with pytest.raises(InputError, match="does not hold them"):
        load(external("data", **fields), tmp_path)


def test_a_missing_weights_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load(external("nothing"), tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="not an ordinary file"):
        load(external("folder"), tmp_path)


# ---------------------------------------------------------------- dimensions and recorded shapes


@pytest.mark.parametrize("unknown", [-1, "?", "", "None", "-1"])
def test_unknown_dimensions_are_independent_of_each_other(tmp_path, unknown):
    proto = model_of(
        [node("Relu", ["x"], ["y"])], [value("x", FLOAT, [unknown, 3, unknown])], [value("y", FLOAT, [unknown, 3, unknown])]
    )
    inputs, outputs = io_specs(load(proto, tmp_path))
    assert inputs[0].shape == ("x_0", 3, "x_2")
    assert [isinstance(dim, str) for dim in outputs[0].shape] == [True, False, True]


def test_one_name_for_two_dimensions_of_an_input_does_not_make_them_equal(tmp_path):
    proto = model_of([node("Relu", ["x"], ["y"])], [value("x", FLOAT, ["dyn", 3, "dyn"])], [value("y", FLOAT, None)])
    inputs, _ = io_specs(load(proto, tmp_path))
    assert inputs[0].shape == ("dyn", 3, "x_2")


@pytest.mark.parametrize(
    ("nodes", "shape", "weights"),
    [
        (
            [node("Sub", ["x", "mean"], ["c"]), node("Conv", ["c", "w"], ["k"], group=2), node("Relu", ["k"], ["y"])],
            ("x_0", 6, "x_2", "x_3"),
            {"mean": np.zeros((6, 1, 1), np.float32), "w": np.zeros((4, 3, 3, 3), np.float32)},
        ),
        (
            [node("Gemm", ["x", "w"], ["k"], transB=1), node("Relu", ["k"], ["y"])],
            ("x_0", 5),
            {"w": np.zeros((4, 5), np.float32)},
        ),
        ([node("MatMul", ["x", "w"], ["k"]), node("Relu", ["k"], ["y"])], ("x_0", 5), {"w": np.zeros((5, 4), np.float32)}),
        (
            [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), node("Relu", ["t"], ["y"])],
            ("x_0", "x_1", "x_2", "x_3"),
            {},
        ),
        (
            [node("GRU", ["x", "w", "r"], ["k"], hidden_size=2), node("Relu", ["k"], ["y"])],
            ("x_0", "x_1", 3),
            {"w": np.zeros((1, 6, 3), np.float32), "r": np.zeros((1, 6, 2), np.float32)},
        ),
        ([node("MaxPool", ["x"], ["k"], kernel_shape=[2]), node("Relu", ["k"], ["y"])], ("x_0", "x_1", "x_2"), {}),
    ],
)
def test_an_input_without_a_shape_gets_the_one_that_its_readers_need(tmp_path, nodes, shape, weights):
    unshaped = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("x", "y")]
    proto = model_of(nodes, unshaped[:1], unshaped[1:], **weights)
    model = load(proto, tmp_path)
    assert io_specs(model)[0][0].shape == shape
    assert "x has no shape" in " ".join(model.meta["notes"])


def test_an_input_without_a_shape_that_nothing_tells_about_is_refused(tmp_path):
    unshaped = [helper.make_tensor_value_info(name, FLOAT, None) for name in ("x", "y")]
    with pytest.raises(InputError, match="'x' has no shape"):
        io_specs(load(model_of([node("Relu", ["x"], ["y"])], unshaped[:1], unshaped[1:]), tmp_path))


def test_a_recorded_shape_that_contradicts_the_graph_is_inferred_anew(tmp_path):
    proto = linear()
    proto.graph.value_info.append(value("m", FLOAT, ["n", 7]))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load_normalized_model(path)
    assert [list(each.shape)[1] for item in model.graph for each in item.outputs] == [4, 4, 4]
    assert "contradict" in model.meta["notes"][0]


def test_an_output_whose_rank_is_not_known_is_accepted_again_after_it_was_saved(tmp_path):
    # The number of axes that are squeezed depends on the data, and the recorded shape is another one.
    nodes = [node("Relu", ["x"], ["r"]), node("Reshape", ["r", "to"], ["y"])]
    inputs = [value("x", FLOAT, ["n", 4]), value("to", TensorProto.INT64, ["k"])]
    proto = model_of(nodes, inputs, [helper.make_tensor_value_info("y", FLOAT, None)])
    path, again = tmp_path / "m.onnx", tmp_path / "again.onnx"
    path.write_bytes(proto.SerializeToString())
    save_model(load_normalized_model(path), again)
    assert load_normalized_model(again).graph.outputs[0].shape is None


def test_unused_initializers_and_operator_sets_and_repeated_metadata_are_accepted(tmp_path):
    proto = linear()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "unused"))
    proto.opset_import.add(domain="com.example", version=1)
    for text in ("first", "second"):
        proto.metadata_props.add(key="made_by", value=text)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "unused" not in load_normalized_model(path).graph.initializers


def test_a_sparse_initializer_is_expanded(tmp_path):
    proto = model_of(
        [node("MatMul", ["x", "s"], ["m"]), node("Relu", ["m"], ["y"])],
        [value("x", FLOAT, ["n", 2])],
        [value("y", FLOAT, ["n", 3])],
    )
    numbers = numpy_helper.from_array(np.array([5, 7], np.float32), "s")
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(numbers, numpy_helper.from_array(np.array([1, 5]), "i"), [2, 3])
    )
    dense = load(proto, tmp_path).graph.initializers["s"].const_value.numpy()
    np.testing.assert_array_equal(dense, [[0, 5, 0], [0, 0, 7]])
    del proto.graph.sparse_initializer[:]
    indices = numpy_helper.from_array(np.array([[0, 1], [1, 2]]), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(numbers, indices, [2, 3]))
    np.testing.assert_array_equal(load(proto, tmp_path).graph.initializers["s"].const_value.numpy(), dense)
    outside = numpy_helper.from_array(np.array([1, 6]), "i")
    proto.graph.sparse_initializer[0].CopyFrom(helper.make_sparse_tensor(numbers, outside, [2, 3]))
    with pytest.raises(InputError, match="indices"):
        load(proto, tmp_path)


def test_a_map_output_is_a_note_and_not_a_broken_file(tmp_path):
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
    )
    proto = model_of(
        [node("Relu", ["x"], ["r"]), node("ZipMap", ["r"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])],
        [value("x", FLOAT, ["n", 2])],
        [helper.make_value_info("y", kind)],
        opsets=(("", 17), ("ai.onnx.ml", 2)),
    )
    model = load(proto, tmp_path)
    assert len(find_relus(model)) == 1
    assert "y is a map" in model.meta["notes"][0]


# ---------------------------------------------------------------- broken files


def changed(change):
    proto = linear()
    change(proto)
    return proto


def _dangling(proto):
    proto.graph.node[0].input[1] = "nowhere"


def _cycle(proto):
    proto.graph.node[0].input[0] = "y"


def _twice(proto):
    proto.graph.node[1].output[0] = "m"


def _no_outputs(proto):
    del proto.graph.node[2].output[:]


def _no_inputs(proto):
    del proto.graph.node[2].input[:]


def _unmade_output(proto):
    proto.graph.output[0].name = "z"


def _no_graph_output(proto):
    del proto.graph.output[:]


def _type_0(proto):
    proto.graph.initializer[0].data_type = 0


def _type_99(proto):
    proto.graph.initializer[0].data_type = 99


def _short(proto):
    proto.graph.initializer[0].raw_data = bytes(12)


def _negative(proto):
    proto.graph.initializer[0].dims[0] = -4


def _huge(proto):
    proto.graph.initializer[0].dims[0] = 2**62


def _input_type(proto):
    proto.graph.input[0].type.tensor_type.elem_type = 0


def _rank(proto):
    proto.graph.input[0].CopyFrom(value("x", FLOAT, [1] * 65))


def _negative_input(proto):
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -7


def _no_operator(proto):
    proto.graph.node[0].op_type = ""


def _attribute_type(proto):
    proto.graph.node[0].attribute.add(name="a")


def _required(proto):
    proto.graph.node[2].op_type = "Cast"


def _same_inputs(proto):
    proto.graph.input.add().CopyFrom(proto.graph.input[0])


@pytest.mark.parametrize(
    "change",
    [
        _dangling, _cycle, _twice, _no_outputs, _no_inputs, _unmade_output, _no_graph_output, _type_0, _type_99, _short, _negative,
        _huge, _input_type, _rank, _negative_input, _no_operator, _attribute_type, _required, _same_inputs,
    ],
    ids=lambda change: change.__name__.strip("_"),
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_name_and_fault(tmp_path, change):
    with pytest.raises(InputError, match="is not a valid ONNX model") as caught:
        load(changed(change), tmp_path)
    assert "model.onnx" in caught.value.message


@pytest.mark.parametrize("attribute", ["group", "strides", "dilations", "kernel_shape"])
def test_sizes_of_a_convolution_that_are_not_positive_are_refused(tmp_path, attribute):
    number = 0 if attribute == "group" else [0, 1]
    convolution = node("Conv", ["x", "w"], ["y"], **{attribute: number})
    proto = model_of(
        [convolution], [value("x", FLOAT, [1, 3, 4, 4])], [value("y", FLOAT, None)], w=np.zeros((2, 3, 1, 1), np.float32)
    )
    with pytest.raises(InputError, match=f"'{attribute}'.*must be positive"):
        load(proto, tmp_path)


@pytest.mark.parametrize("text", [b"relu_name", b"MatMul", b"tensor_m"])
def test_text_that_is_not_utf_8_is_refused(tmp_path, text):
    proto = linear()
    proto.graph.node[2].name = "relu_name"
    for item in proto.graph.node:
        item.input[:] = ["tensor_m" if name == "m" else name for name in item.input]
        item.output[:] = ["tensor_m" if name == "m" else name for name in item.output]
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString().replace(text, b"\xff" + text[1:]))
    with pytest.raises(InputError, match="UTF-8"):
        load_model(tmp_path / "m.onnx")


def test_an_impossible_operator_set_is_refused(tmp_path):
    proto = linear()
    proto.opset_import[0].version = 2**40
    with pytest.raises(InputError, match="operator set"):
        load(proto, tmp_path)


def test_a_dangling_name_inside_a_branch_is_refused(tmp_path):
    then, other = (
        helper.make_graph([node("Relu", [name], [f"{name}_r"])], "g", [], [value(f"{name}_r", FLOAT, None)]) for name in "xz"
    )
    proto = model_of(
        [node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        [value("x", FLOAT, [2]), value("c", TensorProto.BOOL, [])],
        [value("y", FLOAT, None)],
    )
    with pytest.raises(InputError, match="reads 'z'"):
        load(proto, tmp_path)


def doubling(levels):
    functions = [helper.make_function("f", "F0", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)])]
    for level in range(1, levels):
        calls = [node(f"F{level - 1}", ["a"], ["t"], domain="f"), node(f"F{level - 1}", ["t"], ["b"], domain="f")]
        functions.append(helper.make_function("f", f"F{level}", ["a"], ["b"], calls, [helper.make_opsetid("f", 1)]))
    call = node(f"F{levels - 1}", ["x"], ["y"], domain="f", name="call")
    return model_of([call], [value("x", FLOAT, [2])], [value("y", FLOAT, [2])], functions, (("", 17), ("f", 1)))


def test_functions_that_double_at_each_level_are_refused_before_they_expand(tmp_path):
    assert len(find_relus(load(doubling(5), tmp_path))) == 16
    for levels in (30, 200):
        with pytest.raises(InputError, match="expand to"):
            load(doubling(levels), tmp_path)


def test_a_function_that_calls_itself_is_refused(tmp_path):
    function = helper.make_function("f", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="f")], [helper.make_opsetid("f", 1)])
    proto = model_of(
        [node("F", ["x"], ["y"], domain="f")], [value("x", FLOAT, [2])], [value("y", FLOAT, [2])], [function], (("f", 1),)
    )
    with pytest.raises(InputError, match="calls itself"):
        load(proto, tmp_path)


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile", "Resize"])
def test_a_tensor_of_terabytes_is_refused_before_it_is_allocated(tmp_path, operator):
    nodes = {
        "ConstantOfShape": [node("ConstantOfShape", ["s"], ["z"]), node("Mul", ["x", "z"], ["y"])],
        "Expand": [node("Expand", ["x", "s"], ["y"])],
        "Tile": [node("Tile", ["x", "s"], ["y"])],
        "Resize": [node("Resize", ["x", "", "", "s"], ["y"])],
    }[operator]
    proto = model_of(nodes, [value("x", FLOAT, [1, 1])], [value("y", FLOAT, ["a", "b"])], s=np.array([10**6, 10**6]))
    with pytest.raises(InputError, match="needs 4000 GB"):
        load(proto, tmp_path)


def test_the_largest_tensor_can_be_set(tmp_path):
    proto = model_of([node("Relu", ["x"], ["y"])], [value("x", FLOAT, [1, 1000])], [value("y", FLOAT, [1, 1000])])
    try:
        set_memory_limit(3999)
        with pytest.raises(InputError, match="--max-memory"):
            load(proto, tmp_path)
        set_memory_limit(4000)
        assert len(load(proto, tmp_path).graph) == 1
    finally:
        set_memory_limit(None)


def test_a_chain_of_thousands_of_nodes_needs_no_recursion(tmp_path):
    count = 5000
    nodes = [node("Relu", [f"t{index}" if index else "x"], [f"t{index + 1}"]) for index in range(count)]
    model = load(model_of(nodes[::-1], [value("x", FLOAT, [2])], [value(f"t{count}", FLOAT, [2])]), tmp_path)
    assert [relu.output for relu in find_relus(model)][::1000] == ["t1", "t1001", "t2001", "t3001", "t4001"]


# ---------------------------------------------------------------- cost


def test_weights_in_constant_nodes_are_parameters(tmp_path):
    weights = numpy_helper.from_array(np.ones((4, 5), np.float32), "")
    nodes = [node("Constant", [], ["w"], value=weights), node("MatMul", ["x", "w"], ["m"]), node("Relu", ["m"], ["y"])]
    cost = count_cost(load(model_of(nodes, [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 5])]), tmp_path), 3)
    # 3 rows of 2·4·5 operations and a Relu of 5.
    assert (cost.parameters, cost.flops, cost.unknown) == (20, 3 * 45, ())


def test_operations_that_depend_on_height_and_width_are_unknown(tmp_path):
    weights = np.zeros((4, 3, 3, 3), np.float32)
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    cost = count_cost(
        load(model_of(nodes, [value("x", FLOAT, [-1, 3, "h", "w_"])], [value("y", FLOAT, None)], w=weights), tmp_path)
    )
    assert cost.symbols == ("h", "w_")
    assert len(cost.unknown) == 2
    assert cost.flops == 0


def test_strings_and_sequences_have_a_cost(tmp_path):
    strings = model_of(
        [node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER")],
        [value("x", TensorProto.STRING, ["n"])],
        [value("y", TensorProto.STRING, ["m"])],
    )
    assert count_cost(load(strings, tmp_path)).parameters == 0
    sequences = model_of(
        [node("SequenceConstruct", ["x", "x"], ["s"]), node("ConcatFromSequence", ["s"], ["y"], axis=1)],
        [value("x", FLOAT, ["n", 4])],
        [value("y", FLOAT, ["n", 8])],
    )
    assert count_cost(load(sequences, tmp_path)).flops >= 0


def test_a_file_in_use_is_not_parsed_again_and_copies_do_not_share_changes(tmp_path, monkeypatch):
    held = load(linear(), tmp_path)
    monkeypatch.setattr("relu_deploy.graph.model._load", None)  # parsing it again would call this
    changed = load_model(tmp_path / "model.onnx")
    changed.graph.node(0).op_type = "Mul"
    changed.graph.outputs.clear()
    for model in (held, load_model(tmp_path / "model.onnx")):
        assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Relu"]
        assert [output.name for output in model.graph.outputs] == ["y"]


def test_a_file_that_was_written_again_is_loaded_again(tmp_path):
    held = load(linear(), tmp_path)
    proto = linear()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((4, 4), 2, np.float32), "w"))
    (tmp_path / "new").write_bytes(proto.SerializeToString())
    (tmp_path / "new").replace(tmp_path / "model.onnx")
    assert load_model(tmp_path / "model.onnx").graph.initializers["w"].const_value.numpy()[0, 1] == 2
    assert held.graph.initializers["w"].const_value.numpy()[0, 1] == 0


def test_an_input_that_is_a_sequence_is_refused_by_name(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, ["n", 4])
    nodes = [helper.make_node("ConcatFromSequence", ["parts"], ["all"], axis=0), helper.make_node("Relu", ["all"], ["y"])]
    graph = helper.make_graph(nodes, "g", [sequence], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="input 'parts' is of the type sequence, and only tensors can be fed"):
        Bundle.open(tmp_path / "m.onnx")


@pytest.mark.parametrize("inside", [False, True])
def test_an_attribute_that_refers_to_a_functions_is_refused_where_there_is_no_function(tmp_path, inside):
    reader = node("LeakyRelu", ["x"], ["inner" if inside else "y"], "leaks", alpha=0.5)
    reader.attribute[0].ref_attr_name = "slope"
    nodes = [reader]
    if inside:
        body = helper.make_graph(nodes, "body", [], [value("inner", FLOAT, ["n", 4])])
        nodes = [node("If", ["yes"], ["y"], then_branch=body, else_branch=body)]
    proto = model_of(nodes, [value("x", FLOAT, ["n", 4])], [value("y", FLOAT, ["n", 4])], yes=np.array(True))
    with pytest.raises(InputError, match="'alpha' of the LeakyRelu 'leaks' refers to a function's, outside of any"):
        load(proto, tmp_path)


@pytest.mark.parametrize("place", ["node", "operator", "tensor", "dimension", "initializer"])
def test_names_that_no_table_could_show_are_refused(tmp_path, place):
    proto = linear()
    name = "n" * 2_000_000
    if place == "node":
        proto.graph.node[0].name = name
    elif place == "operator":
        proto.graph.node[2].op_type = name
    elif place == "tensor":
        proto.graph.node[2].input[0] = proto.graph.node[1].output[0] = name
    elif place == "dimension":
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    else:
        proto.graph.initializer[0].name = name
    with pytest.raises(InputError, match="2000000 characters") as raised:
        load(proto, tmp_path)
    assert len(raised.value.message) < 1000


def test_a_shared_model_is_serialized_once_and_nobody_sees_the_changes_of_others(tmp_path, monkeypatch):
    load(linear(), tmp_path)
    model = read_model(tmp_path / "model.onnx")
    first = to_proto_without_weights(model)
    assert [node.op_type for node in first.graph.node] == ["MatMul", "Add", "Relu"]
    monkeypatch.setattr("onnx_ir.to_proto", None)  # serializing it again would call this
    del first.graph.node[:]
    assert [node.op_type for node in to_proto_without_weights(model).graph.node] == ["MatMul", "Add", "Relu"]


def test_a_changed_copy_is_serialized_as_it_is(tmp_path):
    load(linear(), tmp_path)
    to_proto_without_weights(read_model(tmp_path / "model.onnx"))
    copy = load_model(tmp_path / "model.onnx")
    copy.graph.node(2).op_type = "Tanh"
    assert [node.op_type for node in to_proto_without_weights(copy).graph.node] == ["MatMul", "Add", "Tanh"]


def test_a_large_file_is_not_parsed_again_while_its_shared_model_is_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr("relu_deploy.graph.shared_models.KEPT_BYTES", 0)
    load(linear(), tmp_path)
    held = read_model(tmp_path / "model.onnx")
    monkeypatch.setattr("relu_deploy.graph.model._load", None)  # parsing it again would call this
    assert read_model(tmp_path / "model.onnx") is held
