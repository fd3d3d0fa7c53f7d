"""Input that is parsed in turns: nothing is lost, nothing is parsed too early, and others run in between."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

from relu_deploy.serving.transport import sliced_input
from relu_deploy.serving.transport.sliced_input import SLICE_BYTES, InputFlow, SlicedInput


class Transport:
    reading = True

    def pause_reading(self):
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self):
        assert not self.reading, "resumed twice"
        self.reading = True


class Parser:
    """Notes the pieces that it is fed, each of which takes some seconds, and may stop being ready."""

    def __init__(self, seconds=0.0):
        self.pieces, self.seconds, self.ready, self.drained = [], seconds, True, 0
        self.transport = Transport()
        self.flow = InputFlow(self.transport)
        self.input = SlicedInput(self.flow, self.feed, lambda: self.ready, self.note_drained)

    def feed(self, piece):
        assert self.ready
        self.pieces.append(bytes(piece))
        time.sleep(self.seconds)

    def note_drained(self):
        self.drained += 1


@given(pieces=st.lists(st.integers(0, 3 * SLICE_BYTES), max_size=6), pauses=st.lists(st.booleans(), max_size=6))
def test_every_byte_is_parsed_once_in_order_however_it_arrives_and_however_often_parsing_stops(pieces, pauses):
    async def run():
        parser = Parser()
        sent = b""
        for at, size in enumerate(pieces):
            data = bytes((len(sent) + n) % 251 for n in range(size))
            sent += data
            parser.ready = not (at < len(pauses) and pauses[at])
            parser.input.add(data)
            assert parser.transport.reading == (not parser.input)
            await asyncio.sleep(0)
        parser.ready = True
        parser.input.proceed()
        while parser.input:
            await asyncio.sleep(0)
        assert b"".join(parser.pieces) == sent
        assert parser.transport.reading

    asyncio.run(run())


def test_others_run_between_the_slices_of_a_long_input_and_it_is_not_read_meanwhile():
    async def run():
        parser = Parser(seconds=2 * sliced_input.TURN_SECONDS)
        parser.input.add(bytes(8 * SLICE_BYTES))
        turns = 0
        while parser.input:
            assert not parser.transport.reading
            before = len(parser.pieces)
            await asyncio.sleep(0)
            assert len(parser.pieces) <= before + 2  # never more than a turn
            turns += 1
        assert turns >= 4
        assert parser.drained == 1
        assert parser.transport.reading

    asyncio.run(run())


def test_a_body_of_known_length_is_not_cut_into_slices():
    async def run():
        parser = Parser()
        parser.input.body_left = 10 * SLICE_BYTES
        parser.input.add(bytes(10 * SLICE_BYTES))
        assert [len(piece) for piece in parser.pieces] == [10 * SLICE_BYTES]

    asyncio.run(run())


def test_whoever_else_resumes_reading_does_not_while_input_waits():
    async def run():
        parser = Parser()
        parser.ready = False
        parser.input.add(b"waits")
        parser.flow.resume_reading()
        assert not parser.transport.reading
        parser.flow.pause_reading()
        parser.ready = True
        parser.input.proceed()
        await asyncio.sleep(0.001)
        assert parser.pieces == [b"waits"]
        assert not parser.transport.reading  # paused for the other reason
        parser.flow.resume_reading()
        assert parser.transport.reading

    asyncio.run(run())


def test_nothing_is_parsed_after_the_end_not_even_what_waits():
    async def run():
        parser = Parser()
        parser.ready = False
        parser.input.add(b"waits")
        parser.ready = True
        parser.input.proceed()
        parser.input.end()
        await asyncio.sleep(0.001)
        assert not parser.pieces
        assert not parser.input
        parser.flow.read_on()
        assert parser.transport.reading

    asyncio.run(run())


def test_a_parser_that_ends_the_input_gets_no_further_slice():
    async def run():
        parser = Parser()
        feed = parser.feed

        def feed_and_end(piece):
            feed(piece)
            parser.input.end()

        parser.input = SlicedInput(parser.flow, feed_and_end, lambda: True)
        parser.input.add(bytes(3 * SLICE_BYTES))
        assert len(parser.pieces) == 1
        assert parser.transport.reading
        assert not parser.input

    asyncio.run(run())
