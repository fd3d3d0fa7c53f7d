"""The fault bench: what relu_deploy and Polygraphy find, locate, and call a fault that is none.

    pip install polygraphy==0.53.6
    python benchmarks/faults/run.py --out benchmarks/results/faults.json [--models digits,resnet18] [--sites 2]

Every fault is a file of its own, held against the clean file (or the clean PyTorch program). It counts where it changes a
Relu tensor by more than float32's noise: its float64 evaluation differs from the clean one by more than 32 noise floors
(relu_deploy/verification/judging/verdict.py). In float16 and int8 the same faults count, and those are told apart that also stand out of
that precision's own noise, by the same rule. "located" is the very node, or for a fault that inserts nodes one of those.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from faults import FAULTS, HARMLESS, fold_batch_norm
from tools import Ours, maker_of, polygraphy_mismatches, tensors_of
from variants import to_float16, to_int8

from models import MODELS, Subject, prepare
from relu_deploy.backends import load
from relu_deploy.benchmark.environment import describe
from relu_deploy.bundle import Bundle
from relu_deploy.graph import find_relus, load_model
from relu_deploy.verification.judging.verdict import LIMIT, LIMITS, rms
from relu_deploy.verification.truth import find_truth, open_source

#: relu_deploy's ways: how the faulty file is run
LEVELS = ("none", "basic", "extended", "all")


def spread(places: list[int], count: int) -> list[int]:
    """Return `count` of `places`, from the first to the last."""
    return (
        [places[i] for i in sorted({round(i) for i in np.linspace(0, len(places) - 1, min(count, len(places)))})]
        if places
        else []
    )


class Clean:
    """A clean graph: its float64 tensors and the noise of its Relus in each of `precisions`."""

    def __init__(self, path: Path, feeds: dict[str, np.ndarray], *precisions: str) -> None:
        self.path, self.proto, self.feeds = path, onnx.load(path), feeds
        bundle = Bundle.open(path)
        self.relus = find_relus(load_model(path))
        source = open_source(bundle, "reference", self.relus)
        self.truths = {one: find_truth(source, feeds, one) for one in ("float32", *precisions)}
        self.facts = everything(path, feeds)

    def effects(self, faulty: Path) -> dict[str, float]:
        """Return for each precision by how many noise floors the fault changes the Relu that it changes most."""
        values = everything(faulty, self.feeds)
        worst = dict.fromkeys(self.truths, 0.0)
        for relu in self.relus:
            got = values.get(relu.output)
            for precision, truth in self.truths.items():
                true = truth.values[relu.output]
                if got is not None and got.shape == true.shape:
                    worst[precision] = max(worst[precision], rms(got - true) / truth.noise_floor[relu.output])
        return worst

    def variants(self, count: int) -> list[tuple[str, int, onnx.ModelProto, list[str]]]:
        made = []
        for fault in FAULTS:
            for place in spread(fault.sites(self.proto.graph), count):
                proto = onnx.ModelProto()
                proto.CopyFrom(self.proto)
                if nodes := fault.apply(proto.graph, place, self.facts):
                    made.append((fault.name, place, proto, nodes))
        return made


def everything(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = dict(feeds)

    def seen(name: str, value: np.ndarray) -> np.ndarray:
        values[name] = value
        return value

    load(path, "reference").evaluate(feeds, seen=seen)
    return values


def judge(
    rows: list[dict], base: dict, tool: str, way: str, found: bool, first: str | None, nodes: list[str], **more: object
) -> None:
    rows.append(
        {**base, "tool": tool, "way": way, "found": found, "first": first, "located": bool(found and first in nodes), **more}
    )


def ours(rows: list[dict], base: dict, way: str, tool: Ours, model: Path, against: str, feeds: dict, nodes: list[str]) -> None:
    try:
        found, first, facts = tool.first(model, against, feeds)
    except Exception as error:  # a crash is neither found nor right; it must show in the table
        judge(rows, base, tool.name, way, False, None, nodes, error=f"{type(error).__name__}: {error}"[:300])
        return
    judge(rows, base, tool.name, way, found, first, nodes, **facts)


def polygraphy(
    rows: list[dict], base: dict, way: str, reference: dict, measured: dict, outputs: list[str], model: Path, nodes: list[str]
) -> None:
    different = polygraphy_mismatches(reference, measured)
    first = different[0] if different else None
    judge(rows, base, "polygraphy mark all", way, bool(different), maker_of(model, first), nodes)
    last = [name for name in different if name in outputs]
    judge(rows, base, "polygraphy outputs", way, bool(last), maker_of(model, last[0]) if last else None, nodes)


def float32(subject: Subject, rows: list[dict], folder: Path, sites: int) -> None:
    clean = Clean(subject.clean, subject.feeds)
    outputs = [value.name for value in clean.proto.graph.output]
    here, plain = tensors_of(subject.clean, subject.feeds), tensors_of(subject.clean, subject.feeds, "none")
    cases = [(name, place, proto, nodes, False) for name, place, proto, nodes in clean.variants(sites)]
    for name, rewrite in HARMLESS.items():
        cases.append((name, 0, rewrite(clean.proto), [], True))
    for name, place, proto, nodes, harmless in cases:
        path = folder / "case.onnx"
        onnx.save(proto, path)
        base = {"model": subject.name, "precision": "float32", "case": name, "site": place, "nodes": nodes, "harmless": harmless}
        base["effect"] = 0.0 if harmless else clean.effects(path)["float32"]
        for level in LEVELS:
            ours(
                rows,
                base,
                f"ONNX Runtime {level}, against the clean graph",
                Ours(optimization=level),
                path,
                str(subject.clean),
                subject.feeds,
                nodes,
            )
        if not (harmless and name.startswith("ONNX Runtime")):
            ours(
                rows,
                base,
                "NumPy float32, against the clean graph",
                Ours("reference"),
                path,
                str(subject.clean),
                subject.feeds,
                nodes,
            )
        measured = tensors_of(path, subject.feeds)
        polygraphy(rows, base, "both on ONNX Runtime", here, measured, outputs, path, nodes)
        polygraphy(rows, base, "ONNX Runtime all, against ONNX Runtime none", plain, measured, outputs, path, nodes)


def against_torch(subject: Subject, rows: list[dict], folder: Path, sites: int) -> None:
    """The faulty graph on ONNX Runtime against the clean PyTorch program that travels in the bundle."""
    bundle = Bundle.open(subject.bundle)
    clean = Clean(bundle.onnx, subject.feeds)
    outputs = [value.name for value in clean.proto.graph.output]
    source = open_source(bundle, "torch", ())
    torch_values: dict[str, np.ndarray] = {}

    def keep(name: str, value: np.ndarray) -> np.ndarray:
        if name in source.inner:
            torch_values[source.inner[name]] = value.copy()
        return value

    torch_values |= source.session.evaluate(subject.feeds, wide=False, seen=keep)
    cases = [(*case, False) for case in clean.variants(sites)] + [("exported as it is", 0, clean.proto, [], True)]
    for name, place, proto, nodes, harmless in cases:
        work = folder / "case.rdb"
        shutil.copytree(bundle.path, work, dirs_exist_ok=True)
        changed = Bundle.open(work).add("model.onnx", proto.SerializeToString())
        base = {"model": subject.name, "precision": "float32", "case": name, "site": place, "nodes": nodes, "harmless": harmless}
        base["effect"] = 0.0 if harmless else clean.effects(changed.onnx)["float32"]
        ours(rows, base, "ONNX Runtime all, against the PyTorch program", Ours(), changed.path, "torch", subject.feeds, nodes)
        measured = tensors_of(changed.onnx, subject.feeds)
        polygraphy(rows, base, "ONNX Runtime all, against PyTorch", torch_values, measured, outputs, changed.onnx, nodes)
        shutil.rmtree(work)


def low_precision(subject: Subject, rows: list[dict], folder: Path, precision: str, sites: int) -> None:
    """The faulty float16 or int8 variant on ONNX Runtime against the clean float32 graph."""
    # Converters are made for graphs whose BatchNorms are folded already.
    folded = folder / f"{subject.name}.folded.onnx"
    onnx.save(fold_batch_norm(onnx.load(subject.clean)), folded)
    clean = Clean(folded, subject.feeds, precision)
    convert = to_float16 if precision == "float16" else to_int8
    outputs = [value.name for value in clean.proto.graph.output]
    here = tensors_of(folded, subject.feeds)
    cases = [(*case, False) for case in clean.variants(sites)] + [("converted as it is", 0, clean.proto, [], True)]
    for name, place, proto, nodes, harmless in cases:
        base = {"model": subject.name, "precision": precision, "case": name, "site": place, "nodes": nodes, "harmless": harmless}
        single, path = folder / "float32.onnx", folder / "case.onnx"
        onnx.save(proto, single)
        effects = {"float32": 0.0, precision: 0.0} if harmless else clean.effects(single)
        base |= {"effect": effects["float32"], "effect_in_precision": effects[precision]}
        try:
            convert(single, path, subject.feeds)
        except Exception as error:
            print(f"{subject.name} {precision} {name}: not converted: {error}"[:200], file=sys.stderr)
            continue
        ours(
            rows,
            base,
            f"{precision} on ONNX Runtime, against the clean float32 graph",
            Ours(),
            path,
            str(folded),
            subject.feeds,
            nodes,
        )
        polygraphy(
            rows,
            base,
            f"{precision} on ONNX Runtime, against float32 there",
            here,
            tensors_of(path, subject.feeds),
            outputs,
            path,
            nodes,
        )


def summary(rows: list[dict]) -> list[dict]:
    """Return, for each precision, way and tool: faults that count, found, located, and false alarms."""
    keys = list(dict.fromkeys((row["precision"], row["way"], row["tool"]) for row in rows))
    table = []
    for precision, way, tool in keys:
        mine = [row for row in rows if (row["precision"], row["way"], row["tool"]) == (precision, way, tool)]
        faults = [row for row in mine if not row["harmless"] and row["effect"] > LIMIT]
        below = [row for row in mine if not row["harmless"] and row["effect"] <= LIMIT]
        harmless = [row for row in mine if row["harmless"]]
        # Of those that count, what stands out of the noise that the precision itself makes.
        beyond = [row for row in faults if row.get("effect_in_precision", row["effect"]) > LIMITS[precision]]
        table.append(
            {
                "precision": precision,
                "way": way,
                "tool": tool,
                "faults": len(faults),
                "found": sum(row["found"] for row in faults),
                "located": sum(row["located"] for row in faults),
                "beyond_own_noise": len(beyond),
                "found_beyond": sum(row["found"] for row in beyond),
                "located_beyond": sum(row["located"] for row in beyond),
                "below_noise": len(below),
                "found_below_noise": sum(row["found"] for row in below),
                "harmless": len(harmless),
                "false_alarms": sum(row["found"] for row in harmless),
                "errors": sum("error" in row for row in mine),
            }
        )
    return table


def markdown(table: list[dict]) -> str:
    lines = ["| precision | way | tool | found | located at the node | false alarms |", "| --- | --- | --- | --- | --- | --- |"]
    for row in table:
        share = [f"{row[key]} of {row['faults']} ({row[key] / max(1, row['faults']):.1%})" for key in ("found", "located")]
        lines.append(
            f"| {row['precision']} | {row['way']} | {row['tool']} | {share[0]} | {share[1]} | {row['false_alarms']} of {row['harmless']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--sites", type=int, default=2, help="places of each kind of fault in each model")
    parser.add_argument("--low-sites", type=int, default=2, help="the same in float16 and int8")
    parser.add_argument("--parts", default="float32,torch,float16,int8")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out holds and run the parts that it lacks")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: list[dict] = []
    if arguments.resume and arguments.out.exists():
        rows = json.loads(arguments.out.read_text())["rows"]
    done = {(row["model"], row["part"]) for row in rows}
    parts = arguments.parts.split(",")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models.split(","):
            subject = prepare(name, Path(folder))
            for part in parts:
                if (name, part) in done:
                    continue
                before = len(rows)
                if part == "float32":
                    float32(subject, rows, Path(folder), arguments.sites)
                elif part == "torch":
                    against_torch(subject, rows, Path(folder), arguments.sites)
                else:
                    low_precision(subject, rows, Path(folder), part, arguments.low_sites)
                for row in rows[before:]:
                    row["part"] = part
                print(f"[{time.perf_counter() - started:6.0f} s] {name}, {part}: {len(rows)} rows", file=sys.stderr, flush=True)
                if arguments.out:
                    write(arguments.out, rows, time.perf_counter() - started)
    print(markdown(summary(rows)))
    missed = Counter(row["case"] for row in rows if row["tool"] == "relu_deploy" and row["effect"] > LIMIT and not row["located"])
    print("\nnot located by relu_deploy:", dict(missed))


def write(path: Path, rows: list[dict], seconds: float) -> None:
    import polygraphy as peer

    result = {
        "environment": describe(2),
        "polygraphy": peer.__version__,
        "seconds": round(seconds),
        "summary": summary(rows),
        "rows": rows,
    }
    # A row a line: half the size of indented JSON, and still readable.
    head, tail = json.dumps(result | {"rows": ["ROWS"]}, indent=1, default=str).split('"ROWS"')
    path.write_text(head + ",\n  ".join(json.dumps(row, default=str) for row in rows) + tail + "\n")


if __name__ == "__main__":
    main()
