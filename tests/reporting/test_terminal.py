"""Text from files and runtimes reaches the terminal as visible characters: no escape sequence, no markup, no second line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from relu_deploy.reporting import terminal
from relu_deploy.reporting.phrases import count_of
from relu_deploy.reporting.progress import bar, steps
from relu_deploy.reporting.tables.audit import print_audit
from relu_deploy.reporting.tables.bench import print_bench
from relu_deploy.reporting.tables.census import print_census
from relu_deploy.reporting.tables.compile import print_compile
from relu_deploy.reporting.tables.doctor import print_doctor
from relu_deploy.reporting.tables.export import print_export
from relu_deploy.reporting.tables.inspect import print_inspect
from relu_deploy.reporting.tables.optimize import print_optimize
from relu_deploy.reporting.tables.package import print_package
from relu_deploy.reporting.tables.predict import print_predict
from relu_deploy.reporting.tables.prove import print_prove
from relu_deploy.reporting.tables.serve import print_serve
from relu_deploy.reporting.tables.sign import print_signature
from relu_deploy.reporting.tables.verify import print_verify
from relu_deploy.reporting.tables.zoo import print_zoo
from relu_deploy.reporting.terminal import printable

#: sets the window's title, clears the screen, forges a line, turns the writing direction; then rich markup and an emoji code
HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b2J\nforged\u202e[bold red]x[/] :bomb: [/]"
SHOWN = "\\x1b]0;title\\x07\\x1b[2J\\x9b2J\\nforged\\u202e[bold red]x[/] :bomb: [/]"


def test_control_characters_are_written_as_escapes():
    assert printable(HOSTILE) == SHOWN
    assert printable("\ud800\u2028\x7f\r\t\u200b") == "\\ud800\\u2028\\x7f\\r\\t\\u200b"


@pytest.mark.parametrize("text", ["stage1.0.relu/Relu", "größe → 5 µs", "層/１", "a\u00a0b", "\\x1b"])
def test_text_in_any_script_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("count", "words"),
    [((0, "Relu"), "0 Relus"), ((1, "Relu"), "1 Relu"), ((1204, "row"), "1,204 rows"), ((2, "batch", "batches"), "2 batches")],
)
def test_a_noun_agrees_with_its_number(count, words):
    assert count_of(*count) == words


BENCH_RUN = {
    "model": HOSTILE,
    "backend": "b",
    "variant": HOSTILE,
    "batch": 1,
    "error": HOSTILE,
    "latency_ms": None,
    "warmed_up": None,
    "verified": False,
    "error_ratio": 9.0,
    "accuracy": None,
}
FAULT = {"node": HOSTILE, "scope": HOSTILE, "where": HOSTILE, "kind": HOSTILE, "detail": HOSTILE, "region": [HOSTILE, HOSTILE]}
TENSOR = {"passed": False, "max_abs": 1.0, "max_ulp": 2, "error_ratio": 3.0, "reason": HOSTILE}
VERIFY_BACKEND = {
    "name": HOSTILE,
    "passed": False,
    "as_deployed": False,
    "note": HOSTILE,
    "relus": [{"node": HOSTILE, "scope": HOSTILE, "as_deployed": False, **TENSOR}],
    "outputs": [{"name": HOSTILE, **TENSOR}],
    "faults": [FAULT],
    "checks": [{"name": HOSTILE, "detail": HOSTILE, "passed": passed} for passed in (True, False)],
    "delivered": {"differences": [HOSTILE]},
}
SPEC = {"name": HOSTILE, "dtype": HOSTILE, "shape": [HOSTILE, 3]}
PRINTED = {
    "zoo": (
        print_zoo,
        {
            "models": [
                {
                    "name": HOSTILE,
                    "task": HOSTILE,
                    "activation": HOSTILE,
                    "parameters": 1,
                    "input": {"shape": [1]},
                    "weights": HOSTILE,
                    "metric": {"name": HOSTILE, "value": 1.0, "on": HOSTILE},
                }
            ]
        },
    ),
    "export": (
        print_export,
        {"bundle": HOSTILE, "opset": 20, "nodes": 1, "relus": 1, "seconds": 1, "inputs": [SPEC], "outputs": [SPEC]},
    ),
    "inspect": (
        print_inspect,
        {
            "model": HOSTILE,
            "opset": 20,
            "nodes": 1,
            "batch": 1,
            "flops": 1,
            "bytes": 1,
            "parameters": 1,
            "unknown": [HOSTILE],
            "relus": [
                {"index": 0, "node": HOSTILE, "kind": HOSTILE, "shape": [HOSTILE], "scope": HOSTILE, "fused_with": [HOSTILE]}
            ],
        },
    ),
    "verify": (
        print_verify,
        {
            "model": HOSTILE,
            "against": HOSTILE,
            "inputs": {"source": HOSTILE, "shapes": {HOSTILE: [1]}},
            "backends": [VERIFY_BACKEND],
        },
    ),
    "prove": (
        print_prove,
        {
            "kernels": [{"kernel": "Relu", "where": "alone", "left_out": HOSTILE}],
            "backend": "b",
            "version": HOSTILE,
            "dtype": "float32",
            "findings": [HOSTILE],
            "nan_policy": HOSTILE,
            "negative_zero_policy": "",
            "subnormals": "",
            "passed": True,
            "inputs_tested": 1,
            "seconds": 1,
            "failures": [],
            "strict": False,
        },
    ),
    "audit": (
        print_audit,
        {
            "model": HOSTILE,
            "backend": "b",
            "precision": "float32",
            "passed": False,
            "coverage": {"observed": 1, "inside": 0, "unobserved": 0},
            "regions": [],
            "relus": [{"index": 0, "node": HOSTILE, "scope": HOSTILE, "state": "observed", "at": HOSTILE, "reason": HOSTILE}],
            "faults": [FAULT],
            "outputs": [{"name": HOSTILE, "passed": False, "reason": HOSTILE}],
            "as_deployed": False,
            "engine": {"only_shipping": [HOSTILE], "only_observed": [], "other_kernels": [], "same_outputs": True},
        },
    ),
    "census": (
        print_census,
        {
            "model": HOSTILE,
            "data": HOSTILE,
            "backend": "b",
            "batch": 1,
            "relus": [
                {
                    "index": 0,
                    "node": HOSTILE,
                    "scope": HOSTILE,
                    "kind": HOSTILE,
                    "channels": 1,
                    **dict.fromkeys(("dead", "proven_dead", "always_on", "proven_always_on", "nan_channels"), 0),
                    "sparsity": None,
                    "saturated": None,
                    "maximum": None,
                    "observed_bound": None,
                }
            ],
            "totals": {
                **dict.fromkeys(("samples", "relus", "channels"), 1),
                **dict.fromkeys(("dead", "proven_dead", "always_on", "proven_always_on", "left_over"), 0),
                "sparsity": None,
            },
            "input_range": {"inputs": {HOSTILE: {"low": [[0.0]], "high": 1.0}}, "source": HOSTILE, "rows_outside": 1},
        },
    ),
    "optimize": (
        print_optimize,
        {
            "model": HOSTILE,
            "precision": "int8",
            "target": "cpu",
            "passed": True,
            "file": HOSTILE,
            "seconds": 1,
            "accuracy": {
                "metric": HOSTILE,
                "before": 1.0,
                "after": 1.0,
                "samples": 1,
                "drop": 0.0,
                "max_drop": 0.1,
                "simulated": False,
            },
            "evidence": {"held_out": True},
            "bytes": {"before": 1, "after": 1},
            "speedup": None,
            "verified": {
                "passed": False,
                "relus": 1,
                "relus_passed": 0,
                "largest_ratio": 1.0,
                "first_divergence": HOSTILE,
                "reason": HOSTILE,
            },
            "prepared": {"compact": None, "equalize": None, "error_ratio": None},
            "tried": [],
            "curve": [],
            "fallbacks": [{"node": HOSTILE, "operator": HOSTILE, "reason": HOSTILE}],
        },
    ),
    "compile": (
        print_compile,
        {
            "engine": HOSTILE,
            "backend": "tensorrt",
            "library": HOSTILE,
            "precision": "float32",
            "device": HOSTILE,
            "cache_hit": True,
            "bytes": 1,
            "profiles": [{HOSTILE: [[1], [2], [3]]}],
            "warnings": [HOSTILE],
            "spread": None,
        },
    ),
    "bench": (
        print_bench,
        {
            "environment": {
                "cpu": {"model": HOSTILE, "usable_cpus": 1},
                "threads": 1,
                "libraries": {HOSTILE: HOSTILE},
                "load_average": None,
            },
            "runs": [BENCH_RUN],
            "ratios": [],
            "left_out": {HOSTILE: HOSTILE},
        },
    ),
    "serve": (print_serve, {"host": "127.0.0.1", "http": 8000, "models": [{"name": HOSTILE, "backend": "b", "max_batch": 8}]}),
    "predict": (
        print_predict,
        {
            "model": HOSTILE,
            "backend": "b",
            "out": HOSTILE,
            "predicted": 2,
            "failed": 1,
            "skipped": 0,
            "seconds": 1,
            "rows": [
                {"input": HOSTILE, "error": HOSTILE},
                {"input": "a", "predictions": [{"label": HOSTILE, "probability": 0.5}]},
                {"input": "b", "predictions": [{"label": HOSTILE, "score": 0.5, "box": [0, 0, 1, 1]}]},
            ],
        },
    ),
    "check": (print_signature, {"signed": False, "files": [HOSTILE], "key": "", "reason": HOSTILE, "signature": HOSTILE}),
    "package": (
        print_package,
        {"folder": HOSTILE, "model": HOSTILE, "target": "triton", "flavour": "python", "files": [HOSTILE], "notes": [HOSTILE]},
    ),
    "doctor": (
        print_doctor,
        {
            "system": {"driver": None, "reason": HOSTILE, "gpus": [], "libraries": [HOSTILE]},
            "backends": [
                {"name": HOSTILE, "usable": usable, "version": HOSTILE, "device": HOSTILE, "reason": HOSTILE, "fix": HOSTILE}
                for usable in (True, False)
            ],
        },
    ),
}


@pytest.mark.parametrize("verb", PRINTED)
def test_hostile_names_and_messages_are_shown_and_never_interpreted(capsys, monkeypatch, verb):
    # Wide enough that no column folds.
    monkeypatch.setattr(terminal, "PIPE_WIDTH", 3000)
    function, result = PRINTED[verb]
    function(result)
    text = capsys.readouterr().out
    assert SHOWN in text
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\N{BOMB}"} & set(text)
    assert "\nforged" not in text


def test_warnings_of_libraries_are_printed_as_visible_characters(capfd):
    code = (
        "import logging, warnings\n"
        "from relu_deploy.reporting.terminal import escape_library_output\n"
        "escape_library_output(); escape_library_output()\n"
        f"logging.getLogger('a.library').warning('input %r', {HOSTILE!r}); logging.getLogger('a.library').warning({HOSTILE!r})\n"
        f"warnings.warn({HOSTILE!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    text = capfd.readouterr().err
    assert text.count("forged") == 3
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)


def test_progress_writes_hostile_names_as_visible_characters(capsys):
    with steps(quiet=False) as step:
        step(f"exporting {HOSTILE}")
    with bar(quiet=False, description=HOSTILE) as progress:
        progress(0, 10)
    assert f"exporting {SHOWN}" in capsys.readouterr().err


def test_lines_that_stay_are_written_beside_the_steps(capsys):
    with steps(quiet=False) as step:
        step("measuring")
        step.keep(f"row {HOSTILE}")
    written = capsys.readouterr().err
    assert "measuring" in written
    assert f"row {SHOWN}" in written
    with steps(quiet=True) as step:
        step("measuring")
        step.keep("row")
    assert capsys.readouterr().err == ""
