"""Data sets are taken if every row has its target, whatever the byte order; what lies is refused in words."""

import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from relu_deploy.bundle import SCHEMA, Bundle
from relu_deploy.data import arrays
from relu_deploy.data.datasets import Dataset, load_dataset
from relu_deploy.data.input_range import declared_range, rows_outside
from relu_deploy.errors import InputError


def bundle(*inputs, **fields):
    """A bundle without files: data sets only read its manifest."""
    listed = [{"name": name, "dtype": dtype, "shape": list(shape), **more} for name, dtype, shape, more in inputs]
    manifest = {"schema": SCHEMA, "name": "net", "inputs": listed, "outputs": [], "files": {}, "variants": {}, **fields}
    return Bundle(os.devnull, manifest)


FLOATS = ("x", "float32", ("batch", 4), {})
X = np.arange(24, dtype=np.float32).reshape(6, 4)


def read(folder, model, **arrays):
    np.savez(folder / "d.npz", **arrays)
    return load_dataset(model, folder / "d.npz")


def test_big_endian_arrays_are_the_same_numbers(tmp_path):
    dataset = read(tmp_path, bundle(FLOATS), x=X.astype(">f4"), labels=np.arange(6).astype(">i8"))
    np.testing.assert_array_equal(dataset.feeds["x"], X)
    assert dataset.feeds["x"].dtype.isnative


@pytest.mark.parametrize(
    "targets",
    [
        {"labels": np.zeros(3, np.int64)},
        {"labels": np.zeros(7, np.int64)},
        {"labels": np.zeros(6, np.float32)},
        {"labels": np.zeros((6, 2, 2), np.int64)},
        {"mask": np.zeros((5, 2, 2), np.uint8)},
        {"boxes": np.zeros((2, 4), np.float32), "labels": np.zeros(2, np.int64), "image": np.array([0, 6])},
        {"boxes": np.zeros((2, 3), np.float32), "labels": np.zeros(2, np.int64), "image": np.array([0, 1])},
        {"boxes": np.zeros((2, 4), np.float32), "labels": np.zeros(1, np.int64), "image": np.array([0, 1])},
        {"boxes": np.zeros((2, 4), np.float32), "labels": np.zeros(2, np.int64)},
    ],
    ids=lambda targets: "-".join(f"{name}{'x'.join(map(str, array.shape))}" for name, array in targets.items()),
)
def test_targets_that_are_not_one_a_row_are_refused(tmp_path, targets):
    with pytest.raises(InputError, match=r"d\.npz"):
        read(tmp_path, bundle(FLOATS), x=X, **targets)


def test_an_input_without_a_batch_is_fed_whole_and_a_state_is_cut_along_its_own_axis(tmp_path):
    state = ("h", "float32", (2, "batch", 3), {"batch_axis": 1})
    table = ("k", "float32", (3, 3), {"batch_axis": None})
    h, k = np.arange(36, dtype=np.float32).reshape(2, 6, 3), np.eye(3, dtype=np.float32)
    dataset = read(tmp_path, bundle(state, FLOATS, table), x=X, h=h, k=k)
    assert len(dataset) == 6
    first, last = list(dataset.batches(4))
    assert [first[name].shape for name in ("x", "h", "k")] == [(4, 4), (2, 4, 3), (3, 3)]
    np.testing.assert_array_equal(last["h"], h[:, 4:])
    picked = dataset.picked(np.array([5, 0]))
    np.testing.assert_array_equal(picked.feeds["h"], h[:, [5, 0]])
    np.testing.assert_array_equal(picked.feeds["k"], k)
    assert len(picked) == 2


def test_a_model_of_inputs_without_a_batch_has_one_row():
    assert len(Dataset("one", {"k": np.eye(3)}, {}, {"k": None})) == 1


def test_object_arrays_are_refused_and_not_unpickled(tmp_path):
    with pytest.raises(InputError, match="plain arrays"):
        read(tmp_path, bundle(FLOATS), x=np.array([{}], object))


def test_an_archive_that_holds_an_array_twice_is_refused(tmp_path):
    import io

    array = io.BytesIO()
    np.save(array, np.zeros((2, 4), np.float32))
    for names in (("x.npy", "x.npy"), ("x", "x.npy")):
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            warnings.simplefilter("ignore")
            for name in names:
                archive.writestr(name, array.getvalue())
        with pytest.raises(InputError, match="holds the array 'x' twice"):
            arrays.load_npz(tmp_path / "d.npz")


def test_a_member_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps([1]))
    with pytest.raises(InputError, match="'x' is no array"):
        load_dataset(bundle(FLOATS), tmp_path / "d.npz")


def test_arrays_that_unpack_to_more_than_the_machine_can_hold_are_refused_before_they_are_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((10**6, 4), np.float32))
    assert (tmp_path / "d.npz").stat().st_size < 10**5
    monkeypatch.setattr(arrays, "memory_size", lambda: 30 * 10**6)
    with pytest.raises(InputError, match=r"unpacks to 0\.016 GB"):
        load_dataset(bundle(FLOATS), tmp_path / "d.npz")


def test_a_data_set_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no rows"):
        read(tmp_path, bundle(FLOATS), x=X[:0])


PICTURE = ("x", "float32", ("batch", 1, 4, 4), {})
GRAY = {"scale": 1 / 255, "mean": [0.0], "std": [1.0], "layout": "NCHW"}


def test_a_folder_with_a_superscript_for_a_name_has_no_label(tmp_path):
    (tmp_path / "²").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "²" / "a.png")
    dataset = load_dataset(bundle(PICTURE, preprocess=GRAY, labels=["0", "1", "2"]), tmp_path)
    assert "labels" not in dataset.targets


def test_a_format_that_is_not_listed_is_not_decoded_whatever_it_is_called(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match=r"a\.png is not a picture"):
        load_dataset(bundle(PICTURE, preprocess=GRAY), tmp_path)


def test_a_picture_with_an_endless_side_is_refused(tmp_path):
    Image.new("L", (1, 70_000)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: a side of 70000 pixels exceeds the limit of 65535"):
        load_dataset(bundle(PICTURE, preprocess=GRAY), tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with FIFOs, such as Linux")
def test_a_fifo_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="not an ordinary file"):
        load_dataset(bundle(PICTURE, preprocess=GRAY), tmp_path)
    os.mkfifo(tmp_path / "d.txt")
    texts = bundle(("x", "uint8", ("batch", 8), {}), preprocess={"text": "utf-8"})
    with pytest.raises(InputError, match="not an ordinary file"):
        load_dataset(texts, tmp_path / "d.txt")


def test_a_byte_order_mark_is_not_part_of_the_first_text(tmp_path):
    texts = bundle(("x", "uint8", ("batch", 8), {}), preprocess={"text": "utf-8"}, labels=["a", "b"])
    (tmp_path / "d.tsv").write_bytes("\ufeffb\thi\na\tho\n".encode())
    dataset = load_dataset(texts, tmp_path / "d.tsv")
    assert dataset.targets["labels"].tolist() == [1, 0]
    assert bytes(dataset.feeds["x"][0]).rstrip(b"\0") == b"hi"


def test_random_integers_are_those_that_the_graph_can_look_up(tmp_path):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from relu_deploy.data.datasets import sample_feeds

    nodes = [helper.make_node("Gather", ["types", "ids"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    values = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 50]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 50, 4]),
    ]
    table = numpy_helper.from_array(np.ones((2, 4), np.float32), "types")
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [table])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    feeds, origin = sample_feeds(Bundle.open(tmp_path / "m.onnx"), 4, seed=0)
    assert origin["source"] == "random"
    assert feeds["ids"].shape == (4, 50)
    # Below -2 and from 2 on, a table of two rows has nothing to look up.
    assert feeds["ids"].min() >= -2
    assert feeds["ids"].max() == 1


def test_full_batches_fill_up_the_last_along_the_axis_of_each_input(tmp_path):
    state, gain = ("h", "float32", (2, "batch", 3), {"batch_axis": 1}), ("gain", "float32", (), {})
    h = np.arange(36, dtype=np.float32).reshape(2, 6, 3)
    dataset = read(tmp_path, bundle(gain, state, FLOATS), x=X, h=h, gain=np.float32(2))
    assert len(dataset) == 6
    (first, whole), (last, rest) = dataset.full_batches(4)
    assert (whole, rest) == (4, 2)
    np.testing.assert_array_equal(first["h"], h[:, :4])
    np.testing.assert_array_equal(last["h"], h[:, [4, 5, 5, 5]])
    np.testing.assert_array_equal(last["x"], X[[4, 5, 5, 5]])
    assert last["gain"] == 2


def test_pictures_of_a_folder_are_decoded_upright_and_what_is_transparent_is_white(tmp_path):
    """As by predict and serve: data that calibrate and measure a model are those that it gets."""
    metadata = Image.Exif()
    metadata[0x0112] = 3
    levels = np.array([[0, 10, 20, 30], [40, 50, 60, 70], [80, 90, 100, 110], [120, 130, 140, 150]], np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png", exif=metadata)
    transparent = np.dstack([levels, np.full((4, 4), 255, np.uint8)])
    transparent[0, 0, 1] = 0
    Image.fromarray(transparent).save(tmp_path / "b.png")
    rows = load_dataset(bundle(PICTURE, preprocess=GRAY), tmp_path).feeds["x"][:2]
    assert np.rint(rows[0, 0] * 255).astype(int).tolist() == levels[::-1, ::-1].tolist()
    assert np.rint(rows[1, 0, 0] * 255).astype(int).tolist() == [255, 10, 20, 30]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_declared_range_holds_for_every_channel_in_either_layout(layout):
    shape = ("batch", 3, 4, 4) if layout == "NCHW" else ("batch", 4, 4, 3)
    steps = {"scale": 1 / 255, "mean": [0.0, 0.5, 0.2], "std": [1.0, 0.5, 0.1], "layout": layout}
    declared = declared_range(bundle(("x", "float32", shape, {}), preprocess=steps))
    low, high = declared.bounds["x"]
    assert (np.min(low), np.max(high)) == (pytest.approx(-2), pytest.approx(8))
    extremes = np.zeros((2, 4, 4, 3), np.float32)
    extremes[0], extremes[1] = [0, -1, -2], [1, 1, 8]
    feeds = extremes if layout == "NHWC" else extremes.transpose(0, 3, 1, 2)
    assert rows_outside({"x": feeds * np.float32(0.999)}, declared) == 0
    assert rows_outside({"x": feeds * 2}, declared) == 2
