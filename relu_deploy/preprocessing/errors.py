"""Errors about one picture, beside `InputError`: a caller with many pictures reports them and goes on with the next."""

from __future__ import annotations

from relu_deploy.errors import InputError

__all__ = ["PictureTooLarge"]


class PictureTooLarge(InputError):
    """A picture beyond a limit of size."""
