"""The result file of `predict`: one row an input, as JSON Lines, CSV or Parquet. A run that was interrupted continues it.

Rows are appended a batch at a time, each batch by one system call; a partial line that a crash left at the end is removed before
anything is appended. Parquet cannot be appended to; its rows are collected as JSON Lines beside it, and it is written at the end.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from relu_deploy.errors import InputError, UsageError, missing_package
from relu_deploy.storage.files import atomic_file, reason, try_lock
from relu_deploy.storage.targets import refuse_bundle_file

__all__ = ["FORMATS", "RowFile", "open_rows"]

COLUMNS = ("input", "model", "predictions", "mask", "error")
#: rows that are converted to Parquet at a time
CHUNK = 10_000
#: the first bytes of a row of JSON Lines
FIRST = b'{"input": "'
OTHER = "choose another name, or replace it with --force"


class RowFile:
    """A file of rows that is appended to.

    Attributes:
        done: Names of the inputs that have a row.
    """

    def __init__(self, path: Path, model: str, force: bool) -> None:
        """Open the file, remove an unfinished last line and read which inputs are done.

        Args:
            path: The file.
            model: `Predictor.model_id`; rows of another model are not continued.
            force: Start with an empty file.

        Raises:
            InputError: If the file is not one of `predict`, is of another model, is written by another process, or cannot be
                written.
        """
        self.path, self._model = path, model
        self.done: set[str] = set()
        refuse_bundle_file(path)
        try:
            self._refuse_special(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            #: the file is new, and no row has been written into it
            self._is_empty = not path.exists()
            self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write {path}: {reason(error)}", "choose another place with -o") from error
        if not try_lock(self._file.fileno()):
            self._file.close()
            raise InputError(f"another process is writing {path}", "wait for it, or choose another name with -o")
        try:
            if force:
                self._file.truncate(0)
            content = self._file.readall()
            end = self._end_of_whole_rows(content)
            if end == 0 and content and not self._begins(content):
                raise InputError(f"{path} is not a file of predictions", OTHER)
            for row in self._parse(content[:end]):
                self._check(row)
                self.done.add(row["input"])
            self._file.truncate(end)
            self._file.seek(end)
            if end == 0:
                self._append(self._header())
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _refuse_special(path: Path) -> None:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not an ordinary file", "choose another name with -o")

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows. Raises InputError if they cannot be written."""
        self._append(b"".join(self._line(row) for row in rows))
        self._is_empty = False

    def _append(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {reason(error)}", "free some space and run the command again") from error

    def finish(self) -> None:
        """Flush the rows to the disk and close the file."""
        self._is_empty = False
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {reason(error)}", "free some space and run the command again") from error
        finally:
            self._file.close()

    def close(self) -> None:
        """Close the file, and remove it if it was made for rows of which none could be written."""
        if self._is_empty:
            self.path.unlink(missing_ok=True)
            self._is_empty = False
        self._file.close()

    def _begins(self, content: bytes) -> bool:
        """Return whether `content`, which holds no whole row, is the beginning of a first one that was interrupted."""
        return content[: len(FIRST)] == FIRST[: len(content)]

    def _check(self, row: Mapping[str, Any]) -> None:
        if not (isinstance(row.get("input"), str) and row["input"] and isinstance(row.get("model"), str)):
            raise InputError(f"{self.path} is not a file of predictions", OTHER)
        if row["model"] != self._model:
            raise InputError(f"{self.path} holds predictions of {row['model']}, not of {self._model}", OTHER)

    # The format: JSON Lines here, CSV in the class below.

    def _header(self) -> bytes:
        return b""

    def _line(self, row: Mapping[str, Any]) -> bytes:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"

    def _end_of_whole_rows(self, content: bytes) -> int:
        return content.rfind(b"\n") + 1

    def _parse(self, content: bytes) -> Iterator[Mapping[str, Any]]:
        for line in content.splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{self.path} is not a file of predictions", OTHER)
            yield row


class _CsvFile(RowFile):
    """CSV as RFC 4180 describes it, except that lines end with a line feed; predictions and masks are JSON in their cells."""

    def _header(self) -> bytes:
        return ",".join(COLUMNS).encode() + b"\n"

    def _line(self, row: Mapping[str, Any]) -> bytes:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([_cell(row.get(name)) for name in COLUMNS])
        return line.getvalue().encode("utf-8", "backslashreplace")

    def _begins(self, content: bytes) -> bool:
        return self._header().startswith(content)

    def _end_of_whole_rows(self, content: bytes) -> int:
        # A line feed between quotes does not end a row.
        end = quotes = start = 0
        while (found := content.find(b"\n", start)) >= 0:
            quotes += content.count(b'"', start, found)
            start = found + 1
            if quotes % 2 == 0:
                end = start
        return end

    def _parse(self, content: bytes) -> Iterator[Mapping[str, Any]]:
        if not content:
            return
        try:
            rows = csv.reader(io.StringIO(content.decode(), newline=""))
            header = next(rows, [])
            if tuple(header) != COLUMNS:
                raise InputError(f"{self.path} is not a file of predictions", OTHER)
            for row in rows:
                yield dict(zip(COLUMNS, row, strict=True))
        except (UnicodeDecodeError, csv.Error, ValueError) as error:
            raise InputError(f"{self.path} is not a file of predictions", OTHER) from error


class _ParquetFile(RowFile):
    """Collects rows in `OUT.parquet.rows` and writes the Parquet file from them when all are there."""

    def __init__(self, path: Path, model: str, force: bool) -> None:
        self._target = path
        self._refuse_special(path)
        self._complete = path.exists() and not force
        journal = path.with_name(path.name + ".rows")
        if self._complete and not journal.exists():
            _restore_journal(path, journal)
        super().__init__(journal, model, force)

    def finish(self) -> None:
        super().finish()
        _write_parquet(self.path, self._target)
        self.path.unlink()


FORMATS: dict[str, type[RowFile]] = {".jsonl": RowFile, ".csv": _CsvFile, ".parquet": _ParquetFile}


def open_rows(path: Path, model: str, force: bool) -> RowFile:
    """Return the result file, of the format that its suffix names, positioned behind the rows that it holds.

    Raises:
        UsageError: If the suffix is of no known format.
        BackendUnavailable: If pyarrow is needed and not installed.
        InputError: As `RowFile` does.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"-o {path} has no known suffix", f"use one of {', '.join(FORMATS)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise missing_package("pyarrow", "parquet") from None
    return FORMATS[path.suffix](path, model, force)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def _schema() -> Any:
    import pyarrow as pa

    prediction = pa.struct(
        [
            ("label", pa.string()),
            ("index", pa.int64()),
            ("probability", pa.float64()),
            ("score", pa.float64()),
            ("box", pa.list_(pa.float64())),
            ("share", pa.float64()),
            ("pixels", pa.int64()),
            ("color", pa.string()),
            ("background", pa.bool_()),
        ]
    )
    size = [("width", pa.int64()), ("height", pa.int64()), ("void", pa.int64())]
    mask = pa.struct([("format", pa.string()), *size, ("data", pa.string())])
    columns = [("input", pa.string()), ("model", pa.string()), ("predictions", pa.list_(prediction)), ("mask", mask)]
    return pa.schema([*columns, ("error", pa.string())])


def _write_parquet(journal: Path, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    try:
        with (
            journal.open(encoding="utf-8") as lines,
            atomic_file(target) as file,
            pq.ParquetWriter(file, schema) as writer,
        ):
            rows: list[Any] = []
            for line in lines:
                row = json.loads(line)
                # Arrow holds UTF-8 only, and a file's name may have bytes that are not.
                rows.append({**row, "input": row["input"].encode("utf-8", "backslashreplace").decode()})
                if len(rows) == CHUNK:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema))
    except pa.ArrowException as error:
        raise InputError(f"{journal} is not a file of predictions", "remove it and run the command again") from error
    except OSError as error:
        raise InputError(f"cannot write {target}: {reason(error)}", "free some space and run the command again") from error


def _restore_journal(source: Path, journal: Path) -> None:
    """Write the rows of a Parquet file back as JSON Lines, so that more can be appended."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file, atomic_file(journal) as lines:
            if not file.schema_arrow.equals(_schema()):
                raise InputError(f"{source} is not a file of predictions", OTHER)
            for batch in file.iter_batches(CHUNK):
                lines.writelines(json.dumps(_without_null(row), ensure_ascii=False).encode() + b"\n" for row in batch.to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {source}: {' '.join(str(error).split())[:200]}", OTHER) from error


def _without_null(value: Any) -> Any:
    """Return nested rows without the fields that are null: Arrow fills every field of its schema in."""
    if isinstance(value, dict):
        return {name: _without_null(inner) for name, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value
