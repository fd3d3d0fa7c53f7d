"""TLS of a server's ports: certificate, key, and the authority of client certificates."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_deploy.errors import InputError
from relu_deploy.storage.files import read_regular

__all__ = ["TlsOptions"]

#: bytes of the largest file of certificates
MAX_PEM = 2**24


@dataclass(frozen=True)
class TlsOptions:
    """The files of a server's TLS, in PEM.

    Attributes:
        certificate: The server's certificate and those that lead to its authority.
        key: The certificate's private key.
        client_ca: Certificates of the authorities of clients; None does not ask clients for a certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Load the files. Raises InputError if one cannot be used."""
        for file in (self.certificate, self.key, *([] if self.client_ca is None else [self.client_ca])):
            read_regular(file, MAX_PEM)  # a FIFO would be waited for
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password, one for an encrypted key would be read from the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:  # SSLError is one
            raise InputError(
                f"cannot use --tls-cert {self.certificate} with --tls-key {self.key}: {error.strerror or error}",
                "give a PEM certificate and its unencrypted PEM key",
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                raise InputError(
                    f"cannot use --tls-client-ca {self.client_ca}: {error.strerror or error}", "give PEM certificates"
                ) from error

    def uvicorn_options(self) -> dict[str, Any]:
        """Return the options of uvicorn.Config."""
        options: dict[str, Any] = {"ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.key)}
        if self.client_ca is not None:
            options |= {"ssl_ca_certs": str(self.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return options

    def grpc_credentials(self) -> Any:
        """Return the credentials of a gRPC server."""
        import grpc

        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        if self.client_ca is None:
            return grpc.ssl_server_credentials([pair])
        return grpc.ssl_server_credentials([pair], self.client_ca.read_bytes(), require_client_auth=True)
