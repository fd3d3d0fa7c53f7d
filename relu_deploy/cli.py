"""The command line: one thin function per verb, which parses, calls the library and renders. No logic.

Exit codes: 0 fine, 1 the check said no, 2 bad usage or input, 3 the backend or hardware asked for is not usable here.
Nothing heavy is imported until a verb that needs it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from relu_deploy import __version__
from relu_deploy.errors import EXIT_CHECK_FAILED, EXIT_FINE, EXIT_UNUSABLE, ReluDeployError, UsageError

__all__ = ["main"]

EPILOG = """exit codes: 0 fine · 1 the check said no · 2 bad usage or input · 3 backend or hardware not usable here
PATH is a bundle (a folder made by export) or a plain .onnx file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code of the command in `arguments` (by default the process's own)."""
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    try:
        options = _parser().parse_args(arguments)
        code: int = options.verb(options)
        sys.stdout.flush()
    except ReluDeployError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (head, a pager) has gone; Python would complain once more when it flushes at exit.
        sys.stdout = None  # type: ignore[assignment]
        return EXIT_FINE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like all others: one line, a hint, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see: {self.prog} --help")


# ---------------------------------------------------------------- verbs


def zoo(options: argparse.Namespace) -> int:
    from relu_deploy.report.tables import print_zoo
    from relu_deploy.zoo import recipes

    models = [entry.to_json() for entry in recipes().values()]
    return _finish(options, {"schema": "relu-deploy/zoo/1", "models": models}, lambda: print_zoo(models))


def export(options: argparse.Namespace) -> int:
    from relu_deploy.export import export_source
    from relu_deploy.report.progress import steps
    from relu_deploy.report.tables import print_export

    batch = options.batch if options.batch == "dynamic" else _number(options.batch, "--batch")
    with steps(options.quiet) as step:
        step(f"exporting {options.source}")
        made = export_source(
            options.source,
            options.out,
            inputs=dict(options.input) or None,
            batch=batch,
            opset=options.opset,
            weights=options.weights,
            arguments=dict(options.arg),
            embed_preprocess=options.embed_preprocess,
            pixels=_pixels(options),
            decode=options.decode,
            seed=options.seed,
            force=options.force,
        )
    if made.untrained and not options.quiet:
        print(f"warning: {made.bundle.name} has random weights; give trained ones with --weights FILE", file=sys.stderr)
    result = {"schema": "relu-deploy/export/1", **made.to_json()}
    return _finish(options, result, lambda: print_export(result))


def inspect(options: argparse.Namespace) -> int:
    from relu_deploy.bundle import Bundle
    from relu_deploy.graph import count_cost, find_relus, load_model, name_nodes, opset_of
    from relu_deploy.report.tables import print_inspect

    bundle = Bundle.open(options.path)
    model = load_model(bundle.onnx)
    name_nodes(model)
    cost = count_cost(model, options.batch)
    result = {
        "schema": "relu-deploy/inspect/1",
        "model": bundle.name,
        "opset": opset_of(model),
        "inputs": [spec.to_json() for spec in bundle.inputs],
        "outputs": [spec.to_json() for spec in bundle.outputs],
        "nodes": len(model.graph),
        "batch": cost.batch,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "parameters": cost.parameters,
        "unknown": list(cost.unknown),
        "relus": [relu.to_json() for relu in find_relus(model)],
    }
    return _finish(options, result, lambda: print_inspect(result))


def verify(options: argparse.Namespace) -> int:
    from relu_deploy.bundle import Bundle, refuse_existing, write_atomically
    from relu_deploy.data import load_npz
    from relu_deploy.report.progress import steps
    from relu_deploy.report.tables import print_verify
    from relu_deploy.report.verify_page import verify_page
    from relu_deploy.verify import verify as run

    if options.html:
        refuse_existing(options.html, options.force)
    bundle = Bundle.open(options.path)
    with steps(options.quiet) as step:
        report = run(
            bundle,
            options.backend or ["onnxruntime-cpu"],
            feeds=load_npz(options.inputs) if options.inputs else None,
            against=options.against,
            samples=options.samples,
            seed=options.seed,
            threads=options.threads,
            optimization=options.optimization,
            progress=step,
        )
    result = report.to_json()
    html = verify_page(result)
    _keep(bundle, "reports/verify.json", result)
    _keep(bundle, "reports/verify.html", html)
    if options.html:
        write_atomically(options.html, html)
    _finish(options, result, lambda: print_verify(result))
    if options.html and str(options.json) != "-":
        print(f"report: {options.html}")
    if not report.passed:
        return EXIT_CHECK_FAILED
    # Whoever names a backend asks for what the graph says, on that backend.
    return EXIT_UNUSABLE if options.backend and not report.as_requested else EXIT_FINE


def prove(options: argparse.Namespace) -> int:
    from relu_deploy.report.progress import bar
    from relu_deploy.report.tables import print_prove
    from relu_deploy.verify.prove import prove as run

    with bar(options.quiet, f"{options.backend}, {options.dtype}") as progress:
        report = run(options.backend, options.dtype, threads=options.threads, strict=options.strict, progress=progress)
    result = report.to_json()
    _finish(options, result, lambda: print_prove(result))
    return EXIT_FINE if report.passed else EXIT_CHECK_FAILED


def census(options: argparse.Namespace) -> int:
    from relu_deploy.bundle import Bundle
    from relu_deploy.report.census import print_census
    from relu_deploy.report.progress import bar
    from relu_deploy.verify.census import census as run

    if options.range is not None and len(options.range) != 2:
        raise UsageError(f"--range takes two numbers, not {len(options.range)}", "for instance --range 0,1 or --range=-1,1")
    bundle = Bundle.open(options.path)
    with bar(options.quiet, f"census on {options.backend}") as progress:
        report = run(
            bundle,
            options.data,
            backend=options.backend,
            samples=options.samples,
            batch=options.batch,
            threads=options.threads,
            input_range=None if options.range is None else (options.range[0], options.range[1]),
            progress=progress,
        )
    result = report.to_json()
    _keep(bundle, "reports/census.json", result)
    return _finish(options, result, lambda: print_census(result))


def bench(options: argparse.Namespace) -> int:
    from relu_deploy.backends import require
    from relu_deploy.bench import bench as run
    from relu_deploy.bench.journey import bundles_for
    from relu_deploy.bundle import Bundle, refuse_existing, write_atomically
    from relu_deploy.report.progress import steps
    from relu_deploy.report.tables import print_bench

    # What was asked for is checked before minutes are spent on exporting.
    batches = _numbers(options.batch, "--batch")
    for name in options.backend or ():
        require(name)
    if options.html:
        refuse_existing(options.html, options.force)
    with steps(options.quiet) as step, bundles_for(options.paths, step) as paths:
        report = run(
            paths,
            options.backend or None,
            batch=batches,
            seconds=options.seconds,
            against=options.against,
            threads=options.threads,
            seed=options.seed,
            progress=step,
        )
        result = report.to_json()
        for path in paths:
            mine = {**result, "runs": [run for run in result["runs"] if run["model"] == Bundle.open(path).name]}
            _keep(Bundle.open(path), "reports/bench.json", mine)
    if options.html:
        from relu_deploy.report.html import bench_page

        write_atomically(options.html, bench_page(result))
    _finish(options, result, lambda: print_bench(result))
    if options.html and str(options.json) != "-":
        print(f"report: {options.html}")
    return EXIT_FINE if report.passed else EXIT_CHECK_FAILED


def doctor(options: argparse.Namespace) -> int:
    from relu_deploy.backends import probe_all
    from relu_deploy.report.tables import print_doctor

    probes = [probe.to_json() for probe in probe_all()]
    return _finish(options, {"schema": "relu-deploy/doctor/1", "backends": probes}, lambda: print_doctor(probes))


# ---------------------------------------------------------------- the parser


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="relu-deploy",
        description="Take ReLU networks from PyTorch to production, and prove what was shipped.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"relu-deploy {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)

    verb = _verb(verbs, "zoo", zoo, "list the models: task, size, weights and measured metric")

    verb = _verb(verbs, "export", export, "make a bundle from a PyTorch model or an ONNX file")
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

    verb = _verb(verbs, "inspect", inspect, "show the Relus, what each fuses with, shapes and cost")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("--batch", type=int, default=1, help="size of varying dimensions in the cost (default 1)")

    verb = _verb(verbs, "verify", verify, "compare every Relu and every output with the truth")
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

    verb = _verb(verbs, "prove", prove, "run every bit pattern of a dtype through a backend's own Relu kernel")
    verb.add_argument("--backend", default="onnxruntime-cpu", metavar="NAME", help="whose kernel (default onnxruntime-cpu)")
    verb.add_argument(
        "--dtype", default="float32", metavar="float32|float16|bfloat16|int8", help="default float32: all 2^32 of them"
    )
    verb.add_argument("--strict", action="store_true", help="fail for a zero of the other sign too, which ONNX leaves open")
    _common(verb, "threads")

    verb = _verb(verbs, "census", census, "count dead, always-on and sparse Relus on data, and prove what can be proven")
    verb.add_argument("path", metavar="PATH")
    verb.add_argument("--data", required=True, metavar="D", help="folder of pictures, FILE.npz or shipped data set")
    verb.add_argument("--backend", default="onnxruntime-cpu", metavar="NAME", help="where to run (default onnxruntime-cpu)")
    verb.add_argument("--samples", type=int, metavar="N", help="rows of the data, spread evenly (default: all)")
    verb.add_argument("--batch", type=int, metavar="N", help="rows at a time (default: what fits in little memory)")
    verb.add_argument(
        "--range", type=_floats, metavar="LOW,HIGH", help="of the input, as --range=-1,1 (default: what pixels become)"
    )
    _common(verb, "threads")

    verb = _verb(verbs, "bench", bench, "measure speed and accuracy; with no PATH, of the shipped models")
    verb.add_argument("paths", nargs="*", metavar="PATH", help="bundles, .onnx files or zoo names")
    verb.add_argument("--batch", default="1", metavar="N[,N…]", help="batch sizes (default 1)")
    verb.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of timed runs per row (default 2)")
    verb.add_argument("--against", metavar="BACKEND", help="take ratios against this backend (default: the first)")
    verb.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained report with plots")
    _common(verb, "backend", "seed", "threads", "force")

    _verb(verbs, "doctor", doctor, "say which backends are usable here, and what to fix for those that are not")
    return parser


def _verb(verbs: Any, name: str, function: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary.capitalize() + ".")
    verb.set_defaults(verb=function)
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


def _number(text: str, option: str) -> int:
    return _numbers(text, option)[0]


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{option} {text!r} is not a positive whole number or a list of them", f"for instance {option} 1,8")
    return numbers


def _pixels(options: argparse.Namespace) -> dict[str, Any] | None:
    if options.mean is None and options.std is None:
        return None
    if options.mean is None or options.std is None or len(options.mean) != len(options.std):
        raise UsageError("--mean and --std go together, one number a channel", "for instance --mean 0.5 --std 0.25")
    if min(options.std) <= 0:
        raise UsageError(f"--std must be positive, got {min(options.std)}", "give the standard deviation of each channel")
    return {"scale": 1 / 255, "mean": options.mean, "std": options.std}


# ---------------------------------------------------------------- answers


def _finish(options: argparse.Namespace, result: dict[str, Any], render: Callable[[], None]) -> int:
    """Write `result` where --json says, and the table unless stdout belongs to the JSON."""
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return EXIT_FINE
    if options.json:
        from relu_deploy.bundle import write_atomically

        write_atomically(Path(options.json), text)
    render()
    return EXIT_FINE


def _keep(bundle: Any, name: str, result: dict[str, Any] | str) -> None:
    """Add a report to the bundle; a bundle that cannot be written keeps its result on the screen only, and says so."""
    if not bundle.is_folder:
        return
    try:
        bundle.add(name, result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    except ReluDeployError as error:
        print(f"note: the report was not stored: {error.message}", file=sys.stderr)
