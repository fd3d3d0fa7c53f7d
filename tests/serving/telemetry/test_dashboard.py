"""The Grafana dashboard asks for what the server's metrics have, by name and by label."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from running import Running

BOARD = json.loads((Path(__file__).parents[3] / "docker/monitoring/dashboards/relu-deploy.json").read_text())


@pytest.fixture(scope="module")
def metrics(digits_bundle):
    """What the metrics port of a server says."""
    with Running(digits_bundle.path, "--metrics-port", "0") as server:
        port = server.reported["metrics"]
        server.ask("GET", "/v2/models/digits")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return answer.read().decode()


def expressions():
    payload = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
    payload += [one["expr"] for one in BOARD["annotations"]["list"]] + [one["definition"] for one in BOARD["templating"]["list"]]
    assert len(payload) > 20
    return payload


def test_every_metric_of_the_dashboard_is_one_that_the_server_has(metrics):
    served = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", metrics, re.MULTILINE):
        served |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    payload = {name for expression in expressions() for name in re.findall(r"\b(?:nv|relu_deploy)_[a-z_]+", expression)}
    assert len(payload) > 15
    assert payload - served == set()


def test_requests_are_told_apart_by_the_labels_that_the_dashboard_groups_by(metrics):
    (line,) = re.findall(r"^nv_inference_request_success\{(.*)\}", metrics, re.MULTILINE)
    assert 'model="digits"' in line
    failures = re.findall(r"^relu_deploy_requests_failed_total\{(.*)\}", metrics, re.MULTILINE)
    assert failures
    assert all("reason=" in labels for labels in failures)
