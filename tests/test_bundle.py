"""A bundle is made whole or not at all, and says so when it is no longer what it was."""

import json

import pytest

from relu_deploy.bundle import MANIFEST, SCHEMA, Bundle, create_bundle, seal, write_atomically
from relu_deploy.errors import InputError

TENSOR = {"name": "x", "dtype": "float32", "shape": ["batch", 4]}
FIELDS = {
    "schema": SCHEMA,
    "name": "tiny",
    "source": {"kind": "module", "spec": "Tiny"},
    "opset": 20,
    "inputs": [TENSOR],
    "outputs": [TENSOR],
    "variants": {},
}


def make(path, content=b"graph", force=False):
    with create_bundle(path, force=force) as folder:
        (folder / "model.onnx").write_bytes(content)
        seal(folder, FIELDS)
    return path


def test_what_was_made_can_be_opened(tmp_path):
    bundle = Bundle.open(make(tmp_path / "tiny.rdb"))
    assert bundle.name == "tiny"
    assert bundle.inputs[0].shape == ("batch", 4)
    assert bundle.onnx.read_bytes() == b"graph"
    assert bundle.source is None


def test_a_failed_making_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), create_bundle(tmp_path / "tiny.rdb") as folder:
        (folder / "model.onnx").write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_one(tmp_path):
    path = make(tmp_path / "tiny.rdb")
    with pytest.raises(RuntimeError), create_bundle(path, force=True):
        raise RuntimeError
    assert Bundle.open(path).onnx.read_bytes() == b"graph"
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.rdb"]


def test_an_existing_target_needs_force(tmp_path):
    path = make(tmp_path / "tiny.rdb")
    with pytest.raises(InputError, match="already exists"):
        make(path, b"other")
    make(path, b"other", force=True)
    assert Bundle.open(path).onnx.read_bytes() == b"other"
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.rdb"]


def test_force_never_replaces_a_folder_that_is_no_bundle(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "picture.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match="not a bundle"):
        make(tmp_path / "holiday", force=True)
    assert (tmp_path / "holiday" / "picture.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("content", [b"grapH", b"graph and more", b""])
def test_a_changed_file_is_named(tmp_path, content):
    path = make(tmp_path / "tiny.rdb")
    (path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx is not the file") as caught:
        Bundle.open(path)
    assert caught.value.exit_code == 2


def test_a_missing_file_is_named(tmp_path):
    path = make(tmp_path / "tiny.rdb")
    (path / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"model\.onnx is named in"):
        Bundle.open(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "relu-deploy/bundle/99"}, "schema"),
        ({"opset": "twenty"}, "opset"),
        ({"inputs": [{"name": "x"}]}, "inputs/0"),
        ({"files": {"../outside": {"sha256": "0" * 64, "bytes": 1}}}, "files"),
    ],
)
def test_a_manifest_that_breaks_the_schema_is_refused_with_the_place(tmp_path, change, message):
    path = make(tmp_path / "tiny.rdb")
    manifest = json.loads((path / MANIFEST).read_text()) | change
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        Bundle.open(path)


def test_a_manifest_that_is_not_json_is_refused(tmp_path):
    path = make(tmp_path / "tiny.rdb")
    (path / MANIFEST).write_text("{half")
    with pytest.raises(InputError, match="is not JSON"):
        Bundle.open(path)


def test_a_file_can_be_added_and_is_hashed(tmp_path):
    bundle = Bundle.open(make(tmp_path / "tiny.rdb")).add("reports/verify.json", "{}\n")
    again = Bundle.open(bundle.path)
    assert again.manifest["files"]["reports/verify.json"]["bytes"] == 3
    bundle.add("reports/verify.json", "{ }\n")
    assert Bundle.open(bundle.path).manifest["files"]["reports/verify.json"]["bytes"] == 4


@pytest.mark.parametrize("name", ["nothing.rdb", "nothing.onnx"])
def test_a_path_that_is_not_there_is_said_so(tmp_path, name):
    with pytest.raises(InputError, match="does not exist"):
        Bundle.open(tmp_path / name)


def test_a_folder_that_is_no_bundle_is_said_so(tmp_path):
    with pytest.raises(InputError, match="not a bundle"):
        Bundle.open(tmp_path)


def test_an_atomic_write_replaces_whole_files_only(tmp_path):
    target = tmp_path / "deep" / "result.json"
    write_atomically(target, "one")
    write_atomically(target, b"two")
    assert target.read_text() == "two"
    assert [file.name for file in target.parent.iterdir()] == ["result.json"]


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        write_atomically(tmp_path / "file" / "result.json", "x")
    with pytest.raises(InputError, match="cannot write"), create_bundle(tmp_path / "file" / "x.rdb"):
        pass
