"""Finds the fastest variant that passes, over backends, precisions and settings.

    every backend × precision ─► race ─► settings of the fastest ─► race ─► finalists ─► accuracy, every Relu ─► final of those that pass

The finalists are the fastest candidates and the fastest of each precision, so that the report compares the precisions in the same
rounds. Where no finalist passes, or one that was dropped may be faster than all that pass, the other candidates are checked in the
order of their speed. The fastest that pass are then timed once more, because times of different levels do not compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.backends.threads import default_threads
from relu_deploy.data.arrays import save_npz
from relu_deploy.errors import ReluDeployError
from relu_deploy.graph import save_model
from relu_deploy.optimization.auto.candidates import (
    AUTOCAST,
    PLACED,
    Candidate,
    base_candidates,
    find_backends,
    graph_name,
    placements,
    tuned,
)
from relu_deploy.optimization.auto.check import Checker
from relu_deploy.optimization.auto.race import Race
from relu_deploy.optimization.auto.report import OUTCOMES, AutoReport, CandidateReport, Check
from relu_deploy.optimization.auto.sessions import CandidateSessions
from relu_deploy.optimization.build import FoundVariant, VariantBuilder
from relu_deploy.optimization.report import OptimizeReport
from relu_deploy.storage.folders import temporary_folder

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["find_fastest"]

Progress = Callable[[str], None]

#: candidates that are kept: of the default settings, and of all settings
KEPT, FINALISTS = 3, 3
#: fewest rounds of a level, and of the last one, and the seconds that a level may last for what it drops to be slower for sure
ROUNDS, LAST_ROUNDS, LEVEL_SECONDS = 3, 6, 12.0
#: default settings are taken where others are faster by less, or not for sure
MARGIN = 0.01
#: dropped candidates are checked that seemed faster than all that pass by more than this share
LEAD = 0.03
#: the final: fewest rounds, seconds, candidates, and the share by which these may seem slower than the fastest
FINAL_ROUNDS, FINAL_SECONDS, CONTENDERS, CLOSE = 12, 20.0, 4, 0.15
#: inputs that the timed runs rotate through
ROTATION = 4
#: the graph of the model before it was prepared
ORIGINAL = "original"


def find_fastest(builder: VariantBuilder, precisions: Sequence[str], progress: Progress) -> OptimizeReport:
    """Return the report on the fastest variant that passes, not stored yet.

    Args:
        builder: The model, its data and its gate.
        precisions: Precisions of the target, as options.
        progress: Called with one line for each step.

    Returns:
        The report. If nothing passes, it is that on the fastest candidate, with `passed` false.
    """
    rows = builder.data.rows_of(builder.options)
    backends, unusable = find_backends(builder.target.name)
    found, unbuilt = _find_variants(builder, precisions, placements(backends), progress)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder("auto"))
        models = _models(builder, found)
        graphs = _save(models, folder, "")
        evaluator = builder.evaluator
        measured = graphs
        if evaluator.compared.names:
            measured = _save({name: evaluator.exposed(model) for name, model in models.items()}, folder, "-measured")
        options = builder.options
        fixed = {"threads": options.threads} if options.threads else {}
        threads = options.threads or default_threads()
        sessions = stack.enter_context(closing(CandidateSessions(graphs, _save_feeds(builder, rows, folder), threads, fixed)))
        reference = Candidate(builder.target.backend, ORIGINAL if ORIGINAL in graphs else "fp32")
        race = Race(sessions, reference, progress)
        _run_race(race, [one for one in base_candidates(backends, precisions) if one.graph in found], fixed)
        search = _Search(builder, race, Checker(builder, graphs, measured, fixed), fixed, progress)
        search.check_finalists()
        return _report(search, found, unbuilt, AutoReport(options.minimize, rows, threads, (), unusable))


@dataclass(frozen=True)
class _Unbuilt:
    """A graph that could not be made, or that misses the gate.

    Attributes:
        backend: The backend that it is for; "" for all.
        precision: Its precision, as an option.
        reason: Why there is none.
        variant: The one that misses the gate.
    """

    backend: str
    precision: str
    reason: str
    variant: FoundVariant | None = None


def _find_variants(
    builder: VariantBuilder, precisions: Sequence[str], others: Mapping[str, str], progress: Progress
) -> tuple[dict[str, FoundVariant], list[_Unbuilt]]:
    """Return the variants that have graphs of their own by `Candidate.graph`, and those that cannot be made or do not pass.

    others: rules of placement of some backends; see `placements`.
    """
    found: dict[str, FoundVariant] = {}
    unbuilt: list[_Unbuilt] = []

    def add(variant: FoundVariant, placement: str) -> None:
        if variant.search.passed:
            found[graph_name(variant.precision, placement)] = variant
            return
        before, after = builder.evaluator.before, variant.search.metric
        lost = f"it loses {before.value - after.value:.4g} {after.name} on {after.samples} rows, {builder.max_drop:g} is allowed"
        unbuilt.append(_Unbuilt(others.get(placement, ""), variant.precision, lost, variant))

    for precision in precisions:
        if precision in AUTOCAST:
            continue
        try:
            variant = builder.find(precision, progress)
        except ReluDeployError as error:
            unbuilt.append(_Unbuilt("", precision, error.message))
            continue
        add(variant, "")
        for placement in others if precision == PLACED else ():
            if (placed := builder.find_placed(variant, placement, progress)) is not None:
                add(placed, placement)
            elif variant.search.passed:
                found[graph_name(precision, placement)] = variant
    return found, unbuilt


def _models(builder: VariantBuilder, found: Mapping[str, FoundVariant]) -> dict[str, ir.Model]:
    """Return the graphs, by precision; `ORIGINAL` is the model where another graph was prepared from it."""
    models = {precision: variant.search.model for precision, variant in found.items()}
    models.setdefault("fp32", builder.prepared.model)
    if builder.prepared.is_another:
        models[ORIGINAL] = builder.prepared.original
    return models


def _save(models: Mapping[str, ir.Model], folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of the graphs, by precision. suffix: Of the names of the files."""
    paths = {precision: folder / f"{precision}{suffix}.onnx" for precision in models}
    for precision, model in models.items():
        save_model(model, paths[precision])
    return paths


def _save_feeds(builder: VariantBuilder, rows: int, folder: Path) -> list[Path]:
    files = []
    for index, feeds in enumerate(builder.data.batches_of(rows, ROTATION)):
        files.append(folder / f"feeds-{index}.npz")
        save_npz(files[-1], feeds)
    return files


def _run_race(race: Race, candidates: Sequence[Candidate], fixed: Mapping[str, Any]) -> None:
    race.add([race.reference, *(one for one in candidates if one != race.reference)])
    race.run_level(ROUNDS, _best(KEPT), LEVEL_SECONDS)
    fastest = [one for one in race.ranked() if one.precision != ORIGINAL]
    race.add([each for one in fastest[:KEPT] for each in tuned(one, fixed)])
    while len(race.alive) > FINALISTS + len({one.precision for one in race.alive}):
        race.run_level(ROUNDS, _best(max(FINALISTS, len(race.alive) // 2)), LEVEL_SECONDS)
    race.run_level(LAST_ROUNDS, lambda ranked: ranked)


def _best(count: int) -> Callable[[Sequence[Candidate]], Sequence[Candidate]]:
    """Return a function that keeps the fastest `count` and the fastest of each precision of ranked candidates."""

    def kept(ranked: Sequence[Candidate]) -> Sequence[Candidate]:
        firsts = {one.precision: one for one in reversed(ranked)}
        return [one for place, one in enumerate(ranked) if place < count or firsts[one.precision] == one]

    return kept


@dataclass
class _Search:
    """The checks of candidates, the fastest first."""

    builder: VariantBuilder
    race: Race
    checker: Checker
    fixed: Mapping[str, Any]
    progress: Progress
    checks: dict[Candidate, Check] = field(default_factory=dict)
    failures: dict[Candidate, str] = field(default_factory=dict)
    _checked: set[Candidate] = field(default_factory=set)

    def check_finalists(self) -> None:
        """Check every finalist, and the others in the order of their speed until none is left that may be faster than the chosen."""
        finalists = self._eligible(self.race.ranked())
        for candidate in finalists:
            self._check(candidate)
        eliminated = sorted(
            set(self.race.rounds) - set(finalists), key=lambda one: (-self.race.last_level[one], self.race.milliseconds(one))
        )
        for candidate in self._eligible(eliminated):
            fastest = max(map(self._speed, self._passing()), default=None)
            if fastest is None or self._speed(candidate) > fastest * (1 + LEAD):
                self._check(candidate)
        self._run_final()
        # Another candidate's verdict may have been taken over.
        while (chosen := self.chosen()) is not None and chosen not in self._checked:
            self._checked.add(chosen)
            self.checks[chosen] = self.checker.check(chosen)

    def chosen(self) -> Candidate | None:
        """Return the fastest candidate of the last level that passes and is not slower than float32; None if there is none.

        Default settings are preferred to others that are not faster for sure.
        """
        first = min(self._passing(), key=self._order, default=None)
        if first is None or first.base == first or first.base not in self._passing():
            return first
        if self.race.last_level[first.base] != self.race.last_level[first]:
            return first
        lead = self.race.compare(first, first.base)
        surely = lead.ci95 is None or lead.ci95[0] > 1
        return first if surely and lead.value > 1 + MARGIN else first.base

    def _passing(self) -> list[Candidate]:
        return [one for one, check in self.checks.items() if check.passed and not self.is_slower(one)]

    def _run_final(self) -> None:
        """Time the fastest candidates that pass together, and the default settings of the fastest."""
        passing = sorted(self._passing(), key=self._speed, reverse=True)
        if not passing:
            return
        base = passing[0].base
        if base not in self.checks and base in self.race.rounds:
            self._check(base)
        close = [one for one in passing if self._speed(one) >= self._speed(passing[0]) * (1 - CLOSE)][:CONTENDERS]
        if base in self._passing() and base not in close:
            close.append(base)
        # One that was dropped earlier is timed with those of the last level before it is chosen.
        if len(close) > 1 or self.race.last_level[passing[0]] < self.race.level:
            self.race.rematch(close, FINAL_ROUNDS, FINAL_SECONDS)

    def is_slower(self, candidate: Candidate) -> bool:
        """Return whether a candidate of another precision is slower than float32."""
        return candidate.precision != "fp32" and self._speed(candidate) < 1

    def _order(self, candidate: Candidate) -> tuple[int, float]:
        return -self.race.last_level[candidate], -self._speed(candidate)

    def _speed(self, candidate: Candidate) -> float:
        ratio = self.race.speedup(candidate)
        return ratio.value if ratio is not None else 1.0

    def _eligible(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        return [one for one in candidates if one.precision != ORIGINAL]

    def _check(self, candidate: Candidate) -> None:
        twin = next((one for one in self._checked if _same_kernels(one, candidate)), None)
        if twin is not None:
            self.checks[candidate] = self.checks[twin]
            return
        self.progress(f"checking {candidate}")
        try:
            self.checks[candidate] = self.checker.check(candidate)
            self._checked.add(candidate)
        except ReluDeployError as error:
            self.failures[candidate] = error.message


def _same_kernels(one: Candidate, other: Candidate) -> bool:
    """Return whether two candidates differ in nothing but their threads, which run the same kernels."""
    kernels = [(each.base, [item for item in each.tuning if item[0] not in ("spin", "threads")]) for each in (one, other)]
    return kernels[0] == kernels[1]


def _report(
    search: _Search,
    found: Mapping[str, FoundVariant],
    unbuilt: Sequence[_Unbuilt],
    auto: AutoReport,
) -> OptimizeReport:
    race, builder, chosen = search.race, search.builder, search.chosen()
    reports = {one: _candidate_report(search, one, chosen) for one in (*race.rounds, *race.failures) if one.precision != ORIGINAL}
    missing = [CandidateReport(one.backend, one.precision, {}, "failed", one.reason) for one in unbuilt]
    ranked = sorted((*reports.values(), *missing), key=lambda one: (OUTCOMES.index(one.outcome), -one.level, _milliseconds(one)))
    whole = replace(auto, candidates=ranked)
    shown = chosen or min(search.checks, key=race.milliseconds, default=None)
    if shown is None:
        # Nothing could be run at all: the report is that on the graph that missed the gate, or on float32.
        failed = next((one.variant for one in unbuilt if one.variant is not None), None) or found["fp32"]
        return replace(builder.report(replace(failed, search=replace(failed.search, passed=False)), None, None), auto=whole)
    check, variant = search.checks[shown], found[shown.graph]
    # A candidate that passes, and is slower than float32, is not stored either.
    searched = replace(
        variant.search,
        passed=chosen is not None or (not check.passed and check.verified is not None),
        metric=check.metric,
        confidence=check.confidence,
    )
    report = builder.report(replace(variant, precision=shown.precision, search=searched), check.verified, race.speedup(shown))
    return replace(
        report,
        backend=shown.backend,
        settings={**search.fixed, **shown.settings},
        auto=whole,
        tried=_tried(search, found, unbuilt),
    )


def _candidate_report(search: _Search, candidate: Candidate, chosen: Candidate | None) -> CandidateReport:
    race, check = search.race, search.checks.get(candidate)
    if candidate == chosen:
        outcome, reason = "chosen", ""
    elif (failure := race.failures.get(candidate) or search.failures.get(candidate)) is not None:
        outcome, reason = "unusable", failure
    elif check is None:
        outcome, reason = "eliminated", f"others were faster in level {race.last_level[candidate]}"
    elif not check.passed:
        outcome, reason = "failed", check.reason
    elif search.is_slower(candidate):
        outcome, reason = "slower", "float32 is faster"
    else:
        outcome, reason = "passed", "another candidate that passes is faster"
    return CandidateReport(
        candidate.backend,
        candidate.precision,
        candidate.settings,
        outcome,
        reason,
        race.last_level.get(candidate, 0),
        race.latency(candidate),
        race.speedup(candidate),
        check,
    )


def _milliseconds(report: CandidateReport) -> float:
    return report.latency.mean if report.latency is not None else float("inf")


def _tried(search: _Search, found: Mapping[str, FoundVariant], unbuilt: Sequence[_Unbuilt]) -> list[dict[str, Any]]:
    """Return one summary for each precision: of its fastest candidate that passes, or of its fastest one."""
    summaries = {
        one.precision: {
            "precision": one.precision,
            "passed": False,
            "value": round(one.variant.search.metric.value, 6),
            "speedup": None,
        }
        for one in unbuilt
        if one.variant is not None
    }
    for candidate in sorted(search.race.rounds, key=search._order):
        if candidate.precision == ORIGINAL:
            continue
        check, ratio = search.checks.get(candidate), search.race.speedup(candidate)
        known = summaries.get(candidate.precision)
        if known is not None and (known["passed"] or check is None or not check.passed):
            continue
        value = check.metric.value if check is not None else found[candidate.graph].search.metric.value
        summaries[candidate.precision] = {
            "precision": candidate.precision,
            "passed": check is not None and check.passed,
            "value": round(value, 6),
            "speedup": None if ratio is None else round(ratio.value, 4),
        }
    return list(summaries.values())
