"""Whatever goes wrong is one line and an exit code; what could not be written is never a success."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from relu_deploy.cli.main import VERBS, as_reported, create_parser
from relu_deploy.cli.output import json_text
from relu_deploy.errors import InputError, Unsupported


def relu_deploy(*words, **options):
    command = [sys.executable, "-m", "relu_deploy", *map(str, words)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False, **options)


def test_every_verb_has_a_summary_and_a_parser():
    parser = create_parser()
    verbs = parser._subparsers._group_actions[0].choices
    assert tuple(verbs) == VERBS
    assert all(verb.description for verb in verbs.values())


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("x is bad", "do y"), 2, "x is bad"),
        (Unsupported("no such layer"), 3, "no such layer"),
        (OSError(28, "No space left on device", "/full/file"), 2, "/full/file: No space left"),
        (MemoryError(), 2, "not enough memory"),
        (RecursionError("maximum depth"), 70, "unexpected RecursionError: maximum depth"),
        (KeyError("weight\nof two lines"), 70, "unexpected KeyError"),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_one_line(error, code, words):
    shown = as_reported(error)
    assert shown.exit_code == code
    assert words in shown.message
    assert "\n" not in shown.message


def test_an_unexpected_error_is_one_line_and_exit_70_and_a_traceback_only_with_debug(tmp_path):
    broken = (
        "import sys\nimport relu_deploy.cli.zoo as verb\n"
        "def run(options): raise ZeroDivisionError('by nobody')\nverb.run = run\n"
        "from relu_deploy.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    for words, code in (["zoo"], 70), (["zoo", "--debug"], 1):
        answer = subprocess.run([sys.executable, "-c", broken, *words], capture_output=True, text=True, check=False)
        assert answer.returncode == code
        assert ("Traceback" in answer.stderr) is (code == 1)
        if code == 70:
            first, second = answer.stderr.splitlines()
            assert first == "error: unexpected ZeroDivisionError: by nobody"
            assert second.startswith("hint: this is a bug in relu-deploy")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as on Linux")
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["zoo"], ["zoo", "--json", "-"], ["zoo", "--json", "/dev/full"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_output_is_exit_2_and_one_line(words, unbuffered):
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        answer = relu_deploy(*words, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert answer.returncode == 2
    assert "No space left on device" in answer.stderr.splitlines()[0]
    assert len(answer.stderr.splitlines()) == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "latin-1"])
@pytest.mark.parametrize("words", [["--help"], ["zoo"], ["export", "--help"]])
def test_a_terminal_that_is_not_utf_8_shows_what_it_can(words, encoding):
    answer = relu_deploy(*words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout


def test_json_on_such_a_terminal_is_still_json():
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    answer = relu_deploy("zoo", "--json", "-", stdout=subprocess.PIPE, env=env)
    assert json.loads(answer.stdout)["schema"] == "relu-deploy/zoo/1"


def test_numbers_that_json_does_not_have_become_null_and_half_surrogates_escapes():
    content = {"a": float("inf"), "b": [float("nan"), 1.5], "name": "\ud800"}
    assert json.loads(json_text(content)) == {"a": None, "b": [None, 1.5], "name": "\ud800"}
    json_text(content).encode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with FIFOs, such as Linux")
def test_json_into_a_fifo_or_a_link_goes_into_it_and_leaves_it_there(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = subprocess.Popen(["cat", str(tmp_path / "fifo")], stdout=subprocess.PIPE, text=True)
    assert relu_deploy("zoo", "--json", tmp_path / "fifo", stdout=subprocess.DEVNULL).returncode == 0
    assert json.loads(reader.communicate(timeout=30)[0])["models"]
    assert (tmp_path / "fifo").is_fifo()
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    assert relu_deploy("zoo", "--json", tmp_path / "link", stdout=subprocess.DEVNULL).returncode == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "file").read_text())["models"]


@pytest.mark.skipif(os.name != "posix", reason="closes streams in a POSIX shell")
@pytest.mark.parametrize("streams", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error_and_no_file_takes_their_place(tmp_path, streams):
    """What is printed must neither end the command nor be written into the file that was opened next."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")

    def run(*words):
        shell = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-m", "relu_deploy", *words]
        return subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    made = run("export", "m.onnx", "-o", "m.rdb")
    assert made.returncode == 0, made.stdout + made.stderr
    assert json.loads((tmp_path / "m.rdb" / "manifest.json").read_text())["name"] == "m"
    assert run("zoo", "--json", "-").returncode == (0 if streams == "2>&-" else 2)
    refused = run("inspect", "missing.rdb")
    assert (refused.returncode, refused.stdout) == (2, "")


def test_a_thread_that_the_system_refuses_is_no_bug():
    assert as_reported(RuntimeError("can't start new thread")).exit_code == 2
    assert as_reported(RuntimeError("another")).exit_code == 70


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "link.onnx"])
def test_no_result_is_written_into_a_file_of_a_bundle(command, digits_copy, name):
    (digits_copy.path / "link.onnx").symlink_to(digits_copy.path / "model.onnx")
    target = digits_copy.path / name
    before = target.read_bytes()
    refused = command("zoo", "--json", target)
    assert (refused.code, "is a file of a bundle, and would break it" in refused.stderr) == (2, True)
    refused = command("verify", digits_copy.path, "--html", target, "--force", "--quiet")
    assert (refused.code, "is a file of a bundle" in refused.stderr) == (2, True)
    assert target.read_bytes() == before
    assert command("zoo", "--json", digits_copy.path / "zoo.json").code == 0


@pytest.mark.skipif(os.name != "posix", reason="closes the reading end of a pipe as on POSIX")
@pytest.mark.parametrize("words", [["zoo"], ["zoo", "--json", "-"], ["schema", "bench"], ["--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_exits_early_is_no_failed_check(words, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:  # noqa: PTH123 (a pipe)
        answer = relu_deploy(*words, stdout=closed, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    # Help is printed by the parser, before there is a command that could have finished.
    assert answer.returncode in ((0, 141) if words == ["--help"] else (0,))
    assert answer.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="closes the reading end of a pipe as on POSIX")
@pytest.mark.parametrize(("code", "words"), [(1, "render"), (141, "progress")])
def test_a_reader_that_exits_early_hides_neither_a_failed_check_nor_an_unfinished_command(code, words):
    """The work is done when the table is printed; what a command says before that shows that it is not."""
    script = (
        "import sys\nimport relu_deploy.cli.zoo as verb\nfrom relu_deploy.cli.output import finish\n"
        "def render(): print('a table' * 9999, flush=True)\n"
        f"def run(options):\n    finish(options, {{}}, render) if {words == 'render'} else render()\n    return 1\nverb.run = run\n"
        "from relu_deploy.cli.main import main\nsys.exit(main(['zoo']))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:  # noqa: PTH123 (a pipe)
        answer = subprocess.run([sys.executable, "-c", script], stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (code, "")
