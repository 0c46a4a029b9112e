"""Plugs on Open vSwitch: the contract of :mod:`.api` on a real kernel and a real switch.

A plug is first a link, then a port of the integration bridge that names the logical port; OVN sees
the name, and says on the same row when the port's flows are installed.  It is undone the other way
round.  Both halves are named alike, so each is found whatever became of the other.

Netlink and the database's library block: they are called in a few threads, and a caller waits no
longer than its deadline.  A call that its caller gave up may still finish: what it made is then
found by :meth:`OvsPlugs.list`, as after a crash.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from swarmctl.net.plugging.api import InNamespace, Plugged, Switch, Target
from swarmctl.net.plugging.devices import Devices
from swarmctl.proto.errors import DriverUnavailable, PortNotUp
from swarmctl.proto.messages import Attachment

if TYPE_CHECKING:
    from swarmctl.net.plugging.switch import Database, Interface

_T = TypeVar("_T")

DEFAULT_REMOTE: Final = "unix:/run/openvswitch/db.sock"
NO_BRIDGES: Final[Mapping[str, str]] = {}
# Each plug is a dozen netlink messages and one transaction, about 20 ms; the kernel serializes
# most of it anyway.
THREADS: Final = 4
# An exchange with the database's server, and a whole call: milliseconds, unless it hangs.
EXCHANGE_S: Final = 5.0
CALL_S: Final = 15.0
# The node's facts wait for it: less than what a probe of a driver has.
PROBE_S: Final = 4.0


class OvsPlugs:
    """A node's plugs on its Open vSwitch.

    Args:
        cluster_id: whose plugs these are,
        node: and of which node.
        remote: where the switch's database listens.
        namespace: the network namespace that the switch is in; empty is this process's own.
        bridges: physical network to bridge, as the switch is to have them mapped for OVN.
    """

    def __init__(
        self,
        cluster_id: str,
        node: str,
        remote: str = DEFAULT_REMOTE,
        namespace: str = "",
        bridges: Mapping[str, str] = NO_BRIDGES,
    ) -> None:
        self._bridges = bridges
        self._cluster_id = cluster_id
        self._node = node
        self._devices = Devices(cluster_id, node)
        self._remote = remote
        self._namespace = namespace
        self._limiter = trio.CapacityLimiter(THREADS)
        # Apart from the others, so that a probe does not wait behind calls that hang.
        self._probes = trio.CapacityLimiter(1)
        self._opening = trio.Lock()
        self._database: Database | None = None
        self._switch: Switch | None = None
        self._news = trio.Event()

    def close(self) -> None:
        """Let go of the switch; plugs stay."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def device(self, port: str) -> str:
        """See Plugs."""
        return self._devices.name(port)

    async def probe(self) -> Switch:
        """See Plugs."""
        database = await self._opened()
        look = partial(database.look, self._bridges)
        self._switch = await self._call(look, "say how it is", PROBE_S, self._probes)
        return self._switch

    async def plug(self, attachment: Attachment, target: Target, incarnation: int) -> None:
        """See Plugs."""
        switch = self._switch or await self.probe()
        database = await self._opened()
        device = self.device(attachment.port)
        ids = {
            "iface-id": attachment.port,
            "attached-mac": attachment.mac,
            "swarmctl-cluster": self._cluster_id,
            "swarmctl-node": self._node,
            "swarmctl-incarnation": str(incarnation),
        }

        def make() -> None:
            from swarmctl.net.plugging import links

            with links.inside(self._namespace), links.explained(attachment.port):
                if isinstance(target, InNamespace):
                    links.plug_veth(device, attachment, target, fill_checksums=switch.userspace)
                else:
                    links.plug_tap(device, attachment.mtu)
            database.add(switch.bridge, device, ids)

        await self._call(make, f"plug {attachment.port} in", CALL_S)

    async def wait_installed(self, attachment: Attachment, deadline_s: float) -> None:
        """See Plugs."""
        database = await self._opened()
        device = self.device(attachment.port)
        with trio.move_on_after(deadline_s):
            while True:
                # Before it is looked at, so that what happens meanwhile is not missed.
                news = self._news
                interface = database.interfaces.get(device)
                if interface is not None and interface.installed:
                    return
                await news.wait()
        raise _not_installed(attachment, database.interfaces.get(device), deadline_s)

    async def unplug(self, devices: tuple[str, ...]) -> None:
        """See Plugs."""
        database = await self._opened()
        strangers = [each for each in devices if not self._devices.owns(each)]
        assert not strangers, f"not this node's: {strangers}"

        def undo() -> None:
            from swarmctl.net.plugging import links

            for device in devices:
                database.remove(device)
                with links.inside(self._namespace), links.explained(device):
                    links.unplug(device)

        await self._call(undo, f"unplug {', '.join(devices)}", CALL_S)

    async def list(self) -> tuple[Plugged, ...]:
        """See Plugs."""
        database = await self._opened()

        def look() -> tuple[Plugged, ...]:
            from swarmctl.net.plugging import links

            with links.inside(self._namespace), links.explained("plugs"):
                mtus = links.devices(self._devices.owns)
            rows = {k: row for k, row in database.rows().items() if self._devices.owns(k)}
            return tuple(
                _plugged(device, mtus.get(device, 0), rows.get(device))
                for device in sorted(mtus.keys() | rows.keys())
            )

        return await self._call(look, "say what is plugged in", CALL_S)

    # --- threads ------------------------------------------------------------------------------

    async def _opened(self) -> "Database":
        """The connection, made when it is first needed, and anew after it could not be made."""
        async with self._opening:
            if self._database is None:
                kind, _, path = self._remote.partition(":")
                if kind == "unix" and not await trio.Path(path).exists():
                    raise DriverUnavailable("no Open vSwitch runs on this node", path)
                token = trio.lowlevel.current_trio_token()
                self._database = await self._call(
                    lambda: self._connect(token), "take a connection", EXCHANGE_S, self._probes
                )
            return self._database

    def _connect(self, token: trio.lowlevel.TrioToken) -> "Database":
        try:
            # Here, for they take half a second; both, so that nothing is half able.
            from swarmctl.net.plugging import links  # noqa: F401 - used by later calls
            from swarmctl.net.plugging.switch import Database
        except ImportError as error:
            raise DriverUnavailable(
                f"{error.name or error} is not installed on this machine",
                "networks",
                "install swarmctl with its extra `net`",
            ) from error

        def changed() -> None:
            with suppress(trio.RunFinishedError):  # the library's thread ends after the agent
                token.run_sync_soon(self._tell, idempotent=True)

        return Database(self._remote, EXCHANGE_S, changed)

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    async def _call(
        self,
        work: Callable[[], _T],
        doing: str,
        deadline_s: float,
        limiter: trio.CapacityLimiter | None = None,
    ) -> _T:
        with trio.move_on_after(deadline_s):
            return await trio.to_thread.run_sync(
                work, limiter=limiter or self._limiter, abandon_on_cancel=True
            )
        raise DriverUnavailable(
            f"Open vSwitch did not {doing} within {deadline_s:g} s", self._remote, "does it hang?"
        )


def _plugged(device: str, mtu: int, interface: "Interface | None") -> Plugged:
    if interface is None:
        return Plugged(device, mtu=mtu)
    ids = interface.external_ids
    incarnation = ids.get("swarmctl-incarnation", "")
    return Plugged(
        device,
        int(incarnation) if incarnation.isdecimal() else 0,
        ids.get("iface-id", ""),
        mtu,
        interface.installed,
    )


def _not_installed(
    attachment: Attachment, interface: "Interface | None", deadline_s: float
) -> PortNotUp:
    late = f"port {attachment.port} did not come up within {deadline_s:g} s"
    if interface is None:
        return PortNotUp(
            f"{late}: it is not in the switch", attachment.network, port=attachment.port
        )
    if interface.error or interface.port_number <= 0:
        reason = interface.error or "ovs-vswitchd has not taken it"
        return PortNotUp(
            f"{late}: {reason}", attachment.network, "is ovs-vswitchd well?", port=attachment.port
        )
    return PortNotUp(
        f"{late}: OVN has not installed it",
        attachment.network,
        "is ovn-controller running, and does OVN have the port?",
        port=attachment.port,
    )
