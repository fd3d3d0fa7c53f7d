"""torchvision, importable beside a CPU build of torch from another index: its two C++ operators are defined in Python."""

import importlib.util

import pytest
import torch


def torchvision():
    """Return the torchvision module; skip the test, saying why, where it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed (pip install --no-deps torchvision==0.28.0)")
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

        # Not ours: what torchvision finds is to be found without our help.
        def keep(boxes, scores, threshold):
            order = scores.argsort(descending=True, stable=True)
            x1, y1, x2, y2 = boxes[order].T
            area = (x2 - x1) * (y2 - y1)
            width = torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)
            height = torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)
            shared = width.clamp(min=0) * height.clamp(min=0)
            overlaps = (shared / (area[:, None] + area - shared) > threshold).triu(1)
            kept = torch.ones(len(boxes), dtype=torch.bool)
            for box in range(len(boxes)):
                if kept[box]:
                    kept &= ~overlaps[box]
            return order[kept]

        library.impl("nms", keep, "CPU")
        import torchvision

        torchvision.ops.boxes._assert_has_ops = lambda: None
        torchvision.library_of_the_tests = library  # a library that is collected takes its operators with it
    return torchvision
