"""What `verify --json` writes, as JUnit XML: a suite for each backend, a case for each Relu, output and check."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from relu_deploy.reporting.terminal import number, printable

__all__ = ["verify_junit"]

Result = Mapping[str, Any]
#: noncharacters, which XML cannot hold and `printable` leaves
_NOT_XML = re.compile("[\ufffe\uffff]")


def verify_junit(result: Result) -> str:
    """Return the XML document.

    A tensor without a verdict is a skipped case. The failure of a Relu names its node, the kind of the fault and the error
    ratio; faults at nodes that are not Relus are cases of their own.

    Args:
        result: What `verify --json` writes.
    """
    suites = ElementTree.Element("testsuites", name=_text(f"relu-deploy verify {result['model']}"))
    totals = {"tests": 0, "failures": 0, "skipped": 0}
    for backend in result["backends"]:
        suite = ElementTree.SubElement(suites, "testsuite", name=_text(backend["name"]))
        counts = dict.fromkeys(totals, 0)
        for kind, name, passed, message, details in _cases(backend):
            case = ElementTree.SubElement(suite, "testcase", classname=_text(f"{result['model']}.{kind}"), name=_text(name))
            counts["tests"] += 1
            if passed is None:
                counts["skipped"] += 1
                ElementTree.SubElement(case, "skipped", message=_text(message))
            elif not passed:
                counts["failures"] += 1
                ElementTree.SubElement(case, "failure", message=_text(message), type=kind).text = "\n".join(map(_text, details))
        if not backend["passed"] and not counts["failures"]:
            # An engine's audit can fail without a case of its own.
            counts["tests"] += 1
            counts["failures"] += 1
            case = ElementTree.SubElement(suite, "testcase", classname=_text(f"{result['model']}.verdict"), name="verdict")
            ElementTree.SubElement(case, "failure", message=_text(backend["note"] or "the backend failed"), type="verdict")
        for name, count in counts.items():
            suite.set(name, str(count))
            totals[name] += count
        suite.set("errors", "0")
    if compared := result.get("preprocess"):
        for name, count in _append_preprocess(suites, result["model"], compared).items():
            totals[name] += count
    for name, count in totals.items():
        suites.set(name, str(count))
    suites.set("errors", "0")
    suites.set("time", f"{result['seconds']:.3f}")
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _append_preprocess(suites: ElementTree.Element, model: str, compared: Result) -> dict[str, int]:
    """Append a suite with a case for each picture of `--preprocess-against`, and return its counts."""
    failed = [one for one in compared["pictures"] if not one["passed"]]
    counts = {"tests": len(compared["pictures"]), "failures": len(failed), "skipped": 0}
    suite = ElementTree.SubElement(suites, "testsuite", name="preprocess", errors="0")
    for name, count in counts.items():
        suite.set(name, str(count))
    steps = "\n".join(
        _text(f"{one['step']}: {one['ours']} in the manifest, {one['theirs']} in the arrays") for one in compared["steps"]
    )
    for one in compared["pictures"]:
        case = ElementTree.SubElement(suite, "testcase", classname=_text(f"{model}.preprocess"), name=_text(one["picture"]))
        if not one["passed"]:
            levels = "another shape" if one["largest_levels"] is None else f"{one['largest_levels']:.4g} gray levels"
            ElementTree.SubElement(case, "failure", message=levels, type="preprocess").text = steps
    return counts


def _cases(backend: Result) -> Iterator[tuple[str, str, bool | None, str, list[str]]]:
    """Yield (kind, name, passed, message, details) of each case of a backend."""
    faults = {fault["node"]: fault for fault in backend["faults"]}
    for relu in backend["relus"]:
        name, reason = f"{relu['index']} {relu['node']}", relu["reason"] or "not compared"
        fault = faults.pop(relu["node"], None) or next(iter(backend["faults"]), None)
        yield "relu", name, relu["passed"], reason, _details(relu, relu["node"], fault)
    for output in backend["outputs"]:
        yield "output", output["name"], output["passed"], output["reason"], _details(output, output["name"], None)
    for fault in faults.values():
        yield "fault", fault["node"], False, f"{fault['kind']}: {fault['detail']}", _details(fault, fault["node"], fault)
    for check in backend["checks"]:
        yield "check", check["name"], check["passed"], check["detail"], [f"check: {check['name']}", check["detail"]]
    if backend["delivered"]["differences"]:
        differences = list(backend["delivered"]["differences"])
        yield "execution", "as requested", False, differences[0], differences


def _details(fields: Result, node: str, fault: Result | None) -> list[str]:
    lines = [f"node: {node}"]
    if scope := fields.get("scope"):
        lines.append(f"scope: {scope}")
    if fault is not None:
        place = "the graph" if fault["where"] == "graph" else fault["where"]
        # A Relu behind the fault passes it on.
        at = "" if fault["node"] == node else f", at {fault['node']}"
        lines += [f"kind: {fault['kind']}{at}", f"detail: {fault['detail']}", f"in: {place}"]
    lines.append(f"error ratio: {number(fields.get('error_ratio'))}")
    if fields.get("reason"):
        lines.append(f"reason: {fields['reason']}")
    return lines


def _text(text: object) -> str:
    return _NOT_XML.sub("?", printable(text))
