"""The picture in a request's body: the body itself, or the one file of a form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relu_deploy.errors import missing_package
from relu_deploy.preprocessing.decoding import DecodeLimits
from relu_deploy.serving.errors import InvalidArgument

__all__ = ["PictureLimits", "file_of"]

#: parts of a form; each costs time, even an empty one
MAX_PARTS = 16


@dataclass(frozen=True)
class PictureLimits(DecodeLimits):
    """The limits of picture decoding in a server.

    Attributes:
        decoders: Pictures that are decoded at a time.
        waiting: Further pictures that may wait for that.
    """

    decoders: int = 2
    waiting: int = 64


def file_of(body: bytes, content_type: str) -> bytes:
    """Return the picture file in `body`: the body itself, or the one file of a multipart/form-data form.

    Raises:
        InvalidArgument: For another content type, a malformed form, or a form with no or several files.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body = _file_of_form(body, content_type)
    elif kind and kind != "application/octet-stream" and not kind.startswith("image/"):
        raise InvalidArgument(
            f"content type {kind!r} is not supported",
            "send a picture as image/* or application/octet-stream, or a form with one file",
        )
    if not body:
        raise InvalidArgument("there is no picture in the body", "send a JPEG, PNG, WebP or BMP file")
    return body


def _file_of_form(body: bytes, content_type: str) -> bytes:
    try:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import File, create_form_parser
    except ImportError as error:
        raise missing_package("python-multipart", "serve") from error
    files: list[Any] = []
    parts = 0

    def found(part: Any) -> None:
        nonlocal parts
        parts += 1
        if parts > MAX_PARTS:
            raise InvalidArgument(f"the form has more than {MAX_PARTS} parts", "send one picture at a time")
        if isinstance(part, File):
            files.append(part)

    # In memory throughout: the limit of the body is the form's, too.
    config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = create_form_parser({"Content-Type": content_type.encode("latin-1")}, found, found, config)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidArgument(f"the body is not the form that its content type declares: {error}") from None
    if len(files) != 1:
        raise InvalidArgument(f"the form has {len(files)} files", "send one picture at a time, as a part with a file name")
    stream = files[0].file_object
    stream.seek(0)
    return bytes(stream.read())
