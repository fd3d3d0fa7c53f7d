"""Compressed bodies, in every form that clients send, and none that expands without a limit."""

import gzip
import random
import time
import zlib

import pytest

from relu_deploy.serving.errors import InvalidArgument, TooLarge
from relu_deploy.serving.protocol.compression import decompress

TEXT = b'{"inputs": []}' * 100


def raw_deflate(content):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(TEXT),
        zlib.compress(TEXT),
        zlib.compress(TEXT, 0),
        raw_deflate(TEXT),
        gzip.compress(TEXT[:7]) + gzip.compress(TEXT[7:]),
        b"".join(gzip.compress(TEXT[at : at + 10]) for at in range(0, len(TEXT), 10)),
    ],
    ids=["gzip", "zlib", "zlib stored", "raw deflate", "two members", "many members"],
)
def test_every_form_decompresses_to_its_content(body):
    assert decompress(body, len(TEXT)) == TEXT
    with pytest.raises(TooLarge):
        decompress(body, len(TEXT) - 1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        gzip.compress(TEXT)[:-1],
        gzip.compress(TEXT) + b"\0",
        gzip.compress(TEXT) + gzip.compress(TEXT)[:-4],
        zlib.compress(TEXT) + zlib.compress(TEXT),
        zlib.compress(TEXT)[:-1],
    ],
)
def test_a_body_that_is_damaged_cut_or_followed_by_something_is_refused(body):
    with pytest.raises(InvalidArgument):
        decompress(body, 10_000)


def test_members_without_end_are_refused_in_linear_time():
    """What follows a member is copied when it ends: a million empty ones in 20 MB would take hours."""
    began = time.process_time()
    with pytest.raises(TooLarge, match="more than 1000 members"):
        decompress(gzip.compress(b"") * 10**6, 10_000)
    assert time.process_time() - began < 5


def test_a_long_body_of_many_pieces_decompresses_to_its_content():
    content = random.Random(0).randbytes(300_000) + bytes(10**6)
    assert decompress(gzip.compress(content[:200_001]) + gzip.compress(content[200_001:]), len(content)) == content
