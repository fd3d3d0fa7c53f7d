"""Temporary files and folders of killed processes are removed by the next writer; those in use are left alone."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError
from relu_deploy.storage.files import is_temporary_name, read_regular, write_atomically
from relu_deploy.storage.folders import temporary_folder, whole_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with locks on folders, such as Linux")

#: Hold what the first line opens until killed.
HOLD = """
import sys, time
from pathlib import Path
from relu_deploy.storage.folders import temporary_folder, whole_folder
with {what} as folder:
    (folder / "file").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


def holder(what, **environment):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(what=what)], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    return process, process.stdout.readline().strip()


def test_a_folder_of_a_killed_writer_is_removed_by_the_next_one_and_that_of_a_living_one_is_not(tmp_path):
    target = tmp_path / "o.rdb"
    living, kept = holder(f"whole_folder(Path({str(target)!r}))")
    dead, left = holder(f"whole_folder(Path({str(target)!r}))")
    dead.kill()
    dead.wait()
    try:
        with whole_folder(target) as folder:
            (folder / "file").write_text("whole")
        assert Path(kept).is_dir()
        assert not Path(left).exists()
        assert (target / "file").read_text() == "whole"
    finally:
        living.kill()
        living.wait()
    with whole_folder(target):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["o.rdb"]


def test_temporary_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    import tempfile

    dead, left = holder("temporary_folder()", TMPDIR=str(tmp_path))
    assert Path(left).is_dir()
    dead.kill()
    dead.wait()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.is_dir()
        assert not Path(left).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_that_another_process_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    import tempfile

    made, make = [], tempfile.mkdtemp

    def swept(**options):
        made.append(Path(make(**options)))
        if len(made) == 1:
            made[0].rmdir()
        return str(made[-1])

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with temporary_folder() as folder:
        assert folder.parent == made[1]
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_half_written_is_removed_by_the_next_write_and_others_are_kept(tmp_path):
    target = tmp_path / "report.json"
    write_atomically(target, "old")
    code = (
        "import os, sys; from pathlib import Path; from relu_deploy.storage.files import write_atomically\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\nwrite_atomically(Path(sys.argv[1]), 'new')"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    (tmp_path / ".report.json.bak").write_text("mine")
    assert len([file for file in tmp_path.iterdir() if is_temporary_name(file.name)]) == 1
    assert target.read_text() == "old"
    write_atomically(target, "newer")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".report.json.bak", "report.json"]


def test_without_a_usable_temporary_folder_the_error_names_tmpdir(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(InputError, match="temporary folder") as raised, temporary_folder():
        pass
    assert "TMPDIR" in raised.value.hint


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o007, 0o660, 0o770)]
)
def test_new_files_and_folders_have_the_permissions_that_the_umask_leaves(tmp_path, umask, file_mode, folder_mode):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"new")
        with whole_folder(tmp_path / "folder") as folder:
            (folder / "file").write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == file_mode
    assert (tmp_path / "folder").stat().st_mode & 0o777 == folder_mode


def test_what_is_replaced_passes_its_permissions_on(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    write_atomically(tmp_path / "file", b"new")
    with whole_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700


def test_a_link_to_a_folder_that_is_replaced_stays_a_link_and_nothing_else_is_left(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "real"]


def test_a_fifo_without_a_reader_is_refused_instead_of_waited_for(tmp_path, monkeypatch):
    import relu_deploy.storage.files

    monkeypatch.setattr(relu_deploy.storage.files, "READER_TIMEOUT", 0.1)
    os.mkfifo(tmp_path / "fifo")
    started = time.monotonic()
    with pytest.raises(InputError, match="cannot write"):
        write_atomically(tmp_path / "fifo", "x")
    with pytest.raises(InputError, match="not an ordinary file"):
        read_regular(tmp_path / "fifo", 10)
    assert time.monotonic() - started < 10
    assert (tmp_path / "fifo").is_fifo()


def test_a_file_above_the_limit_is_refused(tmp_path):
    (tmp_path / "large").write_bytes(bytes(11))
    assert read_regular(tmp_path / "large", 11) == bytes(11)
    with pytest.raises(InputError, match="more than 10"):
        read_regular(tmp_path / "large", 10)


def test_where_links_are_not_followed_the_link_is_replaced_and_not_what_it_points_to(tmp_path):
    (tmp_path / "victim").write_text("precious")
    for target in ("victim", "nothing", "/dev/null"):
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write_atomically(link, "new", follow=False)
        assert not link.is_symlink()
        assert link.read_text() == "new"
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_manifest_that_is_a_link_out_of_the_bundle_is_replaced_and_not_what_it_points_to(digits_copy, tmp_path):
    manifest, elsewhere = digits_copy.path / "manifest.json", tmp_path / "elsewhere.json"
    shutil.copyfile(manifest, elsewhere)
    before = elsewhere.read_bytes()
    manifest.unlink()
    manifest.symlink_to(elsewhere)
    digits_copy.add("reports/note.json", "{}")
    assert elsewhere.read_bytes() == before
    assert not manifest.is_symlink()
    assert Bundle.open(digits_copy.path).has_file("reports/note.json")
