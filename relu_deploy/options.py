"""The command line's grammar: every verb, its options, and how their texts become values. No verb runs here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from relu_deploy import __version__
from relu_deploy.errors import UsageError

__all__ = ["number", "numbers", "parser_for", "pixels"]

EPILOG = """exit codes: 0 fine · 1 the check said no · 2 bad usage or input · 3 backend or hardware not usable here
PATH is a bundle (a folder made by export) or a plain .onnx file."""

Verb = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like all others: one line, a hint, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see: {self.prog} --help")


def parser_for(functions: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """Return the parser that sets `verb` to the function in `functions` of the verb's name."""
    parser = _Parser(
        prog="relu-deploy",
        description="Take ReLU networks from PyTorch to production, and prove what was shipped.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"relu-deploy {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)

    for add in (_zoo, _export, _inspect, _verify, _prove, _census, _optimize, _bench, _doctor):
        add(verbs, functions)
    return parser


def _zoo(verbs: Any, functions: Mapping[str, Verb]) -> None:
    _verb(verbs, functions, "zoo", "list the models: task, size, weights and measured metric")


def _export(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "export", "make a bundle from a PyTorch model or an ONNX file")
    verb.add_argument("source", metavar="SOURCE", help="zoo name, package.module:callable, FILE.pt2 or FILE.onnx")
    verb.add_argument("-o", "--out", required=True, type=Path, metavar="OUT", help="the bundle to make, for instance digits.rdb")
    verb.add_argument("--weights", type=Path, metavar="FILE", help=".safetensors or .pth state dict")
    verb.add_argument(
        "--input", action="append", default=[], type=_input, metavar="NAME=1x3x224x224", help="an input's shape; repeatable"
    )
    verb.add_argument(
        "--arg", action="append", default=[], type=_argument, metavar="KEY=VALUE", help="argument of the architecture or callable"
    )
    verb.add_argument("--batch", default="dynamic", metavar="N|dynamic", help="fix the batch, or let it vary (default)")
    verb.add_argument("--opset", type=int, default=20, help="ONNX operator set (default 20)")
    verb.add_argument("--embed-preprocess", action="store_true", help="take uint8 NHWC pictures; normalise inside the graph")
    verb.add_argument("--mean", type=_floats, metavar="M[,M,M]", help="normalisation of pixels scaled to 0..1")
    verb.add_argument("--std", type=_floats, metavar="S[,S,S]", help="normalisation of pixels scaled to 0..1")
    verb.add_argument(
        "--decode", choices=("none", "boxes", "nms"), help="detectors: raw head maps, boxes and scores (default), or detections"
    )
    _common(verb, "seed", "force")


def _inspect(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "inspect", "show the Relus, what each fuses with, shapes and cost")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("--batch", type=int, default=1, help="size of varying dimensions in the cost (default 1)")


def _verify(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "verify", "compare every Relu and every output with the truth")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument(
        "--against", metavar="torch|reference|OTHER.onnx", help="the truth (default: torch where its program travels along)"
    )
    verb.add_argument("--inputs", type=Path, metavar="FILE.npz", help="arrays named after the model's inputs")
    verb.add_argument("--samples", type=int, default=1, metavar="N", help="rows of data when no --inputs are given (default 1)")
    verb.add_argument(
        "--optimization",
        default="all",
        metavar="none|basic|extended|all",
        help="how far the runtime may rewrite the graph, where it has such a switch (default all, as deployed)",
    )
    verb.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page (a bundle keeps one in reports/)")
    _common(verb, "backend", "seed", "threads", "force")


def _prove(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "prove", "run every bit pattern of a dtype through a backend's own Relu kernel")
    verb.add_argument("--backend", default="onnxruntime-cpu", metavar="NAME", help="whose kernel (default onnxruntime-cpu)")
    verb.add_argument(
        "--dtype", default="float32", metavar="float32|float16|bfloat16|int8", help="default float32: all 2^32 of them"
    )
    verb.add_argument("--strict", action="store_true", help="fail for a zero of the other sign too, which ONNX leaves open")
    _common(verb, "threads")


def _census(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "census", "count dead, always-on and sparse Relus on data, and prove what can be proven")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("--data", required=True, metavar="D", help="folder of pictures, FILE.npz or shipped data set")
    verb.add_argument("--backend", default="onnxruntime-cpu", metavar="NAME", help="where to run (default onnxruntime-cpu)")
    verb.add_argument("--samples", type=int, metavar="N", help="rows of the data, spread evenly (default: all)")
    verb.add_argument("--batch", type=int, metavar="N", help="rows at a time (default: what fits in little memory)")
    verb.add_argument(
        "--range", type=_floats, metavar="LOW,HIGH", help="of the input, as --range=-1,1 (default: what pixels become)"
    )
    _common(verb, "threads")


def _optimize(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "optimize", "make a variant for a target, small and fast, that passes an accuracy gate")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument(
        "-o", "--out", type=Path, metavar="OUT", help="a copy of the bundle with the variant (default: add it to PATH)"
    )
    verb.add_argument(
        "--for", dest="target", default="cpu", metavar="TARGET", help="cpu (default), cuda, tensorrt or tensorrt-rtx"
    )
    verb.add_argument(
        "--precision",
        default="auto",
        metavar="auto|fp32|fp16|bf16|int8|fp8",
        help="auto (default) takes the fastest that passes the gate",
    )
    verb.add_argument("--calibration", metavar="D", help="folder of pictures, FILE.npz or shipped data set; int8 and fp8 need it")
    verb.add_argument("--samples", type=int, default=128, metavar="N", help="rows to calibrate on, spread evenly (default 128)")
    verb.add_argument(
        "--data", metavar="D", help="what accuracy is measured on (default: the model's own set, else --calibration)"
    )
    verb.add_argument("--eval-samples", type=int, metavar="N", help="most rows that accuracy is measured on (default: all)")
    verb.add_argument(
        "--max-drop", type=float, metavar="X", help="accuracy that may be lost (default 0.005 with labels, 0.05 without)"
    )
    verb.add_argument("--method", default="mse", metavar="mse|minmax|percentile|entropy", help="of calibration (default mse)")
    verb.add_argument("--weights", default="per-channel", metavar="per-channel|per-tensor", help="scales of the weights")
    verb.add_argument(
        "--equalize",
        action=argparse.BooleanOptionalAction,
        help="scale neighbouring layers to each other (default: with per-tensor weights)",
    )
    verb.add_argument(
        "--bias-correction",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the mean error of quantised weights out of the biases",
    )
    verb.add_argument("--weight-bits", type=int, metavar="7|8", help="cpu: 7 for x86 without VNNI (default: what this CPU takes)")
    verb.add_argument("--compact", action="store_true", help="remove channels and Relus that provably never act")
    verb.add_argument("--allow-observed", action="store_true", help="with --compact: and channels that never fired on the data")
    verb.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page (a bundle keeps one in reports/)")
    _common(verb, "seed", "threads", "force")


def _bench(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "bench", "measure speed and accuracy; with no PATH, of the shipped models")
    verb.add_argument("paths", nargs="*", metavar="PATH", help="bundles, .onnx files or zoo names")
    verb.add_argument("--batch", default="1", metavar="N[,N…]", help="batch sizes (default 1)")
    verb.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of timed runs per row (default 2)")
    verb.add_argument("--against", metavar="BACKEND", help="take ratios against this backend (default: the first)")
    verb.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained report with plots")
    _common(verb, "backend", "seed", "threads", "force")


def _doctor(verbs: Any, functions: Mapping[str, Verb]) -> None:
    _verb(verbs, functions, "doctor", "say which backends are usable here, and what to fix for those that are not")


def _verb(verbs: Any, functions: Mapping[str, Verb], name: str, summary: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary.capitalize() + ".")
    verb.set_defaults(verb=functions[name])
    verb.add_argument("--json", metavar="FILE", help="write the result as one JSON object; - for stdout alone")
    verb.add_argument("--quiet", action="store_true", help="no progress on stderr")
    verb.add_argument("--debug", action="store_true", help="show a traceback for errors")
    return verb


def _common(verb: argparse.ArgumentParser, *names: str) -> None:
    described: dict[str, dict[str, Any]] = {
        "backend": {
            "action": "append",
            "metavar": "NAME",
            "help": "backend to run on; repeatable (relu-deploy doctor lists them)",
        },
        "seed": {"type": int, "default": 0, "help": "of everything random (default 0)"},
        "threads": {"type": int, "default": 0, "metavar": "N", "help": "CPU threads (default: every CPU this process may use)"},
        "force": {"action": "store_true", "help": "replace what exists"},
    }
    for name in names:
        verb.add_argument(f"--{name}", **described[name])


def _input(text: str) -> tuple[str, tuple[int, ...]]:
    from relu_deploy.tensors import parse_shape

    name, separator, shape = text.partition("=")
    if not separator or not name:
        raise UsageError(f"not an input: {text!r}", "write it as name=1x3x224x224")
    return name, parse_shape(shape)


def _argument(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise UsageError(f"not an argument: {text!r}", "write it as key=value, for instance --arg num_classes=10")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"not numbers: {text!r}", "separate them by commas, for instance 0.485,0.456,0.406") from None


def number(text: str, option: str) -> int:
    """Return the first of `numbers`."""
    return numbers(text, option)[0]


def numbers(text: str, option: str) -> list[int]:
    """Return the positive whole numbers in `text`, separated by commas. Raises UsageError that names `option`."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"{option} {text!r} is not a positive whole number or a list of them", f"for instance {option} 1,8")
    return found


def pixels(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return what --mean and --std say about pixels, None when they are not given. Raises UsageError for half of it."""
    if options.mean is None and options.std is None:
        return None
    if options.mean is None or options.std is None or len(options.mean) != len(options.std):
        raise UsageError("--mean and --std go together, one number a channel", "for instance --mean 0.5 --std 0.25")
    if min(options.std) <= 0:
        raise UsageError(f"--std must be positive, got {min(options.std)}", "give the standard deviation of each channel")
    return {"scale": 1 / 255, "mean": options.mean, "std": options.std}
