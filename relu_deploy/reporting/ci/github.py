"""Workflow commands of GitHub Actions, and where it takes a job's summary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relu_deploy.reporting.terminal import printable
from relu_deploy.storage.files import read_regular
from relu_deploy.storage.targets import refuse_existing_file, write_result

__all__ = ["SUMMARY_VARIABLE", "check_summary", "error_line", "verify_error", "write_summary"]

#: the environment variable with the path of a job's summary
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
#: bytes of the largest summary that is appended to: GitHub takes 1 MiB
MAX_SUMMARY = 2**26


def error_line(title: str, message: str) -> str:
    """Return the workflow command that marks a job with an error; "" outside GitHub Actions.

    Source: "Workflow commands for GitHub Actions": data escape %, CR and LF, and properties also : and ,.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return ""
    properties = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::error title={properties}::{_escaped(message)}"


def verify_error(result: Mapping[str, Any]) -> str:
    """Return the error line for the first divergence in what `verify --json` writes; "" if all passed."""
    failed = next((backend for backend in result["backends"] if not backend["passed"]), None)
    title = f"relu-deploy verify {result['model']}"
    if failed is not None:
        return error_line(title, _divergence(failed))
    picture = next((one for one in (result.get("preprocess") or {}).get("pictures", ()) if not one["passed"]), None)
    if picture is None:
        return ""
    steps = ", ".join(one["step"] for one in result["preprocess"]["steps"])
    return error_line(title, f"the preprocessing of {picture['picture']} differs" + (f" in: {steps}" if steps else ""))


def _divergence(backend: Mapping[str, Any]) -> str:
    where = f"{backend['name']} differs"
    if backend["faults"]:
        fault = backend["faults"][0]
        scope = f" ({fault['scope']})" if fault["scope"] else ""
        return f"{where} at {fault['node']}{scope}: {fault['kind']}: {fault['detail']}"
    for one in (*backend["relus"], *backend["outputs"]):
        if one["passed"] is False:
            return f"{where} at {one.get('node') or one['name']}: {one['reason']}"
    for check in backend["checks"]:
        if check["passed"] is False:
            return f"{where}: {check['name']}: {check['detail']}"
    return where


def check_summary(target: str, force: bool) -> None:
    """Raise InputError for a summary that cannot be written, before any work is done."""
    path, appends = _summary_path(target)
    if not appends:
        refuse_existing_file(path, force)


def write_summary(target: str, text: str) -> None:
    """Write a summary to a file, or append it to the job's.

    Args:
        target: A path, or `GITHUB_STEP_SUMMARY` for the path in that environment variable. The file that the variable names is
            appended to, because other steps write to it too.
        text: Markdown.
    """
    path, appends = _summary_path(target)
    before = read_regular(path, MAX_SUMMARY) if appends and path.is_file() else b""
    # Other steps may have written anything into it.
    write_result(path, before + b"\n" + text.encode() if before else text)


def _summary_path(target: str) -> tuple[Path, bool]:
    given = os.environ.get(SUMMARY_VARIABLE, "")
    path = given if target == SUMMARY_VARIABLE and given else target
    return Path(path), bool(given) and Path(path) == Path(given)


def _escaped(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
