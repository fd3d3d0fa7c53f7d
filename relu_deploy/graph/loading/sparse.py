"""Expand sparse initializers, which ONNX Runtime accepts and few other readers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from relu_deploy.errors import InputError
from relu_deploy.graph.loading.resources import memory_limit

if TYPE_CHECKING:
    import onnx

__all__ = ["expand_sparse_initializers"]


def expand_sparse_initializers(graph: onnx.GraphProto) -> None:
    """Replace the sparse initializers of `graph` by dense ones, in place.

    Raises:
        InputError: If indices lie outside the tensor, or the dense tensor exceeds `memory_limit`.
    """
    from onnx import numpy_helper

    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        shape = tuple(sparse.dims)
        elements = int(np.prod(shape, dtype=np.float64))
        if elements * values.itemsize > memory_limit():
            raise InputError(f"the sparse tensor {name!r} is too large when expanded", "allow more with --max-memory")
        if indices.ndim == 2 and shape and indices.shape[1] == len(shape):
            inside = bool(((indices >= 0) & (indices < np.asarray(shape))).all())
            flat = np.ravel_multi_index(tuple(indices.T), shape) if inside and len(indices) else np.zeros(0, np.int64)
        else:
            flat = indices.reshape(-1)
            inside = bool(((flat >= 0) & (flat < elements)).all())
        if not inside or len(flat) != values.size:
            raise InputError(f"the sparse tensor {name!r} has indices that do not fit its shape", "export the model again")
        dense = np.zeros(elements, values.dtype)
        dense[flat] = values.reshape(-1)
        graph.initializer.append(numpy_helper.from_array(dense.reshape(shape), name))
    del graph.sparse_initializer[:]
