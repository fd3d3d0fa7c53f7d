"""What TLS and API keys cost: requests a second of `relu-deploy serve` with either and with both, beside a plain server.

    python benchmarks/security_cost.py --out benchmarks/results/security_cost.json [--rounds 20] [--seconds 0.7]

One server for each form, all started before anything is timed; rounds that go from one to the next in random order; each server's
requests a second divided by those of the plain one in the same round. Connections are kept open, as clients keep them, so that the
handshakes are not in these numbers; client and servers share the machine. Needs openssl for the certificate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from certificates import certificate
from monitor_cost import CONNECTIONS, end, ratio_of, request_for, started

from relu_deploy.backends.threads import ThreadCount
from relu_deploy.benchmark.environment import describe
from relu_deploy.data.datasets import load_dataset
from relu_deploy.exporting.exporter import export_source

FORMS = ("plain", "keys", "tls", "tls and keys")
KEY = "a-key-for-the-benchmark"


async def client(port: int, context: ssl.SSLContext | None, requests: list[bytes], until: float) -> int:
    """Return the number of answers until the moment `until`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    count = 0
    while time.perf_counter() < until:
        writer.write(requests[count % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            raise SystemExit(f"not answered: {head[:200]!r}")
        await reader.readexactly(int(length[1]))
        count += 1
    writer.close()
    return count


async def load(port: int, context: ssl.SSLContext | None, requests: list[bytes], seconds: float) -> dict[str, Any]:
    """Return the requests a second of all connections together."""
    began = time.perf_counter()
    counts = await asyncio.gather(*(client(port, context, requests, began + seconds) for _ in range(CONNECTIONS)))
    return {"per_second": sum(counts) / (time.perf_counter() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = export_source("digits", folder / "digits.rdb").bundle
        rows = load_dataset(bundle, "digits").feeds[bundle.inputs[0].name][:64]
        pem, key = certificate(folder)
        (folder / "keys").write_text(f"infer {KEY}\n")
        options = {"keys": ["--api-key-file", folder / "keys"], "tls": ["--tls-cert", pem, "--tls-key", key]}
        options |= {"plain": [], "tls and keys": [*options["tls"], *options["keys"]]}
        context = ssl.create_default_context(cafile=pem)
        plain = [request_for(bundle, rows[at : at + 1]) for at in range(len(rows))]
        authorized = [
            each.replace(b"\r\nhost: x\r\n", f"\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n".encode()) for each in plain
        ]
        servers = {
            form: started(bundle, folder / f"{form}.json", arguments.threads, "--monitor-share", 0, *options[form])
            for form in FORMS
        }
        measured: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
        for turn in range(-1, arguments.rounds):
            for place in np.random.default_rng(turn + 1).permutation(len(FORMS)):
                form = FORMS[place]
                requests = authorized if "keys" in form else plain
                tls = context if "tls" in form else None
                result = asyncio.run(load(servers[form][1]["http"], tls, requests, arguments.seconds))
                if turn >= 0:  # the first turn warms up
                    measured[form].append(result)
        end(servers)
    ratios = {form: ratio_of(measured[form], measured["plain"]) for form in FORMS[1:]}
    medians = {form: float(np.median([each["per_second"] for each in measured[form]])) for form in FORMS}
    environment = describe(ThreadCount(arguments.threads, "given"))
    result = {"environment": environment, "rounds": arguments.rounds, "per_second": medians, "ratios": ratios, "raw": measured}
    arguments.out.write_text(json.dumps(result, indent=1, default=str) + "\n")
    for form, ratio in ratios.items():
        print(f"{form}: {ratio['median']:.2f} ({ratio['ci95'][0]:.2f} to {ratio['ci95'][1]:.2f}) of plain")


if __name__ == "__main__":
    main()
