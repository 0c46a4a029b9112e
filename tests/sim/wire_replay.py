"""Play one side of a recording (:mod:`tests.sim.wire_recording`) against today's other side.

What was recorded is sent byte for byte, in its order and at its pace.  The other side is alive: it
may say things sooner, later, or in other portions than the release that was recorded.  So a player
waits for what its next payload answers, and compares what both sides know rather than how they
said it: assignments are added up, and so are reports.
"""

import json
from collections import deque
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import msgpack
import trio

from swarmctl.controller import identity as identities
from swarmctl.credentials import JoinToken
from swarmctl.proto import codec
from swarmctl.proto.messages import (
    PROTOCOL_VERSION,
    Assign,
    Enrol,
    Enrolled,
    Failure,
    HeartbeatAck,
    Hello,
    Reply,
    Report,
    ReportAck,
    Request,
    Welcome,
)
from swarmctl.proto.states import InstanceState
from swarmctl.transport import keys
from swarmctl.transport.errors import LinkLost
from swarmctl.transport.keys import KeyPair
from tests.sim.cluster_fixture import ENDPOINT
from tests.sim.wire_recording import CLIENT, DATA, RESTARTED

# Virtual seconds that the living side has for what the recorded one had done by then.
PATIENCE_S = 60
# States that an instance stays in by itself.
SETTLED = (InstanceState.RUNNING, InstanceState.STOPPED, InstanceState.REMOVED)
CONTROLLER = "controller"
# A tag that no release has.
UNKNOWN_TAG = 120


@attrs.frozen
class Said:
    """One payload of a recording; none when the controller's process was another from here on."""

    at_s: float
    who: str
    to: str
    payload: bytes

    @property
    def message(self):
        """What it says."""
        return codec.decode(self.payload)


@attrs.frozen
class Recording:
    """What a release said."""

    release: str
    cluster_id: str
    examples: dict
    fields: dict
    said: tuple

    @classmethod
    def load(cls, path: Path):
        """From its file."""
        held = json.loads(path.read_text())
        said = [Said(at, who, to, bytes.fromhex(payload)) for at, who, to, payload in held["said"]]
        examples = {name: bytes.fromhex(one) for name, one in held["examples"].items()}
        return cls(held["release"], held["cluster_id"], examples, held["fields"], tuple(said))

    @property
    def payloads(self):
        """All of them."""
        return [*self.examples.values(), *(one.payload for one in self.said if one.payload)]

    def first(self, kind):
        """The first message of a kind."""
        return next(
            one.message for one in self.said if one.payload and isinstance(one.message, kind)
        )


def recordings():
    """The files of all releases that were recorded."""
    return sorted(DATA.glob("wire-*.json"))


def as_it_was(payload):
    """A payload unchanged."""
    return payload


def widened(value):
    """A value of a message, as a release writes it that has more fields everywhere."""
    if attrs.has(type(value)):
        return [*(widened(getattr(value, one.name)) for one in attrs.fields(type(value))), "new", 9]
    if isinstance(value, list | tuple):
        return [widened(one) for one in value]
    if isinstance(value, dict):
        return {key: widened(one) for key, one in value.items()}
    return value


def as_newer(payload):
    """``payload`` as the next release says it: one protocol version up."""
    message = codec.decode(payload)
    if isinstance(message, Hello | Enrol):
        message = attrs.evolve(message, protocol=PROTOCOL_VERSION + 1)
    return msgpack.packb([message.TAG, *widened(message)])


@attrs.define
class Told:
    """What assignments and reports come to."""

    wanted: dict = attrs.field(factory=dict)
    states: dict = attrs.field(factory=dict)

    def hear(self, message):
        """Take a message in; others than those are passed over."""
        match message:
            case Assign():
                if message.full:
                    self.wanted.clear()
                for group in message.groups:
                    for slot, incarnation, desired, generation, _ in group.entries:
                        held = (group.service, slot, desired, generation)
                        self.wanted[incarnation] = held
                for incarnation in message.removed:
                    self.wanted.pop(incarnation, None)
            case Hello():
                self.states = {one.incarnation: one.state for one in message.inventory}
            case Report():
                if message.full:
                    self.states.clear()
                self.states.update({one.incarnation: one.state for one in message.instances})
                for group in message.groups:
                    self.states.update(
                        dict.fromkeys([one for one, _ in group.entries], group.state)
                    )

    @property
    def settled(self):
        """The states that will stay."""
        return {one: state for one, state in self.states.items() if state in SETTLED}


class Player:
    """One side of a recording; ``alter`` changes each payload before it is sent."""

    def __init__(self, recording, alter=as_it_was):
        self.recording = recording
        self.alter = alter
        self.then, self.now = Told(), Told()
        self.heard = []
        self._changed = trio.Event()

    def hear(self, payload):
        """The living side has said something."""
        message = codec.decode(payload)
        self.heard.append(message)
        self.now.hear(message)
        self.wake()

    def wake(self):
        """Something has happened that may be waited for."""
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition, what):
        """Wait until it holds of what was heard."""
        with trio.move_on_after(PATIENCE_S) as late:
            while not condition():
                await self._changed.wait()
        assert not late.cancelled_caught, f"no {what}: {self.now}; then: {self.then}"

    async def until_heard(self, which, what):
        """Wait for a message."""
        await self.until(lambda: any(map(which, self.heard)), what)


def found_cluster(folder, recording):
    """Leave in a controller's folder, before its first start, that it is the recorded cluster's."""
    pair = keys.generate()
    folder.mkdir(parents=True)
    identities.write_identity(
        folder, identities.ClusterIdentity(recording.cluster_id, pair.public, pair.secret)
    )


class RecordedNode(Player):
    """A node and a client of an older release, against today's controller (``world``)."""

    def __init__(self, world, recording, alter=as_it_was):
        super().__init__(recording, alter)
        self.world = world
        self.answers = []
        self._answered = []
        self._link = self._nursery = None

    async def play(self):
        """Say all of it."""
        token = identities.read_join_token(self.world.folder)
        # Its secret half is the recorded node's alone; in memory nobody asks for it.
        own = KeyPair(self.recording.first(Enrol).public_key, keys.generate().secret)
        began = trio.current_time()
        rest = list(self.recording.said)
        async with self._link_as(KeyPair(token.public_key, token.secret_key)):
            while not isinstance(rest[0].message, Hello):
                await self._step(rest.pop(0), began)
        async with self._link_as(own):
            for one in rest:
                await self._step(one, began)

    @asynccontextmanager
    async def _link_as(self, pair):
        server_key = identities.load_or_make(self.world.folder).public_key
        async with (
            self.world.network.open_link(ENDPOINT, server_key, pair) as self._link,
            trio.open_nursery() as self._nursery,
        ):
            await self._link.wait_connected()
            self._nursery.start_soon(self._listen)
            yield
            self._nursery.cancel_scope.cancel()

    async def _listen(self):
        while True:
            try:
                await self._link.wait_connected()
                for payload in await self._link.receive_batch():
                    self.hear(payload)
            except LinkLost:
                continue  # The controller was started anew.

    async def _step(self, one, began):
        await trio.sleep_until(began + one.at_s)
        if one.to == RESTARTED:
            self.heard.clear()
            await self.world.restart_controller()
        elif one.who == one.to == CLIENT:
            await self._expect_answer(one.message)
        elif one.who == CLIENT:
            self._nursery.start_soon(self._ask, one.payload)
        elif one.to == CONTROLLER:
            await self._link.wait_connected()
            self._link.send(self.alter(one.payload))
        else:
            await self._expect(one.message)

    async def _expect(self, message):
        """What the controller had said by then, today's has to have said."""
        self.then.hear(message)
        match message:
            case Enrolled():
                await self.until(lambda: message in self.heard, "the enrolment's answer")
            case Welcome():
                await self.until_heard(lambda one: isinstance(one, Welcome), "a welcome")
            case Assign():
                await self.until(lambda: self.now.wanted == self.then.wanted, "assignments")
            case Request():
                await self.until_heard(
                    lambda one: isinstance(one, Request) and one.id == message.id, message.method
                )
            case HeartbeatAck():
                await self.until_heard(
                    lambda one: isinstance(one, HeartbeatAck) and one.sequence == message.sequence,
                    "the answer to a heartbeat",
                )

    async def _expect_answer(self, recorded):
        """The client's request is answered as then; what has been added is fine."""
        count = len(self.answers) + 1
        await self.until(lambda: len(self._answered) >= count, "an answer")
        self.answers.append((recorded, self._answered[count - 1]))

    async def _ask(self, payload):
        """A command of the older release, on a connection of its own."""
        identity = identities.load_or_make(self.world.folder)
        context = identities.write_context(self.world.folder, identity, (ENDPOINT,), "default")
        pair = KeyPair(context.public_key, context.secret_key)
        async with self.world.network.open_link(ENDPOINT, context.server_key, pair) as link:
            await link.wait_connected()
            link.send(self.alter(payload))
            while True:
                for answer in map(codec.decode, await link.receive_batch()):
                    if isinstance(answer, Reply | Failure):
                        self._answered.append(answer)
                        self.wake()
                        return


class RecordedController(Player):
    """A controller of an older release, against today's agent (``world`` is the agent's)."""

    def __init__(self, network, recording, alter=as_it_was):
        super().__init__(recording, alter)
        self.network = network
        self.acknowledgements = deque()
        self._keypair, self._token = keys.generate(), keys.generate()
        self._peer = None
        self._listener = None

    @property
    def token(self):
        """What the agent joins with."""
        return JoinToken(
            "t1", (ENDPOINT,), self._keypair.public, self._token.public, self._token.secret
        )

    async def play(self):
        """Say all of it."""
        async with (
            self.network.open_listener(
                ENDPOINT, self._keypair, lambda _key: "anybody"
            ) as self._listener,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._listen)
            began = trio.current_time()
            for one in self.recording.said:
                if one.who != CLIENT:
                    await trio.sleep_until(began + one.at_s)
                    await self._step(one)
            await self._settle()
            nursery.cancel_scope.cancel()

    async def _listen(self):
        while True:
            for arrival in await self._listener.receive_batch():
                if isinstance(codec.decode(arrival.payload), Enrol | Hello):
                    self._peer = arrival.peer
                self.hear(arrival.payload)
                self._acknowledge()
            self._listener.take_departed()

    async def _step(self, one):
        message = one.payload and one.message
        if one.to == RESTARTED:
            await self._settle()
            self.heard.clear()
            self.acknowledgements.clear()
            self.network.sever()
        elif one.to == CONTROLLER:
            await self._expect(message)
        elif isinstance(message, ReportAck):
            self.acknowledgements.append(one)
            self._acknowledge()
        else:
            if isinstance(message, Assign):
                await self._settle()
                self.then.hear(message)
            self._send(one)

    def _acknowledge(self):
        """Today's agent may say less at a time, or later: what it has not said is not answered."""
        said = max((one.sequence for one in self.heard if isinstance(one, Report)), default=0)
        while self.acknowledgements and self.acknowledgements[0].message.sequence <= said:
            self._send(self.acknowledgements.popleft())

    def _send(self, one):
        self._listener.send(self._peer, self.alter(one.payload))

    async def _expect(self, message):
        """What the agent had said by then, today's has to have said."""
        self.then.hear(message)
        if isinstance(message, Enrol | Hello):
            kind = type(message)
            await self.until_heard(lambda one: isinstance(one, kind), kind.__name__)
        elif isinstance(message, Reply | Failure):
            await self.until_heard(
                lambda one: isinstance(one, Reply | Failure) and one.id == message.id, "an answer"
            )

    async def _settle(self):
        """Until what stays as it is, is as it was then."""
        await self.until(lambda: self.then.settled.items() <= self.now.states.items(), "states")
