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
        from relu_deploy.detections import nms

        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

        def keep(boxes, scores, threshold):
            rows = nms(boxes.numpy()[None], scores.numpy()[None, None], threshold, float("-inf"), len(boxes))
            return torch.from_numpy(rows[:, 2].copy())

        library.impl("nms", keep, "CPU")
        import torchvision

        torchvision.ops.boxes._assert_has_ops = lambda: None
        torchvision.library_of_the_tests = library  # a library that is collected takes its operators with it
    return torchvision
