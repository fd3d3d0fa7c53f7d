"""The bundle: one folder in which everything that is known about one model travels.

    digits.rdb/
      manifest.json      what the model is, where it came from, its variants, and the sha256 of every file
      model.onnx         the verified float32 graph
      source.pt2         the PyTorch program it was exported from, so that it can be compared with anywhere (optional)
      variants/ engines/ reports/

A bundle is made whole or not at all: it grows in a temporary folder beside the target, which is then renamed. A file
that is added later is written to a temporary name and renamed, and the manifest after it. A plain `.onnx` file opens as
a bundle without a folder: it can be run and verified, but nothing can be added to it. A variant (`digits.rdb/variants/
int8-cpu.onnx`) opens as the bundle that it is in, with its own graph in the model's place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError
from relu_deploy.tensors import TensorSpec

if TYPE_CHECKING:
    from relu_deploy.backends.base import Session

__all__ = ["Bundle", "create_bundle", "sha256", "whole_folder", "write_atomically"]

SCHEMA = "relu-deploy/bundle/1"
MANIFEST, MODEL, SOURCE, VARIANTS = "manifest.json", "model.onnx", "source.pt2", "variants"


@dataclass(frozen=True)
class Bundle:
    """A model and all that is known of it. Open one with `Bundle.open(path)`; `export` makes one.

    path: the bundle's folder, or the `.onnx` file that stands for one.
    manifest: the parsed manifest.json; for a plain `.onnx` only `name`, `source`, `inputs` and `outputs` are filled.
    variant: which of its variants is meant, "" for the model itself.
    """

    path: Path
    manifest: Mapping[str, Any]
    variant: str = ""

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Bundle) -> Bundle:
        """Return the bundle at `path` (a folder, a variant in one, or an `.onnx` file), its manifest and hashes checked.

        Raises InputError when there is none, the manifest breaks the schema, or a file's hash does not match.
        """
        if isinstance(path, Bundle):
            return path
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path} does not exist", "make it with: relu-deploy export SOURCE -o " + str(path))
        if path.is_file():
            folder = path.resolve().parent.parent
            if path.resolve().parent.name == VARIANTS and (folder / MANIFEST).is_file():
                return cls.open(folder).with_variant(path.stem)
            return cls(path, _manifest_of_file(path))
        bundle = cls(path, _read_manifest(path / MANIFEST))
        bundle.check_hashes()
        return bundle

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @property
    def title(self) -> str:
        """Return what to call this in a table: the model's name, and its variant's where one is meant."""
        return f"{self.name} {self.variant}" if self.variant else self.name

    @property
    def onnx(self) -> Path:
        """Return the path of the graph: the float32 one, or that of the variant."""
        if self.variant:
            return self.path / VARIANTS / f"{self.variant}.onnx"
        return self.path / MODEL if self.is_folder else self.path

    def with_variant(self, name: str) -> Bundle:
        """Return this bundle with its variant called `name` in the model's place. Raises InputError when it has none."""
        known = self.manifest.get("variants", {})
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "make one with relu-deploy optimize"
            raise InputError(f"{self.path} has no variant {name!r}", have)
        return Bundle(self.path, self.manifest, name)

    @property
    def source(self) -> Path | None:
        """Return the path of the PyTorch program that was exported, None when none travels along or a variant is meant."""
        return self.path / SOURCE if SOURCE in self.manifest.get("files", {}) and not self.variant else None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec.from_json(fields) for fields in self.manifest["inputs"])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec.from_json(fields) for fields in self.manifest["outputs"])

    def check_hashes(self) -> None:
        """Raise InputError that names the first file that is missing or whose sha256 is not the manifest's."""
        for name, facts in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file():
                raise InputError(f"{file} is named in {MANIFEST} but missing", "export the model again")
            if file.stat().st_size != facts["bytes"] or sha256(file) != facts["sha256"]:
                raise InputError(
                    f"{file} is not the file that {MANIFEST} was written for (its sha256 differs)",
                    "restore the file, or export the model again with --force",
                )

    def copy_files(self, folder: Path, without: Collection[str] = ()) -> None:
        """Copy the files of the manifest, but those named, into `folder`: engines and caches stay behind."""
        for name in self.manifest["files"].keys() - set(without):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path / name, folder / name)

    def add(self, name: str, content: bytes | str, **fields: Any) -> Bundle:
        """Return this bundle with one more file (or a new version of it) and the manifest's top-level `fields` replaced.

        name: the file's path inside the bundle, with forward slashes.
        """
        if not self.is_folder:
            raise InputError(f"{self.path} is a plain ONNX file: nothing can be added to it", "export it to a bundle first")
        write_atomically(self.path / name, content)
        manifest = _read_manifest(self.path / MANIFEST)
        manifest["files"][name] = _facts(self.path / name)
        manifest.update(fields)
        _validate(manifest, self.path / MANIFEST)
        write_atomically(self.path / MANIFEST, _dump(manifest))
        return Bundle(self.path, manifest, self.variant)

    def session(self, backend: str = "onnxruntime-cpu", variant: str = "", **options: Any) -> Session:
        """Return a session that runs this model on `backend`: `.run({"x": array}) -> {"y": array}`.

        variant: for instance "int8-cpu"; the float32 model by default. options: as for `relu_deploy.backends.load` (threads, device, taps, …).
        Raises BackendUnavailable or Unsupported; never falls back to another backend.
        """
        # The one import that points upward, kept because `bundle.session(…)` is how people want to say it.
        from relu_deploy.backends import load

        return load(self.with_variant(variant) if variant else self, backend, **options)


@contextmanager
def create_bundle(target: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends well it becomes the bundle at `target`.

    The block writes the files and `manifest.json` without its `files` (see `seal`). When it raises, nothing is left.
    Raises InputError when `target` exists and `force` is false, or cannot be written.
    """
    refuse_existing(Path(target), force)
    with whole_folder(Path(target)) as workshop:
        yield workshop


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place, whatever is there, when the block ends well; else nothing is left.

    Raises InputError when it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}", "choose a folder that you may write to with -o") from error
    try:
        workshop.chmod(0o755)
        yield workshop
        if target.exists():
            graveyard = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            os.replace(target, graveyard / "old")
            os.replace(workshop, target)
            shutil.rmtree(graveyard)
        else:
            os.replace(workshop, target)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def seal(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return `manifest` with the hash of every file in `folder`, as written there. Raises InputError when it breaks the schema."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    complete = {**manifest, "files": {file.relative_to(folder).as_posix(): _facts(file) for file in files}}
    _validate(complete, folder / MANIFEST)
    write_atomically(folder / MANIFEST, _dump(complete))
    return complete


def refuse_existing(target: Path, force: bool) -> None:
    """Raise InputError when `target` exists and may not be replaced."""
    if target.exists() and not force:
        raise InputError(f"{target} already exists", "choose another name, or replace it with --force")
    if target.is_dir() and not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise InputError(f"{target} is a folder but not a bundle, and will not be replaced", "choose another name with -o")


def write_atomically(target: Path, content: bytes | str) -> None:
    """Write `content` to `target` so that a reader sees the old file or the new one, never half of either.

    Raises InputError when the place cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
        temporary.chmod(0o644)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {target}: {error.strerror}", "choose a place that you may write to") from error


def sha256(file: Path) -> str:
    """Return the sha256 of `file` in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _facts(file: Path) -> dict[str, Any]:
    return {"sha256": sha256(file), "bytes": file.stat().st_size}


def _dump(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


@cache
def _schema() -> dict[str, Any]:
    text = (Path(__file__).parent / "manifest.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _validate(manifest: Mapping[str, Any], file: Path) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    fault = best_match(Draft202012Validator(_schema()).iter_errors(manifest))
    if fault is not None:
        where = "/".join(map(str, fault.absolute_path)) or "the top level"
        raise InputError(f"{file}: {where}: {fault.message}", "export the model again with this version of relu_deploy")


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file.parent} is not a bundle: it has no {MANIFEST}", "make one with relu-deploy export") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not JSON: {error}", "export the model again") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", "check the folder's permissions") from None
    _validate(manifest, file)
    return dict(manifest)


def _manifest_of_file(file: Path) -> dict[str, Any]:
    from relu_deploy.graph.model import io_specs, load_model

    inputs, outputs = io_specs(load_model(file))
    return {
        "schema": SCHEMA,
        "name": file.stem,
        "source": {"kind": "onnx", "spec": file.name},
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": [spec.to_json() for spec in outputs],
        "task": None,
        "files": {},
        "variants": {},
    }
