"""Reduced precision: Q/DQ placement and scales, and 16-bit casts."""
