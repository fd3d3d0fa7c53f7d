"""The images: pins that agree with each other, a Dockerfile and a compose file whose parts exist and fit the command line."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from processes import python

from relu_deploy.cli.main import create_parser

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: what the images can be built with
EXTRAS = ("cuda", "gpu", "rtx-build", "rtx", "torch", "coco")
CUDA_MAJOR = "13"
TARGETS = ("rtx", "tensorrt")


def pins_of(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def instructions():
    """Return [instruction, its text] of the Dockerfile in order, comments dropped and continued lines joined."""
    lines = [line for line in (DOCKER / "Dockerfile.gpu").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


def stages():
    """Return {stage: (what it starts from, its instructions)}."""
    found = {}
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = (base, [])
        elif found:
            current[1].append((word, rest))
    return found


def requirements(*extras):
    answer = subprocess.run(
        [sys.executable, DOCKER / "requirements.py", *extras],
        stdin=(ROOT / "pyproject.toml").open("rb"),
        capture_output=True,
        text=True,
        check=True,
    )
    return [Requirement(line) for line in answer.stdout.splitlines()]


# ---------------------------------------------------------------- pins


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-gpu.txt"])
def test_every_constraint_is_one_exact_version_given_once(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert len(pins_of(name)) == len(lines)
    assert [package for package in pins_of(name) if canonicalize_name(package) != package] == []


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_gpu_pins_cover_the_package_and_each_extra_within_its_range(extra):
    pins = pins_of("constraints-gpu.txt")
    for requirement in requirements(extra):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} of extra {extra} has no exact version"
        assert requirement.specifier.contains(Version(pins[name])), f"{requirement} does not take {pins[name]}"


def test_what_make_installs_of_the_gpu_extras_is_pinned_too():
    pins = pins_of("constraints.txt")
    missing = [
        str(requirement) for requirement in requirements("rtx-build", "torch") if canonicalize_name(requirement.name) not in pins
    ]
    assert missing == []


def test_packages_in_both_lists_have_one_version():
    gpu, cpu = pins_of("constraints-gpu.txt"), pins_of("constraints.txt")
    assert {name: (gpu[name], cpu[name]) for name in gpu.keys() & cpu.keys() if gpu[name] != cpu[name]} == {}
    assert {"numpy", "onnx", "protobuf", "torch", "tensorrt-rtx-cu13"} <= gpu.keys() & cpu.keys()


def test_there_is_one_cuda_major():
    pins = pins_of("constraints-gpu.txt")
    suffixes = {match[1] for name in pins if (match := re.search(r"-cu(\d+)\b", name))}
    assert suffixes == {CUDA_MAJOR}
    versioned_as_cuda = (
        "cuda-python",
        "cuda-bindings",
        "cuda-toolkit",
        "nvidia-cuda-runtime",
        "nvidia-cuda-nvrtc",
        "nvidia-cublas",
    )
    majors = {name: pins[name].split(".")[0] for name in (*versioned_as_cuda, "nvidia-nvjitlink")}
    assert set(majors.values()) == {CUDA_MAJOR}, majors
    (python,) = (requirement for requirement in requirements("cuda") if requirement.name == "cuda-python")
    assert not python.specifier.contains(str(int(CUDA_MAJOR) - 1))
    assert not python.specifier.contains(str(int(CUDA_MAJOR) + 1))
    assert f'NVIDIA_REQUIRE_CUDA="cuda>={CUDA_MAJOR}.' in (DOCKER / "Dockerfile.gpu").read_text()


def test_the_parts_of_each_tensorrt_have_its_version():
    pins = pins_of("constraints-gpu.txt")
    rtx = {version for name, version in pins.items() if name.startswith("tensorrt-rtx")}
    full = {version for name, version in pins.items() if name == "tensorrt" or name.startswith("tensorrt-cu")}
    assert (len(rtx), len(full)) == (1, 1)
    assert full.pop().startswith("11.")


def test_both_flavours_of_onnx_runtime_are_never_installed_together():
    for extra in ("cuda", "gpu", "rtx", "torch"):
        assert "onnxruntime" not in {requirement.name for requirement in requirements(extra)}
    assert "onnxruntime" not in pins_of("constraints-gpu.txt")


def test_installed_packages_ask_for_nothing_that_the_pins_deny():
    from importlib.metadata import PackageNotFoundError, distribution

    pins, checked = pins_of("constraints-gpu.txt"), 0
    for name, pinned in pins.items():
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if Version(found.version).public != pinned:
            continue
        for text in found.requires or ():
            requirement = Requirement(text)
            expected = canonicalize_name(requirement.name)
            if expected in pins and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                assert requirement.specifier.contains(pins[expected]), f"{name} {pinned} needs {requirement}"
                checked += 1
    assert checked > 10


def test_no_extra_of_ours_is_left_unexpanded_and_an_unknown_one_is_an_error():
    names = {requirement.name for requirement in requirements("gpu")}
    assert {"onnxruntime-gpu", "cuda-python", "nvidia-ml-py", "tensorrt", "numpy"} <= names
    assert PROJECT["name"] not in names
    answer = subprocess.run(
        [sys.executable, DOCKER / "requirements.py", "nosuch"],
        stdin=(ROOT / "pyproject.toml").open("rb"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert "nosuch" in answer.stderr
    assert "hint: " in answer.stderr


# ---------------------------------------------------------------- the Dockerfile


def reaches_the_build(path):
    """Return whether .dockerignore lets `path` (relative to the root) into the context: the last line that matches decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        anywhere = line.removeprefix("!").startswith("**/")
        folders = [path, *map(str, Path(path).parents)][:-1]
        if any(fnmatch(folder, pattern) or (anywhere and fnmatch(Path(folder).name, pattern)) for folder in folders):
            kept = line.startswith("!")
    return kept


def copied():
    sources = []
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from="):
            sources += rest.split()[:-1]
    return sources


def test_the_dockerfile_copies_only_what_exists_and_what_dockerignore_lets_through():
    assert copied()
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert [source for source in copied() if not reaches_the_build(source)] == []


def test_everything_that_hatch_builds_the_package_from_is_copied():
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {PROJECT["readme"], *PROJECT["license-files"], *hatch["packages"], *hatch["force-include"], "pyproject.toml"}
    assert needed <= set(copied())


@pytest.mark.parametrize(
    "path",
    [".git/HEAD", ".venv/bin/python", "out/bench.html", "docker/models/a.rdb", "tests/conftest.py", "relu_deploy/__pycache__/a"],
)
def test_dockerignore_keeps_everything_else_out(path):
    assert not reaches_the_build(path)


def test_stages_start_from_the_pinned_base_or_from_one_another():
    ((_, default),) = [(word, rest) for word, rest in instructions() if word == "ARG" and rest.startswith("BASE=")]
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+", default), "an exact release, not a moving tag"
    python = default.removeprefix("BASE=python:").split("-")[0]
    assert f"CPython {'.'.join(python.split('.')[:2])}" in (ROOT / "constraints-gpu.txt").read_text()
    known = ["${BASE}"]
    for name, (base, steps) in stages().items():
        assert base in known
        sources = {
            rest.split()[0].removeprefix("--from=") for word, rest in steps if word == "COPY" and rest.startswith("--from=")
        }
        assert sources <= set(known)
        known.append(name)
    assert set(TARGETS) <= set(known)
    assert known[-1] == "rtx", "the last stage is what is built by default, and it must need no index of its own"


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_as_a_user_who_is_not_root(target):
    users = [rest for word, rest in stages()[target][1] if word == "USER"]
    assert users == ["10001:10001"], "by number, so that a cluster can see that it is not root"
    assert stages()[target][1][-1][0] == "USER"


def test_engines_of_a_read_only_bundle_are_kept_in_the_volume_of_the_cache(tmp_path, monkeypatch):
    from relu_deploy.backends.tensorrt.building import engine_cache

    text = (DOCKER / "Dockerfile.gpu").read_text()
    (cache,) = re.findall(r"^\s*RELU_DEPLOY_CACHE=(\S+)", text, re.MULTILINE)
    # The folder that the image opens to every user, and that docs and compose mount a volume at; HOME is /tmp.
    assert "install -d -m 1777 /cache" in text
    monkeypatch.setenv("RELU_DEPLOY_CACHE", cache)
    monkeypatch.setattr(engine_cache.os, "access", lambda path, mode: False)
    bundle = SimpleNamespace(is_folder=True, path=tmp_path)
    assert engine_cache.folder_for(bundle).is_relative_to("/cache")


def test_pip_installs_nothing_without_the_pins():
    commands = [
        command for word, rest in instructions() if word == "RUN" for command in rest.split("&&") if " install -" in command
    ]
    pip = [command for command in commands if "/pip " in command]
    assert len(pip) >= 4
    assert [command for command in pip if "-c constraints-gpu.txt" not in command] == []


def test_the_image_speaks_the_command_line_that_there_is():
    runtime = dict(stages()["runtime"][1])
    assert json.loads(runtime["ENTRYPOINT"]) == ["relu-deploy"]
    assert create_parser().parse_args(json.loads(runtime["CMD"])).verb == "doctor"
    check = runtime["HEALTHCHECK"].split(" CMD ")[1].split(" | ")
    assert create_parser().parse_args(shlex.split(check[0])[1:]).json == "-"
    assert shlex.split(check[1]) == ["python", runtime["COPY"].split()[-1]]
    assert "relu-deploy" in PROJECT["scripts"]


@pytest.mark.parametrize(("index", "code"), [("", 2), ("any", 0)])
def test_tensorrt_without_an_index_stops_with_the_reason(index, code):
    steps = stages()["build-tensorrt"][1]
    assert ("ARG", "NVIDIA_INDEX") in steps, "no default: no build may reach out to a host that nobody named"
    (guard,) = [rest for word, rest in steps if word == "RUN" and rest.startswith("test ")]
    answer = subprocess.run(["sh", "-c", guard], env={"NVIDIA_INDEX": index}, capture_output=True, text=True, check=False)
    assert answer.returncode == code
    assert ("hint: --build-arg NVIDIA_INDEX=URL" in answer.stderr) == (code == 2)


@pytest.mark.parametrize("file", [*sorted(DOCKER.glob("*.*")), ROOT / "constraints-gpu.txt"], ids=lambda path: path.name)
def test_nothing_names_a_host_to_fetch_from(file):
    assert "://" not in file.read_text()


# ---------------------------------------------------------------- health


def healthy(text):
    return subprocess.run([sys.executable, DOCKER / "healthy.py"], input=text, capture_output=True, text=True, check=False)


def test_health_is_what_doctor_says_about_the_gpu_backends():
    cpu = {"name": "onnxruntime-cpu", "usable": True, "reason": ""}
    gpu = {"name": "tensorrt", "usable": False, "reason": "no NVIDIA driver is installed"}
    bad = healthy(json.dumps({"backends": [cpu, gpu]}))
    assert (bad.returncode, bad.stderr) == (1, "tensorrt: no NVIDIA driver is installed\n")
    good = healthy(json.dumps({"backends": [cpu, gpu | {"usable": True}]}))
    assert (good.returncode, good.stdout) == (0, "usable: tensorrt\n")
    for nonsense in ("", "[]", "{}"):
        assert healthy(nonsense).returncode == 1


def test_health_follows_this_machine_s_doctor():
    doctor = subprocess.run(
        [python(), "-m", "relu_deploy", "doctor", "--quiet", "--json", "-"], capture_output=True, text=True, check=True
    )
    on_gpu = [b["name"] for b in json.loads(doctor.stdout)["backends"] if b["usable"] and re.search("cuda|tensorrt", b["name"])]
    assert healthy(doctor.stdout).returncode == (0 if on_gpu else 1)


# ---------------------------------------------------------------- building


@pytest.fixture
def engine(tmp_path):
    """Return an engine that only prints what it was asked to build, and a function that runs docker/build.sh with it."""
    script = tmp_path / "buildah"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)

    def build(*arguments, **environment):
        path = os.environ["PATH"]
        return subprocess.run(
            [DOCKER / "build.sh", *arguments],
            env={"PATH": path, "ENGINE": str(script), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return build


@pytest.mark.parametrize("target", TARGETS)
def test_build_names_the_image_as_compose_does_and_passes_options_on(engine, target):
    requested = engine(target, "--no-cache", BASE="mine:1", EXTRAS="cuda rtx torch").stdout.splitlines()
    assert requested[0] == "build"
    assert requested[-2:] == ["--no-cache", "."]
    assert requested[requested.index("--tag") + 1] == f"relu-deploy:{target}"
    assert requested[requested.index("--target") + 1] == target
    assert (ROOT / requested[requested.index("--file") + 1]).is_file()
    assert {"BASE=mine:1", "EXTRAS=cuda rtx torch"} <= set(requested)
    assert requested[requested.index("--format") + 1] == "docker", "an OCI image would lose its health check"
    assert "image: relu-deploy:${TARGET:-rtx}" in (DOCKER / "compose.yaml").read_text()


def test_build_refuses_a_target_that_there_is_not(engine):
    answer = engine("nosuch")
    assert answer.returncode == 2
    assert "error: there is no target nosuch\nhint: " in answer.stderr


# ---------------------------------------------------------------- compose


@pytest.fixture(scope="module")
def compose():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'relu-deploy[dev]'")

    text = re.sub(r"\$\{\w+(?::-([^}]*))?\}", lambda match: match[1] or "", (DOCKER / "compose.yaml").read_text())
    return yaml.safe_load(text)


def test_compose_has_one_shot_services_that_wait_to_be_asked(compose):
    assert set(compose["services"]) == {"gpu", "verify", "bench"}
    for name, service in compose["services"].items():
        assert service.get("profiles", []) == ([] if name == "gpu" else [name])
        assert "restart" not in service
        assert "ports" not in service
        assert service["healthcheck"] == {"disable": True}, "a check beside a benchmark would disturb it"


def test_compose_commands_are_verbs_with_options_that_there_are(compose):
    for name, service in compose["services"].items():
        options = create_parser().parse_args(service["command"])
        assert options.verb == ("doctor" if name == "gpu" else name)


def test_compose_gives_each_service_the_gpu_and_little_else(compose):
    for service in compose["services"].values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "10001:10001"
        assert "privileged" not in service


def test_compose_mounts_bundles_and_the_cache_where_the_image_expects_them(compose):
    text = (DOCKER / "Dockerfile.gpu").read_text()
    for service in compose["services"].values():
        bundles, cache = service["volumes"]
        assert (bundles["type"], bundles["target"], bundles.get("read_only", False)) == ("bind", "/models", False)
        assert bundles["bind"] == {"create_host_path": False}
        assert (cache["type"], cache["target"]) == ("volume", "/cache")
        assert cache["source"] in compose["volumes"]
    assert "WORKDIR /models" in text
    assert "XDG_CACHE_HOME=/cache" in text


def test_compose_builds_the_dockerfile_that_there_is(compose):
    build = compose["services"]["gpu"]["build"]
    context = (DOCKER / build["context"]).resolve()
    assert (context / build["dockerfile"]).is_file()
    assert build["target"] in stages()
    declared = {rest.partition("=")[0] for word, rest in instructions() if word == "ARG"}
    assert set(build["args"]) <= declared
