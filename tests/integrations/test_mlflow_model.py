"""A bundle is logged to a file store of MLflow and loaded from it: whole, with the rows of `predict`."""

import json
from pathlib import Path

import pytest
from digit_pictures import predicted_lines, write_pictures

mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install -e '.[mlflow]'")
pd = pytest.importorskip("pandas", reason="pandas is not installed: pip install -e '.[mlflow]'")

from relu_deploy.bundle import Bundle  # noqa: E402
from relu_deploy.errors import InputError  # noqa: E402
from relu_deploy.integrations.mlflow import load, log_bundle  # noqa: E402


@pytest.fixture
def store(tmp_path, monkeypatch):
    # The file store is in maintenance, and MLflow wants to be told that this is known.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"file:{tmp_path / 'store'}")
    yield tmp_path / "store"
    mlflow.set_tracking_uri(before)


def test_a_logged_bundle_is_loaded_whole_and_gives_the_rows_of_predict(command, digits_copy, store, tmp_path):
    assert command("verify", "digits.rdb", "--against", "reference", "--quiet").code == 0
    folder = write_pictures(tmp_path / "photos", 8)
    expected = predicted_lines(digits_copy.path, folder, tmp_path / "rows.jsonl", threads=1, top=2)
    with mlflow.start_run():
        info = log_bundle(digits_copy.path, threads=1, top=2)
    model = load(info.model_uri)
    files = pd.DataFrame({"input": sorted(map(str, folder.iterdir()))})
    assert list(model.predict(files)["row"]) == expected
    facts = model.metadata.metadata
    assert (facts["verified"], facts["signed"]) == (True, False)
    assert facts["model_id"] == json.loads(expected[0])["model"]
    (logged,) = store.rglob("digits.rdb")
    assert {file.relative_to(logged) for file in logged.rglob("*")} == {
        file.relative_to(digits_copy.path) for file in digits_copy.path.rglob("*")
    }
    Bundle.open(logged)


def test_a_changed_artifact_is_refused_when_it_is_loaded(digits_copy, store):
    with mlflow.start_run():
        info = log_bundle(digits_copy.path)
    (logged,) = store.rglob("digits.rdb/model.onnx")
    content = bytearray(logged.read_bytes())
    content[-1] ^= 1
    logged.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx"):
        load(info.model_uri)


def test_what_no_predictions_can_be_made_with_is_not_logged(digits_copy, store):
    with pytest.raises(InputError):
        log_bundle(Path(digits_copy.onnx))
    with pytest.raises(InputError):
        log_bundle(digits_copy.path, variant="missing")
    assert not store.exists() or not list(store.rglob("MLmodel"))
