"""`--precision auto` for targets on a GPU: without one it says what it would measure and why it cannot choose."""

import re

import pytest

from relu_deploy.backends import Probe
from relu_deploy.backends.nvidia.driver import Driver, find_driver
from relu_deploy.errors import Unsupported
from relu_deploy.optimization import targets
from relu_deploy.optimization.targets import TARGETS

ON_GPU = {
    "cuda": ("onnxruntime-cuda", "fp16 and fp32"),
    "tensorrt": ("tensorrt", "fp8, int8, fp16 and fp32"),
    "tensorrt-rtx": ("tensorrt-rtx", "fp8, int8, fp16 and fp32"),
}


@pytest.mark.skipif(
    isinstance(find_driver(), Driver), reason="tests what happens without an NVIDIA driver: run it on a machine that has none"
)
@pytest.mark.parametrize("target", ON_GPU)
def test_without_its_hardware_a_target_says_what_it_would_measure_and_why_it_cannot(command, digits_bundle, target, tmp_path):
    backend, measured = ON_GPU[target]
    answer = command("optimize", digits_bundle.path, "--for", target, "--precision", "auto", "-o", tmp_path / "out.rdb")
    assert answer.code == 3
    text = " ".join(answer.stderr.split())
    assert f"is chosen by measuring {measured} on {backend}, and keeping the fastest that passes the accuracy gate" in text
    assert re.search(rf"here {backend} is not usable: \w.* hint: \w", text)
    assert f"--precision {', '.join(TARGETS[target].precisions)}" in text
    assert not (tmp_path / "out.rdb").exists()


@pytest.mark.parametrize("target", ON_GPU)
def test_with_its_hardware_a_target_measures(monkeypatch, target):
    monkeypatch.setattr(targets, "probe", lambda name: Probe(name, usable=name == ON_GPU[target][0], reason="no"))
    TARGETS[target].require_measurable(["fp16", "fp32"])
    for other in set(ON_GPU) - {target}:
        with pytest.raises(Unsupported):
            TARGETS[other].require_measurable(["fp16", "fp32"])


def test_the_cpu_is_measured_anywhere():
    TARGETS["cpu"].require_measurable(["fp16", "fp32"])
