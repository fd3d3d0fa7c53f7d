"""The queue in front of a session, with a session that runs when it is told to."""

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_deploy.serving.batcher import Batcher, Limits
from relu_deploy.serving.errors import DeadlineExceeded, InternalError, InvalidArgument, Unavailable
from relu_deploy.serving.telemetry.statistics import Statistics


class Gated:
    """Doubles its rows once it is let to; `poison` rows make a run fail."""

    def __init__(self, opened=True):
        self.gate, self.ran, self.closed = threading.Event(), [], False
        if opened:
            self.gate.set()

    def run(self, feeds):
        self.gate.wait(10)
        x = feeds["x"]
        self.ran.append(x[:, 0].tolist())
        if (x == 666).any():
            raise RuntimeError("poison\nin line 2")
        return {"y": 2 * x}

    def close(self):
        self.closed = True


def rows(*values):
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


def play(scenario, session, limits=None, observe=None):
    """Run the coroutine `scenario(batcher)` and close the batcher behind it. Returns the scenario's result and the statistics."""
    statistics = Statistics()

    async def whole():
        batcher = Batcher("m", session, limits or Limits(), statistics, observe)
        try:
            return await scenario(batcher)
        finally:
            session.gate.set()
            await asyncio.to_thread(batcher.close)

    return asyncio.run(whole()), statistics


async def first_is_running(session, batcher):
    """Submit a request that keeps the session busy until its gate opens, and wait until it has been taken."""
    queued = batcher.submit(rows(0), 1)
    while batcher.waiting:
        await asyncio.sleep(0.001)
    return queued


def test_what_gathers_while_the_model_runs_is_the_next_batch():
    session = Gated(opened=False)

    async def scenario(batcher):
        requests = [await first_is_running(session, batcher), *(batcher.submit(rows(i), 1) for i in range(1, 6))]
        session.gate.set()
        return [(await queued.future)["y"].tolist() for queued in requests]

    answers, statistics = play(scenario, session, Limits(max_batch=4))
    assert answers == [[[2 * i]] for i in range(6)]
    assert session.ran == [[0], [1, 2, 3, 4], [5]]
    answer = statistics.to_json("m", "1")
    assert (answer["inference_count"], answer["execution_count"]) == (6, 3)
    assert [batch["batch_size"] for batch in answer["batch_stats"]] == [1, 4]
    assert session.closed


def test_alone_a_request_does_not_wait_unless_told_to():
    async def scenario(batcher):
        first, second = batcher.submit(rows(1), 1), None
        await asyncio.sleep(0.01)
        second = batcher.submit(rows(2), 1)
        await asyncio.gather(first.future, second.future)

    at_once, patient = Gated(), Gated()
    play(scenario, at_once, Limits(max_delay=0.0))
    assert at_once.ran == [[1], [2]]
    play(scenario, patient, Limits(max_delay=1.0, max_batch=2))
    assert patient.ran == [[1, 2]]


def test_a_request_is_never_split():
    session = Gated(opened=False)

    async def scenario(batcher):
        requests = [await first_is_running(session, batcher), batcher.submit(rows(1, 2, 3), 3), batcher.submit(rows(4, 5), 2)]
        session.gate.set()
        return [(await queued.future)["y"].ravel().tolist() for queued in requests]

    answers, statistics = play(scenario, session, Limits(max_batch=4))
    assert answers == [[0], [2, 4, 6], [8, 10]]
    assert session.ran == [[0], [1, 2, 3], [4, 5]]
    assert statistics.to_json("m", "1")["inference_count"] == 6


def test_beyond_the_queue_a_request_is_refused_at_once_with_when_to_come_back():
    session = Gated(opened=False)

    async def scenario(batcher):
        await first_is_running(session, batcher)
        kept = [batcher.submit(rows(i), 1) for i in range(3)]
        with pytest.raises(Unavailable, match="the queue is full: 3 requests wait") as refused:
            batcher.submit(rows(9), 1)
        assert refused.value.retry_after > 0
        session.gate.set()
        await asyncio.gather(*(queued.future for queued in kept))

    _, statistics = play(scenario, session, Limits(queue=3))
    assert statistics.failures == {"refused": 1}


def test_an_empty_input_that_the_backend_refuses_is_the_clients_mistake():
    class NeverEmpty(Gated):
        def run(self, feeds):
            if not feeds["x"].size:
                raise RuntimeError("cannot reshape")
            return super().run(feeds)

    async def scenario(batcher):
        with pytest.raises(InvalidArgument, match="'x' is empty, and the model does not accept that: cannot reshape"):
            await batcher.submit(rows(), 0).future
        return (await batcher.submit(rows(1), 1).future)["y"].item()

    assert play(scenario, NeverEmpty())[0] == 2


def test_outputs_without_a_row_for_each_request_are_run_one_by_one_and_never_cut():
    class Totals(Gated):
        def run(self, feeds):
            super().run(feeds)
            return {"y": np.arange(5, dtype=np.float32) + feeds["x"].sum()}

    session = Totals(opened=False)

    async def scenario(batcher):
        requests = [await first_is_running(session, batcher), batcher.submit(rows(1, 2), 2), batcher.submit(rows(4), 1)]
        session.gate.set()
        return [(await queued.future)["y"].tolist() for queued in requests]

    answers, statistics = play(scenario, session)
    assert answers == [[total + step for step in range(5)] for total in (0, 3, 4)]
    assert statistics.failures == {}


def test_a_request_that_fails_does_not_harm_those_it_ran_with():
    session = Gated(opened=False)

    async def scenario(batcher):
        await first_is_running(session, batcher)
        requests = [batcher.submit(rows(value), 1) for value in (1, 666, 3)]
        session.gate.set()
        return await asyncio.gather(*(queued.future for queued in requests), return_exceptions=True)

    (one, poisoned, three), statistics = play(scenario, session)
    assert (one["y"].item(), three["y"].item()) == (2, 6)
    assert isinstance(poisoned, InternalError)
    assert poisoned.text == "the backend failed: RuntimeError: poison in line 2"
    assert statistics.failures == {"failed": 1}


def test_who_has_gone_or_is_too_late_is_not_run():
    session = Gated(opened=False)

    async def scenario(batcher):
        await first_is_running(session, batcher)
        gone, late, fine = (batcher.submit(rows(1), 1), batcher.submit(rows(2), 1, deadline=0.0), batcher.submit(rows(3), 1))
        gone.future.cancel()
        session.gate.set()
        assert (await fine.future)["y"].item() == 6
        with pytest.raises(DeadlineExceeded, match="in the queue"):
            await late.future

    _, statistics = play(scenario, session)
    assert session.ran == [[0], [3]]
    assert statistics.failures == {"cancelled": 1, "late": 1}


def test_closing_answers_what_was_taken_and_takes_no_more():
    session = Gated(opened=False)

    async def scenario(batcher):
        requests = [await first_is_running(session, batcher), *(batcher.submit(rows(i), 1) for i in range(1, 20))]
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match="unloaded"):
            batcher.submit(rows(99), 1)
        session.gate.set()
        answers = [(await queued.future)["y"].item() for queued in requests]
        await closing
        return answers

    answers, _ = play(scenario, session)
    assert answers == [2 * i for i in range(20)]


def test_rows_of_other_sizes_are_not_put_together():
    class Wide(Gated):
        def run(self, feeds):
            self.gate.wait(10)
            self.ran.append(feeds["x"].shape)
            return {"y": feeds["x"]}

    session = Wide(opened=False)

    async def scenario(batcher):
        await first_is_running(session, batcher)
        wide = [batcher.submit({"x": np.zeros((1, width), np.float32)}, 1) for width in (2, 2, 3)]
        session.gate.set()
        await asyncio.gather(*(queued.future for queued in wide))

    play(scenario, session)
    assert session.ran == [(1, 1), (2, 2), (1, 3)]


def test_whoever_watches_sees_each_batch_with_its_real_rows():
    seen = []

    async def scenario(batcher):
        await batcher.submit(rows(1, 2, 3), 3).future

    play(
        scenario,
        Gated(),
        observe=lambda feeds, outputs, count: seen.append((len(feeds["x"]), len(outputs["y"]), count)),
    )
    assert seen == [(3, 3, 3)]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(5, 9))
def test_every_request_gets_its_own_rows_back(counts, most):
    async def scenario(batcher):
        number, requests = 0, []
        for count in counts:
            requests.append((batcher.submit(rows(*range(number, number + count)), count), number, count))
            number += count
        for queued, start, count in requests:
            assert (await queued.future)["y"].ravel().tolist() == [2 * i for i in range(start, start + count)]

    session = Gated()
    play(scenario, session, Limits(max_batch=most))
    assert max(map(len, session.ran)) <= most
