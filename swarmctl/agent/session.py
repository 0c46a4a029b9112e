"""The agent's session with a controller: the shell around the tables.

It owns the link.  What to do when is decided by :class:`~swarmctl.proto.session.SessionMachine`
(hello, welcome, silence, refusal) and by the supervisor (assignments); this module moves messages
and keeps time.  A connection's tasks live in a nursery of their own, which ends with it.
"""

import math
import random
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio
from attrs import evolve

import swarmctl
from swarmctl.agent import assignment
from swarmctl.agent.alarms import Alarm, Alarms
from swarmctl.agent.fencing import Leases
from swarmctl.agent.outbox import Outbox
from swarmctl.agent.patience import Patience, is_content
from swarmctl.agent.rejoining import until_refused
from swarmctl.agent.supervisor import Supervisor
from swarmctl.proto import codec, limits
from swarmctl.proto.errors import (
    Conflict,
    PeerError,
    ProtocolError,
    SwarmError,
    VersionMismatch,
    from_wire,
)
from swarmctl.proto.messages import (
    PROTOCOL_OLDEST,
    PROTOCOL_VERSION,
    Assign,
    Controllers,
    FactsChanged,
    Heartbeat,
    HeartbeatAck,
    Hello,
    Message,
    NodeFacts,
    Refuse,
    ReportAck,
    SayHello,
    Welcome,
)
from swarmctl.proto.session import SessionAction, SessionEvent, SessionMachine
from swarmctl.transport.api import Link
from swarmctl.transport.errors import Backpressure, LinkLost
from swarmctl.transport.rpc import Handler, RpcServer

_log = structlog.get_logger(__name__)

# Reports that tell of progress only wait this long for company; ends and starts do not wait.
REPORT_DELAY_S: Final = 0.25
# A hello for a missing template is not repeated sooner than this.
RENEW_MIN_S: Final = 1.0
# Messages taken in before the node's other tasks get their turn.
MESSAGES_A_TURN: Final = 20
# Heartbeats left out in a row while reports come and go: their digests are needed now and then.
HEARTBEATS_SKIPPED_MAX: Final = 2
# Templates in a hello, beside the inventory: thousands of ordinary ones.
HELLO_TEMPLATES_BYTES: Final = 1024 * 1024
# What the controller is called in the books of requests: a link has one peer.
CONTROLLER: Final = b"controller"


class Session:
    """Speaks for one node.

    Args:
        link: to the controllers.
        node: the node's name.
        supervisor: what the node should have and has.
        outbox: what of it has to be told.
        facts: the node's present facts.
        reasons: what is wrong on the node now.
        handlers: the requests that it serves.
        wake: called when the supervisor was told something.
        rejoin: enrol again; raises SwarmError when that is refused.
        learn: remember where the controllers are.
        random_: for jitter.
        leases: those of fenced instances.
        wall: this machine's clock, epoch seconds; 0 where it is not to be told.
        alarms: the clock that heartbeats keep to, run by the caller; its own otherwise.
    """

    def __init__(
        self,
        link: Link,
        node: str,
        supervisor: Supervisor,
        outbox: Outbox,
        *,
        facts: Callable[[], NodeFacts],
        reasons: Callable[[], tuple[str, ...]],
        handlers: dict[str, Handler],
        wake: Callable[[], None],
        rejoin: Callable[[], Awaitable[None]],
        learn: Callable[[tuple[str, ...]], None] = lambda _addresses: None,
        random_: random.Random,
        leases: Leases | None = None,
        wall: Callable[[], float] = lambda: 0.0,
        alarms: Alarms | None = None,
    ) -> None:
        self.boot = f"{random_.getrandbits(64):016x}"
        self.machine = SessionMachine()
        self._link = link
        self._node = node
        self._supervisor = supervisor
        self._outbox = outbox
        self._facts = facts
        self._reasons = reasons
        self._handlers = handlers
        self._wake_agent = wake
        self._rejoin = rejoin
        self._learn = learn
        self._random = random_
        self._leases = leases or Leases(None)
        self._wall = wall
        self._alarms = alarms or Alarms()
        self._runs_alarms = alarms is None
        self._final: SwarmError | None = None
        self._changed = trio.Event()
        self._scope = trio.CancelScope()
        self._rpc: RpcServer | None = None
        self._patience = Patience()
        self._heard_at = 0.0
        # When the last report was sent.
        self._told_at = -math.inf
        self._takes_groups = False
        self._heartbeat_s = limits.HEARTBEAT_S
        self._alarm = Alarm(math.inf, self._keep_alive)
        self._interval_s = self._heartbeat_s
        # Heartbeats left out since the last one.
        self._skipped = 0
        self._sequence = 0
        self._hellos = 0
        self._pauses = 0
        self._renewed_at = -RENEW_MIN_S

    # --- from the agent -----------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to report; where there is not, nobody is woken for it."""
        supervisor = self._supervisor
        if self._outbox.waiting or supervisor.urgent or supervisor.missing_templates:
            self._changed.set()

    def facts_changed(self) -> None:
        """The node's facts are different now; they go with a hello that is due."""
        if self._supervisor.missing_templates:
            self._renew()
        if self.machine.is_open:
            self._send(FactsChanged(self._facts()))

    async def run(self) -> SwarmError:
        """Keep a session until it is refused for good; the error that says why."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_key, nursery.cancel_scope)
            if self._runs_alarms:
                nursery.start_soon(self._alarms.run)
            while self._final is None:
                await self._link.wait_connected()
                await self._converse()
                if self._final is None:
                    await self._pause()
            nursery.cancel_scope.cancel()
        assert self._final is not None, "left without a reason"
        return self._final

    # --- a connection -------------------------------------------------------------------------

    async def _converse(self) -> None:
        """From a new connection until it is lost or left."""
        self._heard_at = trio.current_time()
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                self._rpc = RpcServer(self._handlers, nursery)
                self._feed(SessionEvent.CONNECTED)
                self._set_alarm()
                nursery.start_soon(self._report)
                try:
                    await self._listen()
                finally:
                    self._alarm.cancel()
        if self._feed(SessionEvent.DISCONNECTED) is not None:
            _log.info("connection lost", endpoint=self._link.endpoint)

    def _feed(self, event: SessionEvent) -> SessionAction | None:
        """Let the table decide, and carry it out; what was done, None for nothing."""
        before = self.machine.state
        action = self.machine.feed(event)
        match action:
            case SessionAction.SAY_HELLO:
                self._hello()
            case SessionAction.BEGIN:
                self._supervisor.version = 0
                self._pauses = 0
                self.wake()
            case SessionAction.LEAVE:
                self._scope.cancel()
                self._link.use_next()
            case SessionAction.GIVE_UP:
                self._scope.cancel()
            case SessionAction.NOTHING:
                return None if self.machine.state is before else action
        return action

    async def _pause(self) -> None:
        """Between two connections: short at first, longer while no session opens."""
        longest = min(limits.RECONNECT_MIN_S * 2.0 ** min(self._pauses, 16), limits.RECONNECT_MAX_S)
        self._pauses += 1
        await trio.sleep(longest * self._random.uniform(0.5, 1.0))

    def _hello(self) -> None:
        supervisor = self._supervisor
        supervisor.missing_templates.clear()
        self._heard_at = trio.current_time()
        self._hellos += 1
        hello = Hello(
            PROTOCOL_VERSION,
            swarmctl.__version__,
            self._node,
            self.boot,
            supervisor.cluster_id,
            supervisor.term,
            self._facts(),
            self._outbox.inventory(),
            supervisor.assignment_digest,
            supervisor.templates_in_use(HELLO_TEMPLATES_BYTES),
            self._leases.is_guarded,
            sequence=self._hellos,
            lease_left_s=self._leases.left_s,
            forgotten=self._leases.forgotten(supervisor.instances),
            reported=self._outbox.sequence,
        )
        try:
            self._send(hello)
        except codec.MessageTooLarge:
            # The inventory has to arrive; templates only help a controller that lost its store.
            self._send(evolve(hello, templates={}))

    def _send(self, message: Message) -> bool:
        """Whether it was taken; a connection that is lost is ended here."""
        try:
            self._link.send(codec.encode(message))
        except Backpressure:
            return False
        except LinkLost:
            self._scope.cancel()
            return False
        return True

    def _send_answer(self, message: Message) -> None:
        """For requests: raises where nobody listens any more, so that the handler ends."""
        self._link.send(codec.encode(message))

    async def _watch_key(self, scope: trio.CancelScope) -> None:
        self._final = await until_refused(self._link, self._rejoin, self._node)
        self.machine.feed(SessionEvent.REFUSED_FINALLY)
        scope.cancel()

    # --- tasks of a connection ----------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                batch = await self._link.receive_batch()
            except LinkLost:
                self._scope.cancel()
                return
            self._heard_at = trio.current_time()
            news = False
            for number, payload in enumerate(batch, 1):
                try:
                    message = codec.decode(payload)
                    news = news or not isinstance(message, HeartbeatAck | ReportAck)
                    self._on_message(message)
                except ProtocolError as error:
                    # One bad message harms itself only (DESIGN 7).
                    _log.warning("bad message", error=str(error))
                if number % MESSAGES_A_TURN == 0:
                    await trio.lowlevel.checkpoint()
            if news:
                self._wake_agent()

    def _set_alarm(self) -> None:
        """For the next heartbeat."""
        self._interval_s = self._heartbeat_s * self._jitter()
        self._skipped = 0
        self._alarm = self._alarms.at(trio.current_time() + self._interval_s, self._keep_alive)

    def _keep_alive(self, due: float) -> None:
        """Say in time that we live; notice in time that the controller does not.

        Reports and assignments say so as well: while both come and go, heartbeats are needed for
        their digests only.
        """
        self._check_controller(due)
        later = min(self._told_at, self._heard_at) + self._interval_s
        if later > due and self._skipped < HEARTBEATS_SKIPPED_MAX:
            self._skipped += 1
            self._alarm = self._alarms.at(later, self._keep_alive)
            return
        self._beat()
        self._set_alarm()

    def _check_controller(self, due: float) -> None:
        """Whether it is silent, and whether it has to send us all again; woken for ``due``."""
        now = trio.current_time()
        # What kept us from waking kept us from reading: that is not the controller's silence.
        self._heard_at = min(now, self._heard_at + now - due)
        endpoint, is_only = self._link.endpoint, not self._link.has_others
        is_open = self.machine.is_open
        allowed_s = self._patience.allowed_s(endpoint, is_open=is_open, is_only=is_only)
        if now - self._heard_at > allowed_s:
            _log.warning("controller is silent", endpoint=endpoint)
            self._patience.silent(endpoint)
            self._feed(SessionEvent.SILENT)
        supervisor = self._supervisor
        if supervisor.missing_templates or self._leases.knows_again(supervisor.instances):
            self._renew()

    def _beat(self) -> None:
        if not self.machine.is_open:
            return
        if (nudge := self._outbox.nudge()) is not None:
            self._send(nudge)
        self._sequence += 1
        self._leases.sent(self._sequence)
        heard_s = trio.current_time() - self._heard_at
        quiet = self._leases.will_do and is_content(heard_s, is_only=not self._link.has_others)
        self._send(
            Heartbeat(
                self._sequence,
                self._supervisor.term,
                self._supervisor.assignment_digest,
                self._outbox.inventory_digest,
                self._reasons(),
                self._leases.is_guarded,
                self._wall(),
                self._supervisor.version,
                quiet,
            )
        )

    def _jitter(self) -> float:
        return self._random.uniform(1 - limits.HEARTBEAT_JITTER, 1 + limits.HEARTBEAT_JITTER)

    async def _report(self) -> None:
        outbox, supervisor = self._outbox, self._supervisor
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            if outbox.waiting and not supervisor.urgent:
                with trio.move_on_after(REPORT_DELAY_S):
                    while not supervisor.urgent:
                        await self._changed.wait()
                        self._changed = trio.Event()
            if supervisor.missing_templates:
                self._renew()  # Before the controller is told of what is made of them.
            while self.machine.is_open and not outbox.full:
                report = outbox.next_report(groups=self._takes_groups)
                if report is None:
                    break
                if not self._send(report):
                    outbox.take_back(report)
                    break
                self._told_at = trio.current_time()
                if not outbox.waiting:
                    break
                await trio.lowlevel.checkpoint()

    # --- messages -----------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        match message:
            case Welcome():
                self._on_welcome(message)
            case Assign():
                self._on_assign(message)
            case HeartbeatAck():
                self._patience.answered()
                self._leases.granted(message.sequence, message.lease_s)
                if message.reported:
                    self._acknowledged(message.reported)
                if message.resync and self.machine.is_open:
                    self._send(self._outbox.full_report())
                    self.wake()
            case ReportAck():
                self._acknowledged(message.sequence)
            case SayHello():
                self._feed(SessionEvent.ASKED_FOR_HELLO)
            case Refuse():
                self._on_refuse(message)
            case _:
                self._on_other(message)

    def _acknowledged(self, sequence: int) -> None:
        self._outbox.acknowledged(sequence)
        if self._outbox.waiting:
            self.wake()  # There was no room for it.

    def _on_other(self, message: Message) -> None:
        assert self._rpc is not None, "a message before the connection"
        if isinstance(message, Controllers):
            self._on_controllers(message)
        elif not self._rpc.on_message(CONTROLLER, "controller", message, self._send_answer):
            _log.warning("unexpected message", kind=type(message).__name__)

    def _on_controllers(self, message: Controllers) -> None:
        """Where we are connected to works, whatever the controllers think that it is called."""
        addresses = tuple(dict.fromkeys((*message.addresses, self._link.endpoint)))
        try:
            self._link.use_addresses(addresses)
            self._learn(addresses)
        except SwarmError as error:
            _log.warning("controllers' addresses not kept", error=str(error))

    def _on_welcome(self, welcome: Welcome) -> None:
        supervisor = self._supervisor
        if not PROTOCOL_OLDEST <= welcome.protocol <= PROTOCOL_VERSION + 1:
            self._final = VersionMismatch(
                f"the controller speaks protocol {welcome.protocol}, "
                f"this agent {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}",
                self._link.endpoint,
                "upgrade the older of the two",
            )
            self._feed(SessionEvent.REFUSED_FINALLY)
            return
        if supervisor.cluster_id and welcome.cluster_id != supervisor.cluster_id:
            self._final = Conflict(
                f"this node belongs to cluster {supervisor.cluster_id[:8]}, and the controller "
                f"to {welcome.cluster_id[:8]}",
                self._link.endpoint,
                "use another data folder for another cluster",
            )
            self._feed(SessionEvent.REFUSED_FINALLY)
            return
        if welcome.term < supervisor.term:
            _log.warning("controller's term is over", its=welcome.term, seen=supervisor.term)
            self._feed(SessionEvent.REFUSED)
            return
        self._heartbeat_s = welcome.heartbeat_s
        self._takes_groups = welcome.takes_groups
        # Hello and welcome have said what a heartbeat would: while a fleet comes back, heartbeats
        # of those who are there would take the time of those who are not.
        self._told_at = trio.current_time()
        if self._feed(SessionEvent.WELCOMED) is SessionAction.BEGIN:
            _log.info("session open", endpoint=self._link.endpoint, term=welcome.term)

    def _on_assign(self, message: Assign) -> None:
        if not self.machine.is_open:
            return  # All of it follows the welcome.
        try:
            assignment.apply(self._supervisor, message, trio.current_time())
        except PeerError as error:
            _log.warning("assignment refused", error=str(error))
        except Conflict as error:
            _log.error("assignment refused", error=str(error))
        if self._supervisor.missing_templates:
            self._renew()

    def _renew(self) -> None:
        """Say and ask for everything again: one side lacks what the other has."""
        now = trio.current_time()
        if now - self._renewed_at >= RENEW_MIN_S:
            self._renewed_at = now
            self._feed(SessionEvent.LOST_THREAD)

    def _on_refuse(self, refuse: Refuse) -> None:
        error = from_wire(refuse.code, refuse.what, refuse.where, refuse.hint)
        if refuse.code == codec.UnknownMessage.code:
            # An older controller does without what it does not know, and so do we.
            _log.warning("not understood by the controller", error=str(error))
        elif refuse.final:
            self._final = error
            self._feed(SessionEvent.REFUSED_FINALLY)
        else:
            _log.info("refused for now", error=str(error))
            self._feed(SessionEvent.REFUSED)
