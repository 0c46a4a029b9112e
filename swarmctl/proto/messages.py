"""The messages of the protocol, as frozen data.

One connection carries three conversations:

- the *session* between an agent and the controller (hello, heartbeats, assignments, reports),
- *requests* (RPC) between a client and the controller, or the controller and an agent: bracketed
  by a deadline, never queued, optionally with a stream of data both ways,
- *enrolment* of a new node, over the key pair that a join token contains.

On the wire a message is a msgpack array: its tag, then its fields in the order of declaration
(see :mod:`swarmctl.proto.codec`).
To stay readable one minor release apart, fields are only ever added, at the end, with a default:
a reader ignores what it does not know and fills in what is missing.
"""

from typing import Any, ClassVar, Final

from attrs import field, frozen

# The protocol's version; readers accept their own and the one before and after.
PROTOCOL_VERSION: Final = 2
PROTOCOL_OLDEST: Final = 1


@frozen
class Message:
    """Base of all messages; ``TAG`` is the first element on the wire."""

    TAG: ClassVar[int] = 0


# --- parts ------------------------------------------------------------------------------------


@frozen
class Attachment:
    """One port of an instance on a tenant network: all that a node needs to plug it in.

    ``port`` is the name of the logical port in OVN, ``network`` is for people (``tenant/name``).
    ``addresses`` have their prefix (``10.20.0.7/24``); ``routes`` are (destination, gateway), the
    default route among them; ``mtu`` is what fits into one encapsulation.  ``vlan`` is 0 for a port
    of its own, else the tag on the trunk of the VM that the node is.  ``gateway`` answers for its
    link address as soon as the port's flows are installed; empty where nothing is sure to.
    """

    port: str
    network: str
    mac: str
    addresses: tuple[str, ...] = ()
    mtu: int = 0
    routes: tuple[tuple[str, str], ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    vlan: int = 0
    gateway: str = ""


@frozen
class AssignedGroup:
    """Instances of one service that share a template.

    ``entries`` are (slot, incarnation, desired, generation, restarts): a tuple, because a node may
    hold thousands.  ``restarts`` is what earlier incarnations of the slot counted.
    ``attachments`` are empty, or say for each of the entries where it is plugged in.
    ``failures`` are, by incarnation, the bad ends in a row of the one before it in its slot.
    """

    service: str
    tenant: str
    template: bytes
    driver: str
    entries: tuple[tuple[int, int, int, int, int], ...]
    attachments: tuple[tuple[Attachment, ...], ...] = ()
    failures: dict[int, int] = field(factory=dict)


@frozen
class InstanceReport:
    """What a node observes of one instance.

    ``state`` is an :class:`~swarmctl.proto.states.InstanceState`; ``since`` is when it was
    entered (epoch seconds); ``reason`` says why, for people.  ``retrying`` says of one that has
    failed that the node will try again by itself; ``ports`` are the published ones, such as
    ``*:32768->80/tcp``; ``health`` is ``starting``, ``healthy`` or ``unhealthy``, empty where
    nothing is checked.  ``attachments`` are its ports on tenant networks, as they were assigned.
    ``failures`` counts the bad ends in a row before the present attempt; ``port_down`` is the port
    for which a launch failed, since it did not come up.
    """

    incarnation: int
    state: int
    attempt: int = 1
    restarts: int = 0
    since: float = 0.0
    runtime_id: str = ""
    addresses: tuple[str, ...] = ()
    exit_code: int | None = None
    reason: str = ""
    service: str = ""
    slot: int = 0
    tenant: str = "default"
    generation: int = 0
    template: bytes = b""
    driver: str = ""
    retrying: bool = False
    ports: tuple[str, ...] = ()
    health: str = ""
    attachments: tuple[Attachment, ...] = ()
    failures: int = 0
    port_down: str = ""


@frozen
class ReportedGroup:
    """Instances of one node of which all is the same but their names, and nothing special.

    As :class:`InstanceReport`, for those that the controller has assigned in this session, so
    that it knows their service, slot and template; that have no exit code, reason, addresses, ports
    or health check; and whose node has nothing to try again.  ``entries`` are (incarnation,
    runtime id).
    """

    state: int
    attempt: int
    restarts: int
    since: float
    generation: int
    entries: tuple[tuple[int, str], ...]


@frozen
class DriverFacts:
    """One driver of a node: whether it can be used, and if not why.

    ``listed`` says that it has told the agent what it has: until then what the agent does not name
    may be there all the same.
    """

    name: str
    available: bool
    version: str = ""
    reason: str = ""
    facts: dict[str, str] = field(factory=dict)
    listed: bool = True


@frozen
class NodeFacts:
    """What a node is: its labels, what it has to give, and its drivers."""

    labels: dict[str, str] = field(factory=dict)
    capacity: dict[str, int] = field(factory=dict)
    drivers: tuple[DriverFacts, ...] = ()
    release: str = ""
    parent: str = ""
    address: str = ""
    facts: dict[str, str] = field(factory=dict)


# --- enrolment --------------------------------------------------------------------------------


@frozen
class Enrol(Message):
    """A new node asks for its key to be pinned; sent over the join token's key pair."""

    TAG: ClassVar[int] = 1
    protocol: int
    release: str
    node: str
    public_key: str


@frozen
class Enrolled(Message):
    """The key is pinned, under this name, in this cluster."""

    TAG: ClassVar[int] = 2
    node: str
    cluster_id: str


# --- session ----------------------------------------------------------------------------------


@frozen
class Hello(Message):
    """An agent begins a session: who it is and all that it has.

    ``boot`` tells two live agents with one key apart: it is random for each start of an agent.
    ``inventory`` is complete; ``templates`` are those of it, by digest: a controller whose store
    was restored may not know them, and has to count what they take.  ``guarded`` is as in a
    :class:`Heartbeat`.
    ``sequence`` counts the hellos of a boot from 1: one that is late tells of what is over.
    ``lease_left_s`` is how long the node's fencing lease holds yet; 0 when it has none.
    ``forgotten`` are incarnations that its guard would end and ``inventory`` does not have: the
    agent lost its journal, and a driver has not told yet what there is.
    ``reported`` is the sequence of the last report before it: one that comes later tells of less.
    """

    TAG: ClassVar[int] = 3
    protocol: int
    release: str
    node: str
    boot: str
    cluster_id: str
    term: int
    facts: NodeFacts
    inventory: tuple[InstanceReport, ...] = ()
    assignment_digest: int = 0
    templates: dict[bytes, bytes] = field(factory=dict)
    guarded: bool = False
    sequence: int = 0
    lease_left_s: float = 0.0
    forgotten: tuple[int, ...] = ()
    reported: int = 0


@frozen
class Welcome(Message):
    """The session is open. ``lease_s`` is how long the node may be silent.

    ``takes_groups`` says that the controller understands :class:`ReportedGroup`.
    """

    TAG: ClassVar[int] = 4
    protocol: int
    cluster_id: str
    term: int
    heartbeat_s: float
    lease_s: float
    takes_groups: bool = False


@frozen
class Heartbeat(Message):
    """The agent lives; the digests show whether both sides agree (:mod:`swarmctl.proto.digest`).

    ``reasons`` name what is wrong on the node: it is sick while there is one.  ``guarded`` says
    that its guard would end fenced instances now.  ``wall_s`` is the node's clock, in epoch
    seconds; 0 says nothing.  ``version`` is that of the last assignment that it has taken in.
    ``quiet`` says that it needs no answer which has nothing to tell but that the controller lives:
    the agent has heard that lately, and will ask again.
    """

    TAG: ClassVar[int] = 5
    sequence: int
    term: int
    assignment_digest: int
    inventory_digest: int
    reasons: tuple[str, ...] = ()
    guarded: bool = False
    wall_s: float = 0.0
    version: int = 0
    quiet: bool = False


@frozen
class HeartbeatAck(Message):
    """The controller lives. ``resync`` asks for a whole inventory.

    ``reported`` acknowledges all reports up to that sequence, as a :class:`ReportAck` does; 0
    says nothing.  ``lease_s`` is for how long from the sending of that heartbeat the node may run
    what is fenced; 0 grants nothing.
    """

    TAG: ClassVar[int] = 6
    sequence: int
    resync: bool = False
    reported: int = 0
    lease_s: float = 0.0


@frozen
class Assign(Message):
    """What a node should have: all of it when ``full``, else a change to it.

    ``templates`` are those that the node may not know yet, by digest; ``tokens`` are for the agents
    in VMs that host pods, by the VM's incarnation.
    """

    TAG: ClassVar[int] = 7
    cluster_id: str
    term: int
    version: int
    full: bool
    templates: dict[bytes, bytes] = field(factory=dict)
    groups: tuple[AssignedGroup, ...] = ()
    removed: tuple[int, ...] = ()
    tokens: dict[int, str] = field(factory=dict, repr=False)


@frozen
class Report(Message):
    """Notification: what changed on a node; kept by it until ``ReportAck`` of its sequence.

    ``full`` makes it the whole inventory, not a change.  ``groups`` tell of further instances, in
    fewer words; a full report has none.
    """

    TAG: ClassVar[int] = 8
    sequence: int
    instances: tuple[InstanceReport, ...]
    full: bool = False
    groups: tuple[ReportedGroup, ...] = ()


@frozen
class ReportAck(Message):
    """All reports up to ``sequence`` have been taken in (and committed, where that matters)."""

    TAG: ClassVar[int] = 9
    sequence: int


@frozen
class FactsChanged(Message):
    """The node's facts are different now (a driver came back, a label changed)."""

    TAG: ClassVar[int] = 10
    facts: NodeFacts


@frozen
class Controllers(Message):
    """Where the cluster's controllers are, the one that leads first. For agents to remember."""

    TAG: ClassVar[int] = 13
    addresses: tuple[str, ...]


@frozen
class SayHello(Message):
    """The controller does not know this connection: begin a session."""

    TAG: ClassVar[int] = 11


@frozen
class Refuse(Message):
    """What the peer said is refused, and why; ``final`` means that repeating it will not help."""

    TAG: ClassVar[int] = 12
    code: str
    what: str
    where: str = ""
    hint: str = ""
    final: bool = False


# --- requests ---------------------------------------------------------------------------------


@frozen
class Request(Message):
    """An RPC. ``params`` are named arguments of ``method``; the answer is due in ``timeout_ms``.

    A ``timeout_ms`` of 0 is for streams that last as long as someone looks (``logs -f``).
    """

    TAG: ClassVar[int] = 20
    id: int
    method: str
    params: dict[str, Any] = field(factory=dict)
    timeout_ms: int = 10_000
    trace: str = ""


@frozen
class Reply(Message):
    """The request ``id`` has ended well; ``result`` is plain msgpack data."""

    TAG: ClassVar[int] = 21
    id: int
    result: Any = None


@frozen
class Failure(Message):
    """The request ``id`` has failed; the fields are those of an error (``proto/errors.py``).

    ``retry_ms`` (when not 0) says that nothing of it was done, and when to ask again.
    """

    TAG: ClassVar[int] = 22
    id: int
    code: str
    what: str
    where: str = ""
    hint: str = ""
    retry_ms: int = 0


@frozen
class StreamData(Message):
    """Data of the request's stream; ``channel`` is ``stdin``, ``stdout``, ``item`` and so on."""

    TAG: ClassVar[int] = 23
    id: int
    channel: str
    data: Any


@frozen
class StreamCredit(Message):
    """The receiver has room for ``chunks`` more :class:`StreamData` of request ``id``."""

    TAG: ClassVar[int] = 24
    id: int
    chunks: int


@frozen
class Cancel(Message):
    """Nobody waits for request ``id`` any more."""

    TAG: ClassVar[int] = 25
    id: int
