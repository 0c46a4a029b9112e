"""The agents' side of the state: what their messages change, and what they are answered.

Synchronous and without I/O: it takes a decoded message, changes the cluster's state, and sends
through a function that it was given.  Time comes in as an argument (monotonic seconds).
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import structlog
from attrs import evolve

from swarmctl.controller import assignments, forgetful, guardless, jobs
from swarmctl.controller.acceptance import refusal
from swarmctl.controller.access import NODE, name_of, role_of
from swarmctl.controller.ailments import Ailments, never_ran
from swarmctl.controller.divergence import Divergence
from swarmctl.controller.instance import Instance
from swarmctl.controller.jobs import Completion
from swarmctl.controller.judge import Verdict, judge
from swarmctl.controller.losses import Losses
from swarmctl.controller.meters import Meters
from swarmctl.controller.nesting import is_nested, nodes_in, replace_port, trunk_of, warm
from swarmctl.controller.placing import Fleet, check_facts
from swarmctl.controller.plausible import check_groups, check_reports
from swarmctl.controller.sharing import SharedFacts
from swarmctl.controller.state import ClusterState, Node, Service
from swarmctl.controller.templates import learn
from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, SwarmError
from swarmctl.proto.messages import (
    PROTOCOL_VERSION,
    Controllers,
    FactsChanged,
    Heartbeat,
    HeartbeatAck,
    Hello,
    InstanceReport,
    Message,
    Refuse,
    Report,
    ReportAck,
    ReportedGroup,
    SayHello,
    Welcome,
)
from swarmctl.proto.states import Desired, InstanceState, NodeState

SendTo = Callable[[bytes, Message], None]

_log = structlog.get_logger(__name__)
# Heartbeats between two repetitions of the removals that a node has not confirmed: ten seconds,
# longer than most instances take to stop.
_REMOVALS_REPEATED_EVERY: Final = 5
# Reports that wait for the next heartbeat's acknowledgement: a quarter of what an agent allows.
_UNACKNOWLEDGED_MAX: Final = 8
_UP: Final = (InstanceState.RUNNING, InstanceState.STOPPING)
_LAUNCHING: Final = (InstanceState.ASSIGNED, InstanceState.PREPARING, InstanceState.STARTING)


class Sessions:
    """Sessions of all agents.

    Args:
        state: what the messages change.
        fleet: the scheduler's index over it.
        send: to a peer; raises PeerError at once when it is not there.
        meters: counts how long launches take.
        wake: called when there may be something to reconcile.
        now: seconds in which silence is measured (:mod:`swarmctl.controller.listening`).
        arrival: monotonic seconds now, and since when what is taken in had waited at most.
        wall: epoch seconds, for people.
    """

    def __init__(
        self,
        state: ClusterState,
        fleet: Fleet,
        send: SendTo,
        meters: Meters,
        *,
        wake: Callable[[], None],
        now: Callable[[], float],
        arrival: Callable[[], tuple[float, float]],
        wall: Callable[[], float],
    ) -> None:
        self._state = state
        self._fleet = fleet
        self._send = send
        self._meters = meters
        self._wake = wake
        self._now = now
        self._arrival = arrival
        self._wall = wall
        self._by_peer: dict[bytes, Node] = {}
        self._shared = SharedFacts()
        self._divergence: dict[str, Divergence] = {}
        # Told to the agents, where there are several controllers.
        self.addresses: tuple[str, ...] = ()
        state.fences.begin(now())
        self.losses = Losses(state, fleet, self.refresh, wake=wake, now=now, wall=wall)
        self.ailments = Ailments(lambda: len(state.nodes))
        # The highest term an agent has seen from others, when ours is not above: it is raised.
        self.term_seen = 0
        # Slots of jobs that have succeeded, with the report to acknowledge once committed.
        self.completions: list[Completion] = []

    # --- messages ----------------------------------------------------------------------------

    def on_message(self, peer: bytes, user: str, message: Message) -> bool:
        """Take a session message in; False when it is not one.

        Raises:
            ProtocolError: it says what no agent says; nothing of it was taken in.
        """
        if not isinstance(message, Hello | Heartbeat | Report | FactsChanged):
            return False
        if role_of(user) != NODE:
            self._refuse(peer, "refused", f"{user} is not a node", final=True)
            return True
        if isinstance(message, Hello):
            self._hello(peer, user, message)
            return True
        node = self._by_peer.get(peer)
        if node is None:
            self._answer(peer, SayHello())
            return True
        if node.state is NodeState.LOST:
            self.losses.take_back(node)
        self.ailments.hear(node, self._now())
        match message:
            case Heartbeat():
                self._heartbeat(peer, node, message)
            # One that was overtaken would undo newer ones; what only it tells, the digests show.
            case Report() if message.sequence >= node.report_sequence:
                self._report(peer, node, message)
            case FactsChanged():
                check_facts(message.facts)
                node.facts = self._shared.share(message.facts)
                self.refresh(node)
                self._wake()
        return True

    def peer_departed(self, peer: bytes) -> None:
        """Its connection has ended; the node keeps its time to come back."""
        node = self._by_peer.pop(peer, None)
        if node is not None and node.peer == peer:
            node.peer = None

    # --- hello -------------------------------------------------------------------------------

    def _hello(self, peer: bytes, user: str, hello: Hello) -> None:
        node = self._state.nodes.get(hello.node)
        if node is None or name_of(user) != hello.node:
            self._refuse(
                peer, "refused", f"this key is not pinned for a node {hello.node}", final=True
            )
            return
        late = hello.boot == node.boot and 0 < hello.sequence <= node.hello_sequence
        if late or not self._acceptable(peer, node, hello):
            return
        check_facts(hello.facts)
        check_reports(hello.inventory)
        now = self._now()
        if node.peer is not None:
            self._by_peer.pop(node.peer, None)
        self._by_peer[peer] = node
        node.peer, node.boot, node.hello_sequence = peer, hello.boot, hello.sequence
        node.rival = ""
        node.facts = self._shared.share(hello.facts)
        self._state.ports.vms.pop(node.name, None)
        self.losses.arrived(node)
        node.heard_at = now
        node.joined_at = self._wall()
        node.known_templates.clear()
        # Reports that were sent before it are in it, and older.
        node.report_sequence, node.unacknowledged = hello.reported + 1, 0
        self._divergence[node.name] = Divergence()
        self._state.fences.heard(node.name, now, guarded=hello.guarded)
        node.guarded, node.leased = hello.guarded, hello.lease_left_s > 0
        forgetful.hear(node, hello, now)
        self._state.find_again(node)
        first = not node.reported
        self.losses.brake.returned(node.name, self._now())
        node.reported = True
        node.state = NodeState.JOINING  # Whatever it was, it is here now.
        self.refresh(node)
        learn(self._state, hello.templates)
        self._take_inventory(node, hello.inventory)
        guardless.note(self._state, node)
        if is_nested(node):
            warm(self._state, node)
        self._state.resend(node)
        self._answer(
            peer,
            Welcome(
                PROTOCOL_VERSION,
                self._state.cluster_id,
                self._state.term,
                limits.HEARTBEAT_S,
                limits.NODE_LOST_S,
                takes_groups=True,
            ),
        )
        if self.addresses:
            self._answer(peer, Controllers(self.addresses))
        _log.info("node reported", node=node.name, first=first, instances=len(hello.inventory))
        self._wake()

    def _acceptable(self, peer: bytes, node: Node, hello: Hello) -> bool:
        """Whether this hello may open a session; refuses it if not."""
        refused = refusal(self._state, peer, node, hello, self._now())
        if refused is None:
            return True
        if refused.code == Busy.code:  # Our term is to be higher.
            self.term_seen = max(self.term_seen, hello.term)
            self._wake()
        _log.info("refused", what=refused.what)
        self._answer(peer, refused)
        return False

    def _take_inventory(self, node: Node, inventory: tuple[InstanceReport, ...]) -> None:
        """Make our picture of the node what it reports, and judge what is new."""
        seen = {report.incarnation for report in inventory}
        for instance in list(node.instances.values()):
            if instance.incarnation not in seen and instance.reported:
                self._absent(node, instance)
        for report in inventory:
            self._take_report(node, report)

    # --- reports -----------------------------------------------------------------------------

    def _report(self, peer: bytes, node: Node, message: Report) -> None:
        check_reports(message.instances)
        check_groups(message.groups)
        before = len(self.completions)
        if message.full:
            self._take_inventory(node, message.instances)
            guardless.note(self._state, node)
        else:
            for report in message.instances:
                self._take_report(node, report)
            for group in message.groups:
                self._take_group(peer, node, group)
        done = self.completions[before:]
        if done:
            # Acknowledged when the completions are committed (DESIGN 7, jobs).
            self.completions[before:] = [
                evolve(one, peer=peer, sequence=message.sequence) for one in done
            ]
        else:
            self._acknowledge(peer, node, message)
        self._wake()

    def _acknowledge(self, peer: bytes, node: Node, message: Report) -> None:
        """Acknowledge a report, now or with the next heartbeat.

        Removals are kept by the agent until then, and so many reports it holds back for: those
        are told at once.
        """
        node.report_sequence = message.sequence
        node.unacknowledged += 1
        urgent = any(one.state == InstanceState.REMOVED for one in message.instances)
        if urgent or message.full or node.unacknowledged >= _UNACKNOWLEDGED_MAX:
            node.unacknowledged = 0
            self._answer(peer, ReportAck(message.sequence))

    def _take_group(self, peer: bytes, node: Node, group: ReportedGroup) -> None:
        """Take in instances whose reports differ by nothing but their names.

        This is what a launch of a million goes through: about 3 us an instance.
        """
        state = InstanceState(group.state)
        changed, unknown = self._state.observe_group(node, state, group)
        if state is InstanceState.RUNNING:
            self._count_launches(node, changed)
        for service, instance, before in changed:
            if service.job:
                self._note_completion(instance)
            if service.rolling or before is InstanceState.LOST:
                self._state.dirty_services.add(service.key)
        if unknown:
            # Only a whole inventory tells what they are.
            self._answer(peer, HeartbeatAck(0, resync=True))

    def _count_launches(
        self, node: Node, changed: list[tuple[Service, Instance, InstanceState]]
    ) -> None:
        """Those of ``changed``, which run now, that were launched: as :meth:`_state_changed`."""
        by_acceptance: dict[float, int] = {}
        templates: set[bytes] = set()
        for service, instance, before in changed:
            if before in _LAUNCHING:
                accepted_at = service.record.updated_at
                by_acceptance[accepted_at] = by_acceptance.get(accepted_at, 0) + 1
                templates.add(instance.template)
        for accepted_at, count in by_acceptance.items():
            self._meters.launches.add(self._wall() - accepted_at, count)
        if templates:
            self.ailments.launched(node.name, templates, self._now())

    def _take_report(self, node: Node, report: InstanceReport) -> None:
        instance = node.instances.get(report.incarnation)
        if report.state == InstanceState.REMOVED:
            if instance is not None and not report.driver:  # The node never knew of it.
                self._absent(node, instance)
            elif instance is not None:
                self._gone(instance)
            return
        if instance is None:
            instance = self._admit(node, report)
        before, attempt = instance.state, instance.attempt
        self._state.observe(instance, report)
        if not instance.counted:
            jobs.count(self._state, self._fleet, instance)
        # What fails to launch is tried again, and the state in between may never be told.
        if instance.state is not before or (never_ran(instance) and instance.attempt != attempt):
            self._state_changed(instance, before)
        if report.port_down:
            replace_port(self._state, instance, report.port_down, self._wall())

    def _state_changed(self, instance: Instance, before: InstanceState) -> None:
        if before in _UP and instance.state not in _UP:
            for node in nodes_in(self._state, instance):
                self.losses.stopped(node, instance.name)
        service = self._state.services.get(instance.key)
        if service is None:
            return
        if instance.state is InstanceState.RUNNING and before in _LAUNCHING:
            self._meters.launches.add(self._wall() - service.record.updated_at)
            self.ailments.launched(instance.node, (instance.template,), self._now())
        elif never_ran(instance) and self.ailments.failed(self._state, instance, self._now()):
            self.refresh(self._state.nodes[instance.node])
        self._note_completion(instance)
        # A roll-out goes on when one runs or fails; a node that returns ends the loss.
        if service.rolling or before is InstanceState.LOST:
            self._state.dirty_services.add(instance.key)

    def _note_completion(self, instance: Instance) -> None:
        if jobs.settle(self._state, self._fleet, instance):
            self.completions.append(Completion(instance))

    def _admit(self, node: Node, report: InstanceReport) -> Instance:
        """Take in an instance that only the node knew of."""
        verdict, why = judge(self._state, report, node.name)
        key = (report.tenant, report.service)
        if verdict is Verdict.REPLACES:
            self._state.remove(self._state.services[key].holders[report.slot])
        instance = Instance(
            key=key,
            slot=report.slot,
            incarnation=report.incarnation,
            node=node.name,
            template=report.template,
            driver=report.driver,
            desired=Desired.RUNNING,
            generation=report.generation,
            removing=verdict is Verdict.REMOVE,
            quarantined=verdict is Verdict.QUARANTINE,
        )
        instance.take(report)
        self._state.add(instance)
        if report.attachments:
            service = self._state.services.get(key)
            trunk = partial(trunk_of, self._state, node)
            self._state.ports.adopt(service, instance, report.attachments, trunk)
        self._fleet.allocate(self._state, instance)
        self._note_completion(instance)
        if verdict is not Verdict.ADOPT:
            _log.info("reported instance", instance=instance.name, verdict=verdict.value, why=why)
        self._state.dirty_services.add(key)
        return instance

    def _absent(self, node: Node, instance: Instance) -> None:
        """The node does not know of it: gone, unless its driver has yet to say what it has.

        A copy of a job that has succeeded goes all the same: to be told of it once more, the node
        would run it once more, with room that may be another's by now.
        """
        unlisted = instance.driver in {one.name for one in node.facts.drivers if not one.listed}
        if unlisted and not jobs.is_over(self._state, instance):
            self._state.unsee(instance)
        else:
            self._gone(instance)

    def _gone(self, instance: Instance) -> None:
        for node in nodes_in(self._state, instance):
            self.losses.ended(node, instance.name)  # With the VM all that ran in it.
        self._fleet.free(self._state, instance)
        self._state.forget(instance)
        self._state.capacity_changed = True
        self._wake()

    # --- heartbeats --------------------------------------------------------------------------

    def _heartbeat(self, peer: bytes, node: Node, beat: Heartbeat) -> None:
        if beat.wall_s:
            self.ailments.clocks.heard(node.name, beat.wall_s, *self._arrival(), self._wall())
        reasons = beat.reasons + self.ailments.reasons(node.name, self._now())
        if reasons != node.reasons:
            as_well = bool(reasons) is bool(node.reasons)
            node.reasons = reasons
            if as_well:
                self._fleet.node_changed(node)  # Only the words: nothing is placed otherwise.
            else:
                self.refresh(node)
                self._wake()
        diverged = self._divergence.setdefault(node.name, Divergence())
        if diverged.assignment(node, beat, self._now()):
            _log.info("assignment diverged, sending all of it", node=node.name)
            node.known_templates.clear()
            self._state.resend(node)
            self._wake()
        if node.leaving and beat.sequence % _REMOVALS_REPEATED_EVERY == 0:
            # No digest shows a removal that the node never heard of, nor had what is removed.
            self._state.repeat_removals(node)
            self._wake()
        resync = diverged.inventory(node, beat)
        if resync:
            _log.info("inventory diverged, asking for all of it", node=node.name)
        reported = node.report_sequence if node.unacknowledged else 0
        node.unacknowledged = 0
        if node.guarded is not beat.guarded:
            node.guarded = beat.guarded
            self._state.fences.note_guard(node.name, guarded=beat.guarded)
            guardless.note(self._state, node)
            self.refresh(node)
            self._wake()
        forgetful.look_at_guard(node, self._now())
        if beat.quiet and not (resync or reported):
            return
        lease_s = self._lease(node, guarded=beat.guarded)
        self._answer(peer, HeartbeatAck(beat.sequence, resync, reported, lease_s))

    def _lease(self, node: Node, *, guarded: bool) -> float:
        """Renew the node's lease; for how long."""
        now, fences = self._now(), self._state.fences
        if node.needs_full and not self._keeps_lease(node):
            return 0.0  # What was replaced elsewhere it has to know first.
        if not forgetful.is_known(node, now, fences.wait_s):
            return 0.0
        if fences.outdated(node.leaving.values()):
            return 0.0  # It was told, and has not said that it is done: it may not have heard.
        return fences.grant(node.name, guarded=guarded, now=now)

    def _keeps_lease(self, node: Node) -> bool:
        """Whether a node that was told nothing yet, being on hold, runs on what is fenced there.

        While its lease holds, nothing of it was given to another node; nor is it on hold.
        """
        if not self._state.hold or not node.leased:
            return False
        return not self._state.fences.outdated(node.instances.values())

    # --- nodes -------------------------------------------------------------------------------

    def refresh(self, node: Node) -> None:
        """Work out the node's state anew, and tell the scheduler; a loss is not ended by it."""
        if node.state is not NodeState.LOST:
            node.state = node.standing
        self._state.capacity_changed = True
        self._fleet.node_changed(node)

    def flush(self) -> None:
        """Send each node what has changed for it."""
        self.dispatch(self._state.take_dirty_nodes())

    def dispatch(self, names: Iterable[str]) -> None:
        """Send the nodes ``names`` what has changed for them."""
        self._state.begin_telling(self._wall())
        assignments.dispatch(self._state, names, self._send, self._now())

    def forget(self, node: Node) -> None:
        """The node was taken out of the registry."""
        self.losses.brake.forget(node.name)
        if node.peer is not None:
            self.peer_departed(node.peer)
        self._divergence.pop(node.name, None)
        self.ailments.forget(node.name)

    # --- sending -----------------------------------------------------------------------------

    def _answer(self, peer: bytes, message: Message) -> None:
        try:
            self._send(peer, message)
        except SwarmError as error:
            # It has gone, or does not read: it will begin again with hello.
            _log.debug("answer not delivered", error=str(error))

    def _refuse(
        self, peer: bytes, code: str, what: str, *, hint: str = "", final: bool = False
    ) -> None:
        _log.info("refused", what=what)
        self._answer(peer, Refuse(code, what, "", hint, final))
