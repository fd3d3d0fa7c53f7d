"""The bytes of gRPC messages: compressed ones are decompressed within a limit, and by nobody before."""

import asyncio
import gzip
import tracemalloc
import zlib

import pytest

grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'relu-deploy[serve]')")

from relu_deploy.serving.errors import InvalidArgument, TooLarge  # noqa: E402
from relu_deploy.serving.protocol.grpc_messages import RECEIVE_OPTIONS, decompress_message, parse_message  # noqa: E402
from relu_deploy.serving.protocol.proto import messages  # noqa: E402

REQUEST = messages().ModelInferRequest
WHOLE = REQUEST(model_name="digits", raw_input_contents=[bytes(3000)]).SerializeToString()


@pytest.mark.parametrize("sent", [WHOLE, gzip.compress(WHOLE), zlib.compress(WHOLE), zlib.compress(WHOLE, 0)])
def test_a_message_is_the_same_however_it_was_sent(sent):
    message = asyncio.run(parse_message(REQUEST, sent, 2**20))
    assert message.SerializeToString() == WHOLE


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_message_that_expands_is_refused_before_it_takes_the_memory(pack):
    sent = pack(bytes(100 * 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            asyncio.run(decompress_message(sent, 2**21))
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sent", [gzip.compress(WHOLE)[:-5], gzip.compress(WHOLE) + b"more", b"\x1f\x8b", b"\xff" * 9])
def test_what_is_no_message_is_refused_in_words(sent):
    with pytest.raises(InvalidArgument):
        asyncio.run(parse_message(REQUEST, sent, 2**20))


@pytest.mark.parametrize(
    ("compression", "start"), [(grpc.Compression.Gzip, b"\x1f\x8b"), (grpc.Compression.Deflate, b"\x78"), (None, b"zz")]
)
def test_grpc_itself_decompresses_nothing(compression, start):
    async def run():
        async def first_bytes(received, _rpc):
            return received[:2]

        server = grpc.aio.server(options=RECEIVE_OPTIONS)
        handlers = {"M": grpc.unary_unary_rpc_method_handler(first_bytes)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            answer = await channel.unary_unary("/S/M")(b"z" * 5000, compression=compression, timeout=10)
        await server.stop(0)
        return answer

    assert asyncio.run(run()).startswith(start)
