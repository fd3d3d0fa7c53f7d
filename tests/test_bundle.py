"""A bundle is made whole or not at all, and says so when it is no longer what it was."""

import json
import os

import numpy as np
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


def changed(path, **fields):
    manifest = json.loads((path / MANIFEST).read_text()) | fields
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def test_a_model_that_the_manifest_does_not_list_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.onnx is not listed"):
        Bundle.open(changed(make(tmp_path / "tiny.rdb"), files={}))


@pytest.mark.parametrize("name", ["../../outside", "a/b", "", ".hidden", "x\n", "v" * 200])
def test_a_variants_name_is_a_name_not_a_path(tmp_path, name):
    variants = {name: {"precision": "int8", "target": "cpu", "checked_against": "model.onnx"}}
    with pytest.raises(InputError, match="not a variant's name"):
        Bundle.open(changed(make(tmp_path / "tiny.rdb"), variants=variants))


def test_a_variant_whose_file_is_not_listed_is_refused(tmp_path):
    path = make(tmp_path / "tiny.rdb")
    (path / "variants").mkdir()
    (path / "variants" / "v.onnx").write_bytes(b"anything")
    changed(path, variants={"v": {"precision": "int8", "target": "cpu", "checked_against": "model.onnx"}})
    with pytest.raises(InputError, match=r"v\.onnx is not listed"):
        Bundle.open(path / "variants" / "v.onnx")


def test_what_a_variant_was_checked_against_is_a_listed_file(tmp_path):
    bundle = Bundle.open(make(tmp_path / "tiny.rdb"))
    entry = {"precision": "int8", "target": "cpu", "checked_against": "../outside.onnx"}
    bundle = bundle.add("variants/v.onnx", b"graph", variants={"v": entry})
    with pytest.raises(InputError, match=r"outside\.onnx is not listed"):
        bundle.with_variant("v")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a//b", "a/./b", "a\\b", "c:x", "manifest.json", "x" * 5000, "a\0b", "a\x1bb"]
)
def test_a_files_name_is_a_plain_relative_path(tmp_path, name):
    path = make(tmp_path / "tiny.rdb")
    files = json.loads((path / MANIFEST).read_text())["files"]
    with pytest.raises(InputError, match="files"):
        Bundle.open(changed(path, files={**files, name: files["model.onnx"]}))
    bundle = Bundle.open(make(tmp_path / "other.rdb"))
    with pytest.raises(InputError, match="files"):
        bundle.add(name, b"x")


def test_a_link_out_of_the_bundle_is_neither_read_nor_written(tmp_path):
    path = make(tmp_path / "tiny.rdb")
    (tmp_path / "copy.onnx").write_bytes(b"graph")
    (path / "model.onnx").unlink()
    (path / "model.onnx").symlink_to("../copy.onnx")
    with pytest.raises(InputError, match="leads out of the bundle"):
        Bundle.open(path)
    path = make(tmp_path / "other.rdb")
    (tmp_path / "victim").mkdir()
    (path / "reports").symlink_to("../victim")
    with pytest.raises(InputError, match="leads out of the bundle"):
        Bundle.open(path).add("reports/verify.json", "{}")
    assert list((tmp_path / "victim").iterdir()) == []
    assert Bundle.open(path).manifest["files"].keys() == {"model.onnx"}


def graph(location=None, output="y"):
    """A graph y = x @ w, its weights in the file `location` where one is given."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    if location:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", output)]
    nodes = [helper.make_node("MatMul", ["x", "w"], [output])]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], [weights])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model) if not location else None
    return model.SerializeToString()


def with_graph(path, content, **files):
    with create_bundle(path) as folder:
        (folder / "model.onnx").write_bytes(content)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        seal(folder, {**FIELDS, "outputs": [{**TENSOR, "name": "y"}]})
    return path


@pytest.mark.parametrize("location", ["weights", "../weights", "/weights"])
def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path, location):
    path = with_graph(tmp_path / "tiny.rdb", graph(location))
    (path / "weights").write_bytes(np.eye(4, dtype=np.float32).tobytes())
    with pytest.raises(InputError, match="weights is not listed"):
        Bundle.open(path)


def test_weights_beside_the_model_that_are_listed_are_read(tmp_path):
    data = np.eye(4, dtype=np.float32).tobytes()
    assert Bundle.open(with_graph(tmp_path / "tiny.rdb", graph("weights"), weights=data)).name == "tiny"


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": [{**TENSOR, "name": "zzz"}]},
        {"inputs": []},
        {"inputs": [{**TENSOR, "dtype": "int64"}]},
        {"inputs": [{**TENSOR, "shape": ["batch", 4, 1]}]},
        {"inputs": [{**TENSOR, "shape": ["batch", 5]}]},
        {"outputs": [{**TENSOR, "name": "z"}]},
    ],
)
def test_inputs_and_outputs_that_are_not_the_graphs_are_refused(tmp_path, fields):
    path = with_graph(tmp_path / "tiny.rdb", graph())
    assert Bundle.open(path).inputs[0].name == "x"
    with pytest.raises(InputError, match="not in the graph as the manifest describes it"):
        Bundle.open(changed(path, **fields))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"opset": ' + "9" * 5000 + "}", '{"name": "\\ud800"}', "null", "\ud800".encode("utf-8", "surrogatepass")],
)
def test_a_manifest_that_is_hostile_is_refused_in_words(tmp_path, text):
    path = make(tmp_path / "tiny.rdb")
    (path / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"manifest\.json"):
        Bundle.open(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with FIFOs, such as Linux")
def test_a_manifest_that_is_a_fifo_is_refused(tmp_path):
    path = make(tmp_path / "tiny.rdb")
    (path / MANIFEST).unlink()
    os.mkfifo(path / MANIFEST)
    with pytest.raises(InputError, match="not an ordinary file"):
        Bundle.open(path)


def test_force_never_turns_a_file_into_a_folder_and_keeps_a_link_to_a_bundle(tmp_path):
    (tmp_path / "notes.rdb").write_text("mine")
    (tmp_path / "nowhere.rdb").symlink_to("missing")
    for name in ("notes.rdb", "nowhere.rdb"):
        with pytest.raises(InputError, match="is not a bundle, and will not be replaced"):
            make(tmp_path / name, force=True)
    assert (tmp_path / "notes.rdb").read_text() == "mine"
    make(tmp_path / "real.rdb")
    (tmp_path / "link.rdb").symlink_to("real.rdb")
    make(tmp_path / "link.rdb", b"other", force=True)
    assert (tmp_path / "link.rdb").is_symlink()
    assert Bundle.open(tmp_path / "real.rdb").onnx.read_bytes() == b"other"


def test_a_bundle_that_appears_while_another_is_made_is_not_replaced_without_force(tmp_path):
    with pytest.raises(InputError, match="already exists"), create_bundle(tmp_path / "tiny.rdb") as folder:
        (folder / "model.onnx").write_bytes(b"late")
        seal(folder, FIELDS)
        make(tmp_path / "tiny.rdb")
    assert Bundle.open(tmp_path / "tiny.rdb").onnx.read_bytes() == b"graph"
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.rdb"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_path_that_cannot_be_is_refused_in_words(tmp_path, name):
    with pytest.raises(InputError, match="cannot"):
        Bundle.open(tmp_path / name)
    with pytest.raises(InputError, match="cannot"):
        make(tmp_path / name)
    with pytest.raises(InputError, match="cannot"):
        write_atomically(tmp_path / name, "x")


def test_the_bundle_of_a_model_that_was_written_is_that_of_its_file(tmp_path):
    from onnx import TensorProto, helper

    from relu_deploy.graph import load_model, save_model

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    (tmp_path / "made.onnx").write_bytes(helper.make_model(graph, ir_version=8).SerializeToString())
    model, path = load_model(tmp_path / "made.onnx"), tmp_path / "written.onnx"
    save_model(model, path)
    assert Bundle.of_model(model, path) == Bundle.open(path)
