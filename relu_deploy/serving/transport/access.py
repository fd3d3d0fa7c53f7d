"""Access control: API keys with roles, the Host and Origin of requests from browsers, and administration.

A web page may send requests to any server that its reader's machine reaches. Its Origin header gives it away, and where a name
of its own resolves to the server (DNS rebinding), the Host header does.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from relu_deploy.errors import InputError
from relu_deploy.serving.errors import Forbidden, InvalidArgument, Unauthenticated
from relu_deploy.serving.protocol.routes import RequestContext
from relu_deploy.storage.files import read_regular

__all__ = ["MIN_KEY", "ROLES", "AccessOptions", "AccessPolicy", "ApiKeys"]

ROLES = ("infer", "admin", "metrics")
#: characters of the shortest key that is accepted
MIN_KEY = 16
#: bytes of the largest file of keys
MOST_KEYS = 2**20
#: endpoints that need another role than "infer"; "" needs no key, for probes and for the page itself
_ROLE_OF = {
    "server_live": "",
    "server_ready": "",
    "model_ready": "",
    "health": "",
    "page": "",
    "model_load": "admin",
    "model_unload": "admin",
    "metrics": "metrics",
}
#: names that public DNS cannot have, beside those without a dot
_PRIVATE_SUFFIXES = (".localhost", ".svc", ".svc.cluster.local")
#: a Host header: a name, an IPv4 address or an IPv6 address in brackets, and a port
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\s:/@?#\[\]]+))(?::[0-9]*)?")
#: the headers of a cross-origin response
_EXPOSED = b"inference-header-content-length, retry-after"
_ALLOWED = (
    b"authorization, content-type, content-encoding, inference-header-content-length, request-timeout, traceparent, tracestate"
)

Headers = list[tuple[bytes, bytes]]


class ApiKeys:
    """The keys of a server and their roles. Only their digests are kept."""

    def __init__(self, keys: Iterable[tuple[str, frozenset[str]]]) -> None:
        self._keys = [(hashlib.sha256(key.encode()).digest(), roles) for key, roles in keys]

    @classmethod
    def read(cls, path: str | Path) -> ApiKeys:
        """Read a file with one key a line: its roles, joined by commas, a space, and the key. `#` begins a comment.

        Raises:
            InputError: If the file cannot be read, has no key, or a line is malformed; the message never quotes a key.
        """
        try:
            lines = read_regular(Path(path), MOST_KEYS).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"cannot read --api-key-file {path}: it is not UTF-8", "write it as UTF-8") from None
        except InputError as error:
            raise InputError(f"--api-key-file: {error.message}", error.hint) from None
        keys = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            roles, _, key = line.strip().partition(" ")
            hint = f"write ROLE[,ROLE] KEY on each line; the roles are {', '.join(ROLES)}"
            if not set(roles.split(",")) <= set(ROLES) or not key.strip():
                raise InputError(f"{path}, line {number}: not a role and a key", hint)
            if len(key.strip()) < MIN_KEY:
                raise InputError(f"{path}, line {number}: the key is shorter than {MIN_KEY} characters", "use a random one")
            keys.append((key.strip(), frozenset(roles.split(","))))
        if not keys:
            raise InputError(f"{path} has no keys", "write ROLE[,ROLE] KEY on each line")
        return cls(keys)

    def roles_of(self, key: str) -> frozenset[str] | None:
        """Return the roles of `key`, None for an unknown one. Takes the same time for every key."""
        digest, found = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest(), None
        for known, roles in self._keys:
            if hmac.compare_digest(known, digest):
                found = roles
        return found


@dataclass(frozen=True)
class AccessOptions:
    """Who may do what.

    Attributes:
        api_keys: The keys of clients, None to serve everybody.
        allow_admin: Models may be loaded and unloaded by request.
        allowed_hosts: Further names that a Host header may have; "*" allows all.
        cors_origins: Origins whose pages may use the server; "*" allows all.
    """

    api_keys: ApiKeys | None = None
    allow_admin: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()


class AccessPolicy:
    """Decides on requests by `AccessOptions`."""

    def __init__(self, options: AccessOptions = AccessOptions(), host: str = "127.0.0.1") -> None:  # it is frozen
        """host: the address that the server listens on."""
        self._options = options
        names = {host, socket.gethostname(), *options.allowed_hosts}
        self._hosts = {name.lower().rstrip(".") for name in names}
        # Keys change nothing here: the page and the probes need none.
        self._any_host = "*" in options.allowed_hosts

    def check(self, context: RequestContext) -> None:
        """Check a request, once.

        Raises:
            InvalidArgument: If its Host header is missing, doubled or empty.
            Unauthenticated: If it has no known key.
            Forbidden: If its key, Host or Origin does not allow it, or administration is off.
        """
        if context.authorized:
            return
        if context.method != "gRPC":
            self._check_browser(context)
        role = _ROLE_OF.get(context.route.endpoint, "infer")
        if role == "admin" and not self._options.allow_admin:
            raise Forbidden("loading and unloading of models is disabled", "start the server with --allow-admin")
        if role and self._options.api_keys is not None:
            self._check_key(self._options.api_keys, context, role)
        context.authorized = True

    def response_headers(self, context: RequestContext) -> Headers:
        """Return the headers that tell a browser what pages may do with the response."""
        origin = _single(context, b"origin")
        headers = [(b"x-content-type-options", b"nosniff")]
        if not self._options.cors_origins:
            return [*headers, (b"cross-origin-resource-policy", b"same-origin")]
        headers += [(b"cross-origin-resource-policy", b"cross-origin"), (b"vary", b"origin")]
        if origin and self._is_cors_origin(origin):
            headers += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", _EXPOSED),
            ]
            if context.method == "OPTIONS":
                headers += [
                    (b"access-control-allow-methods", b"GET, HEAD, POST"),
                    (b"access-control-allow-headers", _ALLOWED),
                    (b"access-control-max-age", b"600"),
                ]
        return headers

    def _check_browser(self, context: RequestContext) -> None:
        hosts = [value for name, value in context.headers if name == b"host"]
        if len(hosts) > 1 or (hosts and not hosts[0].strip()) or (not hosts and context.http_version == "1.1"):
            raise InvalidArgument("a request must have one Host header")
        if hosts and not self._any_host and not self._is_own_host(hosts[0].decode("latin-1")):
            raise Forbidden(f"Host {hosts[0].decode('latin-1')[:80]!r} is not allowed", "start the server with --allowed-host")
        if context.method in ("GET", "HEAD", "OPTIONS"):
            return
        origins = [value.decode("latin-1") for name, value in context.headers if name == b"origin"]
        host = hosts[0].decode("latin-1").lower() if hosts else ""
        for origin in origins:
            if origin.partition("://")[2].lower() != host and not self._is_cors_origin(origin):
                raise Forbidden(f"requests of pages from {origin[:80]!r} are not allowed", "start the server with --cors-origin")
        if _ROLE_OF.get(context.route.endpoint) == "admin":
            # Pages can send these types without a preflight.
            kind = (_single(context, b"content-type") or "").partition(";")[0].strip().lower()
            if kind != "application/json" and (kind or origins):
                raise InvalidArgument("the content type must be application/json")

    def _is_cors_origin(self, origin: str) -> bool:
        return "*" in self._options.cors_origins or origin in self._options.cors_origins

    def _is_own_host(self, value: str) -> bool:
        written = _HOST.fullmatch(value.strip().lower())
        if written is None:
            return False
        name = written["address"] or written["name"].rstrip(".")
        if name in self._hosts or "." not in name or name.endswith(_PRIVATE_SUFFIXES):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _check_key(self, keys: ApiKeys, context: RequestContext, role: str) -> None:
        scheme, _, key = (_single(context, b"authorization") or "").partition(" ")
        roles = keys.roles_of(key.strip()) if scheme.lower() == "bearer" else None
        if roles is None:
            raise Unauthenticated("a valid API key is required", "send it as Authorization: Bearer KEY")
        if role not in roles:
            raise Forbidden(f"the API key does not have the role {role!r}")


def _single(context: RequestContext, name: bytes) -> str | None:
    """Return the value of a header, None without one or with several."""
    names = (name, name.decode())
    values = [value for key, value in context.headers if key in names]
    if len(values) != 1:
        return None
    return values[0].decode("latin-1") if isinstance(values[0], bytes) else str(values[0])
