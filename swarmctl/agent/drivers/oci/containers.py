"""What is done to one container: made, started, signalled, removed. Blocks; called in threads.

Theory of operation.  Every operation takes the container's lock, looks at what the files say, and
does what is missing, so that repetitions and overlaps do no harm, and a crash anywhere leaves
something that the next operation understands.  Making one ends with a rename of its folder;
removing one begins with a rename out of the way.  A container is started by ``runc create`` (by
conmon) and ``runc start``; only then the start is recorded.  One that was let go without that
record, because the agent died in between, counts as not started, and is ended before the next
start.

Locks are held in one process; the agent's data folder is locked against a second one.
"""

import json
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from swarmctl.agent import guard
from swarmctl.agent.drivers.api import Found, Launch, Owner, Phase
from swarmctl.agent.drivers.oci import bundle, monitor, mounts, namespaces, rootfs, state
from swarmctl.agent.drivers.oci.images import Image
from swarmctl.agent.drivers.oci.layout import HIDDEN, Layout, Place, container_id
from swarmctl.agent.drivers.oci.users import identify
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed, NotFound

# An operation that overlaps waits for the one before; those have deadlines of their own.
LOCK_S: Final = 90.0
# What is half made or half gone is named so, with the process that is at it.
MAKING: Final = f"{HIDDEN}making"
GOING: Final = f"{HIDDEN}going"
# Users' names are looked up in these files; images with larger ones are not meant for it.
ACCOUNTS_MAX_BYTES: Final = 1024 * 1024

_locks: "weakref.WeakValueDictionary[Path, _Lock]" = weakref.WeakValueDictionary()
_locks_lock: Final = threading.Lock()


class _Lock:
    """A lock that goes when nobody holds or wants it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@frozen
class Containers:
    """The containers of one owner in one folder.

    ``storage`` is what new ones get (:mod:`.rootfs`), ``now`` the clock, epoch seconds.
    """

    owner: Owner
    layout: Layout
    machine: bundle.Machine
    storage: str
    now: Callable[[], float] = time.time

    def place(self, incarnation: int) -> Place:
        """Where an incarnation's container is, if there is one."""
        return self.layout.place(container_id(self.owner, incarnation))

    def make(self, launch: Launch, image: Image) -> str:
        """Make the container, unless it is there; its id.

        Raises:
            UserError: the spec cannot work.
            LaunchFailed: something on this machine does not.
        """
        place = self.place(launch.incarnation)
        with _locked(place):
            if not place.folder.exists():
                self._make(place, launch, image)
            if launch.attachments:
                namespaces.ensure(place, launch.instance)
        return place.id

    def _make(self, place: Place, launch: Launch, image: Image) -> None:
        bundle.check_network(launch)
        spec = bundle.container_of(launch)
        made_in = self.layout.containers / _hidden_name(MAKING)
        made_in.mkdir(mode=0o700)
        try:
            surroundings = bundle.Surroundings(
                rootfs=str(place.rootfs),
                cgroup=place.cgroup,
                mounts=tuple(mounts.mounts_of(launch, self.layout, place, made_in, image.rootfs)),
                namespace=str(place.namespace_path) if launch.attachments else "",
            )
            identity = identify(
                spec.user or image.config.user,
                _account_file(image, "/etc/passwd"),
                _account_file(image, "/etc/group"),
                launch.instance,
            )
            config = bundle.config(launch, image.config, identity, surroundings, self.machine)
            record = state.new_record(
                self.owner,
                launch,
                stop_signal=bundle.stop_signal(spec, image.config),
                storage=self.storage,
                image=str(image.rootfs),
                tty=spec.tty,
                namespace=bool(launch.attachments),
            )
            rootfs.fill(made_in, image.rootfs, self.storage, launch.instance)
            (made_in / "config.json").write_text(json.dumps(config), encoding="utf-8")
            state.write_record(record, made_in / place.record.name)
            made_in.rename(place.folder)
        finally:
            shutil.rmtree(made_in, ignore_errors=True)

    def start(self, launch: Launch) -> Found:
        """Start it, also again after its end.

        Raises:
            NotFound: it was not made, or is removed.
            UserError: the spec cannot work.
            LaunchFailed: runc or conmon fail.
            DriverUnavailable: they are not there, or hang.
        """
        place, where = self.place(launch.incarnation), launch.instance
        with _locked(place):
            seen = state.read(place)
            if seen is None:
                raise NotFound("it was not created, or is removed", where)
            if seen.phase is not Phase.RUNNING:
                self._start(place, seen.record, where)
                seen = state.read(place)
        if seen is None:
            raise NotFound("it was removed while it was started", where)
        return state.found(seen, place.id)

    def _start(self, place: Place, record: state.Record, where: str) -> None:
        self._clear(place, where)
        rootfs.mount(place, Path(record.image), record.storage, where)
        if record.namespace:
            namespaces.ensure(place, where)
        try:
            pid = monitor.create(self.layout, place, tty=record.tty, where=where)
            began = guard.began(pid)
            at = self.now()
            monitor.start(self.layout, place, where)
        except BaseException:
            self._clear(place, where)
            raise
        state.write_start(place, state.Start(pid, began, state.boot_id(), at))

    def _clear(self, place: Place, where: str) -> None:
        """End what an earlier start has left, and forget it."""
        monitor.delete(self.layout, place, where)
        for path in (place.start, place.exit, place.out_of_memory, place.pid_file):
            path.unlink(missing_ok=True)

    def handle(self, incarnation: int) -> tuple[int, state.Record] | None:
        """A handle (pidfd) on its first process, to be closed by the caller; None if it has ended.

        It becomes readable when the process ends, and a signal sent through it cannot meet another
        process of the same number.  It takes no lock and no time.
        """
        seen = state.read(self.place(incarnation))
        if seen is None or seen.start is None or seen.end is not None:
            return None
        try:
            handle = os.pidfd_open(seen.start.pid)
        except ProcessLookupError:
            return None
        if not seen.start.is_alive:
            os.close(handle)
            return None
        return handle, seen.record

    def settle(self, incarnation: int) -> None:
        """Wait until the end of a container whose process has ended is recorded.

        One whose start was never recorded is ended.
        """
        place = self.place(incarnation)
        with _locked(place):
            seen = state.read(place)
            if seen is not None and seen.start is None:
                self._clear(place, place.id[:12])
            else:
                monitor.await_end(place)

    def remove(self, incarnation: int) -> None:
        """Have nothing left of it.

        Raises:
            LaunchFailed: something stays.
        """
        place = self.place(incarnation)
        where = place.id[:12]
        with _locked(place):
            record = state.read_record(place)
            self._clear(place, where)
            rootfs.unmount(place.rootfs)
            if record is not None and record.namespace:
                namespaces.remove(place, where)
            if place.folder.exists():
                going = self.layout.containers / _hidden_name(GOING)
                place.folder.rename(going)
                shutil.rmtree(going)

    def list(self) -> list[tuple[Place, state.State]]:
        """All of the owner's."""
        found = []
        for entry in self.layout.containers.iterdir():
            if entry.name.startswith(HIDDEN):
                continue
            place = self.layout.place(entry.name)
            seen = state.read(place)
            if seen is not None and seen.record.owner == self.owner:
                found.append((place, seen))
        return found

    def sweep(self) -> None:
        """Remove what operations of agents that are no more have left half made or half gone."""
        for entry in self.layout.containers.iterdir():
            kind, _, rest = entry.name.partition("-")
            maker = rest.partition("-")[0]
            if not kind.startswith(HIDDEN):
                self._sweep_unreadable(self.layout.place(entry.name))
            elif not Path(f"/proc/{maker}").exists():
                if kind == rootfs.TRIAL:
                    rootfs.unmount(entry / "rootfs")
                shutil.rmtree(entry, ignore_errors=True)
        for entry in (*self.layout.runtime.iterdir(), *self.layout.starts.iterdir()):
            # Someone took the folder away, and left what ran in it.
            place = self.layout.place(entry.name.removeprefix(HIDDEN))
            with _locked(place):
                if not place.folder.exists():
                    self._clear(place, place.id[:12])

    def _sweep_unreadable(self, place: Place) -> None:
        """A machine that lost its power may leave a container of which nothing is readable."""
        with _locked(place):
            if place.folder.exists() and state.read_record(place) is None:
                self._clear(place, place.id[:12])
                rootfs.unmount(place.rootfs)
                shutil.rmtree(place.folder, ignore_errors=True)


def _hidden_name(kind: str) -> str:
    return f"{kind}-{os.getpid()}-{secrets.token_hex(8)}"


@contextmanager
def _locked(place: Place) -> Generator[None, None, None]:
    with _locks_lock:
        lock = _locks.setdefault(place.folder, _Lock())
    if not lock.lock.acquire(timeout=LOCK_S):
        raise DriverUnavailable(
            f"another operation on it has not ended within {LOCK_S:g} s", place.id[:12]
        )
    try:
        yield
    finally:
        lock.lock.release()


def _account_file(image: Image, path: str) -> str:
    """The text of a file of the image's; empty when it has none."""
    file = mounts.inside(image.rootfs, path)
    if file is None or not file.is_file():
        return ""
    if file.stat().st_size > ACCOUNTS_MAX_BYTES:
        raise LaunchFailed(f"{path} of the image is too large to be read")
    return file.read_text(encoding="utf-8", errors="replace")
