"""One placement of a copy of a service: what its node is told, and what it says.

Instances are plain slotted objects, not frozen ones: there may be a million, and each changes a
few times.
"""

from typing import Final

from attrs import define

from swarmctl.proto import digest
from swarmctl.proto.messages import InstanceReport
from swarmctl.proto.states import Desired, InstanceState

# A service is known by its tenant and its name, in that order.
ServiceKey = tuple[str, str]

# Restarts and failures of a slot's first instance: one object for all.
NOTHING_CARRIED: Final = (0, 0)


def scheduler_key(key: ServiceKey) -> str:
    """The service's name for the scheduler, which knows no tenants."""
    return f"{key[0]}/{key[1]}"


@define(eq=False)
class Placing:
    """What one planning gave to nodes: one object for all its instances, which may be a million.

    ``at`` is when it was planned; ``sent_at`` when the nodes began to be told, 0 until then (epoch
    seconds).
    """

    at: float
    sent_at: float = 0.0


@define(eq=False)
class Instance:
    """One incarnation of one slot, on one node: what is wanted and what is seen.

    ``desired`` and ``generation`` are what the node was (or is to be) told; the fields from
    ``state`` on are what it reported last.  ``removing`` says that the node was told to take it
    away; ``quarantined`` that nobody here knows the service, so nobody will; ``counted`` that the
    scheduler's snapshot has it.  ``applied`` is the restart generation that the present attempt was
    begun for.  ``departure`` is why it was told to go, where that is not what a user asked for.
    ``carried`` are the restarts and failures of the one before it in its slot.
    ``placing`` is None for one that was adopted: an earlier controller has placed it.
    """

    key: ServiceKey
    slot: int
    incarnation: int
    node: str
    template: bytes
    driver: str
    desired: Desired = Desired.RUNNING
    generation: int = 0
    carried: tuple[int, int] = NOTHING_CARRIED
    removing: bool = False
    quarantined: bool = False
    counted: bool = False
    state: InstanceState = InstanceState.ASSIGNED
    attempt: int = 0
    restarts: int = 0
    since: float = 0.0
    runtime_id: str = ""
    failures: int = 0
    addresses: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    exit_code: int | None = None
    reason: str = ""
    retrying: bool = False
    placing: Placing | None = None
    reported: bool = False
    applied: int = 0
    health: str = ""
    departure: str = ""

    @property
    def name(self) -> str:
        """As users call it: ``web.3``."""
        return f"{self.key[1]}.{self.slot}"

    @property
    def placed_at(self) -> float:
        """When it was placed (epoch seconds); 0 when that is not known here."""
        return self.placing.at if self.placing is not None else 0.0

    @property
    def assignment_digest(self) -> int:
        """Its part of the node's assignment digest; 0 when it is not assigned."""
        if self.removing or self.quarantined:
            return 0
        return digest.assignment_entry(self.incarnation, self.desired, self.generation)

    @property
    def inventory_digest(self) -> int:
        """Its part of the node's inventory digest; 0 until the node reported it."""
        if not self.reported:
            return 0
        return digest.inventory_entry(self.incarnation, self.state, self.attempt, self.restarts)

    @property
    def special(self) -> bool:
        """Whether there is more to say of it than a :class:`ReportedGroup` can."""
        return bool(
            self.reason
            or self.addresses
            or self.ports
            or self.retrying
            or self.failures
            or self.health
            or self.exit_code is not None
        )

    def settle_plain(self) -> None:
        """There is nothing special about it any more."""
        self.reason = self.health = ""
        self.addresses = self.ports = ()
        self.retrying = False
        self.failures = 0
        self.exit_code = None

    def take(self, report: InstanceReport) -> None:
        """Make what is seen that of ``report``."""
        self.state = InstanceState(report.state)
        self.attempt = report.attempt
        self.restarts = report.restarts
        self.since = report.since
        self.runtime_id = report.runtime_id
        self.addresses = report.addresses
        self.ports = report.ports
        self.exit_code = report.exit_code
        self.reason = report.reason
        self.retrying = report.retrying
        self.applied = report.generation
        self.health = report.health
        self.failures = report.failures
        self.reported = True
