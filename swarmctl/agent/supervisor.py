"""The agent's judgement: what a node should have, what it has, and what to do about it.

Pure and synchronous: inputs are method calls that carry the time, outputs are
:meth:`Supervisor.take` (operations and journal writes) and the reports of :mod:`outbox`.
It owns no task, no clock and no daemon, so an idle instance costs a row in a dictionary, and a
test can drive it through any order of events.

Each input updates what is known of one instance and then calls :meth:`Supervisor.step`, which
looks up (phase, goal) in :data:`~swarmctl.agent.transitions.STEPS`.  At most one operation is
under way for an instance; every operation handed out is answered by exactly one call
(``launched``, ``launch_failed``, ``launch_cancelled``, ``stopped``, ``stop_failed``, ``removed``,
``remove_failed``).

Assignments come in through :mod:`swarmctl.agent.assignment`, lists of drivers and the journal at
start through :mod:`swarmctl.agent.adoption`: both are further inputs of this machine.
"""

import heapq
import math
from collections.abc import Collection
from typing import Final

from swarmctl.agent import backoff
from swarmctl.agent.actions import Actions, Stop
from swarmctl.agent.drivers.api import DriverEvent, EventKind, Found
from swarmctl.agent.drivers.api import Phase as Seen
from swarmctl.agent.health import Watchlist
from swarmctl.agent.instance import Instance
from swarmctl.agent.transitions import AFTER, STEPS, Goal, Happened, Phase, Step
from swarmctl.proto import digest, limits
from swarmctl.proto.errors import DeadlineExceeded, DriverUnavailable, PortNotUp, SwarmError
from swarmctl.proto.states import FINAL, InstanceState
from swarmctl.spec import wire
from swarmctl.spec.models import Template

# A stop or remove that failed is repeated after this long: its daemon is usually restarting.
OPERATION_RETRY_S: Final = 2.0
# Removed incarnations that are remembered, in case a call that was given up still makes one.
REMOVED_REMEMBERED: Final = 10_000

# A reason is a sentence or two; an inventory of 10,000 with the longest still fits a message.
REASON_MAX_CHARS: Final = 512

_S = InstanceState
# States before the first sign of life: an attempt in one of them has not begun to run.
_EARLY: Final = frozenset({_S.PENDING, _S.ASSIGNED, _S.PREPARING, _S.STARTING})


class Supervisor:
    """All instances of one node.

    Args:
        drivers: names of the drivers that this agent was given.
        wall_offset_s: epoch seconds minus the clock that inputs carry, for ``since``.
    """

    def __init__(self, drivers: Collection[str], wall_offset_s: float = 0.0) -> None:
        self.drivers = frozenset(drivers)
        self.wall_offset_s = wall_offset_s
        self.instances: dict[int, Instance] = {}
        # None stands for one that this release cannot read.
        self.templates: dict[bytes, Template | None] = {}
        self._encoded: dict[bytes, bytes] = {}
        self.cluster_id = ""
        self.term = 0
        # Of the last assignment in this session.
        self.version = 0
        # The last journal key given to a template.
        self.template_key = 0
        self.assignment_digest = 0
        self.missing_templates: set[bytes] = set()  # Here, or by the controller: a hello ends it.
        # Drivers that have said what they have; nothing is launched on the others.
        self.listed: set[str] = set()
        self.down: dict[str, str] = {}
        # For the outbox: instances whose report has changed, and those that are no more and whose
        # removal the controller has not acknowledged.
        self.dirty: dict[int, None] = {}
        self.gone: dict[int, Instance] = {}
        self.unsent_gone: dict[int, None] = {}
        self.urgent = False
        self.now = 0.0
        self.serial = 0
        self.actions = Actions()
        self.unwritten: dict[int, Instance] = {}
        self.health = Watchlist()
        self._removed: dict[int, None] = {}
        self._timers: list[tuple[float, int]] = []

    # --- outputs ------------------------------------------------------------------------------

    def take(self) -> Actions:
        """All that is to be done since the last call."""
        actions, self.actions = self.actions, Actions()
        for incarnation, instance in self.unwritten.items():
            actions.puts[incarnation] = instance.to_journal()
            instance.journaled = True
        self.unwritten.clear()
        # One that was removed and came back within a batch: the later word stands.
        actions.deletes.difference_update(actions.puts)
        return actions

    @property
    def idle(self) -> bool:
        """Whether :meth:`take` would be empty."""
        actions = self.actions
        return not (
            self.unwritten
            or actions.launches
            or actions.stops
            or actions.removes
            or actions.cancels
            or actions.relists
            or actions.journals
        )

    def next_due(self) -> float:
        """When :meth:`tick` has something to do; infinite when never."""
        return self._timers[0][0] if self._timers else math.inf

    # --- inputs: time and drivers -------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Let everything happen that is due at ``now``."""
        self.now = now
        while self._timers and self._timers[0][0] <= now:
            due, incarnation = heapq.heappop(self._timers)
            instance = self.instances.get(incarnation)
            if instance is None or instance.due != due:
                continue  # It was rescheduled or is gone; heaps forget lazily.
            if instance.orphaned:
                # It may have been started since: the list decides, see adoption.
                self.actions.relists.add(instance.driver)
                continue
            if instance.phase == Phase.WAITING:
                instance.phase = AFTER[instance.phase, Happened.DUE]
            self.step(instance)

    def driver_down(self, driver: str, reason: str, now: float) -> None:
        """The driver's daemon does not answer: say so of what waits for it."""
        self.now = now
        if self.down.get(driver) == reason:
            return
        self.down[driver] = reason
        if driver not in self.listed:
            for instance in self.instances.values():
                if instance.phase == Phase.UNSEEN and instance.driver == driver:
                    self.show(instance, instance.state, reason)

    def driver_up(self, driver: str, now: float) -> None:
        """The driver's daemon answers: what waited for it need not wait longer."""
        self.now = now
        if self.down.pop(driver, None) is None:
            return
        for instance in self.instances.values():
            if instance.waits_for_driver and instance.driver == driver:
                self.schedule(instance, 0.0)

    def event(self, driver: str, event: DriverEvent, now: float) -> None:
        """The driver tells something without being asked."""
        self.now = now
        instance = self.instances.get(event.incarnation)
        if event.kind is EventKind.RESYNC:
            self.actions.relists.add(driver)
        elif instance is None:
            if event.kind is EventKind.STARTED:
                self.actions.relists.add(driver)
        elif not instance.driver or instance.driver == driver:
            self.touch(instance)
            if instance.phase == Phase.UNSEEN:
                # A list under way may be older than this: one more tells what came of it.
                self.actions.relists.add(driver)
            elif event.kind is EventKind.STARTED:
                self._event_started(instance)
            elif event.kind is EventKind.EXITED:
                self._event_exited(instance, event)
            else:
                self._event_removed(instance)

    def _event_started(self, instance: Instance) -> None:
        # Our own starts are told by the operation. Another one may be old news by now: the
        # event does not say, the list does.
        if instance.phase not in (Phase.LAUNCHING, Phase.RUNNING, Phase.REMOVING):
            self.actions.relists.add(instance.driver)

    def _event_exited(self, instance: Instance, event: DriverEvent) -> None:
        phase = instance.phase
        if phase == Phase.LAUNCHING:
            instance.early_exit = event
        elif phase in (Phase.STOPPING, Phase.STOPPED):
            if instance.exit_code is None:
                instance.exit_code = event.exit_code
                if phase == Phase.STOPPED:
                    self.mark(instance)
        elif phase == Phase.RUNNING and not (event.at and event.at < instance.started_at):
            self.exited(instance, event.exit_code, event.at, event.reason)
        elif phase == Phase.RUNNING:
            # Of the attempt before, or the clock was set back since the start: the list tells.
            self.actions.relists.add(instance.driver)

    def _event_removed(self, instance: Instance) -> None:
        if instance.phase == Phase.RUNNING:
            self.exited(instance, None, 0.0, "it was removed behind our back")
        elif instance.phase == Phase.LAUNCHING:
            self.actions.relists.add(instance.driver)
        elif not instance.known and instance.phase == Phase.EXITED and not instance.removing:
            self.drop(instance, "it was removed behind our back")

    # --- inputs: ends of operations -----------------------------------------------------------

    def progressed(self, incarnation: int, state: InstanceState, reason: str, now: float) -> None:
        """A launch under way has come to ``state``; ``reason`` is what it does, for people."""
        self.now = now
        instance = self.instances.get(incarnation)
        if instance is None or instance.phase != Phase.LAUNCHING:
            return
        # One that is tried again is starting all the time, and says what was wrong before.
        if instance.state != _S.STARTING:
            self.show(instance, state, reason, urgent=False)

    def launched(self, incarnation: int, found: Found, now: float) -> None:
        """A launch has come through: it runs, or ran and ended already."""
        self.now = now
        instance = self._operated(incarnation, Phase.LAUNCHING)
        if instance is None:
            return
        instance.runtime_id = found.runtime_id
        instance.addresses, instance.ports = found.addresses, found.port_labels
        instance.started_at = found.started_at
        instance.refusals = 0
        instance.waits_for_driver = False
        instance.exit_code = None
        early, instance.early_exit = instance.early_exit, None
        if found.phase is Seen.EXITED:
            self._ended_in_launch(instance, found.exit_code, found.finished_at, found.reason)
            return
        if early is not None and early.at and early.at >= found.started_at > 0:
            self._ended_in_launch(instance, early.exit_code, early.at, early.reason)
            return
        if early is not None:
            # The end of the attempt before, or of this one: only the daemon knows.
            self.actions.relists.add(instance.driver)
        instance.phase = AFTER[Phase.LAUNCHING, Happened.LAUNCHED]
        self.runs(instance)
        self.step(instance)

    def runs(self, instance: Instance, *, was_well: bool = False) -> None:
        """It runs; where its health is checked, it is said to once that was good."""
        if not (self.health.in_use and self.health.attach(instance, self, was_well=was_well)):
            self.show(instance, _S.RUNNING, "")

    def _ended_in_launch(
        self, instance: Instance, exit_code: int | None, at: float, why: str
    ) -> None:
        instance.phase = Phase.RUNNING
        self.exited(instance, exit_code, at, why)

    def launch_failed(self, incarnation: int, error: SwarmError, now: float) -> None:
        """A launch did not come to run."""
        self.now = now
        instance = self._operated(incarnation, Phase.LAUNCHING)
        if instance is None:
            return
        template = self.templates[instance.template]
        assert template is not None, "launched without a template"
        instance.port_down = error.port if isinstance(error, PortNotUp) else ""
        if isinstance(error, DeadlineExceeded | DriverUnavailable):
            # The call may still have come through. And a list is asked for until it is answered:
            # that tells at once when the driver is back.
            self.actions.relists.add(instance.driver)
        if error.temporary:
            instance.refusals += 1
            verdict = backoff.after_launch_error(template, error, instance.refusals, instance.name)
            instance.waits_for_driver = True
        else:
            instance.failures += 1
            verdict = backoff.after_launch_error(template, error, instance.failures, instance.name)
        self._carry_out(instance, verdict, keep_state=error.temporary)
        self.step(instance)

    def launch_cancelled(self, incarnation: int, now: float) -> None:
        """A launch was given up before it created anything."""
        self.now = now
        instance = self._operated(incarnation, Phase.LAUNCHING)
        if instance is not None:
            instance.phase = AFTER[Phase.LAUNCHING, Happened.LAUNCH_CANCELLED]
            self.step(instance)

    def stopped(self, incarnation: int, now: float) -> None:
        """A stop has come through."""
        self.now = now
        instance = self._operated(incarnation, Phase.STOPPING)
        if instance is not None:
            if (watch := instance.failed_watch) is not None:
                instance.started_at = watch.well_since(self.wall_offset_s)
                self.exited(instance, None, 0.0, watch.condemned)
                return
            instance.phase = AFTER[Phase.STOPPING, Happened.STOP_DONE]
            instance.failures = 0
            self.show(instance, _S.STOPPED, instance.reason)
            self.put(instance)
            self.step(instance)

    def stop_failed(self, incarnation: int, error: SwarmError, now: float) -> None:
        """A stop failed: it is repeated a little later."""
        self.now = now
        self._repeat_later(
            self._operated(incarnation, Phase.STOPPING), Happened.STOP_FAILED, "stop", error
        )

    def removed(self, incarnation: int, now: float) -> None:
        """A remove has come through."""
        self.now = now
        instance = self._operated(incarnation, Phase.REMOVING)
        if instance is not None:
            self.drop(instance, "")

    def remove_failed(self, incarnation: int, error: SwarmError, now: float) -> None:
        """A remove failed: it is repeated a little later."""
        self.now = now
        self._repeat_later(
            self._operated(incarnation, Phase.REMOVING), Happened.REMOVE_FAILED, "remove", error
        )

    def _repeat_later(
        self, instance: Instance | None, happened: Happened, what: str, error: SwarmError
    ) -> None:
        if instance is None:
            return
        instance.phase = AFTER[instance.phase, happened]
        if instance.orphaned:
            # Not taken away unless it is seen once more, created and not started.
            instance.phase, instance.removing = Phase.NEW, False
        self.schedule(instance, OPERATION_RETRY_S)
        wait = backoff.seconds(OPERATION_RETRY_S)
        self.show(instance, instance.state, f"{what} failed: {error.what}; next try in {wait}")
        if isinstance(error, DeadlineExceeded):
            self.actions.relists.add(instance.driver)

    def _operated(self, incarnation: int, phase: Phase) -> Instance | None:
        """The instance that an operation ended for."""
        instance = self.instances.get(incarnation)
        if instance is None or instance.phase != phase:
            return None
        self.touch(instance)
        return instance

    # --- the machine --------------------------------------------------------------------------

    def step(self, instance: Instance) -> None:
        """Do what the table says for its phase and goal."""
        match STEPS[instance.phase][instance.goal]:
            case Step.NOTHING:
                pass
            case Step.LAUNCH:
                self._launch(instance)
            case Step.STOP:
                self._stop(instance)
            case Step.REMOVE:
                self._remove(instance)
            case Step.CANCEL:
                self.actions.cancels.append(instance.incarnation)
            case Step.JUDGE:
                self._judge(instance)
            case Step.SETTLE:
                self._settle(instance)

    def _launch(self, instance: Instance) -> None:
        template = self.templates.get(instance.template)
        if template is None:
            self._reject(instance, "this release of the agent cannot read its spec")
            return
        if instance.driver not in self.drivers:
            self._reject(instance, f"this node has no driver {instance.driver}")
            return
        if instance.phase == Phase.STOPPED or instance.goal == Goal.RESTART:
            instance.failures = 0
        if instance.state not in _EARLY:
            instance.attempt += 1
        # One that is tried again goes on saying what was wrong before, until it runs.
        again = instance.state == _S.STARTING or (
            instance.phase == Phase.NEW and instance.state in (_S.PREPARING, _S.FAILED)
        )
        state = _S.STARTING if again and instance.state != _S.PREPARING else _S.PREPARING
        instance.phase = Phase.LAUNCHING
        instance.applied = instance.generation
        instance.early_exit = None
        instance.waits_for_driver = False
        instance.due = 0.0
        self.show(instance, state, instance.reason if again else "", urgent=False)
        self.put(instance)
        self.actions.launches.setdefault(instance.driver, []).append(instance.launch(template))

    def _reject(self, instance: Instance, reason: str) -> None:
        instance.phase = Phase.FINISHED
        instance.applied = instance.generation
        if instance.state not in (_S.PENDING, _S.ASSIGNED):
            instance.attempt += 1
        self.show(instance, _S.REJECTED, reason)
        self.put(instance)

    def _stop(self, instance: Instance) -> None:
        if instance.due > self.now:
            return
        template = self.templates.get(instance.template)
        grace_s = limits.STOP_GRACE_S if template is None else template.stop_grace_period_s
        reason = {
            Goal.RESTART: "restart asked for",
            Goal.STOP: "stop asked for",
        }.get(instance.goal, "to be removed")
        instance.phase = Phase.STOPPING
        instance.exit_code = None
        self.show(instance, _S.STOPPING, reason)
        self.actions.stops.append(Stop(instance.driver, instance.incarnation, grace_s))

    def _remove(self, instance: Instance) -> None:
        if instance.driver not in self.drivers:
            self.drop(instance, f"this node has no driver {instance.driver} any more")
            return
        if instance.phase == Phase.EXITED and instance.due > self.now:
            return
        instance.phase = Phase.REMOVING
        self.actions.removes.setdefault(instance.driver, []).append(instance.incarnation)

    def _settle(self, instance: Instance) -> None:
        if instance.phase == Phase.FINISHED and instance.state == _S.SUCCEEDED:
            return  # A completion is a fact; starting it again takes an explicit restart.
        instance.phase = Phase.STOPPED
        # What failed stays failed for the eyes, it only will not be tried again.
        reason = instance.reason.partition("; next try")[0]
        if instance.state in FINAL:
            self.show(instance, instance.state, reason)
        else:
            self.show(instance, _S.STOPPED, "stop asked for")
        self.put(instance)

    def exited(self, instance: Instance, exit_code: int | None, at: float, why: str) -> None:
        """What ran has ended. ``at`` is the driver's time of it, 0 when not known."""
        instance.phase = AFTER[instance.phase, Happened.EXITED]
        instance.exit_code = exit_code
        instance.due = 0.0
        ended_at = at or self.now + self.wall_offset_s
        template = self.templates.get(instance.template)
        good_s = (template.restart.window_s if template else 0) or limits.RESTART_RESET_S
        if instance.started_at and ended_at - instance.started_at >= good_s:
            instance.failures = 0
        instance.exit_reason = why
        self.step(instance)
        if instance.phase == Phase.EXITED:  # Nobody wants to judge it: only say what is seen.
            state = _S.SUCCEEDED if exit_code == 0 else _S.FAILED
            self.show(instance, state, why or f"exited {exit_code}")

    def _judge(self, instance: Instance) -> None:
        template = self.templates.get(instance.template)
        if template is None:
            self._reject(instance, "this release of the agent cannot read its spec")
            return
        span_s = instance.failed(self.now + self.wall_offset_s)
        verdict = backoff.after_exit(
            template, instance.exit_code, instance.exit_reason, instance.failures, span_s
        )
        if verdict.delay_s is not None:
            instance.restarts += 1
            instance.attempt += 1
        self._carry_out(instance, verdict, keep_state=False)

    def _carry_out(self, instance: Instance, verdict: backoff.Verdict, *, keep_state: bool) -> None:
        if verdict.delay_s is None:
            instance.phase = Phase.FINISHED
        else:
            instance.phase = Phase.WAITING
            self.schedule(instance, verdict.delay_s)
        state = instance.state if keep_state else verdict.state
        self.show(instance, state, verdict.reason)
        self.put(instance)

    # --- the books ----------------------------------------------------------------------------

    def show(
        self, instance: Instance, state: InstanceState, reason: str, *, urgent: bool = True
    ) -> None:
        """Set what users see of it."""
        if instance.state != state:
            instance.since = self.now + self.wall_offset_s
            instance.state = state
        instance.reason = reason[:REASON_MAX_CHARS]
        self.mark(instance, urgent=urgent)

    def mark(self, instance: Instance, *, urgent: bool = True) -> None:
        """Its report has changed."""
        self.dirty[instance.incarnation] = None
        self.urgent = self.urgent or urgent

    def put(self, instance: Instance) -> None:
        """Its journal entry has changed; what the controller never wanted has none."""
        if instance.known or instance.journaled or instance.removing:
            self.unwritten[instance.incarnation] = instance

    def touch(self, instance: Instance) -> None:
        """Something was observed of it: lists asked for before are older."""
        self.serial += 1
        instance.serial = self.serial

    def schedule(self, instance: Instance, delay_s: float) -> None:
        """Come back to it after ``delay_s``."""
        instance.due = self.now + delay_s
        heapq.heappush(self._timers, (instance.due, instance.incarnation))

    def reassign(self, instance: Instance) -> None:
        """Bring the assignment's digest up to date after a change of what is wanted."""
        wanted = instance.known and not instance.removing
        after = (
            digest.assignment_entry(instance.incarnation, instance.desired, instance.generation)
            if wanted
            else 0
        )
        self.assignment_digest = digest.replace(
            self.assignment_digest, instance.assigned_digest, after
        )
        instance.assigned_digest = after

    def drop(self, instance: Instance, reason: str) -> None:
        """It is no more: forget it, and tell so until that is acknowledged."""
        incarnation = instance.incarnation
        del self.instances[incarnation]
        self.unwritten.pop(incarnation, None)
        self.dirty.pop(incarnation, None)
        self.assignment_digest = digest.replace(self.assignment_digest, instance.assigned_digest, 0)
        if instance.journaled:
            self.actions.deletes.add(incarnation)
        if instance.removing and not instance.orphaned:
            # Somebody wanted it gone; an orphan that runs one day is not unwanted, only unknown.
            self.remember_removed(incarnation)
        instance.phase = Phase.UNSEEN
        self.show(instance, _S.REMOVED, reason)
        del self.dirty[incarnation]
        self.gone[incarnation] = instance
        self.unsent_gone[incarnation] = None

    def remember_removed(self, incarnation: int) -> None:
        """Recognise it should a call that was given up make it once more."""
        self._removed[incarnation] = None
        if len(self._removed) > REMOVED_REMEMBERED:
            del self._removed[next(iter(self._removed))]

    def templates_in_use(self, bytes_max: int) -> dict[bytes, bytes]:
        """The instances' templates in encoded form, by digest; as many as ``bytes_max`` takes."""
        found: dict[bytes, bytes] = {}
        used = {one.template: self.templates.get(one.template) for one in self.instances.values()}
        kept = self._encoded  # To encode one costs more than all else of a hello.
        self._encoded = {n: kept.get(n) or wire.encode_template(t) for n, t in used.items() if t}
        for name, encoded in self._encoded.items():
            bytes_max -= len(encoded)
            if bytes_max >= 0:
                found[name] = encoded
        return found

    def was_removed(self, incarnation: int) -> bool:
        """Whether it was removed here not long ago."""
        return incarnation in self._removed
