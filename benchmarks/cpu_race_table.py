"""The Markdown table of cpu_race.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["table"]


def table(report: Mapping[str, Any]) -> str:
    """Return the report of cpu_race.py as Markdown."""
    lines = []
    for name, model in report["models"].items():
        environment = model["environment"]
        measured = f"{environment['cpu']['model']}, {environment['threads']} threads, {environment['time'][:10]}"
        for batch, result in model["batches"].items():
            lines += [f"**{name}, batch {batch}** ({measured}; {model['data']})", ""]
            lines += ["| | ms | times float32 | agreement | RMS error |", "| --- | --- | --- | --- | --- |"]
            lines += [_line(row) for row in result["rows"]]
            if auto := result["auto"]:
                interval = "" if auto["ci95"] is None else f" [{auto['ci95'][0]:.2f}, {auto['ci95'][1]:.2f}]"
                rounds = (
                    f" in {auto['rounds']} further rounds of the fastest (the median of their ratios)" if "rounds" in auto else ""
                )
                lines += ["", f"auto is {auto['auto_over_best']:.2f}{interval} times as fast as {auto['best_other']}{rounds}."]
            lines.append("")
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    label = f"{row['contestant']}: {row['chose']}" if "chose" in row else row["contestant"]
    if settings := {name: value for name, value in row["settings"].items() if name != "autocast"}:
        label += f" ({', '.join(f'{name} {value}' for name, value in settings.items())})"
    if row["latency_ms"] is None:
        return f"| {label} | | {row['reason'].replace('|', '/')} | | |"
    interval = row["speedup_ci95"]
    speed = f"{row['speedup']:.2f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")
    agreement = f"{row['agreement']:.4f} {row['metric']}" if "agreement" in row else ""
    error = f"{row['relative_error']:.2g}" if "relative_error" in row else ""
    return f"| {label} | {row['latency_ms']['mean']:.3g} | {speed} | {agreement} | {error} |"
