"""The Relu monitor: whether the Relus fire on the clients' data as they did on the census.

A share of the rows is run again, on a second session that returns every Relu's output, and compared with the census's baseline
(`activations/drift.py` has the statistic and the meaning of its alarm). Serving is not affected: the second session runs the
graph of the census in a low-priority thread with a short queue, and a sample that finds the queue full is dropped. The last
`WINDOW` samples are one test; a client that sends one picture over and over counts as drift, too.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from relu_deploy.activations.drift import LEAST_ROWS, Baseline, p_value, rank_sum, rates_of, threshold_of
from relu_deploy.backends import Session, load
from relu_deploy.bundle import Bundle, sha256
from relu_deploy.errors import InputError, ReluDeployError
from relu_deploy.graph import Relu, find_relus, read_model
from relu_deploy.tensors import Array, Feeds, count_rows, row_axes

__all__ = ["DEFAULT_SHARE", "Monitor", "MonitorFactory"]

#: default share of the rows that are checked, where there is a baseline
DEFAULT_SHARE = 0.01
#: samples of one test, and how many there must be before there is one
WINDOW, LEAST = 64, 16
#: share of windows that raise the alarm, and of samples that count as unusual, without drift
FALSE_ALARMS, UNUSUAL = 0.001, 0.01
#: samples, and bytes of them, that may wait; samples of one run
QUEUE, QUEUE_BYTES, TOGETHER = 64, 1 << 26, 8
#: nice(2) value of the thread
NICE = 10

log = logging.getLogger("relu_deploy.serve")


@dataclass
class _Counts:
    """The samples so far. For one thread at a time."""

    samples: int = 0
    dropped: int = 0
    failed: int = 0
    unusual: int = 0
    alarms: int = 0
    alarm: bool = False
    score: float | None = None


class Monitor:
    """Monitors one loaded model. Called in its batch thread; everything slow happens in a thread of its own.

    Attributes:
        off: Why it is off, "" while it is on.
        hint: What to do about that.
    """

    def __init__(self, bundle: Bundle, share: float, *, seed: int | None = None) -> None:
        self.name = f"{bundle.name}-{bundle.variant}" if bundle.variant else bundle.name
        self.share, self.off, self.hint = share, "", ""
        self._bundle, self._random = bundle, np.random.default_rng(seed)
        first = bundle.inputs[0].batch if bundle.inputs else None
        # Rows of one batch can be sampled one by one.
        self._by_row = isinstance(first, str) and all(spec.batch == first and spec.batch_axis == 0 for spec in bundle.inputs)
        self._skip = self._gap()
        self._queue: queue.Queue[Feeds | None] = queue.Queue()
        self._lock = threading.Lock()
        self._counts = _Counts()
        self._baseline: Baseline | None = None
        self._scores = np.zeros(0)
        self._distances: deque[Array] = deque(maxlen=WINDOW)
        self._rates: deque[Array] = deque(maxlen=WINDOW)
        self._excursions: list[int] = []
        self._ready = threading.Event()
        self._unbatched: Feeds | None = None
        self._thread = threading.Thread(target=self._work, name=f"relu-deploy monitor {self.name}", daemon=True)
        self._thread.start()

    def __call__(self, feeds: Feeds, outputs: Feeds, rows: int, /) -> None:  # noqa: ARG002  # the interface of OutputObserver
        units = rows if self._by_row else 1
        if self._skip >= units:
            self._skip -= units
            return
        while self._skip < units:
            row = slice(self._skip, self._skip + 1) if self._by_row else slice(None)
            self._offer({name: array[row] for name, array in feeds.items()})
            self._skip += 1 + self._gap()
        self._skip -= units

    def wait(self, seconds: float | None = None) -> bool:
        """Return whether loading has ended: the monitor is on, or `off` has the reason. Blocks until then."""
        return self._ready.wait(seconds)

    def settle(self, seconds: float | None = None) -> bool:
        """Return whether every accepted sample has been checked. Blocks until then."""
        with self._queue.all_tasks_done:
            return self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, seconds)

    def close(self) -> None:
        """End the thread and the session; waiting samples are dropped. Blocks."""
        self.off = self.off or "the model was unloaded"
        self._empty()
        self._queue.put(None)
        self._thread.join()

    def to_json(self) -> dict[str, Any]:
        """Return the state, as at /v2/models/NAME/monitor."""
        if self._baseline is None or self.off:
            reason = self.off or "it is being loaded"
            return {"model": self.name, "on": False, "reason": reason, "hint": self.hint, "share": self.share}
        with self._lock:
            counts, excursions = replace(self._counts), list(self._excursions)
            distances = np.array(self._distances).reshape(len(self._distances), len(self._baseline.relus))
            rates = np.array(self._rates).reshape(distances.shape)
        baseline, enough = self._baseline, len(distances) >= LEAST
        return {
            "model": self.name,
            "on": True,
            "share": self.share,
            "samples": counts.samples,
            "dropped": counts.dropped,
            "failed": counts.failed,
            "unusual": counts.unusual,
            "unusual_expected": UNUSUAL,
            "window": {"samples": len(distances), "least": LEAST, "most": WINDOW},
            "drift": {
                "score": counts.score,
                "threshold": threshold_of(FALSE_ALARMS),
                "false_alarm_rate": FALSE_ALARMS,
                "alarm": counts.alarm,
                "alarms": counts.alarms,
            },
            "census": baseline.to_json(),
            "relus": [
                {
                    "node": relu.node,
                    "firing_rate": float(rates[:, at].mean()) if len(rates) else None,
                    "sparsity": 1 - float(rates[:, at].mean()) if len(rates) else None,
                    "census_sparsity": 1 - float(relu.mean.mean()),
                    "drift_score": rank_sum(distances[:, at], np.sort(baseline.held_out[:, at])) if enough else None,
                    "excursions": excursions[at],
                    "excursions_expected": 0.0 if relu.upper is not None else counts.samples / (baseline.samples + 1),
                }
                for at, relu in enumerate(baseline.relus)
            ],
        }

    def _gap(self) -> int:
        """Return how many rows to skip: the gap between two rows that are sampled independently with probability `share`."""
        return int(self._random.geometric(self.share)) - 1

    def _offer(self, sample: Feeds) -> None:
        size = sum(array.nbytes for array in sample.values())
        if self.off:
            return
        if self._queue.qsize() >= min(QUEUE, max(1, QUEUE_BYTES // max(1, size))):
            with self._lock:
                self._counts.dropped += 1
            return
        # A copy: a view would keep the whole batch alive.
        self._queue.put({name: array.copy() for name, array in sample.items()})

    # ------------------------------------------------------------ in its own thread

    def _work(self) -> None:
        if sys.platform.startswith("linux"):
            # Linux has a priority for each thread, and others for processes only.
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            baseline, relus, session = _prepare(self._bundle)
        except Exception as error:
            reason = error.message if isinstance(error, ReluDeployError) else f"its session failed: {type(error).__name__}"
            self.hint = error.hint if isinstance(error, ReluDeployError) else ""
            self.off = self.off or reason
            log.info("%s: the Relu monitor is off: %s", self.name, self.off)
            self._empty()
            self._ready.set()
            return
        self._excursions, self._scores, self._baseline = [0] * len(baseline.relus), baseline.scores, baseline
        self._ready.set()
        try:
            while batch := self._next():
                joined = batch[0] if len(batch) == 1 else {name: np.concatenate([f[name] for f in batch]) for name in batch[0]}
                self._check(session, baseline, relus, joined)
                for _ in batch:
                    self._queue.task_done()
        finally:
            session.close()

    def _next(self) -> list[Feeds]:
        """Return waiting samples that can be one batch, [] at the end. Blocks."""
        first = self._unbatched or self._queue.get()
        self._unbatched = None
        batch = [first] if first is not None else []
        with suppress(queue.Empty):
            while batch and self._by_row and len(batch) < TOGETHER:
                following = self._queue.get_nowait()
                if following is None:
                    self._queue.put(None)
                    break
                if any(following[name].shape != array.shape for name, array in batch[0].items()):
                    self._unbatched = following
                    break
                batch.append(following)
        return batch

    def _empty(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
                self._queue.task_done()

    def _check(self, session: Session, baseline: Baseline, relus: Sequence[Relu], feeds: Feeds) -> None:
        rows = count_rows(feeds, row_axes(session.inputs))
        try:
            results = session.run(feeds)
            values = [results[relu.output] for relu in relus]
            rates = [rates_of(each) for each in values]
            distances = baseline.log_distances(rates)
            exceeded = [
                relu.exceeded(each.reshape(len(each), -1).max(axis=1)) for relu, each in zip(baseline.relus, values, strict=True)
            ]
        except Exception as error:
            with self._lock:
                self._counts.failed += rows
                first = self._counts.failed == rows
            if first:
                log.warning("%s: the Relu monitor could not run a sample: %s", self.name, " ".join(str(error).split())[:300])
            return
        with self._lock:
            self._distances.extend(distances)
            self._rates.extend(np.stack([each.mean(axis=1) for each in rates], axis=1))
            for at, each in enumerate(exceeded):
                self._excursions[at] += int(each.sum())
            self._counts.samples += rows
            self._counts.unusual += int((p_value(distances.mean(axis=1), self._scores) <= UNUSUAL).sum())
            self._update_alarm()

    def _update_alarm(self) -> None:
        if len(self._distances) < LEAST:
            return
        counts, was = self._counts, self._counts.alarm
        counts.score = rank_sum(np.array(self._distances).mean(axis=1), self._scores)
        counts.alarm = counts.score > threshold_of(FALSE_ALARMS)
        if counts.alarm and not was:
            counts.alarms += 1
            log.warning(
                "%s: drift: the Relus fire differently on the last %d samples than on the census (%.1f)",
                self.name,
                len(self._distances),
                counts.score,
            )
        elif was and not counts.alarm:
            log.info("%s: drift has ended", self.name)


def _prepare(bundle: Bundle) -> tuple[Baseline, list[Relu], Session]:
    """Return the baseline of `bundle`'s census, its Relus, and a session that returns them.

    Raises:
        InputError: If there is no baseline, or the bundle no longer has the graph of the census.
        ReluDeployError: If the session cannot be loaded.
    """
    if not bundle.is_folder:
        hint = f"relu-deploy export {bundle.path} -o NAME.rdb, and then relu-deploy census NAME.rdb --data D"
        raise InputError(f"{bundle.path} is not a bundle, so it has no census to compare with", hint)
    hint = f"relu-deploy census {bundle.path} --data D, where D is normal data of at least {LEAST_ROWS} rows"
    if not bundle.has_file("reports/baseline.npz"):
        exists = bundle.has_file("reports/census.json")
        reason = "has a census without a baseline to compare with" if exists else "has no census to compare with"
        raise InputError(f"{bundle.path} {reason}", hint)
    baseline = Baseline.read(bundle.file("reports/baseline.npz"))
    graphs = [bundle, Bundle(bundle.path, bundle.manifest)]
    counted = next((each for each in graphs if sha256(each.onnx) == baseline.graph), None)
    if counted is None:
        raise InputError(f"the census in {bundle.path} was made of another graph than the served one", hint)
    known = {relu.output: relu for relu in find_relus(read_model(counted.onnx))}
    relus = [known[relu.output] for relu in baseline.relus]
    session = load(counted, baseline.backend, taps=tuple(relus), threads=1)
    return baseline, relus, session


class MonitorFactory:
    """Makes the monitors of a server, for `Models`."""

    def __init__(self, share: float | None) -> None:
        """share: of the rows that are checked; None for the default where there is a baseline, 0 for no monitors."""
        self._share = share

    def __call__(self, bundle: Bundle) -> Monitor | None:
        if self._share == 0:
            return None
        return Monitor(bundle, DEFAULT_SHARE if self._share is None else self._share)

    def require(self, monitor: object) -> None:
        """Raise InputError if a share was given and `monitor` is off. Blocks until that is known."""
        if not self._share or not isinstance(monitor, Monitor):
            return
        monitor.wait()
        if monitor.off:
            raise InputError(
                f"--monitor-share {self._share:g}: {monitor.off}", "relu-deploy census PATH --data D makes the baseline"
            )
