"""Whole journeys on the command line, as a user makes them."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import copied

pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "tensorrt-rtx"])
def test_the_segmenter_becomes_int8_with_the_scenes_that_ship(command, tmp_path, target):
    """Its Relus' noise has long tails: zeros far from where they should be were once seen in it."""
    copied("digit_segmenter", tmp_path / "m.rdb")
    words = ("--for", target, "--precision", "int8", "--calibration", "digit_segmenter", "--json", "-", "--quiet")
    made = command("optimize", "m.rdb", *words)
    assert made.code == 0, made.stdout
    assert made.json["verified"]["relus_passed"] == made.json["verified"]["relus"] == 17
    assert made.json["accuracy"]["metric"] == "mIoU"
    assert made.json["accuracy"]["drop"] <= 0.005


@pytest.mark.parametrize(
    ("model", "relus", "metric", "least"),
    [
        ("digits", 6, "top1", 0.99),
        ("digit_detector", 18, "AP", 0.75),
        ("digit_segmenter", 17, "mIoU", 0.87),
        ("mobilenet_v2", 35, "top1", 0.5),
        ("language_id", 5, "top1", 0.85),
    ],
)
def test_a_shipped_model_travels_from_export_to_bench(command, forked_workers, tmp_path, model, relus, metric, least):
    from relu_deploy.zoo.recipes import recipe, weights_file

    try:
        weights_file(recipe(model))
    except Exception as why:
        pytest.skip(str(why))
    exported = command("export", model, "-o", "m.rdb", "--json", "-", "--quiet")
    assert exported.code == 0, exported.stderr
    assert exported.json["schema"] == "relu-deploy/export/1"
    assert exported.json["relus"] == relus
    assert exported.json["untrained"] is False

    verified = command("verify", "m.rdb", "--backend", "onnxruntime-cpu", "--backend", "torch", "--json", "-", "--quiet")
    assert verified.code == 0, verified.stdout
    assert verified.json["passed"] is True
    assert verified.json["first_divergence"] is None
    assert [backend["name"] for backend in verified.json["backends"]] == ["onnxruntime-cpu", "torch"]
    for backend in verified.json["backends"]:
        assert len(backend["relus"]) == relus
        for relu in backend["relus"]:
            assert {"node", "index", "scope", "passed", "max_abs", "max_ulp", "error_ratio"} <= set(relu)
            assert relu["scope"]

    bench = command(
        "bench",
        "m.rdb",
        "--backend",
        "onnxruntime-cpu",
        "--backend",
        "torch",
        "--seconds",
        "0.2",
        "--html",
        "b.html",
        "--json",
        "-",
    )
    assert bench.code == 0, bench.stderr
    for run in bench.json["runs"]:
        assert run["verified"] is True
        assert run["accuracy"]["name"] == metric
        assert run["accuracy"]["value"] >= least
        assert set(run["latency_ms"]) >= {"p50", "p90", "p99", "mean", "ci95"}
        assert run["latency_ms"]["p50"] <= run["latency_ms"]["p90"] <= run["latency_ms"]["p99"]
        assert run["throughput"] > 0
        assert run["peak_bytes"] > 10**7
    assert bench.json["environment"]["threads"] >= 1
    assert bench.json["ratios"][0]["against"] == "onnxruntime-cpu"
    page = (tmp_path / "b.html").read_text()
    assert "<svg" in page
    assert "http" not in page


def test_a_batch_dimension_varies_unless_it_was_fixed(command, tmp_path):
    assert command("export", "digits", "-o", "fixed.rdb", "--batch", "2", "--quiet").code == 0
    np.savez(tmp_path / "three.npz", x=np.zeros((3, 1, 28, 28), np.float32))
    refused = command("verify", "fixed.rdb", "--inputs", "three.npz")
    assert refused.code == 2
    assert "must have shape 2x1x28x28, got 3x1x28x28" in refused.stderr
    assert command("verify", "fixed.rdb", "--quiet").code == 0


def test_embedded_preprocessing_takes_pictures_and_gives_the_same_answers(command, tmp_path, digits_bundle):
    from relu_deploy.bundle import Bundle
    from relu_deploy.data.datasets import load_dataset, to_input

    made = command("export", "digits", "-o", "pixels.rdb", "--embed-preprocess", "--json", "-", "--quiet")
    assert made.json["inputs"] == [{"name": "x", "dtype": "uint8", "shape": ["batch", 28, 28, 1]}]
    assert command("verify", "pixels.rdb", "--samples", "3", "--quiet").code == 0
    bundle = Bundle.open(tmp_path / "pixels.rdb")
    pixels = load_dataset(bundle, "digits").feeds["x"][:20]
    one = bundle.session().run({"x": pixels})["y"]
    other = digits_bundle.session().run({"x": to_input(digits_bundle, pixels)})["y"]
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_callable_of_ones_own_travels_with_weights_and_arguments(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net(width=4):\n"
        "    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))\n"
    )
    import torch
    from safetensors.torch import save_file

    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    made = command(
        *(
            "export",
            "mine:net",
            "-o",
            "m.rdb",
            "--input",
            "features=1x3",
            "--arg",
            "width=5",
            "--weights",
            "w.safetensors",
            "--json",
            "-",
        )
    )
    assert made.code == 0, made.stderr
    assert made.json["inputs"][0]["name"] == "features"
    checked = command("verify", "m.rdb", "--json", "-", "--samples", "3")
    assert checked.code == 0
    assert checked.json["against"] == "reference"
    assert checked.json["program_verdict"]["passed"] is True
    manifest = json.loads((tmp_path / "m.rdb" / "manifest.json").read_text())
    assert manifest["source"]["spec"] == "mine:net"
    assert manifest["source"]["weights"]["name"] == "w.safetensors"
    assert str(tmp_path) not in (tmp_path / "m.rdb" / "model.onnx").read_bytes().decode("latin1")


def test_an_exported_program_travels(command, tmp_path):
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU6()).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(1, 1, 8, 8),)), tmp_path / "p.pt2")
    made = command("export", "p.pt2", "-o", "m.rdb", "--batch", "1", "--json", "-")
    assert made.code == 0, made.stderr
    assert command("inspect", "m.rdb", "--json", "-").json["relus"][0]["kind"] == "relu6"
    assert command("verify", "m.rdb").code == 0


@pytest.mark.parametrize("file", LIGHT, ids=lambda file: file.stem)
def test_the_graphs_of_the_onnx_package_are_adopted_inspected_and_verified(command, file):
    assert command("export", file, "-o", "m.rdb", "--quiet").code == 0
    seen = command("inspect", "m.rdb", "--json", "-").json
    assert seen["relus"]
    assert seen["flops"] > 1e8
    checked = command("verify", "m.rdb", "--json", "-", "--quiet")
    assert checked.code == 0, checked.stdout[-2000:]
    assert checked.json["against"] == "reference"
    assert len(checked.json["backends"][0]["relus"]) == len(seen["relus"])


def test_a_difference_is_exit_1_and_names_the_node(command, digits_bundle, tmp_path):
    proto = onnx.load(digits_bundle.onnx)
    relus = [node for node in proto.graph.node if node.op_type == "Relu"]
    relus[1].op_type = "Abs"
    onnx.save(proto, tmp_path / "abs.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((1, 1, 28, 28)).astype(np.float32))
    found = command("verify", "abs.onnx", "--against", digits_bundle.path, "--inputs", "x.npz", "--json", "-")
    assert found.code == 1
    assert found.json["passed"] is False
    assert found.json["first_divergence"]


def test_reports_are_kept_in_the_bundle(command, tmp_path):
    command("export", "digits", "-o", "m.rdb", "--quiet")
    command("verify", "m.rdb", "--quiet")
    assert json.loads((tmp_path / "m.rdb" / "reports" / "verify.json").read_text())["passed"] is True
    assert command("inspect", "m.rdb").code == 0


def test_the_python_calls_of_the_contract_work(tmp_path):
    import relu_deploy

    module = relu_deploy.build("squeezenet1_1", weights=None)
    bundle = relu_deploy.export(module, tmp_path / "s.rdb", inputs={"x": (1, 3, 64, 64)}, batch="dynamic")
    report = relu_deploy.verify(bundle, backends=["onnxruntime-cpu"])
    assert report.passed
    assert report.first_divergence is None
    assert report.to_json()["schema"] == "relu-deploy/verify/1"
    table = relu_deploy.bench(bundle, backends=["onnxruntime-cpu"], batch=[1, 2], seconds=0.2)
    assert [run.batch for run in table.runs] == [1, 2]
    session = bundle.session("onnxruntime-cpu")
    assert session.run({"x": np.zeros((3, 3, 64, 64), np.float32)})["y"].shape == (3, 1000)


@pytest.mark.parametrize("opset", [18, 24])
def test_the_opset_is_the_one_that_was_asked_for(command, opset):
    made = command("export", "digits", "-o", "m.rdb", "--opset", opset, "--json", "-")
    assert made.code == 0, made.stderr
    assert made.json["opset"] == opset
    assert command("verify", "m.rdb", "--quiet").code == 0


def test_a_page_is_not_overwritten_without_force(command, digits_bundle, tmp_path):
    (tmp_path / "b.html").write_text("precious")
    refused = command("bench", digits_bundle.path, "--html", "b.html")
    assert refused.code == 2
    assert "already exists" in refused.stderr
    assert (tmp_path / "b.html").read_text() == "precious"
