"""The page of benchmarks/wild: every run is in the table, and every reason below it."""

from wild.page import page


def outcome(model, verb, status, note=""):
    return {"model": model, "verb": verb, "status": status, "code": 0, "seconds": 1.0, "note": note}


def test_every_run_is_in_the_table_and_every_reason_below_it():
    models = [{"name": name, "distribution": name, "version": "1.0"} for name in ("whole", "slow", "broken")]
    outcomes = [
        outcome("whole", "inspect", "passed"),
        outcome("whole", "verify", "passed", "passed: 3 of 3 Relus"),
        outcome("slow", "inspect", "passed"),
        outcome("slow", "verify", "not finished", "not finished after 120 s"),
        outcome("broken", "inspect", "refused", "a|b is `not` a graph"),
    ]
    environment = {"cpu": {"model": "X", "usable_cpus": 2}, "time": "2026-01-02T03:04:05+00:00"}
    text = page({"environment": environment, "models": models, "outcomes": outcomes}, "results/x.json")
    assert "| whole (whole 1.0) | ✓ | ✓ |" in text
    assert "| slow (slow 1.0) | ✓ | not finished after 120 s |" in text
    assert "| broken (broken 1.0) | refused |  |" in text
    assert "5 runs: 3 passed, 1 not finished, 1 refused." in text
    assert text.count("\n- ") == 2
    assert "- broken, inspect: `a/b is 'not' a graph`" in text


def test_a_known_refusal_is_explained_behind_its_message():
    note = "m has no node that int8 could be used for: those inside bodies of If, Loop and Scan stay float32"
    environment = {"cpu": {"model": "X", "usable_cpus": 2}, "time": "2026-01-02T03:04:05+00:00"}
    model = {"name": "m", "distribution": "m", "version": "1.0"}
    report = {"environment": environment, "models": [model]}
    text = page(report | {"outcomes": [outcome("m", "optimize int8 cpu", "refused", note)]}, "x.json")
    assert f"- m, optimize int8 cpu: `{note}` Every layer is in a branch of an If" in text
