"""Generated corrupt and hostile files through the command line: each ends with an exit code that is meant, in time, and runs no code.

A short run of what `make fuzz` runs for hours; the files that once failed are in it, by seed.
"""

import random
import sys

import pytest
from bundles import exported
from command_runner import CommandRunner, Limits
from file_cases import KINDS, make_case
from hardening_originals import make_originals
from model_mutations import hostile_model
from onnx_bombs import BOMBS
from seed_models import SEED_MODELS

pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc: run this on Linux")

SEED = 1
COUNTS = {
    "model": 60,
    "bundle": 30,
    "arrays": 8,
    "pictures": 8,
    "texts": 3,
    "labels": 5,
    "weights": 6,
    "program": 2,
    "settings": 12,
}
#: kind and seed of files that once ended in a fault
FAILED = (("arrays", 2000321), ("model", 11000101), ("model", 12000102))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return make_originals(tmp_path_factory.mktemp("originals"), exported("digits").path, exported("language_id").path)


def faults_of(cases, originals, folder):
    found = []
    with CommandRunner(originals.canary, Limits(seconds=120)) as runner:
        for number, (kind, seed) in enumerate(cases):
            place = folder / str(number)
            place.mkdir()
            case = make_case(kind, seed, place, originals)
            for words in case.commands:
                outcome = runner.run(words)
                if outcome.faults:
                    found.append((kind, seed, case.label, words, outcome.faults, outcome.reply.get("output", "")[-500:]))
    return found


def test_every_kind_of_hostile_file_is_read_or_refused(originals, tmp_path):
    assert COUNTS.keys() == KINDS.keys()
    cases = [(kind, SEED + at) for kind, count in COUNTS.items() for at in range(count)]
    assert faults_of([*FAILED, *cases], originals, tmp_path) == []


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_model_made_to_exhaust_its_reader_can_be_generated(name):
    assert len(BOMBS[name](random.Random(0))) > 50


def test_the_models_that_mutations_start_from_are_valid_and_files_depend_on_their_seed_alone():
    import onnx

    for make in SEED_MODELS.values():
        onnx.checker.check_model(make())
    assert hostile_model(7) == hostile_model(7)
    assert len({hostile_model(seed)[1] for seed in range(50)}) > 40


def test_a_command_that_hangs_dies_or_runs_code_is_a_fault(tmp_path, monkeypatch):
    import command_runner

    script = tmp_path / "command_worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "for line in sys.stdin:\n"
        "    words = json.loads(line)\n"
        "    if words == ['hang']: time.sleep(60)\n"
        "    if words == ['die']: os.abort()\n"
        "    if words == ['code']: os.mkdir(sys.argv[1] + '-canary')\n"
        "    reply = {'code': 70 if words == ['bug'] else 2, 'escaped': '', 'peak_mib': 9e9 if words == ['grow'] else 1.0,\n"
        "             'held_mib': 1.0, 'output': 'Traceback (most recent call last)' if words == ['trace'] else ''}\n"
        "    os.write(int(sys.argv[2]), (json.dumps(reply) + '\\n').encode())\n"
    )
    monkeypatch.setattr(command_runner, "HERE", tmp_path)
    with CommandRunner(tmp_path / "canary", Limits(seconds=3)) as runner:
        monkeypatch.setattr(runner, "_canary", type(tmp_path)(runner._folder.name) / "output-canary")
        found = {word: runner.run([word]).faults for word in ("fine", "hang", "die", "code", "bug", "grow", "trace")}
    assert found == {
        "fine": (),
        "hang": ("hang",),
        "die": ("crash",),
        "code": ("code run",),
        "bug": ("exit code",),
        "grow": ("memory",),
        "trace": ("traceback",),
    }
