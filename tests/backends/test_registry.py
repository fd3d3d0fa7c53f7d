"""Backends of other packages are found by their entry points; one that is broken is reported and breaks nothing."""

import sys

import pytest

from relu_deploy import backends
from relu_deploy.backends import Capabilities, registry
from relu_deploy.errors import BackendUnavailable, UsageError

MODULE = """
from relu_deploy.backends.base import Capabilities, Probe

def probe(name):
    return Probe(name, True, version="7")

def capabilities(name):
    return Capabilities(on_gpu=True)

def load(name, bundle, options):
    return (name, bundle.name, options.threads)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that installs a package with one module and one entry point, called "other" by default."""

    def install(text, name="other", module="other_backend"):
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[relu_deploy.backends]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(tmp_path)
        registry._entry_points.cache_clear()

    yield install
    sys.modules.pop("other_backend", None)
    registry._entry_points.cache_clear()


def test_a_package_of_others_adds_a_backend_by_an_entry_point(installed, digits_bundle):
    installed(MODULE)
    assert backends.names()[-1] == "other"
    assert [found.version for found in backends.probe_all() if found.name == "other"] == ["7"]
    assert backends.capabilities("other") == Capabilities(on_gpu=True)
    assert backends.load(digits_bundle, "other", threads=3) == ("other", digits_bundle.name, 3)


def test_the_gpu_that_is_named_is_the_one_that_is_probed(installed, digits_bundle):
    installed(MODULE.replace("def probe(name):", "def probe(name, device=0):").replace("True, version", "device == 1, version"))
    assert not backends.probe("other").usable
    assert backends.probe("other", 1).usable
    assert backends.load(digits_bundle, "other", device=1)
    with pytest.raises(BackendUnavailable):
        backends.load(digits_bundle, "other", device=0)


def test_a_backend_without_capabilities_has_the_default_ones(installed):
    installed(MODULE.replace("def capabilities", "def _unused"))
    assert backends.capabilities("other") == Capabilities()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_anywhere", "other_backend, which provides it, cannot be imported: ModuleNotFoundError"),
        ("raise RuntimeError('its driver is missing')", "RuntimeError: its driver is missing"),
        ("def probe(name): ...", "other_backend, which provides it, has no function 'load' in other_backend"),
    ],
)
def test_a_broken_package_is_a_backend_that_is_not_usable_and_says_why(installed, digits_bundle, text, reason):
    installed(text)
    found = backends.probe("other")
    assert not found.usable
    assert reason in found.reason
    assert found.fix
    assert "other" not in backends.usable()
    assert backends.capabilities("other") == Capabilities()
    with pytest.raises(BackendUnavailable, match="backend 'other' is not usable here"):
        backends.load(digits_bundle, "other")


def test_a_package_of_others_cannot_replace_a_backend_of_this_package(installed):
    installed(MODULE, name="reference")
    assert backends.names().count("reference") == 1
    assert backends.probe("reference").version != "7"


def test_doctor_lists_the_backends_of_others(installed, command):
    installed(MODULE)
    answer = command("doctor", "--json", "-")
    assert answer.code == 0, answer.stderr
    (found,) = (each for each in answer.json["backends"] if each["name"] == "other")
    assert found["usable"]
    assert found["version"] == "7"


def test_a_name_that_no_backend_has_is_a_usage_error_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"(?s)no backend called 'onnxruntime-gpu'.*onnxruntime-") as caught:
        backends.probe("onnxruntime-gpu")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError):
        backends.capabilities("onnxruntime-gpu")


def test_every_backend_of_this_package_has_the_same_modules_and_capabilities():
    for name in backends.BACKENDS:
        assert isinstance(backends.capabilities(name), Capabilities)
        assert callable(registry._module(name, "load").load)
