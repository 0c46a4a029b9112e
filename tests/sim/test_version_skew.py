"""One minor release apart: today's code with the messages of the releases before and after it."""

import json
from contextlib import asynccontextmanager

import attrs
import msgpack
import pytest

from swarmctl.proto import codec
from swarmctl.proto.messages import PROTOCOL_VERSION, Enrol, Hello, Refuse, Request
from swarmctl.proto.states import InstanceState
from swarmctl.transport.memory import MemoryNetwork
from tests.sim.cluster_fixture import a_cluster, service
from tests.sim.wire_recording import DATA, kinds
from tests.unit.controller import harness, requests_fixture
from tests.unit.controller.harness import FakeNode

# A tag that no release has.
UNKNOWN_TAG = 120
RECORDINGS = sorted(DATA.glob("wire-*.json"))


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def recording(request):
    """What a release said."""
    return json.loads(request.param.read_text())


def extends(new, old):
    """Whether ``new`` says all that ``old`` does: fields are only ever added, at the end."""
    if isinstance(old, list) and isinstance(new, list):
        return len(new) >= len(old) and all(map(extends, new, old))
    if isinstance(old, dict) and isinstance(new, dict):
        return new.keys() == old.keys() and all(extends(new[key], old[key]) for key in old)
    return type(new) is type(old) and new == old


def unpacked(payload):
    return msgpack.unpackb(payload, strict_map_key=False)


# --- the release before ----------------------------------------------------------------------


def test_there_are_recordings():
    """The tests below have something to read."""
    assert RECORDINGS


def test_every_message_is_still_read(recording):
    """Each as it was: no field has moved, gone, or changed its type."""
    said = [*recording["examples"].values(), *(one[2] for one in recording["said"])]
    assert len(said) > 80
    for payload in map(bytes.fromhex, said):
        again = codec.encode(codec.decode(payload))
        assert extends(unpacked(again), unpacked(payload)), payload.hex()


def test_fields_are_only_added(recording):
    """At the end; and each that was added has a default."""
    today = kinds()
    for name, fields in recording["fields"].items():
        now = attrs.fields(today[name])
        assert [one.name for one in now[: len(fields)]] == fields
        assert all(one.default is not attrs.NOTHING for one in now[len(fields) :]), name


async def test_todays_controller_takes_yesterdays_nodes(
    recording, autojump_clock, tmp_path, monkeypatch
):
    """It hears what they have, from their hellos to their last reports, and can take it over."""
    for module in (harness, requests_fixture):
        monkeypatch.setattr(module, "CLUSTER", recording["cluster_id"])
    async with requests_fixture.a_rig(tmp_path, None, "n1", "n2") as rig:
        rig.cluster.state.term = await rig.store.take_term(above=100)
        for name, to, payload in recording["said"]:
            if to == "controller":
                message = codec.decode(bytes.fromhex(payload))
                peer = b"peer-" + name.encode()
                if isinstance(message, Hello):
                    rig.cluster.sessions.peer_departed(peer)
                    rig.cluster.state.nodes[name].peer = None
                rig.cluster.sessions.on_message(peer, f"node:{name}", message)
        found = rig.cluster.quarantined(("default", "web"))
        states = {one.slot: one.state for one in found}
        assert states == {
            1: InstanceState.STOPPED,
            2: InstanceState.RUNNING,
            3: InstanceState.RUNNING,
        }
        adopted = await rig.ask("service.adopt")
        assert {one["service"]: one["found"] for one in adopted["services"]} == {"bad": 1, "web": 3}
        assert all(one["adopted"] for one in adopted["services"])


# --- the release after -----------------------------------------------------------------------


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


class NewerEnd:
    """A link or a listener whose owner is a release ahead: it says more, and unheard-of things.

    Those come before the first message and then before every fifth: how many messages there are
    depends on what happens to be sent together.
    """

    def __init__(self, end):
        self._end = end
        self.sent = 0
        self.unheard_of = 0

    def __getattr__(self, name):
        return getattr(self._end, name)

    def send(self, *to_and_payload):
        *to, payload = to_and_payload
        if self.sent % 5 == 0 and codec.decode(payload).TAG < Request.TAG:
            self._end.send(*to, msgpack.packb([UNKNOWN_TAG, "news", {"of": "tomorrow"}]))
            self.unheard_of += 1
        self.sent += 1
        self._end.send(*to, as_newer(payload))


@attrs.define(eq=False)
class SkewedNetwork:
    """A network on which agents and clients, or the controllers, are a release ahead."""

    newer: str
    network: MemoryNetwork = attrs.field(factory=MemoryNetwork)
    ends: list = attrs.field(factory=list)

    def __getattr__(self, name):
        return getattr(self.network, name)

    @asynccontextmanager
    async def open_listener(self, *arguments):
        async with self.network.open_listener(*arguments) as listener:
            yield self._end("controller", listener)

    @asynccontextmanager
    async def open_link(self, *arguments, **options):
        async with self.network.open_link(*arguments, **options) as link:
            yield self._end("agent", link)

    def _end(self, who, end):
        if who != self.newer:
            return end
        self.ends.append(NewerEnd(end))
        return self.ends[-1]


@pytest.mark.parametrize("newer", ["agent", "controller"])
async def test_a_cluster_a_release_apart_works(autojump_clock, tmp_path, newer):
    """Launch, scale, restart, takeover, rm: whoever is ahead, all of it is understood."""
    network = SkewedNetwork(newer)
    async with a_cluster(tmp_path, 3, network=network) as world:
        web = service("web", 6)
        await world.apply(web)
        await world.until_runs(web)
        await world.ask("service.restart", {"names": ["web.2"]})
        await world.restart_controller()
        await world.ask("service.scale", {"replicas": {"web": 4}})
        await world.until_runs(service("web", 4))
        await world.until(world.agrees)
        await world.ask("service.remove", {"names": ["web"]})
        await world.until_runs(service("web", 0))
        # Both controllers, or the enrolments and sessions of each agent, were ahead.
        assert sum(bool(end.unheard_of) for end in network.ends) >= 2
        assert not world.ended
        assert not any(machine.errors for machine in world.machines.values())


async def test_two_releases_apart_is_refused_by_name(autojump_clock, tmp_path):
    """Both versions are in the answer, and it is final."""
    async with requests_fixture.a_rig(tmp_path, None, "n1") as rig:
        told = []
        rig.cluster.sessions._send = lambda _peer, message: told.append(message)
        hello = attrs.evolve(FakeNode("n1").hello(), protocol=PROTOCOL_VERSION + 2, release="9.9.9")
        rig.cluster.sessions.on_message(b"other", "node:n1", hello)
        [refusal] = told
        assert isinstance(refusal, Refuse)
        assert refusal.final
        assert f"protocol {PROTOCOL_VERSION + 2} (release 9.9.9)" in refusal.what
        assert f"this controller 1 to {PROTOCOL_VERSION}" in refusal.what
