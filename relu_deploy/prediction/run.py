"""Predictions for many inputs: decoded in threads beside inference, in order, one bad input is a row with an error."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relu_deploy.backends.threads import default_threads
from relu_deploy.errors import InputError, ReluDeployError, UsageError
from relu_deploy.prediction.drawing import draw_predictions
from relu_deploy.prediction.predictor import Predictor
from relu_deploy.prediction.preparation import PreparedInput
from relu_deploy.prediction.rows import RowFile, open_rows
from relu_deploy.prediction.sources import Source, find_sources, shard_of
from relu_deploy.storage.targets import write_result

__all__ = ["PredictReport", "predict"]

#: rows that are returned; more are written to a file
MOST_ROWS = 100_000
#: batches that are decoded ahead of the one that the model runs
AHEAD = 3

Row = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PredictReport:
    """The result of a run.

    Attributes:
        inputs: Inputs of this shard.
        predicted: Rows of this run with predictions.
        failed: Rows of this run with an error.
        skipped: Inputs that had a row already.
        rows: The rows, if they were not written to a file.
    """

    model: str
    backend: str
    out: Path | None
    inputs: int
    predicted: int
    failed: int
    skipped: int
    seconds: float
    rows: tuple[Row, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `relu-deploy predict`, without its schema."""
        return {
            "model": self.model,
            "backend": self.backend,
            "out": None if self.out is None else str(self.out),
            "inputs": self.inputs,
            "predicted": self.predicted,
            "failed": self.failed,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            **({"rows": list(self.rows)} if self.out is None else {}),
        }


def predict(
    predictor: Predictor,
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    draw: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> PredictReport:
    """Predict every input and write one row each.

    Args:
        predictor: The model.
        inputs: Picture files, folders, patterns, `.npz` files and files of texts; see `find_sources`.
        out: A `.jsonl`, `.csv` or `.parquet` file. Inputs that have a row in it are skipped, so an interrupted run continues.
            None returns the rows in the report, `MOST_ROWS` at most.
        draw: A folder for pictures with their predictions.
        shard: (I, N) takes every N-th input, starting with the I-th.
        force: Replace `out` and drawings that exist.
        progress: Called with the number of finished inputs and their total.

    Raises:
        UsageError: If an option or input makes no sense.
        InputError: If the model cannot be opened, or a file cannot be written.
        BackendUnavailable: If the backend is not usable here.
        Unsupported: If the backend cannot run the model.
    """
    started = time.monotonic()
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise UsageError(
            f"--shard {shard[0]}/{shard[1]} is not one of 1/{shard[1]} to {shard[1]}/{shard[1]}", "for instance --shard 1/4"
        )
    sources = shard_of(find_sources(predictor.bundle, inputs), shard)
    if out is None and len(sources) > MOST_ROWS:
        raise UsageError(
            f"{len(sources):,} inputs have too many rows to show, at most {MOST_ROWS:,}", "write them to a file: -o OUT.jsonl"
        )
    drawings = None if draw is None else _Drawings(Path(draw), sources)
    _ = predictor.session
    target = None if out is None else open_rows(Path(out), predictor.model_id, force)
    try:
        if drawings is not None:
            drawings.refuse_foreign(force or (target is not None and bool(target.done)))
        done = frozenset(target.done) if target is not None else frozenset()
        collected = _run_all(predictor, sources, done, target, drawings, progress)
        if target is not None:
            target.finish()
    finally:
        if target is not None:
            target.close()
    return PredictReport(
        model=predictor.model_id,
        backend=predictor.backend,
        out=None if out is None else Path(out),
        inputs=len(sources),
        predicted=collected.predicted,
        failed=collected.failed,
        skipped=sum(source.name in done for source in sources),
        seconds=time.monotonic() - started,
        rows=tuple(collected.rows),
    )


@dataclass
class _Collected:
    predicted: int = 0
    failed: int = 0
    rows: list[Row] = field(default_factory=list)


def _run_all(
    predictor: Predictor,
    sources: Sequence[Source],
    done: frozenset[str],
    target: RowFile | None,
    drawings: _Drawings | None,
    progress: Progress,
) -> _Collected:
    collected, finished = _Collected(), 0
    with ThreadPoolExecutor(max(2, default_threads()), "predict") as pool:
        for names, rows in _results(predictor, sources, done, drawings, pool):
            finished += len(names)
            for row in rows:
                collected.failed += "error" in row
                collected.predicted += "error" not in row
            if target is not None:
                target.append(rows)
            else:
                collected.rows += rows
            progress(finished, len(sources))
    return collected


def _results(
    predictor: Predictor, sources: Sequence[Source], done: frozenset[str], drawings: _Drawings | None, pool: ThreadPoolExecutor
) -> Iterator[tuple[Sequence[Source], list[Row]]]:
    """Yield the inputs of each batch and its new rows, in order.

    Batches are the same whether a run was interrupted or not, because the last bits of an output may depend on the batch: one
    that lacks a row is run whole.
    """
    size = predictor.batch_size
    batches = [sources[start : start + size] for start in range(0, len(sources), size)]
    preparing: deque[tuple[Sequence[Source], list[Future[PreparedInput | ReluDeployError]]]] = deque()
    finishing: deque[tuple[Sequence[Source], Future[list[Row]]]] = deque()
    pending = iter(batches)

    def submit() -> None:
        for batch in pending:
            if all(source.name in done for source in batch):
                preparing.append((batch, []))
            else:
                preparing.append((batch, [pool.submit(_prepare, predictor, source) for source in batch]))
                return

    for _ in range(AHEAD):
        submit()
    try:
        while preparing:
            batch, futures = preparing.popleft()
            submit()
            prepared = [future.result() for future in futures]
            outputs = iter(predictor.infer([one for one in prepared if isinstance(one, PreparedInput)]))
            pairs = [(one, next(outputs) if isinstance(one, PreparedInput) else {}) for one in prepared]
            finishing.append((batch, pool.submit(_finish, predictor, batch, pairs, done, drawings)))
            while len(finishing) > AHEAD or (finishing and finishing[0][1].done()):
                names, future = finishing.popleft()
                yield names, future.result()
        for names, future in finishing:
            yield names, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _prepare(predictor: Predictor, source: Source) -> PreparedInput | ReluDeployError:
    try:
        return source.prepare(predictor.bundle)
    except ReluDeployError as error:
        return error
    except (MemoryError, OSError) as error:
        return InputError(f"cannot read it: {error or type(error).__name__}")


def _finish(
    predictor: Predictor,
    batch: Sequence[Source],
    prepared: Sequence[tuple[PreparedInput | ReluDeployError, Any]],
    done: frozenset[str],
    drawings: _Drawings | None,
) -> list[Row]:
    """Return the rows of a batch that are not done, and write the drawings."""
    rows = []
    for source, (one, outputs) in zip(batch, prepared, strict=False):
        if source.name in done:
            continue
        result = predictor.result_of(one, outputs) if isinstance(one, PreparedInput) else {"error": one.message}
        if drawings is not None and isinstance(one, PreparedInput) and one.picture is not None and "error" not in result:
            drawings.write(source, draw_predictions(one.picture, result))
        rows.append({"input": source.name, "model": predictor.model_id, **result})
    return rows


class _Drawings:
    """The folder of drawings: `a/b.jpg` of an input folder becomes `a/b.png` in it."""

    def __init__(self, folder: Path, sources: Sequence[Source]) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is not a folder", "choose another one with --draw")
        self._folder = folder
        taken: set[Path] = set()
        self._files: dict[str, Path] = {}
        for source in sources:
            if source.place == Path():
                continue
            file = source.place.with_suffix(".png")
            number = 1
            while file in taken:
                number += 1
                file = source.place.with_name(f"{source.place.stem}-{number}.png")
            taken.add(file)
            self._files[source.name] = folder / file
        inputs = {Path(source.name).resolve() for source in sources if source.place != Path()}
        if clash := next((file for file in self._files.values() if file.resolve() in inputs), None):
            raise UsageError(f"--draw would replace the input {clash}", "choose another folder")

    def refuse_foreign(self, allowed: bool) -> None:
        """Raise InputError if a drawing would replace a file, unless that is `allowed`."""
        if not allowed and (present := next((file for file in self._files.values() if file.exists()), None)):
            raise InputError(f"{present} already exists", "choose another folder with --draw, or replace files with --force")

    def write(self, source: Source, png: bytes) -> None:
        """Write the drawing of an input."""
        write_result(self._files[source.name], png)
