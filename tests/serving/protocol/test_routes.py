"""One router: every endpoint of the protocol and of the page, and nothing else."""

import pytest

from relu_deploy.serving.protocol.routes import Route, parse_route


@pytest.mark.parametrize(
    ("method", "path", "endpoint", "model", "version"),
    [
        ("GET", "/v2/health/live", "server_live", "", ""),
        ("HEAD", "/v2/health/ready", "server_ready", "", ""),
        ("GET", "/v2", "server_metadata", "", ""),
        ("GET", "/v2/models/stats", "server_statistics", "", ""),
        ("GET", "/v2/models/m", "model_metadata", "m", ""),
        ("GET", "/v2/models/m/versions/3", "model_metadata", "m", "3"),
        ("GET", "/v2/models/m/versions/3/config", "model_config", "m", "3"),
        ("GET", "/v2/models/m/ready/", "model_ready", "m", ""),
        ("GET", "/v2/models/m/stats", "model_stats", "m", ""),
        ("GET", "/v2/models/m/monitor", "model_monitor", "m", ""),
        ("POST", "/v2/models/m/infer", "infer", "m", ""),
        ("POST", "/v2/models/a b/versions/1/predict", "predict", "a b", "1"),
        ("POST", "/v2/models/m/relus", "relus", "m", ""),
        ("POST", "/v2/repository/index", "repository_index", "", ""),
        ("POST", "/v2/repository/models/m/load", "model_load", "m", ""),
        ("POST", "/v2/repository/models/m/unload", "model_unload", "m", ""),
        ("GET", "/", "page", "", ""),
        ("GET", "/page/models", "page_models", "", ""),
    ],
)
def test_a_path_names_one_endpoint(method, path, endpoint, model, version):
    route = parse_route(method, path)
    assert (route.endpoint, route.model, route.version) == (endpoint, model, version)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/m/infer"),
        ("POST", "/v2/models/m"),
        ("POST", "/v2/models/m/versions/1/infer/more"),
        ("POST", "/v2/repository/models/m/reload"),
        ("PUT", "/v2/repository/models/m/load"),
        ("GET", "/v3"),
        ("POST", "/"),
        ("GET", "/v2/models/stats/versions/1/stats/more"),
        ("OPTIONS", "/v2"),
    ],
)
def test_another_method_or_path_names_none(method, path):
    assert parse_route(method, path) == Route("")
