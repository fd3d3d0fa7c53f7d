"""Every tutorial's Python blocks run, in order, in one namespace and an empty folder."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_there_are_tutorials_with_code():
    assert TUTORIALS
    assert all(BLOCK.search(file.read_text(encoding="utf-8")) for file in TUTORIALS)


@pytest.mark.slow
@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_a_tutorial_runs_as_it_is_written(file, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    threads, namespace = torch.get_num_threads(), {"__name__": "tutorial"}
    text = file.read_text(encoding="utf-8")
    try:
        for block in BLOCK.finditer(text):
            # Blank lines in front give an error the line number that it has in the tutorial.
            padding = "\n" * text.count("\n", 0, block.start(1))
            exec(compile(padding + block.group(1), str(file), "exec"), namespace)
    finally:
        torch.set_num_threads(threads)
