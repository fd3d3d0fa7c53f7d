"""Decompression of what clients send, with a limit: a kilobyte can hold a megabyte, and a message of the largest size gigabytes."""

from __future__ import annotations

import zlib

from relu_deploy.serving.errors import InvalidArgument, TooLarge

__all__ = ["BODY_HINT", "decompress", "decompressed_limit", "is_compressed"]

#: times its own size that a compressed body may have, where that is more than FREE_BYTES
MAX_RATIO, FREE_BYTES = 100, 2**20
#: members of a compressed body, and bytes that are decompressed at a time: what follows a member is copied
MAX_MEMBERS, PIECE = 1000, 2**16
#: the hint for a body that is too large
BODY_HINT = "send less, or raise serve --max-body (MiB)"


def decompressed_limit(body: bytes, limit: int) -> int:
    """Return how many bytes `body` may have once it is decompressed. limit: of an uncompressed one."""
    return min(limit, max(FREE_BYTES, MAX_RATIO * len(body)))


def is_compressed(body: bytes) -> bool:
    """Return whether `body` begins as gzip and zlib do."""
    return body[:2] == b"\x1f\x8b" or _has_zlib_header(body)


def decompress(body: bytes, limit: int) -> bytes:
    """Return the decompressed `body`, without ever holding more than `limit` bytes.

    Args:
        body: In the format of gzip, also of several members (RFC 1952), of zlib, or raw deflate.
        limit: Bytes.

    Raises:
        TooLarge: If it is longer than `limit`.
        InvalidArgument: If it is damaged, cut short or followed by something else.
    """
    pieces: list[bytes] = []
    # Either header, gzip's or zlib's; some clients send deflate without any.
    bits = zlib.MAX_WBITS | 32 if is_compressed(body) else -zlib.MAX_WBITS
    view, at, left, members = memoryview(body), 0, limit, 0
    while at < len(body) or not members:
        decompressor, members = zlib.decompressobj(bits), members + 1
        if members > MAX_MEMBERS:
            raise TooLarge(f"the compressed body has more than {MAX_MEMBERS} members", "compress it as one")
        while not decompressor.eof:
            if at >= len(body):
                raise InvalidArgument("the compressed body ends too early or too late")
            piece = view[at : at + PIECE]
            try:
                # What is left of a piece comes again: a piece may decompress to a thousand times its size.
                pieces.append(decompressor.decompress(piece, left + 1))
            except zlib.error as error:
                raise InvalidArgument(f"the body does not fit its content encoding: {error}") from None
            left -= len(pieces[-1])
            if left < 0:
                raise TooLarge(f"the decompressed body exceeds the limit of {limit} bytes", BODY_HINT)
            at += len(piece) - len(decompressor.unused_data) - len(decompressor.unconsumed_tail)
        if at < len(body) and not (body[:2] == bytes(view[at : at + 2]) == b"\x1f\x8b"):
            raise InvalidArgument("the compressed body ends too early or too late")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _has_zlib_header(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
