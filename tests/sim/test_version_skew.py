"""The release after this one: today's code with a peer that says more, and unheard-of things.

Those before it are in ``test_recorded_releases``.
"""

from contextlib import asynccontextmanager

import attrs
import msgpack
import pytest

from swarmctl.controller.handlers import nodes
from swarmctl.proto import codec
from swarmctl.proto.errors import VersionMismatch
from swarmctl.proto.messages import PROTOCOL_OLDEST, PROTOCOL_VERSION, Enrol, Refuse, Request
from swarmctl.transport import keys
from swarmctl.transport.memory import MemoryNetwork
from tests.sim import agent_fixture
from tests.sim.cluster_fixture import a_cluster, service
from tests.sim.wire_replay import UNKNOWN_TAG, as_newer
from tests.unit.controller import requests_fixture
from tests.unit.controller.harness import FakeNode


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
        assert f"this controller {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}" in refusal.what


async def test_two_releases_apart_does_not_enrol(autojump_clock, tmp_path):
    """A new node is told so before its key is pinned."""
    async with requests_fixture.a_rig(tmp_path) as rig:
        await rig.ask("token.create", reusable=True)
        token = f"token:{next(iter(rig.cluster.tokens))}"
        key = keys.generate().public
        with pytest.raises(VersionMismatch) as refusal:
            await nodes.enrol(rig.cluster, token, Enrol(PROTOCOL_VERSION + 2, "9.9.9", "n1", key))
        assert f"protocol {PROTOCOL_VERSION + 2} (release 9.9.9)" in refusal.value.what
        assert f"this controller {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}" in refusal.value.what
        assert not rig.cluster.state.nodes


async def test_an_agent_names_both_versions_too(autojump_clock, tmp_path):
    """A controller two releases ahead that welcomes it all the same: it ends, and says why."""
    async with agent_fixture.a_world(tmp_path) as world:
        world.controller.protocol = PROTOCOL_VERSION + 2
        await world.start_agent()
        await world.controller.until(lambda: world.errors)
        [error] = world.errors
        assert isinstance(error, VersionMismatch)
        assert f"protocol {PROTOCOL_VERSION + 2}" in error.what
        assert f"this agent {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}" in error.what
