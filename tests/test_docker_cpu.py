"""The image for CPUs and the services around it: parts that exist and fit each other and the command line."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
import yaml
from processes import python

from relu_deploy.cli.main import create_parser

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"


def instructions():
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


def last(word):
    return [rest for each, rest in instructions() if each == word][-1]


@pytest.fixture(scope="module")
def compose():
    text = re.sub(r"\$\{\w+(?::-([^}]*))?\}", lambda match: match[1] or "", (DOCKER / "compose.serve.yaml").read_text())
    return yaml.safe_load(text)


# ---------------------------------------------------------------- Dockerfile


def test_what_is_copied_exists_and_reaches_the_build():
    sources = [
        name for word, rest in instructions() if word == "COPY" and not rest.startswith("--from=") for name in rest.split()[:-1]
    ]
    let_through = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert source in let_through
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {"README.md", "LICENSE", "pyproject.toml", *hatch["packages"], *hatch["force-include"]} <= set(sources)


def test_every_install_is_pinned_and_so_is_what_builds_the_package():
    commands = [
        part
        for word, rest in instructions()
        if word == "RUN"
        for part in rest.split("&&")
        if "/pip " in part and " install " in part
    ]
    assert len(commands) == 3
    assert [command for command in commands if "-c constraints.txt" not in command] == []
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#")
    assert {"pip", "hatchling", "onnxruntime", "uvicorn", "numpy"} <= set(pins)


def test_the_base_is_an_exact_release_and_the_same_for_both_images():
    base = last("ARG") if last("ARG").startswith("BASE=") else next(rest for word, rest in instructions() if word == "ARG")
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+", base)
    assert f"ARG {base}\n" in (DOCKER / "Dockerfile.gpu").read_text()


def test_it_runs_as_a_numbered_user_who_is_not_root_and_speaks_the_command_line():
    assert last("USER") == "10001:10001"
    assert json.loads(last("ENTRYPOINT")) == ["relu-deploy"]
    assert create_parser().parse_args(json.loads(last("CMD"))).verb == "doctor"


def test_health_asks_the_port_that_serve_listens_on():
    check = json.loads(last("HEALTHCHECK").split(" CMD ")[1])
    options = create_parser().parse_args(["serve", "m.rdb"])
    assert check == ["python", "/opt/ready.py", str(options.http_port)]
    assert ["COPY", "docker/ready.py /opt/ready.py"] in instructions()
    assert last("EXPOSE").split() == [str(port) for port in (options.http_port, options.grpc_port, options.metrics_port)]


# ---------------------------------------------------------------- health, and the check of an image


class Answers(http.server.BaseHTTPRequestHandler):
    """A server that is ready, or is not; the test says what it answers to each path."""

    def do_GET(self):
        status, body = self.server.answers.get(self.path, (404, {}))
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    one = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield one
    one.shutdown()


def run(script, *arguments):
    return subprocess.run([sys.executable, DOCKER / script, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (500, 1)])
def test_healthy_is_what_says_that_it_is_ready(server, status, code):
    server.answers = {"/v2/health/ready": (status, {})}
    answer = run("ready.py", server.server_port)
    assert answer.returncode == code
    assert (str(status) in answer.stderr) == (code == 1)


def test_nothing_on_the_port_is_not_healthy(server):
    port = server.server_port
    server.shutdown()
    server.server_close()
    answer = run("ready.py", port)
    assert answer.returncode == 1
    assert str(port) in answer.stderr
    assert "Traceback" not in answer.stderr


def answers(**output):
    sound = {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1.0], **output}
    reported = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }
    return {
        "/v2/health/ready": (200, {}),
        "/v2/repository/index": (200, [{"name": "m"}]),
        "/v2/models/m": (200, reported),
        "/v2/models/m/infer": (200, {"outputs": [sound]}),
    }


def test_the_check_is_content_with_a_sound_answer(server):
    server.answers = answers()
    answer = run("check_serving.py", server.server_port)
    assert (answer.returncode, answer.stdout) == (0, "m: y FP32[1, 2]\n")


@pytest.mark.parametrize(
    ("wrong", "reported"),
    [
        ({"shape": [1, 3], "data": [1, 2, 3]}, "has sizes"),
        ({"data": [0.5]}, "has 1 numbers"),
        ({"data": [0.5, float("nan")]}, "NaN"),
        ({"datatype": "INT8"}, "is INT8"),
        ({"name": "z"}, "other outputs"),
    ],
)
def test_the_check_says_what_is_wrong_with_an_answer(server, wrong, reported):
    server.answers = answers(**wrong)
    answer = run("check_serving.py", server.server_port)
    assert answer.returncode == 1
    assert reported in answer.stderr


def test_the_check_gives_up_on_a_server_that_does_not_become_ready(server):
    server.answers = {"/v2/health/ready": (503, {})}
    answer = run("check_serving.py", server.server_port, 0.5)
    assert answer.returncode == 1
    assert "not ready" in answer.stderr


def test_the_check_is_content_with_this_server(digits_bundle):
    words = [python(), "-m", "relu_deploy", "serve", str(digits_bundle.path), "--http-port", "0", "--grpc-port", "-1"]
    process = subprocess.Popen([*words, "--metrics-port", "-1", "--json", "-"], stdout=subprocess.PIPE, text=True)
    try:
        reported = ""
        while not reported.endswith("}\n") or reported.count("{") != reported.count("}"):
            reported += process.stdout.readline()
        answer = run("check_serving.py", json.loads(reported)["http"])
    finally:
        process.terminate()
        process.wait(30)
    assert (answer.returncode, answer.stdout) == (0, "digits: y FP32[1, 10]\n"), answer.stderr


# ---------------------------------------------------------------- build_cpu.sh


@pytest.fixture
def build(tmp_path):
    """Run docker/build_cpu.sh with an engine that only prints what it was asked for."""
    script = tmp_path / "buildah"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)

    def run_build(*arguments, **environment):
        return subprocess.run(
            [DOCKER / "build_cpu.sh", *map(str, arguments)],
            env={"PATH": os.environ["PATH"], "ENGINE": str(script), **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run_build


def test_build_passes_its_options_and_arguments_on_and_names_the_image_as_compose_does(build, compose):
    requested = build("--no-cache", BASE="mine:1", EXTRAS="cpu").stdout.splitlines()
    assert requested[0] == "build"
    assert requested[requested.index("--tag") + 1] == compose["services"]["serve"]["image"] == "relu-deploy:cpu"
    assert (ROOT / requested[requested.index("--file") + 1]).is_file()
    assert {"BASE=mine:1", "EXTRAS=cpu", "--no-cache"} <= set(requested)
    assert requested[requested.index("--format") + 1] == "docker", "an OCI image would lose its health check"


def test_build_refuses_a_bundle_that_is_not_there_before_it_builds(build):
    answer = build("nothing.rdb")
    assert answer.returncode == 2
    assert "nothing.rdb" in answer.stderr
    assert "hint: " in answer.stderr
    assert answer.stdout == ""


# ---------------------------------------------------------------- compose, Prometheus, Grafana


def test_compose_serves_a_bundle_that_nobody_can_write_to_as_the_image_expects_it(compose):
    service = compose["services"]["serve"]
    options = create_parser().parse_args(service["command"])
    assert options.verb == "serve"
    assert (options.paths, options.host) == (["/models/model.rdb"], "0.0.0.0")
    (models,) = service["volumes"]
    assert (models["target"], models["read_only"]) == ("/models", True)
    assert [port.rsplit(":", 1)[1] for port in service["ports"]] == [str(options.http_port), str(options.grpc_port)]
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_nothing_of_compose_is_open_to_others_unless_it_is_asked_for(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    for service in compose["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_images_of_others_are_exact_releases(compose):
    images = [service["image"] for name, service in compose["services"].items() if name != "serve"]
    assert [image for image in images if not re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", image)] == []


def test_every_file_that_compose_mounts_is_there_and_every_volume_is_declared(compose):
    mounts = [mount for name, service in compose["services"].items() if name != "serve" for mount in service["volumes"]]
    assert len(mounts) == 6
    for mount in mounts:
        if mount["type"] == "bind":
            assert (DOCKER / mount["source"]).exists()
            assert mount["read_only"] is True
        else:
            assert mount["source"] in compose["volumes"]


def test_prometheus_asks_the_service_on_the_port_of_its_metrics(compose):
    reported = yaml.safe_load((DOCKER / "monitoring/prometheus.yaml").read_text())
    (job,) = reported["scrape_configs"]
    ((name, port),) = [target.split(":") for target in job["static_configs"][0]["targets"]]
    assert name in compose["services"]
    assert int(port) == create_parser().parse_args(compose["services"][name]["command"]).metrics_port


def test_grafana_finds_prometheus_and_the_dashboard_finds_its_source(compose):
    (source,) = yaml.safe_load((DOCKER / "monitoring/datasources.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((DOCKER / "monitoring/dashboards.yaml").read_text())["providers"]
    grafana = compose["services"]["grafana"]
    assert re.fullmatch(r"http://(\w+):9090", source["url"])[1] in compose["services"]
    assert provider["options"]["path"] in [mount["target"] for mount in grafana["volumes"]]
    board = json.loads((DOCKER / "monitoring/dashboards/relu-deploy.json").read_text())
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DOCKER / "monitoring" / Path(home).relative_to("/etc/relu-deploy")).is_file()
    used = {target["datasource"]["uid"] for panel in board["panels"] for target in panel.get("targets", ())}
    assert used == {source["uid"]}


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    board = json.loads((DOCKER / "monitoring/dashboards/relu-deploy.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken = {}
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]
