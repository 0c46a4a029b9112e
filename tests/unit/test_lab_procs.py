"""The lab's reading of processes: names with parentheses, identities, waits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lab import procs

LINE = "4242 (tmux: (a) b) S 17 4242 4242 0 -1 4194560 1 0 0 0 3 4 0 0 20 0 1 0 91083 10 20 30"


def test_a_stat_line_is_read_past_parentheses_and_spaces_in_the_name():
    """The name may hold anything, so fields are counted from the last parenthesis."""
    stat = procs.parse_stat(LINE)

    assert stat == procs.Stat(4242, "tmux: (a) b", "S", 17, 91083)


@pytest.mark.parametrize("line", ["", "12", "12 (x", "12 (x) S 1 2", "(x) S"])
def test_a_line_that_is_not_a_stat_line_is_refused(line):
    """Half a line is an error rather than a wrong process."""
    with pytest.raises(ValueError, match=r"stat line|invalid literal"):
        procs.parse_stat(line)


def test_this_process_is_alive_and_a_later_one_with_its_pid_is_not_it():
    """A pid alone does not name a process: the start time must match too."""
    here = procs.identify(os.getpid())
    assert here is not None

    assert procs.is_alive(here)
    assert not procs.is_alive(procs.ProcessId(here.pid, here.start_ticks + 1, here.boot_id))
    assert not procs.is_alive(procs.ProcessId(here.pid, here.start_ticks, "another boot"))


def test_a_zombie_counts_as_gone():
    """A child that ended and was not collected runs no longer."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        assert procs.wait_until(lambda: procs.read_stat(child.pid) is None, timeout_s=10)
    finally:
        child.wait()


def test_terminate_ends_that_process_only_and_escalates():
    """A process that ignores SIGTERM is killed; another with the same pid is left alone."""
    code = "import signal,sys;signal.signal(15,signal.SIG_IGN);print(1,flush=True);signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        identity = procs.identify(child.pid)
        assert identity is not None
        impostor = procs.ProcessId(child.pid, identity.start_ticks + 1, identity.boot_id)

        assert procs.terminate(impostor, term_s=0.0) == "gone"
        assert procs.is_alive(identity)
        assert procs.terminate(identity, term_s=0.1) == "killed"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_wait_ends_with_false_when_the_time_is_up():
    """The condition is looked at at least once, and the wait is bounded."""
    assert procs.wait_until(lambda: True, timeout_s=0.0)
    assert not procs.wait_until(lambda: False, timeout_s=0.0)
