"""The bytes of a gRPC message as a message: decompressed within a limit, and refused in words where they are none.

gRPC would call bytes that are no message an error of the server, and log a traceback. It checks the size of a compressed message
only before it decompresses it. So the server receives messages as they were sent, and decompresses and parses them here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from relu_deploy.serving.errors import InvalidArgument, TooLarge
from relu_deploy.serving.protocol.compression import decompress, decompressed_limit, is_compressed

__all__ = ["RECEIVE_OPTIONS", "decompress_message", "message_of", "parse_message"]

#: options of a gRPC server: messages are not decompressed before they are handled
RECEIVE_OPTIONS = (("grpc.per_message_decompression", 0),)


async def decompress_message(received: bytes, limit: int) -> bytes:
    """Return a message decompressed.

    No message of the protocols that are served begins as gzip or zlib do: fields 3 and 15 with these types do not exist.

    Args:
        received: The message, as it was sent.
        limit: Bytes that it may have once it is decompressed.

    Raises:
        TooLarge: If it is larger.
        InvalidArgument: If it is damaged.
    """
    if not is_compressed(received):
        if len(received) > limit:
            raise TooLarge(f"a message of {len(received)} bytes exceeds the limit of {limit}")
        return received
    return await asyncio.to_thread(decompress, received, decompressed_limit(received, limit))


async def parse_message(kind: Any, received: bytes, limit: int) -> Any:
    """Return the message in `received`. kind: its class. The other arguments and errors are those of `decompress_message`."""
    return message_of(kind, await decompress_message(received, limit))


def message_of(kind: Any, content: bytes) -> Any:
    """Return the message in `content`, of the class `kind`. Raises InvalidArgument if it is none."""
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(content)
    except DecodeError:
        raise InvalidArgument(f"the message is not a {kind.DESCRIPTOR.name}") from None
