"""A certificate that signs itself, for servers of tests and benchmarks."""

import subprocess
from pathlib import Path

__all__ = ["certificate"]


def certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for this machine and its key, written into `folder`. It needs openssl."""
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    words += ["-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return folder / "server.pem", folder / "server.key"
