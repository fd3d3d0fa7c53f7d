"""Loads a graph into the reference evaluator."""

from relu_deploy.backends.reference.session import load

__all__ = ["load"]
