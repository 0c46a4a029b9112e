"""One instance as the agent knows it, and its form in the journal.

There may be hundreds of thousands in one process (simulated ones), so it is a plain slotted
object that the supervisor changes in place; nobody else does.
"""

from enum import IntEnum
from typing import Any, Final

import attrs
import msgpack
from attrs import define

from swarmctl.agent.backoff import LEASE_ENDED
from swarmctl.agent.drivers.api import DriverEvent, Launch
from swarmctl.agent.health import Watch
from swarmctl.agent.transitions import Goal, Phase
from swarmctl.proto.errors import StorageFault
from swarmctl.proto.messages import Attachment, InstanceReport
from swarmctl.proto.states import Desired, InstanceState
from swarmctl.spec.models import Template

# Of a journal entry; raised when its meaning changes, not when fields are added at the end.
_FORMAT = 1
# What ``applied`` is before anyone knows which restart generation a found instance runs for.
GENERATION_UNKNOWN = -1
# A later release's entry may have more.
_ATTACHMENT_FIELDS: Final = len(attrs.fields(Attachment))


class Standing(IntEnum):
    """What the journal remembers of the phase; the rest is observed again."""

    ACTIVE = 0  # launched, or to be launched
    WAITING = 1
    STOPPED = 2
    FINISHED = 3


_STANDING = {
    Phase.WAITING: Standing.WAITING,
    Phase.STOPPED: Standing.STOPPED,
    Phase.FINISHED: Standing.FINISHED,
}


_ACTIVE = Standing.ACTIVE

# Made once: the buffer of a packer costs more than a record. Only the agent's loop packs here.
_pack = msgpack.Packer(autoreset=True).pack


@define(eq=False)
class Instance:
    """Wanted (up to ``removing``), observed (up to ``restarts``), and the agent's own books.

    ``applied`` is the restart generation that the present attempt was begun for.
    ``failures`` counts bad ends in a row, ``refusals`` launches that a daemon which was away did
    not take; ``due`` is when the next attempt, or the repetition of a failed stop or remove, may
    begin (the agent's clock).
    ``serial`` is the supervisor's count at the last observation, against lists that are older.
    ``orphaned`` marks a create that outlived its caller: it is taken away when ``due``.
    ``failing_since`` is when the first of the ``failures`` was (epoch seconds); None: not known.
    ``health`` is the watch on its present attempt, or the last one; None without a health check.
    ``attachments`` are its ports on tenant networks: assigned with it, and never others.
    ``port_down`` is the one of them for which its last launch failed, since it did not come up.
    ``token`` is for the agent in a VM, and is not in the journal: each session tells it again.
    ``received_at`` is when its assignment came (the agent's clock); None when that was before the
    agent began.
    """

    incarnation: int
    service: str
    slot: int
    tenant: str = "default"
    template: bytes = b""
    driver: str = ""
    desired: Desired = Desired.RUNNING
    generation: int = 0
    known: bool = True
    removing: bool = False

    state: InstanceState = InstanceState.ASSIGNED
    since: float = 0.0
    reason: str = ""
    exit_code: int | None = None
    runtime_id: str = ""
    addresses: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    attempt: int = 1
    restarts: int = 0

    phase: Phase = Phase.UNSEEN
    standing: Standing = Standing.ACTIVE
    restored: bool = False
    journaled: bool = False
    orphaned: bool = False
    waits_for_driver: bool = False
    applied: int = GENERATION_UNKNOWN
    failures: int = 0
    refusals: int = 0
    due: float = 0.0
    started_at: float = 0.0
    early_exit: DriverEvent | None = None
    exit_reason: str = ""
    serial: int = 0
    assigned_digest: int = 0
    reported_digest: int = 0
    health: Watch | None = None
    failing_since: float | None = None
    attachments: tuple[Attachment, ...] = ()
    port_down: str = ""
    token: str = attrs.field(default="", repr=False)
    received_at: float | None = None

    @property
    def name(self) -> str:
        """As users call it: ``web.3``."""
        return f"{self.service}.{self.slot}"

    @property
    def goal(self) -> Goal:
        """What is wanted of it now, in one word."""
        if self.removing:
            return Goal.GONE
        if not self.known:
            return Goal.LEAVE
        if self.desired == Desired.STOPPED:
            return Goal.STOP
        if self.applied != self.generation and self.applied != GENERATION_UNKNOWN:
            return Goal.RESTART
        return Goal.RUN

    def failed(self, at: float) -> float | None:
        """One more bad end, at ``at`` (epoch seconds).

        Returns:
            Seconds since the first one in a row; None where that is not known: it was on another
            node, or a launch that failed.
        """
        if self.exit_reason == LEASE_ENDED:
            return None
        self.failures += 1
        if self.failures == 1:
            self.failing_since = at
        return None if self.failing_since is None else max(0.0, at - self.failing_since)

    @property
    def failed_watch(self) -> Watch | None:
        """The watch that had it stopped because it was unhealthy, unless it was to stop anyway."""
        watch = self.health
        return watch if watch is not None and watch.condemned and self.goal == Goal.RUN else None

    @property
    def health_label(self) -> str:
        """Its health as people read it; empty where nothing is checked."""
        if self.health is None or self.phase not in (Phase.RUNNING, Phase.STOPPING):
            return ""
        return self.health.health.value

    def launch(self, template: Template) -> Launch:
        """What its driver is told to make."""
        return Launch(
            self.service,
            self.slot,
            self.incarnation,
            template,
            self.tenant,
            self.attachments,
            self.token,
        )

    @property
    def all_addresses(self) -> tuple[str, ...]:
        """Those that its driver knows, or those of its ports."""
        if self.addresses or not self.attachments:
            return self.addresses
        given = (address for one in self.attachments for address in one.addresses)
        return tuple(address.partition("/")[0] for address in given)

    def report(self) -> InstanceReport:
        """What the controller is told of it."""
        return InstanceReport(
            self.incarnation,
            int(self.state),
            self.attempt,
            self.restarts,
            self.since,
            self.runtime_id,
            self.all_addresses,
            self.exit_code,
            self.reason,
            self.service,
            self.slot,
            self.tenant,
            # What its present attempt runs for: one that still has to restart says so.
            self.generation if self.applied == GENERATION_UNKNOWN else self.applied,
            self.template,
            self.driver,
            self.phase == Phase.WAITING,
            self.ports,
            self.health_label,
            self.attachments,
            self.failures,
            self.port_down if self.state is InstanceState.FAILED else "",
        )

    def to_journal(self) -> bytes:
        """Its journal entry: what cannot be observed again."""
        packed: bytes = _pack(
            (
                _FORMAT,
                self.service,
                self.slot,
                self.tenant,
                self.template,
                self.driver,
                self.desired,
                self.generation,
                self.known,
                self.removing,
                _STANDING.get(self.phase, _ACTIVE),
                self.state,
                self.attempt,
                self.restarts,
                self.applied,
                self.failures,
                self.exit_code,
                self.reason,
                self.since,
                self.failing_since,
                [attrs.astuple(one) for one in self.attachments],
            )
        )
        return packed


def from_journal(incarnation: int, data: bytes) -> Instance:
    """The inverse of :meth:`Instance.to_journal`; the phase is ``UNSEEN``.

    Raises:
        StorageFault: the entry is damaged, or of a later release's format.
    """
    try:
        values: Any = msgpack.unpackb(data, use_list=False)
        if values[0] != _FORMAT:
            raise StorageFault(
                f"a journal entry of format {values[0]}; this release knows {_FORMAT}",
                "journal",
                "start the release that wrote it",
            )
        return Instance(
            incarnation=incarnation,
            service=values[1],
            slot=values[2],
            tenant=values[3],
            template=values[4],
            driver=values[5],
            desired=Desired(values[6]),
            generation=values[7],
            known=values[8],
            removing=values[9],
            standing=Standing(values[10]),
            state=InstanceState(values[11]),
            attempt=values[12],
            restarts=values[13],
            applied=values[14],
            failures=values[15],
            exit_code=values[16],
            reason=values[17],
            since=values[18],
            failing_since=(values[19] or None) if len(values) > 19 else None,
            attachments=_attachments(values[20]) if len(values) > 20 else (),
            restored=True,
            journaled=True,
        )
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise StorageFault(
            f"the journal's entry of incarnation {incarnation} is damaged: {error}",
            "journal",
            "move the journal away: what runs is then adopted by its labels",
        ) from error


def _attachments(entries: Any) -> tuple[Attachment, ...]:
    return tuple([Attachment(*one[:_ATTACHMENT_FIELDS]) for one in entries])
