"""verify finds what differs and where, and calls nothing different that is only rounded otherwise."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from relu_deploy.errors import BackendUnavailable, InputError, Unsupported, UsageError
from relu_deploy.graph import find_relus, load_model
from relu_deploy.verification.run import verify

pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


def damaged(bundle, tmp_path, change):
    """Return the path of a copy of the bundle's graph that `change` was applied to."""
    proto = onnx.load(bundle.onnx)
    change(proto.graph)
    onnx.save(proto, tmp_path / "damaged.onnx")
    return tmp_path / "damaged.onnx"


def weight_of(graph, position):
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    return next(tensor for tensor in graph.initializer if tensor.name == convolutions[position].input[1])


def replace(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def test_an_honest_export_passes_on_every_backend_relu_by_relu(digits_bundle):
    report = verify(digits_bundle, ["onnxruntime-cpu", "torch", "reference"], samples=4)
    assert report.passed
    assert report.first_divergence is None
    for backend in report.backends:
        assert len(backend.relus) == 6
        assert all(relu.comparison.error_ratio < 8 for relu in backend.relus)
        assert backend.as_deployed
    assert report.inputs["source"] == "data set digits"


def test_inputs_without_a_row_are_refused_because_nothing_would_be_compared(digits_bundle):
    with pytest.raises(InputError, match="has no rows"):
        verify(digits_bundle, feeds={"x": np.zeros((0, 1, 28, 28), np.float32)})


def test_relus_carry_the_scope_of_their_pytorch_module(digits_bundle):
    scopes = [relu.scope for relu in find_relus(load_model(digits_bundle.onnx))]
    assert scopes == [f"stage{stage}.{block}.relu" for stage in (1, 2, 3) for block in (0, 1)]


def test_the_compiled_program_is_compared_at_its_outputs(digits_bundle):
    try:
        report = verify(digits_bundle, ["torch-compile"])
    except BackendUnavailable as why:
        pytest.skip(str(why))
    assert report.passed
    assert report.backends[0].as_deployed is None
    assert "outputs only" in report.backends[0].note


@pytest.mark.parametrize("position", range(6))
def test_weights_rounded_to_float16_are_located_at_their_own_convolution(digits_bundle, tmp_path, position):
    def change(graph):
        tensor = weight_of(graph, position)
        replace(tensor, numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32))

    path = damaged(digits_bundle, tmp_path, change)
    report = verify(
        path, against=str(digits_bundle.path), feeds={"x": np.random.default_rng(0).random((2, 1, 28, 28), np.float32)}
    )
    assert not report.passed
    convolutions = [node.name for node in load_model(path).graph if node.op_type == "Conv"]
    assert report.first_divergence == convolutions[position]
    assert [fault.kind for fault in report.backends[0].faults] == ["precision"]


def test_a_leaky_relu_in_place_of_a_relu_is_found(digits_bundle, tmp_path):
    def change(graph):
        node = [node for node in graph.node if node.op_type == "Relu"][2]
        node.op_type = "LeakyRelu"

    feeds = {"x": np.random.default_rng(0).random((1, 1, 28, 28), np.float32)}
    report = verify(damaged(digits_bundle, tmp_path, change), against=str(digits_bundle.path), feeds=feeds)
    assert not report.passed
    assert report.first_divergence == find_relus(load_model(digits_bundle.onnx))[2].node
    assert report.backends[0].faults[0].kind == "sign"


def test_a_plain_file_is_held_against_its_own_graph_in_float64(digits_bundle):
    report = verify(digits_bundle.onnx)
    assert report.against == "reference"
    assert report.passed


def test_what_cannot_be_compared_with_is_said_so(digits_bundle, tmp_path):
    with pytest.raises(UsageError, match="no PyTorch program"):
        verify(digits_bundle.onnx, against="torch")
    with pytest.raises(UsageError, match="cannot verify against 'tourch'"):
        verify(digits_bundle, against="tourch")
    with pytest.raises(InputError, match="does not exist"):
        verify(digits_bundle, against=str(tmp_path / "other.onnx"))
    with pytest.raises(InputError, match="must have shape batchx1x28x28"):
        verify(digits_bundle, feeds={"x": np.zeros((1, 3, 28, 28), np.float32)})


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-cuda"])
def test_a_backend_asked_for_by_name_that_is_not_usable_is_an_error(digits_bundle, name):
    with pytest.raises(BackendUnavailable, match=f"'{name}' is not usable here"):
        verify(digits_bundle, [name])


def test_an_unknown_backend_is_a_usage_error_with_the_nearest_name(digits_bundle):
    with pytest.raises(UsageError) as caught:
        verify(digits_bundle, ["onnxruntime-cpuu"])
    assert "did you mean 'onnxruntime-cpu'?" in caught.value.hint


def test_torch_cannot_run_a_file_that_carries_no_program(digits_bundle):
    with pytest.raises(Unsupported, match="has no PyTorch program"):
        verify(digits_bundle.onnx, ["torch"])


def test_a_verification_parses_and_serializes_a_graph_once_and_copies_it_never(tmp_path, monkeypatch):
    # Each takes as long as everything else where a graph has many nodes.
    import onnx_ir as ir

    counts = Counter()

    def counted(name, function):
        def call(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(ir, "from_proto", counted("parsed", ir.from_proto))
    monkeypatch.setattr(ir, "to_proto", counted("serialized", ir.to_proto))
    monkeypatch.setattr(ir.Model, "clone", counted("copied", ir.Model.clone))
    onnx.save(chain("Identity"), tmp_path / "identity.onnx")
    assert verify(tmp_path / "identity.onnx", ["onnxruntime-cpu"]).passed
    assert counts == {"parsed": 1, "serialized": 1}
    counts.clear()
    onnx.save(chain("Relu"), tmp_path / "relu.onnx")
    assert verify(tmp_path / "relu.onnx", ["onnxruntime-cpu"]).passed
    # The tensors of the top graph are shown without a copy.
    assert counts == {"parsed": 1, "serialized": 1}


def chain(operator):
    """Return a graph of ten nodes, one behind the other, whose batch varies."""
    nodes = [onnx.helper.make_node(operator, [f"t{place}"], [f"t{place + 1}"]) for place in range(10)]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in ("t0", "t10")]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
