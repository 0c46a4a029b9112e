"""The agent's side of fencing: it keeps a guard alive, renews its lease, and lists what is fenced.

The controller grants a lease in the answer to a heartbeat; it counts from when that heartbeat was
*sent*, by this node's clock, so it ends here before the controller thinks that it has.  Nothing
fenced is started without a live guard and enough of a lease; and it is in the guard's list, on the
node's own memory disk, before it is started, so that there is no moment in which it runs and is
not guarded.

The folder is named after the agent's data folder and the machine's boot: an agent that starts
again finds the guard of the one before; after a boot nothing is left, neither instance nor guard.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio
from attrs import evolve

from swarmctl import descriptors
from swarmctl.agent import guard, guard_folders
from swarmctl.agent.actions import Actions
from swarmctl.agent.backoff import LEASE_ENDED
from swarmctl.agent.config import AgentConfig
from swarmctl.agent.drivers.api import DriverEvent, EventKind, Found, Phase
from swarmctl.agent.supervisor import Supervisor
from swarmctl.proto import limits
from swarmctl.proto.errors import EnvironmentFault

_log = structlog.get_logger(__name__)

# Drivers whose instances are processes that a guard can find and kill.
KILLABLE: Final = frozenset({"docker", "libvirt", "oci"})
# Where a memory disk is, on every Linux; else the data folder has to do.
RUN: Final = Path("/run/swarmctl")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# A guard that has not shown itself for this long is dead, stopped or starved: six of its beats.
GUARD_SILENT_S: Final = 1.5
# Looking after it, and the time that a new one gets to show itself.
LOOK_S: Final = 0.5
GUARD_START_S: Final = 5.0
# It looks at its page four times a second.
GUARD_END_S: Final = 1.0
# A start has to be over well before the lease: starts take a second, and a few on a busy machine.
LEASE_LEFT_MIN_S: Final = 5.0
# Where nothing is fenced a lease is for what may be started: with so much left it need not be
# renewed at every heartbeat.
LEASE_WILL_DO_S: Final = LEASE_LEFT_MIN_S + 3 * limits.HEARTBEAT_S
# Times that the folder is made when others remove it. What is new is left for a minute, so once
# is enough; where nothing is (tests) any of them may be hit, and the next one may not.
OPENED_MAX: Final = 100
# Heartbeats whose answer may still come; more are under way only where nobody answers.
HEARTBEATS_REMEMBERED: Final = 32
# Drivers tell ends by the wall clock, some in whole seconds; leases end by another clock.
_CLOCKS_DIFFER_S: Final = 1.5


class NotFenced(EnvironmentFault):
    """Something fenced may not be started here now: there is no guard, or no lease."""

    code = "not-fenced"
    temporary = True


class Fence(Protocol):
    """What ends fenced instances without the agent."""

    @property
    def is_alive(self) -> bool:
        """Whether it would do so now."""
        ...

    @property
    def left_s(self) -> float:
        """How long the lease holds yet; negative past it."""
        ...

    @property
    def has_listed(self) -> bool:
        """Whether there is something that it would end."""
        ...

    @property
    def listed(self) -> frozenset[int]:
        """The incarnations that it would end, whoever may remember them."""
        ...

    def renew(self, until_ns: int) -> None:
        """The lease holds until then, by :func:`guard.boottime_ns`; never shorter than before."""
        ...

    def check(self) -> None:
        """Raises NotFenced when nothing fenced may be started now."""
        ...

    def enlist(self, incarnation: int, runtime_id: str) -> None:
        """``incarnation`` is fenced; it is not started yet.

        Raises:
            NotFenced: it cannot be listed.
        """
        ...

    def dismiss(self, incarnation: int) -> None:
        """It is no more; nothing happens when it was never listed."""
        ...

    async def dismiss_dead(self, incarnations: Iterable[int]) -> None:
        """Those of ``incarnations`` that no process is left of are no more."""

    async def run(self) -> None:
        """Keep it alive until cancelled."""

    async def wait_alive(self) -> None:
        """Returns when it is alive, or after a few seconds."""


class Leases:
    """Turns answers to heartbeats into renewals, by the clock of the node's boot."""

    def __init__(
        self, fence: Fence | None, boottime_ns: Callable[[], int] = guard.boottime_ns
    ) -> None:
        self._fence = fence
        self._boottime_ns = boottime_ns
        self._sent: deque[tuple[int, int]] = deque(maxlen=HEARTBEATS_REMEMBERED)
        self._in_doubt = False

    @property
    def is_guarded(self) -> bool:
        """Whether a guard lives on this node."""
        return self._fence is not None and self._fence.is_alive

    @property
    def left_s(self) -> float:
        """How long the node's lease holds yet; 0 when it has none."""
        return max(0.0, self._fence.left_s) if self._fence is not None else 0.0

    @property
    def will_do(self) -> bool:
        """Whether nothing would be lost if the lease were renewed some heartbeats later."""
        fence = self._fence
        return fence is None or (fence.left_s > LEASE_WILL_DO_S and not fence.has_listed)

    def forgotten(self, known: Collection[int]) -> tuple[int, ...]:
        """What the guard would end and is not ``known``: a hello says so."""
        found = self._fence.listed.difference(known) if self._fence is not None else ()
        self._in_doubt = bool(found)
        return tuple(sorted(found))

    def knows_again(self, known: Collection[int]) -> bool:
        """Whether the last hello named something as forgotten, and by now nothing is."""
        return self._in_doubt and not self.forgotten(known)

    def sent(self, sequence: int) -> None:
        """A heartbeat is about to be sent."""
        if self._fence is not None:
            self._sent.append((sequence, self._boottime_ns()))

    def granted(self, sequence: int, lease_s: float) -> None:
        """The controller's answer to the heartbeat ``sequence``."""
        if self._fence is None or lease_s <= 0:
            return
        for known, sent_ns in self._sent:
            if known == sequence:
                self._fence.renew(sent_ns + int(lease_s * guard.NS))


class GuardFence:
    """A :class:`Fence` that is a guard process.

    Args:
        data: the agent's data folder, for which the guard's folder is.
        run: where guards' folders are.
        now_ns: the clock of leases.

    Raises:
        OSError: the folder cannot be made.
    """

    # What the list had when it was read, and what has come and gone since.
    _seen: frozenset[int] = frozenset()
    # Why the last guard could not be started.
    _cannot = ""

    def __init__(
        self, data: Path, run: Path = RUN, now_ns: Callable[[], int] = guard.boottime_ns
    ) -> None:
        self._now_ns = now_ns
        self.folder = _folder(data, run)
        self._list = self.folder / guard.LIST
        self._page = self._open()
        self._page[guard.AGENT_PID] = os.getpid()
        self._page[guard.AGENT_BEGAN] = guard.began(os.getpid())
        self._process: subprocess.Popen[bytes] | None = None

    def _open(self) -> guard.Page:
        for _ in range(OPENED_MAX):
            # Another agent may remove it as one of the dead, in the moment before we hold it.
            with suppress(FileNotFoundError, FileExistsError):
                self._list.mkdir(parents=True, exist_ok=True, mode=0o700)
                return guard.Page(str(self.folder))
        hint = "see what removes it, and start the agent again"
        raise NotFenced(f"{self.folder} is removed again and again", hint=hint)

    @property
    def is_alive(self) -> bool:
        """Whether the guard has shown itself lately."""
        return self._now_ns() - self._page[guard.BEAT_NS] < GUARD_SILENT_S * guard.NS

    @property
    def left_s(self) -> float:
        """How long the lease holds yet; negative past it."""
        return (self._page[guard.LEASE_NS] - self._now_ns()) / guard.NS

    @property
    def has_listed(self) -> bool:
        """See Fence."""
        return bool(self.listed)

    @property
    def listed(self) -> frozenset[int]:
        """See Fence."""
        try:
            self._seen = frozenset(
                int(one.name) for one in self._list.iterdir() if one.name.isdigit()
            )
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            if error.errno not in descriptors.EXHAUSTED:
                raise
            # Without a descriptor to look with nothing is enlisted; what is dismissed is noted.
        return self._seen

    def renew(self, until_ns: int) -> None:
        """See Fence."""
        if until_ns > self._page[guard.LEASE_NS]:
            self._page[guard.LEASE_NS] = until_ns

    def check(self) -> None:
        """See Fence."""
        if not self.is_alive:
            raise NotFenced(
                "the guard that fences instances on this node is not alive",
                hint="the agent starts another; if this stays, its log says why",
            )
        if self.left_s < LEASE_LEFT_MIN_S:
            raise NotFenced(
                "fenced, and the controller has not renewed this node's lease",
                hint="it starts when that is done; 'swarmctl node ls' says whether it is heard",
            )

    def enlist(self, incarnation: int, runtime_id: str) -> None:
        """See Fence."""
        hidden, place = self._list / f".{incarnation}", self._list / str(incarnation)
        try:
            hidden.write_text(runtime_id, encoding="ascii")
            hidden.rename(place)
            self._seen |= {incarnation}
        except OSError as error:
            raise NotFenced(
                f"the guard's list cannot be written: {error.strerror}",
                str(self._list),
                "make room there; it is tried again",
            ) from error

    def dismiss(self, incarnation: int) -> None:
        """See Fence."""
        (self._list / str(incarnation)).unlink(missing_ok=True)
        self._seen -= {incarnation}

    async def dismiss_dead(self, incarnations: Iterable[int]) -> None:
        """See Fence."""
        for one in incarnations:
            try:
                name = (self._list / str(one)).read_bytes().strip()
                # All of /proc is read, which may take a tenth of a second.
                found = await trio.to_thread.run_sync(guard.find, frozenset({name}))
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in descriptors.EXHAUSTED:
                    raise
                return  # Nothing can be looked at now: all of them stay.
            if not found:
                self.dismiss(one)

    async def run(self) -> None:
        """Keep a guard alive until cancelled; one that has something to guard stays."""
        swept = False
        try:
            while True:
                if not self.is_alive:
                    await self._start()
                if not swept:
                    swept = True
                    await self._sweep()
                await self._pause()
        finally:
            # Nor when the folder was removed with all that the agent had.
            if not self.has_listed:
                await self._dissolve()

    async def _pause(self) -> None:
        """Until the guard is to be looked at again."""
        await trio.sleep(LOOK_S)

    async def _dissolve(self) -> None:
        """Nothing is fenced, and we end: so does the guard, and nothing of it is left."""
        pid = self._page[guard.GUARD_PID]
        self._page[guard.GUARD_PID] = 0
        with trio.move_on_after(GUARD_END_S, shield=True):
            while guard.began(pid):  # noqa: ASYNC110 - it may be no child of ours
                await trio.sleep(guard.BEAT_S / 10)
            if self._process is not None:
                self._process.poll()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _sweep(self) -> None:
        """Remove what dead guards have left beside our own folder."""
        await trio.to_thread.run_sync(guard_folders.sweep, self.folder.parent)

    async def _start(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            _log.error("the fencing guard has ended", code=self._process.returncode)
        # Not by trio: it is to outlive us. Forking takes a moment, so it does so in a thread.
        try:
            self._process = await trio.to_thread.run_sync(self._spawn)
        except OSError as error:
            # Of descriptors or processes there are none left: nothing fenced is started meanwhile,
            # and it is tried again.
            if str(error) != self._cannot:
                _log.error("no fencing guard can be started", why=str(error))
            self._cannot = str(error)
            return
        self._cannot = ""
        await self.wait_alive()
        if self.is_alive:
            _log.info("fencing guard begins", pid=self._process.pid, folder=str(self.folder))

    async def wait_alive(self) -> None:
        """See Fence."""
        with trio.move_on_after(GUARD_START_S):
            while not self.is_alive:  # noqa: ASYNC110 - it tells by memory that we share
                await trio.sleep(guard.BEAT_S / 10)

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*guard_command(), str(self.folder)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def make_fence(config: AgentConfig) -> Fence | None:
    """The guard of an agent; None where it has no driver whose instances are processes here."""
    if not KILLABLE.intersection(config.drivers):
        return None
    try:
        return GuardFence(config.data)
    except (OSError, NotFenced) as error:
        _log.warning("nothing can be fenced on this node", why=str(error))
        return None


def explained(
    event: DriverEvent, fence: Fence | None, supervisor: Supervisor, now: float
) -> DriverEvent:
    """``event``; the end of what the guard killed says so (and counts as no failure)."""
    if fence is None or event.kind is not EventKind.EXITED or event.exit_code == 0:
        return event
    if not _was_killed(event.incarnation, event.at, fence, supervisor, now):
        return event
    return evolve(event, reason=LEASE_ENDED)


def explained_list(
    found: Iterable[Found], fence: Fence | None, supervisor: Supervisor, now: float
) -> Iterable[Found]:
    """``found``, likewise: for an agent that was not there, or heard of it late."""
    if fence is None or fence.left_s > 0:
        return found
    return [
        evolve(one, reason=LEASE_ENDED)
        if one.phase is Phase.EXITED
        and one.exit_code != 0
        and _was_killed(one.incarnation, one.finished_at, fence, supervisor, now)
        else one
        for one in found
    ]


def _was_killed(
    incarnation: int, at: float, fence: Fence, supervisor: Supervisor, now: float
) -> bool:
    """Whether it was the guard, as far as times tell; ``at`` is in epoch seconds, or 0."""
    ended_at = now + supervisor.wall_offset_s + fence.left_s
    late = not at or at > ended_at - _CLOCKS_DIFFER_S
    return fence.left_s <= 0 and late and _is_fenced(incarnation, supervisor)


def take_fenced_removes(actions: Actions, supervisor: Supervisor) -> dict[str, list[int]]:
    """Take out of ``actions`` the removals of what is fenced: they wait until the journal writes.

    Once a removal is reported, the slot may run elsewhere; an agent whose journal does not know of
    it would launch the instance again when it restarts, before anybody can tell it not to.
    """
    held: dict[str, list[int]] = {}
    for name, incarnations in actions.removes.items():
        fenced = {one for one in incarnations if _is_fenced(one, supervisor)}
        if fenced:
            held[name] = sorted(fenced)
            actions.removes[name] = [one for one in incarnations if one not in fenced]
    return held


def _is_fenced(incarnation: int, supervisor: Supervisor) -> bool:
    instance = supervisor.instances.get(incarnation)
    template = supervisor.templates.get(instance.template) if instance is not None else None
    return template is not None and template.fenced


def _folder(data: Path, run: Path) -> Path:
    boot = BOOT_ID.read_text(encoding="ascii").strip()
    name = hashlib.sha256(f"{data.absolute()} {boot}".encode()).hexdigest()[:16]
    for place in (run, data):
        folder = place / f"guard-{name}"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except FileExistsError:
            pass  # It was there, and is not any more: it is made again when it is opened.
        except OSError:
            continue
        return folder
    hint = "let the agent write to one of them, and start it again"
    raise NotFenced(f"neither {run} nor {data} can be written", hint=hint)


def guard_command() -> list[str]:
    """How a guard is started, from sources and from the one-file binary."""
    if getattr(sys, "frozen", False):
        return [sys.executable, "guard"]
    return [sys.executable, "-P", "-m", "swarmctl.agent.guard"]
