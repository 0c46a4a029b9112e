"""The guard: who it kills, when, and when it ends itself. With real processes."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager

import pytest
import trio

from swarmctl.agent import guard
from swarmctl.agent.fencing import GuardFence, Leases, NotFenced, guard_command
from swarmctl.proto import limits

PATIENCE_S = 30.0
SLEEP = [sys.executable, "-S", "-c", "import sys, time; print(flush=True); time.sleep(600)"]


def until(condition, what="it"):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.005)


def domain(name):
    """A process with arguments like those of a domain's QEMU."""
    process = subprocess.Popen([*SLEEP, "-name", "x", "-uuid", name], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    return process


def ended(process):
    return process.poll() is not None


@pytest.fixture
def fence(tmp_path):
    made = GuardFence(tmp_path / "data", tmp_path / "run")
    yield made
    made._page[guard.GUARD_PID] = 0  # its guard ends: another one has the page


@pytest.fixture
def guarded(fence):
    """A fence whose guard lives."""
    process = fence._spawn()
    until(lambda: fence.is_alive, "the guard")
    yield fence
    fence._page[guard.GUARD_PID] = 0
    process.wait(PATIENCE_S)


@pytest.fixture
def victim():
    """A domain, and its name."""
    name = str(uuid.uuid4())
    process = domain(name)
    yield process, name
    process.kill()
    process.wait()


def lease(fence, seconds):
    fence.renew(guard.boottime_ns() + int(seconds * guard.NS))


def test_kills_at_the_end_of_the_lease_and_not_before(guarded, victim):
    """What is listed ends with the lease; what is not listed lives on."""
    process, name = victim
    other = domain(str(uuid.uuid4()))
    lease(guarded, 0.6)
    guarded.enlist(7, name)
    began = time.monotonic()
    until(lambda: ended(process), "the end")
    took = time.monotonic() - began
    other_lives = other.poll() is None
    other.kill()
    other.wait()

    assert process.returncode == -signal.SIGKILL
    assert 0.5 < took < 0.6 + limits.FENCING_KILL_S
    assert other_lives
    log = guarded.folder / guard.LOG
    until(lambda: log.exists() and "ms after the lease ended" in log.read_text(), "its log")


def test_a_renewed_lease_kills_nobody(guarded, victim):
    """Renewals move the end; one that is older than the last changes nothing."""
    process, name = victim
    guarded.enlist(7, name)
    until(lambda: ended(process), "the end without any lease")
    second = domain(name)
    # Before it is found: with a lease it may live.
    second.kill()
    second.wait()
    # So long that nobody on a busy machine waits for the CPU until its end.
    lease(guarded, 2.0)
    third = domain(name)
    began = time.monotonic()
    while time.monotonic() - began < 2.5:
        lease(guarded, 2.0)
        lease(guarded, -5)
        time.sleep(0.06)
    assert third.poll() is None
    until(lambda: ended(third), "the end")


def test_a_late_start_is_killed_too(guarded, victim):
    """A daemon that was stopped starts what it was told to before: not for long."""
    process, name = victim
    guarded.enlist(7, name)
    until(lambda: ended(process), "the end")
    late = domain(name)
    began = time.monotonic()
    until(lambda: ended(late), "its end")
    assert time.monotonic() - began < limits.FENCING_KILL_S


def test_a_guard_goes_on_where_another_was_killed(fence, victim):
    """The list and the lease outlive a guard."""
    process, name = victim
    first = fence._spawn()
    until(lambda: fence.is_alive, "the guard")
    lease(fence, 3)
    fence.enlist(7, name)
    first.kill()
    first.wait()
    until(lambda: not fence.is_alive, "its silence")
    assert process.poll() is None
    with pytest.raises(NotFenced, match="not alive"):
        fence.check()
    second = fence._spawn()
    until(lambda: ended(process), "the end")
    fence._page[guard.GUARD_PID] = 0
    second.wait(PATIENCE_S)


def test_the_newer_of_two_guards_stays(guarded):
    """A guard that was only stopped gives way to the one that was started in its place."""
    old = guarded._page[guard.GUARD_PID]
    os.kill(old, signal.SIGSTOP)
    new = guarded._spawn()
    until(lambda: guarded._page[guard.GUARD_PID] == new.pid, "the new one")
    os.kill(old, signal.SIGCONT)
    until(lambda: guard.began(old) == 0, "the end of the old one")
    assert new.poll() is None
    guarded._page[guard.GUARD_PID] = 0
    assert new.wait(PATIENCE_S) == 0


def test_without_fenced_instances_it_ends_with_its_agent(tmp_path):
    """A guard that guards nothing for nobody is gone within seconds."""
    agent = domain("agent")
    fence = GuardFence(tmp_path / "data", tmp_path / "run")
    fence._page[guard.AGENT_PID] = agent.pid
    fence._page[guard.AGENT_BEGAN] = guard.began(agent.pid)
    process = fence._spawn()
    until(lambda: fence.is_alive, "the guard")
    agent.kill()
    agent.wait()
    assert process.wait(PATIENCE_S) == 0


class TimedGuard(guard.Guard):
    """A guard that nobody runs, and whose clock is the test's."""

    now = 1_000 * guard.NS

    def now_ns(self):
        return self.now


def test_with_fenced_instances_it_outlives_its_agent(fence, victim):
    """However old it is and however long nothing comes: a stopped daemon may start it yet."""
    process, name = victim
    made = TimedGuard(str(fence.folder))
    fence._page[guard.AGENT_PID] = 0
    fence.enlist(7, str(uuid.uuid4()))
    made.now += int(2 * guard.LINGER_S * guard.NS)
    fence.renew(made.now)
    made.now += 1

    assert made.look() == guard.LOOK_S, "just past the lease, and older than it lingers"
    made.now += int((guard.LINGER_S - 1) * guard.NS)
    assert made.look() == guard.LOOK_S
    made.now += int(guard.LINGER_S * guard.NS)
    assert made.look() == guard.LOOK_RARELY_S
    fence.enlist(8, name)
    until(lambda: made.look() == guard.KILL_PAUSE_S, "the late start found")
    until(lambda: ended(process), "its end")
    assert made.look() == guard.LOOK_S, "where one came late another may"
    fence.dismiss(7)
    fence.dismiss(8)
    until(lambda: made.look() is None, "its end, with nothing to guard")


def test_it_ends_with_its_folder(guarded, victim):
    """Whoever removes all that an agent had is not left with its guard."""
    pid = guarded._page[guard.GUARD_PID]
    for place in (guard.PAGE, guard.LIST):
        (guarded.folder / place).rename(guarded.folder / f"{place}.gone")
    until(lambda: guard.began(pid) == 0, "its end")


def test_nothing_starts_without_enough_of_a_lease(guarded):
    """A start has to be over before the lease is."""
    with pytest.raises(NotFenced, match="lease"):
        guarded.check()
    lease(guarded, 4)
    with pytest.raises(NotFenced, match="lease"):
        guarded.check()
    lease(guarded, 30)
    guarded.check()


def test_a_lease_counts_from_the_heartbeat_that_asked_for_it(fence):
    """An answer that took long, or is to an unknown heartbeat, grants no more than it should."""
    leases = Leases(fence)
    leases.sent(1)
    sent_at = guard.boottime_ns()
    time.sleep(0.2)
    leases.granted(1, 10.0)
    assert fence._page[guard.LEASE_NS] <= sent_at + 10 * guard.NS
    leases.granted(2, 1000.0)
    leases.granted(1, 0.0)
    assert fence.left_s < 10


def test_a_lease_can_wait_where_it_is_long_and_nothing_is_fenced(fence):
    """Then the controller need not answer each heartbeat."""
    leases = Leases(fence)
    assert Leases(None).will_do
    assert not leases.will_do
    lease(fence, 8)
    assert not leases.will_do
    lease(fence, 30)
    assert leases.will_do
    fence.enlist(7, "7")
    assert not leases.will_do
    fence.dismiss(7)
    assert leases.will_do


def test_dismissed_instances_are_not_killed(guarded, victim):
    """What was removed from the list is nobody's business any more."""
    process, name = victim
    lease(guarded, 2.0)
    guarded.enlist(7, name)
    guarded.dismiss(7)
    guarded.dismiss(8)
    until(lambda: guarded.left_s < -0.5, "the end of the lease")
    assert process.poll() is None


CONTAINER = "ab" * 32


@contextmanager
def no_descriptors():
    """None is left in this process meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_an_agent_without_descriptors_knows_its_list(guarded, victim):
    """Nothing is enlisted; what lives is not taken for dead because it cannot be looked at."""
    _, name = victim
    guarded.enlist(1, name)
    guarded.enlist(2, str(uuid.uuid4()))
    with no_descriptors():
        assert guarded.listed == {1, 2}
        assert guarded.has_listed
        with pytest.raises(NotFenced):
            guarded.enlist(3, "x")
        await guarded.dismiss_dead([1, 2])
        assert guarded.listed == {1, 2}
        guarded.dismiss(2)
        assert guarded.listed == {1}
    assert guarded.listed == {1}
    await guarded.dismiss_dead([1])
    assert guarded.listed == {1}


def test_nobody_is_taken_for_dead_for_want_of_descriptors(victim):
    """Who looks is told; the guard, that it has to look again."""
    _, name = victim
    names = frozenset({name.encode()})
    assert guard.find(names)
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        guard.find(names)


async def test_a_guard_that_cannot_be_started_is_started_later(fence):
    """An agent without descriptors goes on, and starts it when it has some."""
    with no_descriptors():
        await fence._start()
    assert not fence.is_alive
    await fence._start()
    assert fence.is_alive
    fence._page[guard.GUARD_PID] = 0
    fence._process.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("path", "own"),
    [
        (f"/docker/{CONTAINER}", f"/docker/{CONTAINER}"),
        (f"/docker/{CONTAINER}/init.scope", f"/docker/{CONTAINER}"),
        (f"/system.slice/docker-{CONTAINER}.scope/a/b", f"/system.slice/docker-{CONTAINER}.scope"),
        (f"/../../docker/{CONTAINER}", f"/../../docker/{CONTAINER}"),
        (f"/docker/{'cd' * 32}", None),
        ("/", None),
    ],
)
def test_a_containers_cgroup_is_never_above_it(path, own):
    """What is killed as a whole is the container's own cgroup, however daemons name it."""
    assert guard.container_path(path, frozenset({CONTAINER.encode()})) == own


@pytest.mark.parametrize(
    ("cmdline", "is_one"),
    [
        (b"qemu\0-uuid\0u-1\0-m\0" + b"1\0", True),
        (b"qemu\0-uuid\0u-2\0", False),
        (b"grep\0u-1\0", False),
        (b"qemu\0-uuid", False),
        (b"", False),
    ],
)
def test_a_domain_is_known_by_its_argument(cmdline, is_one):
    """Not by mentioning the UUID: whoever looks for it is not it."""
    assert guard.is_domain(cmdline, frozenset({b"u-1"})) is is_one


def test_the_executable_is_a_guard_too(fence, victim, monkeypatch):
    """The one-file binary has no module to run: it takes a command that nobody types."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert guard_command() == [sys.executable, "guard"]
    _, name = victim
    command = [sys.executable, "-P", "-m", "swarmctl", "guard", str(fence.folder)]
    process = subprocess.Popen(command)
    until(lambda: fence.is_alive, "the guard")
    fence.enlist(7, name)
    until(lambda: ended(victim[0]), "the end")
    fence._page[guard.GUARD_PID] = 0
    assert process.wait(PATIENCE_S) == 0


def test_an_agent_ends_although_its_folder_is_gone(guarded):
    """Whoever removes all that an agent had is not told of a defect by it."""
    shutil.rmtree(guarded.folder)

    async def until_stopped():
        with trio.move_on_after(0.1):
            await guarded.run()

    trio.run(until_stopped)
    assert not guarded.folder.exists()
