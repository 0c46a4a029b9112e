"""The contract between an agent and what it starts instances with.

A driver is a thin, level-triggered shell around one daemon: it keeps no state that the daemon
does not have.  Everything it makes carries (cluster, node, incarnation) in its name and its
labels, so that

- a repeated ``create`` collides with itself and returns what is there (DESIGN 8.6),
- ``list`` finds exactly what this agent made, also after a crash of the agent,
- two agents on one machine never touch each other's instances.

The agent calls ``prepare`` (slow: pull an image, make an overlay), ``create``, ``start``,
``stop``, ``remove``, each with its own deadline and at most ``concurrency`` of them at once.
A call whose caller gave up may still finish: the agent lists again and reaps what it does not
know.
What happens without a call (a container ends, a domain is killed) comes as a
:class:`DriverEvent`; after a gap in the events the driver sends one of kind ``RESYNC`` and the
agent lists.

Optional abilities are protocols of their own: :class:`Logs`, :class:`Exec`, :class:`Console`,
:class:`Pluggable`, :class:`Enclosing`, :class:`NodeLinks`.

All errors are those of :mod:`swarmctl.proto.errors`: :class:`UserError` subclasses when the
spec cannot work (no such image, no such command), :class:`DriverUnavailable` when the daemon
does not answer, :class:`LaunchFailed` for the rest.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Protocol, runtime_checkable

import trio
from attrs import field, frozen

from swarmctl.net.plugging.api import Switch, Target
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import SwarmError
from swarmctl.proto.messages import Attachment
from swarmctl.spec.models import PortMapping, Template


@frozen
class Owner:
    """Whose instances a driver may see and touch."""

    cluster_id: str
    node: str


@frozen
class Launch:
    """One instance to make; ``attachments`` are its ports on tenant networks.

    ``token`` is what the agent in a VM enrols with; empty for what hosts no pods.
    """

    service: str
    slot: int
    incarnation: int
    template: Template
    tenant: str = "default"
    attachments: tuple[Attachment, ...] = ()
    token: str = field(default="", repr=False)

    @property
    def instance(self) -> str:
        """Its name, such as ``web.3``."""
        return f"{self.service}.{self.slot}"

    @property
    def hostname(self) -> str:
        """What the instance calls itself when the spec says nothing: ``web-3``."""
        return f"{self.service}-{self.slot}".replace("_", "-")[:63]


def resource_name(owner: Owner, launch: Launch) -> str:
    """The daemon's name for an instance: readable, and unique to (cluster, node, incarnation)."""
    label = incarnations.label(launch.incarnation)
    return f"swarmctl-{owner.cluster_id[:8]}-{owner.node}-{launch.instance}-{label}"


class Phase(Enum):
    """What the daemon says of an instance."""

    CREATED = "created"
    RUNNING = "running"
    STOPPING = "stopping"
    EXITED = "exited"


@frozen
class Found:
    """One instance as the daemon has it.

    ``exit_code`` is set once it ended; ``started_at`` and ``finished_at`` are seconds since the
    epoch, 0 when unknown.  ``ports`` are the published ones with the host port that was chosen.
    ``template`` is what it was made of, as :func:`swarmctl.spec.wire.encode_template` gave it;
    lists alone tell it, and it is empty where it is not known.
    """

    incarnation: int
    service: str
    slot: int
    runtime_id: str
    phase: Phase
    exit_code: int | None = None
    started_at: float = 0.0
    finished_at: float = 0.0
    addresses: tuple[str, ...] = ()
    reason: str = ""
    tenant: str = "default"
    ports: tuple[PortMapping, ...] = ()
    template: bytes = field(default=b"", repr=False)

    @property
    def port_labels(self) -> tuple[str, ...]:
        """The published ports for people."""
        return tuple(port.label for port in self.ports if port.host_port)


class EventKind(Enum):
    """What a driver tells without being asked."""

    STARTED = "started"
    EXITED = "exited"
    REMOVED = "removed"
    INTERRUPTED = "interrupted"
    RESYNC = "resync"


@frozen
class DriverEvent:
    """Something happened to ``incarnation`` at ``at`` (epoch seconds).

    ``INTERRUPTED`` and ``RESYNC``, of incarnation 0, are the ends of a gap: the daemon may be away,
    and it is there again. Where nothing but a few events was missed there is the latter alone.
    """

    kind: EventKind
    incarnation: int = 0
    at: float = 0.0
    exit_code: int | None = None
    reason: str = ""


@frozen
class Health:
    """Whether a driver can be used now; ``reason`` says why not; ``facts`` go to ``node inspect``.

    ``resources`` are what it adds to the node's capacity, such as ``{"gpu": 2}``.
    """

    available: bool
    reason: str = ""
    version: str = ""
    facts: dict[str, str] = field(factory=dict)
    resources: dict[str, int] = field(factory=dict)


Progress = Callable[[str], None]


class Driver(Protocol):
    """What every driver does."""

    name: str
    concurrency: int

    async def probe(self) -> Health:
        """Ask the daemon how it is, within a few seconds whatever it does. Never raises for it."""

    async def prepare(self, launch: Launch, progress: Progress) -> None:
        """Get what ``create`` needs: the image pulled, the disk's overlay made. Repeatable."""

    async def create(self, launch: Launch) -> str:
        """Make the instance without starting it; its runtime id. Repeatable: see above."""

    async def start(self, launch: Launch) -> Found:
        """Start it (again); returns once the daemon says it runs, or ran and ended already."""

    async def stop(self, incarnation: int, grace_s: float) -> None:
        """Ask it to end, and end it by force after ``grace_s``; done when it has ended.

        An instance that is not there, or ended, is stopped already.
        """

    async def remove(self, incarnation: int) -> None:
        """Take away all that ``prepare``, ``create`` and ``start`` made. Repeatable; forces."""

    async def list(self) -> list[Found]:
        """All instances of this owner that the daemon has."""

    def events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[DriverEvent]]:
        """A bounded stream of events from now on, as long as the context is open.

        Everything that happens after the context was entered is told, or covered by a later
        ``RESYNC``.  A daemon that is away does not keep the context from opening.
        """


class Places(Protocol):
    """Where a driver's instances are plugged in, before they are there themselves."""

    async def place(self, launch: Launch, switch: Switch) -> tuple[Target, ...]:
        """Where each of the launch's attachments goes, in their order. Repeatable.

        What it names is there until it is displaced; :meth:`Driver.create` then makes the instance
        so that it has these interfaces from its first instruction on.
        """

    async def displace(self, incarnation: int) -> None:
        """Take away what ``place`` made, after the instance. Repeatable."""

    async def placed(self) -> tuple[int, ...]:
        """The incarnations of this owner that have something to be displaced."""


@runtime_checkable
class Pluggable(Protocol):
    """A driver whose instances can have ports on tenant networks."""

    places: Places


@runtime_checkable
class Enclosing(Protocol):
    """A driver whose instances with ports have a network namespace on this node."""

    async def network_namespace(self, incarnation: int) -> str:
        """The path by which it is entered.

        Raises:
            NotFound: the instance has none.
            DriverUnavailable: the daemon does not answer.
        """


@frozen
class Started:
    """What came of launches that were begun together, ``at`` one time (epoch seconds).

    ``answers`` are in their order: the runtime id of one that runs, or why it does not.
    """

    at: float
    answers: Sequence[str | SwarmError]


@runtime_checkable
class BulkLaunch(Protocol):
    """A driver that can launch many at once without waiting (the simulated one, in benchmarks).

    Its instances have neither addresses nor published ports.
    """

    def launch_many(self, launches: Sequence[Launch]) -> Started:
        """Create and start each."""

    def remove_many(self, incarnations: Sequence[int]) -> None:
        """Stop by force and remove each."""


@frozen
class LogChunk:
    """Output of an instance; ``stream`` is ``stdout`` or ``stderr``, ``at`` epoch seconds or 0."""

    stream: str
    data: bytes
    at: float = 0.0


@runtime_checkable
class Logs(Protocol):
    """A driver that keeps its instances' output."""

    def logs(
        self, incarnation: int, *, follow: bool, tail: int | None, timestamps: bool
    ) -> AsyncGenerator[LogChunk, None]:
        """Output so far (the last ``tail`` lines), and with ``follow`` what comes until it ends.

        With ``timestamps`` each line begins with its RFC 3339 time, and ``at`` is set.  It is an
        async generator: the caller closes it.
        """


class Terminal(Protocol):
    """A two-way stream to something inside an instance."""

    async def receive(self) -> LogChunk | None:
        """The next output, or None at the end."""

    async def send(self, data: bytes) -> None:
        """Type ``data``."""

    async def send_eof(self) -> None:
        """Close its standard input."""

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""

    async def exit_code(self) -> int | None:
        """After the end: the exit code, None where there is none (a serial console)."""


@runtime_checkable
class KillsCommand(Protocol):
    """A terminal whose command can be ended by force, for callers that do not wait longer."""

    async def kill(self) -> None:
        """End the command; nothing happens when it has ended."""


@runtime_checkable
class GuestAgent(Protocol):
    """A driver whose instances may run an agent of their own that it can ask."""

    async def ping_guest(self, incarnation: int) -> None:
        """Returns when the guest's agent answers.

        Raises:
            LaunchFailed: it does not, or there is none.
            DriverUnavailable: the daemon does not answer.
        """


@frozen
class NodeLink:
    """One interface of an instance on a network of its node's own; what is not known is empty.

    ``bridge`` and ``device`` are the node's ends of it; ``nat`` says that what it sends out goes
    behind the node's address.
    """

    network: str
    mac: str = ""
    addresses: tuple[str, ...] = ()
    gateway: str = ""
    bridge: str = ""
    device: str = ""
    nat: bool = False


@runtime_checkable
class NodeLinks(Protocol):
    """A driver that plugs instances into networks of the node's own."""

    async def links(self, incarnation: int) -> tuple[NodeLink, ...]:
        """Those of an instance, as the daemon has them now.

        Raises:
            NotFound: there is no such instance.
            DriverUnavailable: the daemon does not answer.
        """


@runtime_checkable
class Exec(Protocol):
    """A driver that runs commands inside its instances."""

    def exec(
        self, incarnation: int, command: tuple[str, ...], *, tty: bool, stdin: bool
    ) -> AbstractAsyncContextManager[Terminal]:
        """Run ``command`` in the instance."""


@runtime_checkable
class Console(Protocol):
    """A driver whose instances have a serial console."""

    def console(self, incarnation: int) -> AbstractAsyncContextManager[Terminal]:
        """Attach to the serial console; closing detaches and leaves it running."""
