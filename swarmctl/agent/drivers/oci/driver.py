"""Containers without a daemon: the driver that an agent sees.

There is no daemon to be restarted, upgraded or hung: runc makes containers, conmon watches over
each of them, skopeo and umoci bring images, and files are the truth (:mod:`.layout`).  The parts:
:mod:`.reference`, :mod:`.images`, :mod:`.users`, :mod:`.bundle` and :mod:`.mounts` (what a
container is made from), :mod:`.containers` (what is done to one), :mod:`.monitor`, :mod:`.rootfs`
and :mod:`.namespaces` (by which means), :mod:`.state` and :mod:`.events` (what is seen of it),
:mod:`.logs`, :mod:`.rotation` and :mod:`.sessions`.

What takes time runs in bounded threads, and a thread whose caller gave up finishes by itself.
"""

import os
import signal
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import trio

from swarmctl.agent.drivers.api import (
    DriverEvent,
    Found,
    Health,
    Launch,
    LogChunk,
    Owner,
    Phase,
    Progress,
    Terminal,
)
from swarmctl.agent.drivers.oci import faults, host, state
from swarmctl.agent.drivers.oci.bundle import check_network, container_of, signal_number
from swarmctl.agent.drivers.oci.containers import Containers
from swarmctl.agent.drivers.oci.events import pump
from swarmctl.agent.drivers.oci.images import Image, Images
from swarmctl.agent.drivers.oci.layout import Layout, container_id
from swarmctl.agent.drivers.oci.logs import read_logs
from swarmctl.agent.drivers.oci.places import NamedNamespaces
from swarmctl.agent.drivers.oci.sessions import open_session
from swarmctl.agent.drivers.outlet import open_outlet
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import Conflict, DriverUnavailable, LaunchFailed, NotFound, SwarmError
from swarmctl.proto.limits import LAUNCHES_OCI

# Spelt here because OciDriver.list hides the builtin in its class.
Founds: TypeAlias = list[Found]
# The health check's answer must come within 3 s.
PROBE_S: Final = 2.5
CREATE_S: Final = 600.0
START_S: Final = 90.0
REMOVE_S: Final = 90.0
LIST_S: Final = 30.0
# From SIGKILL to the end of a process: only one that waits for a broken disk takes longer.
KILL_S: Final = 20.0
SETTLE_S: Final = 30.0
# Threads beside those for launches: removes and lists of an agent that is busy launching.
SPARE_THREADS: Final = 8

T = TypeVar("T")


class OciDriver:
    """An owner's containers in one folder.

    Args:
        owner: whose containers.
        root: the driver's folder.
        concurrency: how many launches an agent should have under way.
        now: the clock, epoch seconds.
    """

    name = "oci"

    def __init__(
        self,
        owner: Owner,
        root: Path,
        *,
        concurrency: int = LAUNCHES_OCI,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.owner = owner
        self.concurrency = concurrency
        self._now = now
        self._layout = Layout(root.absolute())
        self._images = Images(self._layout)
        self._containers: Containers | None = None
        self._opening = trio.Lock()
        self._limiter = trio.CapacityLimiter(concurrency + SPARE_THREADS)
        self._probes = trio.CapacityLimiter(1)
        self.places = NamedNamespaces(owner, self._layout, self._run)

    async def probe(self) -> Health:
        """Look for the programs, and for a folder that can be used."""
        if not self._layout.containers.is_dir():
            self._containers = None  # someone took the folder away: it is made anew
        try:
            containers = await self._open()
            version = await self._run(host.runtime_version, "answer", PROBE_S, limiter=self._probes)
        except SwarmError as error:
            return Health(available=False, reason=str(error))
        return Health(
            available=True,
            version=version,
            facts={
                "storage": containers.storage,
                "cgroup_version": host.cgroup_version(),
                "runtime": "runc",
                "seccomp": host.seccomp_profile(),
            },
        )

    async def prepare(self, launch: Launch, progress: Progress) -> None:
        """Get the image onto the node, unless it is there. Errors: :meth:`Images.ensure`."""
        check_network(launch)
        await self._open()
        await self._image_of(launch, progress)

    async def create(self, launch: Launch) -> str:
        """Make the container's bundle; the id of the one that is there when this is a repetition.

        Raises:
            UserError: the spec cannot work.
            LaunchFailed: something on this machine does not.
            DriverUnavailable: a program is not there, or hangs.
        """
        containers = await self._open()
        # Someone may have removed the image since it was prepared.
        image = await self._image_of(launch, _silent)
        make = partial(containers.make, launch, image)
        return await self._run(make, "create it", CREATE_S, launch.instance)

    async def start(self, launch: Launch) -> Found:
        """Start the container, also again after its end.

        Raises:
            UserError: the command or such does not exist in the image.
            NotFound: there is no such container.
            LaunchFailed: runc or conmon fail.
            DriverUnavailable: a program is not there, or hangs.
        """
        containers = await self._open()
        start = partial(containers.start, launch)
        return await self._run(start, "start it", START_S, launch.instance)

    async def stop(self, incarnation: int, grace_s: float) -> None:
        """Stop signal, ``grace_s``, SIGKILL; done when its end is recorded.

        Raises:
            LaunchFailed: it does not end.
        """
        containers = await self._open()
        seen = containers.handle(incarnation)
        where = incarnations.label(incarnation)
        if seen is not None:
            handle, record = seen
            try:
                await _end(handle, signal_number(record.stop_signal), grace_s, where)
            finally:
                os.close(handle)
        # Its end is recorded a moment after it.
        settle = partial(containers.settle, incarnation)
        await self._run(settle, "see it end", SETTLE_S, where)

    async def remove(self, incarnation: int) -> None:
        """Remove the container by force, with its unnamed volumes.

        Raises:
            LaunchFailed: something of it stays.
            DriverUnavailable: a program is not there, or hangs.
        """
        containers = await self._open()
        remove = partial(containers.remove, incarnation)
        await self._run(remove, "remove it", REMOVE_S, incarnations.label(incarnation))

    async def list(self) -> Founds:
        """All of the owner's containers, from their files."""
        containers = await self._open()
        seen = await self._run(containers.list, "list containers", LIST_S)
        return [state.found(one, place.id) for place, one in seen]

    @asynccontextmanager
    async def events(self) -> AsyncGenerator[trio.MemoryReceiveChannel[DriverEvent], None]:
        """The owner's containers' events; see :mod:`.events`."""
        with open_outlet(self._now) as (outlet, channel):
            async with trio.open_nursery() as nursery:
                await nursery.start(pump, self._open, outlet, self._now)
                yield channel
                nursery.cancel_scope.cancel()

    async def logs(
        self, incarnation: int, *, follow: bool, tail: int | None, timestamps: bool
    ) -> AsyncGenerator[LogChunk, None]:
        """Output so far, and what comes; see :class:`swarmctl.agent.drivers.api.Logs`."""
        containers = await self._open()
        place, where = containers.place(incarnation), incarnations.label(incarnation)
        if state.read_record(place) is None:
            raise NotFound("it is not there", where)
        chunks = read_logs(place, follow=follow, tail=tail, timestamps=timestamps)
        try:
            with faults.refusals("read its output", where):
                async for chunk in chunks:
                    yield chunk
        finally:
            with trio.CancelScope(shield=True):  # closing files waits for nothing
                await chunks.aclose()

    @asynccontextmanager
    async def exec(
        self, incarnation: int, command: tuple[str, ...], *, tty: bool, stdin: bool
    ) -> AsyncGenerator[Terminal, None]:
        """Run ``command`` in the container; leaving ends it.

        Raises:
            NotFound: there is no such container.
            Conflict: it does not run.
        """
        containers = await self._open()
        where = incarnations.label(incarnation)
        place = containers.place(incarnation)
        seen = state.read(place)
        if seen is None:
            raise NotFound("it is not there", where)
        if seen.phase is not Phase.RUNNING:
            raise Conflict("it does not run", where, "start it first")
        async with open_session(
            self._layout, place, command, where, tty=tty, stdin=stdin
        ) as session:
            yield session

    async def network_namespace(self, incarnation: int) -> str:
        """Where the network namespace of a launch with attachments is.

        It is there from its creation on, before its start, through all its starts, to its removal;
        a restart of the machine leaves an empty one to be plugged anew.
        """
        place = self._layout.place(container_id(self.owner, incarnation))
        if not await trio.Path(place.namespace_path).exists():
            raise NotFound("it has no network namespace", incarnations.label(incarnation))
        return str(place.namespace_path)

    # --- the folder and the threads -----------------------------------------------------------

    async def _image_of(self, launch: Launch, progress: Progress) -> Image:
        with faults.refusals("bring its image", launch.instance):
            return await self._images.ensure(container_of(launch).image, launch.instance, progress)

    async def _open(self) -> Containers:
        """The containers, once the folder is there and what it can do is known."""
        if self._containers is not None:
            await trio.lowlevel.checkpoint()
            return self._containers
        async with self._opening:
            if self._containers is None:
                self._containers = await self._run(self._look, "look at its folder", START_S)
        return self._containers

    def _look(self) -> Containers:
        try:
            containers = host.open_containers(self.owner, self._layout, self._now)
            containers.sweep()
        except OSError as error:
            raise DriverUnavailable(
                f"{self._layout.root} cannot be used: {error.strerror}", self.name
            ) from error
        return containers

    async def _run(
        self,
        work: Callable[[], T],
        doing: str,
        deadline_s: float,
        where: str = "oci",
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        with faults.refusals(doing, where), trio.move_on_after(deadline_s):
            return await trio.to_thread.run_sync(
                work, limiter=limiter or self._limiter, abandon_on_cancel=True
            )
        raise DriverUnavailable(f"could not {doing} within {deadline_s:g} s", where)


async def _end(handle: int, stop_signal: int, grace_s: float, where: str) -> None:
    """Have the process end: asked first, by force after ``grace_s``."""
    for number, wait_s in ((stop_signal, grace_s), (signal.SIGKILL, KILL_S)):
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return
        with trio.move_on_after(wait_s):
            await trio.lowlevel.wait_readable(handle)
            return
    raise LaunchFailed(f"it did not end within {KILL_S:g} s of SIGKILL", where)


def _silent(_: str) -> None:
    """Nobody watches a pull within a create."""
