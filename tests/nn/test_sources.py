"""Models of other packages are named where they live."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from .torchvision_import import torchvision


def test_a_torchvision_model_travels_by_its_own_name(command):
    torchvision()
    made = command("export", "torchvision.models:resnet18", "-o", "r.rdb", "--input", "x=1x3x64x64", "--json", "-")
    assert made.code == 0, made.stderr
    assert made.json["relus"] == 17
    assert command("verify", "r.rdb").code == 0


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
