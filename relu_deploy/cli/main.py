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
from typing import Any

from relu_deploy.cli.options import parser_for
from relu_deploy.cli.types import build_options, number, numbers, pixels
from relu_deploy.errors import EXIT_CHECK_FAILED, EXIT_FINE, EXIT_UNUSABLE, ReluDeployError, UsageError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code of the command in `arguments` (by default the process's own)."""
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    try:
        options = parser_for(VERBS).parse_args(arguments)
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


# ---------------------------------------------------------------- verbs


def zoo(options: argparse.Namespace) -> int:
    from relu_deploy.reporting.tables import print_zoo
    from relu_deploy.zoo.recipes import recipes

    models = [entry.to_json() for entry in recipes().values()]
    return _finish(options, {"schema": "relu-deploy/zoo/1", "models": models}, lambda: print_zoo(models))


def export(options: argparse.Namespace) -> int:
    from relu_deploy.exporting.exporter import export_source
    from relu_deploy.reporting.progress import steps
    from relu_deploy.reporting.tables import print_export

    batch = options.batch if options.batch == "dynamic" else number(options.batch, "--batch")
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
            pixels=pixels(options),
            decode=options.decode,
            labels=options.labels,
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
    from relu_deploy.reporting.tables import print_inspect

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
        "symbols": list(cost.symbols),
        "relus": [relu.to_json() for relu in find_relus(model)],
    }
    return _finish(options, result, lambda: print_inspect(result))


def verify(options: argparse.Namespace) -> int:
    from relu_deploy.bundle import Bundle, refuse_existing, write_atomically
    from relu_deploy.data.datasets import load_npz
    from relu_deploy.reporting.progress import steps
    from relu_deploy.reporting.tables import print_verify
    from relu_deploy.reporting.verify_page import verify_page
    from relu_deploy.verification.run import verify as run

    if options.html:
        refuse_existing(options.html, options.force)
    bundle = Bundle.open(options.path)
    with steps(options.quiet) as step:
        report = run(
            bundle,
            options.backend or ["onnxruntime-cpu"],
            feeds=load_npz(options.inputs) if options.inputs else None,
            against=options.against,
            data=options.data,
            samples=options.samples,
            seed=options.seed,
            threads=options.threads,
            device=options.device,
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
    from relu_deploy.reporting.progress import bar
    from relu_deploy.reporting.tables import print_prove
    from relu_deploy.verification.exhaustive import prove as run

    with bar(options.quiet, f"{options.backend}, {options.dtype}") as progress:
        report = run(
            options.backend,
            options.dtype,
            threads=options.threads,
            device=options.device,
            strict=options.strict,
            progress=progress,
        )
    result = report.to_json()
    _finish(options, result, lambda: print_prove(result))
    return EXIT_FINE if report.passed else EXIT_CHECK_FAILED


def census(options: argparse.Namespace) -> int:
    from relu_deploy.activations.census import census as run
    from relu_deploy.bundle import Bundle
    from relu_deploy.reporting.census import print_census
    from relu_deploy.reporting.progress import bar

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
            device=options.device,
            input_range=None if options.range is None else (options.range[0], options.range[1]),
            progress=progress,
        )
    result = report.to_json()
    if report.baseline is not None:
        _keep(bundle, "reports/baseline.npz", report.baseline.to_bytes())
    _keep(bundle, "reports/census.json", result)
    return _finish(options, result, lambda: print_census(result))


def optimize(options: argparse.Namespace) -> int:
    from relu_deploy.bundle import refuse_existing, write_atomically
    from relu_deploy.optimization.run import OptimizeOptions, optimize_bundle
    from relu_deploy.reporting.optimize import optimize_page, print_optimize
    from relu_deploy.reporting.progress import steps

    if options.weights not in ("per-channel", "per-tensor"):
        raise UsageError(
            f"--weights {options.weights!r} is neither per-channel nor per-tensor", "per-channel is the more exact one"
        )
    if options.html:
        refuse_existing(options.html, options.force)
    settings = OptimizeOptions(
        calibration=options.calibration,
        data=options.data,
        samples=options.samples,
        eval_samples=options.eval_samples,
        max_drop=options.max_drop,
        method=options.method,
        per_channel=options.weights == "per-channel",
        equalize=options.equalize,
        correct_biases=options.bias_correction,
        weight_bits=options.weight_bits,
        compact=options.compact,
        allow_observed=options.allow_observed,
        threads=options.threads,
        seed=options.seed,
    )
    with steps(options.quiet) as step:
        report = optimize_bundle(
            options.path,
            options.target,
            options.precision,
            out=options.out,
            force=options.force,
            progress=step,
            options=settings,
        )
    result = report.to_json()
    html = optimize_page(result)
    if report.bundle is not None:
        _keep(report.bundle, f"reports/optimize-{report.variant}.html", html)
    if options.html:
        write_atomically(options.html, html)
    _finish(options, result, lambda: print_optimize(result))
    return EXIT_FINE if report.bundle is not None else EXIT_CHECK_FAILED


def compile(options: argparse.Namespace) -> int:  # named for the verb  # noqa: A001  # named for the verb
    from relu_deploy.compilation.run import compile as run
    from relu_deploy.reporting.progress import bar
    from relu_deploy.reporting.tables import print_compile

    with bar(options.quiet, f"building for {options.backend}") as progress:
        report = run(
            options.path,
            options.backend,
            variant=options.variant,
            out=options.out,
            options=build_options(options),
            device=options.device,
            repeat=options.repeat,
            rebuild=options.rebuild,
            force=options.force,
            progress=progress,
            tell=lambda line: print(f"warning: {line}", file=sys.stderr),
        )
    result = {"schema": "relu-deploy/compile/1", **report.to_json()}
    return _finish(options, result, lambda: print_compile(result))


def bench(options: argparse.Namespace) -> int:
    from relu_deploy.backends import require
    from relu_deploy.benchmark.prepare_models import bundles_for
    from relu_deploy.benchmark.run import bench as run
    from relu_deploy.bundle import Bundle, refuse_existing, write_atomically
    from relu_deploy.reporting.progress import steps
    from relu_deploy.reporting.tables import print_bench

    # What was asked for is checked before minutes are spent on exporting.
    batches = numbers(options.batch, "--batch")
    for name in options.backend or ():
        require(name)
    asked = {"device": options.device, "tf32": options.tf32, "autocast": options.autocast, "torch_mode": options.torch_mode}
    settings = {name: value for name, value in asked.items() if value not in (0, False, "", "default")}
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
            settings=settings,
            data=options.data,
            progress=step,
        )
        result = report.to_json()
        for path in paths:
            mine = {**result, "runs": [run for run in result["runs"] if run["model"] == Bundle.open(path).name]}
            _keep(Bundle.open(path), "reports/bench.json", mine)
    if options.html:
        from relu_deploy.reporting.html import bench_page

        write_atomically(options.html, bench_page(result))
    _finish(options, result, lambda: print_bench(result))
    if options.html and str(options.json) != "-":
        print(f"report: {options.html}")
    return EXIT_FINE if report.passed else EXIT_CHECK_FAILED


def serve(options: argparse.Namespace) -> int:
    from relu_deploy.backends import require
    from relu_deploy.reporting.progress import steps
    from relu_deploy.reporting.tables import print_serve
    from relu_deploy.serving.run import serve as run
    from relu_deploy.serving.run import serve_options

    asked = serve_options(options)
    require(options.backend)

    def started(where: dict[str, Any]) -> None:
        result = {"schema": "relu-deploy/serve/1", **where}
        _finish(options, result, lambda: print_serve(result))
        sys.stdout.flush()

    with steps(options.quiet or options.log_json) as step:
        run(options.paths, asked, progress=step, started=started, exits=True)
    return EXIT_FINE


def package(options: argparse.Namespace) -> int:
    from relu_deploy.packaging.run import package as run
    from relu_deploy.reporting.tables import print_package

    report = run(
        options.path,
        options.target,
        options.out,
        flavour=options.flavour,
        device=options.device,
        max_batch=options.max_batch,
        max_delay=options.max_delay,
        instances=options.instances,
        threads=options.threads,
        accelerator=options.accelerator,
        storage_uri=options.storage_uri,
        image=options.image,
        force=options.force,
    )
    result = {"schema": "relu-deploy/package/1", **report.to_json()}
    return _finish(options, result, lambda: print_package(result))


def doctor(options: argparse.Namespace) -> int:
    from relu_deploy.backends import probe_all
    from relu_deploy.backends.nvidia.system import examine
    from relu_deploy.reporting.doctor import print_doctor

    result = {
        "schema": "relu-deploy/doctor/1",
        "backends": [probe.to_json() for probe in probe_all()],
        "system": examine().to_json(),
    }
    return _finish(options, result, lambda: print_doctor(result))


#: what the verbs of the command line run
VERBS = {
    function.__name__: function
    for function in (zoo, export, inspect, verify, prove, census, optimize, compile, bench, serve, package, doctor)
}


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


def _keep(bundle: Any, name: str, result: dict[str, Any] | str | bytes) -> None:
    """Add a report to the bundle; a bundle that cannot be written keeps its result on the screen only, and says so."""
    if not bundle.is_folder:
        return
    try:
        bundle.add(name, result if isinstance(result, str | bytes) else json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    except ReluDeployError as error:
        print(f"note: the report was not stored: {error.message}", file=sys.stderr)
