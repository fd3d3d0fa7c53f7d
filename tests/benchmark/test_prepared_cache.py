"""Prepared models are taken from the cache if nothing that they depend on has changed, and are prepared anew otherwise."""

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")

from relu_deploy.benchmark import prepare_models, prepared_cache
from relu_deploy.benchmark.prepared_cache import keep_bundle, take_bundle
from relu_deploy.bundle import Bundle


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "relu_deploy" / "bench"


def test_a_kept_bundle_is_taken_whole(cache, digits_copy, tmp_path):
    assert take_bundle("digits", tmp_path / "taken.rdb") == ""
    assert not (tmp_path / "taken.rdb").exists()
    keep_bundle("digits", digits_copy.path)
    assert take_bundle("digits", tmp_path / "taken.rdb")
    assert Bundle.open(tmp_path / "taken.rdb").manifest == digits_copy.manifest
    # Changes of what was taken are not changes of what is kept.
    (tmp_path / "taken.rdb" / "model.onnx").write_bytes(b"")
    assert take_bundle("digits", tmp_path / "again.rdb")


@pytest.mark.parametrize("change", ["__version__", "library_versions", "describe_cpu"])
def test_a_bundle_of_another_version_machine_or_library_is_not_taken(cache, digits_copy, tmp_path, monkeypatch, change):
    keep_bundle("digits", digits_copy.path)
    cpu = {**prepared_cache.describe_cpu(), "features": ["another"]}
    others = {"__version__": "0.0", "library_versions": lambda: {"torch": "0.0"}, "describe_cpu": lambda: cpu}
    monkeypatch.setattr(prepared_cache, change, others[change])
    assert take_bundle("digits", tmp_path / "taken.rdb") == ""
    keep_bundle("digits", digits_copy.path)
    assert len(list(cache.iterdir())) == 1


def test_a_bundle_of_other_code_is_not_taken(cache, digits_copy, tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text("one = 1")
    monkeypatch.setattr(prepared_cache, "PACKAGE", package)
    keep_bundle("digits", digits_copy.path)
    assert take_bundle("digits", tmp_path / "taken.rdb")
    (package / "module.py").write_text("one = 2")
    assert take_bundle("digits", tmp_path / "another.rdb") == ""


@pytest.mark.parametrize("damage", ["model.onnx", "manifest.json"])
def test_a_damaged_bundle_is_not_taken(cache, digits_copy, tmp_path, damage):
    keep_bundle("digits", digits_copy.path)
    (file,) = cache.glob(f"*/{damage}")
    file.write_bytes(file.read_bytes()[:-100])
    assert take_bundle("digits", tmp_path / "taken.rdb") == ""
    assert not (tmp_path / "taken.rdb").exists()


def test_a_cache_that_cannot_be_written_is_reported_and_the_benchmark_goes_on(cache, digits_copy, monkeypatch):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    monkeypatch.setattr(prepare_models, "recipe", lambda name: type("Recipe", (), {"dataset": None}))
    lines = []
    prepare_models._keep("digits", digits_copy.path, lines.append)
    assert len(lines) == 1
    assert "digits: not kept for later benchmarks" in lines[0]


def test_a_bundle_without_the_variant_that_its_data_would_give_is_not_kept(cache, digits_copy):
    prepare_models._keep("digits", digits_copy.path, pytest.fail)
    assert not cache.exists()
