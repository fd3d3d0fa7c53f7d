"""What it costs a gRPC client that its connection is passed on, as it is while more connections arrive than gRPC can take.

    python benchmarks/relay_cost.py --out benchmarks/results/relay_cost.json [--rounds 20] [--seconds 0.7]

One server whose calls only return: the ratio is that of the transport, and models make it smaller. Two connections to it, one that gRPC
has accepted and one that is passed on, take turns; calls a second of one divided by those of the other in the same round. Client and
server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from monitor_cost import ratio_of

from relu_deploy.backends.threads import ThreadCount
from relu_deploy.benchmark.environment import describe
from relu_deploy.serving.protocol.grpc import GrpcServer
from relu_deploy.serving.protocol.grpc_receiving import MessageReceiver

#: bytes of a message → clients at a time
LOADS = ((3_136, 1), (3_136, 16), (602_112, 1), (602_112, 16))
CALL = "/relay.Cost/Call"


class Service:
    """Returns 40 bytes for any message."""

    def __init__(self) -> None:
        self.receiver = MessageReceiver(30.0)

    def handler(self) -> Any:
        return grpc.method_handlers_generic_handler("relay.Cost", {"Call": grpc.stream_unary_rpc_method_handler(self._call)})

    async def _call(self, _: Any, rpc: Any) -> bytes:
        await self.receiver.receive(rpc)
        return bytes(40)


async def serve() -> None:
    """Serve until stdin ends; a line "1" lets new connections be passed on, "0" ends that."""
    server = GrpcServer([Service()], "127.0.0.1", 0, 2**26)
    await server.start()
    surge = server._surge
    assert surge is not None, "this system cannot choose who accepts a connection"
    surge.check = lambda: None  # type: ignore[method-assign]  # it would end what is begun here
    print(server.port, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        surge._choose(line.strip() == "1")
        print(len(server._relay), flush=True)
    await server.drain(0)


def per_second(channel: grpc.Channel, size: int, clients: int, seconds: float) -> dict[str, Any]:
    call, message, end = channel.unary_unary(CALL), bytes(size), time.perf_counter() + seconds
    counts = [0] * clients

    def work(place: int) -> None:
        while time.perf_counter() < end:
            call(message)
            counts[place] += 1

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"per_second": sum(counts) / (time.perf_counter() - began)}


def connected(server: subprocess.Popen[str], port: int, relayed: bool) -> grpc.Channel:
    choose(server, relayed)
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
    grpc.channel_ready_future(channel).result(10)
    assert choose(server, False) == int(relayed)
    return channel


def choose(server: subprocess.Popen[str], relayed: bool) -> int:
    """Let new connections be passed on or not, and return how many are."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{int(relayed)}\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def main() -> None:
    if sys.argv[1:] == ["--serve"]:
        uvloop.run(serve())
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.7)
    arguments = parser.parse_args()
    words = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        found = []
        with connected(server, port, False) as direct, connected(server, port, True) as relayed:
            for size, clients in LOADS:
                measured: dict[str, list[dict[str, Any]]] = {"direct": [], "relayed": []}
                for turn in range(-1, arguments.rounds):
                    order = [("direct", direct), ("relayed", relayed)]
                    for name, channel in order if turn % 2 else reversed(order):
                        result = per_second(channel, size, clients, arguments.seconds)
                        if turn >= 0:  # the first turn warms up
                            measured[name].append(result)
                ratio = ratio_of(measured["relayed"], measured["direct"])
                medians = {name: float(np.median([each["per_second"] for each in rows])) for name, rows in measured.items()}
                found.append({"bytes": size, "clients": clients, "per_second": medians, "ratio": ratio, "raw": measured})
                low, high = ratio["ci95"]
                print(
                    f"{size:,} bytes, {clients} at a time: {ratio['median']:.2f} ({low:.2f} to {high:.2f}) of direct", flush=True
                )
    if arguments.out:
        result = {"environment": describe(ThreadCount(1, "given")), "rounds": arguments.rounds, "loads": found}
        arguments.out.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
