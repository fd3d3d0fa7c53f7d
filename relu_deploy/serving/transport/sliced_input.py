"""What a connection has received, parsed in slices, so that one connection cannot make the others wait.

A read returns up to 256 KiB. As pipelined requests or as chunks of a byte these are thousands of calls into Python, a quarter of
a second in which the event loop serves nobody else. So a connection parses for a millisecond at a time and then waits for its
next turn, and it is not read meanwhile. Nor does it parse further while a pipelined request waits for the answer of the one
before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

__all__ = ["InputFlow", "SlicedInput"]

#: seconds of a turn, and bytes between two looks at the clock: less than a hundred of the shortest requests
TURN_SECONDS, SLICE_BYTES = 0.001, 2**12


class InputFlow(FlowControl):
    """uvicorn's flow control, which also stops reading while received bytes wait to be parsed, whatever else asks for it."""

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self._held = self._paused = False

    def hold(self) -> None:
        """Read no more until `release`."""
        self._held = True
        super().pause_reading()

    def release(self) -> None:
        """Read again, unless reading is paused for another reason."""
        self._held = False
        if not self._paused:
            super().resume_reading()

    def read_on(self) -> None:
        """Read again whatever it was paused for."""
        self._held = False
        self.resume_reading()

    def pause_reading(self) -> None:
        self._paused = True
        super().pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if not self._held:
            super().resume_reading()


class SlicedInput:
    """The bytes of one connection that have not been parsed yet."""

    def __init__(
        self,
        flow: InputFlow,
        feed: Callable[[memoryview], None],
        may_parse: Callable[[], bool],
        drained: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin without any.

        Args:
            flow: Of the connection.
            feed: Parses some bytes.
            may_parse: Returns whether more may be parsed at present; when it does again, `proceed` is to be called.
            drained: Called when everything that had to wait has been parsed.
        """
        self._flow, self._feed, self._may_parse, self._drained = flow, feed, may_parse, drained
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._turn: asyncio.Handle | None = None
        self._ended = False
        #: bytes of a body that are still to come and need no slices, because they are one call of the parser
        self.body_left = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, data: bytes) -> None:
        """Parse what has been received, now or in later turns."""
        if self._waiting:
            self._waiting += data
        else:
            self._parse(data)

    def proceed(self) -> None:
        """Parse what waits, in a turn of its own."""
        if self._waiting and self._turn is None:
            self._turn = self._loop.call_soon(self._take_turn)

    def end(self) -> None:
        """Parse nothing more, and let go of the functions that were given."""
        self._ended, self._waiting = True, bytearray()
        self._feed, self._may_parse, self._drained = (lambda _: None), (lambda: False), (lambda: None)
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _take_turn(self) -> None:
        self._turn = None
        waiting, self._waiting = self._waiting, bytearray()
        self._parse(waiting)
        if not self._waiting and not self._ended:
            self._flow.release()
            self._drained()

    def _parse(self, data: bytes | bytearray) -> None:
        view, at, end = memoryview(data), 0, 0.0
        while at < len(view) and not self._ended and self._may_parse():
            if at == 0:
                end = time.perf_counter() + TURN_SECONDS
            elif time.perf_counter() > end:
                break
            size = max(SLICE_BYTES, self.body_left)
            self._feed(view[at : at + size])
            at += size
        if at < len(view) and not self._ended:
            self._waiting += view[at:]
            self._flow.hold()
            if self._may_parse():
                self.proceed()
