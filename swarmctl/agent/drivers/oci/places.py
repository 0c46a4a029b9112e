"""Where containers are plugged in: network namespaces by name, made before their containers.

A namespace is made anew by whoever finds it missing (its place, its container's creation or start),
and goes with the container or, where that was never made, with its place.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

from swarmctl.agent.drivers.api import Launch, Owner
from swarmctl.agent.drivers.oci import namespaces
from swarmctl.agent.drivers.oci.layout import Layout, Place, container_id
from swarmctl.net.plugging.api import InNamespace, Switch
from swarmctl.proto import incarnation as incarnations

NAMESPACE_S: Final = 45.0


class Run(Protocol):
    """Runs something that blocks, in a thread with a deadline."""

    def __call__(
        self, work: Callable[[], None], doing: str, deadline_s: float, where: str
    ) -> Awaitable[None]:
        """As :meth:`OciDriver._run`."""


class NamedNamespaces:
    """The driver's ``Places``."""

    def __init__(self, owner: Owner, layout: Layout, run: Run) -> None:
        self._owner = owner
        self._layout = layout
        self._run = run

    async def place(self, launch: Launch, switch: Switch) -> tuple[InNamespace, ...]:  # noqa: ARG002 - the contract's
        """The container's namespace; see :class:`swarmctl.agent.drivers.api.Places`."""
        place = self._of(launch.incarnation)
        ensure = partial(namespaces.ensure, place, launch.instance)
        await self._run(ensure, "make its network namespace", NAMESPACE_S, launch.instance)
        path = str(place.namespace_path)
        return tuple(InNamespace(path, f"eth{i}") for i, _ in enumerate(launch.attachments))

    async def displace(self, incarnation: int) -> None:
        """Have the namespace gone; its container's removal has seen to it, if there was one."""
        where = incarnations.label(incarnation)
        remove = partial(namespaces.remove, self._of(incarnation), where)
        await self._run(remove, "remove its network namespace", NAMESPACE_S, where)

    async def placed(self) -> tuple[int, ...]:
        """None to be found: what has a place is in the journal, and is displaced by that."""
        return ()

    def _of(self, incarnation: int) -> Place:
        return self._layout.place(container_id(self._owner, incarnation))
