"""Keeps OVN's northbound database as the cluster wants it: the ports' side of reconciling.

A *round* computes the rows that should be there, compares them with those that were found, and
writes the difference in transactions of some hundreds.  Rounds are woken by changes
(:meth:`Plane.wake`), rest as long as they worked, and work in a thread: a launch is not slower for
them.  After a start, a new connection or an error all rows are read anew, so whatever went wrong
in between is mended by the next comparison.

Nothing waits for this, but one thing: after a takeover no address is given before the rows were
read or all nodes have reported, since either tells which are taken.  When the database does not
answer, or refuses, that is a condition (:attr:`Plane.fault`, and since when): networks show it, the
log says it, and the rounds go on trying.
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
import trio

from swarmctl.controller import floating, records, serviceaddresses, uplinks
from swarmctl.controller.networks import NetworkKey
from swarmctl.controller.store.api import Delete, Op, Put
from swarmctl.controller.subports import is_subport
from swarmctl.net import relays
from swarmctl.net.diff import Operation, difference, transactions
from swarmctl.net.draft import switch_key
from swarmctl.net.locations import NORTHBOUND_NONE
from swarmctl.net.model import PortWish, Relay, Wishes
from swarmctl.net.names import parse_port_name
from swarmctl.net.northbound import Northbound
from swarmctl.net.ovn import OvnNorthbound
from swarmctl.net.rows import desired_rows
from swarmctl.net.schema import OUR_PREFIX, Row
from swarmctl.net.tls import Credentials
from swarmctl.proto.errors import (
    Conflict,
    EnvironmentFault,
    InternalError,
    StaleTerm,
    SwarmError,
)

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")
OpenNorthbound = Callable[[str, str], AbstractAsyncContextManager[Northbound]]

# Rows of one transaction: small enough that a northbound which serves others stays fluent.
_ROWS_MAX: Final = 500
# Ports and rows that are compared on the spot, in some milliseconds; more go to a thread.
_AT_ONCE_MAX: Final = 300
# Changes that come together make one round.
_GATHER_S: Final = 0.02
# A round that took longer than this is not waited out in full: addresses are to become free.
_REST_MAX_S: Final = 1.0
# A database that refused or did not answer is asked again after this.
_RETRY_S: Final = 1.0
# While some ports wait for nodes to report, they are looked at so often.
_LOOK_AGAIN_S: Final = 1.0


async def address_of(cluster: "Cluster", given: str) -> str:
    """Where the northbound database is: as ``given`` now, else as it was given before.

    Raises:
        StorageFault: it cannot be kept.
    """
    kept = (await cluster.store.read(records.OVN)).get(records.OVN, b"").decode(errors="replace")
    if not given or given == kept:
        return kept
    op: Op = Delete(records.OVN) if given == NORTHBOUND_NONE else Put(records.OVN, given.encode())
    await cluster.store.commit([op])
    return "" if given == NORTHBOUND_NONE else given


def _compare(
    cluster_id: str, wishes: Wishes, found: Mapping[str, Row]
) -> tuple[dict[str, Row], list[Operation]]:
    """The rows that should be, and what makes them so."""
    wanted = desired_rows(cluster_id, wishes)
    return wanted, difference(found, wanted)


async def _now(compare: Callable[[], _T]) -> _T:
    await trio.lowlevel.checkpoint()
    return compare()


@asynccontextmanager
async def open_ovn(
    address: str, cluster_id: str, credentials: Credentials | None = None
) -> AsyncGenerator[Northbound, None]:
    """A connection to a real database; ``address`` may name several servers, with commas."""
    northbound = OvnNorthbound(address.split(","), cluster_id, credentials)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(northbound.run)
        yield northbound
        nursery.cancel_scope.cancel()


class Plane:
    """See the module's docstring.

    Attributes:
        address: where the database is; empty without one.
        fault: what is wrong with it now, in words; empty when nothing is.
        fault_since: since when, in epoch seconds.
        open_northbound: opens a connection of (address, cluster id), which need not be there yet;
            simulations put their own in place.
    """

    def __init__(self, cluster: "Cluster") -> None:
        self.address = ""
        self.fault = ""
        self.fault_since = 0.0
        self.open_northbound: OpenNorthbound = open_ovn
        self._cluster = cluster
        self._ports = cluster.state.ports
        self._ports.changed = self.wake
        self._woken = trio.Event()
        self._connections = 0
        self._gateways: set[str] = set()
        self._found: Mapping[str, Row] | None = None
        self._told: Mapping[str, Row] = {}

    def wake(self) -> None:
        """There may be something to write."""
        self._woken.set()

    # --- views -------------------------------------------------------------------------------

    def standing(self, key: NetworkKey) -> tuple[str, str, float]:
        """How OVN and a network stand: a state, why, and since when."""
        if not self.address:
            why = (
                "this cluster has no OVN (controller --ovn): the node's own is used in its place,"
                " without isolation, security groups or names"
            )
            return "absent", why, 0.0
        if self.fault:
            return "faulty", self.fault, self.fault_since
        if switch_key(*key) not in self._told:
            return "pending", "OVN is about to be told", 0.0
        if why := uplinks.why_unmapped(self._cluster.state, self._ports.table.get(key)):
            return "faulty", why, 0.0
        return "ready", "", 0.0

    # --- rounds ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Converge until cancelled; without an OVN there is nothing to do."""
        if not self.address:
            return
        self._woken.set()
        cluster_id = self._cluster.state.cluster_id
        async with (
            self.open_northbound(self.address, cluster_id) as northbound,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._watch, northbound)
            while True:
                woken = await self._wait_woken()
                began = trio.current_time()
                try:
                    if woken:
                        await self._round(northbound)
                    else:
                        self._settle_ports()  # Which wakes, if there is anything to tell.
                except (EnvironmentFault, Conflict) as error:
                    self._failed(error)
                    await trio.sleep(_RETRY_S)
                except StaleTerm as error:
                    await self._outvoted(error)
                    await trio.sleep(_RETRY_S)
                except Exception as error:  # noqa: BLE001 - a defect here must not end the controller: instances go on without it, and networks show it
                    _log.exception("a round failed")
                    self._failed(InternalError(f"{type(error).__name__}: {error}"))
                    await trio.sleep(_RETRY_S)
                else:
                    self._succeeded()
                    await trio.sleep(min(_REST_MAX_S, trio.current_time() - began))

    async def _wait_woken(self) -> bool:
        """False when only the ports are to be looked at that wait for nodes."""
        waits = self._ports.unclaimed or self._ports.is_late
        with trio.move_on_after(_LOOK_AGAIN_S if waits else float("inf")):
            await self._woken.wait()
        if not self._woken.is_set():
            return False
        await trio.sleep(_GATHER_S)
        self._woken = trio.Event()
        return True

    async def _watch(self, northbound: Northbound) -> None:
        """After a new connection it may be another database."""
        while True:
            self._connections = await northbound.wait_connected(self._connections)
            self._found = None
            self.wake()

    async def _round(self, northbound: Northbound) -> None:
        if self._cluster.hold:
            self._woken.set()  # Looked at again in a moment: a released hold wakes nobody.
            await trio.sleep(_RETRY_S)
            return
        connections = self._connections
        found = self._found
        if found is None:
            await northbound.take_term(self._cluster.state.term)
            found = await northbound.read()
            self._learn(found)
        self._settle_ports()
        untold = self._ports.untold()
        wishes = self._wishes()
        unknown = self._unknown_networks()
        aside = {key: row for key, row in found.items() if is_of(row, unknown)} if unknown else {}
        if aside:
            found = {key: row for key, row in found.items() if key not in aside}
        compare = partial(_compare, self._cluster.state.cluster_id, wishes, found)
        many = len(wishes.ports) + len(found) > _AT_ONCE_MAX
        wanted, operations = await (trio.to_thread.run_sync(compare) if many else _now(compare))
        # Whatever of it fails, what is there then has to be read.
        self._found = None
        for part in transactions(operations, _ROWS_MAX):
            await northbound.apply(part)
        self._told = wanted
        if connections == self._connections:
            self._found = {**aside, **wanted} if aside else wanted
        if operations:
            _log.info("OVN told", operations=len(operations), ports=len(wishes.ports))
        told = serviceaddresses.told_of(wishes) | floating.told_of(self._cluster.state, wishes)
        freed = serviceaddresses.free_unused(self._cluster.state, told)
        if self._ports.told(*untold) or freed:
            self._cluster.state.capacity_changed = True
            self._cluster.wake()
        self._cluster.announce()

    def _wishes(self) -> Wishes:
        table, state = self._ports.table, self._cluster.state
        uplink = uplinks.wish(state, self._gateways)
        return Wishes(
            networks=tuple(one.network for one in table.records.values()),
            groups=tuple(one.group for one in table.groups.values()),
            ports=tuple(self._ports.wishes.values()),
            services=(*serviceaddresses.wishes(state), *floating.balanced(state)),
            floating=tuple(floating.translated(state)),
            uplink=uplink,
            routers=tuple(uplinks.routers(state)) if uplink is not None else (),
            relays=tuple(self._relays()),
        )

    def _relays(self) -> Iterator[Relay]:
        """Where agents in VMs reach a controller: on each network that trunks are on."""
        state = self._cluster.state
        trunks: set[NetworkKey] = set()
        for service in state.services.values():
            template = service.record.spec.template
            if template.vm is not None and template.vm.trunk and template.networks:
                trunks.add((service.key[0], template.networks[0].network))
        for tenant, network in sorted(trunks & self._ports.table.records.keys()):
            yield relays.wish(state.cluster_id, f"{tenant}/{network}")

    def _unknown_networks(self) -> set[str]:
        """Networks that instances are on and the store does not know: it may have been restored.

        Unknown is not unwanted (DESIGN 8.5): what OVN has of them is left as it is.
        """
        known = self._ports.table.records.keys()
        here = {(one.tenant, one.network) for one in self._ports.wishes.values()}
        return {"/".join(key) for key in here - known}

    def _settle_ports(self) -> None:
        if self._cluster.hold:
            return
        self._ports.adopt_late()
        nodes = self._cluster.state.nodes.values()
        if self._ports.unclaimed and all(node.reported for node in nodes):
            names = {self._ports.wishes[port].instance for port in self._ports.unclaimed}
            for instance in self._cluster.state.all_instances():
                if instance.name in names:
                    self._ports.claim(instance)
            self._ports.drop_unclaimed()

    def _learn(self, found: Mapping[str, Row]) -> None:
        """Ports of which no node has told yet keep what they have; so do gateways."""
        self._gateways = uplinks.chassis_of(found.values())
        for row in found.values():
            wish = port_of(self._cluster.state.cluster_id, row)
            if wish is not None:
                service = self._cluster.state.services.get((wish.tenant, wish.service))
                self._ports.find(self._ports.completed(wish, service))
        if not self._ports.known:
            self._ports.known = True
            self._cluster.state.capacity_changed = True
            self._cluster.wake()

    # --- what goes wrong ---------------------------------------------------------------------

    def _failed(self, error: SwarmError) -> None:
        self._found = None
        self._woken.set()
        if self.fault != error.what:
            _log.error("OVN cannot be told", error=str(error))
        if not self.fault:
            self.fault_since = self._cluster.wall()
        self.fault = error.what
        self._cluster.announce()

    def _succeeded(self) -> None:
        if self.fault:
            _log.info("OVN is told again", after_s=round(self._cluster.wall() - self.fault_since))
        self.fault, self.fault_since = "", 0.0

    async def _outvoted(self, error: StaleTerm) -> None:
        """The database has seen a higher term: is there another controller, says the store?"""
        try:
            await self._cluster.store.commit([])
        except StaleTerm as deposed:
            self._cluster.deposed = deposed
            self._cluster.wake()
        except EnvironmentFault as fault:
            _log.warning("the store cannot say whether our term holds", error=str(fault))
        self._failed(error)


def is_of(row: Row, networks: set[str]) -> bool:
    """Whether a row is of one of these networks, by its key or its parent's."""
    path = f"/{row.key}/ /{row.parent}/"
    return any(f"/{title}/" in path for title in networks)


def port_of(cluster_id: str, row: Row) -> PortWish | None:
    """The port of an instance that a row of the northbound database is; None for any other."""
    name = row.columns.get("name")
    if row.table != "Logical_Switch_Port" or not isinstance(name, str):
        return None
    switch, _, network = row.parent.partition("/")
    tenant, _, network = network.partition("/")
    notes = row.columns["external_ids"]
    addresses = row.columns["addresses"]
    ours = parse_port_name(cluster_id, name) is not None or is_subport(cluster_id, name)
    if not ours or switch != "switch" or not network:
        return None
    assert isinstance(notes, Mapping), "a map"
    assert isinstance(addresses, frozenset), "a set"
    own = next((text.split() for text in addresses if text != "unknown"), [""])
    service, _, slot = notes.get(f"{OUR_PREFIX}instance", "").rpartition(".")
    parent, tag = row.columns.get("parent_name"), row.columns.get("tag_request")
    return PortWish(
        name,
        tenant,
        network,
        service=service,
        slot=int(slot) if slot.isdecimal() else 0,
        mac=own[0],
        addresses=tuple(own[1:]),
        parent=parent if isinstance(parent, str) else "",
        vlan=tag if isinstance(tag, int) and parent else 0,
    )
