"""A node comes into a cluster once, and remembers where it belongs."""

import attrs
import pytest
import trio

from swarmctl.agent import enrol
from swarmctl.folder import DataFolder
from swarmctl.proto.errors import Conflict, InvalidSpec, Refused
from swarmctl.proto.messages import Refuse
from swarmctl.transport import keys
from tests.sim.agent_fixture import CLUSTER, a_world


async def join(world, **fields):
    fields = {"name": "n1", "join": world.controller.token.to_text(), "controllers": ()} | fields
    return await enrol.membership(world.folder, open_link=world.network.open_link, **fields)


async def test_first_start_enrols_and_the_second_needs_no_token(autojump_clock, tmp_path):
    """The node's own key is pinned; what is needed later is kept, and private."""
    async with a_world(tmp_path) as world:
        member = await join(world)
        again = await join(world, join="", name="")

        assert member.identity.cluster_id == CLUSTER
        assert world.controller.pinned[member.keypair.public] == "n1"
        assert again.identity == member.identity
        assert again.keypair == member.keypair
        for path in tmp_path.iterdir():
            assert path.stat().st_mode & 0o077 == 0


async def test_token_given_again_is_harmless_and_brings_new_addresses(autojump_clock, tmp_path):
    """A service file may keep its --join; moved controllers are found by a new token."""
    async with a_world(tmp_path) as world:
        first = await join(world)
        assert (await join(world)).identity == first.identity
        moved = attrs.evolve(world.controller.token, addresses=("tcp://10.0.0.9:7077",))

        assert (await join(world, join=moved.to_text())).identity.addresses == moved.addresses
        assert (await join(world, join="")).identity.addresses == moved.addresses


async def test_folder_of_another_cluster_or_node_is_refused(autojump_clock, tmp_path):
    """One folder is one node in one cluster; the error says which."""
    async with a_world(tmp_path) as world:
        await join(world)
        other = attrs.evolve(world.controller.token, server_key=keys.generate().public)
        with pytest.raises(Conflict, match="another cluster's"):
            await join(world, join=other.to_text())
        with pytest.raises(Conflict, match="that of node n1, not n2"):
            await join(world, name="n2")


async def test_no_token_and_not_enrolled(autojump_clock, tmp_path):
    """Without either there is nothing to do, and the hint says what is missing."""
    async with a_world(tmp_path) as world:
        with pytest.raises(InvalidSpec, match="no join token"):
            await join(world, join="")


async def test_revoked_token_is_refused_in_words(autojump_clock, tmp_path):
    """A token whose key is not accepted any more is named, with what to do."""
    async with a_world(tmp_path) as world:
        world.controller.pinned.clear()
        with pytest.raises(Refused, match="token create"):
            await join(world)


async def test_refused_name_is_the_controllers_error(autojump_clock, tmp_path):
    """What the controller says of the name is what the user reads."""
    async with a_world(tmp_path) as world:
        world.controller.refuse_enrol = Refuse("conflict", "there is a node n1", final=True)
        with pytest.raises(Conflict, match="there is a node n1"):
            await join(world)


async def test_crash_before_the_answer_enrols_with_the_same_key(autojump_clock, tmp_path):
    """The key is made before it is pinned, so a repetition is no second node."""
    async with a_world(tmp_path) as world:
        world.network.fate = lambda passage: None if passage.direction.name == "TO_LINK" else 0.0
        with trio.move_on_after(5):
            await join(world)
        pinned = set(world.controller.pinned)
        world.network.fate = lambda _: 0.0
        await join(world)

        assert set(world.controller.pinned) == pinned


@pytest.mark.parametrize("others", [(), ("tcp://10.0.0.8:7077", "tcp://10.0.0.9:7077")])
async def test_agent_waits_for_a_controller_that_is_not_there_yet(autojump_clock, tmp_path, others):
    """Agents may be started first, and a controller may hang: they enrol when one answers."""
    async with a_world(tmp_path) as world:
        token = world.controller.token
        token = attrs.evolve(token, addresses=(*token.addresses, *others))
        world.network.block()

        async def later():
            await trio.sleep(60)
            world.network.unblock()

        world.nursery.start_soon(later)
        assert (await join(world, join=token.to_text())).identity.name == "n1"


async def test_damaged_identity_is_named(autojump_clock, tmp_path):
    """A half-edited file is not taken for a node that was never enrolled."""
    async with a_world(tmp_path) as world:
        await join(world)
        (tmp_path / enrol.IDENTITY_FILE).write_text("{")
        with pytest.raises(InvalidSpec, match="identity cannot be read"):
            await join(world)


async def test_folder_in_use_is_refused(autojump_clock, tmp_path):
    """One process a folder."""
    async with a_world(tmp_path) as world:
        with DataFolder.open(tmp_path, "agent"):
            await world.start_agent()

        assert "in use by process" in world.errors[0].what
