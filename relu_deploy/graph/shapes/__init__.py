"""Shapes of a graph: inference, symbolic dimensions, the batch axis, ranges of integer inputs."""
