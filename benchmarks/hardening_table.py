"""The table of `hardening.py`: what was tried and what failed, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

__all__ = ["table_of"]

Results = list[dict[str, Any]]


def table_of(contents: Iterable[dict[str, Any]]) -> str:
    """Return the table of the results in several files: a row for each figure."""
    parts: dict[str, Results] = {}
    for content in contents:
        for part, entry in content.items():
            parts.setdefault(part, []).extend(entry["results"])
    rows = [row for part, make in ROWS.items() if parts.get(part) for row in make(parts[part])]
    lines = ["| figure | tried | result |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {figure} | {tried} | {result} |" for figure, tried, result in rows)])


Rows = Iterable[tuple[str, str, str]]


def _faults(results: Results, *words: str) -> int:
    """Return the number of results with a fault that contains one of `words`, or any fault."""
    return sum(any(not words or any(word in fault for word in words) for fault in result["faults"]) for result in results)


def _files(results: Results, figure: str = "hostile or corrupt files") -> Rows:
    kinds = Counter(result["kind"] for result in results)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    scripts = sum("script" in result for result in results)
    counts = [
        f"{_faults(results, words[0]) if len(words) == 1 else _faults(results, *words)} {label}"
        for label, words in {
            "crashes": ("crash",),
            "hangs": ("hang",),
            "tracebacks": ("traceback",),
            "wrong exit codes": ("exit code",),
            "above the memory limit": ("memory",),
            "code run": ("code run",),
        }.items()
    ]
    tried = f"{len(results):,} ({listed}), {scripts} of them also through the console script"
    yield figure, tried, ", ".join(counts)


def _files_again(results: Results) -> Rows:
    yield from _files(results, "those that failed, once more")


def _crashes(results: Results) -> Rows:
    how = Counter("errors of the system" if point["how"].isupper() else point["how"] for point in results)
    commands = ", ".join(f"{name} {count}" for name, count in Counter(point["command"] for point in results).items())
    refused, others = _faults(results, "refused", "another state"), _faults(results, "next run", "exit code", "traceback")
    tried = f"{len(results):,} ({', '.join(f'{count} {name}' for name, count in how.items())}: {commands})"
    result = (
        f"{refused} bundles refused or torn, {_faults(results, 'leftovers')} with leftovers after the next run, {others} others"
    )
    yield "crash points and kills", tried, result


def _requests(results: Results) -> Rows:
    statuses: Counter[str] = Counter()
    for block in results:
        statuses.update(block.get("statuses", {}))
    count = sum(block["requests"] for block in results)
    over_grpc = sum(number for status, number in statuses.items() if status.startswith("gRPC"))
    errors = sum("500" in fault or "gRPC" in fault for block in results for fault in block["faults"])
    growth = [block["growth_mib"] for block in results if "growth_mib" in block] or [0.0]
    held = max((block["memory_mib"] for block in results if "memory_mib" in block), default=0.0)
    tracebacks = sum(block.get("tracebacks", 0) for block in results)
    yield (
        "hostile requests",
        f"{count:,}, {over_grpc:,} of them over gRPC",
        f"{errors} errors of the server, {_faults(results, 'death')} deaths, {tracebacks} tracebacks in the log; "
        f"memory has grown by {growth[-1]:.0f} MiB at the end, and by at most {max(growth):.0f} MiB in between, to {held:.0f} MiB",
    )


def _waits(results: Results) -> Rows:
    idle = [result for result in results if result["attack"].startswith("nothing")]
    attacks = [result for result in results if not result["attack"].startswith("nothing")]
    worst = max(attacks, key=lambda result: result["worst_seconds"])
    above = [result for result in attacks if result["worst_seconds"] >= 1]
    yield (
        "longest wait of a good client beside an attack",
        f"{len({result['attack'] for result in attacks})} attacks",
        f"{worst['worst_seconds']:.2f} s ({worst['attack']}), without an attack {max(r['worst_seconds'] for r in idle):.2f} s; "
        f"{len(above)} attacks with 1 s or more, {sum(result['failed'] for result in results)} requests failed",
    )


def _origins(results: Results) -> Rows:
    gained = sum(len(result["faults"]) for result in results)
    yield (
        "attempts of pages of other origins, and by DNS rebinding",
        f"{sum(r['attempts'] for r in results):,}",
        f"{gained} succeed",
    )


def _stops(results: Results) -> Rows:
    lost = sum(len(result["lost"]) for result in results)
    answered = sum(result["answered"] for result in results)
    yield (
        "SIGTERM under load",
        f"{len(results)} stops, {answered:,} answered requests",
        f"{lost} lost, {_faults(results, 'exit')} bad exits",
    )


#: by the name of the part in the results; "files again" are the files of faults, run with the mended code
ROWS = {
    "files": _files,
    "files again": _files_again,
    "crashes": _crashes,
    "requests": _requests,
    "waits": _waits,
    "origins": _origins,
    "stops": _stops,
}
