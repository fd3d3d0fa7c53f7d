"""Sentences about an optimized variant that the terminal and its page share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from relu_deploy.reporting.candidate_phrases import kernels_of
from relu_deploy.reporting.phrases import count_of

__all__ = ["accuracy_of", "confidence_of", "preparation_of", "runtime_of", "size_of", "speed_of", "verification_of"]

Result = Mapping[str, Any]
#: compared tensors that are listed
LISTED = 4


def accuracy_of(result: Result) -> str:
    """Return the metric before and after, on how many rows, and the drop that is allowed."""
    accuracy = result["accuracy"]
    simulated = ", simulated on the CPU" if accuracy["simulated"] else ""
    # Only 8-bit precisions are calibrated, so only their accuracy can be measured on calibration rows.
    overlap = ", calibrated on too" if result["precision"] in ("int8", "fp8") and not result["evidence"]["held_out"] else ""
    return (
        f"{accuracy['metric']} {accuracy['before']:.4f} → {accuracy['after']:.4f} on {count_of(accuracy['samples'], 'row')}{overlap}{_compared(accuracy)} "
        f"(drop {accuracy['drop']:.4f}, {accuracy['max_drop']:g} is allowed{simulated})"
    )


def _compared(accuracy: Result) -> str:
    """Return what was compared where that is not the outputs."""
    names = accuracy.get("tensors") or ()
    if not names:
        return ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f" of {', '.join(names[:LISTED])}{more}, before {' and '.join(accuracy['selected_by'])}"


def confidence_of(result: Result) -> str:
    """Return the mean confidence, the calibration error and the AP at the score threshold, before and after."""
    confidence = result.get("confidence")
    if confidence is None:
        return "confidence not measured: the outputs have none"
    allowed = "" if confidence["max_shift"] is None else f", {confidence['max_shift']:g} is allowed"
    mean = confidence["mean"]
    parts = [f"mean confidence {mean['before']:.4f} → {mean['after']:.4f} (shift {confidence['shift']:+.4f}{allowed})"]
    error, ap = confidence["calibration_error"], confidence["ap_at_threshold"]
    if error["before"] is not None and error["after"] is not None:
        parts.append(f"calibration error {error['before']:.4f} → {error['after']:.4f}")
    if ap is not None:
        parts.append(f"AP at score {confidence['score_threshold']:g} {ap['before']:.4f} → {ap['after']:.4f}")
    return "; ".join(parts)


def size_of(result: Result) -> str:
    """Return the size of the weights before and after, in megabytes."""
    size = result["bytes"]
    return f"{size['before'] / 1e6:.2f} MB → {size['after'] / 1e6:.2f} MB of weights"


def speed_of(result: Result) -> str:
    """Return the speed in multiples of float32 with its 95% interval, or why it was not measured."""
    if result["speedup"] is None:
        unavailable = ": the target is not available here" if result["accuracy"]["simulated"] else ""
        return f"speed not measured{unavailable}"
    interval = result["speedup_ci95"]
    return f"{result['speedup']:.2f}x the speed of float32" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def verification_of(result: Result) -> str:
    """Return how many Relus agree with the float32 graph, and where the first one differs."""
    verified = result["verified"]
    if verified is None:
        return "its Relus were not compared: it missed the accuracy gate"
    ratio = "" if verified["largest_ratio"] is None else f" (largest error ratio {verified['largest_ratio']:.2f})"
    total, passed = verified["relus"], verified["relus_passed"]
    if verified["passed"] and not total:
        return "it has no Relus; its outputs agree with the float32 graph within the precision's own noise"
    if verified["passed"]:
        other = result.get("method_instead_of")
        method = f"; calibrated with {result['method']}, because a Relu differs with {other}" if other else ""
        return (
            f"{passed} of {count_of(total, 'Relu')} {'agrees' if total == 1 else 'agree'} with the float32 graph "
            f"within the precision's own noise{ratio}{method}"
        )
    first = f", first at {verified['first_divergence']}" if verified["first_divergence"] else ""
    reason = f": {verified['reason']}" if verified["reason"] else ratio
    return (
        f"{total - passed} of {count_of(total, 'Relu')} {'differs' if total == 1 else 'differ'} from the float32 graph "
        f"by more than the precision explains{first}{reason}"
    )


def runtime_of(result: Result) -> str:
    """Return the backend that the variant runs on unless another one is named, with its settings and kernels."""
    settings = ", ".join(f"{name}={value}" for name, value in result["settings"].items())
    chosen = next((one for one in result["auto"]["candidates"] if one["outcome"] == "chosen"), None)
    kernels = "" if chosen is None or not kernels_of(chosen) else f"; kernels: {kernels_of(chosen)}"
    return f"{result['backend']}" + (f" with {settings}" if settings else "") + kernels


def preparation_of(result: Result) -> Iterator[str]:
    """Yield a line for each change to the graph before it was converted: channels removed, layers equalized."""
    prepared = result["prepared"]
    compacted, equalized = prepared["compact"], prepared["equalize"]
    if (retargeting := prepared.get("retargeting")) is not None:
        yield f"quantized where it was trained: {count_of(retargeting['pairs'], 'activation')} in 8 bits, no scale changed"
        yield from (f"  {count}: {change}" for change, count in retargeting["changes"].items())
    if compacted is not None:
        removed = compacted["channels_before"] - compacted["channels_after"]
        yield (
            f"compact: {removed} of {count_of(compacted['channels_before'], 'channel')} and "
            f"{count_of(len(compacted['relus_removed']), 'Relu')} removed, "
            f"{1 - prepared['flops_after'] / prepared['flops_before']:.2%} of the FLOPs"
        )
    if equalized is not None:
        pairs = count_of(len(equalized["pairs"]), "pair")
        yield f"equalized: {pairs} of layers, {len(equalized['skipped'])} skipped"
    if prepared["error_ratio"] is not None:
        yield f"the prepared graph agrees with the model: error ratio {prepared['error_ratio']:.2g}"
