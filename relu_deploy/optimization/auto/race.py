"""Successive halving of candidates, measured in interleaved rounds.

In each level all remaining candidates are timed in turn, in an order that rotates from round to round, so that a busy neighbor or a
lower clock affects all of them alike. The slower part of a level is dropped, and the remaining ones are timed longer in the next
(Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016).

What is compared are medians: a level is short, and one pause of the machine would decide it by the mean. On a machine that pauses
often a few rounds decide nothing, so a level goes on for some seconds until what it drops is slower with 95% confidence, and what is
slower for sure is dropped as soon as it is (Even-Dar, Mannor and Mansour, "Action Elimination and Stopping Conditions", 2006). Times
of different levels are not compared directly, because the machine may have been another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

from relu_deploy.errors import ReluDeployError
from relu_deploy.latency_stats import Latency, Ratio, median_ratio_of, summarize
from relu_deploy.optimization.auto.candidates import Candidate

__all__ = ["Race", "Sessions"]

#: runs in one slot of a round
SLOT_RUNS = 6
#: shortest and longest slot, in seconds
SHORTEST, LONGEST = 0.03, 0.4
#: rounds after which a level ends in any case
MOST_ROUNDS = 60


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

    def run_level(self, rounds: int, keep: Callable[[Sequence[Candidate]], Sequence[Candidate]], seconds: float = 0.0) -> None:
        """Time all remaining candidates in turn and keep some of them, and the reference.

        Args:
            rounds: Number of rounds, at least.
            keep: Function from the candidates, the fastest first, to those that remain.
            seconds: Further rounds follow for so long, until those that do not remain are slower than the fastest for sure.
        """
        self.level += 1
        started, turn = time.perf_counter(), 0
        for candidate in self.alive:
            self.rounds[candidate], self.reference_rounds[candidate] = [], []
            self.last_level[candidate] = self.level
        while turn < rounds or (
            turn < MOST_ROUNDS
            and time.perf_counter() - started < seconds
            and not all(map(self._is_surely_slower, self._outside(keep)))
        ):
            more = "" if turn < rounds else ", because the slowest are not slower for sure"
            self.progress(f"level {self.level}: round {turn + 1}, {len(self.alive)} candidates{more}")
            self._run_round(turn)
            turn += 1
            if seconds:
                self._drop([one for one in self._outside(keep) if self._is_surely_slower(one)])
        self._drop(self._outside(keep))

    def _run_round(self, turn: int) -> None:
        """Time the remaining candidates once, beginning with another one in each turn."""
        shift = turn % max(1, len(self.alive))
        for candidate in (*self.alive[shift:], *self.alive[:shift]):
            try:
                self.rounds[candidate].append(self.sessions.measure(candidate, self._slot(candidate)))
            except ReluDeployError as error:
                del self.rounds[candidate]
                self._fail(candidate, error)
        for candidate in self.alive:
            self.reference_rounds[candidate] = list(self.rounds.get(self.reference, []))

    def _outside(self, keep: Callable[[Sequence[Candidate]], Sequence[Candidate]]) -> list[Candidate]:
        """Return the candidates that would be dropped now."""
        kept = keep(self.ranked())
        return [one for one in self.alive if one not in kept and one != self.reference]

    def _is_surely_slower(self, candidate: Candidate) -> bool:
        ratio = self.compare(candidate, self.ranked()[0])
        return ratio.ci95 is not None and ratio.ci95[1] < 1

    def _drop(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            self.alive.remove(candidate)
            self.sessions.free(candidate)

    def rematch(self, candidates: Sequence[Candidate], rounds: int, seconds: float = 0.0) -> None:
        """Time `candidates` and the reference once more, in a level of their own. Those that were dropped are loaded again.

        Args:
            candidates: Who takes part.
            rounds: Number of rounds, at least.
            seconds: Further rounds follow for so long, until all others are slower than the fastest for sure.
        """
        self._drop(self._outside(lambda _: candidates))
        self.add([one for one in candidates if one not in self.alive])
        self.run_level(rounds, lambda ranked: ranked[:1], seconds)

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
        return median_ratio_of(self.rounds[candidate], reference[: len(self.rounds[candidate])])

    def compare(self, one: Candidate, other: Candidate) -> Ratio:
        """Return how many times faster `one` is than `other` in their common rounds. Both were last timed in the same level."""
        common = min(len(self.rounds[one]), len(self.rounds[other]))
        return median_ratio_of(self.rounds[one][:common], self.rounds[other][:common])

    def _slot(self, candidate: Candidate) -> float:
        return min(LONGEST, max(SHORTEST, SLOT_RUNS * self._expected[candidate] / 1e3))

    def _fail(self, candidate: Candidate, error: ReluDeployError) -> None:
        self.failures[candidate] = error.message
        if candidate in self.alive:
            self.alive.remove(candidate)
        self.sessions.free(candidate)
