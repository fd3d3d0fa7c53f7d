"""A server with certificates and keys, over HTTP, gRPC and on the metrics port."""

import json
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request

import pytest

pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
grpc = pytest.importorskip("grpc", reason="grpcio is not installed (pip install 'relu-deploy[serve]')")

from grpc_running import stub_of  # noqa: E402
from running import Running  # noqa: E402

from relu_deploy.serving.protocol.proto import messages  # noqa: E402

KEY, ADMIN, METRICS = "a-key-for-inference-1", "a-key-for-an-admin-12", "a-key-for-the-metrics"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """An authority, and a certificate of it for the server and for a client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (apt-get install openssl)")
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", "-new", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"infer {KEY}\nadmin {ADMIN}\nmetrics {METRICS}\n")
    return path


def fetch(port, path, key=None, context=None, body=None):
    """Return the status and the content, "" where there is no answer."""
    scheme = "http" if context is None else "https"
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{port}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_keys_are_required_on_every_port_and_their_roles_hold(digits_bundle, keys):
    arguments = ("--api-key-file", keys, "--allow-admin", "--grpc-port", "0", "--metrics-port", "0", "--threads", "1")
    with Running(digits_bundle.path, *arguments) as server:
        http, metrics = server.reported["http"], server.reported["metrics"]
        assert fetch(http, "/v2/health/ready")[0] == 200
        assert [fetch(http, "/v2/models/digits", key)[0] for key in (None, "x" * 20, METRICS, KEY)] == [401, 401, 403, 200]
        load = "/v2/repository/models/digits/load"
        statuses = []
        for key in (None, KEY, ADMIN):
            connection_headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            statuses.append(server.ask("POST", load, "{}", **connection_headers)[0])
        assert statuses == [401, 403, 200]
        assert [fetch(metrics, "/metrics", key)[0] for key in (None, KEY, METRICS)] == [401, 403, 200]
        with grpc.insecure_channel(f"127.0.0.1:{server.reported['grpc']}") as channel:
            stub, request = stub_of(channel), messages().ModelMetadataRequest(name="digits")
            assert stub.ServerReady(messages().ServerReadyRequest()).ready
            for metadata, code in (((), "UNAUTHENTICATED"), ((("authorization", f"Bearer {METRICS}"),), "PERMISSION_DENIED")):
                with pytest.raises(grpc.RpcError) as refused:
                    stub.ModelMetadata(request, metadata=metadata)
                assert refused.value.code().name == code
            assert stub.ModelMetadata(request, metadata=(("authorization", f"Bearer {KEY}"),)).name == "digits"
        server.stop()
        server.errors.seek(0)
        assert not any(key in server.errors.read() for key in (KEY, ADMIN, METRICS))


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
def test_all_ports_speak_tls_and_ask_for_a_client_certificate_where_configured(digits_bundle, pki, mutual):
    arguments = ["--tls-cert", pki / "server.pem", "--tls-key", pki / "server.key", "--grpc-port", "0", "--metrics-port", "0"]
    if mutual:
        arguments += ["--tls-client-ca", pki / "ca.pem"]
    with Running(digits_bundle.path, *arguments, "--threads", "1") as server:
        assert server.reported["scheme"] == "https"
        anonymous = ssl.create_default_context(cafile=pki / "ca.pem")
        known = ssl.create_default_context(cafile=pki / "ca.pem")
        known.load_cert_chain(pki / "client.pem", pki / "client.key")
        for port, path in ((server.reported["http"], "/v2/health/ready"), (server.reported["metrics"], "/metrics")):
            assert fetch(port, path, context=known)[0] == 200
            if mutual:
                with pytest.raises(OSError, match=r"(?i)ssl|certificate|reset|closed"):
                    fetch(port, path, context=anonymous)
            else:
                assert fetch(port, path, context=anonymous)[0] == 200
            with pytest.raises(OSError, match=r"(?i)ssl|certificate|reset|closed"):
                fetch(port, path, context=ssl.create_default_context())
        authority, key, chain = ((pki / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
        credentials = grpc.ssl_channel_credentials(authority, *((key, chain) if mutual else ()))
        with grpc.secure_channel(f"localhost:{server.reported['grpc']}", credentials) as channel:
            assert stub_of(channel).ServerReady(messages().ServerReadyRequest(), timeout=10).ready
        with grpc.insecure_channel(f"localhost:{server.reported['grpc']}") as channel, pytest.raises(grpc.RpcError):
            stub_of(channel).ServerReady(messages().ServerReadyRequest(), timeout=2)
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tls-cert", "server.pem"), "--tls-cert and --tls-key belong together"),
        (("--tls-client-ca", "ca.pem"), "--tls-cert and --tls-key belong together"),
        (("--tls-cert", "nosuch.pem", "--tls-key", "nosuch.key"), "nosuch.pem"),
        (("--api-key-file", "nosuch"), "nosuch"),
        (("--cors-origin", "app.example"), "is not an origin"),
        (("--max-per-client", "-1"), "--max-per-client"),
        (("--request-memory", "0"), "--request-memory"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_words(command, digits_bundle, arguments, words):
    answer = command("serve", digits_bundle.path, *arguments, "--http-port", "0", "--grpc-port", "-1", "--metrics-port", "-1")
    assert answer.code == 2
    assert words in answer.stderr


def test_the_health_protocol_names_the_server_and_each_model(digits_bundle):
    health = messages("health")
    with Running(digits_bundle.path, "--grpc-port", "0", "--allow-admin", "--threads", "1") as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.reported['grpc']}") as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health.HealthCheckRequest.SerializeToString,
                response_deserializer=health.HealthCheckResponse.FromString,
            )
            watch = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=health.HealthCheckRequest.SerializeToString,
                response_deserializer=health.HealthCheckResponse.FromString,
            )
            for service in ("", "inference.GRPCInferenceService", "digits"):
                assert check(health.HealthCheckRequest(service=service), timeout=10).status == 1
            with pytest.raises(grpc.RpcError) as unknown:
                check(health.HealthCheckRequest(service="nosuch"), timeout=10)
            assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
            watching = watch(health.HealthCheckRequest(service="digits"), timeout=20)
            assert next(watching).status == 1
            assert server.ask("POST", "/v2/repository/models/digits/unload", "{}")[0] == 200
            assert next(watching).status == 2
            watching.cancel()
        assert json.dumps(server.reported)
