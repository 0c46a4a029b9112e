"""Folders of dead guards go, and nothing that lives is touched. With real processes."""

import os
import signal
import subprocess
import threading
import uuid

import pytest
import trio

from swarmctl.agent import guard, guard_folders
from swarmctl.agent.fencing import GuardFence
from tests.unit.agent.test_guard import PATIENCE_S, SLEEP, domain, until


@pytest.fixture
def run(tmp_path):
    """Where the folders are."""
    return tmp_path / "run"


def left_behind(run, tmp_path, name="left", **words):
    """A folder as an agent and a guard that were killed leave it."""
    fence = GuardFence(tmp_path / name, run)
    fence._page[guard.AGENT_PID] = fence._page[guard.AGENT_BEGAN] = 0
    for word, value in words.items():
        fence._page[getattr(guard, word)] = value
    fence._page.close()
    return fence.folder


@pytest.fixture
def sleeper():
    """A process that has words of its own; ended afterwards."""
    made = []

    def start(*words):
        process = subprocess.Popen([*SLEEP, *words], stdout=subprocess.PIPE)
        process.stdout.readline()
        process.stdout.close()
        made.append(process)
        return process

    yield start
    for process in made:
        process.kill()
        process.wait()


def test_what_the_dead_have_left_is_removed(run, tmp_path):
    """Of a guard and an agent that were killed, with a list of what is gone, too."""
    fence = GuardFence(tmp_path / "data", run)
    process = fence._spawn()
    until(lambda: fence.is_alive, "the guard")
    fence.renew(guard.boottime_ns() + 600 * guard.NS)
    fence.enlist(7, str(uuid.uuid4()))
    fence._page[guard.AGENT_PID] = 0
    fence._page.close()
    process.kill()
    process.wait(PATIENCE_S)
    other = left_behind(run, tmp_path)
    begun = run / f"guard-{'0' * 16}"  # Its agent was killed before it had made a page.
    begun.mkdir()
    assert guard_folders.sweep(run, 0) == 3
    assert not any(place.exists() for place in (fence.folder, other, begun))
    assert list(run.iterdir()) == []


def test_what_has_changed_lately_is_left(run, tmp_path, monkeypatch):
    """Somebody may just be about to start a guard there, or a guard is starved."""
    new = left_behind(run, tmp_path)
    assert guard_folders.sweep(run) == 0
    beating = left_behind(run, tmp_path, "beating", BEAT_NS=guard.boottime_ns())
    ahead = guard.boottime_ns() + 600 * guard.NS
    rebooted = left_behind(run, tmp_path, "rebooted", BEAT_NS=ahead)
    later = guard_folders.wall_clock() + 7200
    monkeypatch.setattr(guard_folders, "wall_clock", lambda: later)
    assert guard_folders.sweep(run, 3600) == 2
    assert [one.exists() for one in (new, beating, rebooted)] == [False, True, False]


@pytest.mark.parametrize("number", [None, signal.SIGSTOP], ids=["running", "stopped"])
def test_a_living_guard_is_left(run, tmp_path, number):
    """One whose agent is dead guards on; one that is stopped shows itself to nobody."""
    fence = GuardFence(tmp_path / "data", run)
    process = fence._spawn()
    until(lambda: fence.is_alive, "the guard")
    # Something to guard, or it would end without its agent.
    fence.renew(guard.boottime_ns() + 600 * guard.NS)
    fence.enlist(7, str(uuid.uuid4()))
    fence._page[guard.AGENT_PID] = 0
    if number is not None:
        process.send_signal(number)
    fence._page.close()
    page = (fence.folder / guard.PAGE).stat()
    try:
        assert guard_folders.sweep(run, 0) == 0
        assert (fence.folder / guard.PAGE).stat().st_ino == page.st_ino
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(PATIENCE_S)
    assert guard_folders.sweep(run, 0) == 1


def test_a_living_agent_is_left_whose_guard_is_dead(run, tmp_path):
    """It will start another."""
    fence = GuardFence(tmp_path / "data", run)
    assert guard_folders.sweep(run, 0) == 0
    assert fence._page.is_there
    fence._page[guard.AGENT_PID] = 0
    fence._page.close()
    assert guard_folders.sweep(run, 0) == 1


def test_agents_and_guards_that_hold_no_lock_are_left(run, tmp_path, sleeper):
    """Those of the release before are known by their process ids."""
    me = os.getpid()
    agents = left_behind(run, tmp_path, "agent", AGENT_PID=me, AGENT_BEGAN=guard.began(me))
    guards = left_behind(run, tmp_path, "guard")
    process = sleeper(str(guards))
    page = guard.Page(str(guards))
    page[guard.GUARD_PID] = process.pid
    page.close()
    assert guard_folders.sweep(run, 0) == 0
    assert agents.exists()
    assert guards.exists()


def test_a_number_that_another_process_has_now_does_not_count(run, tmp_path, sleeper):
    """Process ids are used again."""
    other = sleeper()
    left_behind(run, tmp_path, AGENT_PID=other.pid, AGENT_BEGAN=1, GUARD_PID=other.pid)
    assert guard_folders.sweep(run, 0) == 1


def test_a_list_is_left_while_something_in_it_lives(run, tmp_path):
    """The agent that comes back is to guard it at once."""
    name = str(uuid.uuid4())
    fence = GuardFence(tmp_path / "data", run)
    fence.enlist(7, name)
    fence._page[guard.AGENT_PID] = 0
    fence._page.close()
    process = domain(name)
    try:
        assert guard_folders.sweep(run, 0) == 0
    finally:
        process.kill()
        process.wait()
    assert guard_folders.sweep(run, 0) == 1


def test_nothing_else_is_touched(run, tmp_path):
    """Files and folders that are no guards'; and a folder that is not there."""
    assert guard_folders.sweep(run, 0) == 0
    for name in ("guard-x", "other", f"guard-{'0' * 16}.old"):
        (run / name).mkdir(parents=True)
    (run / f"guard-{'1' * 16}").write_text("a file")
    assert guard_folders.sweep(run, 0) == 0
    assert len(list(run.iterdir())) == 4


def test_half_a_removal_is_finished(run):
    """Whoever began it was killed."""
    (run / f".dead-guard-{'0' * 16}-1" / guard.LIST).mkdir(parents=True)
    guard_folders.sweep(run)
    assert list(run.iterdir()) == []


def test_who_begins_at_the_moment_of_a_removal_has_a_folder(run, tmp_path):
    """An agent holds a page that is there, however often others look for dead ones meanwhile."""
    ends = threading.Event()

    def sweep():
        while not ends.wait(0.0005):  # Or it would keep the interpreter from the other thread.
            guard_folders.sweep(run, 0)

    sweeping = threading.Thread(target=sweep)
    sweeping.start()
    try:
        for number in range(100):
            fence = GuardFence(tmp_path / "data", run)
            assert fence._page.is_there
            fence.enlist(7, "x")
            assert (fence.folder / guard.LIST / "7").exists()
            fence.dismiss(7)
            fence._page[guard.AGENT_PID] = 0
            assert fence._page.is_there
            fence._page.close()
            if number % 10 == 0:
                until(lambda folder=fence.folder: not folder.exists(), "a removal")
    finally:
        ends.set()
        sweeping.join()


async def test_an_agent_that_starts_sweeps(run, tmp_path, monkeypatch):
    """It removes what others have left, once it has a guard of its own."""
    folder = left_behind(run, tmp_path)
    now = guard_folders.wall_clock() + 2 * guard_folders.QUIET_S
    monkeypatch.setattr(guard_folders, "wall_clock", lambda: now)
    fence = GuardFence(tmp_path / "data", run)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fence.run)
        with trio.fail_after(PATIENCE_S):
            while folder.exists():  # noqa: ASYNC110 - removed by a thread
                await trio.sleep(0.01)
            while not fence.is_alive:  # noqa: ASYNC110 - it tells by memory that we share
                await trio.sleep(0.01)
        assert fence._page.is_there
        nursery.cancel_scope.cancel()
    assert list(run.iterdir()) == []
