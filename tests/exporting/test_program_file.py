"""A `.pt2` file is loaded only if loading it reads data and runs nothing; everything else needs --trust-source."""

import io
import json
import os
import pickle
import struct
import zipfile

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'relu-deploy[torch]'")

from relu_deploy.backends.torch.program_file import TARGET, check_program_file, is_size, load_program  # noqa: E402
from relu_deploy.errors import InputError  # noqa: E402


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A program with two varying sizes, weights, a buffer and nested arguments."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.constant = nn.Linear(4, 2), torch.ones(2)

        def forward(self, x, *, pair):
            return {"y": torch.relu(self.last(x) + self.constant), "z": (pair["a"] * 2).reshape(-1)}

    dims = {"x": {0: torch.export.Dim("n")}, "pair": {"a": {0: torch.export.Dim("m")}}}
    arguments = (torch.randn(3, 4),), {"pair": {"a": torch.randn(5, 2)}}
    file = tmp_path_factory.mktemp("programs") / "net.pt2"
    torch.export.save(torch.export.export(Net().eval(), *arguments, dynamic_shapes=dims), file)
    return file


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def rewritten(program, target, change, compression=zipfile.ZIP_STORED, extra=None):
    """Copy the archive, with each member's content passed through `change(name, content)`."""
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(target, "w", compression) as made:
        for member in source.infolist():
            name = member.filename.partition("/")[2]
            made.writestr(member.filename, change(name, source.read(member)))
        for name, content in (extra or {}).items():
            made.writestr(f"net/{name}", content)
    return target


def in_model(old, new):
    """Return a change of the program's JSON."""
    return lambda name, content: content.replace(old, new) if name == "models/model.json" else content


def test_what_torch_saves_passes_and_gives_the_same_answer(program):
    check_program_file(program)
    module = load_program(program).module()
    assert module(torch.ones(2, 4), pair={"a": torch.ones(3, 2)})["z"].tolist() == [2.0] * 6


def test_a_pickle_in_the_sample_inputs_is_refused_and_not_run(program, tmp_path):
    buffer = io.BytesIO()
    torch.save(((Payload(tmp_path / "run"),), {}), buffer)
    change = lambda name, content: buffer.getvalue() if name == "data/sample_inputs/model.pt" else content  # noqa: E731
    file = rewritten(program, tmp_path / "evil.pt2", change)
    with pytest.raises(InputError, match="can run code when it is loaded") as raised:
        load_program(file)
    assert "--trust-source" in raised.value.hint
    assert not (tmp_path / "run").exists()


def test_an_archive_in_which_torch_finds_another_pickle_than_python_is_refused_and_not_run(program, tmp_path):
    buffer = io.BytesIO()
    torch.save(((Payload(tmp_path / "run"),), {}), buffer)
    change = lambda name, content: buffer.getvalue() if name == "data/sample_inputs/model.pt" else content  # noqa: E731
    evil = rewritten(program, tmp_path / "evil.pt2", change, extra={"extra/fill": bytes(10_000)}).read_bytes()
    good = rewritten(program, tmp_path / "good.pt2", lambda _, content: content, extra={"extra/fill": b""}).read_bytes()
    (evil_size, evil_start), (size, start) = (struct.unpack_from("<2L", archive, len(archive) - 10) for archive in (evil, good))
    assert size == evil_size
    # Python takes the directory before the last record and moves what it says; torch takes the one at the place in the record.
    directory, place = bytearray(good[start : start + size]), 0
    while place < size:
        (offset,) = struct.unpack_from("<L", directory, place + 42)
        struct.pack_into("<L", directory, place + 42, offset - start + evil_start)
        place += 46 + sum(struct.unpack_from("<3H", directory, place + 28))
    end = good[-22:-10] + struct.pack("<2LH", size, evil_start, 0)
    file = tmp_path / "both.pt2"
    file.write_bytes(evil[:-22] + good[:start] + directory + end)
    with zipfile.ZipFile(file) as read, zipfile.ZipFile(tmp_path / "good.pt2") as expected:
        assert [read.read(name) for name in read.namelist()] == [expected.read(name) for name in expected.namelist()]
    with pytest.raises(InputError, match="readers may read differently"):
        load_program(file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda archive: bytes(100) + archive,
        lambda archive: archive[:-2] + b"\3\0abc",
    ],
    ids=["something before it", "a comment"],
)
def test_an_archive_that_is_not_as_torch_writes_it_is_refused(program, tmp_path, change):
    (tmp_path / "odd.pt2").write_bytes(change(program.read_bytes()))
    with pytest.raises(InputError):
        check_program_file(tmp_path / "odd.pt2")


@pytest.mark.parametrize("config", ["weights/model_weights_config.json", "constants/model_constants_config.json"])
def test_pickled_weights_and_constants_are_refused(program, tmp_path, config):
    def change(name, content):
        if name != f"data/{config}":
            return content
        fields = json.loads(content)
        for facts in fields["config"].values():
            facts["use_pickle"] = True
        return json.dumps(fields)

    with pytest.raises(InputError, match="as a pickle"):
        load_program(rewritten(program, tmp_path / "evil.pt2", change))


@pytest.mark.parametrize(
    "name", ["data/weights/model.pt", "data/constants/custom_obj_0", "data/aotinductor/model/x.so", "code.py"]
)
def test_a_member_that_a_plain_program_does_not_have_is_refused(program, tmp_path, name):
    file = rewritten(program, tmp_path / "evil.pt2", lambda _, content: content, extra={name: pickle.dumps(1)})
    with pytest.raises(InputError, match="not part of a plain program"):
        load_program(file)


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.hub.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "_operator.methodcaller",
        "#x:y",
    ],
)
def test_an_operator_that_does_more_than_compute_is_refused(program, tmp_path, target):
    file = rewritten(program, tmp_path / "evil.pt2", in_model(b"torch.ops.aten.relu.default", target.encode()))
    with pytest.raises(InputError, match="it calls"):
        load_program(file)
    assert not TARGET.fullmatch(target)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').mkdir('x')",
        "Symbol('s1').__class__",
        "lambdify('x', 'y')",
        "Symbol('os.system')",
        "s1 if s2 else s3",
        "[s1]",
        "9**9**9",
        "9**(9**9)",
        "9**999999999",
        "(((9**99)**99)**99)**99",
        "Pow(9, 999999999)",
        "Pow(Pow(9, 999), 999)",
        "Pow(9, 9)**99",
    ],
)
def test_an_expression_that_is_no_size_is_refused(program, tmp_path, expression):
    def change(name, content):
        if name != "models/model.json":
            return content
        text = json.dumps(json.loads(content))
        start = text.index('"expr_str": "') + len('"expr_str": "')
        return text[:start] + expression + text[text.index('"', start) :]

    with pytest.raises(InputError, match="is not the size of an axis"):
        load_program(rewritten(program, tmp_path / "evil.pt2", change))


@pytest.mark.parametrize(
    "size",
    [
        "s17",
        "2*s0 + 1",
        "Mul(Integer(4), Symbol('s12', positive=True, integer=True))",
        "FloorDiv(s0, 2)",
        "4*s17**2",
        "Pow(Symbol('s17'), Integer(2))",
    ],
)
def test_sizes_that_torch_writes_are_expressions(size):
    assert is_size(size)


def test_arguments_in_a_container_of_another_module_are_refused(program, tmp_path):
    change = in_model(b'\\"builtins.dict\\"', b'\\"collections.defaultdict\\"')
    with pytest.raises(InputError, match=r"in a collections\.defaultdict"):
        load_program(rewritten(program, tmp_path / "evil.pt2", change))


def test_a_compressed_archive_is_refused_because_it_may_be_a_bomb(program, tmp_path):
    with pytest.raises(InputError, match="is compressed"):
        load_program(rewritten(program, tmp_path / "evil.pt2", lambda _, content: content, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_program_is_refused(tmp_path, content):
    (tmp_path / "x.pt2").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt2"):
        load_program(tmp_path / "x.pt2")


def test_a_program_that_torch_reads_and_cannot_write_is_refused_and_nothing_is_left(program, tmp_path, command):
    def without_a_name(name, content):
        if name != "models/model.json":
            return content
        read = json.loads(content)
        graph = read["graph_module"]["module_call_graph"]
        graph[-1]["fqn"] = None
        return json.dumps(read).encode()

    file = rewritten(program, tmp_path / "net.pt2", without_a_name)
    made = command("export", file, "-o", tmp_path / "net.rdb", "--quiet")
    assert made.code == InputError.exit_code
    assert "the program cannot be saved" in made.stderr
    assert not (tmp_path / "net.rdb").exists()
