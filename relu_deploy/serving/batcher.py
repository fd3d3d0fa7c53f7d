"""One model's queue, and the thread that runs it batch by batch.

A batch is not delayed unless `max_delay` says so: while the model runs, requests gather, and the next batch takes as many of
them as fit. A full queue refuses a request when it arrives; an accepted one is answered, whatever happens to the others.
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
from relu_deploy.errors import InputError, InputsRejected
from relu_deploy.serving.errors import DeadlineExceeded, InternalError, InvalidArgument, ServeError, Unavailable
from relu_deploy.serving.telemetry.statistics import Statistics, Timings
from relu_deploy.tensors import Array, Feeds

__all__ = ["Batcher", "Limits", "QueuedRequest", "Slot"]


@dataclass(frozen=True)
class Limits:
    """The limits of one model's queue.

    Attributes:
        max_batch: Most rows of one run.
        max_delay: Seconds that a request may wait for others to be batched with.
        queue: Most requests that wait; further ones are refused.
    """

    max_batch: int = 8
    max_delay: float = 0.0
    queue: int = 128


class Slot:
    """A place in a queue, reserved for one request until that is submitted or ends."""

    __slots__ = ("_batcher",)

    def __init__(self, batcher: Batcher) -> None:
        self._batcher: Batcher | None = batcher

    def release(self) -> None:
        """Give the place back. Has no effect the second time."""
        if self._batcher is not None:
            self._batcher.reserved -= 1
            self._batcher = None


class QueuedRequest:
    """One request in the queue. Its future, which belongs to the event loop, gets the outputs or the error."""

    __slots__ = ("arrived", "deadline", "feeds", "future", "rows", "timings")

    def __init__(self, feeds: Feeds, rows: int, deadline: float | None, future: asyncio.Future[Feeds]) -> None:
        self.feeds, self.rows, self.deadline, self.future = feeds, rows, deadline, future
        self.arrived = time.perf_counter()
        self.timings: Timings | None = None


class Batcher:
    """The queue of one session and the thread that empties it. All methods but `close` belong to the event loop's thread."""

    def __init__(
        self,
        name: str,
        session: Session,
        limits: Limits,
        statistics: Statistics,
        observe: Callable[[Feeds, Feeds, int], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            name: The model's, for the thread's name.
            session: Runs the batches; closed by `close`.
            limits: Sizes of the batches and of the queue.
            statistics: Counts runs, answers and failures.
            observe: Called in the thread after each run, with its feeds, its outputs and its number of rows.
        """
        self._session, self.limits, self._statistics, self._observe = session, limits, statistics, observe
        self._loop = asyncio.get_running_loop()
        self._queue: deque[QueuedRequest] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._batch_seconds = 0.0
        #: slots that are held and not submitted yet
        self.reserved = 0
        self._thread = threading.Thread(target=self._work, name=f"relu-deploy {name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return the number of requests in the queue."""
        return len(self._queue)

    def free_slots(self) -> int:
        """Return how many more requests the queue takes; 0 while it is more than half full."""
        free = self.limits.queue - len(self._queue)
        return free if 2 * free >= self.limits.queue else 0

    def reserve(self) -> Slot:
        """Return a place in the queue. The only place where a full queue is tested.

        Raises:
            Unavailable: If the queue is full or the model is being unloaded, with when to retry.
        """
        if self._closing:
            raise Unavailable("the model is being unloaded", retry_after=1.0)
        taken = len(self._queue) + self.reserved
        if taken >= self.limits.queue:
            self._statistics.refused()
            seconds = taken * self._batch_seconds / max(1, self.limits.max_batch)
            raise Unavailable(f"the queue is full: {taken} requests wait", "try again later", retry_after=max(0.05, seconds))
        self.reserved += 1
        return Slot(self)

    def submit(self, feeds: Feeds, rows: int, deadline: float | None = None, slot: Slot | None = None) -> QueuedRequest:
        """Put a request into the queue.

        Args:
            feeds: The model's inputs.
            rows: How many rows they have.
            deadline: Of time.perf_counter(): the request is not run after it.
            slot: The request's place, possibly of the queue of a model that this one has replaced. None reserves one.

        Raises:
            Unavailable: If the model is being unloaded or, without a slot, if the queue is full.
        """
        slot = slot or self.reserve()
        queued = QueuedRequest(feeds, rows, deadline, self._loop.create_future())
        with self._changed:
            if self._closing:
                raise Unavailable("the model is being unloaded", retry_after=1.0)
            slot.release()
            self._queue.append(queued)
            self._changed.notify()
        return queued

    def close(self) -> None:
        """Answer the requests in the queue, then end the thread and the session. Blocks until it is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._session.close()

    def _work(self) -> None:
        while batch := self._next():
            started = time.perf_counter()
            results = self._results(batch)
            self._batch_seconds = 0.9 * self._batch_seconds + 0.1 * (time.perf_counter() - started)
            # One wake-up of the loop for the whole batch.
            self._loop.call_soon_threadsafe(_deliver, batch, results, self._statistics)

    def _next(self) -> list[QueuedRequest]:
        """Return the requests of the next batch, [] when the batcher is closing and none is left. Blocks."""
        with self._changed:
            while True:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return []
                delay = self._queue[0].arrived + self.limits.max_delay - time.perf_counter()
                if delay <= 0 or self._closing or sum(each.rows for each in self._queue) >= self.limits.max_batch:
                    return self._pop_batch()
                self._changed.wait(delay)

    def _pop_batch(self) -> list[QueuedRequest]:
        batch = [self._queue.popleft()]
        rows = batch[0].rows
        while self._queue and rows + self._queue[0].rows <= self.limits.max_batch and _stackable(batch[0], self._queue[0]):
            rows += self._queue[0].rows
            batch.append(self._queue.popleft())
        return batch

    def _results(self, batch: Sequence[QueuedRequest]) -> list[Feeds | ServeError]:
        """Return each request's outputs or error."""
        now = time.perf_counter()
        results: list[Feeds | ServeError | None] = [None] * len(batch)
        live = []
        for index, queued in enumerate(batch):
            if queued.future.cancelled():
                results[index] = DeadlineExceeded("the client disconnected")
            elif queued.deadline is not None and now > queued.deadline:
                results[index] = DeadlineExceeded(f"the deadline passed after {now - queued.arrived:.3f} s in the queue")
            else:
                live.append(index)
        if live:
            for index, result in zip(live, self._run_or_fail([batch[index] for index in live], now), strict=True):
                results[index] = result
        return [result for result in results if result is not None]

    def _run_or_fail(self, batch: Sequence[QueuedRequest], taken: float) -> list[Feeds | ServeError]:
        try:
            return list(self._run(batch, taken))
        except Exception as error:  # a backend may raise anything, and one bad request must not fail the others
            if len(batch) == 1:
                return [_failure(error, batch[0].feeds)]
            return [result for queued in batch for result in self._run_or_fail([queued], time.perf_counter())]

    def _run(self, batch: Sequence[QueuedRequest], taken: float) -> list[Feeds]:
        rows = sum(queued.rows for queued in batch)
        feeds = _concatenate([queued.feeds for queued in batch])
        ready = time.perf_counter()
        outputs = self._session.run(feeds)
        ran = time.perf_counter()
        split = _split(outputs, [queued.rows for queued in batch])
        if self._observe is not None:
            self._observe(feeds, outputs, rows)
        done = time.perf_counter()
        for queued in batch:
            queued.timings = Timings(taken - queued.arrived, ready - taken, ran - ready, done - ran, queued.arrived, rows)
        self._statistics.ran(rows, ready - taken, ran - ready, done - ran)
        return split


def _deliver(batch: Sequence[QueuedRequest], results: Sequence[Feeds | ServeError], statistics: Statistics) -> None:
    now = time.perf_counter()
    for queued, result in zip(batch, results, strict=True):
        cancelled = queued.future.done()
        if isinstance(result, ServeError):
            statistics.failed(now - queued.arrived, "cancelled" if cancelled else result.reason)
            if not cancelled:
                queued.future.set_exception(result)
            continue
        statistics.succeeded(now - queued.arrived, queued.rows, queued.timings)
        if not cancelled:
            queued.future.set_result(result)


def _failure(error: Exception, feeds: Feeds) -> ServeError:
    """Return what a backend raised on one request as an error of the client or of the server."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, InputError | InputsRejected):
        return InvalidArgument(error.message, error.hint)
    if empty := [name for name, array in feeds.items() if not array.size]:
        return InvalidArgument(f"input {empty[0]!r} is empty, and the model does not accept that: {text}")
    return InternalError(f"the backend failed: {type(error).__name__}: {text}")


def _stackable(one: QueuedRequest, other: QueuedRequest) -> bool:
    """Return whether two requests can be rows of one batch: both have rows, and their other sizes are equal."""
    return one.rows > 0 < other.rows and all(array.shape[1:] == other.feeds[name].shape[1:] for name, array in one.feeds.items())


def _concatenate(all_feeds: Sequence[Feeds]) -> Feeds:
    if len(all_feeds) == 1:
        return all_feeds[0]
    return {name: np.concatenate([feeds[name] for feeds in all_feeds]) for name in all_feeds[0]}


def _split(outputs: Mapping[str, Array], rows: Sequence[int]) -> list[Feeds]:
    """Return each request's rows of the outputs of one run. A request that ran alone gets its outputs whole.

    Raises:
        ValueError: If several requests ran together and an output does not have one row for each of theirs.
    """
    if len(rows) == 1:
        return [dict(outputs)]
    ends = list(accumulate(rows))
    if wrong := [name for name, array in outputs.items() if not array.ndim or len(array) != ends[-1]]:
        raise ValueError(f"output {wrong[0]!r} does not have one row for each row of the inputs")
    return [{name: array[end - count : end] for name, array in outputs.items()} for end, count in zip(ends, rows, strict=True)]
