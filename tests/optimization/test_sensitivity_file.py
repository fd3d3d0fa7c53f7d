"""A sensitivity list that is read may come from anybody."""

import json

import pytest
from bundles import exported

from relu_deploy.errors import InputError
from relu_deploy.optimization.accuracy.sensitivity import SensitivityList

pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")


@pytest.fixture
def written(tmp_path):
    kept = SensitivityList(tmp_path / "list.json", exported("digits"), "cpu", "int8")
    kept.write([("a", 0.5), ("b", float("inf"))], "rows")
    return kept


def test_a_list_is_read_as_it_was_written(written):
    assert written.read(["a", "b"]) == [("a", 0.5), ("b", float("inf"))]
    assert written.read(["b"]) == [("b", float("inf"))]


@pytest.mark.parametrize("error", [10**400, "0.5", [], True])
def test_an_error_that_is_no_number_is_refused(written, error):
    fields = json.loads(written.path.read_text())
    fields["segments"][0]["relative_error"] = error
    written.path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match="is not a sensitivity list: segments/0/relative_error"):
        written.read(["a"])


@pytest.mark.parametrize("content", ["", "[" * 100_000, '{"a": NaN}', '{"a": 1, "a": 2}', "[]"], ids=lambda text: text[:12])
def test_what_is_no_json_object_of_this_kind_is_refused(written, content):
    written.path.write_text(content)
    with pytest.raises(InputError, match="is not a sensitivity list"):
        written.read(["a"])


def test_a_long_name_of_another_target_is_cut(written):
    fields = json.loads(written.path.read_text())
    written.path.write_text(json.dumps({**fields, "target": "x" * 10**6}))
    with pytest.raises(InputError) as caught:
        written.read(["a"])
    assert len(caught.value.message) < 1000
