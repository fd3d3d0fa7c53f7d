"""Exit 0 when the server on this machine answers that it is ready; else say why not, exit 1.

python ready.py PORT
"""

from __future__ import annotations

import http.client
import sys


def why_not(port: int) -> str:
    """Return why the server on `port` is not ready, "" when it is."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
        connection.request("GET", "/v2/health/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"port {port}: {error}"
    return "" if status == 200 else f"port {port} answers {status}"


if __name__ == "__main__":
    sys.exit(why_not(int(sys.argv[1])) or 0)
