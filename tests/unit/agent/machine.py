"""A node without tasks: a supervisor, a journal, a daemon and a controller, stepped by hand.

Everything that may come in any order in life (ends of operations, events, lists, messages, a
crash) waits here until a test lets it happen.
"""

import attrs

from swarmctl.agent import adoption, assignment
from swarmctl.agent.actions import Actions
from swarmctl.agent.drivers.api import DriverEvent, EventKind, Found, Launch, Phase
from swarmctl.agent.outbox import Outbox
from swarmctl.agent.supervisor import Supervisor
from swarmctl.proto import digest, incarnation
from swarmctl.proto.errors import DeadlineExceeded, DriverUnavailable, LaunchFailed
from swarmctl.proto.messages import Assign, AssignedGroup
from swarmctl.proto.states import Desired, InstanceState
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, RestartCondition, RestartPolicy, Template

CLUSTER = "c1"
DRIVER = "sim"


def template(
    condition: RestartCondition = RestartCondition.ALWAYS, *, maximum: int = 0, **fields
) -> Template:
    return Template(
        container=ContainerSpec("box"), restart=RestartPolicy(condition, 0.0, maximum), **fields
    )


def inc(sequence: int, term: int = 1) -> int:
    return incarnation.make(term, sequence)


@attrs.define
class Row:
    """One instance in the daemon."""

    launch: Launch
    phase: Phase = Phase.CREATED
    exit_code: int | None = None
    started_at: float = 0.0
    finished_at: float = 0.0

    def found(self) -> Found:
        return Found(
            self.launch.incarnation,
            self.launch.service,
            self.launch.slot,
            f"r{self.launch.incarnation}",
            self.phase,
            self.exit_code,
            self.started_at,
            self.finished_at,
            template=wire.encode_template(self.launch.template),
        )


@attrs.define(eq=False)
class Op:
    """An operation under way. ``snapshot`` is a list's answer, once it was taken."""

    kind: str
    incarnation: int
    launch: Launch | None = None
    asked_at: int = 0
    snapshot: list | None = None


class Node:
    """All of it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.records: dict[int, bytes] = {}
        self.term_kept = 0
        self.rows: dict[int, Row] = {}
        self.ops: list[Op] = []
        self.zombies: list[Op] = []
        self.events: list[DriverEvent] = []
        self.launches_of: dict[int, int] = {}
        self.touchable: set[int] = set()
        # The controller's side.
        self.term = 1
        self.version = 0
        self.wanted: dict[int, tuple[Template, int, int]] = {}
        self.removed: set[int] = set()
        self.reported: dict[int, object] = {}
        self.boot()

    # --- the agent ----------------------------------------------------------------------------

    def boot(self) -> None:
        self.supervisor = Supervisor([DRIVER])
        self.outbox = Outbox(self.supervisor)
        adoption.restore(self.supervisor, self.records, self.term_kept, CLUSTER, self.now)
        self.list_again = False
        self.ops.append(Op("list", 0, asked_at=self.supervisor.serial))

    def crash(self, *, calls_go_on: bool) -> None:
        """Kill -9: what is under way may still come through in the daemon."""
        if calls_go_on:
            self.zombies += [op for op in self.ops if op.kind != "list"]
        self.ops.clear()
        self.events.clear()
        self.boot()
        self.hello()

    def act(self, *, crash_before_acting: bool = False) -> None:
        """One round of the agent's loop."""
        self.supervisor.tick(self.now)
        actions = self.supervisor.take()
        if actions.term is not None:
            self.term_kept = actions.term
        assert actions.deletes.isdisjoint(actions.puts)
        self.records |= actions.puts
        for key in actions.deletes:
            self.records.pop(key, None)
        if crash_before_acting:
            self.crash(calls_go_on=False)
            return
        self.begin(actions)
        for one in actions.cancels:
            self.cancel(one)
        if actions.relists:
            if any(op.kind == "list" for op in self.ops):
                self.list_again = True
            else:
                self.ops.append(Op("list", 0, asked_at=self.supervisor.serial))

    def begin(self, actions: Actions) -> None:
        """Operations are under way from now on; what must hold of each."""
        busy = {op.incarnation for op in self.ops if op.kind != "list"}
        for launches in actions.launches.values():
            for launch in launches:
                assert launch.incarnation not in busy, "two operations on one instance"
                assert launch.incarnation in self.records, "created before journaled"
                assert self.has_listed, "launched before the daemon was asked what it has"
                busy.add(launch.incarnation)
                self.launches_of[launch.incarnation] = (
                    self.launches_of.get(launch.incarnation, 0) + 1
                )
                self.ops.append(Op("launch", launch.incarnation, launch))
        for stop in actions.stops:
            assert stop.incarnation not in busy, "two operations on one instance"
            assert stop.incarnation in self.touchable, "stopped what nobody asked to stop"
            busy.add(stop.incarnation)
            self.ops.append(Op("stop", stop.incarnation))
        for removes in actions.removes.values():
            for one in removes:
                row = self.rows.get(one)
                orphan = row is not None and row.phase is Phase.CREATED
                assert one not in busy, "two operations on one instance"
                assert orphan or one in self.removed or one not in self.rows
                busy.add(one)
                self.ops.append(Op("remove", one))

    @property
    def has_listed(self) -> bool:
        return DRIVER in self.supervisor.listed

    def cancel(self, one: int) -> None:
        for op in self.ops:
            if op.kind == "launch" and op.incarnation == one and one not in self.rows:
                self.ops.remove(op)
                self.supervisor.launch_cancelled(one, self.now)
                return

    # --- the daemon ---------------------------------------------------------------------------

    def effect(self, op: Op) -> None:
        """What a call does in the daemon."""
        row = self.rows.get(op.incarnation)
        if op.kind == "launch":
            assert op.launch is not None
            row = self.rows.setdefault(op.incarnation, Row(op.launch))
            if row.phase is not Phase.RUNNING:
                row.phase, row.exit_code, row.started_at = Phase.RUNNING, None, self.now
                self.tell(EventKind.STARTED, op.incarnation)
        elif op.kind == "stop" and row is not None and row.phase is Phase.RUNNING:
            self.end(op.incarnation, 143)
        elif op.kind == "remove" and row is not None:
            if row.phase is Phase.RUNNING:
                self.end(op.incarnation, 137)
            del self.rows[op.incarnation]
            self.tell(EventKind.REMOVED, op.incarnation)
        elif op.kind == "list":
            op.snapshot = [one.found() for one in self.rows.values()]

    def tell(self, kind: EventKind, one: int, code: int | None = None) -> None:
        self.now += 0.001
        self.events.append(DriverEvent(kind, one, self.now, code))

    def end(self, one: int, code: int) -> None:
        """An instance ends."""
        row = self.rows[one]
        row.phase, row.exit_code = Phase.EXITED, code
        self.tell(EventKind.EXITED, one, code)
        row.finished_at = self.now

    def answer(self, op: Op) -> None:
        """An operation has come through, and the agent is told."""
        self.ops.remove(op)
        if op.kind != "list" or op.snapshot is None:
            self.effect(op)
        supervisor, now = self.supervisor, self.now
        if op.kind == "launch":
            supervisor.launched(op.incarnation, self.rows[op.incarnation].found(), now)
        elif op.kind == "stop":
            supervisor.stopped(op.incarnation, now)
        elif op.kind == "remove":
            supervisor.removed(op.incarnation, now)
        else:
            adoption.listed(supervisor, DRIVER, op.asked_at, op.snapshot or [], now)
            supervisor.driver_up(DRIVER, now)
            if self.list_again:
                self.list_again = False
                self.ops.append(Op("list", 0, asked_at=supervisor.serial))

    def fail(self, op: Op, how: str) -> None:
        """An operation fails: ``busy``, ``broken``, or ``late`` (it may come through later)."""
        self.ops.remove(op)
        error = {
            "busy": DriverUnavailable("does not answer"),
            "broken": LaunchFailed("did not work"),
            "late": DeadlineExceeded("did not end"),
        }[how]
        if how == "late" and op.kind != "list":
            self.zombies.append(op)
        supervisor = self.supervisor
        if op.kind == "launch":
            supervisor.launch_failed(op.incarnation, error, self.now)
        elif op.kind == "stop":
            supervisor.stop_failed(op.incarnation, error, self.now)
        elif op.kind == "remove":
            supervisor.remove_failed(op.incarnation, error, self.now)
        else:
            self.ops.append(Op("list", 0, asked_at=supervisor.serial))

    def deliver(self) -> None:
        """The oldest event arrives."""
        self.supervisor.event(DRIVER, self.events.pop(0), self.now)

    # --- the controller -----------------------------------------------------------------------

    def want(
        self,
        sequence: int,
        spec: Template,
        desired: Desired = Desired.RUNNING,
        generation: int = 0,
    ) -> None:
        one = inc(sequence)
        if desired is Desired.STOPPED or generation:
            self.touchable.add(one)
        self.wanted[one] = (spec, int(desired), generation)

    def unwant(self, sequence: int) -> None:
        self.wanted.pop(inc(sequence), None)
        self.removed.add(inc(sequence))
        self.touchable.add(inc(sequence))

    def message(self, chosen: dict, *, full: bool, removed: tuple = ()) -> Assign:
        self.version += 1
        groups: dict[bytes, list] = {}
        encoded = {}
        for one, (spec, desired, generation) in chosen.items():
            packed = wire.encode_template(spec)
            encoded[wire.digest(packed)] = packed
            slot = one & 0xFFFF
            groups.setdefault(wire.digest(packed), []).append((slot, one, desired, generation, 0))
        return Assign(
            CLUSTER,
            self.term,
            self.version,
            full,
            encoded,
            tuple(
                AssignedGroup("web", "default", name, DRIVER, tuple(entries))
                for name, entries in groups.items()
            ),
            removed,
        )

    def assign(self, *sequences: int, removed: tuple[int, ...] = ()) -> None:
        """A change arrives."""
        chosen = {inc(one): self.wanted[inc(one)] for one in sequences}
        gone = tuple(inc(one) for one in removed)
        self.apply(self.message(chosen, full=False, removed=gone))

    def assign_all(self) -> None:
        """All of it arrives."""
        gone = tuple(one for one in self.removed if one in self.reported)
        self.apply(self.message(self.wanted, full=True, removed=gone))

    def apply(self, message: Assign) -> None:
        assignment.apply(self.supervisor, message, self.now)

    def hello(self) -> None:
        """A session begins: inventory there, everything back."""
        self.supervisor.version = 0
        self.reported = {one.incarnation: one for one in self.outbox.inventory()}
        self.assign_all()

    def report(self) -> None:
        """What waits is told and acknowledged."""
        while (report := self.outbox.next_report()) is not None:
            for one in report.instances:
                if one.state == InstanceState.REMOVED:
                    self.reported.pop(one.incarnation, None)
                else:
                    self.reported[one.incarnation] = one
            self.outbox.acknowledged(report.sequence)

    # --- rest ---------------------------------------------------------------------------------

    def run(self, seconds: float = 0.0) -> None:
        """Let everything happen, without faults, for at least ``seconds``."""
        end = self.now + seconds
        for _ in range(10_000):
            self.act()
            if self.zombies:
                self.effect(self.zombies.pop(0))
            elif self.ops:
                self.answer(self.ops[0])
            elif self.events:
                self.deliver()
            elif self.supervisor.idle:
                due = self.supervisor.next_due()
                if due > end:
                    self.now = max(self.now, end)
                    self.report()
                    return
                self.now = max(self.now, due)
        raise AssertionError("it does not come to rest")

    @property
    def digests_agree(self) -> bool:
        wanted = digest.total(
            digest.assignment_entry(one, desired, generation)
            for one, (_, desired, generation) in self.wanted.items()
        )
        seen = digest.total(
            digest.inventory_entry(one.incarnation, one.state, one.attempt, one.restarts)
            for one in self.reported.values()
        )
        return wanted == self.supervisor.assignment_digest and seen == self.outbox.inventory_digest
