"""Successive halving in interleaved rounds, with candidates whose times are known."""

import pytest

from relu_deploy.errors import Unsupported
from relu_deploy.optimization.auto.candidates import Candidate
from relu_deploy.optimization.auto.race import Race

TIMES = {"a": 8.0, "b": 4.0, "c": 2.0, "d": 1.0, "e": 16.0}


class KnownSessions:
    """Sessions whose runs take `TIMES` milliseconds, twice as long in every second round, as on a machine that is busy then."""

    def __init__(self, broken=(), breaking=()):
        self.broken, self.breaking = broken, breaking
        self.order, self.freed = [], []

    def start(self, candidates):
        pass

    def load(self, candidate):
        if candidate.backend in self.broken:
            raise Unsupported("no such instruction")
        return TIMES[candidate.backend]

    def measure(self, candidate, seconds):
        if candidate.backend in self.breaking:
            raise Unsupported("its process ended with exit code -4")
        self.order.append(candidate.backend)
        busy = 2 if (len(self.order) - 1) // self.together % 2 else 1
        return [TIMES[candidate.backend] * busy] * 3

    def free(self, candidate):
        self.freed.append(candidate.backend)


def race_of(sessions, names="abcde"):
    race = Race(sessions, Candidate("a", "fp32"))
    race.add([Candidate(name, "fp32") for name in names])
    sessions.together = len(race.alive)
    return race


def names_of(candidates):
    return "".join(candidate.backend for candidate in candidates)


def test_the_slower_candidates_are_dropped_and_the_reference_stays():
    sessions = KnownSessions()
    race = race_of(sessions)
    race.run_level(4, lambda ranked: ranked[:2])
    assert names_of(race.ranked()) == "dca"
    assert sessions.freed == ["b", "e"]


def test_candidates_take_turns_in_an_order_that_rotates():
    sessions = KnownSessions()
    race_of(sessions, "abc").run_level(3, lambda ranked: ranked)
    assert sessions.order == list("abcbcacab")


def test_speeds_are_exact_ratios_although_the_machine_is_busy_in_every_second_round():
    race = race_of(KnownSessions())
    race.run_level(6, lambda ranked: ranked)
    ratio = race.speedup(Candidate("d", "fp32"))
    assert ratio.value == pytest.approx(8.0)
    assert ratio.ci95 == pytest.approx((8.0, 8.0))
    assert race.speedup(Candidate("e", "fp32")).value == pytest.approx(0.5)
    assert race.latency(Candidate("d", "fp32")).mean == pytest.approx(1.5)


def test_a_pause_of_the_machine_in_every_round_decides_nothing():
    sessions = KnownSessions()
    race = race_of(sessions, "abd")
    measure = sessions.measure
    pauses = {"b": 0.0, "d": 500.0}
    sessions.measure = lambda candidate, seconds: [*measure(candidate, seconds), TIMES["d"] + pauses.get(candidate.backend, 0.0)]
    race.run_level(3, lambda ranked: ranked)
    assert names_of(race.ranked()) == "dba"
    assert race.compare(Candidate("d", "fp32"), Candidate("b", "fp32")).value == pytest.approx(4.0)
    assert race.speedup(Candidate("d", "fp32")).value == pytest.approx(8.0)


def test_a_rematch_is_between_those_that_are_named_and_the_reference_and_loads_what_was_dropped():
    sessions = KnownSessions()
    race = race_of(sessions)
    race.run_level(2, lambda ranked: ranked[:2])
    assert names_of(race.alive) == "acd"
    sessions.order.clear()
    sessions.together = 3
    race.rematch([Candidate("b", "fp32"), Candidate("d", "fp32")], 2)
    assert sorted(sessions.order) == list("aabbdd")
    assert names_of(race.ranked()) == "da"
    assert race.compare(Candidate("d", "fp32"), Candidate("b", "fp32")).value == pytest.approx(4.0)
    assert [race.last_level[Candidate(name, "fp32")] for name in "abcde"] == [2, 2, 1, 2, 1]
    assert sessions.freed == ["b", "e", "c", "b"]


def test_a_level_goes_on_while_the_machine_hides_which_candidate_is_slower():
    sessions = KnownSessions()
    race = race_of(sessions, "abd")
    measure, turns = sessions.measure, []

    def paused_at_first(candidate, seconds):
        turns.append(candidate.backend)
        pause = 500.0 if candidate.backend == "d" and turns.count("d") <= 3 else 0.0
        return [milliseconds + pause for milliseconds in measure(candidate, seconds)]

    sessions.measure = paused_at_first
    race.run_level(3, lambda ranked: ranked[:1], seconds=60.0)
    assert names_of(race.ranked()) == "da"
    # Three of the rounds say the opposite. Fewer than 4 heads in 15 throws have a probability below 2.5%, in 14 they have not.
    assert turns.count("b") == turns.count("d") == 15


def test_candidates_that_are_slower_for_sure_are_not_timed_any_longer():
    sessions = KnownSessions()
    race = race_of(sessions)
    times = {**TIMES, "c": 1.0}
    sessions.measure = lambda candidate, seconds: sessions.order.append(candidate.backend) or [times[candidate.backend]]
    race.run_level(3, lambda ranked: ranked[:1], seconds=60.0)
    from relu_deploy.optimization.auto import race as module

    counts = {name: sessions.order.count(name) for name in "abcde"}
    # Two that are equally fast are never told apart, and the reference takes part in every round.
    assert counts == {"a": module.MOST_ROUNDS, "b": 6, "c": module.MOST_ROUNDS, "d": module.MOST_ROUNDS, "e": 6}
    assert race.speedup(Candidate("b", "fp32")).value == pytest.approx(2.0)


def test_a_candidate_keeps_the_times_of_its_last_level():
    race = race_of(KnownSessions())
    race.run_level(2, lambda ranked: ranked[:2])
    race.run_level(5, lambda ranked: ranked)
    rounds = {candidate.backend: len(timings) for candidate, timings in race.rounds.items()}
    assert rounds == {"a": 5, "b": 2, "c": 5, "d": 5, "e": 2}
    assert [race.last_level[Candidate(name, "fp32")] for name in "abc"] == [2, 1, 2]


def test_what_cannot_be_loaded_or_breaks_while_it_runs_is_left_out_with_its_reason():
    race = race_of(KnownSessions(broken="b", breaking="d"))
    race.run_level(3, lambda ranked: ranked)
    assert names_of(race.ranked()) == "cae"
    assert race.failures == {
        Candidate("b", "fp32"): "no such instruction",
        Candidate("d", "fp32"): "its process ended with exit code -4",
    }


def test_a_slot_is_long_enough_for_several_runs_and_never_longer_than_the_limit():
    slots = []
    sessions = KnownSessions()
    race = race_of(sessions, "ad")
    sessions.measure = lambda candidate, seconds: slots.append(seconds) or [1.0]
    race._expected[Candidate("a", "fp32")] = 10_000.0
    race.run_level(1, lambda ranked: ranked)
    from relu_deploy.optimization.auto import race as module

    assert slots == [module.LONGEST, max(module.SHORTEST, min(module.LONGEST, 0.006))]
