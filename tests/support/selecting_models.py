"""Small detectors that select their boxes in the graph, in the forms in which exporters write it."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES, GRID, KEPT = 3, 8, 20
ANCHORS = GRID * GRID
node = helper.make_node


def backbone(seed=0):
    """Return the nodes and constants of x (1, 3, 32, 32) → boxes (1, 64, 4) in pixels and scores (1, 64, 3)."""
    generator = np.random.default_rng(seed)

    def weights(*shape, gain=1.4):
        return (gain * generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    rows, columns = np.mgrid[:GRID, :GRID]
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], "stem", strides=[2, 2], pads=[1] * 4),
        node("Relu", ["c0"], ["r0"], "stem_relu"),
        node("Conv", ["r0", "w1"], ["c1"], "down", strides=[2, 2], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], "down_relu"),
        node("Conv", ["r1", "w2"], ["c2"], "neck", pads=[1] * 4),
        node("Relu", ["c2"], ["r2"], "neck_relu"),
        node("Conv", ["r2", "w3", "b3"], ["head"], "head"),
        node("Reshape", ["head", "flat"], ["raw"], "flatten"),
        node("Transpose", ["raw"], ["cells"], "cells", perm=[0, 2, 1]),
        node("Split", ["cells", "parts"], ["offset", "extent", "logits"], "split", axis=2),
        node("Sigmoid", ["offset"], ["inside"], "inside"),
        node("Add", ["inside", "corners"], ["place"], "place"),
        node("Mul", ["place", "stride"], ["center"], "center"),
        node("Sigmoid", ["extent"], ["share"], "share"),
        node("Mul", ["share", "largest"], ["half"], "half"),
        node("Sub", ["center", "half"], ["low"], "low"),
        node("Add", ["center", "half"], ["high"], "high"),
        node("Concat", ["low", "high"], ["boxes"], "boxes", axis=2),
        node("Sigmoid", ["logits"], ["scores"], "scores"),
    ]
    constants = {
        "w0": weights(16, 3, 3, 3),
        "b0": weights(16, 1)[:, 0] * np.float32(0.1),
        "w1": weights(32, 16, 3, 3),
        "w2": weights(32, 32, 3, 3),
        "w3": weights(4 + CLASSES, 32, 1, 1),
        "b3": np.array([0, 0, 0, 0, -0.5, -0.3, -0.7], np.float32),
        "flat": np.array([1, 4 + CLASSES, ANCHORS]),
        "parts": np.array([2, 2, CLASSES]),
        "corners": np.stack([columns, rows], -1).reshape(1, ANCHORS, 2).astype(np.float32),
        "stride": np.float32(4),
        "largest": np.float32(8),
    }
    return nodes, constants


def suppressed(seed=0):
    """Return a detector that ends in NonMaxSuppression and a Gather: detections (N, 6)."""
    nodes, constants = backbone(seed)
    nodes += [
        node("Transpose", ["scores"], ["by_class"], "by_class", perm=[0, 2, 1]),
        node("NonMaxSuppression", ["boxes", "by_class", "limit", "iou", "least"], ["kept"], "nms"),
        node("Gather", ["kept", "two"], ["anchor"], "anchor", axis=1),
        node("Gather", ["kept", "class_columns"], ["score_place"], "score_place", axis=1),
        node("Gather", ["kept", "box_columns"], ["box_place"], "box_place", axis=1),
        node("GatherND", ["boxes", "box_place"], ["kept_boxes"], "kept_boxes"),
        node("GatherND", ["by_class", "score_place"], ["kept_scores"], "kept_scores"),
        node("Unsqueeze", ["kept_scores", "one"], ["score_column"], "score_column"),
        node("Gather", ["kept", "one"], ["classes"], "classes", axis=1),
        node("Cast", ["classes"], ["class_column"], "class_column", to=TensorProto.FLOAT),
        node("Concat", ["kept_boxes", "score_column", "class_column"], ["detections"], "join", axis=1),
    ]
    constants |= {
        "limit": np.array([KEPT]),
        "iou": np.float32(0.5),
        "least": np.float32(0.4),
        "one": np.array([1]),
        "two": np.array([2]),
        "class_columns": np.array([0, 1, 2]),
        "box_columns": np.array([0, 2]),
    }
    return _model(nodes, constants, {"detections": ["found", 6]})


def top_k(seed=0):
    """Return a detector that ends in TopK and a Gather, without suppression: detections (1, 20, 6)."""
    nodes, constants = backbone(seed)
    nodes += [
        node("ReduceMax", ["scores"], ["best"], "best", axes=[2], keepdims=0),
        node("ArgMax", ["scores"], ["label"], "label", axis=2, keepdims=0),
        node("TopK", ["best", "k"], ["top_scores", "top"], "top", axis=1),
        node("Unsqueeze", ["top", "last"], ["top_column"], "top_column"),
        node("Tile", ["top_column", "times"], ["top_places"], "top_places"),
        node("GatherElements", ["boxes", "top_places"], ["top_boxes"], "top_boxes", axis=1),
        node("GatherElements", ["label", "top"], ["top_label"], "top_label", axis=1),
        node("Cast", ["top_label"], ["top_class"], "top_class", to=TensorProto.FLOAT),
        node("Unsqueeze", ["top_scores", "last"], ["score_column"], "score_column"),
        node("Unsqueeze", ["top_class", "last"], ["class_column"], "class_column"),
        node("Concat", ["top_boxes", "score_column", "class_column"], ["detections"], "join", axis=2),
    ]
    constants |= {"k": np.array([KEPT]), "last": np.array([2]), "times": np.array([1, 1, 4])}
    return _model(nodes, constants, {"detections": [1, KEPT, 6]})


def thresholded(seed=0):
    """Return a detector as torchvision's are exported: boxes (N, 4), labels (N), scores (N), suppressed for each class."""
    nodes, constants = backbone(seed)
    nodes += [
        node("Reshape", ["scores", "all"], ["each"], "each"),
        node("Greater", ["each", "least"], ["is_likely"], "is_likely"),
        node("NonZero", ["is_likely"], ["likely_row"], "likely"),
        node("Squeeze", ["likely_row", "zero"], ["likely"], "likely_list"),
        node("Div", ["likely", "classes"], ["anchor"], "anchor"),
        node("Mod", ["likely", "classes"], ["class"], "class"),
        node("Squeeze", ["boxes", "zero"], ["table"], "table"),
        node("Gather", ["each", "likely"], ["likely_scores"], "likely_scores"),
        node("Gather", ["table", "anchor"], ["likely_boxes"], "likely_boxes"),
        node("Cast", ["class"], ["shift"], "shift", to=TensorProto.FLOAT),
        node("Mul", ["shift", "apart"], ["distance"], "distance"),
        node("Unsqueeze", ["distance", "one"], ["distances"], "distances"),
        node("Add", ["likely_boxes", "distances"], ["shifted"], "shifted"),
        node("Unsqueeze", ["shifted", "zero"], ["nms_boxes"], "nms_boxes"),
        node("Unsqueeze", ["likely_scores", "zero_one"], ["nms_scores"], "nms_scores"),
        node("NonMaxSuppression", ["nms_boxes", "nms_scores", "limit", "iou"], ["kept"], "nms"),
        node("Gather", ["kept", "two"], ["kept_column"], "kept_column", axis=1),
        node("Squeeze", ["kept_column", "one"], ["places"], "places"),
        node("Gather", ["likely_boxes", "places"], ["detected"], "detected"),
        node("Gather", ["class", "places"], ["labels"], "labels"),
        node("Gather", ["likely_scores", "places"], ["certainties"], "certainties"),
    ]
    constants |= {
        "all": np.array([-1]),
        "least": np.float32(0.45),
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "zero_one": np.array([0, 1]),
        "classes": np.array(CLASSES),
        "apart": np.float32(64),
        "limit": np.array([KEPT]),
        "iou": np.float32(0.5),
    }
    return _model(nodes, constants, {"detected": ["found", 4], "labels": ["found"], "certainties": ["found"]})


def two_stages(seed=0):
    """Return a detector that selects the features of its best places, and classifies these: boxes (1, 5, 4) and scores (1, 5)."""
    nodes, constants = backbone(seed)
    generator = np.random.default_rng(seed + 1)
    nodes += [
        node("ReduceMax", ["scores"], ["objectness"], "objectness", axes=[2], keepdims=0),
        node("TopK", ["objectness", "k"], ["proposed", "places"], "proposals", axis=1),
        node("Reshape", ["r2", "features_by_place"], ["features"], "features"),
        node("Transpose", ["features"], ["rows"], "rows", perm=[0, 2, 1]),
        node("Squeeze", ["rows", "zero"], ["table"], "table"),
        node("Squeeze", ["places", "zero"], ["place_list"], "place_list"),
        node("Gather", ["table", "place_list"], ["regions"], "regions"),
        node("MatMul", ["regions", "w4"], ["hidden"], "hidden"),
        node("Relu", ["hidden"], ["hidden_relu"], "hidden_relu"),
        node("MatMul", ["hidden_relu", "w5"], ["class_logits"], "classify"),
        node("Sigmoid", ["class_logits"], ["class_scores"], "class_scores"),
        node("ReduceMax", ["class_scores"], ["region_scores"], "region_scores", axes=[1], keepdims=0),
        node("TopK", ["region_scores", "most"], ["best_scores", "best_regions"], "best_regions", axis=0),
        node("Gather", ["place_list", "best_regions"], ["best_places"], "best_places"),
        node("Gather", ["boxes", "best_places"], ["detected"], "detected", axis=1),
        node("Unsqueeze", ["best_scores", "zero"], ["certainties"], "certainties"),
    ]
    constants |= {
        "k": np.array([KEPT]),
        "most": np.array([5]),
        "zero": np.array([0]),
        "features_by_place": np.array([1, 32, ANCHORS]),
        "w4": (generator.standard_normal((32, 24)) / 4).astype(np.float32),
        "w5": (generator.standard_normal((24, CLASSES)) / 4).astype(np.float32),
    }
    return _model(nodes, constants, {"detected": [1, 5, 4], "certainties": [1, 5]})


def pictures(count, seed=1):
    """Return random pictures (count, 3, 32, 32) with more power in the low frequencies."""
    noise = np.random.default_rng(seed).standard_normal((count, 3, 32, 32))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.rfftfreq(32), indexing="ij"))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / np.maximum(frequency, 1 / 16), s=(32, 32))
    return (smooth / smooth.std()).astype(np.float32)


def _model(nodes, constants, outputs):
    types = {"labels": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(model, folder, rows=40):
    """Write the model and its data, and return the path of the model."""
    path = folder / "detector.onnx"
    onnx.save(model, path)
    np.savez(path.with_suffix(".npz"), x=pictures(rows))
    return path
