"""Operators that are newer than the operator set to write: several older ones, or a refusal that names them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_deploy.backends import load
from relu_deploy.errors import InputError
from relu_deploy.exporting.lower_opset import lower_opset
from relu_deploy.exporting.older_operators import first_version
from relu_deploy.graph import opset_of, save_model

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def model_of(node, shape, kind=FLOAT, **weights):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], tensors)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def lowered(tmp_path, model, opset):
    old = lower_opset(model, opset)
    assert opset_of(old) == opset
    save_model(old, tmp_path / "old.onnx")
    proto = onnx.load(tmp_path / "old.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert all((first_version(node.op_type) or 0) <= opset for node in proto.graph.node)
    return tmp_path / "old.onnx"


def hard_swish(x):
    return x * np.clip(x / 6 + 0.5, 0, 1)


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


@pytest.mark.parametrize("opset", [13, 15, 17])
@pytest.mark.parametrize(("operator", "expected"), [("HardSwish", hard_swish), ("Mish", mish)])
def test_activations_are_written_as_what_they_compute(tmp_path, operator, expected, opset):
    path = lowered(tmp_path, model_of(helper.make_node(operator, ["x"], ["y"], "act"), ["n", 5]), opset)
    x = np.array([[-4, -1, 0, 1, 5]], np.float32)
    np.testing.assert_allclose(load(path, "reference").evaluate({"x": x})["y"], expected(x.astype(np.float64)), atol=1e-7)


@pytest.mark.parametrize(("axis", "bias", "kind"), [(-1, True, FLOAT), (1, False, FLOAT), (-1, True, HALF)])
def test_layer_normalization_is_written_with_the_mean_taken_first(tmp_path, axis, bias, kind):
    dtype = np.float16 if kind == HALF else np.float32
    weights = {"scale": np.linspace(0.5, 2, 4).astype(dtype), "bias": np.arange(4).astype(dtype)}
    node = helper.make_node(
        "LayerNormalization", ["x", "scale", *(["bias"] if bias else [])], ["y"], "norm", axis=axis, epsilon=1e-3
    )
    if axis == 1:
        weights["scale"] = np.broadcast_to(weights["scale"], (3, 4)).copy()
    if not bias:
        del weights["bias"]
    path = lowered(tmp_path, model_of(node, [2, 3, 4], kind, **weights), 13)
    x = (np.random.default_rng(0).standard_normal((2, 3, 4)) + 3).astype(dtype)
    axes = tuple(range(axis % 3, 3))
    centered = x.astype(np.float64) - x.mean(axes, keepdims=True, dtype=np.float64)
    expected = centered / np.sqrt((centered**2).mean(axes, keepdims=True) + 1e-3) * weights["scale"] + weights.get("bias", 0)
    np.testing.assert_allclose(load(path, "reference").evaluate({"x": x})["y"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -1, 2])
def test_triangles_are_written_as_a_comparison_of_rows_and_columns(tmp_path, upper, k):
    node = helper.make_node("Trilu", ["x", *([] if k is None else ["k"])], ["y"], "mask", upper=upper)
    path = lowered(tmp_path, model_of(node, ["n", "rows", "columns"], **({} if k is None else {"k": np.int64(k)})), 13)
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    expected = (np.triu if upper else np.tril)(x, k or 0)
    np.testing.assert_array_equal(load(path, "reference").evaluate({"x": x})["y"], expected)


def test_an_operator_without_an_older_form_is_refused_by_its_name_and_with_the_set_that_has_it(tmp_path):
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], "warp")
    model = model_of(node, [1, 1, 3, 3], grid=np.zeros((1, 3, 3, 2), np.float32))
    with pytest.raises(InputError, match="'warp' is a GridSample, an operator that opset 16 introduced") as error:
        lower_opset(model, 13)
    assert "--opset 16" in error.value.hint


def test_a_pytorch_model_with_newer_operators_is_exported_at_opset_13_and_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    from torch import nn

    from relu_deploy.exporting.exporter import export

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Hardswish(), nn.LayerNorm(8), nn.Mish(), nn.Linear(8, 3), nn.ReLU()).eval()
    bundle = export(module, tmp_path / "m.rdb", inputs={"x": (1, 6)}, opset=13)
    assert bundle.program_verdict["passed"]
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(bundle.session("onnxruntime-cpu").run({"x": x})["y"], expected, atol=1e-5)


def test_a_program_with_a_newer_operator_is_refused_for_that_although_it_cannot_be_traced_again(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install 'relu-deploy[torch]')")

    from relu_deploy.exporting.exporter import export

    class Warped(torch.nn.Module):
        def forward(self, x, grid):
            offset = torch.tensor([0.5, 0.25]).reshape(1, 1, 1, 2)
            return torch.relu(torch.nn.functional.grid_sample(x, grid + offset, align_corners=False))

    arguments = torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 5, 2)
    torch.export.save(torch.export.export(Warped(), arguments), tmp_path / "m.pt2")
    with pytest.raises(InputError, match=r"cannot be written at opset 13: the node .* is a GridSample"):
        export(tmp_path / "m.pt2", tmp_path / "m.rdb", opset=13)
