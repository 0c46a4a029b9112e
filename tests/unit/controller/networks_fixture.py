"""A controller with tenant networks: over a northbound in memory, with nodes made of data."""

from contextlib import asynccontextmanager, nullcontext

import trio

from swarmctl.controller import serviceaddresses, tenancy
from swarmctl.net.memory import MemoryDatabase, MemoryNorthbound
from swarmctl.net.model import subnet
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, NetworkUse, Resources, ServiceSpec, Template
from swarmctl.spec.networks import NetworkDefinition
from tests.unit.controller.requests_fixture import a_rig

ADDRESS = "unix:/nowhere"
# For what rounds do, in seconds of a virtual clock.
PATIENCE_S = 60


def definition(name="front", cidr="10.20.0.0/24", **fields):
    """A small network."""
    return NetworkDefinition(name, subnets=(subnet(cidr),) if cidr else (), **fields)


def service(name="web", replicas=1, *networks, addresses=(), labels=None, image="box"):
    """A service on networks; ``addresses`` are fixed ones of the first."""
    uses = [NetworkUse(one) for one in networks or ("front",)]
    uses[0] = NetworkUse(uses[0].network, tuple(addresses))
    template = Template(
        container=ContainerSpec(image),
        resources=Resources(cpu_millis=10),
        labels=labels or {},
        networks=tuple(uses),
    )
    return ServiceSpec(name, template, replicas)


async def create(rig, *definitions):
    """Make networks."""
    for one in definitions or (definition(),):
        await rig.ask("network.create", network=wire.encode_plain(one))


@asynccontextmanager
async def a_plane(folder, *names, disk=None, database=None, ovn=ADDRESS, real=False):
    """A rig whose plane converges ``database``, which is ``rig.database``; or a real one."""
    async with a_rig(folder, disk) as rig:
        rig.database = database or MemoryDatabase()
        await tenancy.load(rig.cluster, ovn)
        serviceaddresses.hold(rig.cluster)
        if not real:
            rig.cluster.plane.open_northbound = lambda _, cluster_id: nullcontext(
                MemoryNorthbound(rig.database, cluster_id)
            )
        rig.nursery.start_soon(rig.cluster.plane.run)
        if names:
            await rig.ask("token.create", reusable=True)
            for name in names:
                await rig.join(name)
            rig.step()
        yield rig


def rows(rig, table="Logical_Switch_Port"):
    """The rows of a table that the database has, by key."""
    found = rig.database.rows.get(rig.cluster.state.cluster_id, {})
    return {key: row for key, row in found.items() if row.table == table}


def ports(rig):
    """The names of the instances whose ports the database has, in order; spares have none."""
    return sorted(name for name in _marks(rig) if name != ".0")


def spares(rig):
    """The names of the spare subports that the database has."""
    return {
        row.columns["name"]
        for row in rows(rig).values()
        if row.columns["external_ids"].get("swarmctl-instance") == ".0"
    }


def _marks(rig):
    found = [row.columns["external_ids"].get("swarmctl-instance") for row in rows(rig).values()]
    return [name for name in found if name is not None]


async def until(condition):
    """Wait for a condition, in virtual time."""
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - of several tasks, whose events differ
            await trio.sleep(0.05)
