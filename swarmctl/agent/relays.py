"""What agents inside VMs reach their controllers through: bytes, passed on by the host's agent.

For each network that the trunk of a VM of this node is on there is a *relay*: a network namespace
that only this task holds, plugged into the network as a ``localport`` (:mod:`swarmctl.net.relays`),
and a listener in it.  A connection is passed on to the first controller that takes one.  The relay
reads nothing of what it passes: CURVE is between the agent in the VM and the controller, and who
may do what is the controller's to say.  Anybody on the network may connect, so connections are
bounded, those of one address too, and one that says nothing is closed.

The namespace ends with the agent, and its port then leads nowhere until the next agent makes it
again: the connection of a nested node breaks and is made anew, as after any other gap.
"""

import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import structlog
import trio

from swarmctl.net import relays as places
from swarmctl.net.plugging.api import InNamespace, Plugs
from swarmctl.proto.errors import SwarmError

_log = structlog.get_logger(__name__)

# Connections of one network at once: a nested node has one, and a new one before the old is gone.
CONNECTIONS_MAX: Final = 256
# Of those from one address: what one guest holds is not missing to the others.
SOURCE_MAX: Final = 8
# Who connects to a controller speaks first, and at once (ZMTP's greeting).
FIRST_BYTES_S: Final = 10.0
# One read, and what a slow reader may have waiting in this process.
PIECE_BYTES: Final = 64 * 1024
CONNECT_S: Final = 5.0
# A relay that could not be made or broke off is made again after this.
RETRY_S: Final = 5.0


class Relays:
    """The relays of one node.

    Args:
        plugs: what plugs them in.
        cluster_id: whose networks these are.
        controllers: the controllers' addresses, as they are now.
    """

    def __init__(
        self, plugs: Plugs, cluster_id: str, controllers: Callable[[], Sequence[str]]
    ) -> None:
        self._plugs = plugs
        self._cluster_id = cluster_id
        self._controllers = controllers
        self._wanted: dict[str, int] = {}
        self._changed = trio.Event()

    def want(self, networks: Mapping[str, int]) -> None:
        """The networks that trunks of this node's VMs are on, with their MTU."""
        if networks != self._wanted:
            self._wanted = dict(networks)
            changed, self._changed = self._changed, trio.Event()
            changed.set()

    @property
    def devices(self) -> frozenset[str]:
        """The devices of plugs that are the relays', and so nobody's leftovers."""
        return frozenset(
            self._plugs.device(places.relay(self._cluster_id, network).port)
            for network in self._wanted
        )

    async def run(self) -> None:
        """Have the relays that are wanted, until cancelled."""
        scopes: dict[str, trio.CancelScope] = {}
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._changed
                for network in scopes.keys() - self._wanted.keys():
                    scopes.pop(network).cancel()
                for network in self._wanted.keys() - scopes.keys():
                    scopes[network] = trio.CancelScope()
                    nursery.start_soon(self._keep, network, scopes[network])
                await changed.wait()

    async def _keep(self, network: str, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                try:
                    await self._serve(network, self._wanted.get(network, 0))
                except (SwarmError, OSError) as error:
                    _log.warning("no relay for nested nodes", network=network, error=str(error))
                await trio.sleep(RETRY_S)

    async def _serve(self, network: str, mtu: int) -> None:
        # Local: the library takes half a second, and most nodes have no trunks.
        from swarmctl.net.plugging import links

        place = places.relay(self._cluster_id, network, mtu)
        with links.Namespace() as namespace:
            await self._plugs.plug(place, InNamespace(namespace.path, "eth0"), 0)
            listening = await trio.to_thread.run_sync(_listen, namespace.path)
            _log.info("relay for nested nodes", network=network, address=places.endpoint())
            with listening:
                await self.serve_listener(trio.SocketListener(listening))

    async def serve_listener(self, listener: trio.SocketListener) -> None:
        """Pass on what comes in, at most so many connections at once, in all and of one source."""
        sources: Counter[str] = Counter()
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(
                partial(self._admit, sources), [listener], handler_nursery=nursery
            )

    async def _admit(self, sources: Counter[str], inner: trio.SocketStream) -> None:
        async with inner:
            try:
                source = str(inner.socket.getpeername()[0])
            except OSError:
                return  # It has gone already.
            if sources.total() >= CONNECTIONS_MAX or sources[source] >= SOURCE_MAX:
                return  # Whoever it was tries again; those that are served come first.
            sources[source] += 1
            try:
                await self._pass_on(inner)
            finally:
                sources[source] -= 1
                if not sources[source]:
                    del sources[source]

    async def _pass_on(self, inner: trio.SocketStream) -> None:
        first = b""
        with trio.move_on_after(FIRST_BYTES_S), suppress(trio.BrokenResourceError):
            first = bytes(await inner.receive_some(PIECE_BYTES))
        outer = await self._connect() if first else None
        if outer is not None:
            async with outer:
                await _both_ways(inner, outer, first)

    async def _connect(self) -> trio.SocketStream | None:
        for address in self._controllers():
            parts = urlsplit(address)
            with suppress(OSError), trio.move_on_after(CONNECT_S):
                return await trio.open_tcp_stream(parts.hostname or "", parts.port or 0)
        _log.warning("no controller for a nested node", addresses=list(self._controllers()))
        return None


def _listen(path: str) -> trio.socket.SocketType:
    from swarmctl.net.plugging import links

    with links.inside(path):
        listening = socket.create_server((places.ADDRESS, places.PORT), backlog=CONNECTIONS_MAX)
    return trio.socket.from_stdlib_socket(listening)


async def _both_ways(inner: trio.SocketStream, outer: trio.SocketStream, first: bytes) -> None:
    """Until either end closes: the protocol has no use for half a connection.

    ``first`` was read from the inner one already.
    """
    async with trio.open_nursery() as nursery:

        async def one_way(source: trio.SocketStream, sink: trio.SocketStream, piece: bytes) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await sink.send_all(piece)
                while piece := bytes(await source.receive_some(PIECE_BYTES)):
                    await sink.send_all(piece)
            nursery.cancel_scope.cancel()

        nursery.start_soon(one_way, inner, outer, first)
        nursery.start_soon(one_way, outer, inner, b"")
