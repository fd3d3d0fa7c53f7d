"""What the tables for the terminal say beside the numbers."""

from __future__ import annotations

import pytest

from relu_deploy.reporting.optimize_phrases import accuracy_of, verification_of
from relu_deploy.reporting.tables.bench import print_bench
from relu_deploy.reporting.tables.census import print_census
from relu_deploy.reporting.tables.inspect import print_inspect
from relu_deploy.reporting.tables.prove import print_prove
from relu_deploy.reporting.tables.verify import print_verify
from relu_deploy.verification.exhaustive import Kernel, ProveReport


def proof(passed, strict, **counts):
    mismatches = {"nan": 0, "signed_zero": 0, "subnormal": 0, "value": 0, **counts}
    kernels = [Kernel("Relu", "behind a Conv", 4, mismatches)]
    report = ProveReport("torch", "2", "float16", kernels, 0.1, strict)
    assert report.passed == passed
    return report.to_json()


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (proof(False, True, signed_zero=1), "differs in signed zero (--strict), first in Relu behind a Conv"),
        (proof(False, False, subnormal=2, signed_zero=1), "differs in subnormal, first in Relu behind a Conv"),
    ],
)
def test_a_proof_that_fails_says_which_kind_of_difference_failed_it(capsys, result, words):
    print_prove(result)
    assert words in capsys.readouterr().out


def test_a_proof_that_passes_names_no_reason(capsys):
    print_prove(proof(True, False, signed_zero=1))
    assert capsys.readouterr().out.rstrip().endswith("in 0.1 s")


def test_verify_writes_shapes_as_the_other_verbs_do(capsys):
    inputs = {"source": "random", "shapes": {"x": [1, 3, 8, 8], "y": [1, 2]}}
    print_verify({"model": "m", "against": "torch", "inputs": inputs, "backends": []})
    assert "on random input x 1x3x8x8, y 1x2" in capsys.readouterr().out


@pytest.mark.parametrize(("average", "words"), [([0.8149, 0.7, 0.9], "2 CPUs, load 0.8"), (None, "2 CPUs")])
def test_the_load_is_one_number_and_absent_where_the_system_has_none(capsys, average, words):
    environment = {"cpu": {"model": "a CPU", "usable_cpus": 2}, "threads": 2, "libraries": {}, "load_average": average}
    print_bench({"environment": environment, "runs": [], "ratios": [], "left_out": {}})
    assert capsys.readouterr().out.splitlines()[0].endswith(words)


def test_relus_that_differ_are_counted_not_those_that_agree():
    checked = {"relus": 35, "relus_passed": 34, "largest_ratio": 1.99, "first_divergence": "a/Clip", "reason": "swallows NaN"}
    reported = verification_of({"verified": {**checked, "passed": False}})
    assert reported.startswith("1 of 35 Relus differ")
    assert reported.endswith("first at a/Clip: swallows NaN")
    whole = {**checked, "relus_passed": 35, "first_divergence": None, "passed": True}
    assert verification_of({"verified": whole}).startswith("35 of 35 Relus agree")
    none = {**whole, "relus": 0, "relus_passed": 0, "largest_ratio": None}
    assert verification_of({"verified": none}).startswith("it has no Relus; its outputs agree")


@pytest.mark.parametrize(
    ("precision", "held_out", "words"),
    [("int8", False, "on 8 rows, calibrated on too ("), ("int8", True, "on 8 rows ("), ("fp16", False, "on 8 rows (")],
)
def test_accuracy_on_rows_that_chose_the_scales_says_so(precision, held_out, words):
    accuracy = {"metric": "top1", "before": 1.0, "after": 1.0, "samples": 8, "drop": 0.0, "max_drop": 0.1, "simulated": False}
    assert words in accuracy_of({"accuracy": accuracy, "precision": precision, "evidence": {"held_out": held_out}})


@pytest.mark.parametrize(("data", "hinted"), [(None, True), ("photos", False)])
def test_a_row_that_is_not_verified_says_by_how_much_and_whether_it_saw_real_data(capsys, data, hinted):
    environment = {"cpu": {"model": "a CPU", "usable_cpus": 2}, "threads": 2, "libraries": {}, "load_average": None, "data": data}
    run = {"model": "m", "backend": "onnxruntime-cpu", "variant": "int8-cpu", "batch": 1, "error": "", "warmed_up": True}
    run |= {"latency_ms": {"p50": 1, "p90": 1, "p99": 1, "mean": 1, "ci95": None}, "roofline": None, "throughput": 1}
    run |= {"peak_bytes": 1, "load_seconds": 1, "first_run_seconds": 1, "accuracy": None, "verified": False, "error_ratio": 157.0}
    print_bench({"environment": environment, "runs": [run], "ratios": [], "left_out": {}})
    reported = capsys.readouterr().out
    assert "not verified: m onnxruntime-cpu int8-cpu: error ratio 157" in reported
    assert ("--data D feeds real rows" in reported) is hinted


def relu_row(index):
    fields = {"index": index, "node": f"relu{index}", "kind": "relu", "shape": [1, 4], "scope": "", "fused_with": []}
    counts = dict.fromkeys(("channels", "dead", "proven_dead", "always_on", "proven_always_on"), 0)
    return {**fields, **counts, "sparsity": 0.5, "saturated": None, "nan_channels": [], "maximum": 1.0, "observed_bound": None}


@pytest.mark.parametrize("verb", ["inspect", "census"])
def test_a_table_of_many_relus_shows_the_first_and_counts_the_others(capsys, verb):
    relus = [relu_row(index) for index in range(20_000)]
    shared = {"model": "m", "relus": relus, "batch": 1}
    if verb == "inspect":
        names = [f"size{at}" for at in range(500)]
        costs = {"flops": 1, "bytes": 1, "parameters": 0, "unknown": ["a"], "symbols": names}
        print_inspect({**shared, **costs, "opset": 20, "nodes": 20_000})
    else:
        totals = dict.fromkeys(("dead", "proven_dead", "always_on", "proven_always_on", "left_over"), 0)
        totals |= {"samples": 1, "relus": 20_000, "channels": 1, "sparsity": 0.5}
        print_census({**shared, "data": "d", "backend": "b", "input_range": None, "totals": totals})
    shown = capsys.readouterr().out
    assert "relu999 " in shown
    assert "relu1000 " not in shown
    assert "and 19,000 more, in --json" in shown
    assert "20,000 Relus" in shown
    assert ("size15 and 484 more" in shown) == (verb == "inspect")


def test_verify_lists_the_first_of_many_inputs_and_outputs(capsys):
    fields = {"passed": True, "max_abs": 0.0, "max_ulp": 0, "error_ratio": 0.1, "reason": ""}
    backend = {"name": "b", "passed": True, "relus": [], "note": "", "faults": [], "checks": [], "delivered": {"differences": []}}
    backend["outputs"] = [{"name": f"y{at}", **fields} for at in range(5_000)]
    inputs = {"source": "random", "shapes": {f"x{at}": [1] for at in range(20_000)}}
    print_verify({"model": "m", "against": "torch", "inputs": inputs, "backends": [backend]})
    shown = capsys.readouterr().out
    assert "x15 1 and 19,984 more" in shown
    assert "output y999 " in shown
    assert "and 4,000 more, in --json" in shown
    assert len(shown) < 300_000
