"""A model package of ONNX Runtime 1.28 and later: one model in several variants, of which a session takes the first that fits.

    manifest.json                   the package, and where its one component is
    M/component.json                the variants: an execution provider, a folder and a model file each
    M/GRAPH/model.onnx              a graph: the float32 model, or a variant of the bundle, with its external weights

ONNX Runtime compares the provider that a session asks for with that of each variant, and takes the first of equals, so the order
is: variants that were verified before others, the fastest by the bundle's benchmark first. `additional_metadata` holds the verdict
and the measurement of each. Several variants share one folder where providers run the same graph.

Format: model_package/README.md and onnxruntime/core/session/model_package/README.md in the source of ONNX Runtime.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_deploy.bundle import Bundle, sha256
from relu_deploy.errors import Unsupported, UsageError
from relu_deploy.packaging.options import DeployedModel, PackageOptions, model_name
from relu_deploy.packaging.output import copy_graph, write_text
from relu_deploy.storage.json_files import read_report
from relu_deploy.version import __version__

__all__ = ["FLAVORS", "OPTIONS", "write"]

FLAVORS = ("onnxruntime",)
OPTIONS = ("flavor", "device")
SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class _Provider:
    """An execution provider: which variants of a bundle it runs, and the backend that measures it."""

    name: str
    tag: str
    device: str
    targets: tuple[str, ...]
    backend: str
    options: Mapping[str, str]


#: in the order of the file; a session names its provider, so that the order among providers decides nothing
PROVIDERS = (
    # Without the option the provider multiplies float32 in TF32.
    _Provider("CUDAExecutionProvider", "cuda", "gpu", ("cuda",), "onnxruntime-cuda", {"use_tf32": "0"}),
    _Provider(
        "NvTensorRTRTXExecutionProvider",
        "tensorrt-rtx",
        "gpu",
        # Both TensorRTs take the same graphs.
        ("tensorrt-rtx", "tensorrt"),
        "onnxruntime-tensorrt-rtx",
        {},
    ),
    _Provider("CPUExecutionProvider", "cpu", "cpu", ("cpu",), "onnxruntime-cpu", {}),
)


@dataclass(frozen=True)
class _Variant:
    """A graph on a provider. verified: None if nobody has verified it. latency_ms: Median at the smallest measured batch."""

    graph: str
    bundle: Bundle
    provider: _Provider
    verified: bool | None
    verdict: Any
    latency_ms: float | None
    batch: int | None

    @property
    def name(self) -> str:
        """Its name in the package."""
        tag = self.provider.tag
        return self.graph if self.graph.endswith(f"-{tag}") else f"{self.graph}-{tag}"

    @property
    def order(self) -> tuple[bool, float]:
        """Its place among the variants of one provider."""
        return self.verified is None, float("inf") if self.latency_ms is None else self.latency_ms

    def to_json(self) -> dict[str, Any]:
        """Return its body in component.json."""
        measured = None if self.latency_ms is None else {"batch": self.batch, "latency_ms_p50": self.latency_ms}
        metadata = {"verified": self.verified, "verdict": self.verdict, "measured": measured}
        return {
            "variant_directory": self.graph,
            "ep": self.provider.name,
            "device": self.provider.device,
            "executor_info": {
                "ort": {
                    "model_file": "model.onnx",
                    **({"provider_options": dict(self.provider.options)} if self.provider.options else {}),
                }
            },
            "additional_metadata": {
                "relu_deploy": {"model": self.bundle.title, "graph_sha256": sha256(self.bundle.onnx), **metadata}
            },
        }


def write(bundle: Bundle, options: PackageOptions, folder: Path) -> DeployedModel:
    """Write the package.

    Args:
        bundle: The model, with all its variants, or one variant alone.
        options: `device` leaves out the providers of the other kind of device.
        folder: An empty folder.

    Raises:
        InputError: If a file of the model is missing, or a report in the bundle cannot be read.
        Unsupported: If no variant passed its verification.
        UsageError: If no variant is for that device.
    """
    name = model_name(bundle)
    runs = _runs(bundle)
    found = [variant for provider in PROVIDERS for variant in _variants(bundle, provider, runs)]
    if options.device:
        found = [variant for variant in found if variant.provider.device == options.device]
        if not found:
            raise UsageError(f"{bundle.title} has no variant for {options.device}", "leave out --device")
    kept = [variant for variant in found if variant.verified is not False]
    if not kept:
        raise Unsupported(f"no variant of {bundle.title} passed its verification", "relu-deploy verify says where it differs")
    body = {
        "component_name": name,
        "variants": {variant.name: variant.to_json() for variant in kept},
        "additional_metadata": {"relu_deploy": {"labels": bundle.manifest.get("labels"), "task": bundle.manifest.get("task")}},
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "package_name": name,
        "layout": "portable",
        "components": {name: name},
        "additional_metadata": {"relu_deploy": {"version": __version__, "preprocess": bundle.manifest.get("preprocess")}},
    }
    for graph, source in {variant.graph: variant.bundle for variant in kept}.items():
        copy_graph(source.onnx, folder / name / graph / "model.onnx")
    write_text(folder / name / "component.json", json.dumps(body, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return DeployedModel(name, FLAVORS[0], tuple(_notes(found)))


def _variants(bundle: Bundle, provider: _Provider, runs: list[dict[str, Any]]) -> list[_Variant]:
    """Return the variants that `provider` runs, in the order in which they are to be chosen."""
    graphs: list[tuple[str, Bundle]] = []
    if bundle.variant:
        if bundle.manifest["variants"][bundle.variant]["target"] in provider.targets:
            graphs = [(bundle.variant, bundle)]
    else:
        graphs = [
            (name, bundle.with_variant(name))
            for name, entry in bundle.manifest["variants"].items()
            if entry["target"] in provider.targets
        ]
        graphs.append(("model", bundle))
    return sorted((_variant(name, graph, provider, runs) for name, graph in graphs), key=lambda variant: variant.order)


def _variant(name: str, bundle: Bundle, provider: _Provider, runs: list[dict[str, Any]]) -> _Variant:
    mine = [run for run in runs if run["variant"] == bundle.variant and run["backend"] == provider.backend and not run["error"]]
    first = min(mine, key=lambda run: run["batch"], default=None)
    verdict = bundle.manifest["variants"][name].get("verified") if bundle.variant else _verdict(bundle, provider.backend)
    results = [_passed(verdict), *(run["verified"] for run in mine)]
    verified = False if False in results else True if True in results else None
    latency = first["latency_ms"]["p50"] if first else None
    return _Variant(name, bundle, provider, verified, verdict, latency, first["batch"] if first else None)


def _passed(verdict: Any) -> bool | None:
    return verdict.get("passed") if isinstance(verdict, Mapping) else verdict


def _verdict(bundle: Bundle, backend: str) -> dict[str, Any] | None:
    """Return the verdict on the float32 model in reports/verify.json, None if it was not verified on that backend."""
    report = _report(bundle, "reports/verify.json")
    # The report may be that of a variant, which `verify` keeps in the same place.
    backends = report.get("backends", ()) if report.get("model") == bundle.title else ()
    found = next((each for each in backends if each["name"] == backend), None)
    return None if found is None else {"passed": found["passed"], "against": report["against"], "backend": backend}


def _runs(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the runs in reports/bench.json."""
    report = _report(bundle, "reports/bench.json")
    return [run for run in report.get("runs", ()) if run["model"] == bundle.name]


def _report(bundle: Bundle, name: str) -> dict[str, Any]:
    if not bundle.is_folder or not bundle.has_file(name):
        return {}
    return read_report(bundle.file(name), Path(name).stem)


def _notes(variants: list[_Variant]) -> list[str]:
    notes = [f"{variant.name} is left out: its verification failed" for variant in variants if variant.verified is False]
    if unverified := [variant.name for variant in variants if variant.verified is None]:
        notes.append(
            f"not verified: {', '.join(unverified)}; run relu-deploy verify and bench where they can run, and package again"
        )
    notes.append("ONNX Runtime calls its model packages experimental: load this one with the version that it was tested with")
    return notes
