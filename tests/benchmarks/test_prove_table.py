"""The page of special values says what the raw results of `prove` say."""

import prove_table


def kernel(name, where, left_out="", **counts):
    kinds = dict.fromkeys(("nan", "signed_zero", "subnormal", "value"), 0) | counts
    return {"kernel": name, "where": where, "mismatches": kinds, "left_out": left_out}


def result(backend, dtype, kernels, passed=True, inputs=65536):
    found = kernels[0]["mismatches"]
    return {"backend": backend, "version": "1", "dtype": dtype, "passed": passed, "inputs_tested": inputs} | {
        "mismatch_classes": found,
        "nan_policy": f"{found['nan']} of 2046 not kept" if found["nan"] else "kept",
        "kernels": kernels,
    }


def document(*results):
    environment = {"cpu": {"model": "a CPU"}, "time": "2026-01-02T03:04:05"}
    return {"environment": environment, "left_out": {"tensorrt": "no GPU"}, "results": list(results)}


def test_each_kind_of_difference_has_its_cell():
    swallows = result("swallows", "float16", [kernel("Relu", "alone", nan=2046, subnormal=3)], passed=False)
    keeps = result("keeps", "float16", [kernel("Relu", "alone", signed_zero=1)])
    made = prove_table.tables(document(swallows, keeps))
    assert "## float16" in made
    assert "## float32" not in made
    assert "| `swallows` | a number, for all 2,046 NaNs | +0.0 | 3 changed | right | no |" in made
    assert "| `keeps` | NaN | -0.0 | kept | right | yes |" in made
    assert "| `tensorrt` | no GPU |" in made
    assert "a CPU, 2026-01-02: swallows 1, keeps 1" in made


def test_kernels_that_differ_in_another_way_than_the_plain_relu_are_listed():
    kernels = [
        kernel("Relu", "alone", signed_zero=1),
        kernel("Clip 0..6", "alone", signed_zero=1),
        kernel("Relu", "behind a Conv", signed_zero=1, subnormal=254),
        kernel("Clip 0..6", "behind a Conv", left_out="it has none"),
    ]
    made = prove_table.tables(document(result("one", "bfloat16", kernels)))
    assert "- `one`, Relu behind a Conv: also differs in subnormals (254)\n" in made
    assert "Clip" not in made


def test_what_did_not_run_has_its_reason_and_integers_have_no_special_values():
    made = prove_table.tables(
        document(
            {"backend": "none", "dtype": "int8", "not_run": "no Relu"},
            result("some", "int8", [kernel("Relu", "alone")], inputs=256),
        )
    )
    assert "| `none` | not run: no Relu | | | | |" in made
    assert "| `some` |  |  |  | right | yes |" in made
