"""The contract of a northbound: what ``net/ovn`` and ``net/memory`` both keep.

A test class gives a ``harness`` fixture: one database, and northbounds of clusters on it.
"""

import random
from abc import ABC, abstractmethod

import pytest
import trio
from attrs import evolve

from swarmctl.net.diff import Change, Delete, Insert, Update, difference, transactions
from swarmctl.net.model import (
    Direction,
    FloatingAddress,
    Provider,
    PublishedPort,
    Relay,
    Remote,
    RemoteKind,
    RouterAddress,
    Rule,
    SecurityGroup,
    ServiceAddress,
    Wishes,
)
from swarmctl.net.rows import desired_rows
from swarmctl.net.schema import row
from swarmctl.proto.errors import Conflict, EnvironmentFault, InternalError, StaleTerm
from tests.unit.net import wishes
from tests.unit.net.wishes import CLUSTER, network, port

DEADLINE_S = 30
OTHER = "0badf00d" * 4


class Harness(ABC):
    """One database; ``nursery`` runs what the northbounds need."""

    @abstractmethod
    async def open(self, cluster_id: str = CLUSTER):
        """A northbound of that cluster."""

    @abstractmethod
    async def go_away(self):
        """The database stops."""

    @abstractmethod
    async def come_back(self):
        """It starts again, with what it had."""


def some_wishes(count=5):
    """Something of everything."""
    rules = (
        Rule(Direction.INGRESS, remote=Remote(RemoteKind.SERVICE, "web")),
        Rule(Direction.EGRESS, remote=Remote(RemoteKind.CIDR, "10.0.0.0/8")),
    )
    ports = tuple(port(number, security_groups=("web",)) for number in range(1, count + 1))
    pod = port(900, service="pod", parent=ports[0].name, vlan=100)
    return Wishes(
        networks=(
            network("acme", "front", "10.20.0.0/16", "fd00::/64"),
            network("acme", "storage", "10.40.0.0/16", provider=Provider("storage", 7)),
            network("zeta", "front"),
            wishes.OUTSIDE,
        ),
        groups=(SecurityGroup("acme", "web", rules),),
        ports=(*ports, pod),
        services=(
            ServiceAddress("acme", "web", "front", "10.20.255.1", (PublishedPort(80, 8080),)),
        ),
        floating=(FloatingAddress("acme", "192.0.2.100", ports[0].name),),
        uplink=wishes.uplink,
        routers=(RouterAddress("acme", "192.0.2.10"),),
        relays=(Relay("acme", "front", "relay-1", "02:00:00:00:00:01", "169.254.0.1"),),
    )


class NorthboundContract:
    """What every northbound does."""

    @pytest.fixture(autouse=True)
    async def deadline(self, nursery):
        """A test that hangs fails."""

        async def expire():
            await trio.sleep(DEADLINE_S)
            raise TimeoutError(f"the test took longer than {DEADLINE_S} s")

        nursery.start_soon(expire)

    @pytest.fixture
    async def northbound(self, harness):
        """One that may write."""
        northbound = await harness.open()
        await northbound.take_term(7)
        return northbound

    async def converge(self, northbound, world, cluster_id=CLUSTER):
        """Make the rows so; what they are then."""
        wanted = desired_rows(cluster_id, world)
        for piece in transactions(difference(await northbound.read(), wanted), 10):
            await northbound.apply(piece)
        return wanted

    async def test_what_was_applied_is_read(self, northbound):
        """Every kind of row and value comes back as it was; nothing is left to do."""
        wanted = await self.converge(northbound, some_wishes())

        assert await northbound.read() == wanted

    async def test_changes_are_applied(self, northbound):
        """From one world to another and to nothing, by differences."""
        world = some_wishes()
        await self.converge(northbound, world)
        smaller = evolve(
            world,
            networks=tuple(evolve(one, mtu=1400, routed=True) for one in world.networks[:2]),
            groups=(SecurityGroup("acme", "web", (Rule(Direction.INGRESS),)),),
            ports=(*world.ports[2:], port(50, network="storage", addresses=("10.40.0.9",))),
            uplink=None,
        )
        wanted = await self.converge(northbound, smaller)

        assert await northbound.read() == wanted
        await self.converge(northbound, Wishes())
        assert await northbound.read() == {}

    async def test_many_changes_come_to_what_is_wanted(self, northbound):
        """Parts of a world that come and go in any order: after each the rows are as wished."""
        draw, world = random.Random(7), some_wishes()

        def some(things):
            return tuple(one for one in things if draw.random() < 0.6)

        for _ in range(15):
            part = evolve(
                world,
                networks=tuple(
                    evolve(one, routed=draw.random() < 0.5, mtu=draw.choice((1400, 1442)))
                    for one in some(world.networks)
                ),
                groups=some(world.groups),
                ports=some(world.ports),
                services=some(world.services),
                floating=some(world.floating),
                uplink=draw.choice((None, wishes.uplink)),
                relays=some(world.relays),
            )
            wanted = await self.converge(northbound, part)
            assert await northbound.read() == wanted

    async def test_a_port_that_moves_keeps_its_groups(self, northbound):
        """Deleted and made anew in one transaction, it is a member as before."""
        world = some_wishes()
        await self.converge(northbound, world)
        moved = evolve(world.ports[1], tenant="acme", network="storage")
        wanted = await self.converge(
            northbound, evolve(world, ports=(world.ports[0], moved, *world.ports[2:]))
        )

        assert await northbound.read() == wanted

    async def test_another_clusters_rows_are_not_seen_nor_touched(self, northbound, harness):
        """Two clusters on one database, with tenants and networks of the same names."""
        other = await harness.open(OTHER)
        await other.take_term(1)
        theirs = await self.converge(other, Wishes(networks=(network(),)), OTHER)
        await self.converge(northbound, some_wishes())
        await self.converge(northbound, Wishes())

        assert await northbound.read() == {}
        assert await other.read() == theirs

    async def test_a_higher_term_ends_the_lower(self, northbound, harness):
        """The controller that was deposed writes nothing, and does not come back."""
        successor = await harness.open()
        await successor.take_term(8)

        with pytest.raises(StaleTerm, match="term 8"):
            await self.converge(northbound, some_wishes())
        with pytest.raises(StaleTerm):
            await northbound.take_term(7)
        assert await successor.read() == {}
        await self.converge(successor, some_wishes())
        await successor.take_term(8)

    async def test_nothing_is_written_without_a_term(self, harness):
        """That would be a defect of ours."""
        northbound = await harness.open()
        with pytest.raises(InternalError, match="without a term"):
            await northbound.apply([])

    async def test_a_transaction_is_done_whole_or_not(self, northbound):
        """What cannot be done takes the rest with it."""
        wanted = await self.converge(northbound, some_wishes())
        new = row(CLUSTER, "DNS", "dns/new", records={"a.acme": "10.20.0.9"})
        impossible = [
            Insert(wanted["switch/acme/front"]),
            Update("DNS", "dns/gone", {"records": {}}),
            Change("Port_Group", "group/gone", "ports", frozenset(), frozenset()),
        ]
        for operation in impossible:
            with pytest.raises(Conflict):
                await northbound.apply([Insert(new), operation])

        assert await northbound.read() == wanted
        await northbound.apply([Insert(new), Delete("DNS", "dns/gone")])
        assert await northbound.read() == wanted | {"dns/new": new}

    async def test_a_name_that_is_in_use_is_a_conflict(self, northbound, harness):
        """Names of ports are one space for all clusters."""
        other = await harness.open(OTHER)
        await other.take_term(1)
        world = Wishes(networks=(network(),), ports=(port(1),))
        await self.converge(northbound, world)

        with pytest.raises(Conflict, match="in use"):
            await self.converge(other, world, OTHER)

    async def test_what_goes_with_its_parent_goes(self, northbound):
        """A switch takes its ports along, also out of their groups."""
        await self.converge(northbound, some_wishes())
        await northbound.apply([Delete("Logical_Switch", "switch/acme/front")])
        left = await northbound.read()

        assert not any(each.parent == "switch/acme/front" for each in left.values())
        assert left["group/group/acme/web"].columns["ports"] == frozenset()

    async def test_connections_are_counted(self, northbound, harness):
        """Whoever waits hears of a new one, and finds the rows as they were."""
        wanted = await self.converge(northbound, some_wishes())
        seen = await northbound.wait_connected(0)
        await harness.go_away()
        await harness.come_back()

        assert await northbound.wait_connected(seen) > seen
        assert await northbound.read() == wanted
        await self.converge(northbound, Wishes())

    async def test_a_database_that_is_away_is_an_error(self, northbound, harness, monkeypatch):
        """The call ends, by its deadline at the latest; nothing is queued."""
        monkeypatch.setattr("swarmctl.net.ovn.CALL_S", 0.3)
        await harness.go_away()
        with pytest.raises(EnvironmentFault) as caught:
            await northbound.read()

        assert caught.value.temporary
