"""Store a variant that passed in a bundle, with its report."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.bundle import MODEL, VARIANTS, Bundle, create_bundle, seal
from relu_deploy.graph import to_bytes
from relu_deploy.storage.folders import temporary_folder

if TYPE_CHECKING:
    from relu_deploy.optimization.report import OptimizeReport

__all__ = ["store"]


def store(
    bundle: Bundle,
    report: OptimizeReport,
    out: str | os.PathLike[str] | None,
    force: bool,
    pages: Mapping[str, str] | None = None,
) -> Bundle:
    """Store the variant of `report` in `bundle`.

    The variant's file, the float32 graph that it was checked against where that is not the model itself, and the reports
    are written together: a reader sees all of them or none.

    Args:
        bundle: The bundle, or a plain ONNX file.
        report: The variant and what is known about it.
        out: Folder for a copy of the bundle; None adds the variant to `bundle` itself.
        force: Replace what exists.
        pages: Further reports, by path inside the bundle.

    Returns:
        The bundle with the variant.
    """
    in_place = out is None or Path(out).resolve() == bundle.path.resolve()
    if not bundle.is_folder:
        return _adopted(bundle, report, Path(str(out)), force, pages)
    files, variants = _contents(bundle, report, pages)
    if in_place:
        return bundle.update(files, variants=variants)
    with create_bundle(Path(str(out)), force=force) as folder:
        manifest = bundle.copy_files(folder)
        # `create_bundle` holds the lock on the folder, which `update` would wait for.
        for name, content in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        seal(folder, {**manifest, "variants": {**manifest["variants"], **variants}})
    return Bundle.open(Path(str(out)))


def _adopted(bundle: Bundle, report: OptimizeReport, out: Path, force: bool, pages: Mapping[str, str] | None) -> Bundle:
    """Return the bundle at `out` made of a plain ONNX file."""
    from relu_deploy.exporting.exporter import export_source

    with temporary_folder("adopt") as parent:
        made = export_source(str(bundle.path), parent / out.name).bundle
        return store(made, report, out, force, pages)


def _contents(
    bundle: Bundle, report: OptimizeReport, pages: Mapping[str, str] | None
) -> tuple[dict[str, bytes | str], dict[str, Any]]:
    """Return the files to add to `bundle`, by path inside it, and the manifest's entry of the variant by its name."""
    name, checked_against = report.variant, MODEL
    file = f"{VARIANTS}/{name}.onnx"
    models: dict[str, bytes] = {}
    if report.prepared.is_another:
        # The prepared graph answers as the model does, but its tensors have other channels or scales.
        is_itself = report.precision == "fp32" or report.prepared.is_quantized
        checked_against = file if is_itself else f"prepared/{name}.onnx"
        models[checked_against] = to_bytes(report.prepared.model)
    models[file] = to_bytes(report.search.model)
    checked_bytes = models[checked_against] if checked_against in models else bundle.file(checked_against).read_bytes()
    fields = {**report.to_json(), "file": file}
    entry: dict[str, Any] = {
        "precision": report.precision,
        "target": report.target.name,
        "checked_against": checked_against,
        "checked_against_sha256": hashlib.sha256(checked_bytes).hexdigest(),
        "accuracy": fields["accuracy"],
        "speedup": fields["speedup"],
        "verified": fields["verified"],
        "evidence": fields["evidence"],
        "float32_nodes": len(report.fallbacks),
    }
    if report.backend:
        entry |= {"backend": report.backend, "settings": dict(report.settings)}
    summary = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return {**models, **(pages or {}), f"reports/optimize-{name}.json": summary}, {name: entry}
