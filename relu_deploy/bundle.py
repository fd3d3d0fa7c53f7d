"""The bundle: one folder that holds everything that is known about one model.

    digits.rdb/
      manifest.json      what the model is, where it came from, its variants, and the sha256 of every file
      model.onnx         the verified float32 graph
      source.pt2         the PyTorch program it was exported from, so that it can be compared with anywhere (optional)
      variants/ engines/ reports/

A bundle is made whole or not at all: it is written to a temporary folder beside the target, which is then renamed. A file
of an existing bundle changes in three steps: its new content is stored under a staged name, the manifest with its hash
replaces the old one, and the staged file takes the place of the old one. A process that ends between the steps leaves the
old bundle before the second step and the new one after it; whoever opens the bundle next completes the third.

A plain `.onnx` file opens as a bundle without a folder: it can be run and verified, but nothing can be added to it. A
variant (`digits.rdb/variants/int8-cpu.onnx`) opens as the bundle that it is in, with its own graph as the model.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_deploy.errors import InputError, UsageError, nearest
from relu_deploy.graph_signature import check_signature
from relu_deploy.storage.bundle_files import check_file, complete_interrupted, replace_files
from relu_deploy.storage.files import locked_folder, reason, sha256, write_atomically
from relu_deploy.storage.folders import whole_folder
from relu_deploy.storage.manifest import MANIFEST, MODEL, SCHEMA, SOURCE, VARIANTS, read_manifest, seal
from relu_deploy.tensors import TensorSpec, separated, sized_by_name

if TYPE_CHECKING:
    import onnx_ir as ir

    from relu_deploy.backends.base import Session

__all__ = [
    "MANIFEST",
    "MODEL",
    "SCHEMA",
    "SOURCE",
    "VARIANTS",
    "Bundle",
    "create_bundle",
    "refuse_existing",
    "seal",
    "sha256",
    "whole_folder",
    "write_atomically",
]


@dataclass(frozen=True)
class Bundle:
    """A model and all that is known of it. Open one with `Bundle.open(path)`; `export` makes one.

    Attributes:
        path: The bundle's folder, or the `.onnx` file that is used as one.
        manifest: The parsed manifest.json; for a plain `.onnx` only `name`, `source`, `inputs` and `outputs` are filled.
        variant: Name of the variant in use, "" for the model itself.
        trusted: Whether its PyTorch program may be loaded although loading it could run code in it.
        shapes: Sizes given for inputs whose dimensions may vary, by input name; see `with_shapes`.
        notes: What was repaired in a plain `.onnx` file when it was read, one sentence each.
    """

    path: Path
    manifest: Mapping[str, Any]
    variant: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    trusted: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Bundle, shapes: Mapping[str, Sequence[int]] | None = None) -> Bundle:
        """Return the bundle at `path` (a folder, a variant in one, or an `.onnx` file), its manifest and hashes checked.

        Args:
            path: The path, or a bundle, which is returned.
            shapes: By input name, where an `.onnx` file records no shape of an input: as many dimensions it gets, of any size.

        Raises:
            InputError: If there is none, the manifest breaks the schema, a file's hash does not match, or a file is a link
                out of the bundle.
        """
        if isinstance(path, Bundle):
            return path
        path = Path(path)
        try:
            if not path.exists():
                raise InputError(f"{path} does not exist", "make it with: relu-deploy export SOURCE -o " + str(path))
            if not path.is_dir():
                folder = path.resolve().parent.parent
                if path.resolve().parent.name == VARIANTS and (folder / MANIFEST).is_file():
                    return cls.open(folder).with_variant(path.stem)
                manifest, notes = _manifest_of_file(path, {name: len(shape) for name, shape in (shapes or {}).items()})
                return cls(path, manifest, notes=notes)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {str(path)[:200]}: {reason(error)}", "check the path and its permissions") from None
        bundle = cls(path, read_manifest(path / MANIFEST))
        try:
            bundle.check_files()
        except InputError:
            # A writer may be at work or have been interrupted: wait for it, complete it and look again.
            with locked_folder(path):
                bundle = cls(path, read_manifest(path / MANIFEST))
                complete_interrupted(path, bundle.manifest)
                bundle.check_files()
        return bundle

    @classmethod
    def of_model(cls, model: ir.Model, path: Path) -> Bundle:
        """Return the bundle of the plain `.onnx` file `path` that `model` was written to, without reading it again."""
        return cls(path, _manifest_of_model(model, path))

    @property
    def name(self) -> str:
        """Return the model's name."""
        return str(self.manifest["name"])

    @property
    def is_folder(self) -> bool:
        """Return whether this is a bundle, not a plain `.onnx` file."""
        return self.path.is_dir()

    @property
    def title(self) -> str:
        """Return the name for tables: the model's, followed by the variant's if one is in use."""
        return f"{self.name} {self.variant}" if self.variant else self.name

    @property
    def onnx(self) -> Path:
        """Return the path of the graph: the float32 one, or that of the variant."""
        if self.variant:
            return self.path / VARIANTS / f"{self.variant}.onnx"
        return self.path / MODEL if self.is_folder else self.path

    def with_variant(self, name: str) -> Bundle:
        """Return this bundle with its variant called `name` as the model.

        Raises:
            InputError: If there is no such variant, or the manifest does not list its file.
        """
        known = self.manifest.get("variants", {})
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "make one with relu-deploy optimize"
            raise InputError(f"{self.path} has no variant {name!r}", have)
        self.file(f"{VARIANTS}/{name}.onnx")
        if checked_against := known[name].get("checked_against"):
            self.file(checked_against)
        return replace(self, variant=name)

    def with_trust(self, trusted: bool) -> Bundle:
        """Return this bundle with leave, or without, to load a PyTorch program that could run code when it is loaded."""
        return replace(self, trusted=trusted)

    def with_shapes(self, shapes: Mapping[str, Sequence[int]]) -> Bundle:
        """Return this bundle with sizes for the varying dimensions of its inputs; the batch still varies.

        Nothing is written: the sizes are those of random inputs and of the checks that arrays pass. Dimensions of the same name in
        other inputs have the same size.

        Args:
            shapes: By input name, the whole shape, for instance `(1, 3, 320, 320)`.

        Raises:
            UsageError: If there is no such input, or a shape has another rank or another size where the model fixes one.
        """
        known = {spec.name: spec for spec in self.inputs}
        for name, shape in shapes.items():
            if name not in known:
                raise UsageError(f"--shape: {self.name} has no input {name!r}", nearest(name, known))
            known[name].with_sizes(tuple(shape))
        return replace(self, shapes={**self.shapes, **{name: tuple(shape) for name, shape in shapes.items()}})

    def with_sizes_of(self, feeds: Mapping[str, Any]) -> Bundle:
        """Return this bundle with the dimensions told apart that have one name and several sizes in `feeds`; see `tensors.separated`."""
        inputs, notes = separated(self.inputs, feeds)
        if not notes:
            return self
        manifest = {**self.manifest, "inputs": [spec.to_json() for spec in inputs]}
        return replace(self, manifest=manifest, notes=(*self.notes, *notes))

    @property
    def runtime(self) -> tuple[str, Mapping[str, Any]]:
        """Return the backend that the variant in use was optimized for, and the options for it; ("", {}) if none is recorded."""
        entry = self.manifest.get("variants", {}).get(self.variant, {})
        return entry.get("backend", ""), entry.get("settings", {})

    @property
    def source(self) -> Path | None:
        """Return the path of the PyTorch program that was exported; None if there is none or a variant is in use."""
        return self.path / SOURCE if SOURCE in self.manifest.get("files", {}) and not self.variant else None

    @property
    def program_verdict(self) -> Mapping[str, Any] | None:
        """Return the verdict of `export` on the graph against its PyTorch program, both in float64.

        None if there is none, or if it is about other files than those of this bundle: it lists their hashes.
        """
        verdict, files = self.manifest.get("program_verdict"), self.manifest.get("files", {})
        if verdict is None or self.variant or MODEL not in verdict["files"]:
            return None
        # A bundle without the program has the same graph as the one that had it.
        compared = {name: digest for name, digest in verdict["files"].items() if name != SOURCE or SOURCE in files}
        if any(name not in files or files[name]["sha256"] != digest for name, digest in compared.items()):
            return None
        return dict(verdict)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the model's inputs."""
        return sized_by_name([TensorSpec.from_json(fields) for fields in self.manifest["inputs"]], self.shapes)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the model's outputs."""
        return tuple(TensorSpec.from_json(fields) for fields in self.manifest["outputs"])

    def has_file(self, name: str) -> bool:
        """Return whether the manifest lists the file `name`, such as "reports/bench.json"."""
        return name in self.manifest.get("files", {})

    def file(self, name: str) -> Path:
        """Return the path of a file of this bundle. Every file that is read is read through this method.

        Args:
            name: The file's path inside the bundle, with forward slashes.

        Raises:
            InputError: If the manifest does not list the file: its hash was not checked.
        """
        if not self.has_file(name):
            raise InputError(
                f"{self.path / name} is not listed in {MANIFEST}, so its content is not checked", "export the model again"
            )
        return self.path / name

    def check_files(self) -> None:
        """Check every file of the manifest, and that the model is one of them.

        Raises:
            InputError: Names the first file that is missing, is a link out of the bundle, has another sha256 than the
                manifest says, or is read by a graph but not listed.
        """
        self.file(MODEL)
        for name in self.manifest["files"]:
            for needed in check_file(self.path, self.manifest, name):
                self.file(needed)
        try:
            check_signature(self.path / MODEL, self.manifest)
        except OSError as error:
            raise InputError(f"cannot read {self.onnx}: {reason(error)}", "check the path and its permissions") from error

    def copy_files(self, folder: Path, without: Collection[str] = ()) -> dict[str, Any]:
        """Copy the files of the bundle into `folder`, except those in `without`; engines and caches are not copied.

        Returns:
            The manifest of the files that were copied, which may be newer than that of this object.

        Raises:
            InputError: If another process has replaced the model, or holds the bundle for long.
        """
        with locked_folder(self.path):
            manifest = read_manifest(self.path / MANIFEST)
            complete_interrupted(self.path, manifest)
            self._require_same_model(manifest)
            for name in manifest["files"].keys() - set(without):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.path / name, folder / name)
        manifest.pop("engines", None)
        return manifest

    def add(self, name: str, content: bytes | str, **fields: Any) -> Bundle:
        """Return this bundle with one more file, or a new version of it. See `update`."""
        return self.update({name: content}, **fields)

    def update(self, files: Mapping[str, bytes | str], **fields: Any) -> Bundle:
        """Write files into the bundle, all of them or none, and return the new bundle.

        Args:
            files: Content by the file's path inside the bundle, with forward slashes.
            **fields: Top-level fields of the manifest to replace. `variants` is merged: entries that another process has
                added since this bundle was opened stay.

        Raises:
            InputError: If this is a plain ONNX file, a name is not one of a file inside the bundle, another process holds
                the bundle for long or has replaced the model that variants are of, or the bundle cannot be written.
        """
        if not self.is_folder:
            raise InputError(f"{self.path} is a plain ONNX file: nothing can be added to it", "export it to a bundle first")
        contents = {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}
        with locked_folder(self.path):
            manifest = read_manifest(self.path / MANIFEST)
            complete_interrupted(self.path, manifest)
            if "variants" in fields:
                self._require_same_model(manifest)
                fields["variants"] = {**manifest["variants"], **fields["variants"]}
            manifest = replace_files(self.path, manifest | fields, contents)
        return replace(self, manifest=manifest)

    def _require_same_model(self, manifest: Mapping[str, Any]) -> None:
        if manifest["files"].get(MODEL) != self.manifest["files"].get(MODEL):
            raise InputError(f"{self.path} was replaced by another model while this command ran", "run the command again")

    def session(self, backend: str = "", variant: str = "", **options: Any) -> Session:
        """Return a session that runs this model on `backend`: `.run({"x": array}) -> {"y": array}`.

        Args:
            backend: Its name; `relu-deploy doctor` lists them. By default the one that the variant was optimized for, with the
                settings that are stored in it, otherwise onnxruntime-cpu.
            variant: For instance "int8-cpu"; the float32 model by default.
            **options: As for `relu_deploy.backends.load` (threads, device, taps, …).

        Raises:
            BackendUnavailable: If the backend is not usable here.
            Unsupported: If it cannot run the model; there is no fall-back to another backend.
        """
        # The one import that points upward, kept because `bundle.session(…)` is the short way to say it.
        from relu_deploy.backends import load

        return load(self.with_variant(variant) if variant else self, backend, **options)


@contextmanager
def create_bundle(target: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends without an error it becomes the bundle at `target`.

    The block writes the files and the manifest (see `seal`). If it raises, nothing is left.

    Raises:
        InputError: If `target` cannot be written, exists and `force` is false, or is not a bundle.
    """
    refuse_existing(Path(target), force)
    # A link to a bundle stays a link.
    with whole_folder(Path(os.path.realpath(target)) if Path(target).is_symlink() else Path(target), force=force) as folder:
        yield folder


def refuse_existing(target: Path, force: bool) -> None:
    """Raise InputError if `target` exists and may not be replaced: without `force`, or if it is not a bundle."""
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.lstat()  # raises for a name that cannot be
        if target.exists() and not force:
            raise InputError(f"{target} already exists", "choose another name, or replace it with --force")
        if target.is_dir():
            if not (target / MANIFEST).is_file() and any(target.iterdir()):
                raise InputError(
                    f"{target} is a folder but not a bundle, and will not be replaced", "choose another name with -o"
                )
        elif os.path.lexists(target):
            raise InputError(f"{target} is not a bundle, and will not be replaced", "choose another name with -o")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {str(target)[:200]}: {reason(error)}", "choose another place with -o") from None


def _manifest_of_file(file: Path, ranks: Mapping[str, int]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what a manifest would say of a plain `.onnx` file, and the notes about its repairs.

    ranks: Of the inputs without a shape, by name.
    """
    from relu_deploy.graph.loading.repairs import stale_shapes_of
    from relu_deploy.graph.model import read_model
    from relu_deploy.graph.shapes.input_ranks import set_input_ranks

    model = read_model(file)
    return _manifest_of_model(set_input_ranks(model, ranks), file), (*model.meta["notes"], *stale_shapes_of(model))


def _manifest_of_model(model: ir.Model, file: Path) -> dict[str, Any]:
    from relu_deploy.graph.model import io_specs
    from relu_deploy.graph.shapes.batching import batch_axes

    try:
        described = io_specs(model)
    except InputError as error:
        raise InputError(f"{file}: {error.message}", error.hint) from error
    axes = batch_axes(model)
    inputs, outputs = (tuple(replace(spec, batch_axis=axes[spec.name]) for spec in specs) for specs in described)
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
