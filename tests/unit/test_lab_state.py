"""The lab's registry survives crashes, damage and two commands at once."""

from __future__ import annotations

import os

import pytest

from lab import procs
from lab.config import Paths, paths_from
from lab.faults import LabFault
from lab.state import State, exclusive


@pytest.fixture
def paths(tmp_path):
    return Paths(state_dir=tmp_path / "state", cache_dir=tmp_path / "cache")


def test_what_was_recorded_is_read_back_by_the_next_command(paths):
    """A daemon and a fact come back from the file."""
    here = procs.identify(os.getpid())
    first = State(paths.state_file)
    first.record_daemon("dockerd", here)
    first.put("kvm", {"verdict": "aside"})

    second = State(paths.state_file)

    assert second.daemon("dockerd") == here
    assert second.owns("dockerd")
    assert second.owns("dockerd", os.getpid())
    assert not second.owns("dockerd", os.getpid() + 1)
    assert second.get("kvm") == {"verdict": "aside"}


def test_a_daemon_that_died_or_was_forgotten_is_not_owned(paths):
    """Ownership needs the very process to live."""
    state = State(paths.state_file)
    state.record_daemon("dockerd", procs.ProcessId(os.getpid(), 1, procs.boot_id()))
    assert not state.owns("dockerd")

    state.record_daemon("dockerd", None)

    assert State(paths.state_file).daemons() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}'])
def test_a_damaged_registry_is_set_aside_not_trusted(paths, text):
    """An unreadable file is kept for a person, and the lab begins with an empty one."""
    paths.state_dir.mkdir()
    paths.state_file.write_text(text)

    state = State(paths.state_file)

    assert state.daemons() == {}
    assert paths.state_file.with_suffix(".unreadable").read_text() == text


def test_two_commands_at_once_take_turns(paths):
    """The second is refused with a sentence, and may go on when the first is through."""
    with exclusive(paths), pytest.raises(LabFault, match="at work"), exclusive(paths):
        pytest.fail("both hold the lock")
    with exclusive(paths):
        pass


def test_the_environment_moves_both_folders(tmp_path):
    """SWARMCTL_LAB_DIR and SWARMCTL_LAB_CACHE give a lab of one's own."""
    found = paths_from({"SWARMCTL_LAB_DIR": f"{tmp_path}/a", "SWARMCTL_LAB_CACHE": f"{tmp_path}/b"})

    assert found.state_file == tmp_path / "a" / "state.json"
    assert found.kernel == tmp_path / "b" / "guest" / "vmlinuz"
