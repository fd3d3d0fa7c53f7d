"""Benchmarks of models whose outputs are texts, sequences or maps: what can be compared is, and what cannot is not called right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy.benchmark.run import bench
from relu_deploy.bundle import Bundle
from relu_deploy.data.arrays import load_npz, save_npz
from relu_deploy.reporting.pages.bench import bench_page

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
RELU = helper.make_node("Relu", ["x"], ["r"])
CLASSIFIER = helper.make_node(
    "LinearClassifier",
    ["r"],
    ["label", "scores"],
    domain="ai.onnx.ml",
    coefficients=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    intercepts=[0.0, 0.0, 0.0],
    classlabels_strings=["a", "bc", "d"],
)


def sequence_of_maps(name: str) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    info.type.sequence_type.elem_type.map_type.key_type = TensorProto.STRING
    info.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    return info


def texts() -> tuple[list[Any], list[Any]]:
    return [RELU, CLASSIFIER], [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3]),
    ]


def maps_and_texts() -> tuple[list[Any], list[Any]]:
    maps = helper.make_node("ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", classlabels_strings=["a", "bc", "d"])
    return [RELU, CLASSIFIER, maps], [helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]), sequence_of_maps("maps")]


def maps() -> tuple[list[Any], list[Any]]:
    return [RELU, helper.make_node("ZipMap", ["r"], ["maps"], domain="ai.onnx.ml", classlabels_strings=["a", "bc", "d"])], [
        sequence_of_maps("maps")
    ]


def a_sequence() -> tuple[list[Any], list[Any]]:
    places = [helper.make_node("Constant", [], [name], value_ints=[value]) for name, value in (("z", 0), ("o", 1), ("axis", 1))]
    slice_of = helper.make_node("Slice", ["r", "z", "o", "axis"], ["first"])
    both = helper.make_node("SequenceConstruct", ["r", "first"], ["both"])
    return [RELU, *places, slice_of, both], [helper.make_tensor_sequence_value_info("both", TensorProto.FLOAT, None)]


@pytest.mark.parametrize(
    ("make", "verified", "words"),
    [
        (texts, True, "Every row gives the right answers"),
        (maps_and_texts, True, "Every row gives the right answers"),
        (a_sequence, True, "Every row gives the right answers"),
        (maps, None, "2 of 2 rows could not be checked"),
    ],
)
def test_outputs_of_every_kind_are_compared_or_called_unchecked(
    make: Callable[[], tuple[list[Any], list[Any]]], verified: bool | None, words: str, tmp_path: Path
) -> None:
    nodes, outputs = make()
    graph = helper.make_graph(nodes, "g", [X], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    result = bench([Bundle.open(tmp_path / "m.onnx")], backends=["onnxruntime-cpu"], batch=(1, 20), seconds=0.05, threads=1)
    assert [run.error for run in result.runs] == ["", ""]
    assert [run.verified for run in result.runs] == [verified, verified]
    assert words in bench_page(result.to_json())


def test_texts_are_read_as_they_were_written(tmp_path: Path) -> None:
    arrays = {
        "t": np.array([["a", "größer"], ["", "語"]], object),
        "x": np.ones((2, 3), np.float32),
        "none": np.zeros((0, 2), object),
    }
    save_npz(tmp_path / "a.npz", arrays)
    read = load_npz(tmp_path / "a.npz")
    assert read["t"].tolist() == arrays["t"].tolist()
    assert read["none"].shape == (0, 2)
    np.testing.assert_array_equal(read["x"], arrays["x"])
