"""Engines and caches in a bundle are loaded only if the manifest lists them with their hashes."""

import json

import pytest

from relu_deploy.backends.tensorrt.building.engine_cache import folder_for
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.storage.engine_files import is_trusted, remove_untrusted, trust


@pytest.fixture
def engine(digits_copy):
    file = digits_copy.path / "engines" / "digits-tensorrt-0.engine"
    file.parent.mkdir()
    file.write_bytes(b"plan")
    return file


def test_a_file_that_somebody_put_into_the_folder_is_not_trusted(engine):
    assert not is_trusted(engine)
    trust([engine])
    assert is_trusted(engine)


def test_a_file_that_was_changed_replaced_by_a_link_or_removed_is_not_trusted(engine, tmp_path):
    trust([engine])
    engine.write_bytes(b"nalp")
    assert not is_trusted(engine)
    engine.unlink()
    assert not is_trusted(engine)
    (tmp_path / "elsewhere").write_bytes(b"plan")
    engine.symlink_to(tmp_path / "elsewhere")
    assert not is_trusted(engine)


def test_engines_are_no_files_of_the_bundle_and_may_go_at_any_time(engine, digits_copy):
    trust([engine])
    other = engine.with_suffix(".json")
    other.write_text("{}")
    engine.unlink()
    assert Bundle.open(digits_copy.path).manifest["files"] == digits_copy.manifest["files"]
    trust([other])
    assert list(json.loads((digits_copy.path / "manifest.json").read_text())["engines"]) == [f"engines/{other.name}"]


def test_a_folder_of_caches_is_rid_of_what_is_not_listed(engine):
    inner = engine.parent / "onnxruntime-tensorrt-0"
    inner.mkdir()
    ours, theirs = inner / "ours.engine", inner / "theirs.engine"
    for file in (ours, theirs, inner / ".lock"):
        file.write_bytes(b"plan")
    trust([ours])
    remove_untrusted(inner)
    assert sorted(file.name for file in inner.iterdir()) == [".lock", "ours.engine"]


def test_the_users_own_cache_needs_no_list(tmp_path):
    file = tmp_path / "cache" / "engines" / "digits.engine"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"plan")
    assert is_trusted(file)
    trust([file])
    assert list(tmp_path.rglob("manifest.json")) == []


def test_a_copy_of_a_bundle_lists_no_engines_because_it_has_none(engine, digits_copy, tmp_path):
    trust([engine])
    assert "engines" not in Bundle.open(digits_copy.path).copy_files(tmp_path / "copy")


def test_a_folder_of_engines_that_leads_out_of_the_bundle_takes_no_engine(digits_copy, tmp_path):
    (tmp_path / "victim").mkdir()
    (digits_copy.path / "engines").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="leads out of the bundle"):
        folder_for(digits_copy)
