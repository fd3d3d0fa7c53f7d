"""Who may do what: keys and roles, the names in Host, pages of other origins, and administration."""

import pytest

from relu_deploy.errors import InputError
from relu_deploy.serving.errors import Forbidden, InvalidArgument, Unauthenticated
from relu_deploy.serving.protocol.routes import RequestContext, Route, parse_route
from relu_deploy.serving.transport.access import AccessOptions, AccessPolicy, ApiKeys

INFER_KEY, ADMIN_KEY, METRICS_KEY = "infer-key-0123456789", "admin-key-0123456789", "metrics-key-01234567"
KEYS = f"# clients\ninfer {INFER_KEY}\n\nadmin,infer {ADMIN_KEY}\nmetrics  {METRICS_KEY}\n"
INFER, LOAD = "/v2/models/m/infer", "/v2/repository/models/m/load"


def request(path, method="POST", host="127.0.0.1:8000", **headers):
    pairs = [] if host is None else [(b"host", host.encode())]
    pairs += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return RequestContext(method, path, headers=pairs, route=parse_route(method, path), http_version="1.1")


def call(endpoint, key=None):
    metadata = () if key is None else (("authorization", f"Bearer {key}"),)
    return RequestContext("gRPC", "X", headers=metadata, route=Route(endpoint))


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "keys").write_text(KEYS)
    return ApiKeys.read(tmp_path / "keys")


@pytest.mark.parametrize(
    ("path", "method", "roles"),
    [
        (INFER, "POST", {"infer", "admin"}),
        ("/v2/models/m", "GET", {"infer", "admin"}),
        ("/page/models", "GET", {"infer", "admin"}),
        (LOAD, "POST", {"admin"}),
        ("/v2/health/ready", "GET", {"infer", "admin", "metrics", None}),
        ("/v2/models/m/ready", "HEAD", {"infer", "admin", "metrics", None}),
    ],
)
@pytest.mark.parametrize("name", ["infer", "admin", "metrics", None, "unknown"])
def test_each_role_may_do_what_is_its_own_and_probes_need_no_key(keys, path, method, roles, name):
    policy = AccessPolicy(AccessOptions(api_keys=keys, allow_admin=True))
    key = {"infer": INFER_KEY, "admin": ADMIN_KEY, "metrics": METRICS_KEY, "unknown": INFER_KEY[:-1]}.get(name)
    context = request(path, method, **({} if key is None else {"authorization": f"Bearer {key}"}))
    if name in roles or None in roles:
        policy.check(context)
        return
    with pytest.raises(Unauthenticated if name in (None, "unknown") else Forbidden):
        policy.check(context)


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", f"Basic {INFER_KEY}", INFER_KEY, f"Bearer {INFER_KEY} x"])
def test_a_malformed_authorization_is_no_key(keys, value):
    with pytest.raises(Unauthenticated):
        AccessPolicy(AccessOptions(api_keys=keys)).check(request(INFER, authorization=value))


def test_two_authorizations_are_no_key(keys):
    context = request(INFER, authorization=f"Bearer {INFER_KEY}")
    context.headers.append((b"authorization", f"Bearer {INFER_KEY}".encode()))
    with pytest.raises(Unauthenticated):
        AccessPolicy(AccessOptions(api_keys=keys)).check(context)


def test_grpc_metadata_carries_the_key(keys):
    policy = AccessPolicy(AccessOptions(api_keys=keys, allow_admin=True))
    policy.check(call("server_live"))
    policy.check(call("", INFER_KEY))
    policy.check(call("model_load", ADMIN_KEY))
    with pytest.raises(Unauthenticated):
        policy.check(call(""))
    with pytest.raises(Forbidden):
        policy.check(call("model_unload", INFER_KEY))


def test_models_are_neither_loaded_nor_unloaded_unless_the_server_allows_it(keys):
    for options in (AccessOptions(), AccessOptions(api_keys=keys)):
        for context in (request(LOAD, authorization=f"Bearer {ADMIN_KEY}"), call("model_unload", ADMIN_KEY)):
            with pytest.raises(Forbidden, match="--allow-admin"):
                AccessPolicy(options).check(context)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no keys"),
        ("# only a comment\n", "no keys"),
        (f"root {INFER_KEY}", "line 1"),
        (f"infer {INFER_KEY}\ninfer", "line 2"),
        ("infer short", "shorter than 16"),
        (INFER_KEY, "line 1"),
    ],
)
def test_a_malformed_key_file_is_refused_without_quoting_a_key(tmp_path, text, words):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError) as refused:
        ApiKeys.read(tmp_path / "keys")
    assert words in str(refused.value)
    assert INFER_KEY not in str(refused.value)
    assert "short\n" not in str(refused.value)


def test_a_key_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match="nosuch"):
        ApiKeys.read(tmp_path / "nosuch")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000",
        "localhost",
        "LOCALHOST:8000",
        "[::1]:8000",
        "10.1.2.3",
        "server:8000",
        "m.ns.svc.cluster.local",
        "here.example",
    ],
)
def test_own_names_addresses_and_names_outside_public_dns_are_allowed(host):
    AccessPolicy(AccessOptions(), host="here.example").check(request(INFER, host=host))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example.",
        "here.example.evil",
        "127.0.0.1:8000@evil.example",
        "127.0.0.1:evil.example",
        "[::1]evil.example",
        "localhost/evil.example",
        "127.0.0.1 evil.example",
    ],
)
@pytest.mark.parametrize(("path", "method"), [(INFER, "POST"), ("/v2/models/m", "GET"), ("/", "GET"), ("/v2/health/live", "GET")])
def test_a_name_that_somebody_else_may_own_is_refused_for_everything(host, path, method):
    with pytest.raises(Forbidden, match="--allowed-host"):
        AccessPolicy(AccessOptions(), host="here.example").check(request(path, method, host=host))


@pytest.mark.parametrize(
    ("path", "method"), [("/", "GET"), ("/", "HEAD"), ("/v2/health/live", "GET"), ("/metrics", "GET"), (INFER, "POST")]
)
def test_keys_do_not_open_the_server_to_other_names(path, method):
    """The static page and the probes need no key, so that a page could read them under a name of its own."""
    keys = ApiKeys([(INFER_KEY, frozenset(["infer", "metrics"]))])
    with pytest.raises(Forbidden, match="--allowed-host"):
        AccessPolicy(AccessOptions(api_keys=keys)).check(request(path, method, host="evil.example"))


def test_further_names_are_allowed_by_option():
    AccessPolicy(AccessOptions(allowed_hosts=("api.example",))).check(request(INFER, host="API.example:443"))
    AccessPolicy(AccessOptions(allowed_hosts=("*",))).check(request(INFER, host="whatever.example"))


@pytest.mark.parametrize("host", [None, "", " "])
def test_a_request_without_a_host_is_refused(host):
    with pytest.raises(InvalidArgument, match="one Host"):
        AccessPolicy().check(request(INFER, host=host))


def test_a_request_with_two_hosts_is_refused():
    context = request(INFER)
    context.headers.append((b"host", b"127.0.0.1:8000"))
    with pytest.raises(InvalidArgument, match="one Host"):
        AccessPolicy().check(context)


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000", "null", "http://127.0.0.1", "file://"])
@pytest.mark.parametrize("path", [INFER, LOAD, "/v2/models/m/predict"])
def test_a_page_of_another_origin_can_change_nothing(path, origin):
    policy = AccessPolicy(AccessOptions(allow_admin=True))
    with pytest.raises(Forbidden, match="--cors-origin"):
        policy.check(request(path, origin=origin, content_type="application/json"))
    policy.check(request(path, origin="http://127.0.0.1:8000", content_type="application/json"))


@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_administration_takes_no_type_that_a_page_can_send_without_a_preflight(kind):
    policy = AccessPolicy(AccessOptions(allow_admin=True))
    with pytest.raises(InvalidArgument, match="application/json"):
        policy.check(request(LOAD, content_type=kind))
    policy.check(request(LOAD))
    with pytest.raises(InvalidArgument):
        policy.check(request(LOAD, origin="http://127.0.0.1:8000"))


def test_pages_of_other_origins_may_read_only_what_cors_allows():
    page = "https://app.example"
    closed, opened = AccessPolicy(), AccessPolicy(AccessOptions(cors_origins=(page,)))
    names = dict(closed.response_headers(request(INFER, origin=page)))
    assert names[b"cross-origin-resource-policy"] == b"same-origin"
    assert not any(name.startswith(b"access-control") for name in names)
    opened.check(request(INFER, origin=page))
    assert dict(opened.response_headers(request(INFER, origin=page)))[b"access-control-allow-origin"] == page.encode()
    assert (
        b"authorization" in dict(opened.response_headers(request(INFER, "OPTIONS", origin=page)))[b"access-control-allow-headers"]
    )
    other = request(INFER, origin="https://evil.example")
    assert b"access-control-allow-origin" not in dict(opened.response_headers(other))
    with pytest.raises(Forbidden):
        opened.check(other)


def test_a_second_origin_does_not_hide_the_first():
    context = request(INFER, origin="https://evil.example")
    context.headers.append((b"origin", b"http://127.0.0.1:8000"))
    with pytest.raises(Forbidden, match="evil"):
        AccessPolicy().check(context)
