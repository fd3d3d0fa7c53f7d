"""An input has the type that is declared, also where the weights of the model have another floating type."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'relu-deploy[torch]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'relu-deploy[torch]'")

from torch import nn  # noqa: E402

from relu_deploy.bundle import Bundle  # noqa: E402
from relu_deploy.errors import InputError  # noqa: E402
from relu_deploy.exporting.exporter import export_source  # noqa: E402


def network(dtype):
    torch.manual_seed(0)
    # ONNX Runtime has no convolution of float64.
    first = nn.Linear(4, 4) if dtype == torch.float64 else nn.Conv2d(3, 4, 3, padding="same")
    channels = 3 if dtype == torch.float64 else 4
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(channels * 16, 2)).to(dtype).eval()


@pytest.mark.parametrize(
    ("weights", "declared"), [("float16", "float32"), ("float32", "float64"), ("float64", "float32"), ("float32", "float16")]
)
@pytest.mark.parametrize("batch", ["dynamic", 1])
def test_an_input_of_another_floating_type_is_converted_to_that_of_the_weights_and_that_is_said(
    tmp_path, weights, declared, batch
):
    module = network(getattr(torch, weights))
    made = export_source(module, tmp_path / "m.rdb", inputs={"x": ((1, 3, 4, 4), declared)}, batch=batch)
    size = "batch" if batch == "dynamic" else "1"
    assert str(made.bundle.inputs[0]) == f"x: {declared}[{size}x3x4x4]"
    assert made.notes == (f"the input 'x' is {declared}, as declared: it is converted to {weights}, the type of the weights",)
    assert made.bundle.program_verdict["passed"]
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(declared)
    expected = module(torch.from_numpy(x).to(getattr(torch, weights))).detach().numpy()
    answer = made.bundle.session("onnxruntime-cpu").run({"x": x})["y"]
    assert answer.dtype == expected.dtype
    np.testing.assert_allclose(answer, expected, rtol=1e-2, atol=1e-2 if "float16" in (weights, declared) else 1e-5)


def test_a_model_that_converts_its_input_itself_is_left_as_it_is(tmp_path):
    class Converting(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 2).half()

        def forward(self, x):
            return self.last((x * 1e-6).half())

    made = export_source(Converting().eval(), tmp_path / "m.rdb", inputs={"x": ((1, 4), "float32")})
    assert (made.notes, str(made.bundle.inputs[0])) == ((), "x: float32[batchx4]")


def test_integers_are_not_converted_to_floating_weights_and_the_error_names_both_types(tmp_path):
    with pytest.raises(InputError, match=r"does not accept an input of shape 2x3x4x4 \(uint8\)") as refused:
        export_source(network(torch.float32), tmp_path / "m.rdb", inputs={"x": ((1, 3, 4, 4), "uint8")})
    assert "its weights are float32" in refused.value.hint
    assert not (tmp_path / "m.rdb").exists()


def test_a_declared_type_is_kept_on_the_command_line(command, tmp_path):
    (tmp_path / "halved.py").write_text(
        "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).half()\n"
    )
    made = command("export", "halved:net", "-o", "m.rdb", "--input", "x=1x2:float32", "--json", "-")
    assert made.code == 0, made.stderr
    assert "note: halved:net: the input 'x' is float32, as declared: it is converted to float16" in made.stderr
    assert made.json["inputs"][0]["dtype"] == "float32"
    assert command("verify", "m.rdb", "--quiet").code == 0


def test_arrays_of_another_type_than_a_half_precision_model_takes_are_refused_with_the_conversion(command, tmp_path):
    export_source(network(torch.float16), tmp_path / "m.rdb", inputs={"x": (1, 3, 4, 4)})
    np.savez(tmp_path / "rows.npz", x=np.zeros((2, 3, 4, 4), np.float32))
    for words in (("verify", "m.rdb", "--inputs", "rows.npz"), ("census", "m.rdb", "--data", "rows.npz")):
        refused = command(*words, "--quiet")
        assert refused.code == 2
        assert "input 'x' must be float16, got float32" in refused.stderr
        assert "array.astype('float16')" in refused.stderr


def test_pixels_are_normalized_in_the_graph_of_a_half_precision_model(tmp_path):
    module = network(torch.float16)
    pixels = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}
    inputs = {"x": (1, 3, 4, 4)}
    bundle = export_source(module, tmp_path / "m.rdb", inputs=inputs, embed_preprocess=True, pixels=pixels).bundle
    assert str(bundle.inputs[0]) == "x: uint8[batchx4x4x3]"
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    normalized = (x.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    expected = module(torch.from_numpy(normalized).half()).detach().numpy()
    np.testing.assert_allclose(bundle.session("onnxruntime-cpu").run({"x": x})["y"], expected, rtol=1e-2, atol=1e-2)


def test_pixels_are_normalized_before_a_half_precision_model(tmp_path):
    from relu_deploy.data.datasets import load_dataset

    pixels = {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.25] * 3}
    export_source(network(torch.float16), tmp_path / "m.rdb", inputs={"x": (1, 3, 4, 4)}, pixels=pixels)
    np.savez(tmp_path / "rows.npz", x=np.full((2, 4, 4, 3), 255, np.uint8))
    rows = load_dataset(Bundle.open(tmp_path / "m.rdb"), tmp_path / "rows.npz").rows(slice(None))["x"]
    assert (rows.dtype, rows.shape, float(rows.min())) == (np.float16, (2, 3, 4, 4), 2.0)
