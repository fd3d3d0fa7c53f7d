"""The command line's grammar: every verb and its options. No verb runs here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from relu_deploy.cli.types import argument, floats, input_shape, label_names
from relu_deploy.errors import UsageError
from relu_deploy.version import __version__

__all__ = ["parser_for"]

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

    for add in (_zoo, _export, _inspect, _verify, _prove, _census, _optimize, _compile, _bench, _serve, _package, _doctor):
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
        "--input", action="append", default=[], type=input_shape, metavar="NAME=1x3x224x224", help="an input's shape; repeatable"
    )
    verb.add_argument(
        "--arg", action="append", default=[], type=argument, metavar="KEY=VALUE", help="argument of the architecture or callable"
    )
    verb.add_argument("--batch", default="dynamic", metavar="N|dynamic", help="fix the batch, or let it vary (default)")
    verb.add_argument("--opset", type=int, default=20, help="ONNX operator set (default 20)")
    verb.add_argument("--embed-preprocess", action="store_true", help="take uint8 NHWC pictures; normalize inside the graph")
    verb.add_argument("--mean", type=floats, metavar="M[,M,M]", help="normalization of pixels scaled to 0..1")
    verb.add_argument("--std", type=floats, metavar="S[,S,S]", help="normalization of pixels scaled to 0..1")
    verb.add_argument(
        "--labels", type=label_names, metavar="FILE", help="names of the classes, of pictures or of pixels, one a line"
    )
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
    verb.add_argument(
        "--data", metavar="D", help="folder of pictures, FILE.npz or shipped data set (default: the model's own, else random)"
    )
    verb.add_argument("--samples", type=int, default=1, metavar="N", help="rows of data when no --inputs are given (default 1)")
    verb.add_argument(
        "--optimization",
        default="all",
        metavar="none|basic|extended|all",
        help="how far the runtime may rewrite the graph, where it has such a switch (default all, as deployed)",
    )
    verb.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page (a bundle keeps one in reports/)")
    _common(verb, "backend", "seed", "threads", "device", "force")


def _prove(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "prove", "run every bit pattern of a dtype through a backend's own Relu kernel")
    verb.add_argument("--backend", default="onnxruntime-cpu", metavar="NAME", help="whose kernel (default onnxruntime-cpu)")
    verb.add_argument(
        "--dtype", default="float32", metavar="float32|float16|bfloat16|int8", help="default float32: all 2^32 of them"
    )
    verb.add_argument("--strict", action="store_true", help="fail for a zero of the other sign too, which ONNX leaves open")
    _common(verb, "threads", "device")


def _census(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "census", "count dead, always-on and sparse Relus on data, and prove what can be proven")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument(
        "--data", required=True, metavar="D", help="folder of pictures, FILE.npz, FILE.tsv of texts, or shipped data set"
    )
    verb.add_argument("--backend", default="onnxruntime-cpu", metavar="NAME", help="where to run (default onnxruntime-cpu)")
    verb.add_argument("--samples", type=int, metavar="N", help="rows of the data, spread evenly (default: all)")
    verb.add_argument("--batch", type=int, metavar="N", help="rows at a time (default: what fits in little memory)")
    verb.add_argument(
        "--range", type=floats, metavar="LOW,HIGH", help="of the input, as --range=-1,1 (default: what pixels become)"
    )
    _common(verb, "threads", "device")


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
    verb.add_argument("--calibration", metavar="D", help="as for census --data; int8 and fp8 need it")
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
        help="scale neighboring layers to each other (default: with per-tensor weights)",
    )
    verb.add_argument(
        "--bias-correction",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the mean error of quantized weights out of the biases",
    )
    verb.add_argument("--weight-bits", type=int, metavar="7|8", help="cpu: 7 for x86 without VNNI (default: what this CPU takes)")
    verb.add_argument("--compact", action="store_true", help="remove channels and Relus that provably never act")
    verb.add_argument("--allow-observed", action="store_true", help="with --compact: and channels that never fired on the data")
    verb.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page (a bundle keeps one in reports/)")
    _common(verb, "seed", "threads", "force")


def _compile(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "compile", "build the engine of a model ahead of time; engines are kept by content")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("--backend", required=True, metavar="NAME", help="tensorrt, or tensorrt-rtx, which needs no GPU for it")
    verb.add_argument("--variant", default="", metavar="NAME", help="of the bundle, for instance int8-tensorrt-rtx")
    verb.add_argument(
        "-o", "--out", metavar="OUT", help="FILE, FOLDER/ or BUNDLE.rdb to put it (default: kept in PATH, or in the user's cache)"
    )
    verb.add_argument(
        "--batch",
        action="append",
        metavar="MIN,OPT,MAX",
        help="batch sizes of an optimization profile; repeatable, N for one size (default 1,8,32)",
    )
    verb.add_argument(
        "--profile",
        action="append",
        metavar="NAME=MIN,OPT,MAX",
        help="whole shapes, such as x=1x3x224x224,8x3x224x224,32x3x512x512; the same NAME again starts the next profile",
    )
    verb.add_argument(
        "--compute-capability",
        metavar="CC[,CC…]",
        help="tensorrt-rtx: the GPUs to build for, such as 8.6,8.9 (default: its own set)",
    )
    verb.add_argument("--level", type=int, metavar="0-5", help="builder optimization level (default: the library's, 3)")
    verb.add_argument("--workspace", type=float, metavar="GIB", help="most device memory for a kernel's workspace")
    verb.add_argument("--tf32", action="store_true", help="let float32 matrices be multiplied in TF32 (10 bits of mantissa)")
    verb.add_argument("--version-compatible", action="store_true", help="an engine that later versions run too")
    verb.add_argument(
        "--hardware-compatible",
        default="",
        metavar="ampere-plus|same-compute-capability",
        help="tensorrt: an engine for other GPUs too",
    )
    verb.add_argument("--weight-streaming", action="store_true", help="weights may stay in host memory")
    verb.add_argument("--refit", action="store_true", help="weights can be replaced later")
    verb.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="build N times, run all on the GPU, keep the best that verifies"
    )
    verb.add_argument("--rebuild", action="store_true", help="build even if the engine is kept")
    verb.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default 0)")
    _common(verb, "force")


def _bench(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(verbs, functions, "bench", "measure speed and accuracy; with no PATH, of the shipped models")
    verb.add_argument("paths", nargs="*", metavar="PATH", help="bundles, .onnx files or zoo names")
    verb.add_argument("--batch", default="1", metavar="N[,N…]", help="batch sizes (default 1)")
    verb.add_argument("--data", metavar="D", help="what is fed and scored (default: the model's own data set, else random)")
    verb.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of timed runs per row (default 2)")
    verb.add_argument("--against", metavar="BACKEND", help="take ratios against this backend (default: the first)")
    verb.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default 0)")
    verb.add_argument("--tf32", action="store_true", help="let GPUs multiply float32 with 10 bits of mantissa")
    verb.add_argument("--autocast", default="", metavar="TYPE", help="float16 or bfloat16, for PyTorch on a GPU")
    verb.add_argument("--torch-mode", default="default", metavar="MODE", help="of torch.compile, such as max-autotune")
    verb.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained report with plots")
    _common(verb, "backend", "seed", "threads", "force")


def _serve(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(
        verbs, functions, "serve", "answer inference requests over HTTP and gRPC (Open Inference Protocol v2) until stopped"
    )
    verb.add_argument("paths", nargs="+", metavar="PATH", help="bundles, their variants, or .onnx files")
    verb.add_argument("--backend", default="onnxruntime-cpu", metavar="NAME", help="of every model (default onnxruntime-cpu)")
    verb.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen; 0.0.0.0 for every interface (default 127.0.0.1)"
    )
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        verb.add_argument(
            f"--{name}-port", type=int, default=port, metavar="N", help=f"(default {port}; 0 takes a free one, -1 none)"
        )
    verb.add_argument("--max-batch", type=int, default=8, metavar="N", help="most rows run together (default 8)")
    verb.add_argument(
        "--max-delay", type=float, default=0.0, metavar="MS", help="how long a request may wait for others (default 0)"
    )
    verb.add_argument(
        "--queue", type=int, default=128, metavar="N", help="requests that may wait; more are told to come back (default 128)"
    )
    verb.add_argument(
        "--deadline", type=float, metavar="S", help="seconds that a request may wait in the queue (default: no limit)"
    )
    verb.add_argument("--max-body", type=float, default=64.0, metavar="MIB", help="largest request body (default 64)")
    verb.add_argument(
        "--monitor-share",
        type=float,
        metavar="S",
        help="share of rows whose Relus are compared with the census, 0 to 1 (default 0.01 for a model that has a census)",
    )
    verb.add_argument(
        "--traces", metavar="ENDPOINT", help="send OpenTelemetry traces to this collector (OTLP over HTTP): http://localhost:4318"
    )
    verb.add_argument(
        "--trace-share",
        type=float,
        metavar="S",
        help="share of requests that are traced unless their traceparent says whether, 0 to 1 (default 0.01)",
    )
    verb.add_argument("--log-json", action="store_true", help="log one JSON object a line to stderr")
    verb.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="least that is logged (default info)"
    )
    verb.add_argument(
        "--log-slow", type=float, default=1000.0, metavar="MS", help="log requests that take as long (default 1000)"
    )
    verb.add_argument(
        "--max-pixels", type=float, default=40.0, metavar="MEGAPIXELS", help="largest picture that is decoded (default 40)"
    )
    verb.add_argument("--allow-nan", action="store_true", help="take NaN and infinities in inputs (default: refuse them)")
    verb.add_argument("--no-watch", dest="watch", action="store_false", help="do not reload a model whose file changes")
    verb.add_argument("--device", type=int, default=0, metavar="N", help="index of the GPU (default 0)")
    _common(verb, "threads")


def _package(verbs: Any, functions: Mapping[str, Verb]) -> None:
    verb = _verb(
        verbs, functions, "package", "write what another engine deploys: a model repository, manifests, an image's context"
    )
    verb.add_argument("path", metavar="PATH", help="a bundle, a variant in one, or an .onnx file")
    verb.add_argument("--for", dest="target", required=True, metavar="triton|kserve|docker", help="what deploys it")
    verb.add_argument("-o", "--out", required=True, type=Path, metavar="DIR", help="the folder to write, whole or not at all")
    verb.add_argument(
        "--flavour",
        default="",
        metavar="NAME",
        help="triton: onnxruntime (default), tensorrt (a compiled engine), python (needs no other backend); "
        "kserve: relu-deploy (default), or one of these on Triton",
    )
    verb.add_argument(
        "--device", default="", metavar="cpu|gpu", help="(default: what the variant was made for, else what is found)"
    )
    verb.add_argument("--max-batch", type=int, metavar="N", help="most rows run together (default: measured by bench, else 8)")
    verb.add_argument(
        "--max-delay",
        type=float,
        metavar="MS",
        help="how long a request may wait for others (default: measured by bench, else 0.1)",
    )
    verb.add_argument("--instances", type=int, default=0, metavar="N", help="triton: copies of the model (default 1 a device)")
    verb.add_argument(
        "--accelerator", default="", metavar="tensorrt", help="triton, flavour onnxruntime: hand the graph to TensorRT"
    )
    verb.add_argument("--storage-uri", default="", metavar="URI", help="kserve: where the model is, such as s3://bucket/digits")
    verb.add_argument("--image", default="", metavar="NAME", help="kserve: the server's image; docker: the base image")
    _common(verb, "threads", "force")


def _doctor(verbs: Any, functions: Mapping[str, Verb]) -> None:
    _verb(verbs, functions, "doctor", "say which backends are usable here, and what to fix for those that are not")


def _verb(verbs: Any, functions: Mapping[str, Verb], name: str, summary: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
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
        "device": {"type": int, "default": 0, "metavar": "N", "help": "index of the GPU, for backends on one (default 0)"},
        "force": {"action": "store_true", "help": "replace what exists"},
    }
    for name in names:
        verb.add_argument(f"--{name}", **described[name])
