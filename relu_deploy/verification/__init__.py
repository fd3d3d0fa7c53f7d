"""Comparison of backends with a float64 truth, for every Relu and for the outputs."""
