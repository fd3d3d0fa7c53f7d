"""The zoo models of a benchmark are prepared by a few processes, and what goes wrong in one of them is the error of the command."""

from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")

from relu_deploy.benchmark import prepare_models
from relu_deploy.benchmark.worker import SCORED_ROWS, Worker
from relu_deploy.errors import InputError, Unsupported


class Workers:
    """Stands for the processes: notes who prepares what."""

    def __init__(self, reply):
        self.reply, self.prepared, self.started, self.closed = reply, [], 0, 0

    def __call__(self, threads):
        self.started += 1
        return self

    def request(self, command, *, name, **_):
        assert command == "prepare_model"
        self.prepared.append(name)
        return self.reply(name)

    def close(self):
        self.closed += 1


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr(prepare_models, "take_bundle", lambda name, path: "")
    monkeypatch.setattr(prepare_models, "_keep", lambda name, path, progress: None)

    def install(reply, cpus=4):
        found = Workers(reply)
        monkeypatch.setattr(prepare_models, "Process", found)
        monkeypatch.setattr(prepare_models, "find_threads", lambda: SimpleNamespace(count=cpus))
        return found

    return install


def test_each_model_is_prepared_once_the_largest_first(workers):
    found, lines = workers(lambda name: {"notes": [f"{name}: no int8 variant: too bad"] if name == "digits" else []}), []
    with prepare_models.bundles_for(["digits", "mobilenet_v2", "language_id"], lines.append) as paths:
        assert [path.name for path in paths] == ["digits.rdb", "mobilenet_v2.rdb", "language_id.rdb"]
    assert sorted(found.prepared) == ["digits", "language_id", "mobilenet_v2"]
    assert found.prepared[0] == "mobilenet_v2"
    assert found.started == found.closed == prepare_models.MOST_PROCESSES
    assert "digits: no int8 variant: too bad" in lines


def test_one_processor_runs_one_process(workers):
    found = workers(lambda name: {"notes": []}, cpus=1)
    with prepare_models.bundles_for(["digits", "language_id"], lambda _: None):
        assert found.started == 1
    assert found.prepared == ["language_id", "digits"]


@pytest.mark.parametrize(("kind", "error"), [("InputError", InputError), ("Unsupported", Unsupported)])
def test_the_error_of_a_process_is_that_of_the_command(workers, kind, error):
    workers(lambda name: {"error": f"{name} differs", "hint": "see it", "kind": kind})
    with (
        pytest.raises(error, match="differs") as caught,
        prepare_models.bundles_for(["digits", "language_id"], lambda _: None),
    ):
        pass
    assert caught.value.hint == "see it"


def test_a_process_that_dies_is_an_error_too(workers):
    workers(lambda name: {"error": "its process ended with exit code -9 during 'prepare_model'", "hint": ""})
    with pytest.raises(InputError, match="exit code -9"), prepare_models.bundles_for(["digits", "language_id"], lambda _: None):
        pass


@pytest.mark.parametrize(
    ("backend", "batch", "rows"), [("onnxruntime-cpu", 1, SCORED_ROWS), ("torch", 64, 64), ("torch-compile", 1, 1)]
)
def test_a_score_takes_large_runs_unless_their_size_would_be_compiled_anew(digits_bundle, backend, batch, rows):
    worker = Worker()
    worker.bundle, worker.batch, worker.backend = digits_bundle, batch, backend
    assert worker._rows_scored() == rows
