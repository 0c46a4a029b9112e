"""The libvirt driver: one persistent domain for each instance.

Theory of operation.  Domains are *defined* and then started, not created on the fly: when one
ends behind our back, or while no agent runs, its definition stays and says that it ended and why.
Its UUID is computed from (cluster, node, incarnation), so a repeated define updates the domain of
the first one and nothing can be made twice.  Names, files and UUID follow from the incarnation
(:mod:`.identity`), the meaning of states from a table (:mod:`.states`), the XML from the spec
(:mod:`.domain_xml`); this module only puts them in order.

Two connections: libvirtd serves five calls of one connection at a time, and a launch or a
``destroy`` takes a second or more.  So these have one for themselves, and every quick question
(``list``, ``probe``, what the host has, how a domain is) goes over the other, with the events and
the consoles; asked over the first, it would wait for the launches of others.

``stop`` presses the power button until the guest has gone or the grace has passed, and then
destroys the domain.  Its end is seen by event, and looked up now and then in case one was missed.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio
from attrs import evolve

from swarmctl.agent.drivers.api import (
    DriverEvent,
    Found,
    Health,
    Launch,
    LogChunk,
    NodeLink,
    Owner,
    Progress,
    Terminal,
)
from swarmctl.agent.drivers.libvirt import (
    cards,
    domain_xml,
    domains,
    hypervisor,
    identity,
    logs,
    states,
)
from swarmctl.agent.drivers.libvirt.connection import Connection, Lifecycle, load
from swarmctl.agent.drivers.libvirt.console import attach
from swarmctl.agent.drivers.libvirt.events import EndWatch, EventStream
from swarmctl.agent.drivers.libvirt.host import Facts, Host
from swarmctl.agent.drivers.libvirt.inventory import Inventory
from swarmctl.agent.drivers.libvirt.preparation import Workshop
from swarmctl.agent.drivers.libvirt.taps import Taps
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto import limits
from swarmctl.proto.errors import NotFound, SwarmError

DEFAULT_URI: Final = "qemu:///system"
# An agent asks often and must not wait for a daemon that hangs.
PROBE_TIMEOUT_S: Final = 3.0
# Lists, probes and consoles at once; libvirtd serves five calls of a connection.
QUERIES: Final = 4
# An agent that lives answers at once; those that do not must not keep other questions waiting.
GUEST_PING_S: Final = 2
GUEST_PINGS: Final = 2
# A guest that is still booting ignores its power button, so it is pressed again.
POWER_BUTTON_EVERY_S: Final = 3.0


class LibvirtDriver:
    """Starts instances as virtual machines.

    Args:
        owner: whose domains these are.
        folder: where disks, seeds and console logs are kept; made when missing.
        images: where relative image paths in specs begin; None refuses those.
        uri: libvirt's address.
        kvm_node: the KVM device whose use is proved before it is trusted.
    """

    name = "libvirt"
    concurrency = limits.LAUNCHES_LIBVIRT

    def __init__(
        self,
        owner: Owner,
        folder: Path,
        *,
        images: Path | None = None,
        uri: str = DEFAULT_URI,
        kvm_node: Path = hypervisor.KVM_NODE,
    ) -> None:
        self._owner = owner
        self.places = Taps(owner)
        self._places = identity.Places(folder.absolute() / owner.cluster_id / owner.node)
        self._host = Host(hypervisor.Decision(kvm_node))
        self._workshop = Workshop(owner, self._places, images, self._host)
        self._launches = Connection(uri, threads=self.concurrency)
        self._queries = Connection(uri, threads=QUERIES, with_events=True)
        self._inventory = Inventory(owner, self._places, self._host)
        self._queries.listen(self._inventory.note)
        # Handles of domains defined and not yet started: each saves a lookup, any may be lost.
        self._defined: dict[int, Any] = {}
        self._pings = trio.CapacityLimiter(GUEST_PINGS)

    async def aclose(self) -> None:
        """Let go of libvirtd. Instances run on."""
        await self._launches.aclose()
        await self._queries.aclose()

    # --- health ---------------------------------------------------------------------------

    async def probe(self) -> Health:
        """Ask libvirtd how it is, within :data:`PROBE_TIMEOUT_S`; never raises for it."""
        try:
            with trio.fail_after(PROBE_TIMEOUT_S):
                await trio.to_thread.run_sync(self._host.decision.verdict, abandon_on_cancel=True)
                return await self._queries.call(self._healthy)
        except trio.TooSlowError:
            reason = f"libvirtd does not answer within {PROBE_TIMEOUT_S:g} s"
        except SwarmError as error:
            reason = str(error)
        verdict = self._host.decision.known()
        if verdict is not None and verdict.broken_node:
            reason += f"; {verdict.reason}, and libvirt may hang on that: move the node aside"
        return Health(available=False, reason=reason)

    def _healthy(self, conn: Any) -> Health:
        conn.getVersion()  # asked each time: this is what hangs where libvirt probes KVM anew
        facts = self._host.facts(conn)
        problem = self._host.default_network_problem(conn)
        return Health(available=True, version=facts.libvirt_version, facts=_facts(facts, problem))

    # --- life of an instance --------------------------------------------------------------

    async def prepare(self, launch: Launch, progress: Progress) -> None:
        """Check the spec, make the disk and the seed. Repeatable."""
        if launch.template.vm is not None and launch.template.vm.disk is not None:
            progress(f"making a disk from {launch.template.vm.disk.image}")
        notes = await self._launches.call(
            lambda conn: self._workshop.prepare(conn, launch), launch.instance
        )
        for note in notes:
            progress(note)

    async def create(self, launch: Launch) -> str:
        """Define the domain; its UUID. Repeatable."""
        machine = await self._queries.call(
            lambda conn: self._workshop.machine(conn, launch), launch.instance
        )
        if launch.attachments:
            ports, offload = self.places.ports(launch), self.places.offload
            machine = evolve(machine, ports=ports, offload=offload)
        xml = domain_xml.build(self._owner, launch, machine)
        return await self._launches.call(
            lambda conn: self._define(conn, xml, launch.incarnation), launch.instance
        )

    def _define(self, conn: Any, xml: str, incarnation: int) -> str:
        domain = conn.defineXML(xml)
        self._defined[incarnation] = domain
        return str(domain.UUIDString())

    async def start(self, launch: Launch) -> Found:
        """Start the domain (again); as it is right after that."""
        await self._queries.ensure_open()  # else its end might go unseen
        await self._launches.call(
            lambda conn: self._start(conn, launch.incarnation), launch.instance
        )
        uuid = self._uuid(launch.incarnation)
        return await self._queries.call(
            lambda conn: self._inventory.one(conn.lookupByUUIDString(uuid), launch),
            launch.instance,
        )

    def _start(self, conn: Any, incarnation: int) -> None:
        libvirt = load()
        uuid = self._uuid(incarnation)
        domain = self._defined.pop(incarnation, None)
        if domain is None or domain.connect() is not conn:
            domain = conn.lookupByUUIDString(uuid)
        try:
            domain.create()
        except libvirt.libvirtError as error:
            running = error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID
            if not (running and domain.isActive()):
                raise
        else:
            self._inventory.note_started(uuid)
            self._places.started_mark(incarnation).touch()

    async def stop(self, incarnation: int, grace_s: float) -> None:
        """Press the power button, and destroy the domain when the grace has passed."""
        uuid, where = self._uuid(incarnation), incarnations.label(incarnation)
        async with self._watching(uuid) as watch:
            if not await self._launches.call(lambda conn: domains.is_active(conn, uuid), where):
                return
            with trio.move_on_after(grace_s) as grace:
                await self._press_power_button(uuid, where, watch)
            if grace.cancelled_caught:
                await self._launches.call(lambda conn: domains.destroy(conn, uuid), where)
        self._inventory.note_stopped(uuid)

    async def _press_power_button(self, uuid: str, where: str, watch: EndWatch) -> None:
        """Returns once the domain has ended."""
        while await self._launches.call(lambda conn: domains.press_power_button(conn, uuid), where):
            with trio.move_on_after(POWER_BUTTON_EVERY_S):
                await watch.wait()

    @asynccontextmanager
    async def _watching(self, uuid: str) -> AsyncIterator[EndWatch]:
        await self._queries.ensure_open()
        watch = EndWatch(uuid)
        with self._queries.listening(watch.heard):
            yield watch

    async def remove(self, incarnation: int) -> None:
        """End the domain by force, undefine it, and remove its files. Repeatable."""
        uuid, where = self._uuid(incarnation), incarnations.label(incarnation)

        def everything(conn: Any) -> None:
            domains.destroy(conn, uuid)
            domains.undefine(conn, uuid)
            self._workshop.discard(incarnation)

        await self._launches.call(everything, where)
        self._inventory.forget(uuid)
        self._defined.pop(incarnation, None)

    async def ping_guest(self, incarnation: int) -> None:
        """Ask the guest's own agent; see :class:`swarmctl.agent.drivers.api.GuestAgent`."""
        uuid, where = self._uuid(incarnation), incarnations.label(incarnation)
        async with self._pings:
            await self._queries.call(
                lambda conn: domains.ping_guest(conn, uuid, GUEST_PING_S), where
            )

    async def links(self, incarnation: int) -> tuple[NodeLink, ...]:
        """Its network cards on libvirt's own networks; see :mod:`.cards`."""
        uuid, where = self._uuid(incarnation), incarnations.label(incarnation)
        return await self._queries.call(lambda conn: cards.read_links(conn, uuid, where), where)

    # --- what there is --------------------------------------------------------------------

    async def list(self) -> list[Found]:
        """All domains of this owner."""
        return await self._queries.call(self._inventory.all)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[trio.MemoryReceiveChannel[DriverEvent]]:
        """Lifecycle events of this owner's domains; ``RESYNC`` after a gap."""
        stream = EventStream(self._queries, self._translate)
        async with stream.open() as receive:
            yield receive

    def _translate(self, event: Lifecycle) -> DriverEvent | None:
        incarnation = identity.incarnation_of(self._owner, event.name, event.uuid)
        if incarnation is None:
            return None
        return states.driver_event(incarnation, event.event, event.detail, event.at)

    # --- output and console ---------------------------------------------------------------

    async def logs(
        self, incarnation: int, *, follow: bool, tail: int | None, timestamps: bool
    ) -> AsyncIterator[LogChunk]:
        """What the serial console printed; see :mod:`.logs` for what its times mean."""
        uuid, where = self._uuid(incarnation), incarnations.label(incarnation)
        path = self._places.console_log(incarnation)
        if not path.parent.is_dir():
            raise NotFound("no such instance on this node", where)
        is_active, asked = True, False
        async with self._watching(uuid) as watch:

            async def has_ended() -> bool:
                """Asks libvirt at first, and again only when something happened."""
                nonlocal asked, is_active
                if watch.take() or not asked:
                    asked = True
                    is_active = await self._queries.call(
                        lambda conn: domains.is_active(conn, uuid), where
                    )
                return not is_active

            chunks = logs.read(
                path, follow=follow, tail=tail, timestamps=timestamps, has_ended=has_ended
            )
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    @asynccontextmanager
    async def console(self, incarnation: int) -> AsyncIterator[Terminal]:
        """Attach to the serial console, one at a time; leaving detaches."""
        label = incarnations.label(incarnation)
        async with attach(self._queries, self._uuid(incarnation), label) as terminal:
            yield terminal

    def _uuid(self, incarnation: int) -> str:
        return identity.domain_uuid(self._owner, incarnation)


def _facts(facts: Facts, network_problem: str) -> dict[str, str]:
    account = facts.account
    return {
        "qemu": facts.qemu_version,
        "hypervisor": "kvm" if facts.domain_type == "kvm" else "tcg",
        "hypervisor_reason": facts.domain_type_reason,
        "network": network_problem or "default",
        "firmware": "bios, uefi" if facts.has_uefi else "bios",
        "cpu_limit": "yes" if facts.can_limit_cpu else "no: no cpu controller for libvirt",
        "qemu_user": f"uid {account.uid}" if account is not None else "the agent's",
        "default_memory": f"{domain_xml.DEFAULT_MEMORY_BYTES >> 20} MiB",
    }
