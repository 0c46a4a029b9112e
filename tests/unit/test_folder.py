"""Data folders: private, locked by one process, and files replaced whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarmctl.folder import PASSAGE_MODE, DataFolder, atomic_write
from swarmctl.proto.errors import Conflict, StorageFault
from tests.unit.store.disks import as_nobody, fill, remount, small_disk

HOLDER = """
import sys
from pathlib import Path
from swarmctl.folder import DataFolder
folder = DataFolder.open(Path(sys.argv[1]), "controller")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder ``data``."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"open\n"
        yield process
        process.kill()


def test_a_folder_is_made_private(tmp_path):
    """Missing parents are made too; the folder is for its owner alone."""
    with DataFolder.open(tmp_path / "a" / "b", "agent") as folder:
        assert folder.path == tmp_path / "a" / "b"
        assert folder.path.stat().st_mode & 0o777 == 0o700
        assert (folder.path / "lock").read_text() == f"{os.getpid()} agent\n"
        assert (folder.path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_folder_may_be_passed_through_but_not_listed(tmp_path):
    """QEMU's own user reaches its disks below an agent's folder."""
    with DataFolder.open(tmp_path / "data", "agent", PASSAGE_MODE) as folder:
        assert folder.path.stat().st_mode & 0o777 == 0o711
        assert (folder.path / "lock").stat().st_mode & 0o777 == 0o600


def test_a_relative_folder_is_found_after_a_change_of_directory(tmp_path, monkeypatch):
    """``--data data`` means the folder that it meant at the start."""
    monkeypatch.chdir(tmp_path)
    with DataFolder.open(Path("data"), "agent") as folder:
        monkeypatch.chdir("/")
        assert folder.path == tmp_path / "data"


def test_a_folder_can_be_opened_again_after_it_was_closed(tmp_path):
    """Closing gives it back, and may be repeated."""
    for _ in range(2):
        folder = DataFolder.open(tmp_path / "data", "agent")
        folder.close()
        folder.close()


def test_a_second_opening_in_one_process_is_refused(tmp_path):
    """The lock belongs to the opening, not to the process."""
    with DataFolder.open(tmp_path, "controller"), pytest.raises(Conflict, match=str(os.getpid())):
        DataFolder.open(tmp_path, "controller")


def test_a_second_process_is_refused_and_told_whom_it_meets(tmp_path, holder):
    """The error names folder, process, purpose, and what to do."""
    with pytest.raises(Conflict) as caught:
        DataFolder.open(tmp_path / "data", "agent")
    assert caught.value.where == str(tmp_path / "data")
    assert f"process {holder.pid} (controller)" in caught.value.what
    assert "--data" in caught.value.hint
    # The collision has not changed what the next one is told.
    with pytest.raises(Conflict, match=f"process {holder.pid}"):
        DataFolder.open(tmp_path / "data", "agent")


def test_a_killed_holder_leaves_the_folder_free(tmp_path, holder):
    """After kill -9 the next start works, and the lock names the new process."""
    holder.kill()
    holder.wait()
    with DataFolder.open(tmp_path / "data", "agent"):
        assert (tmp_path / "data" / "lock").read_text() == f"{os.getpid()} agent\n"


def test_a_stopped_holder_still_holds(tmp_path, holder):
    """A process that is stopped, not dead, keeps its folder."""
    holder.send_signal(19)
    with pytest.raises(Conflict):
        DataFolder.open(tmp_path / "data", "agent")


def test_a_child_process_does_not_inherit_the_lock(tmp_path):
    """A program that the daemon started does not keep the folder when the daemon is gone."""
    folder = DataFolder.open(tmp_path, "agent")
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        folder.close()
        DataFolder.open(tmp_path, "agent").close()
        child.kill()


def test_a_holder_that_has_not_written_its_name_yet_is_not_guessed(tmp_path, holder):
    """An unreadable lock file names nobody, rather than somebody wrong."""
    (tmp_path / "data" / "lock").write_bytes(b"\xff\xfe rubbish")
    with pytest.raises(Conflict, match="another process"):
        DataFolder.open(tmp_path / "data", "agent")


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    """What is in the way is said, at the end of the path and within."""
    (tmp_path / "data").write_bytes(b"")
    for path in (tmp_path / "data", tmp_path / "data" / "deeper"):
        with pytest.raises(StorageFault, match="file where a folder") as caught:
            DataFolder.open(path, "agent")
        assert caught.value.where == str(path)


def test_no_permission_is_a_fault_with_a_hint(tmp_path):
    """Neither making nor entering a folder of another user gives a traceback."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o500)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o555 if folder == tmp_path else 0o755)
    for path in (tmp_path / "data", tmp_path / "new"):
        with as_nobody(), pytest.raises(StorageFault, match="user"):
            DataFolder.open(path, "agent")
    tmp_path.chmod(0o700)


def test_a_read_only_file_system_is_a_fault_with_a_hint(tmp_path):
    """It says that the file system is read-only."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        remount(disk, "ro")
        with pytest.raises(StorageFault, match="mounted read-only"):
            DataFolder.open(disk / "data", "agent")


# --- atomic_write ---------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_private(tmp_path):
    """Content and mode are as asked, whatever was there, and no draft is left."""
    path = tmp_path / "admin.context"
    atomic_write(path, b"first")
    assert path.stat().st_mode & 0o777 == 0o600
    atomic_write(path, b"second" * 100_000, mode=0o644)
    assert path.read_bytes() == b"second" * 100_000
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in tmp_path.iterdir()] == ["admin.context"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A fault that names the file; the file is as it was, and no draft takes up room."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        path = disk / "join.token"
        atomic_write(path, b"old")
        fill(disk, leave_bytes=8192)
        with pytest.raises(StorageFault, match="disk is full") as caught:
            atomic_write(path, b"new" * 100_000)
        assert caught.value.where == str(path)
        assert path.read_bytes() == b"old"
        assert sorted(each.name for each in disk.iterdir()) == ["ballast", "join.token"]


def test_a_missing_folder_is_a_fault(tmp_path):
    """It names the file that was to be written."""
    with pytest.raises(StorageFault, match="no such file"):
        atomic_write(tmp_path / "missing" / "file", b"")
