"""The house rules that a machine can check: who imports whom, and what is imported when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import relu_deploy

PACKAGE = Path(relu_deploy.__file__).parent
FLOORS = (
    ("definition", "errors", "records", "tensors", "paths", "gc_pause", "latency_stats"),
    ("graph", "bundle", "data", "tasks"),
    ("backends", "zoo"),
    ("activations", "compilation", "exporting", "optimization", "verification"),
    ("benchmark", "packaging", "reporting", "serving", "cli", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: `bundle.session(...)` is how people want to say it; the import stands inside that method
ALLOWED_UPWARD = {("bundle", "backends")}
RUNTIMES = ("torch", "onnxruntime", "tensorrt", "tensorrt_rtx", "onnxscript")


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> set[str]:
    names = set()
    tree = ast.parse(file.read_text())
    guarded = [node for node in ast.walk(tree) if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"]
    skipped = {id(inner) for node in guarded for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_a_floor():
    rooms = {room_of(file) for file in FILES} - {"__init__", "__pycache__"}
    assert rooms <= set(FLOOR_OF)


def test_imports_point_downward_or_sideways_only():
    upward = []
    for file in FILES:
        room = room_of(file)
        if room == "__init__":
            continue
        for name in imports_of(file):
            parts = name.split(".")
            if parts[0] == "relu_deploy" and len(parts) > 1 and parts[1] != room:
                target = parts[1]
                if FLOOR_OF[target] > FLOOR_OF[room] and (room, target) not in ALLOWED_UPWARD:
                    upward.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert upward == []


def test_rooms_form_no_cycle():
    edges = {}
    for file in FILES:
        room = room_of(file)
        for name in imports_of(file):
            parts = name.split(".")
            if parts[0] == "relu_deploy" and len(parts) > 1 and parts[1] != room and (room, parts[1]) not in ALLOWED_UPWARD:
                edges.setdefault(room, set()).add(parts[1])
    done, path = set(), []

    def visit(room):
        assert room not in path, f"cycle: {' -> '.join([*path, room])}"
        if room in done:
            return
        path.append(room)
        for target in edges.get(room, ()):
            visit(target)
        path.pop()
        done.add(room)

    for room in list(edges):
        visit(room)


@pytest.mark.parametrize(
    "room",
    ["graph", "bundle", "definition", "errors", "tensors", "data", "tasks", "reporting"],
)
def test_pure_rooms_import_no_runtime(room):
    guilty = [
        f"{file.relative_to(PACKAGE)}: {name}"
        for file in FILES
        if room_of(file) == room
        for name in imports_of(file)
        if name.split(".")[0] in RUNTIMES
    ]
    assert guilty == []


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["zoo"], ["zoo", "--json", "-"], ["export", "--help"], ["export", "nosuch", "-o", "x.rdb"], ["verify"]],
)
def test_help_zoo_and_argument_errors_import_no_runtime(arguments):
    code = (
        "import sys\nfrom relu_deploy.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write('LOADED ' + ' '.join(m for m in ('torch', 'onnxruntime', 'tensorrt', 'onnx', 'onnx_ir') if m in sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stderr.rsplit("LOADED", 1)[1].split() == []


@pytest.mark.parametrize("verb", ["--help", "zoo"])
def test_what_must_answer_at_once_does_not_even_load_numpy(verb):
    code = (
        "import sys\nfrom relu_deploy.cli.main import main\n"
        f"try:\n    main([{verb!r}])\nexcept SystemExit:\n    pass\n"
        "sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_importing_the_package_loads_nothing_else():
    code = "import sys, relu_deploy; print([m for m in sys.modules if m.startswith('relu_deploy.')], 'numpy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[] False"


def test_the_public_names_are_what_they_say_even_after_their_modules_were_imported():
    import relu_deploy.benchmark.roofline
    import relu_deploy.definition
    import relu_deploy.exporting.exporter
    import relu_deploy.verification.verdict

    for name in relu_deploy.__all__:
        assert getattr(relu_deploy, name) is not None
    assert callable(relu_deploy.verify)
    assert callable(relu_deploy.export)
    assert callable(relu_deploy.bench)
    assert relu_deploy.relu([-1, 1]).tolist() == [0, 1]
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = relu_deploy.nonsense


def test_no_source_file_is_longer_than_one_idea():
    assert [file.name for file in FILES if len(file.read_text()) > 20_000] == []
