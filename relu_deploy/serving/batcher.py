"""One model, run batch by batch: requests wait in a bounded queue, and one thread runs as many at a time as fit.

Nothing waits for company unless it is told to: while the model runs, requests gather, and the next batch is all of them.
What is refused is refused at once, when it arrives; what was taken is answered, whatever happens to the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from relu_deploy.backends import Session
from relu_deploy.serving.errors import DeadlineExceeded, InternalError, ServeError, Unavailable
from relu_deploy.serving.telemetry.statistics import Statistics, Timings
from relu_deploy.tensors import Array, Feeds

__all__ = ["Batcher", "Limits", "QueuedRequest"]


@dataclass(frozen=True)
class Limits:
    """max_batch: rows of one run. max_delay: seconds that a request may wait for others. queue: requests that may wait.

    sizes: the batches that the backend takes, ascending, () for every size up to `max_batch`: rows are padded up to the next.
    """

    max_batch: int = 8
    max_delay: float = 0.0
    queue: int = 128
    sizes: tuple[int, ...] = ()


class QueuedRequest:
    """One request in the queue. The loop's future gets its outputs or its error."""

    __slots__ = ("arrived", "deadline", "feeds", "future", "rows", "timings")

    def __init__(self, feeds: Feeds, rows: int, deadline: float | None, future: asyncio.Future[Feeds]) -> None:
        self.feeds, self.rows, self.deadline, self.future = feeds, rows, deadline, future
        self.arrived = time.perf_counter()
        self.timings: Timings | None = None


class Batcher:
    """The queue of one session and the thread that empties it. All methods but `close` are for the event loop's thread."""

    def __init__(
        self,
        name: str,
        session: Session,
        limits: Limits,
        statistics: Statistics,
        after: Callable[[Feeds, Feeds, int], None] | None = None,
    ) -> None:
        """after: called in the thread with the feeds, the outputs and the number of real rows of each batch."""
        self._session, self.limits, self._statistics, self._after = session, limits, statistics, after
        self._loop = asyncio.get_running_loop()
        self._queue: deque[QueuedRequest] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._batch_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name=f"relu-deploy {name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def submit(self, feeds: Feeds, rows: int, deadline: float | None = None) -> QueuedRequest:
        """Return the ticket of a request that was taken. deadline: of time.perf_counter().

        Raises Busy when the queue is full, with when to try again.
        """
        self.check_room()
        ticket = QueuedRequest(feeds, rows, deadline, self._loop.create_future())
        with self._changed:
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    def room(self) -> int:
        """Return how many more requests the queue takes, 0 while more than half of it is taken."""
        free = self.limits.queue - len(self._queue)
        return free if 2 * free >= self.limits.queue else 0

    def check_room(self, entering: int = 0) -> None:
        """Raise Busy where `submit` would: what is turned away anyway need not be unpacked before.

        entering: requests that were let in and are not in the queue yet.
        """
        if self._closing:
            raise Unavailable("the model is being unloaded", retry_after=1.0)
        waiting = len(self._queue) + entering
        if waiting >= self.limits.queue:
            self._statistics.refused()
            ahead = waiting * self._batch_seconds / max(1, self.limits.max_batch)
            raise Unavailable(f"{waiting} requests are waiting already", "try again later", retry_after=max(0.05, ahead))

    def close(self) -> None:
        """Answer what is in the queue, then end the thread and the session. Blocks until it is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._session.close()

    def _work(self) -> None:
        while batch := self._next():
            started = time.perf_counter()
            answers = self._answers(batch)
            self._batch_seconds = 0.9 * self._batch_seconds + 0.1 * (time.perf_counter() - started)
            # One wake-up of the loop for the whole batch.
            self._loop.call_soon_threadsafe(_deliver, batch, answers, self._statistics)

    def _next(self) -> list[QueuedRequest]:
        """Return the tickets of the next batch, [] when the batcher is closing and nothing is left. Blocks."""
        with self._changed:
            while True:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return []
                patience = self._queue[0].arrived + self.limits.max_delay - time.perf_counter()
                if patience <= 0 or self._closing or sum(each.rows for each in self._queue) >= self.limits.max_batch:
                    return self._taken()
                self._changed.wait(patience)

    def _taken(self) -> list[QueuedRequest]:
        batch, rows = [self._queue.popleft()], 0
        rows = batch[0].rows
        while self._queue and rows + self._queue[0].rows <= self.limits.max_batch and _stack(batch[0], self._queue[0]):
            rows += self._queue[0].rows
            batch.append(self._queue.popleft())
        return batch

    def _answers(self, batch: Sequence[QueuedRequest]) -> list[Feeds | ServeError]:
        """Return for each ticket its outputs or its error."""
        now = time.perf_counter()
        answers: list[Feeds | ServeError | None] = [None] * len(batch)
        live = []
        for index, ticket in enumerate(batch):
            if ticket.future.cancelled():
                answers[index] = DeadlineExceeded("the client has gone")
            elif ticket.deadline is not None and now > ticket.deadline:
                answers[index] = DeadlineExceeded(f"the deadline passed after {now - ticket.arrived:.3f} s in the queue")
            else:
                live.append(index)
        if live:
            together = [batch[index] for index in live]
            for index, answer in zip(live, self._ran(together, now), strict=True):
                answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def _ran(self, batch: Sequence[QueuedRequest], taken: float) -> list[Feeds | ServeError]:
        try:
            return list(self._run(batch, taken))
        except Exception as error:  # a backend may raise anything, and the others' requests are not to blame
            if len(batch) == 1:
                return [InternalError(f"the backend failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")]
            return [answer for ticket in batch for answer in self._ran([ticket], time.perf_counter())]

    def _run(self, batch: Sequence[QueuedRequest], taken: float) -> list[Feeds]:
        rows = sum(ticket.rows for ticket in batch)
        feeds = _joined([ticket.feeds for ticket in batch], _padded(rows, self.limits.sizes) - rows)
        ready = time.perf_counter()
        outputs = self._session.run(feeds)
        ran = time.perf_counter()
        split = _split(outputs, [ticket.rows for ticket in batch])
        if self._after is not None:
            self._after(feeds, outputs, rows)
        done = time.perf_counter()
        for ticket in batch:
            ticket.timings = Timings(taken - ticket.arrived, ready - taken, ran - ready, done - ran, ticket.arrived, rows)
        self._statistics.ran(rows, ready - taken, ran - ready, done - ran)
        return split


def _deliver(batch: Sequence[QueuedRequest], answers: Sequence[Feeds | ServeError], statistics: Statistics) -> None:
    now = time.perf_counter()
    for ticket, answer in zip(batch, answers, strict=True):
        gone = ticket.future.done()
        if isinstance(answer, ServeError):
            statistics.failed(now - ticket.arrived, "cancelled" if gone else answer.reason)
            if not gone:
                ticket.future.set_exception(answer)
            continue
        statistics.succeeded(now - ticket.arrived, ticket.rows, ticket.timings)
        if not gone:
            ticket.future.set_result(answer)


def _stack(one: QueuedRequest, other: QueuedRequest) -> bool:
    """Return whether two requests can be rows of one batch: all but the leading sizes are equal."""
    return all(array.shape[1:] == other.feeds[name].shape[1:] for name, array in one.feeds.items())


def _padded(rows: int, sizes: Sequence[int]) -> int:
    return next((size for size in sizes if size >= rows), rows)


def _joined(all_feeds: Sequence[Feeds], padding: int) -> Feeds:
    if len(all_feeds) == 1 and not padding:
        return all_feeds[0]
    joined = {}
    for name in all_feeds[0]:
        parts = [feeds[name] for feeds in all_feeds]
        if padding:
            # Copies of a real row: zeros might be what the model is slow or loud on.
            parts.append(np.repeat(parts[-1][-1:], padding, 0))
        joined[name] = np.concatenate(parts)
    return joined


def _split(outputs: Mapping[str, Array], rows: Sequence[int]) -> list[Feeds]:
    if len(rows) == 1:
        total = rows[0]
        return [{name: array[:total] if array.ndim and len(array) > total else array for name, array in outputs.items()}]
    ends = list(accumulate(rows))
    return [{name: array[end - count : end] for name, array in outputs.items()} for end, count in zip(ends, rows, strict=True)]
