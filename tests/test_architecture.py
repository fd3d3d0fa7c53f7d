"""The house rules that a machine can check: who imports whom, and what is imported when."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import relu_deploy

PACKAGE = Path(relu_deploy.__file__).parent
#: a row may import from its own row and from those above it
LAYERS = (
    (
        "version",
        "definition",
        "errors",
        "records",
        "tensors",
        "paths",
        "graph_signature",
        "gc_pause",
        "interrupts",
        "latency_stats",
        "run_limit",
        "parent_process",
        "trial_outcome",
        "worker_process",
    ),
    ("storage", "graph", "bundle", "preprocessing", "data", "tasks"),
    ("backends", "zoo"),
    ("activations", "compilation", "exporting", "optimization", "verification"),
    ("benchmark", "packaging", "prediction", "reporting", "serving", "signing", "integrations", "cli", "__main__"),
)
LAYER_OF = {component: layer for layer, components in enumerate(LAYERS) for component in components}
#: `bundle.session(...)` asks the registry: the import stands inside that method. Its return type is a protocol of `backends.base`.
ALLOWED_UPWARD = {("bundle.py", "relu_deploy.backends"), ("bundle.py", "relu_deploy.backends.base")}
RUNTIMES = ("torch", "onnxruntime", "tensorrt", "tensorrt_rtx", "openvino", "onnxscript")


def module_of(file: Path) -> str:
    parts = ("relu_deploy", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_of(file): file for file in FILES}


def component_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imports_of(file: Path) -> frozenset[str]:
    """Return the modules that a file imports anywhere in it: at its top, in functions, and for its annotations alone."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            # `from package import module` imports the module.
            names |= {full if (full := f"{node.module}.{alias.name}") in MODULES else str(node.module) for alias in node.names}
    return frozenset(names)


def allowed(file: Path, name: str) -> bool:
    return (file.relative_to(PACKAGE).as_posix(), name) in ALLOWED_UPWARD


def test_every_component_has_a_layer():
    components = {component_of(file) for file in FILES} - {"__init__", "__pycache__"}
    assert components <= set(LAYER_OF)
    assert len(LAYERS) <= 5


def test_imports_point_downward_or_sideways_only():
    upward = []
    for file in FILES:
        component = component_of(file)
        if component == "__init__":
            continue
        for name in imports_of(file):
            parts = name.split(".")
            if (
                parts[0] == "relu_deploy"
                and len(parts) > 1
                and LAYER_OF[parts[1]] > LAYER_OF[component]
                and not allowed(file, name)
            ):
                upward.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert upward == []


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the circles of a graph, each once, from its first node in alphabetical order."""
    found, done = [], set()

    def visit(node, path):
        if node in path:
            found.append([*path[path.index(node) :], node])
            return
        if node in done:
            return
        for target in sorted(edges.get(node, ())):
            visit(target, [*path, node])
        done.add(node)

    for node in sorted(edges):
        visit(node, [])
    return found


def test_no_two_files_import_each_other_directly_or_round_a_circle():
    edges = {
        module: {name for name in imports_of(file) if name in MODULES and not allowed(file, name)}
        for module, file in MODULES.items()
    }
    assert cycles(edges) == []


def test_packages_form_no_cycle():
    edges = {}
    for file in FILES:
        for name in imports_of(file):
            parts = name.split(".")
            if parts[0] == "relu_deploy" and len(parts) > 1 and parts[1] != component_of(file) and not allowed(file, name):
                edges.setdefault(component_of(file), set()).add(parts[1])
    edges.pop("__init__", None)
    assert cycles(edges) == []


def test_the_search_for_circles_finds_them():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c", "b"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize(
    "component",
    ["graph", "bundle", "definition", "errors", "tensors", "preprocessing", "data", "tasks", "reporting"],
)
def test_pure_components_import_no_runtime(component):
    guilty = [
        f"{file.relative_to(PACKAGE)}: {name}"
        for file in FILES
        if component_of(file) == component
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
    import relu_deploy.verification.judging.verdict

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
