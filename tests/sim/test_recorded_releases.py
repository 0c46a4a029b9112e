"""The releases before this one: what they were recorded to say, to today's code.

Each recording is played against a whole controller, and against a whole agent
(:mod:`tests.sim.wire_replay`): what was launched then is launched now.
"""

import attrs
import msgpack
import pytest
import trio

import swarmctl
from swarmctl.agent.drivers.api import Owner, Phase
from swarmctl.agent.drivers.sim import SimHost, SimSettings
from swarmctl.agent.journal import MemoryJournal
from swarmctl.proto import codec
from swarmctl.proto.messages import Heartbeat, HeartbeatAck, Hello, Reply
from swarmctl.proto.states import InstanceState
from swarmctl.transport.memory import MemoryNetwork
from tests.sim import agent_fixture
from tests.sim.cluster_fixture import a_cluster
from tests.sim.wire_recording import NODE, kinds
from tests.sim.wire_replay import (
    RecordedController,
    RecordedNode,
    Recording,
    as_it_was,
    as_newer,
    found_cluster,
    recordings,
)
from tests.unit.controller import harness, requests_fixture


@pytest.fixture(params=recordings(), ids=lambda path: path.stem)
def recording(request):
    """What a release said."""
    return Recording.load(request.param)


@pytest.fixture(params=[as_it_was, as_newer], ids=["as it was", "with fields of tomorrow"])
def alter(request):
    """What is done to each payload."""
    return request.param


def extends(new, old):
    """Whether ``new`` says all that ``old`` does: fields are only ever added, at the end."""
    if isinstance(old, list) and isinstance(new, list):
        return len(new) >= len(old) and all(map(extends, new, old))
    if isinstance(old, dict) and isinstance(new, dict):
        return new.keys() == old.keys() and all(extends(new[key], old[key]) for key in old)
    return type(new) is type(old) and new == old


def unpacked(payload):
    return msgpack.unpackb(payload, strict_map_key=False)


def minor(release):
    """Its second number."""
    return int(release.split(".")[1])


def test_the_release_before_is_recorded():
    """That of the minor version below this one."""
    found = {minor(Recording.load(path).release) for path in recordings()}
    assert minor(swarmctl.__version__) - 1 in found


def test_every_message_is_still_read(recording):
    """Each as it was: no field has moved, gone, or changed its type."""
    assert len(recording.payloads) > 80
    for payload in recording.payloads:
        again = codec.encode(codec.decode(payload))
        assert extends(unpacked(again), unpacked(payload)), payload.hex()


def test_fields_are_only_added(recording):
    """At the end; and each that was added has a default."""
    today = kinds()
    for name, fields in recording.fields.items():
        now = attrs.fields(today[name])
        assert [one.name for one in now[: len(fields)]] == fields
        assert all(one.default is not attrs.NOTHING for one in now[len(fields) :]), name


# --- an older node and an older client, today's controller -----------------------------------


# Of what is told to people, what depends on the clock of the machine.
BY_THE_CLOCK = ("joined",)


def differences(new, old, where="answer"):
    """Where an answer of now lacks, or contradicts, what that of then had; more is fine."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [f"{where}.{key} is gone" for key in old.keys() - new.keys()]
        for key in sorted(old.keys() & new.keys() - set(BY_THE_CLOCK)):
            found += differences(new[key], old[key], f"{where}.{key}")
        return found
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return [one for pair in zip(new, old, strict=True) for one in differences(*pair, where)]
    return [] if new == old else [f"{where}: {new} for {old}"]


async def test_older_nodes_and_clients_work_with_this_controller(
    recording, alter, autojump_clock, tmp_path
):
    """From enrolment to rm: what is asked for is assigned, what is reported is shown, as then."""
    found_cluster(tmp_path / "controller", recording)
    async with a_cluster(tmp_path, 0) as world:
        player = RecordedNode(world, recording, alter)
        await player.play()
        assert len(player.answers) == 11
        for then, now in player.answers:
            assert type(now) is type(then)
            if isinstance(then, Reply):
                assert not differences(now.result, then.result)
            else:
                assert (now.code, now.what) == (then.code, then.what)
        # The digests in its heartbeats were ours: it was never asked for all it has.
        beats = [one for one in player.heard if isinstance(one, HeartbeatAck)]
        assert beats
        assert not any(one.resync for one in beats)
        assert {one["instance"]: one["state"] for one in await world.ask("instance.list")} == {
            "web.1": "running",
            "web.2": "running",
            "web.3": "running",
        }
        assert not world.ended


async def test_this_controller_takes_over_older_nodes(
    recording, autojump_clock, tmp_path, monkeypatch
):
    """One whose store was lost finds what they have, from hellos and reports, and can adopt it."""
    for module in (harness, requests_fixture):
        monkeypatch.setattr(module, "CLUSTER", recording.cluster_id)
    async with requests_fixture.a_rig(tmp_path, None, NODE) as rig:
        rig.cluster.state.term = await rig.store.take_term(above=100)
        peer = b"peer-" + NODE.encode()
        for one in recording.said:
            if one.who != NODE or one.to != "controller":
                continue
            if isinstance(one.message, Hello):
                rig.cluster.sessions.peer_departed(peer)
            rig.cluster.sessions.on_message(peer, f"node:{NODE}", one.message)
        found = rig.cluster.quarantined(("default", "web"))
        states = {one.slot: one.state for one in found}
        assert states == dict.fromkeys((1, 2, 3), InstanceState.RUNNING)
        adopted = await rig.ask("service.adopt")
        assert [(one["service"], one["adopted"]) for one in adopted["services"]] == [("web", True)]


# --- an older controller, today's agent ------------------------------------------------------


async def test_this_agent_works_with_an_older_controller(
    recording, alter, autojump_clock, tmp_path
):
    """What it is told to run runs, what it is told to end ends, and it reports both."""
    network = MemoryNetwork()
    controller = RecordedController(network, recording, alter)
    async with trio.open_nursery() as nursery:
        host = SimHost(SimSettings())
        world = agent_fixture.World(tmp_path, network, controller, host, MemoryJournal(), nursery)
        nursery.start_soon(world.start_agent)
        await controller.play()
        assert not world.errors
        book = host.book(Owner(recording.cluster_id, NODE))
        assert sorted((one.launch.service, one.launch.slot) for one in book.values()) == [
            ("web", 1),
            ("web", 2),
            ("web", 3),
        ]
        assert {one.phase for one in book.values()} == {Phase.RUNNING}
        began = {one.launch.slot: one.started_at for one in book.values()}
        # web.2 was restarted, then web.1 stopped and started, and web.3 never touched.
        assert began[3] < began[2] < began[1]
        then = [one.message for one in recording.said if one.to == "controller" and one.payload]
        digests = [
            [one.assignment_digest for one in said if isinstance(one, Heartbeat)][-1]
            for said in (then, controller.heard)
        ]
        assert digests[0] == digests[1]
        nursery.cancel_scope.cancel()
