"""The Relu monitor raises its alarm on data unlike the census, not on data like it, and never touches what is served."""

import asyncio
import json
import logging
import threading

import numpy as np
import pytest

from relu_deploy.bundle import Bundle
from relu_deploy.data.datasets import load_dataset
from relu_deploy.errors import InputError
from relu_deploy.serving.models import ModelOptions, Models
from relu_deploy.serving.protocol.http import HttpApp
from relu_deploy.serving.protocol.management import Management
from relu_deploy.serving.protocol.tensors import InferRequest
from relu_deploy.serving.telemetry.drift_monitor import DEFAULT_SHARE, LEAST, WINDOW, Monitor, MonitorFactory
from relu_deploy.serving.telemetry.request_log import AccessLog
from relu_deploy.serving.transport.admission import AdmissionControl
from relu_deploy.serving.transport.limits import HttpLimits

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")


@pytest.fixture(scope="session")
def censused(digits_bundle, tmp_path_factory):
    """The digit classifier with a census of the first 800 of its 1,000 digits, and those 800 and the other 200."""
    import shutil

    from relu_deploy.activations.census import census

    folder = tmp_path_factory.mktemp("censused") / "digits.rdb"
    shutil.copytree(digits_bundle.path, folder)
    bundle = Bundle.open(folder)
    digits = load_dataset(bundle, "digits").feeds["x"]
    # The shipped digits are in no order, but a draw is a draw.
    order = np.random.default_rng(0).permutation(len(digits))
    np.savez(folder.parent / "known.npz", x=digits[order[:800]])
    report = census(bundle, folder.parent / "known.npz", threads=1)
    bundle = bundle.add("reports/baseline.npz", report.baseline.to_bytes())
    return bundle, digits[order[:800]], digits[order[800:]]


def inverted(digits):
    low, high = digits.min(), digits.max()
    return (low + high - digits).astype(np.float32)


@pytest.fixture
def watching(censused):
    """A monitor that looks at every row, and closes."""
    monitor = Monitor(censused[0], 1.0)
    assert monitor.wait(30)
    yield monitor
    monitor.close()


def show(monitor, digits, rows=8):
    """Let the monitor see every digit, batch by batch, waiting for it."""
    for start in range(0, len(digits), rows):
        batch = digits[start : start + rows]
        monitor({"x": batch}, {}, len(batch))
        assert monitor.settle(30)


def test_clean_digits_raise_no_alarm_and_inverted_ones_do_until_clean_ones_come_again(watching, censused, caplog):
    _, _, fresh = censused
    show(watching, fresh)
    answer = watching.to_json()
    assert (answer["on"], answer["samples"], answer["dropped"], answer["failed"]) == (True, len(fresh), 0, 0)
    assert not answer["drift"]["alarm"]
    assert answer["drift"]["alarms"] == 0
    assert answer["unusual"] <= 10  # 2 of 200 are expected
    with caplog.at_level(logging.INFO, "relu_deploy.serve"):
        show(watching, inverted(fresh[:WINDOW]))
        answer = watching.to_json()
        assert answer["drift"]["alarm"]
        assert answer["drift"]["score"] > answer["drift"]["threshold"]
        assert answer["unusual"] >= WINDOW
        show(watching, fresh[:WINDOW])
    assert not watching.to_json()["drift"]["alarm"]
    assert watching.to_json()["drift"]["alarms"] == 1
    assert [record.levelname for record in caplog.records if "drift" in record.message] == ["WARNING", "INFO"]


def test_what_it_tells_of_each_relu_is_numpys_own(watching, censused):
    from relu_deploy.backends import load
    from relu_deploy.graph import find_relus, load_model

    bundle, known, _ = censused
    show(watching, known[:WINDOW])
    answer = watching.to_json()["relus"]
    relus = find_relus(load_model(bundle.onnx))
    session = load(bundle, "reference", taps=tuple(relus))
    values = session.run({"x": known[:WINDOW]})
    assert [each["node"] for each in answer] == [relu.node for relu in relus]
    for each, relu in zip(answer, relus, strict=True):
        assert each["firing_rate"] == pytest.approx((values[relu.output] > 0).mean(), abs=1e-3)
        assert each["sparsity"] == pytest.approx(1 - each["firing_rate"])
        # These very digits were in the census: nothing can be above it.
        assert each["excursions"] == 0


def test_a_range_excursion_is_counted_for_the_relus_that_left_their_range(watching, censused):
    show(watching, 10 * censused[2][:4])
    answer = watching.to_json()
    assert answer["relus"][0]["excursions"] == 4
    assert answer["relus"][0]["excursions_expected"] == pytest.approx(4 / 801)


def test_there_is_no_verdict_before_there_are_enough_samples(watching, censused):
    show(watching, inverted(censused[2][: LEAST - 1]), rows=1)
    assert watching.to_json()["drift"]["score"] is None
    assert not watching.to_json()["drift"]["alarm"]
    show(watching, inverted(censused[2][:1]))
    assert watching.to_json()["drift"]["alarm"]


def test_a_full_queue_drops_samples_and_does_not_wait(watching, censused, monkeypatch):
    held = threading.Event()
    session_runs = watching._check

    def slow(*arguments):
        held.wait(30)
        session_runs(*arguments)

    monkeypatch.setattr(watching, "_check", slow)
    digits = np.concatenate([censused[1][:200]])
    watching({"x": digits}, {}, len(digits))  # would hang if it waited
    assert watching.to_json()["dropped"] >= 200 - 64 - 8
    held.set()
    assert watching.settle(30)
    answer = watching.to_json()
    assert answer["samples"] + answer["dropped"] == 200
    assert answer["samples"] >= 64


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_of_rows_is_the_share_that_was_asked_for_whatever_the_batches(censused, share):
    monitor = Monitor(censused[0], share, seed=0)
    monitor.wait(30)
    digits, batches = censused[1], np.random.default_rng(0)
    shown = 0
    while shown < 3000:
        rows = int(batches.integers(1, 9))
        show(monitor, digits[:rows], rows)
        shown += rows
    seen = monitor.to_json()["samples"]
    monitor.close()
    spread = np.sqrt(shown * share * (1 - share))
    assert abs(seen - shown * share) < 5 * spread


def test_a_sample_that_cannot_be_run_is_counted_and_the_next_one_is_looked_at(watching, censused):
    watching({"x": np.zeros((1, 1, 5, 7), np.float32)}, {}, 1)
    assert watching.settle(30)
    show(watching, censused[2][:3])
    answer = watching.to_json()
    assert (answer["failed"], answer["samples"]) == (1, 3)


def test_padding_is_not_looked_at(watching, censused):
    watching({"x": censused[2][:8]}, {}, 5)
    assert watching.settle(30)
    assert watching.to_json()["samples"] == 5


def served(bundle, share, digits, checks=lambda _: None):
    """Return the logits that a server gives for each digit, and the watch of its model at the end."""

    async def run():
        models = Models(ModelOptions(threads=1), MonitorFactory(share))
        model = await models.add(bundle.path)
        if model.monitor is not None:
            await asyncio.to_thread(model.monitor.wait, 30)
        answers = await asyncio.gather(*(model.infer(InferRequest({"x": digit[None]})) for digit in digits))
        if model.monitor is not None:
            await asyncio.to_thread(model.monitor.settle, 30)
        await checks(models) if asyncio.iscoroutinefunction(checks) else checks(models)
        answer = None if model.monitor is None else model.monitor.to_json()
        await models.close()
        return np.concatenate([each[model.outputs[0].name] for each in answers]), answer

    return asyncio.run(run())


def test_the_answers_are_the_same_bits_with_and_without_the_monitor(censused):
    bundle, _, fresh = censused
    # One digit at a time, because other batches are other sums.
    plain = np.concatenate([served(bundle, 0, fresh[at : at + 1])[0] for at in range(3)])
    watched = np.concatenate([served(bundle, 1.0, fresh[at : at + 1])[0] for at in range(3)])
    assert plain.tobytes() == watched.tobytes()


def test_a_model_with_a_census_is_watched_by_default_and_one_without_is_not(censused, digits_bundle):
    assert served(censused[0], None, censused[2][:1])[1]["share"] == DEFAULT_SHARE
    answer = served(digits_bundle, None, censused[2][:1])[1]
    assert not answer["on"]
    assert "no census" in answer["reason"]
    assert answer["hint"].startswith(f"relu-deploy census {digits_bundle.path} --data")
    assert served(censused[0], 0, censused[2][:1])[1] is None


def test_a_share_that_was_asked_for_and_cannot_be_had_is_an_error(digits_bundle):
    monitored = MonitorFactory(0.5)
    monitor = monitored(digits_bundle)
    with pytest.raises(InputError, match=r"--monitor-share 0\.5.*no census") as raised:
        monitored.require(monitor)
    assert "relu-deploy census" in raised.value.hint
    monitor.close()


def test_a_census_of_another_graph_is_not_taken_for_this_ones(censused, digits_copy):
    digits_copy = digits_copy.add("reports/baseline.npz", (censused[0].path / "reports" / "baseline.npz").read_bytes())
    changed = digits_copy.onnx.read_bytes() + b"\x12\x00"  # an empty producer name: another file, the same graph
    digits_copy.onnx.write_bytes(changed)
    monitor = Monitor(Bundle(digits_copy.path, digits_copy.manifest), 1.0)
    assert monitor.wait(30)
    assert "another graph" in monitor.off
    monitor.close()


def test_why_there_is_nothing_to_compare_with_is_said_with_what_to_do(digits_copy):
    from relu_deploy.activations.census import census

    report = census(digits_copy, "digits", samples=8, threads=1)
    assert report.baseline is None
    counted = digits_copy.add("reports/census.json", json.dumps(report.to_json()))
    reference = [
        (counted, "a census without a baseline", "relu-deploy census"),
        (Bundle.open(counted.onnx), "not a bundle", "relu-deploy export"),
    ]
    for bundle, why, hint in reference:
        monitor = Monitor(bundle, 1.0)
        assert monitor.wait(30)
        assert why in monitor.off
        assert hint in monitor.hint
        monitor.close()


def test_a_variant_is_watched_with_the_graph_that_was_counted(censused, tmp_path):
    import shutil

    bundle, _, fresh = censused
    shutil.copytree(bundle.path, tmp_path / "digits.rdb")
    copy = Bundle.open(tmp_path / "digits.rdb")
    copy = copy.add("variants/int8-cpu.onnx", bundle.onnx.read_bytes() + b"\x12\x00")
    copy = Bundle(copy.path, {**copy.manifest, "variants": {"int8-cpu": {}}}).with_variant("int8-cpu")
    monitor = Monitor(copy, 1.0)
    assert monitor.wait(30)
    show(monitor, fresh[:WINDOW])
    assert monitor.name == "digits-int8-cpu"
    assert not monitor.to_json()["drift"]["alarm"]
    monitor.close()


def test_a_reload_starts_anew_and_ends_the_old_monitor(censused):
    async def checks(models):
        old = models.get("digits").monitor
        new = (await models.load("digits")).monitor
        for _ in range(200):
            if not old._thread.is_alive():
                break
            await asyncio.sleep(0.05)
        assert not old._thread.is_alive()
        assert new is not old
        assert await asyncio.to_thread(new.wait, 30)
        assert new.to_json()["samples"] == 0

    served(censused[0], 1.0, censused[2][:2], checks)


def test_the_state_is_json_at_its_address_and_nothing_where_nobody_watches(censused):
    async def get(models, path):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        observer = AccessLog()
        handlers = Management(models).handlers()
        await HttpApp(models, AdmissionControl(models, observer), observer, handlers, HttpLimits())(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])

    async def watched(models):
        status, answer = await get(models, "/v2/models/digits/monitor")
        assert (status, answer["on"], answer["samples"]) == (200, True, 2)
        assert len(answer["relus"]) == 6

    async def unwatched(models):
        assert (await get(models, "/v2/models/digits/monitor"))[0] == 404

    served(censused[0], 1.0, censused[2][:2], watched)
    served(censused[0], 0, censused[2][:2], unwatched)
