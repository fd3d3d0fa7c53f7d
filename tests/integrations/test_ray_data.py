"""Ray Data scores the same pictures as `predict`, bit for bit, and a killed worker loses nothing."""

import os
import signal
from pathlib import Path

import digit_pictures
import pytest
from digit_pictures import predicted_lines, write_pictures

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install -e '.[ray]'")

from relu_deploy.integrations.ray import RayPredictor, files_dataset  # noqa: E402

COUNT = 60


class KilledOnce(RayPredictor):
    """Ends its process in the middle of its first batch, and not again once the file `mark` is there."""

    def __init__(self, path, mark, **options):
        super().__init__(path, **options)
        self.mark = Path(mark)

    def __call__(self, batch):
        rows = super().__call__(batch)
        if "00024.png" in rows["row"][0] and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


@pytest.fixture
def cluster(monkeypatch):
    # The workers import this module.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(digit_pictures.__file__).parent)]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27, configure_logging=False)
    yield
    ray.shutdown()


def lines_of(dataset, scorer, arguments, **options):
    rows = dataset.map_batches(
        scorer,
        fn_constructor_args=arguments,
        fn_constructor_kwargs=options,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    return [row["row"] for row in rows.iter_rows()]


def test_two_workers_give_the_rows_of_predict_and_so_does_a_run_whose_worker_is_killed(cluster, digits_bundle, tmp_path):
    folder = write_pictures(tmp_path / "photos", COUNT)
    expected = predicted_lines(digits_bundle.path, folder, tmp_path / "rows.jsonl", threads=1)
    assert len(expected) == COUNT
    assert sum('"error"' in line for line in expected) == 1
    path = str(digits_bundle.path)
    dataset = files_dataset(path, [folder])
    assert sorted(lines_of(dataset, RayPredictor, (path,), threads=1)) == sorted(expected)
    mark = tmp_path / "killed"
    assert sorted(lines_of(dataset, KilledOnce, (path, str(mark)), threads=1)) == sorted(expected)
    assert mark.exists()
