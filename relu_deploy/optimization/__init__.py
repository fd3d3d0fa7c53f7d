"""Variants of a model for a target: smaller and faster, within an accuracy gate."""
