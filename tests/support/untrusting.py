"""Connections to a port of this machine, plain or over TLS without a check of who answers."""

import socket
import ssl
from functools import cache

__all__ = ["connected", "insecure_context"]


@cache
def insecure_context(*protocols: str) -> ssl.SSLContext:
    """Return a client's context that trusts everybody. protocols: what it offers in ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def connected(port: int, encrypted: bool = False, timeout: float = 10.0, protocols: tuple[str, ...] = ()) -> socket.socket:
    """Return a connection. protocols: what is offered in ALPN, over TLS."""
    one = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    if not encrypted:
        return one
    try:
        return insecure_context(*protocols).wrap_socket(one)
    except BaseException:
        one.close()
        raise
