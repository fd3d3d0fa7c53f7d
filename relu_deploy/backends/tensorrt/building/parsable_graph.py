"""Write a graph in the operators that TensorRT supports, where it has others with the same meaning.

Its parser has no Clip of integers, and its builder fails on many graphs with Ifs: those whose branch is always the same for
the sizes of the graph's inputs are inlined.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from relu_deploy.errors import InputError
from relu_deploy.graph.model import load_model, save_model
from relu_deploy.graph.rewriting.constant_branches import has_branches, inline_constant_branches
from relu_deploy.graph.rewriting.integer_clip import has_integer_clip, without_integer_clip
from relu_deploy.graph.shapes.shape_inference import infer_shapes
from relu_deploy.storage.folders import temporary_folder

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["parsable"]


@contextmanager
def parsable(path: Path) -> Iterator[Path]:
    """Yield `path`, or a temporary file with the same graph in operators that TensorRT supports.

    Args:
        path: An ONNX file. One that is not valid is yielded as it is.
    """
    changed = _changed(path)
    if changed is None:
        yield path
        return
    with temporary_folder("parsable") as folder:
        file = folder / path.name
        save_model(changed, file)
        yield file


def _changed(path: Path) -> ir.Model | None:
    """Return the graph to parse instead of that in `path`, None where that is parsed as it is."""
    try:
        model = load_model(path)
    except InputError:
        return None
    changed = None
    if has_branches(model):
        model = changed = inline_constant_branches(model)
    infer_shapes(model)
    return without_integer_clip(model) if has_integer_clip(model) else changed
