"""Containers through Docker: the driver that an agent sees.

dockerd is the truth; what is kept here is derived and may be forgotten at any time: which
container has which incarnation, when containers were started, which images are there.
The parts: :mod:`.config` (launch to request, pure), :mod:`.report` (answers to ``Found``, pure),
:mod:`.faults` (texts to errors, pure), :mod:`.calls` (short calls in threads), :mod:`.wire` (long
answers on trio), :mod:`.images`, :mod:`.events`, :mod:`.logs`,
:mod:`.streams` (commands in containers).

The path of a launch is two requests, create and start, and a third only where there is something
to learn from it: the address of a container on a network.
"""

import math
import os
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import trio

from swarmctl.agent.drivers.api import (
    DriverEvent,
    Found,
    Health,
    Launch,
    LogChunk,
    NodeLink,
    Owner,
    Phase,
    Progress,
    Terminal,
    resource_name,
)
from swarmctl.agent.drivers.docker import report
from swarmctl.agent.drivers.docker.calls import Calls, Client, Missing, NoImage, Taken
from swarmctl.agent.drivers.docker.config import (
    container_body,
    identity,
    identity_of,
    owner_filter,
    template_of,
)
from swarmctl.agent.drivers.docker.events import pump
from swarmctl.agent.drivers.docker.faults import translate
from swarmctl.agent.drivers.docker.holders import Holders
from swarmctl.agent.drivers.docker.images import Images
from swarmctl.agent.drivers.docker.links import read_links
from swarmctl.agent.drivers.docker.logs import read_logs
from swarmctl.agent.drivers.docker.streams import ExecTerminal
from swarmctl.agent.drivers.docker.wire import DEFAULT_SOCKET, Refusal, parse_endpoint, request
from swarmctl.agent.drivers.outlet import open_outlet
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import Conflict, LaunchFailed, NotFound, SwarmError
from swarmctl.proto.limits import LAUNCHES_DOCKER

# Spelt here because DockerDriver.list hides the builtin in its class.
Rows: TypeAlias = list[dict[str, Any]]
Ids: TypeAlias = list[str]
# The health check's answer must come within 3 s whatever dockerd does.
PROBE_S: Final = 2.5
# Threads for probes alone, so that one is free when all others hang.
PROBE_THREADS: Final = 2
# Create and start: 0.1 s each on an idle machine; a loaded disk makes them take many seconds.
CREATE_S: Final = 60.0
START_S: Final = 60.0
# Past the grace period: the time that dockerd takes to kill.
STOP_MARGIN_S: Final = 30.0
# Stops mostly wait for a grace period, and threads that wait cost little.
STOP_THREADS: Final = 32
# Removing unmounts and deletes; big writable layers take long.
REMOVE_S: Final = 60.0
# Threads beside those for launches: removes, lists, inspects of an agent that is busy launching.
SPARE_THREADS: Final = 8
# Asking for all containers, or for one.
LIST_S: Final = 30.0
INSPECT_S: Final = 20.0
# Inspects done by one thread before another takes over; a node's worth in a few threads.
INSPECTS_A_CALL: Final = 32
# Between looks at something that dockerd is about to finish.
SETTLE_PAUSE_S: Final = 0.05
# What dockerd says of a container that it was starting when it was killed: containerd or runc have
# begun with that id, dockerd does not know, and none of them ends it. (A port is another matter:
# that is an *address* already in use.)
STALE_START: Final = re.compile(r"already exists|\bid already in use|/moby/\w+: file exists")


class DockerDriver:
    """An owner's containers on one dockerd.

    Args:
        owner: whose containers.
        base_url: dockerd's address; ``DOCKER_HOST`` or its usual socket when empty.
        concurrency: how many launches an agent should have under way.
        now: the clock, epoch seconds.

    Raises:
        InvalidSpec: ``base_url`` is no address.
    """

    name = "docker"

    def __init__(
        self,
        owner: Owner,
        base_url: str = "",
        *,
        concurrency: int = LAUNCHES_DOCKER,
        now: Callable[[], float] = time.time,
    ) -> None:
        url = base_url or os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET
        self.owner = owner
        self.concurrency = concurrency
        self._now = now
        self._endpoint = parse_endpoint(url)
        self._calls = Calls(self._endpoint, concurrency + SPARE_THREADS)
        self._images = Images(self._calls, self._endpoint)
        self.places = Holders(owner, self._calls)
        self._probes = trio.CapacityLimiter(PROBE_THREADS)
        self._stops = trio.CapacityLimiter(STOP_THREADS)
        self._ids: dict[int, str] = {}
        self._seen: dict[str, Found] = {}

    async def network_namespace(self, incarnation: int) -> str:
        """See :class:`swarmctl.agent.drivers.api.Enclosing`: it is its holder's."""
        return await self.places.namespace_of(incarnation)

    def close(self) -> None:
        """Close idle connections; the driver can still be used."""
        self._calls.close()

    async def probe(self) -> Health:
        """Ask dockerd how it is; within 3 s, also when it hangs."""
        try:
            info = await self._calls.run(
                lambda client: client.info(),
                where="docker",
                doing="answer",
                deadline_s=PROBE_S,
                limiter=self._probes,
            )
        except (SwarmError, Missing, Taken) as error:
            return Health(available=False, reason=str(error))
        return Health(
            available=True,
            version=str(info.get("ServerVersion", "")),
            facts={
                "storage": str(info.get("Driver", "")),
                "cgroup_version": str(info.get("CgroupVersion", "")),
                "runtime": str(info.get("DefaultRuntime", "")),
                "containers": str(info.get("Containers", "")),
            },
        )

    async def prepare(self, launch: Launch, progress: Progress) -> None:
        """Get the image onto the node, unless it is there. Errors: :meth:`Images.ensure`."""
        await self._images.ensure(_spec_image(launch), launch.instance, progress)

    async def create(self, launch: Launch) -> str:
        """Make the container; the id of the one that is there when this is a repetition.

        Raises:
            UserError: the spec cannot work.
            LaunchFailed: dockerd refuses, or another container has the name.
            DriverUnavailable: dockerd does not answer.
        """
        name = resource_name(self.owner, launch)
        body = container_body(self.owner, launch)
        pulled = False
        give_up_at = trio.current_time() + CREATE_S
        while True:
            try:
                answer = await self._calls.run(
                    lambda client: client.create_container_from_config(body, name),
                    where=launch.instance,
                    doing="create it",
                    deadline_s=CREATE_S,
                )
            except NoImage as error:
                if pulled:
                    raise translate(404, str(error), launch.instance, "create it") from None
                # Someone removed the image since we saw it.
                pulled = True
                self._images.forget(_spec_image(launch))
                await self.prepare(launch, _no_progress)
            except Missing as error:
                raise translate(404, error.text, launch.instance, "create it") from None
            except Taken as error:
                present = await self._adopt(name, launch)
                if present is not None:
                    return present
                # The name is taken by a create, or freed by a removal, that has yet to end.
                if trio.current_time() > give_up_at:
                    raise translate(409, error.text, launch.instance, "create it") from None
                await trio.sleep(SETTLE_PAUSE_S)
            else:
                container_id = self._ids[launch.incarnation] = str(answer["Id"])
                return container_id

    async def start(self, launch: Launch) -> Found:
        """Start the container, also again after its end.

        Raises:
            UserError: the command, user or such does not exist in the image.
            NotFound: there is no such container.
            LaunchFailed: a host port is in use, or dockerd fails otherwise.
            DriverUnavailable: dockerd does not answer.
        """
        name = resource_name(self.owner, launch)
        try:
            await self._start(name, launch)
        except LaunchFailed as error:
            if not STALE_START.search(error.what):
                raise
            # dockerd died while it started this container, and cannot start it ever again.
            await self._remove(name, launch.instance)
            await self.create(launch)
            await self._start(name, launch)
        started_at = self._now()
        container_id = self._ids.get(launch.incarnation)
        if container_id is not None:
            self._seen.pop(container_id, None)
        assert launch.template.container is not None
        spec = launch.template.container
        if container_id is not None and (spec.network == "none" or launch.attachments):
            return report.found_of_start(launch, container_id, started_at)
        try:
            info = await self._inspect(name, launch.instance)
        except Missing as error:
            raise _missing_at_start(error, launch) from None
        self._ids[launch.incarnation] = info["Id"]
        return report.found_of_inspect(info, identity(self.owner, launch))

    async def _start(self, name: str, launch: Launch) -> None:
        try:
            await self._calls.run(
                lambda client: client.start(name),
                where=launch.instance,
                doing="start it",
                deadline_s=START_S,
            )
        except Missing as error:
            raise _missing_at_start(error, launch) from None
        except Taken as error:
            raise translate(409, error.text, launch.instance, "start it") from None

    async def stop(self, incarnation: int, grace_s: float) -> None:
        """Stop signal, ``grace_s`` (rounded up to seconds), SIGKILL; done when it has ended."""
        where = incarnations.label(incarnation)
        for container_id in await self._locate(incarnation):
            await self._stop(container_id, where, math.ceil(grace_s))

    async def _stop(self, container_id: str, where: str, seconds: int) -> None:
        try:
            await self._calls.run(
                lambda client: client.stop(container_id, timeout=seconds),
                where=where,
                doing="stop it",
                deadline_s=seconds + STOP_MARGIN_S,
                limiter=self._stops,
            )
        except Missing:
            pass  # gone is stopped
        except Taken:
            await self._await_gone(container_id)  # it is being removed

    async def remove(self, incarnation: int) -> None:
        """Remove the container by force, with its anonymous volumes."""
        for container_id in await self._locate(incarnation):
            await self._remove(container_id, incarnations.label(incarnation))
        self._ids.pop(incarnation, None)

    async def _remove(self, container_id: str, where: str) -> None:
        try:
            await self._calls.run(
                lambda client: client.remove_container(container_id, v=True, force=True),
                where=where,
                doing="remove it",
                deadline_s=REMOVE_S,
            )
        except Missing:
            pass  # gone is removed
        except Taken:
            await self._await_gone(container_id)
        self._seen.pop(container_id, None)

    async def list(self) -> list[Found]:
        """All of the owner's containers: one request, and one for each that changed since."""
        rows = {row["Id"]: row for row in await self._rows(None)}
        self._seen = {key: found for key, found in self._seen.items() if key in rows}
        found = {key: report.found_of_row(row) for key, row in rows.items()}
        changed = [
            key
            for key, one in found.items()
            if one is not None
            and one.phase is not Phase.CREATED
            and (key not in self._seen or self._seen[key].phase is not one.phase)
        ]
        await self._learn(changed)
        # What was inspected is newer than its row: dockerd tells an end before its list has it.
        found |= {key: one for key, one in self._seen.items() if key in found}
        ours = [one for one in found.values() if one is not None]
        self._ids = {one.incarnation: one.runtime_id for one in ours}
        return ours

    @asynccontextmanager
    async def events(self) -> AsyncGenerator[trio.MemoryReceiveChannel[DriverEvent], None]:
        """The owner's containers' events; see :mod:`.events`."""
        with open_outlet(self._now) as (outlet, channel):
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    pump, self._endpoint, self.owner, outlet, self._now, self._forget
                )
                yield channel
                nursery.cancel_scope.cancel()

    async def logs(
        self, incarnation: int, *, follow: bool, tail: int | None, timestamps: bool
    ) -> AsyncGenerator[LogChunk, None]:
        """Output so far, and what comes; see :class:`swarmctl.agent.drivers.api.Logs`."""
        container_id, where = await self._locate_one(incarnation)
        try:
            info = await self._inspect(container_id, where)
        except Missing as error:
            raise NotFound("it is not there", where) from error
        chunks = read_logs(
            self._endpoint,
            container_id,
            where,
            tty=bool(info["Config"].get("Tty")),
            follow=follow,
            tail=tail,
            timestamps=timestamps,
        )
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            with trio.CancelScope(shield=True):  # closing a socket waits for nothing
                await chunks.aclose()

    @asynccontextmanager
    async def exec(
        self, incarnation: int, command: tuple[str, ...], *, tty: bool, stdin: bool
    ) -> AsyncGenerator[Terminal, None]:
        """Run ``command`` in the container.

        Leaving closes its input and output; Docker has no way to end a command that goes on.

        Raises:
            NotFound: there is no such container.
            Conflict: it does not run.
        """
        container_id, where = await self._locate_one(incarnation)
        try:
            made = await self._calls.run(
                lambda client: client.exec_create(
                    container_id, list(command), stdin=stdin, tty=tty
                ),
                where=where,
                doing="run a command in it",
                deadline_s=INSPECT_S,
            )
        except Missing as error:
            raise NotFound("it is not there", where) from error
        except Taken as error:
            raise Conflict("it does not run", where, "start it first") from error
        body = {"Detach": False, "Tty": tty}
        try:
            async with request(
                self._endpoint, "POST", f"/exec/{made['Id']}/start", body=body, upgrade=True
            ) as answer:
                yield ExecTerminal(self._calls, answer, made["Id"], where, tty=tty)
        except Refusal as refusal:
            raise translate(refusal.status, refusal.text, where, "run a command in it") from None

    async def links(self, incarnation: int) -> tuple[NodeLink, ...]:
        """Its interfaces on Docker's own networks; see :mod:`.links`."""
        return await read_links(self._calls, *await self._locate_one(incarnation))

    # --- finding containers -------------------------------------------------------------------

    async def _locate(self, incarnation: int) -> tuple[str, ...]:
        """The ids of the containers of ``incarnation``: none, or one."""
        known = self._ids.get(incarnation)
        if known is not None:
            return (known,)
        return tuple(row["Id"] for row in await self._rows(incarnation))

    async def _locate_one(self, incarnation: int) -> tuple[str, str]:
        where = incarnations.label(incarnation)
        for container_id in await self._locate(incarnation):
            return container_id, where
        raise NotFound("it is not there", where)

    async def _rows(self, incarnation: int | None) -> Rows:
        filters = {"label": owner_filter(self.owner, incarnation)}
        try:
            return await self._calls.run(
                lambda client: client.containers(all=True, filters=filters),
                where="docker",
                doing="list containers",
                deadline_s=LIST_S,
            )
        except (Missing, Taken) as error:
            raise LaunchFailed(f"Docker could not list containers: {error.text}") from None

    async def _inspect(self, container: str, where: str) -> dict[str, Any]:
        return await self._calls.run(
            lambda client: client.inspect_container(container),
            where=where,
            doing="inspect it",
            deadline_s=INSPECT_S,
        )

    async def _adopt(self, name: str, launch: Launch) -> str | None:
        """The id of the container that has our name; None when nothing has it any more.

        Raises:
            LaunchFailed: it is not of this instance.
        """
        try:
            info = await self._inspect(name, launch.instance)
        except Missing:
            return None
        if identity_of(info["Config"]["Labels"] or {}) != identity(self.owner, launch):
            raise LaunchFailed(
                f"container {name} is there already and is not of this instance",
                launch.instance,
                "remove or rename that container",
            )
        if info["State"]["Status"] in ("removing", "dead"):
            await self._await_gone(info["Id"])
            return None
        container_id = self._ids[launch.incarnation] = str(info["Id"])
        return container_id

    async def _await_gone(self, container_id: str) -> None:
        """Wait until a removal that someone else began has ended."""
        with trio.move_on_after(REMOVE_S):
            while True:
                try:
                    await self._inspect(container_id, container_id[:12])
                except Missing:
                    return
                await trio.sleep(SETTLE_PAUSE_S)
        raise LaunchFailed(f"Docker did not remove it within {REMOVE_S:g} s", container_id[:12])

    async def _learn(self, container_ids: Ids) -> None:
        """Inspect each, many a call; what vanished meanwhile is left out."""
        limiter = trio.CapacityLimiter(SPARE_THREADS // 2)

        async def learn(batch: Ids) -> None:
            self._seen |= await self._calls.run(
                lambda client: _inspect_all(client, batch),
                where="docker",
                doing="inspect containers",
                deadline_s=LIST_S,
                limiter=limiter,
            )

        async with trio.open_nursery() as nursery:
            for first in range(0, len(container_ids), INSPECTS_A_CALL):
                nursery.start_soon(learn, container_ids[first : first + INSPECTS_A_CALL])

    def _forget(self, container_id: str) -> None:
        self._seen.pop(container_id, None)


def _inspect_all(client: Client, container_ids: list[str]) -> dict[str, Found]:
    from docker.errors import NotFound as Gone

    found = {}
    for container_id in container_ids:
        try:
            info = client.inspect_container(container_id)
        except Gone:
            continue
        its = identity_of(info["Config"]["Labels"] or {})
        assert its is not None, "only our own are inspected"
        found[container_id] = report.found_of_inspect(info, its, template_of(info["Config"]))
    return found


def _missing_at_start(error: Missing, launch: Launch) -> SwarmError:
    """404 at a start: the container is not there, or something that it needs is not."""
    if "no such container" in error.text.lower():
        return NotFound("it was not created, or is removed", launch.instance)
    return translate(404, error.text, launch.instance, "start it")


def _spec_image(launch: Launch) -> str:
    assert launch.template.container is not None, "the docker driver makes containers"
    return launch.template.container.image


def _no_progress(_: str) -> None:
    """Nobody watches a pull within a create."""
