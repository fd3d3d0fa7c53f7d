"""Which engines run on another version or GPU than they were built for. The library and the GPUs are test doubles."""

import hashlib
import json
from types import ModuleType

import pytest
from doubles import bundle_of, plan_of

from relu_deploy.backends.base import Probe
from relu_deploy.backends.nvidia.driver import Gpu
from relu_deploy.backends.tensorrt.building import engine_cache
from relu_deploy.backends.tensorrt.building.engine_cache import find_engine, graph_hash
from relu_deploy.backends.tensorrt.options import BuildOptions

A100, L4, T4, L40 = (
    Gpu(0, name, capability) for name, capability in (("A100", (8, 0)), ("L4", (8, 9)), ("T4", (7, 5)), ("L40", (8, 9)))
)
SIZES = ((1, 8, 32),)


@pytest.fixture
def find(tmp_path, monkeypatch):
    """Look for an engine on a GPU: find(built by, built on, installed, gpu, named=, **options) -> whether there is one."""
    bundle = bundle_of(tmp_path)

    def look(built_by, built_on, installed, gpu, named=True, **options):
        wish = BuildOptions(SIZES, **options)
        monkeypatch.setattr(engine_cache, "can_build", lambda name, device: Probe(name, True, version=installed))
        monkeypatch.setattr(engine_cache, "import_module", lambda name: ModuleType("tensorrt"))
        monkeypatch.setattr(engine_cache, "gpu_for", lambda trt, device: gpu)
        identity = engine_cache._identity("tensorrt", bundle, wish, 0)
        plan = plan_of(built_by)
        facts = {
            **identity,
            "library": built_by,
            "device": str(built_on),
            "graph": graph_hash(bundle.onnx),
            "built": "2026-11-29",
            "bytes": len(plan),
            "sha256": hashlib.sha256(plan).hexdigest(),
            "key": "k",
        }
        folder = tmp_path / "engines"
        folder.mkdir(exist_ok=True)
        (folder / "elsewhere.engine").write_bytes(plan)
        (folder / "elsewhere.json").write_text(json.dumps(facts))
        return find_engine("tensorrt", bundle, wish if named else None, folder=folder) is not None

    return look


@pytest.mark.parametrize(
    ("built", "installed", "runs"),
    [
        ("11.1.0.80", "11.4.0.106", True),
        ("10.16.0.1", "11.4.0.106", True),
        ("11.4.0.106", "11.1.0.80", False),
        ("11.4.0.106", "10.16.0.1", False),
        ("10.3.0.26", "10.16.0.1", True),
    ],
)
def test_a_version_compatible_engine_runs_on_later_versions(find, built, installed, runs):
    for named in (True, False):
        assert find(built, L4, installed, L4, named, version_compatible=True) is runs


@pytest.mark.parametrize(
    ("level", "built_on", "gpu", "runs"),
    [
        ("ampere-plus", A100, L4, True),
        ("ampere-plus", L4, A100, True),
        ("ampere-plus", A100, T4, False),
        ("same-compute-capability", L4, L40, True),
        ("same-compute-capability", A100, L4, False),
    ],
)
def test_a_hardware_compatible_engine_runs_on_the_gpus_of_its_level(find, level, built_on, gpu, runs):
    for named in (True, False):
        assert find("11.4.0.106", built_on, "11.4.0.106", gpu, named, hardware_compatible=level) is runs


def test_an_engine_without_such_an_option_runs_on_its_own_version_and_gpu_only(find):
    assert find("11.4.0.106", L4, "11.4.0.106", L4, named=False)
    for named in (True, False):
        assert not find("11.1.0.80", L4, "11.4.0.106", L4, named)
        assert not find("11.4.0.106", L4, "11.4.0.106", L40, named)
        assert not find("11.1.0.80", A100, "11.4.0.106", L4, named, version_compatible=True)
        assert not find("11.1.0.80", A100, "11.4.0.106", L4, named, hardware_compatible="ampere-plus")
