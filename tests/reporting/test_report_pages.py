"""The curves over batch sizes and the table of what a GPU did, from the dictionaries that --json writes."""

import itertools
import re

import pytest

from relu_deploy.reporting.pages.batch_curve import Series, batch_curve
from relu_deploy.reporting.pages.bench import bench_page
from relu_deploy.reporting.pages.device_table import device_table


def points_of(chart):
    return [[float(part) for part in pair.split(",")] for pair in re.search(r'<polyline[^>]*points="([^"]*)"', chart)[1].split()]


def test_doubling_the_batch_or_the_throughput_is_the_same_step_everywhere():
    at = points_of(batch_curve("t", [Series("a", [(4, 400.0, None), (1, 100.0, None), (2, 200.0, None)], 0)]))
    across, up = ([second[axis] - first[axis] for first, second in itertools.pairwise(at)] for axis in (0, 1))
    assert across == pytest.approx([across[0]] * 2, abs=0.2)
    assert up == pytest.approx([up[0]] * 2, abs=0.2)
    assert across[0] > 0 > up[0]


def test_intervals_and_names_are_shown_and_escaped():
    chart = batch_curve("t", [Series("a<b", [(1, 10.0, (9.0, 11.0)), (8, 40.0, None)], 0)])
    assert "a&lt;b, batch 1: 10 images a second [9, 11]" in chart
    assert "a<b" not in chart
    assert chart.count("<circle") == 2
    ticks = re.findall(r'class="name soft"[^>]*>([\d,.]+)<', chart)
    assert 3 <= len(ticks) <= 8


def test_one_batch_size_is_no_curve():
    assert batch_curve("t", [Series("a", [(8, 40.0, None)], 0)]) == ""
    assert batch_curve("t", []) == ""


LATENCY = {
    "p50": 2.0,
    "p90": 2.1,
    "p99": 2.2,
    "mean": 2.0,
    "minimum": 1.9,
    "maximum": 2.3,
    "ci95": [1.9, 2.1],
    "runs": 9,
    "rounds": 3,
}


def row(batch, **fields):
    given = {"model": "m", "backend": "b", "variant": "", "precision": "float16", "batch": batch, "latency_ms": LATENCY}
    given |= {"throughput": 500.0 * batch, "peak_bytes": 10**8, "load_seconds": 1.0, "first_run_seconds": 0.1, "warmed_up": True}
    given |= {
        "accuracy": None,
        "roofline": None,
        "verified": True,
        "error_ratio": 1.0,
        "error": "",
        "facts": {"cuda_graph": "by us"},
    }
    return given | {"device": None} | fields


def device(**fields):
    kinds = {f"{kind}_ms": LATENCY for kind in ("run", "single", "enqueue", "upload", "download")}
    clocks = {"min": 1700, "max": 1980, "steady": False, "throttled": ["power limit"]}
    reported = {
        "throughput": 500.0,
        "launch_bound": False,
        "clocks": clocks,
        "clocks_not_seen": "",
        "power_w": {"mean": 650.2, "max": 700.0},
    }
    return kinds | reported | {"energy_mj_per_image": 1.25, "memory_bytes": 10**9} | fields


def test_a_gpu_that_was_slowed_down_is_said_in_its_row():
    table = device_table({"b": row(1, device=device(), roofline={"share": 0.5, "bound": "compute"})})
    assert "1700 to 1980, not steady: power limit" in table
    assert "50% (compute)" in table
    assert "2 ± 0.1<" in table
    assert "2 ± 0.1 !" in device_table({"b": row(1, device=device(launch_bound=True))})
    assert "nvidia-ml-py is not installed" in device_table(
        {"b": row(1, device=device(clocks=None, clocks_not_seen="nvidia-ml-py is not installed"))}
    )


def test_rows_of_a_cpu_make_no_table_and_what_was_not_measured_says_why():
    assert device_table({"b": row(1)}) == ""
    assert "cudaMalloc failed" in device_table({"b": row(1, device={"not_measured": "cudaMalloc failed"})})


@pytest.mark.parametrize(("batches", "charts"), [([1], 0), ([1, 8], 2)])
def test_the_page_has_a_curve_of_calls_and_one_of_the_gpu_where_several_batches_were_measured(batches, charts):
    cpu = {"model": "c", "usable_cpus": 2, "features": [], "mhz": None, "governor": None}
    environment = {"cpu": cpu, "threads": 2, "time": "now", "relu_deploy": "0", "limits": None, "gpus": [], "load_average": None}
    environment |= {"os": "", "python": "", "libraries": {}, "seconds_per_row": 1, "seed": 0}
    runs = [row(batch, device=device()) for batch in batches]
    result = {"passed": True, "environment": environment, "runs": runs, "ratios": [], "left_out": {}}
    page = bench_page(result)
    assert page.count("Throughput over batch sizes") == charts
    assert "http" not in page
