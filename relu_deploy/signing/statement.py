"""The verdict of `verify` as an in-toto statement, which a signature over the bundle then covers.

Source: in-toto Attestation Framework, Statement v1 and predicate test-result v0.1.
"""

from __future__ import annotations

import json

from relu_deploy.bundle import MODEL, Bundle
from relu_deploy.errors import InputError
from relu_deploy.storage.json_files import read_report
from relu_deploy.version import __version__

__all__ = ["STATEMENT", "test_result_statement"]

#: where the statement is in a bundle
STATEMENT = "reports/verify.intoto.json"
REPORT = "reports/verify.json"


def test_result_statement(bundle: Bundle) -> str | None:
    """Return the statement about the report of `verify` in a bundle, as JSON; None if the bundle has no such report."""
    if not bundle.has_file(REPORT):
        return None
    report = read_report(bundle.file(REPORT), "verify")
    if missing := sorted({"passed", "precision"} - report.keys()):
        raise InputError(
            f"{bundle.file(REPORT)} is not a report of verify: it has no {missing[0]}", "run relu-deploy verify again"
        )
    files = bundle.manifest["files"]
    backends = [(one["name"], one["passed"]) for one in report["backends"]]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": MODEL, "digest": {"sha256": files[MODEL]["sha256"]}}],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": "PASSED" if report["passed"] else "FAILED",
            "configuration": [{"name": REPORT, "digest": {"sha256": files[REPORT]["sha256"]}}],
            "passedTests": [f"relu-deploy verify {name}" for name, passed in backends if passed],
            "failedTests": [f"relu-deploy verify {name}" for name, passed in backends if not passed],
            "annotations": {"relu_deploy": __version__, "against": report["against"], "precision": report["precision"]},
        },
    }
    return json.dumps(statement, indent=2, ensure_ascii=False) + "\n"
