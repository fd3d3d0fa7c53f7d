"""Operator domains."""

from __future__ import annotations

from typing import Protocol

__all__ = ["is_standard"]


class HasDomain(Protocol):
    """A node, or an entry of a graph's opset imports."""

    @property
    def domain(self) -> str: ...


def is_standard(node: HasDomain) -> bool:
    """Return whether the operator of `node` is one of ONNX itself, whose domain files spell in either of two ways."""
    return node.domain in ("", "ai.onnx")
