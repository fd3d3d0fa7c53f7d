"""Ahead-of-time compilation of engines."""
