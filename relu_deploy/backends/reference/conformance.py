"""Holds the evaluator against onnx's own node tests: `python -m relu_deploy.backends.reference.conformance`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_deploy.backends.reference.evaluator import Evaluator
from relu_deploy.backends.reference.types import as_text, is_float
from relu_deploy.errors import ReluDeployError, Unsupported

__all__ = ["EXPECTED", "Outcome", "node_tests", "outcomes"]


@dataclass(frozen=True)
class Outcome:
    """What became of one node test in one precision. answer: "agrees", "differs" or "cannot run"; reason: why not."""

    name: str
    operator: str
    opset: int
    wide: bool
    answer: str
    reason: str = ""


ML = "ai.onnx.ml has no evaluator: its operators are run by a runtime and are not part of the truth"
DRAWN = "random: the expected values come from a generator that the specification does not name"
HALF = "16 bits: the expected values were rounded after each operation, and differ by one unit in the last place"
NOISE = "zeros: the expected values are the rounding errors of float32, beyond the test's absolute tolerance"

#: node tests that do not agree (in one precision or both), with the reason
EXPECTED: dict[str, str] = {
    "test_ai_onnx_ml_array_feature_extractor": ML,
    "test_ai_onnx_ml_binarizer": ML,
    "test_ai_onnx_ml_label_encoder_string_int": ML,
    "test_ai_onnx_ml_label_encoder_string_int_no_default": ML,
    "test_ai_onnx_ml_label_encoder_tensor_mapping": ML,
    "test_ai_onnx_ml_label_encoder_tensor_value_only_mapping": ML,
    "test_ai_onnx_ml_tree_ensemble_set_membership": ML,
    "test_ai_onnx_ml_tree_ensemble_single_tree": ML,
    "test_bernoulli": DRAWN,
    "test_bernoulli_expanded": DRAWN,
    "test_bernoulli_double": DRAWN,
    "test_bernoulli_double_expanded": DRAWN,
    "test_bernoulli_seed": DRAWN,
    "test_bernoulli_seed_expanded": DRAWN,
    "test_attention_4d_attn_mask_causal_bf16": HALF,
    "test_attention_4d_attn_mask_causal_bf16_expanded": HALF,
    "test_attention_4d_causal_bf16": HALF,
    "test_attention_4d_causal_bf16_expanded": HALF,
    "test_attention_4d_causal_fp16": HALF,
    "test_attention_4d_causal_fp16_expanded": HALF,
    "test_attention_4d_causal_padded_kv_bf16": HALF,
    "test_attention_4d_causal_padded_kv_bf16_expanded": HALF,
    "test_attention_4d_padded_kv_bf16": HALF,
    "test_attention_4d_padded_kv_bf16_expanded": HALF,
    "test_dft_inverse": NOISE,
    "test_dft_inverse_opset19": NOISE,
}


def node_tests() -> list[Any]:
    """Return the node tests of the installed onnx."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(collect_testcases(None))


def outcomes(tests: list[Any] | None = None) -> Iterator[Outcome]:
    """Yield the outcome of each test, evaluated in the graph's own types and in float64."""
    for test in node_tests() if tests is None else tests:
        for wide in (False, True):
            yield _outcome(test, wide)


def _outcome(test: Any, wide: bool) -> Outcome:
    import onnx_ir as ir

    operator = test.name.removeprefix("test_")
    if test.model.graph.node:
        operator = test.model.graph.node[-1].op_type
    opset = next((entry.version for entry in test.model.opset_import if entry.domain == ""), 0)
    facts = (test.name, operator, opset, wide)
    try:
        evaluator = Evaluator(ir.from_proto(test.model), wide=wide)
    except Unsupported as error:
        return Outcome(*facts, "cannot run", error.message)
    for inputs, expected in test.data_sets:
        feeds = dict(zip((value.name for value in test.model.graph.input), map(_taken, inputs), strict=True))
        try:
            results = evaluator.run(feeds)
        except ReluDeployError as error:
            return Outcome(*facts, "cannot run", error.message)
        for name, mine, theirs in zip(results, results.values(), expected, strict=True):
            reason = _difference(mine, _taken(theirs), test, wide)
            if reason:
                return Outcome(*facts, "differs", f"{name}: {reason}")
    return Outcome(*facts, "agrees")


def _taken(value: Any) -> Any:
    """Return a value of a test as the evaluator has it: sequences are lists, strings are objects."""
    import onnx
    from onnx import numpy_helper

    if isinstance(value, onnx.TensorProto):
        value = numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        value = numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        value = numpy_helper.to_optional(value)
    if value is None:
        return None
    if isinstance(value, list):
        return [_taken(item) for item in value]
    array = np.asarray(value)
    return as_text(array) if array.dtype.kind in "OUS" else array


def _difference(mine: Any, theirs: Any, test: Any, wide: bool) -> str:
    """Return how a result differs from the expected one, "" when it does not."""
    if theirs is None or isinstance(theirs, list):
        if type(mine) is not type(theirs) or len(mine or ()) != len(theirs or ()):
            return f"{type(mine).__name__} instead of {type(theirs).__name__}"
        return next(
            (found for a, b in zip(mine or [], theirs or [], strict=True) if (found := _difference(a, b, test, wide))), ""
        )
    if mine.shape != theirs.shape:
        return f"shape {mine.shape} instead of {theirs.shape}"
    if not is_float(theirs):
        if mine.dtype != theirs.dtype:
            return f"type {mine.dtype} instead of {theirs.dtype}"
        wrong = np.asarray(mine != theirs)
        return f"{wrong.sum()} of {wrong.size} elements differ" if wrong.any() else ""
    if not wide and mine.dtype != theirs.dtype:
        return f"type {mine.dtype} instead of {theirs.dtype}"
    rtol, atol = test.rtol, test.atol
    if theirs.dtype.itemsize < 4:
        # The expected value was rounded to a type of 16 bits or fewer, perhaps after each of several operations.
        import ml_dtypes

        rtol, atol = max(rtol, float(ml_dtypes.finfo(theirs.dtype).eps)), max(atol, float(ml_dtypes.finfo(theirs.dtype).tiny))
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    if np.allclose(a, b, rtol, atol, equal_nan=True):
        return ""
    with np.errstate(all="ignore"):
        return f"largest difference {np.nanmax(np.abs(a - b)):g}"


def main() -> int:
    """Print every test that does not agree with its reason, and the counts."""
    counts: dict[str, int] = {}
    for outcome in outcomes():
        counts[outcome.answer] = counts.get(outcome.answer, 0) + 1
        if outcome.answer != "agrees":
            precision = "float64" if outcome.wide else "own types"
            reason = EXPECTED.get(outcome.name, "no reason is known")
            print(f"{outcome.answer}: {outcome.name} ({precision}, opset {outcome.opset}): {outcome.reason} [{reason}]")
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
