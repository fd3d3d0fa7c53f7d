"""The number of threads follows the container's quota, the affinity and the physical cores, unless the user sets it."""

import pytest

from relu_deploy.backends import threads
from relu_deploy.backends.base import Options
from relu_deploy.backends.threads import cpu_quota, find_threads, limited_blas


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that describes a machine: its CPUs, the threads of each core, and files of its control groups."""

    def make(cpus=64, per_core=1, groups="", files=()):
        monkeypatch.setattr(threads, "allowed_cpus", lambda: list(range(cpus)))
        for cpu in range(cpus):
            first = cpu - cpu % per_core
            folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(f"{first}-{first + per_core - 1}\n" if per_core > 1 else f"{cpu}\n")
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
        for name, text in dict(files).items():
            file = tmp_path / "sys/fs/cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return make


V1 = "4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        # docker run --cpus 2, control groups v2 with a namespace of its own
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        # the limit of a group around this one is a limit too
        ("0::/kubepods/pod1/c\n", {"kubepods/pod1/cpu.max": "150000 100000\n", "kubepods/pod1/c/cpu.max": "max 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "300000 100000\n"}, 3.0),
        # v1: the path is the host's, and the mount shows the container's own group
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2.0),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "50000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("", {}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("4:memory:/x\n", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_quota_is_read_from_control_groups_of_both_versions(machine, groups, files, quota):
    assert cpu_quota(machine(groups=groups, files=files)) == quota


def test_a_container_with_two_of_64_cpus_gets_two_threads(machine):
    found = find_threads(machine(64, groups="0::/\n", files={"cpu.max": "200000 100000\n"}), {})
    assert (found.count, found.source) == (2, "the CPU quota of the container, 2")


@pytest.mark.parametrize(("quota", "count"), [("50000", 1), ("150000", 1), ("250000", 2), ("1000000", 8)])
def test_a_quota_gives_no_more_threads_than_it_lets_run(machine, quota, count):
    assert find_threads(machine(8, groups="0::/\n", files={"cpu.max": f"{quota} 100000"}), {}).count == count


def test_two_hardware_threads_of_a_core_are_one_thread(machine):
    found = find_threads(machine(16, per_core=2), {})
    assert (found.count, found.source) == (8, "the physical cores that this process may run on")


def test_without_a_limit_the_affinity_counts(machine):
    found = find_threads(machine(3), {})
    assert (found.count, found.source) == (3, "the CPUs that this process may run on")


@pytest.mark.parametrize(
    ("environment", "count", "source"),
    [
        ({"ORT_INTRA_OP_NUM_THREADS": "5", "OMP_NUM_THREADS": "7"}, 5, "set by ORT_INTRA_OP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "7"}, 7, "set by OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "4,2"}, 4, "set by OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "0"}, 2, "the CPU quota of the container, 2"),
        ({"OMP_NUM_THREADS": "many"}, 2, "the CPU quota of the container, 2"),
    ],
)
def test_what_the_user_sets_for_every_runtime_wins(machine, environment, count, source):
    root = machine(64, groups="0::/\n", files={"cpu.max": "200000 100000\n"})
    found = find_threads(root, environment)
    assert (found.count, found.source) == (count, source)


def test_a_number_that_is_given_wins_over_everything(monkeypatch):
    monkeypatch.setenv("ORT_INTRA_OP_NUM_THREADS", "5")
    assert Options().thread_count == 5
    assert Options(threads=3).thread_count == 3


def test_doctor_says_how_many_threads_and_why(command, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("ORT_INTRA_OP_NUM_THREADS", raising=False)
    answer = command("doctor", "--json", "-")
    assert answer.json["system"]["threads"] == {"count": 3, "source": "set by OMP_NUM_THREADS"}
    assert "CPU threads of a session: 3 (set by OMP_NUM_THREADS)" in command("doctor").stdout


def test_blas_is_limited_inside_the_block_and_as_before_behind_it():
    from threadpoolctl import threadpool_info, threadpool_limits

    def counts():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    with threadpool_limits(2, user_api="blas"):
        before = counts()
        with limited_blas(1):
            assert set(counts()) == {1}
        assert counts() == before
    assert before
