"""Peers that send nonsense to a real controller: they harm themselves only."""

import random

import msgpack
import pytest
import trio

from swarmctl.controller import identity as identities
from swarmctl.proto import codec, limits
from swarmctl.proto.errors import StorageFault
from swarmctl.proto.messages import (
    Enrol,
    Heartbeat,
    HeartbeatAck,
    InstanceReport,
    Refuse,
    Reply,
    Report,
    Request,
    StreamCredit,
    StreamData,
    Welcome,
)
from swarmctl.transport.errors import Backpressure, LinkLost
from swarmctl.transport.keys import KeyPair
from tests.sim.cluster_fixture import ENDPOINT, a_cluster, service


def _nonsense(chance):
    """One payload that no agent sends."""
    tag = chance.choice([0, 1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 20, 21, 22, 23, 24, 25, 77])
    return chance.choice(
        [
            chance.randbytes(chance.randint(0, 60)),
            msgpack.packb([tag, *[chance.choice([0, -1, "x", b"", None, [], {}])] * 6]),
            codec.encode(StreamData(chance.randint(0, 3), "stdin", b"x")),
            codec.encode(StreamCredit(chance.randint(0, 3), chance.randint(-9, 1 << 60))),
            codec.encode(Reply(chance.randint(0, 3), None)),
            codec.encode(Welcome(1, "c", 99, 2.0, 5.0)),
            codec.encode(HeartbeatAck(1)),
            codec.encode(Heartbeat(1, 1, 0, 0)),
            codec.encode(Report(1, (InstanceReport(5, 77, service="web", slot=1),))),
            codec.encode(Request(chance.randint(0, 3), "service.remove", {"names": ["web"]})),
            codec.encode(Enrol(1, "0", "intruder", "x")),
        ]
    )


@pytest.mark.parametrize("role", ["admin", "node", "token"])
async def test_nonsense_from_a_peer_changes_nothing_for_the_others(autojump_clock, tmp_path, role):
    """The controller serves on, and the peer is sent away when nonsense is all that comes."""
    async with a_cluster(tmp_path, nodes=2) as world:
        web = service(replicas=6)
        await world.apply(web)
        await world.until_runs(web)
        context = identities.write_context(
            world.folder, identities.load_or_make(world.folder), (ENDPOINT,), "default"
        )
        token = identities.read_join_token(world.folder)
        if role == "node":
            world.machines["n2"].scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            from swarmctl.transport import keys

            pair = keys.load(world.machines["n2"].folder / "node.key")
        else:
            which = context if role == "admin" else token
            pair = KeyPair(which.public_key, which.secret_key)
        chance = random.Random(role)
        async with world.network.open_link(ENDPOINT, context.server_key, pair) as link:
            sent = 0
            while sent < 2_000:
                await link.wait_connected()
                payload = _nonsense(chance)
                if role == "admin" and b"service.remove" in payload:
                    continue  # From an administrator that is no nonsense.
                try:
                    link.send(payload)
                except (LinkLost, Backpressure):
                    await trio.sleep(0.1)
                sent += 1
                if sent % 20 == 0:
                    await trio.sleep(0.01)
        await trio.sleep(1)

        assert world.ended == []
        assert world.controller.receiver.malformed > limits.MALFORMED_MAX
        assert world.listener.statistics().connections > 3
        if role == "node":
            await world.start_node("n2")
        await world.until_runs(web)
        assert (await world.ask("cluster.info"))["nodes"] == 2
        assert "intruder" not in world.cluster.state.nodes


async def test_a_node_that_does_not_read_ends_nothing(autojump_clock, tmp_path):
    """What is sent to it is not taken; it is another session when it comes back."""
    async with a_cluster(tmp_path, nodes=2) as world:
        peer = world.cluster.state.nodes["n1"].peer
        send = world.listener.send

        def stuck(to, payload):
            if to == peer:
                raise Backpressure("full")
            send(to, payload)

        world.cluster.send = world.cluster.sessions._send = lambda to, message: stuck(
            to, codec.encode(message)
        )
        web = service(replicas=6)
        await world.apply(web)
        await world.until_runs(web)

        assert world.ended == []


async def test_a_disk_that_is_full_is_answered_and_refuses_no_node_for_good(
    autojump_clock, tmp_path
):
    """A node that enrols meanwhile is told to come again."""
    async with a_cluster(tmp_path, nodes=1) as world:
        token = identities.read_join_token(world.folder)
        world.store.fail_next(StorageFault("disk full"))
        async with world.network.open_link(
            ENDPOINT, token.server_key, KeyPair(token.public_key, token.secret_key)
        ) as link:
            await link.wait_connected()
            link.send(codec.encode(Enrol(1, "0", "n9", "A" * 40)))
            [payload] = await link.receive_batch()
        answer = codec.decode(payload)

        assert isinstance(answer, Refuse)
        assert (answer.code, answer.final) == ("storage", False)
        world.store.fail_next(StorageFault("disk full"))
        with pytest.raises(StorageFault):
            await world.apply(service())
        await world.apply(service())
        assert world.ended == []
