"""What CI systems read: JUnit XML, Markdown summaries, error lines of GitHub Actions."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from relu_deploy.reporting.ci.github import error_line, write_summary
from relu_deploy.reporting.ci.junit import verify_junit
from relu_deploy.reporting.ci.summary import bench_summary, verify_summary

HOSTILE = "\x1b[2J</testcase>]]>&\n|a|<img src=x> **b** [c](d) \ufffe\ud800"


def verdict(passed, **fields):
    return {"passed": passed, "error_ratio": 1.0, "max_abs": 0.0, "max_ulp": 0, "reason": "" if passed else "too far", **fields}


def backend(**fields):
    return {
        "name": "onnxruntime-cpu",
        "passed": False,
        "note": "",
        "relus": [
            verdict(True, node="a/Relu", index=0, scope="a"),
            verdict(False, node="b/Relu", index=1, scope="b", error_ratio=99.0),
            verdict(None, node="c/Relu", index=2, scope="c", error_ratio=None, reason="not compared"),
        ],
        "outputs": [verdict(False, name="y", error_ratio=70.0)],
        "faults": [
            {
                "node": "b/Conv",
                "scope": "b",
                "where": "graph",
                "kind": "channel",
                "detail": "only channel 3 of 8",
                "error_ratio": 99.0,
            }
        ],
        "checks": [{"name": "same input twice", "passed": True, "detail": "bit-identical"}],
        "delivered": {"differences": []},
        **fields,
    }


def result(*backends):
    return {"model": "m", "passed": False, "as_requested": True, "seconds": 1.5, "backends": list(backends or [backend()])}


def cases_of(text):
    suites = ElementTree.fromstring(text)
    return suites, {(case.get("classname"), case.get("name")): case for case in suites.iter("testcase")}


def test_every_relu_output_check_and_fault_is_a_case_of_its_backends_suite():
    suites, cases = cases_of(verify_junit(result(backend(), backend(name="torch"))))
    assert [suite.get("name") for suite in suites] == ["onnxruntime-cpu", "torch"]
    assert [suite.get(name) for name in ("tests", "failures", "skipped") for suite in suites] == ["6", "6", "3", "3", "1", "1"]
    assert (suites.get("tests"), suites.get("failures"), suites.get("skipped")) == ("12", "6", "2")
    assert cases["m.relu", "0 a/Relu"].find("failure") is None
    assert cases["m.relu", "2 c/Relu"].find("skipped").get("message") == "not compared"
    assert cases["m.relu", "1 b/Relu"].find("failure").get("message") == "too far"
    relu = cases["m.relu", "1 b/Relu"].find("failure").text.splitlines()
    assert relu[:3] == ["node: b/Relu", "scope: b", "kind: channel, at b/Conv"]
    assert "error ratio: 99" in relu
    fault = cases["m.fault", "b/Conv"].find("failure").text
    assert fault.splitlines() == [
        "node: b/Conv",
        "scope: b",
        "kind: channel",
        "detail: only channel 3 of 8",
        "in: the graph",
        "error ratio: 99",
    ]


def test_a_backend_that_failed_without_a_failing_tensor_is_a_failure_too():
    suites, _ = cases_of(verify_junit(result(backend(relus=[], outputs=[], faults=[], note="the audit failed"))))
    assert suites.get("failures") == "1"


def test_a_reader_of_junit_reads_it():
    junitparser = pytest.importorskip("junitparser", reason="junitparser is not installed: pip install -e '.[dev]'")
    parsed = junitparser.JUnitXml.fromroot(ElementTree.fromstring(verify_junit(result())))
    (suite,) = parsed
    assert (suite.tests, suite.failures, suite.skipped) == (6, 3, 1)
    failed = next(case for case in suite if case.name == "1 b/Relu")
    assert [type(one).__name__ for one in failed.result] == ["Failure"]


def test_names_from_files_break_neither_xml_nor_markdown():
    bad = backend(
        name=HOSTILE,
        relus=[verdict(False, node=HOSTILE, index=0, scope=HOSTILE, reason=HOSTILE)],
        outputs=[verdict(False, name=HOSTILE, reason=HOSTILE)],
        faults=[
            {"node": HOSTILE + "2", "scope": HOSTILE, "where": HOSTILE, "kind": HOSTILE, "detail": HOSTILE, "error_ratio": None}
        ],
        checks=[{"name": HOSTILE, "passed": False, "detail": HOSTILE}],
        delivered={"differences": [HOSTILE]},
    )
    text = verify_junit({**result(bad), "model": HOSTILE})
    suites, cases = cases_of(text.encode())
    assert len(cases) == 5
    assert suites.get("failures") == "5"
    lines = verify_summary({**result(bad), "model": HOSTILE}).splitlines()
    assert len(lines) == 5
    assert [line.replace("\\|", "").count("|") for line in lines[2:]] == [7, 7, 7]
    assert "<img" not in lines[4]
    assert "\\*\\*b\\*\\* \\[c\\](d)" in lines[4]


def test_the_summary_is_one_table_with_a_row_a_backend():
    lines = verify_summary(result()).splitlines()
    assert lines[0] == "### relu-deploy verify m: failed"
    assert lines[4] == "| onnxruntime-cpu | **failed** | 1 of 3 | 0 of 1 | 99 | b/Conv: channel: only channel 3 of 8 |"


def test_the_summary_of_a_benchmark_shows_what_became_slower():
    run = {"model": "m", "backend": "b", "variant": "int8-cpu", "batch": 8, "latency_ms": {"mean": 2.0}, "throughput": 4000.0}
    run |= {"accuracy": None, "verified": True, "error": ""}
    row = {"model": "m", "backend": "b", "variant": "int8-cpu", "batch": 8, "ratio": 1.5, "ci95": [1.4, 1.6], "slower": True}
    shown = bench_summary({"passed": True, "runs": [run], "comparison": {"passed": False, "rows": [row]}}).splitlines()
    assert shown[0] == "### relu-deploy bench: failed"
    assert shown[4] == "| m | b int8-cpu | 8 | 2 | 4,000 | **1.500 (1.400 to 1.600)** |  | yes |"


def test_an_error_line_is_one_line_and_only_on_github(monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert error_line("t", "m") == ""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert error_line("a: b, c", "50 %\nnext") == "::error title=a%3A b%2C c::50 %25\\nnext"


def test_the_summary_of_a_job_is_appended_to(tmp_path, monkeypatch):
    file = tmp_path / "summary"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    write_summary("GITHUB_STEP_SUMMARY", "first\n")
    write_summary(str(file), "second\n")
    assert file.read_text() == "first\n\nsecond\n"
    write_summary(str(tmp_path / "other"), "third\n")
    assert (tmp_path / "other").read_text() == "third\n"


@pytest.fixture
def changed(digits_bundle, tmp_path):
    """The digits model with one channel of one weight scaled by 1.5."""
    model = onnx.load(digits_bundle.onnx)
    weight = next(one for one in model.graph.initializer if one.name == "stage2.1.conv.weight")
    values = numpy_helper.to_array(weight).copy()
    values[5] *= np.float32(1.5)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


def test_verify_writes_all_of_them_for_a_model_that_differs(command, digits_bundle, changed, monkeypatch, tmp_path):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    arguments = (
        "verify",
        changed,
        "--against",
        digits_bundle.path,
        "--junit",
        "j.xml",
        "--summary",
        "GITHUB_STEP_SUMMARY",
        "--quiet",
    )
    made = command(*arguments, "--json", "-")
    assert made.code == 1
    errors = [line for line in made.stderr.splitlines() if line.startswith("::error")]
    assert len(errors) == 1
    assert "onnxruntime-cpu differs at stage2.1.bn/Conv (stage2.1.bn): channel" in errors[0]
    suites, cases = cases_of(Path("j.xml").read_bytes())
    assert "kind: channel" in cases["changed.fault", "stage2.1.bn/Conv"].find("failure").text
    failed = sum(relu["passed"] is False for relu in made.json["backends"][0]["relus"])
    assert int(suites.get("failures")) == failed + sum(not one["passed"] for one in made.json["backends"][0]["outputs"]) + 1
    assert "stage2.1.bn/Conv: channel" in summary.read_text()
    again = command(*arguments)
    assert again.code == 2
    assert "j.xml already exists" in again.stderr


def test_a_passing_verification_prints_no_error_line(command, digits_copy, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    made = command("verify", digits_copy.path, "--against", "reference", "--junit", "j.xml", "--quiet")
    assert made.code == 0
    assert "::error" not in made.stderr + made.stdout
    tree = ElementTree.parse(io.BytesIO(Path("j.xml").read_bytes()))
    assert tree.getroot().get("failures") == "0"
