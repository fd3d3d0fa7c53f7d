"""Several builds of one engine, by the real TensorRT-RTX; what runs them stands in for the GPU and is told how to differ."""

import time

import pytest

from relu_deploy.backends.tensorrt.building.engine_cache import engine_for, find_engine
from relu_deploy.backends.tensorrt.options import BuildOptions
from relu_deploy.compilation import build_variance
from relu_deploy.compilation.build_variance import best_of
from relu_deploy.errors import AccuracyTooLow, BackendUnavailable, UsageError

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'relu-deploy[rtx]')", exc_type=ImportError)

RTX = "tensorrt-rtx"
ONE = BuildOptions(((1, 1, 8),))


class Scripted:
    """Answers as the model does, later by `seconds` and wrong by the factor `scale`."""

    def __init__(self, session, seconds, scale):
        self._session, self._seconds, self._scale = session, seconds, scale
        self.closed = False

    def run(self, feeds):
        time.sleep(self._seconds)
        return {name: array * self._scale for name, array in self._session.run(feeds).items()}

    def close(self):
        self.closed = True


@pytest.fixture
def opened(digits_bundle, monkeypatch):
    """Run each engine as the next line of a script says: (seconds, scale)."""
    monkeypatch.setattr(build_variance, "ROUNDS", 3)
    monkeypatch.setattr(build_variance, "RUNS", 3)
    session = digits_bundle.session("onnxruntime-cpu")

    def script(*lines):
        made = []

        def open_next(engine):
            made.append(Scripted(session, *lines[len(made)]))
            return made[-1]

        open_next.made = made
        return open_next

    return script


def test_the_fastest_engine_that_verifies_is_kept(digits_copy, opened):
    reported = []
    runs = opened((0.02, 1.0), (0.0, 1.1), (0.005, 1.0))
    engine, found = best_of(RTX, digits_copy, ONE, 3, opened=runs, progress=lambda done, total: reported.append((done, total)))
    assert found.best == 2
    assert [trial.verified for trial in found.trials] == [True, False, True]
    assert found.trials[1].latency.p50 < found.trials[2].latency.p50 < found.trials[0].latency.p50
    assert found.to_json()["slowest_over_fastest"] > 2
    assert engine.facts["sha256"] == found.trials[2].sha256
    assert engine.file.parent == digits_copy.path / "engines"
    assert find_engine(RTX, digits_copy, ONE).read() == engine.read()
    assert reported == sorted(set(reported))
    assert reported[-1] == (3000, 3000)
    assert all(one.closed for one in runs.made)


def test_when_none_verifies_what_was_kept_stays(digits_copy, opened):
    before = engine_for(RTX, digits_copy, ONE)
    with pytest.raises(AccuracyTooLow, match="none of 2 engines"):
        best_of(RTX, digits_copy, ONE, 2, opened=opened((0.0, 1.5), (0.0, float("nan"))))
    assert find_engine(RTX, digits_copy, ONE).read() == before.read()


def test_one_build_has_no_spread(digits_copy, opened):
    with pytest.raises(UsageError, match="at least two"):
        best_of(RTX, digits_copy, ONE, 1, opened=opened((0.0, 1.0)))


def test_engines_that_cannot_be_run_here_are_not_built_for_nothing(digits_copy, command):
    from relu_deploy.backends import probe

    if probe(RTX).usable:
        pytest.skip("tests what happens without a GPU for TensorRT-RTX: run it on a machine that has none")
    with pytest.raises(BackendUnavailable):
        best_of(RTX, digits_copy, ONE, 3)
    done = command("compile", digits_copy.path, "--backend", RTX, "--repeat", "3")
    assert done.code == 3
    assert not (digits_copy.path / "engines").exists()


def test_the_timings_of_the_kept_engine_are_kept_for_the_next_build(digits_copy, opened, monkeypatch):
    built = []

    def with_timings(*arguments, **options):
        engine = engine_for(*arguments, **options)
        (engine.file.parent / "tensorrt.timing").write_bytes(b"%d" % len(built))
        built.append(engine)
        return engine

    monkeypatch.setattr(build_variance, "engine_for", with_timings)
    _, found = best_of(RTX, digits_copy, ONE, 2, opened=opened((0.02, 1.0), (0.0, 1.0)))
    assert found.best == 1
    assert (digits_copy.path / "engines" / "tensorrt.timing").read_bytes() == b"1"
