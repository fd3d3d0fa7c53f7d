"""Models of other packages are named where they live."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")

from torchvision_import import torchvision


def test_a_torchvision_model_travels_by_its_own_name(command):
    torchvision()
    made = command("export", "torchvision.models:resnet18", "-o", "r.rdb", "--input", "x=1x3x64x64", "--json", "-")
    assert made.code == 0, made.stderr
    assert made.json["relus"] == 17
    assert command("verify", "r.rdb").code == 0


def test_a_torchvision_of_another_build_is_told_from_a_broken_module(command, tmp_path):
    for name, words in (("mismatched", "operator torchvision::nms does not exist"), ("broken", "no luck")):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError({words!r})\n")
        refused = command("export", f"{name}:net", "-o", "m.rdb", "--input", "x=1x2")
        assert refused.code == 2
        assert words in refused.stderr
        assert ("from the same index" in refused.stderr) == (name == "mismatched")


def test_a_timm_model_is_named_behind_its_package(command, tmp_path, monkeypatch):
    # A stand-in with timm's own entry point: the package itself is no dependency.
    (tmp_path / "timm.py").write_text(
        "import torch\n"
        "def create_model(name, width=3):\n"
        "    assert name == 'tinynet_z'\n"
        "    return torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.ReLU())\n"
    )
    monkeypatch.delitem(__import__("sys").modules, "timm", raising=False)
    made = command("export", "timm:tinynet_z", "-o", "t.rdb", "--input", "x=1x2", "--arg", "width=4", "--json", "-")
    assert made.code == 0, made.stderr
    assert made.json["outputs"][0]["shape"] == ["batch", 4]


def test_a_model_of_ones_own_with_labels_is_scored_on_folders_that_are_named_after_them(command, tmp_path):
    from PIL import Image

    from relu_deploy import Bundle
    from relu_deploy.data.datasets import load_dataset
    from relu_deploy.tasks.metrics import score

    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))\n"
    )
    (tmp_path / "names.txt").write_text("dark\nbright\n")
    for label, grey in (("dark", 0), ("bright", 255)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        Image.new("L", (4, 4), grey).save(tmp_path / "photos" / label / "one.png")
    pixels = ["--input", "x=1x1x4x4", "--mean", "0.5", "--std", "0.5"]
    made = command("export", "mine:net", "-o", "m.rdb", *pixels, "--labels", "names.txt")
    assert made.code == 0, made.stderr
    bundle = Bundle.open(tmp_path / "m.rdb")
    assert bundle.manifest["labels"] == ["dark", "bright"]
    dataset = load_dataset(bundle, tmp_path / "photos")
    assert dataset.targets["labels"].tolist() == [1, 0]
    measured = score(bundle.manifest, bundle.session("onnxruntime-cpu").run, dataset, 2)
    assert measured is not None
    assert (measured.name, measured.samples) == ("top1", 2)


def test_a_segmenter_of_ones_own_with_labels_is_scored_by_mean_iou_on_true_masks(command, tmp_path):
    from relu_deploy import Bundle
    from relu_deploy.data.datasets import load_dataset
    from relu_deploy.tasks.metrics import score

    (tmp_path / "lamp.py").write_text(
        "import torch\n"
        "class Bright(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.cat([torch.relu(-x), torch.relu(x)], 1)\n"
    )
    (tmp_path / "names.txt").write_text("dark\nbright\n")
    pixels = np.where(np.arange(32).reshape(2, 4, 4) % 3 == 0, 255, 0).astype(np.uint8)
    true = (pixels > 0).astype(np.uint8)
    true[0, 0] = 1 - true[0, 0]
    np.savez(tmp_path / "scenes.npz", x=pixels[..., None], mask=true)
    given = ["--input", "x=1x1x4x4", "--mean", "0.5", "--std", "0.5", "--labels", "names.txt"]
    made = command("export", "lamp:Bright", "-o", "m.rdb", *given)
    assert made.code == 0, made.stderr
    bundle = Bundle.open(tmp_path / "m.rdb")
    assert (bundle.manifest["task"], bundle.manifest["labels"]) == ("segmentation", ["dark", "bright"])
    measured = score(bundle.manifest, bundle.session("onnxruntime-cpu").run, load_dataset(bundle, tmp_path / "scenes.npz"), 2)
    both = [((pixels > 0) == k)[true == k].sum() for k in (0, 1)]
    either = [(((pixels > 0) == k) | (true == k)).sum() for k in (0, 1)]
    assert (measured.name, measured.samples) == ("mIoU", 2)
    assert measured.value == pytest.approx(np.mean(np.divide(both, either)))
    assert 0.3 < measured.value < 1
    (tmp_path / "names.txt").write_text("only\n")
    refused = command("export", "lamp:Bright", "-o", "n.rdb", *given)
    assert refused.code == 2
    assert "--labels names 1 classes" in refused.stderr
