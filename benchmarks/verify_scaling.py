"""How the time and memory of `verify` grow with the depth of a model, the size of its input and the number of rows.

    python benchmarks/verify_scaling.py --out benchmarks/results/DATE-cpu-verify-scaling.json
    python benchmarks/verify_scaling.py --draw benchmarks/results/DATE-cpu-verify-scaling.json    # docs/images/verify-scaling.svg

The model is a chain of 3×3 convolutions of 32 channels, each with a Relu. One of depth, size and rows varies, the others stay at
8 layers, 56×56 and 1 row. Each measurement is a process of its own that verifies on onnxruntime-cpu against the graph in float64;
its memory is the largest resident set, from which that of the same process before the verification is taken off.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "verify-scaling.svg"
USUAL = {"depth": 8, "size": 56, "rows": 1}
VALUES = {"depth": (2, 4, 8, 16, 32, 64), "size": (28, 56, 112, 224), "rows": (1, 2, 4, 8, 16)}
SMALL = {"depth": (2, 4), "size": (28, 56), "rows": (1, 2)}
CHANNELS = 32


def write_chain(path: Path, depth: int, size: int) -> None:
    """Write a chain of `depth` convolutions and Relus for pictures of `size` × `size`."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights, source, channels = [], [], "x", 3
    for layer in range(depth):
        # He's initialization keeps the spread of the values from layer to layer.
        values = random.standard_normal((CHANNELS, channels, 3, 3)) * math.sqrt(2 / (9 * channels))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [source, f"w{layer}"], [f"c{layer}"], f"conv{layer}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"], f"relu{layer}"))
        source, channels = f"r{layer}", CHANNELS
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size]),
        helper.make_tensor_value_info(source, TensorProto.FLOAT, ["n", CHANNELS, size, size]),
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def verify_once(path: str, rows: int, threads: int) -> None:
    """Verify in this process and print seconds and bytes as JSON."""
    import numpy as np  # noqa: F401  # its libraries are not part of the memory of a verification
    import onnxruntime  # noqa: F401

    from relu_deploy.verification.run import verify

    before = _peak_bytes()
    report = verify(path, ["onnxruntime-cpu"], against="reference", samples=rows, threads=threads)
    assert report.passed, "the model to be timed must be right"
    print(json.dumps({"seconds": report.seconds, "bytes": _peak_bytes() - before}))


def _peak_bytes() -> int:
    # ru_maxrss would be inherited from the parent process.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all measurements."""
    from relu_deploy.benchmark.environment import describe

    values = SMALL if arguments.small else VALUES
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        for name, steps in values.items():
            for value in steps:
                sizes = {**USUAL, name: value}
                path = Path(folder) / "chain.onnx"
                write_chain(path, sizes["depth"], sizes["size"])
                command = [sys.executable, __file__, "--one", str(path), "--rows", str(sizes["rows"])]
                command += ["--threads", str(arguments.threads)]
                found = []
                for _ in range(arguments.rounds):
                    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
                    found.append(json.loads(done.stdout.splitlines()[-1]))
                seconds, size = ([one[key] for one in found] for key in ("seconds", "bytes"))
                entries.append({"varied": name, **sizes, "seconds": seconds, "bytes": size})
                print(
                    f"{name} {value:4}: {statistics.median(seconds):7.2f} s  {statistics.median(size) / 1e6:8.0f} MB", flush=True
                )
    return {"environment": describe(arguments.threads), "measurements": entries}


# ---------------------------------------------------------------- the picture

LEFT, TOP, WIDTH, HEIGHT, GAP = 54, 34, 190, 170, 84
LABELS = {"depth": "layers", "size": "side of the input, pixels", "rows": "rows"}
QUANTITIES = (("seconds", "s", 1.0, "#0072b2"), ("bytes", "MB", 1e-6, "#d55e00"))


def picture(document: dict[str, Any]) -> str:
    """Return an SVG with a column of charts for each varied quantity: seconds above, megabytes below. All axes are logarithmic."""
    names = list(dict.fromkeys(one["varied"] for one in document["measurements"]))
    width, height = len(names) * (LEFT + WIDTH + 24), 2 * (TOP + HEIGHT + 34)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="system-ui,sans-serif" font-size="12">'
        f"<title>Time and memory of verify</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for row, (key, unit, factor, color) in enumerate(QUANTITIES):
        every = [factor * statistics.median(one[key]) for one in document["measurements"]]
        low, high = min(every) / 1.4, max(every) * 1.4
        for column, name in enumerate(names):
            mine = [one for one in document["measurements"] if one["varied"] == name]
            points = [(one[name], factor * statistics.median(one[key])) for one in mine]
            left, top = column * (LEFT + WIDTH + 24) + LEFT, row * (TOP + HEIGHT + 34) + TOP
            parts.append(f'<g transform="translate({left} {top})">{_chart(points, (low, high), unit, LABELS[name], color)}</g>')
    return "".join([*parts, "</svg>\n"])


def _chart(points: list[tuple[float, float]], limits: tuple[float, float], unit: str, across: str, color: str) -> str:
    low, high = (math.log10(limit) for limit in limits)
    first, last = math.log2(points[0][0]), math.log2(points[-1][0])

    def x(value: float) -> float:
        return 10 + (WIDTH - 20) * (math.log2(value) - first) / (last - first or 1)

    def y(value: float) -> float:
        return HEIGHT * (high - math.log10(value)) / (high - low)

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#d1d9e0"/>']
    for power in range(math.floor(low), math.ceil(high) + 1):
        for step in (1, 2, 5):
            tick = step * 10.0**power
            if limits[0] <= tick <= limits[1]:
                parts.append(f'<path d="M0 {y(tick):.1f}H{WIDTH}" stroke="#eaeef2"/>')
                parts.append(f'<text x="-6" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#59636e">{tick:g}</text>')
    parts.append(f'<text x="-6" y="-10" text-anchor="end" fill="#59636e">{unit}</text>')
    path = " ".join(f"{x(value):.1f},{y(height):.1f}" for value, height in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
    for value, height in points:
        parts.append(f'<circle cx="{x(value):.1f}" cy="{y(height):.1f}" r="3.5" fill="{color}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{y(height) - 8:.1f}" text-anchor="middle" font-size="10">{height:.3g}</text>')
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT + 14}" text-anchor="middle" fill="#59636e">{value:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT + 30}" text-anchor="middle">{escape(across)}</text>')
    return "".join(parts)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="two small values of each, to rehearse")
    parser.add_argument("--out", type=Path, help="where to write the raw JSON")
    parser.add_argument("--draw", type=Path, metavar="RESULTS", help="draw the picture of this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        verify_once(arguments.one, arguments.rows, arguments.threads)
    if arguments.out:
        arguments.out.write_text(json.dumps(measure(arguments), indent=1) + "\n")
    if arguments.draw:
        PICTURE.write_text(picture(json.loads(arguments.draw.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
