"""benchmarks/gpu.py without a GPU: limits, failures and the file's shape, with real processes; and the page made of the file."""

import json
import shutil

import gpu
import gpu_page
import pytest

#: a worker that has found something, and then does what each test is about
WORKER = """
import json, sys, time
from pathlib import Path
given = json.loads(Path(sys.argv[1]).read_text())
Path(given["result"]).write_text(json.dumps({"result": {"runs": [1]}}))
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Put a script in the place of gpu_tasks.py."""

    def put(ending):
        (tmp_path / "gpu_tasks.py").write_text(WORKER + ending)
        monkeypatch.setattr(gpu, "__file__", str(tmp_path / "gpu.py"))
        return gpu.run(gpu.Task("bench", "m fp16"), 20.0 if "sleep" not in ending else 2.0, tmp_path)

    return put


def test_what_a_stopped_task_had_found_is_kept(worker):
    outcome = worker("time.sleep(60)")
    assert (outcome["status"], outcome["result"]) == ("out of time", {"runs": [1]})
    assert 2.0 <= outcome["seconds"] < 20


def test_the_processes_of_a_stopped_task_end_with_it(worker, tmp_path):
    mark = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(mark)!r}, 'w')"
    worker(f"import subprocess; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)")
    import time

    time.sleep(3.5)
    assert not mark.exists()


def test_a_crash_is_one_failed_task_with_its_last_words(worker):
    outcome = worker("raise RuntimeError('CUDA gave up')")
    assert (outcome["status"], outcome["reason"]) == ("failed", "RuntimeError: CUDA gave up")
    assert outcome["result"] == {"runs": [1]}
    assert worker("import os; os._exit(9)")["status"] == "failed"


def test_a_backend_that_is_not_here_is_told_from_one_that_fails(tmp_path):
    from relu_deploy.backends import probe

    if probe("torch-cuda").usable:
        pytest.skip("tests what happens without a GPU: run it on a machine that has none")
    outcome = gpu.run(gpu.Task("prove", "torch-cuda int8", {"backend": "torch-cuda", "dtype": "int8"}), 100.0, tmp_path)
    assert outcome["status"] == "not usable here"
    assert "torch-cuda" in outcome["reason"]


def test_the_course_of_things_on_a_cpu(tmp_path, digits_bundle):
    shutil.copytree(digits_bundle.path, tmp_path / "digits.rdb")
    out = tmp_path / "g.json"
    wish = "--backend-override cpu --parts environment,prove,bench --backends onnxruntime-cuda --dtypes int8,float16 --minutes 3"
    wish += " --models digits --precisions fp32 --batches 2 --seconds 0.05"
    options = gpu.parsed([*wish.split(), "--out", str(out), "--work", str(tmp_path)])
    gpu.conduct(options)
    report = json.loads(out.read_text())
    assert report["schema"] == gpu.SCHEMA
    names = [(task["part"], task["name"], task["status"]) for task in report["tasks"]]
    assert names == [
        ("environment", "environment", "done"),
        ("prove", "onnxruntime-cpu int8", "done"),
        ("prove", "onnxruntime-cpu float16", "done"),
        ("bench", "digits fp32", "done"),
    ]
    assert report["tasks"][0]["result"]["usable"] == {"onnxruntime-cpu": ""}
    assert report["tasks"][2]["result"]["inputs_tested"] == 65536
    (row,) = report["tasks"][3]["result"]["runs"]
    assert (row["backend"], row["batch"], row["verified"], row["error"]) == ("onnxruntime-cpu", 2, True, "")
    with pytest.raises(ValueError, match="says nothing about a GPU"):
        gpu_page.page(report)


def test_a_second_call_takes_what_is_finished_and_runs_the_rest(tmp_path, monkeypatch):
    ran = []

    def run(task, limit, work):
        ran.append(task.name)
        late = task.name == "torch-cuda float16" and len(ran) < 4
        outcome = {"part": task.part, "name": task.name, "arguments": task.arguments, "reason": "", "seconds": 1.0}
        found = {"usable": {"torch-cuda": ""}} if task.part == "environment" else {}
        return {**outcome, "status": "out of time" if late else "done", "result": found}

    monkeypatch.setattr(gpu, "run", run)
    out = tmp_path / "g.json"
    options = gpu.parsed(["--parts", "prove", "--dtypes", "int8,float16", "--out", str(out), "--work", str(tmp_path)])
    first = gpu.conduct(options)
    assert [task["status"] for task in first["tasks"]] == ["done", "done", "out of time"]
    files = {file.name for file in (tmp_path / "g").iterdir()}
    assert files == {"environment-environment.json", "prove-torch-cuda-int8.json", "prove-torch-cuda-float16.json"}
    second = gpu.conduct(options)
    assert [task["status"] for task in second["tasks"]] == ["done", "done", "done"]
    assert ran == ["environment", "torch-cuda int8", "torch-cuda float16", "torch-cuda float16"]
    # Other arguments are another task.
    gpu.conduct(
        gpu.parsed(
            ["--parts", "prove", "--backends", "torch-cuda", "--dtypes", "int8", "--out", str(out), "--work", str(tmp_path)]
        )
    )
    assert ran[4:] == ["environment"]


def test_a_rehearsal_lists_every_task_and_runs_the_first_of_each_part(tmp_path, monkeypatch):
    ran = []
    outcome = {"status": "not usable here", "reason": "no GPU", "seconds": 1.0, "arguments": {}}
    monkeypatch.setattr(
        gpu, "run", lambda task, limit, work: (ran.append(task.part), {**outcome, "part": task.part, "name": task.name})[1]
    )
    out = tmp_path / "r.json"
    report = gpu.conduct(gpu.parsed(["--rehearse", "--out", str(out), "--work", str(tmp_path)]))
    assert ran == list(gpu.PARTS)
    parts = [task["part"] for task in report["tasks"]]
    assert [part for number, part in enumerate(parts) if part not in parts[:number]] == list(gpu.PARTS)
    # 4 dtypes on 2 backends, 2 models on 5, 2 models in 4 precisions.
    assert [parts.count(part) for part in gpu.PARTS] == [1, 8, 10, 8, 1, 1]
    text = gpu.listing(report, out)
    assert "- bench, resnet50 fp16: at most 150 s, `bench-resnet50-fp16.json`; planned\n" in text
    assert "- rtx, tensorrt-rtx: at most 45 s, `rtx-tensorrt-rtx.json`; not usable here: no GPU\n" in text
    with pytest.raises(ValueError, match="says nothing about a GPU"):
        gpu_page.page(report)


def test_when_time_is_up_every_task_left_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu,
        "run",
        lambda task, limit, work: {
            "part": task.part,
            "name": task.name,
            "arguments": task.arguments,
            "status": "done",
            "reason": "",
            "result": {"usable": {"torch-cuda": ""}},
        },
    )
    options = gpu.parsed(
        [
            "--minutes",
            "0.11",
            "--parts",
            "prove,bench",
            "--models",
            "digits",
            "--out",
            str(tmp_path / "g.json"),
            "--work",
            str(tmp_path),
        ]
    )
    tasks = gpu.conduct(options)["tasks"]
    assert {task["status"] for task in tasks if task["part"] == "prove"} == {"out of time"}
    assert [task["name"] for task in tasks if task["part"] == "bench"] == [f"digits {precision}" for precision in gpu.PRECISIONS]


# ---------------------------------------------------------------- the page


def test_without_results_every_figure_says_that_it_was_not_measured():
    text = gpu_page.page(None)
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    for line in tables:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        figures = [
            cell
            for cell in cells[1:]
            if any(letter.isdigit() for letter in cell) and cell not in ("float32", "float16", "bfloat16", "int8", "resnet50")
        ]
        assert figures == []
    assert text.count("not measured") >= 30
    assert (gpu_page.PAGE.read_text() == text) or "Generated by" in gpu_page.PAGE.read_text()


def measured(batch, backend="tensorrt", variant="fp16-tensorrt", mean=2.0, steady=True, launch_bound=False):
    run_ms = {"mean": mean, "ci95": [mean - 0.1, mean + 0.1]}
    device = {"run_ms": run_ms, "throughput": batch / mean * 1e3, "launch_bound": launch_bound, "energy_mj_per_image": 1.5}
    device["clocks"] = {"min": 1700, "max": 1980, "steady": steady}
    roofline = {"share": 0.25, "bound": "compute"}
    given = {"model": "resnet50", "backend": backend, "variant": variant, "precision": "float16", "batch": batch, "error": ""}
    return given | {"verified": True, "roofline": roofline, "device": device}


def report_of(*tasks):
    return {"schema": gpu.SCHEMA, "override": "", "started": "now", "tasks": list(tasks)}


def bench_task(runs, status="done", reason="", **result):
    found = {"model": "resnet50", "precision": "fp16", "runs": runs, "ratios": [], "left_out": {}, "not_measured": {}} | result
    return {"part": "bench", "name": "resnet50 fp16", "status": status, "reason": reason, "result": found}


def test_rows_become_lines_with_their_marks_and_ratios():
    ratio = {"backend": "tensorrt", "variant": "fp16-tensorrt", "batch": 8, "device_speedup": 1.5, "device_ci95": [1.4, 1.6]}
    torch = measured(8, "torch-compile-cuda", "", 3.0, steady=False)
    text = gpu_page.page(report_of(bench_task([torch, measured(8), measured(1, launch_bound=True)], ratios=[ratio])))
    lines = [line for line in text.splitlines() if line.startswith(("| 1 |", "| 8 |"))]
    assert lines[0].startswith(
        "| 1 | tensorrt fp16-tensorrt | float16 | 2 ± 0.1 ! | 500 | 25% (compute) |  | yes | 1700 to 1980 | 1.5 |"
    )
    assert "| 3 ± 0.1 ~ |" in lines[1]
    assert "| 1.50 [1.40, 1.60] |" in lines[2]
    assert "| resnet50 | fp16 | not measured | not measured | 2,667 (batch 8) ~ | 4,000 (batch 8) | not measured |" in text


def test_what_was_left_out_or_stopped_says_why():
    task = bench_task(
        [measured(1)],
        "out of time",
        "stopped after 240 s",
        left_out={"tensorrt-rtx": "no such GPU"},
        not_measured={"256": "too large"},
    )
    text = gpu_page.page(report_of(task))
    assert "Further batches: not measured (out of time: stopped after 240 s)." in text
    assert "- tensorrt-rtx: not measured, no such GPU." in text
    assert "- Batch 256: not measured, too large." in text
    assert "tf32: not measured" in text


def test_a_foreign_file_is_refused():
    with pytest.raises(ValueError, match="schema"):
        gpu_page.page({"schema": "other/1"})
