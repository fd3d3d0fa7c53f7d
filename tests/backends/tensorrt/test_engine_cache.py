"""Engines that are kept: by the real TensorRT-RTX, which builds them without a GPU."""

import json
import multiprocessing
import shutil
from dataclasses import replace

import pytest

from relu_deploy.backends.tensorrt.building import engine_cache as engines
from relu_deploy.backends.tensorrt.building.engine_cache import engine_for, find_engine, folder_for
from relu_deploy.backends.tensorrt.options import BuildOptions
from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, UsageError

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install 'relu-deploy[rtx]')", exc_type=ImportError)

RTX = "tensorrt-rtx"
ONE = BuildOptions(((1, 1, 8),))


@pytest.fixture
def reported():
    return []


@pytest.fixture
def ask(digits_copy, reported):
    """Ask for the engine of a bundle of the test's own; `told` gets the warning lines."""
    return lambda options=ONE, bundle=digits_copy, **more: engine_for(RTX, bundle, options, warn=reported.append, **more)


def test_the_second_time_the_engine_that_was_built_is_taken(ask, reported, digits_copy):
    first, second = ask(), ask()
    assert (first.cache_hit, second.cache_hit) == (False, True)
    assert first.file == second.file
    assert first.file.parent == digits_copy.path / "engines"
    assert first.read() == second.read()
    assert reported == []
    assert find_engine(RTX, digits_copy, ONE).file == first.file


def test_the_bundle_stays_whole_with_engines_in_it(ask, digits_copy):
    ask()
    Bundle.open(digits_copy.path).check_files()


def test_an_engine_that_the_manifest_does_not_list_is_not_loaded(ask, reported, digits_copy):
    engine = ask()
    manifest = json.loads((digits_copy.path / "manifest.json").read_text())
    assert sorted(manifest.pop("engines")) == sorted(f"engines/{engine.file.stem}{ending}" for ending in (".engine", ".json"))
    (digits_copy.path / "manifest.json").write_text(json.dumps(manifest))
    assert find_engine(RTX, digits_copy, ONE) is None
    assert not ask().cache_hit
    assert "is not listed in the manifest" in reported[0]
    assert ask().cache_hit


@pytest.mark.parametrize(
    "other",
    [
        replace(ONE, profiles=((1, 4, 8),)),
        replace(ONE, profiles=((1, 1, 8), (16, 16, 16))),
        replace(ONE, tf32=True),
        replace(ONE, optimization_level=1),
        replace(ONE, compute_capabilities=("8.9",)),
        replace(ONE, workspace_bytes=2**28),
        replace(ONE, weight_streaming=True),
        replace(ONE, observable=True),
    ],
    ids=str,
)
def test_whatever_an_engine_depends_on_makes_it_another(ask, reported, other):
    assert ask().file != ask(other).file
    assert not reported


def test_the_same_wish_written_otherwise_is_the_same_engine(ask):
    first = ask(replace(ONE, compute_capabilities=("8.6", "8.9")))
    assert ask(replace(ONE, compute_capabilities=("sm_89", "SM86"))).cache_hit
    assert first.facts["device"] == "SM86 SM89"


def truncate(engine):
    engine.file.write_bytes(engine.read()[:-7])


def flip(engine):
    plan = bytearray(engine.read())
    plan[len(plan) // 2] ^= 1
    engine.file.write_bytes(plan)


def lose_note(engine):
    engine.file.with_suffix(".json").unlink()


def cut_note(engine):
    note = engine.file.with_suffix(".json")
    note.write_text(note.read_text()[:200])


def lose_engine(engine):
    engine.file.unlink()


def foreign(engine):
    note = engine.file.with_suffix(".json")
    facts = json.loads(note.read_text())
    note.write_text(json.dumps({**facts, "graph": "0" * 64}))


def emptied(engine):
    note = engine.file.with_suffix(".json")
    facts = json.loads(note.read_text())
    note.write_text(json.dumps({name: value for name, value in facts.items() if name != "sha256"}))


@pytest.mark.parametrize(
    "harm", [truncate, flip, lose_note, cut_note, lose_engine, foreign, emptied], ids=lambda each: each.__name__
)
def test_an_entry_that_is_not_what_was_built_is_rebuilt_with_one_line(ask, reported, digits_copy, harm):
    engine = ask()
    harm(engine)
    assert find_engine(RTX, digits_copy, ONE) is None
    again = ask()
    assert not again.cache_hit
    assert len(reported) == 1
    assert "building a new one" in reported[0]
    assert again.read()
    assert ask().cache_hit
    assert len(reported) == 1


def test_an_engine_of_another_graph_or_version_is_outdated_and_said_so(ask, reported, digits_copy, digits_bundle, monkeypatch):
    old = ask()
    path = digits_copy.path / "model.onnx"
    import onnx

    proto = onnx.load(path)
    proto.doc_string = "changed"
    changed = digits_copy.add("model.onnx", proto.SerializeToString())
    new = ask(bundle=changed)
    assert not new.cache_hit
    assert "another graph" in reported.pop()
    # No graph of this bundle can use the old one any more.
    assert not old.file.exists()
    note = new.file.with_suffix(".json")
    facts = json.loads(note.read_text())
    new.file.rename(new.file.with_name("older.engine"))
    note.rename(note.with_name("older.json")).write_text(json.dumps({**facts, "library": "1.6.0.1"}))
    assert not ask(bundle=changed).cache_hit
    assert "built by tensorrt-rtx 1.6.0.1" in reported.pop()
    # Another container may still run that version.
    assert new.file.with_name("older.engine").exists()


def test_without_a_wish_the_engine_built_last_is_taken(ask, digits_copy):
    ask()
    later = ask(replace(ONE, profiles=((2, 4, 16),)))
    assert ask(None).file == later.file
    ask(replace(ONE, observable=True))
    assert ask(None).file == later.file, "an engine that was built to be observed is nobody's to deploy"
    assert find_engine(RTX, digits_copy).cache_hit
    shutil.rmtree(later.file.parent)
    assert find_engine(RTX, digits_copy) is None
    assert [shape[0] for shape in ask(None).facts["profiles"][0]["x"]] == list(engines.DEFAULT_BATCH)


def test_a_plain_file_keeps_its_engines_in_the_users_cache(ask, reported, digits_copy, tmp_path, monkeypatch):
    monkeypatch.setenv("RELU_DEPLOY_CACHE", str(tmp_path / "cache"))
    plain = Bundle.open(shutil.copy(digits_copy.onnx, tmp_path / "m.onnx"))
    assert folder_for(plain) == tmp_path / "cache" / "engines"
    engine = ask(bundle=plain)
    assert engine.file.parent == tmp_path / "cache" / "engines"
    # The same graph elsewhere is the same engine, if it goes by the same name.
    moved = tmp_path / "elsewhere" / "m.onnx"
    moved.parent.mkdir()
    assert ask(bundle=Bundle.open(shutil.copy(digits_copy.onnx, moved))).cache_hit
    assert reported == []


def test_weights_beside_the_graph_count_as_its_content(tmp_path, digits_copy, ask, monkeypatch):
    import onnx

    monkeypatch.setenv("RELU_DEPLOY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "beside.onnx"
    onnx.save(onnx.load(digits_copy.onnx), path, save_as_external_data=True, location="beside.data", size_threshold=0)
    first = ask(bundle=Bundle.open(path))
    data = bytearray((tmp_path / "beside.data").read_bytes())
    data[2] ^= 1
    (tmp_path / "beside.data").write_bytes(data)
    second = ask(bundle=Bundle.open(path))
    assert second.key != first.key


def test_an_interrupted_build_leaves_nothing_and_the_next_one_works(ask, reported, digits_copy):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(progress=interrupt)
    assert [file for file in (digits_copy.path / "engines").iterdir() if file.suffix != ".lock"] == []
    assert not ask().cache_hit
    assert reported == []


def test_what_killed_builds_leave_behind_is_cleared_away(ask, digits_copy):
    file = ask().file
    half = file.with_name(f".{file.name}.abcd")
    half.write_bytes(b"half")
    assert ask(rebuild=True).file == file
    assert not half.exists()


def test_sizes_that_do_not_fit_are_refused_before_anything_is_built(tmp_path, digits_copy):
    import onnx

    proto = onnx.load(digits_copy.onnx)
    for index, name in ((0, ""), (2, "height")):
        one = onnx.ModelProto()
        one.CopyFrom(proto)
        dimension = one.graph.input[0].type.tensor_type.shape.dim[index]
        if name:
            dimension.dim_param = name
        else:
            dimension.dim_value = 4
        onnx.save(one, tmp_path / f"{index}.onnx")
    with pytest.raises(UsageError, match="one size only"):
        engine_for(RTX, Bundle.open(tmp_path / "0.onnx"), ONE, folder=tmp_path / "e")
    with pytest.raises(UsageError, match="more than its batch") as refused:
        engine_for(RTX, Bundle.open(tmp_path / "2.onnx"), folder=tmp_path / "e")
    assert "--profile x=" in refused.value.hint
    assert not (tmp_path / "e").exists()


def test_a_place_that_cannot_be_written_is_named(ask, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write to"):
        ask(folder=tmp_path / "file" / "engines")


def _build_one(path, results):
    lines = []
    engine = engine_for(RTX, Bundle.open(path), ONE, warn=lines.append)
    results.put((engine.cache_hit, str(engine.file), engine.facts["sha256"], lines))


def test_of_two_processes_that_want_the_same_engine_one_builds_it(digits_copy):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_build_one, args=(digits_copy.path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(hit for hit, *_ in answers) == [False, True, True]
    assert len({(file, sha) for _, file, sha, _ in answers}) == 1
