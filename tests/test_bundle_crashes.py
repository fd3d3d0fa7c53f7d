"""A bundle whose writer is killed, or runs out of disk, at any system call opens as what it was before or after; nothing is left over.

The writer runs in a forked process that ends, or fails, at the N-th call that touches a file, for every N.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relu_deploy.bundle import SCHEMA, Bundle, create_bundle, seal
from relu_deploy.errors import InputError

TENSOR = {"name": "x", "dtype": "float32", "shape": ["batch", 4]}
FIELDS = {"schema": SCHEMA, "name": "tiny", "source": {"kind": "module", "spec": "Tiny"}, "opset": 20}
FIELDS |= {"inputs": [TENSOR], "outputs": [TENSOR], "variants": {}}
VARIANT = {"int8-cpu": {"precision": "int8", "target": "cpu", "checked_against": "model.onnx"}}
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.scandir")


def export(path, graph):
    with create_bundle(path, force=True) as folder:
        (folder / "model.onnx").write_bytes(graph)
        (folder / "reports").mkdir()
        (folder / "reports" / "verify.json").write_text("old")
        seal(folder, FIELDS)


#: What the writers do: a first export, an export over a bundle, a verify's reports, and an optimize's variant.
WRITERS = {
    "export": lambda path: export(path, b"new graph"),
    "export-over": lambda path: export(path, b"new graph"),
    "verify": lambda path: Bundle.open(path).update({"reports/verify.json": "new", "reports/verify.html": "page"}),
    "optimize": lambda path: Bundle.open(path).update(
        {"variants/int8-cpu.onnx": b"small", "reports/verify.json": "newer"}, variants=VARIANT
    ),
}


def state(path):
    """What a reader sees: the content of every file of the manifest, whose hashes hold."""
    if not path.exists():
        return None
    bundle = Bundle.open(path)
    return {name: bundle.file(name).read_bytes().decode() for name in sorted(bundle.manifest["files"])} | {
        "variants": list(bundle.manifest["variants"])
    }


def leftovers(parent):
    """Every file that is not part of the bundle."""
    path = parent / "tiny.rdb"
    known = {path / name for name in Bundle.open(path).manifest["files"]} | {path / "manifest.json"} if path.exists() else set()
    return sorted(str(file.relative_to(parent)) for file in parent.rglob("*") if file.is_file() and file not in known)


def interrupt(writer, path, number, how):
    """Run the writer in a child that is interrupted at its `number`-th call; return whether it came so far, and its exit code."""
    child = os.fork()
    if child == 0:
        count = 0

        def on_event(event, arguments):
            nonlocal count
            if event not in EVENTS or (event == "open" and str(path.parent) not in str(arguments[0])):
                return
            count += 1
            if count == number:
                if how == "kill":
                    os._exit(99)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.fsync = lambda handle: on_event("os.rename", ())
        sys.addaudithook(on_event)
        code = 0
        try:
            WRITERS[writer](path)
        except Exception as error:
            code = getattr(error, "exit_code", 1)
        os._exit(code + 100 if count >= number and how != "kill" else code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code >= 99, code - 100 if code >= 100 else code


def try_all(writer, how, folder):
    """Interrupt the writer at each of its calls and print what was found as JSON."""
    parent = Path(folder)
    path = parent / "tiny.rdb"
    faults, points = [], 0
    # Nothing here cuts the power, and waiting for the disk takes most of the time.
    os.fsync = lambda handle: None

    def fresh():
        shutil.rmtree(parent)
        parent.mkdir()
        if writer != "export":
            export(path, b"old graph")

    fresh()
    before = state(path)
    WRITERS[writer](path)
    after = state(path)
    assert before != after
    assert leftovers(parent) == []
    while True:
        fresh()
        reached, code = interrupt(writer, path, points + 1, how)
        if not reached:
            break
        points += 1
        if how == "fail":
            if code not in (0, 2):
                faults.append(f"call {points}: exit {code}")
            if code == 2 and leftovers(parent) and state(path) == before:
                faults.append(f"call {points}: leaves {leftovers(parent)}")
        try:
            if (found := state(path)) not in (before, after):
                faults.append(f"call {points}: opens as {found}")
            WRITERS[writer](path)
            if state(path) != after or leftovers(parent):
                faults.append(f"call {points}: after the next writer {leftovers(parent)}, {state(path)}")
        except Exception as error:
            faults.append(f"call {points}: {error}")
    print(json.dumps({"points": points, "faults": faults}))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork, such as Linux")
@pytest.mark.parametrize("how", ["kill", "fail"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_bundle_interrupted_at_any_call_opens_as_its_old_or_its_new_self(tmp_path, writer, how):
    # A process of its own, because an audit hook stays and a fork of one with threads may hang.
    call = f"from tests.test_bundle_crashes import try_all; try_all({writer!r}, {how!r}, {str(tmp_path / 'place')!r})"
    (tmp_path / "place").mkdir()
    root = Path(__file__).parents[1]
    answer = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, cwd=root, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["points"] >= 10
    assert found["faults"] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork, such as Linux")
def test_two_writers_of_one_bundle_wait_for_each_other(tmp_path):
    export(tmp_path / "tiny.rdb", b"graph")
    code = (
        "import sys; from relu_deploy.bundle import Bundle\n"
        "for number in range(20): Bundle.open(sys.argv[1]).update({'reports/verify.json': sys.argv[2] * number, "
        "f'reports/{sys.argv[2]}.txt': str(number)})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "tiny.rdb"), name]) for name in "ab"]
    for _ in range(50):
        Bundle.open(tmp_path / "tiny.rdb")
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    bundle = Bundle.open(tmp_path / "tiny.rdb")
    assert (bundle.file("reports/a.txt").read_text(), bundle.file("reports/b.txt").read_text()) == ("19", "19")
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork, such as Linux")
def test_variants_that_two_processes_add_at_once_are_both_kept(tmp_path):
    path = tmp_path / "tiny.rdb"
    export(path, b"graph")
    code = (
        "import sys; from relu_deploy.bundle import Bundle\n"
        "bundle = Bundle.open(sys.argv[1]); print('opened', flush=True); sys.stdin.readline()\n"
        "entry = {'precision': 'int8', 'target': sys.argv[2], 'checked_against': 'model.onnx'}\n"
        "name = 'int8-' + sys.argv[2]\n"
        "bundle.update({f'variants/{name}.onnx': b'small'}, variants={name: entry})"
    )
    words = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    writers = [subprocess.Popen([*words, target], stdin=pipe, stdout=pipe, text=True) for target in ("cpu", "cuda")]
    # Both have read the manifest before either writes.
    assert [writer.stdout.readline() for writer in writers] == ["opened\n", "opened\n"]
    for writer in writers:
        writer.communicate("go\n", timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(Bundle.open(path).manifest["variants"]) == ["int8-cpu", "int8-cuda"]


def test_a_variant_of_a_model_that_was_replaced_meanwhile_is_refused(tmp_path):
    path = tmp_path / "tiny.rdb"
    export(path, b"graph")
    opened = Bundle.open(path)
    export(path, b"another graph")
    with pytest.raises(InputError, match="replaced by another model"):
        opened.update({"variants/int8-cpu.onnx": b"small"}, variants=VARIANT)
    assert Bundle.open(path).manifest["variants"] == {}
