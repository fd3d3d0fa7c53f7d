"""Bounds on the tensors of a graph, by interval arithmetic."""
