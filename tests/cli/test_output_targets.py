"""Outputs of every verb: what cannot be written is refused before any work, and what can be is written whole, or into a device."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from relu_deploy.cli.main import VERBS
from relu_deploy.errors import InputError
from relu_deploy.storage.targets import check_folder_above, check_target

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="devices and links are those of POSIX: run this on Linux")

#: options that name a file, by the words of a command that has work to do first: m.onnx is no model, and no error is about it
FILES = [
    ("zoo", "--json"),
    ("export m.onnx -o new.rdb", "--json"),
    ("inspect m.onnx", "--json"),
    ("verify m.onnx --force", "--json"),
    ("verify m.onnx --force", "--html"),
    ("verify m.onnx --force", "--junit"),
    ("verify m.onnx --force", "--summary"),
    ("prove --backend none", "--json"),
    ("census m.onnx --data none", "--json"),
    ("optimize m.onnx -o new.rdb --force", "--json"),
    ("optimize m.onnx -o new.rdb --force", "--html"),
    ("optimize m.onnx -o new.rdb --force --precision int8", "--sensitivity"),
    ("compile m.onnx --backend tensorrt-rtx", "--json"),
    ("compile m.onnx --backend tensorrt-rtx --force", "-o"),
    ("bench m.onnx --force", "--json"),
    ("bench m.onnx --force", "--html"),
    ("bench m.onnx --force", "--summary"),
    ("predict m.onnx none.npz", "--json"),
    ("predict m.onnx none.npz --force", "-o"),
    ("serve m.onnx", "--json"),
    ("package m.onnx --for triton -o new", "--json"),
    ("sign m.onnx --key none", "--json"),
    ("check m.onnx --key none", "--json"),
    ("doctor", "--json"),
    ("schema zoo", "--json"),
]
FOLDERS = [
    ("export m.onnx --force", "-o"),
    ("optimize m.onnx --force", "-o"),
    ("package m.onnx --for triton --force", "-o"),
    ("predict m.onnx none.npz", "--draw"),
]
#: names at which no file can be written; each ends as the result file of `predict` has to
NO_FILE = (
    "folder.jsonl",
    "to-folder.jsonl",
    "to-nothing.jsonl",
    "loop.jsonl",
    "file/rows.jsonl",
    "m.rdb/rows.jsonl",
    "to-rows.jsonl",
    f"{'x' * 300}.jsonl",
)
NO_FOLDER = ("file/new", "loop.jsonl/new", f"{'x' * 300}/new")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with everything that must not be replaced."""
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(b"no model")
    Path("file").write_text("a file")
    Path("folder.jsonl").mkdir()
    Path("m.rdb").mkdir()
    listed = {"schema": "relu-deploy/bundle/1", "files": {"rows.jsonl": {}}}
    Path("m.rdb/manifest.json").write_text(json.dumps(listed))
    Path("m.rdb/rows.jsonl").write_text("listed")
    for name, target in (("folder", "folder.jsonl"), ("nothing", "nothing/at/all"), ("rows", "m.rdb/rows.jsonl")):
        Path(f"to-{name}.jsonl").symlink_to(target)
    Path("loop.jsonl").symlink_to("loop.jsonl")
    return tmp_path


def content_of(folder):
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(answer, name):
    assert answer.code == 2, answer.stderr
    first, *rest = answer.stderr.splitlines()
    assert first.startswith("error: ")
    assert name[:100] in first
    assert len(rest) <= 1
    assert not answer.stdout


def test_every_verb_is_in_the_tables():
    assert {words.split()[0] for words, _ in FILES} == set(VERBS)


@pytest.mark.parametrize(("words", "option"), FILES)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(command, world, words, option):
    before = content_of(world)
    for name in NO_FILE:
        if words.startswith("compile") and option == "-o" and "folder" in name:
            continue  # an engine goes into a folder too
        assert_refused(command(*words.split(), option, name), name)
    assert content_of(world) == before


@pytest.mark.parametrize(("words", "option"), FOLDERS)
def test_a_folder_that_cannot_be_made_is_refused_before_any_work(command, world, words, option):
    before = content_of(world)
    for name in NO_FOLDER:
        assert_refused(command(*words.split(), option, name), name)
    assert content_of(world) == before


@pytest.mark.parametrize(
    "words",
    [
        "export m.onnx -o new.rdb --json new.rdb/manifest.json",
        "optimize m.onnx -o new.rdb --html new.rdb/reports/a.html",
        "package m.onnx --for triton -o new --json new/m/config.pbtxt",
        "export folder.jsonl/../m.rdb/rows.jsonl -o m.rdb --force",
        "optimize m.onnx --calibration m.rdb/rows.jsonl -o m.rdb --force",
        "optimize m.onnx -o new.rdb --precision int8 --sensitivity m.onnx --force",
        "verify m.onnx --html a --junit ./a",
        "export m.onnx -o same --json same",
        "inspect m.onnx --json m.onnx",
    ],
)
def test_no_output_is_inside_another_or_takes_an_input_with_it(command, world, words):
    before = content_of(world)
    answer = command(*words.split())
    assert_refused(answer, "--")
    assert content_of(world) == before


def test_an_empty_name_is_not_silence(command, world):
    for words in (["zoo", "--json", ""], ["verify", "m.onnx", "--summary", ""], ["verify", "m.onnx", "--html", ""]):
        answer = command(*words)
        assert answer.code == 2
        assert answer.stderr.count("\n") == 2


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs the users of POSIX: run this on Linux")
def test_a_place_without_permission_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    (tmp_path / "folder").chmod(0o555)
    user = os.geteuid()
    if user == 0:
        for folder in (tmp_path, *tmp_path.parents):
            if folder != Path(folder.anchor) and folder.stat().st_uid == 0 and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o055)
        os.seteuid(65534)
    try:
        for name in ("folder/file", "folder/new", "folder/new/file"):
            with pytest.raises(InputError, match=r"no permission|Permission denied"):
                check_target(tmp_path / name)
        with pytest.raises(InputError, match="no permission"):
            check_folder_above(tmp_path / "folder" / "new.rdb")
    finally:
        os.seteuid(user)
    check_target(tmp_path / "new" / "file")


@pytest.fixture
def rows(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.zeros((2, 1, 28, 28), np.float32))
    return tmp_path / "rows.npz"


@pytest.mark.parametrize(
    "words",
    [
        "zoo",
        "schema zoo",
        "inspect {model}",
        "verify {model} --html OUT --junit OUT --summary OUT --quiet --force",
        "census {model} --data {rows} --quiet",
        "bench {model} --backend onnxruntime-cpu --seconds 0.01 --html OUT --summary OUT --quiet --force",
        "predict {model} {rows} --quiet",
        "package {model} --for triton -o repository",
    ],
)
def test_results_are_written_into_devices_links_and_fifos_which_stay(command, tmp_path, digits_bundle, rows, words):
    line = [word.format(model=digits_bundle.path / "model.onnx", rows=rows) for word in words.split()]
    if line[0] in ("predict", "package"):
        line[1] = str(digits_bundle.path)

    def run(target, result):
        return command(*[target if word == "OUT" else word for word in line], "--json", result)

    answer = run("/dev/null", "/dev/full")
    assert (answer.code, answer.stderr.splitlines()[0]) == (2, "error: cannot write /dev/full: No space left on device")
    for device in ("/dev/null", "/dev/full"):
        assert stat.S_ISCHR(Path(device).stat().st_mode)
    if line[0] == "bench":
        return
    if line[0] == "package":
        line.append("--force")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "old.json").write_text("old")
    (tmp_path / "link.json").symlink_to("outside/old.json")
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["cat", "fifo"], stdout=subprocess.PIPE, cwd=tmp_path) as reader:
        assert run("/dev/null", "fifo").code == 0
        assert json.loads(reader.communicate(timeout=30)[0])["schema"].startswith("relu-deploy/")
    assert (tmp_path / "fifo").is_fifo()
    assert run("/dev/null", "link.json").code == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "outside" / "old.json").read_text())["schema"].startswith("relu-deploy/")
    # A name that is not UTF-8, in a folder that is missing.
    odd = os.fsdecode(b"new/folder/\xff\n.json")
    assert run("/dev/null", odd).code == 0
    assert json.loads((tmp_path / odd).read_text())["schema"].startswith("relu-deploy/")
    assert not list(tmp_path.glob(".relu-deploy-*.tmp"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the open files of /proc, as on Linux")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_by_name_is_written_into_wherever_the_shell_sends_it(tmp_path, name):
    (tmp_path / "log").write_text("before\n")
    (tmp_path / "link").symlink_to("/dev/stdout")
    with (tmp_path / "log").open("a") as log:
        words = [sys.executable, "-m", "relu_deploy", "zoo", "--json", name]
        answer = subprocess.run(words, stdout=log, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=60, check=False)
        log.write("after\n")
    assert (answer.returncode, answer.stderr) == (0, "")
    first, *lines, last = (tmp_path / "log").read_text().splitlines()
    assert (first, last) == ("before", "after")
    result, end = json.JSONDecoder().raw_decode("\n".join(lines))
    assert result["schema"] == "relu-deploy/zoo/1"
    assert len("\n".join(lines)[end:].strip().splitlines()) > len(result["models"])


def test_a_report_is_not_written_over_one_that_the_bundle_has_just_got(command, tmp_path, digits_copy):
    # Its name is free when the command starts, and listed when it ends.
    target = digits_copy.path / "reports" / "verify.json"
    answer = command("verify", digits_copy.path, "--junit", target, "--quiet")
    assert (answer.code, "is a file of a bundle" in answer.stderr) == (2, True)
    assert command("inspect", digits_copy.path).code == 0


def test_rows_through_a_link_to_no_file_are_written_or_leave_the_link(command, tmp_path, digits_bundle, rows):
    (tmp_path / "rows.jsonl").symlink_to("there.jsonl")
    answer = command("predict", digits_bundle.path, rows, "-o", "rows.jsonl", "--quiet")
    assert answer.code == 2
    assert "link" in answer.stderr
    assert (tmp_path / "rows.jsonl").is_symlink()
    assert not (tmp_path / "there.jsonl").exists()
