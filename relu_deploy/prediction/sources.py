"""The inputs of `predict`: files, folders, globs, texts and arrays, each a list of named inputs that are read one by one."""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from relu_deploy.bundle import Bundle
from relu_deploy.data.arrays import load_npz
from relu_deploy.data.texts import takes_texts
from relu_deploy.errors import InputError, UsageError
from relu_deploy.prediction.preparation import PreparedInput, prepare_arrays, prepare_picture, prepare_text
from relu_deploy.storage.files import read_regular
from relu_deploy.tensors import Array

__all__ = ["MAX_FILE_BYTES", "PICTURE_SUFFIXES", "Source", "find_sources", "shard_of"]

#: suffixes of the picture files in a folder
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TEXT_SUFFIXES = (".txt", ".tsv")
#: largest picture or text file
MAX_FILE_BYTES = 2**28
#: inputs of one run, each of which is held by its name
MAX_INPUTS = 2_000_000


class Source(Protocol):
    """One input. `name` identifies it in the results, and `place` is the path below a folder that a drawing of it gets."""

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> Path: ...

    def prepare(self, bundle: Bundle) -> PreparedInput:
        """Read the input as the model takes it. Raises InputError if that fails."""
        ...


@dataclass(frozen=True, slots=True)
class _PictureFile:
    file: Path
    place: Path

    @property
    def name(self) -> str:
        return self.file.as_posix()

    def prepare(self, bundle: Bundle) -> PreparedInput:
        return prepare_picture(bundle, read_regular(self.file, MAX_FILE_BYTES))


@dataclass(frozen=True, slots=True)
class _Text:
    name: str
    text: bytes
    place: Path = Path()

    def prepare(self, bundle: Bundle) -> PreparedInput:
        return prepare_text(bundle, self.text)


@dataclass(frozen=True, eq=False, slots=True)
class _Row:
    name: str
    arrays: Mapping[str, Array]
    row: int
    place: Path = Path()

    def prepare(self, bundle: Bundle) -> PreparedInput:
        return prepare_arrays(bundle, {name: array[self.row : self.row + 1] for name, array in self.arrays.items()})


def find_sources(bundle: Bundle, inputs: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """Return the inputs in files, folders and globs, in that order; in a folder by name, and each only once.

    Args:
        bundle: The model, which decides whether a `.txt` file is one of texts.
        inputs: Picture files, folders of them (with sub-folders), `.npz` files, `.txt` or `.tsv` files of texts (one a line, in
            a `.tsv` behind a label and a tab), and patterns such as `photos/*.jpg`.

    Raises:
        UsageError: If an input does not exist, or a pattern matches nothing.
        InputError: If a folder has no pictures, a file cannot be read, or there are more than `MAX_INPUTS` inputs.
    """
    found: dict[str, Source] = {}
    for given in inputs:
        for source in _sources_at(bundle, str(given)):
            found.setdefault(source.name, source)
        _check_count(len(found), str(given))
    return list(found.values())


def _check_count(count: int, given: str) -> None:
    if count > MAX_INPUTS:
        raise InputError(
            f"{given[:200]} has {count:,} inputs, at most {MAX_INPUTS:,} are predicted in one run",
            "divide them among several runs",
        )


def shard_of(sources: Sequence[Source], shard: tuple[int, int] | None) -> list[Source]:
    """Return every N-th of the inputs, starting with the I-th. shard: (I, N), I from 1 to N; None for all."""
    if shard is None:
        return list(sources)
    index, count = shard
    return list(sources[index - 1 :: count])


def _sources_at(bundle: Bundle, given: str) -> list[Source]:
    path = Path(given)
    try:
        if path.is_dir():
            return _of_folder(bundle, path)
        if path.exists():
            return _of_file(bundle, path, Path(path.name))
        matches = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else []  # a pattern may be absolute  # noqa: PTH207
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {given[:200]}: {error}", "check the path") from None
    if not matches:
        missing = f"no file matches {given}" if glob.has_magic(given) else f"{given} does not exist"
        raise UsageError(missing, "give pictures, folders, patterns, .npz files, or files of texts")
    return [
        source for match in matches if Path(match).is_file() for source in _of_file(bundle, Path(match), Path(Path(match).name))
    ]


def _of_folder(bundle: Bundle, folder: Path) -> list[Source]:
    if takes_texts(bundle.manifest):
        raise InputError(f"{bundle.name} takes texts, and {folder} is a folder", "give .txt or .tsv files")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES and not file.is_dir())
    if not files:
        raise InputError(f"there is no picture in {folder}", f"suffixes of pictures: {', '.join(PICTURE_SUFFIXES)}")
    return [_PictureFile(file, file.relative_to(folder)) for file in files]


def _of_file(bundle: Bundle, file: Path, place: Path) -> list[Source]:
    if file.suffix == ".npz":
        return _of_npz(bundle, file)
    if takes_texts(bundle.manifest):
        return _of_texts(file)
    if file.suffix in TEXT_SUFFIXES:
        raise InputError(f"{file}: {bundle.name} does not take texts", "give pictures or .npz files")
    return [_PictureFile(file, place)]


def _of_npz(bundle: Bundle, file: Path) -> list[Source]:
    arrays = load_npz(file)
    names = [spec.name for spec in bundle.inputs]
    if missing := [name for name in names if name not in arrays]:
        raise InputError(
            f"{file} has no array {missing[0]!r}", f"its arrays must have the names of the inputs: {', '.join(names)}"
        )
    arrays = {name: arrays[name] for name in names}
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise InputError(f"the arrays in {file} do not have the same number of rows, at least 1", "save one row for each input")
    (count,) = lengths
    _check_count(count, str(file))
    return [_Row(f"{file.as_posix()}[{row}]", arrays, row) for row in range(count)]


def _of_texts(file: Path) -> list[Source]:
    found: list[Source] = []
    content = read_regular(file, MAX_FILE_BYTES).removeprefix(codecs.BOM_UTF8)
    _check_count(content.count(b"\n") + content.count(b"\r") - content.count(b"\r\n"), str(file))
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip() and not line.startswith(b"#"):
            text = line.partition(b"\t")[2] if file.suffix == ".tsv" else line
            found.append(_Text(f"{file.as_posix()}:{number}", text))
    if not found:
        raise InputError(f"there is no text in {file}", "write one on each line")
    return found
