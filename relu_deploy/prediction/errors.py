"""Errors about one input, beside `InputError`: a caller with many inputs reports them and goes on with the next."""

from __future__ import annotations

from relu_deploy.errors import InputError

__all__ = ["InvalidOutput"]


class InvalidOutput(InputError):
    """An output of the model from which no prediction can be made, such as NaN."""
