"""What has no packages for a platform is not recommended, and the markers of the extras say the same."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from relu_deploy.backends import wheels

PLATFORMS = {
    ("linux", "x86_64"): {"cuda", "gpu", "openvino", "rtx", "torch"},
    ("linux", "aarch64"): {"cuda", "openvino", "torch"},
    ("darwin", "arm64"): {"openvino", "torch"},
    ("win32", "AMD64"): {"cuda", "gpu", "openvino", "rtx", "torch"},
    ("win32", "ARM64"): set(),
}
#: the package without which an extra is of no use
MAIN = {"cuda": "onnxruntime-gpu", "rtx": "tensorrt-rtx-cu13", "torch": "torch", "openvino": "openvino"}


def installed(extra, system, machine):
    """Return the packages that the extra installs on a platform, by its markers."""
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    environment = {"sys_platform": system, "platform_machine": machine, "python_version": "3.12"}
    found = set()
    for line in extras[extra]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found |= (
                set().union(*(installed(one, system, machine) for one in requirement.extras))
                if requirement.name == "relu-deploy"
                else {requirement.name}
            )
    return found


@pytest.mark.parametrize(("system", "machine"), PLATFORMS)
def test_an_extra_installs_its_main_package_only_where_there_is_one(system, machine):
    available = {extra for extra in wheels._AVAILABLE if "," not in extra and wheels.has_packages(extra, system, machine)}
    assert available == PLATFORMS[system, machine]
    for extra, package in MAIN.items():
        assert (package in installed(extra, system, machine)) == (extra in available)
    assert installed("cpu", system, machine) == {"onnxruntime"}


def test_where_there_is_no_package_another_backend_is_recommended(monkeypatch):
    assert wheels.install_command("openvino") == "pip install 'relu-deploy[openvino]'"
    monkeypatch.setattr(wheels.sys, "platform", "win32")
    monkeypatch.setattr(wheels.platform, "machine", lambda: "ARM64")
    assert wheels.install_command("openvino").startswith("there are no packages for win32 on ARM64")
