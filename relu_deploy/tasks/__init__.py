"""Decodes the outputs of a model and scores them."""
