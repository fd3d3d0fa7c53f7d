"""Successive halving of candidates, measured in interleaved rounds.

In each level all remaining candidates are timed in turn, in an order that rotates from round to round, so that a busy neighbor or a
lower clock affects all of them alike. The slower part of a level is dropped, and the remaining ones are timed longer in the next
(Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016).

What is compared are the medians of rounds: a level is short, and one pause of the machine would decide it by the mean. Times of
different levels are not compared directly, because the machine may have been another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from relu_deploy.errors import ReluDeployError
from relu_deploy.latency_stats import Latency, Ratio, ratio_of, summarize
from relu_deploy.optimization.auto.candidates import Candidate

__all__ = ["Race", "Sessions"]

#: runs in one slot of a round
SLOT_RUNS = 6
#: shortest and longest slot, in seconds
SHORTEST, LONGEST = 0.03, 0.4


class Sessions(Protocol):
    """Loads and times candidates; see `sessions.CandidateSessions`."""

    def start(self, candidates: Sequence[Candidate]) -> None: ...

    def load(self, candidate: Candidate) -> float: ...

    def measure(self, candidate: Candidate, seconds: float) -> list[float]: ...

    def free(self, candidate: Candidate) -> None: ...


@dataclass
class Race:
    """The candidates that remain, and what was measured.

    Attributes:
        sessions: Loads and times candidates.
        reference: The candidate that every speed is relative to. It takes part in every level.
        progress: Called with one line for each step.
        alive: The candidates that remain, in the order in which they were loaded.
        rounds: The milliseconds of each candidate in the last level in which it took part.
        reference_rounds: Those of the reference in the same rounds.
        failures: The reason for each candidate that could not be loaded or run.
        level: Levels so far.
        last_level: The level in which each candidate was last timed.
    """

    sessions: Sessions
    reference: Candidate
    progress: Callable[[str], None] = lambda _: None
    alive: list[Candidate] = field(default_factory=list)
    rounds: dict[Candidate, list[list[float]]] = field(default_factory=dict)
    reference_rounds: dict[Candidate, list[list[float]]] = field(default_factory=dict)
    failures: dict[Candidate, str] = field(default_factory=dict)
    level: int = 0
    last_level: dict[Candidate, int] = field(default_factory=dict)
    _expected: dict[Candidate, float] = field(default_factory=dict)

    def add(self, candidates: Sequence[Candidate]) -> None:
        """Load candidates. Those that fail are added to `failures`."""
        self.sessions.start(candidates)
        for candidate in candidates:
            self.progress(f"loading {candidate}")
            try:
                self._expected[candidate] = self.sessions.load(candidate)
            except ReluDeployError as error:
                self._fail(candidate, error)
            else:
                self.alive.append(candidate)

    def run_level(self, rounds: int, keep: Callable[[Sequence[Candidate]], Sequence[Candidate]]) -> None:
        """Time all remaining candidates in `rounds` rounds and keep some of them, and the reference.

        Args:
            rounds: Number of rounds.
            keep: Function from the candidates, the fastest first, to those that remain.
        """
        self.level += 1
        timings: dict[Candidate, list[list[float]]] = {candidate: [] for candidate in self.alive}
        for turn in range(rounds):
            self.progress(f"level {self.level}: round {turn + 1} of {rounds}, {len(timings)} candidates")
            order = list(timings)
            shift = turn % max(1, len(order))
            for candidate in (*order[shift:], *order[:shift]):
                try:
                    timings[candidate].append(self.sessions.measure(candidate, self._slot(candidate)))
                except ReluDeployError as error:
                    del timings[candidate]
                    self._fail(candidate, error)
        for candidate, measured in timings.items():
            self.rounds[candidate], self.last_level[candidate] = measured, self.level
            self.reference_rounds[candidate] = timings.get(self.reference, [])
        kept = keep(self.ranked())
        for candidate in [one for one in self.alive if one not in kept and one != self.reference]:
            self.alive.remove(candidate)
            self.sessions.free(candidate)

    def rematch(self, candidates: Sequence[Candidate], rounds: int) -> None:
        """Time `candidates` and the reference once more, in a level of their own. Those that were dropped are loaded again."""
        for candidate in [one for one in self.alive if one not in candidates and one != self.reference]:
            self.alive.remove(candidate)
            self.sessions.free(candidate)
        self.add([one for one in candidates if one not in self.alive])
        self.run_level(rounds, lambda ranked: ranked)

    def milliseconds(self, candidate: Candidate) -> float:
        """Return the typical time of a run: the median over the rounds of their medians."""
        return median(median(one) for one in self.rounds[candidate])

    def ranked(self) -> list[Candidate]:
        """Return the remaining candidates, the fastest first."""
        return sorted((one for one in self.alive if one in self.rounds), key=self.milliseconds)

    def latency(self, candidate: Candidate) -> Latency | None:
        """Return the summary of a candidate's runs in its last level, None if it was not timed."""
        return summarize(self.rounds[candidate]) if self.rounds.get(candidate) else None

    def speedup(self, candidate: Candidate) -> Ratio | None:
        """Return how many times faster a candidate is than the reference in its last level, None if either was not timed."""
        reference = self.reference_rounds.get(candidate)
        if not reference or not self.rounds.get(candidate):
            return None
        return ratio_of(_medians(self.rounds[candidate]), _medians(reference))

    def compare(self, one: Candidate, other: Candidate) -> Ratio:
        """Return how many times faster `one` is than `other`. Both were last timed in the same level."""
        return ratio_of(_medians(self.rounds[one]), _medians(self.rounds[other]))

    def _slot(self, candidate: Candidate) -> float:
        return min(LONGEST, max(SHORTEST, SLOT_RUNS * self._expected[candidate] / 1e3))

    def _fail(self, candidate: Candidate, error: ReluDeployError) -> None:
        self.failures[candidate] = error.message
        if candidate in self.alive:
            self.alive.remove(candidate)
        self.sessions.free(candidate)


def _medians(rounds: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[median(one)] for one in rounds]
