"""Interleaved benchmarks with confidence intervals."""
