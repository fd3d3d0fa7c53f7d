"""Comparison of tensors with the truth: noise floors, limits, verdicts."""
