"""Apache Beam scores the same pictures as `predict`, bit for bit; a killed worker leaves no part of a result."""

import os
import signal
from pathlib import Path

import digit_pictures
import pytest
from digit_pictures import predicted_lines, write_pictures

beam = pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install -e '.[beam]'")

from apache_beam.ml.inference.base import RunInference  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402

from relu_deploy.integrations.beam import BundleModelHandler  # noqa: E402

COUNT = 60
TWO_WORKERS = ("--runner=FnApiRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing")


class KilledOnce(BundleModelHandler):
    """Ends its process in the middle of the run, and not again once the file `mark` is there."""

    def __init__(self, path, mark, **options):
        super().__init__(path, **options)
        self.mark = mark

    def run_inference(self, batch, model, inference_args=None):
        results = list(super().run_inference(batch, model, inference_args))
        if any("00024.png" in files[0] for files in batch) and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return results


def lines_of(handler, folder, out):
    with beam.Pipeline(options=PipelineOptions(TWO_WORKERS)) as pipeline:
        _ = (
            pipeline
            | beam.Create(handler.file_batches([folder]))
            | beam.Reshuffle()
            | RunInference(handler)
            | beam.FlatMap(lambda result: result.inference)
            | beam.io.WriteToText(str(out), ".jsonl")
        )
    files = out.parent.glob(f"{out.name}*.jsonl")
    return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_two_workers_give_the_rows_of_predict_and_a_run_whose_worker_is_killed_can_be_repeated(
    digits_bundle, tmp_path, monkeypatch
):
    # The workers import this module.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(digit_pictures.__file__).parent)]))
    folder = write_pictures(tmp_path / "photos", COUNT)
    expected = predicted_lines(digits_bundle.path, folder, tmp_path / "rows.jsonl", threads=1)
    mark = tmp_path / "killed"
    handler = KilledOnce(str(digits_bundle.path), str(mark), threads=1)
    # The local runner does not retry a bundle, as distributed ones do: the run fails, and writes no part of its result.
    with pytest.raises(RuntimeError):
        lines_of(handler, folder, tmp_path / "beam")
    assert mark.exists()
    assert not list(tmp_path.glob("beam*.jsonl"))
    assert sorted(lines_of(handler, folder, tmp_path / "beam")) == sorted(expected)
