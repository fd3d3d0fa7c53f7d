"""Compiles models to engines ahead of time."""
