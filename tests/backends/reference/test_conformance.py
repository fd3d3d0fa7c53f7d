"""The evaluator gives the results of onnx's own node tests, in the graphs' types and in float64."""

import pytest

from relu_deploy.backends.reference.conformance import EXPECTED, node_tests, outcomes
from relu_deploy.backends.reference.program import unsupported_nodes


@pytest.fixture(scope="module")
def results():
    return list(outcomes())


def test_every_node_test_agrees_or_has_a_reason(results):
    surprises = [
        f"{one.name}: {one.answer}: {one.reason}" for one in results if one.answer != "agrees" and one.name not in EXPECTED
    ]
    assert not surprises


def test_no_node_test_that_agrees_is_excused(results):
    present = {one.name for one in results}
    wrong = {one.name for one in results if one.answer != "agrees"}
    assert {name for name in EXPECTED if name in present} == wrong


def test_almost_all_node_tests_agree_in_float64(results):
    wide = [one for one in results if one.wide]
    assert len(wide) > 1500
    assert sum(one.answer == "agrees" for one in wide) >= len(wide) - 25


def test_what_cannot_run_is_known_before_it_is_run(results):
    import onnx_ir as ir

    cannot = {one.name for one in results if one.answer == "cannot run"}
    listed = {test.name for test in node_tests() if unsupported_nodes(ir.from_proto(test.model))}
    assert listed == cannot
