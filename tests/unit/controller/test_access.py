"""Who gets in: tokens, enrolment, nodes, and the files in the controller's folder."""

import json
import stat
from contextlib import suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from swarmctl.controller import identity as identities
from swarmctl.controller import records, shared
from swarmctl.controller.access import Access
from swarmctl.controller.daemon import Controller, ControllerConfig
from swarmctl.controller.handlers import nodes
from swarmctl.controller.store.memory import MemoryDisk, MemoryStore
from swarmctl.credentials import parse_context, parse_token
from swarmctl.proto.errors import (
    Conflict,
    InvalidSpec,
    NotFound,
    ProtocolError,
    Refused,
    StorageFault,
    SwarmError,
    VersionMismatch,
)
from swarmctl.proto.messages import Enrol
from swarmctl.proto.states import NodeState
from swarmctl.transport import keys
from swarmctl.transport.memory import MemoryNetwork
from tests.unit.controller.harness import spec
from tests.unit.controller.requests_fixture import a_rig


def enrolment(name="n1", public_key=None, protocol=1):
    """A node's request."""
    return Enrol(protocol, "0", name, public_key or keys.generate().public)


async def a_token(rig, *, reusable=False):
    """A new token's user."""
    made = await rig.ask("token.create", reusable=reusable)
    return f"token:{made['id']}"


# --- tokens and enrolment --------------------------------------------------------------------


async def test_a_one_time_token_enrols_one_node(autojump_clock, tmp_path):
    """Another name is refused; the same node may ask again, since its answer may be lost."""
    async with a_rig(tmp_path) as rig:
        user = await a_token(rig)
        request = enrolment()
        for _ in range(2):
            await nodes.enrol(rig.cluster, user, request)
        with pytest.raises(Refused, match="used by n1"):
            await nodes.enrol(rig.cluster, user, enrolment("n2"))

        assert list(rig.cluster.state.nodes) == ["n1"]
        assert rig.cluster.access.authorise(request.public_key) == "node:n1"
        assert [key for key in rig.disk.entries if key.startswith("token/")] == []


async def test_a_one_time_token_is_used_up_even_when_its_node_is_removed(autojump_clock, tmp_path):
    """Removal does not give the token back."""
    async with a_rig(tmp_path) as rig:
        user = await a_token(rig)
        await nodes.enrol(rig.cluster, user, enrolment())
        await rig.ask("node.remove", name="n1")
        with pytest.raises(Refused, match="used"):
            await nodes.enrol(rig.cluster, user, enrolment())


async def test_two_that_use_one_token_at_once_are_one_too_many(autojump_clock, tmp_path):
    """The first has it; the second is refused, though both came before the disk answered."""
    async with a_rig(tmp_path) as rig:
        user = await a_token(rig)
        rig.store.hold()
        outcomes = []

        async def one(name):
            try:
                outcomes.append(await nodes.enrol(rig.cluster, user, enrolment(name)))
            except SwarmError as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "n1")
            nursery.start_soon(one, "n2")
            await wait_all_tasks_blocked()
            rig.store.release()

        assert len(rig.cluster.state.nodes) == 1
        assert sum(isinstance(one, Refused) for one in outcomes) == 1


async def test_nodes_with_one_standing_token_do_not_wait_for_each_others_disk(
    autojump_clock, tmp_path
):
    """A fleet that joins is committed together, not one by one; but one key is one node's."""
    async with a_rig(tmp_path) as rig:
        user = await a_token(rig, reusable=True)
        taken = enrolment("n5").public_key
        requests = [enrolment(f"n{number}") for number in range(5)]
        requests += [enrolment("n5", taken), enrolment("n6", taken)]
        outcomes = []

        async def one(request):
            try:
                outcomes.append(await nodes.enrol(rig.cluster, user, request))
            except Conflict as error:
                outcomes.append(error)

        rig.store.hold()
        async with trio.open_nursery() as nursery:
            for request in requests:
                nursery.start_soon(one, request)
            await wait_all_tasks_blocked()
            waiting = rig.store.statistics().waiting
            rig.store.release()

        assert waiting == 6
        assert len(rig.cluster.state.nodes) == 6
        assert sum(isinstance(one, Conflict) for one in outcomes) == 1


async def test_a_token_that_could_not_be_used_up_can_be_used_again(autojump_clock, tmp_path):
    """A full disk costs nobody a token."""
    async with a_rig(tmp_path) as rig:
        user = await a_token(rig)
        rig.store.fail_next(StorageFault("disk full"))
        with pytest.raises(StorageFault):
            await nodes.enrol(rig.cluster, user, enrolment())
        assert rig.cluster.state.nodes == {}

        await nodes.enrol(rig.cluster, user, enrolment("n2"))


async def test_a_revoked_token_is_refused(autojump_clock, tmp_path):
    """Its connections end, its key is not let in, and a request under way comes too late."""
    async with a_rig(tmp_path) as rig:
        user = await a_token(rig, reusable=True)
        name = user.partition(":")[2]
        key = rig.cluster.tokens[name].public_key
        await rig.ask("token.revoke", id=name)

        assert rig.cluster.access.authorise(key) is None
        assert rig.forgotten == [user]
        with pytest.raises(Refused, match="revoked"):
            await nodes.enrol(rig.cluster, user, enrolment())
        with pytest.raises(NotFound):
            await rig.ask("token.revoke", id=name)


async def test_a_name_belongs_to_the_key_that_took_it(autojump_clock, tmp_path):
    """Another key has to choose another name."""
    async with a_rig(tmp_path) as rig:
        user = await a_token(rig, reusable=True)
        await nodes.enrol(rig.cluster, user, enrolment())
        with pytest.raises(Conflict, match="another key"):
            await nodes.enrol(rig.cluster, user, enrolment())


@pytest.mark.parametrize("whose", ["admin", "node", "token"])
async def test_a_key_belongs_to_whom_it_let_in_first(autojump_clock, tmp_path, whose):
    """A node that claims somebody's key does not take their place."""
    async with a_rig(tmp_path) as rig:
        user = await a_token(rig, reusable=True)
        first = enrolment("first")
        await nodes.enrol(rig.cluster, user, first)
        rig.cluster.access.allow("A" * 40, "admin:admin")
        key = {
            "admin": "A" * 40,
            "node": first.public_key,
            "token": rig.cluster.tokens[user.partition(":")[2]].public_key,
        }[whose]
        owner = rig.cluster.access.authorise(key)
        with pytest.raises(Conflict):
            await nodes.enrol(rig.cluster, user, enrolment("thief", key))

        assert rig.cluster.access.authorise(key) == owner


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (enrolment("Not A Name"), InvalidSpec),
        (enrolment("x" * 64), InvalidSpec),
        (enrolment("../etc"), InvalidSpec),
        (enrolment(public_key="short"), ProtocolError),
        (enrolment(public_key="\n" * 40), ProtocolError),
        (enrolment(protocol=99), VersionMismatch),
        (enrolment(protocol=0), VersionMismatch),
    ],
)
async def test_an_enrolment_that_makes_no_sense_is_refused(
    autojump_clock, tmp_path, request_, error
):
    """And leaves the token as it was."""
    async with a_rig(tmp_path) as rig:
        user = await a_token(rig)
        with pytest.raises(error):
            await nodes.enrol(rig.cluster, user, request_)

        assert rig.cluster.state.nodes == {}
        await nodes.enrol(rig.cluster, user, enrolment())


@pytest.mark.parametrize("user", ["admin:admin", "node:n1", ""])
async def test_only_a_token_enrols(autojump_clock, tmp_path, user):
    """Whatever else somebody's key opens."""
    async with a_rig(tmp_path) as rig:
        with pytest.raises(Refused, match="join token"):
            await nodes.enrol(rig.cluster, user, enrolment())


async def test_what_was_used_and_revoked_stays_so_after_a_restart(autojump_clock, tmp_path):
    """It is on the disk."""
    async with a_rig(tmp_path) as rig:
        used, standing = await a_token(rig), await a_token(rig, reusable=True)
        request = enrolment()
        await nodes.enrol(rig.cluster, used, request)
        await rig.ask("node.remove", name="n1")
        disk = rig.disk
    async with a_rig(tmp_path, disk) as rig:
        assert [f"token:{one}" for one in rig.cluster.tokens] == [standing]
        assert rig.cluster.access.authorise(request.public_key) is None
        with pytest.raises(Refused, match="removed"):
            await nodes.enrol(rig.cluster, standing, request)


# --- nodes -----------------------------------------------------------------------------------


async def test_a_connected_node_is_removed_by_force_only(autojump_clock, tmp_path):
    """Its key is revoked, its connections end, what it ran goes elsewhere."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec(replicas=4))
        rig.run()
        with pytest.raises(Conflict, match="connected, with 2 instances"):
            await rig.ask("node.remove", name="a")
        key = rig.cluster.state.nodes["a"].record.public_key
        await rig.ask("node.remove", name="a", force=True)
        rig.run()

        assert rig.forgotten == ["node:a"]
        assert rig.cluster.access.authorise(key) is None
        assert {one.slot for one in rig.nodes["b"].instances.values()} == {1, 2, 3, 4}
        assert "node/a" not in rig.disk.entries
        with pytest.raises(NotFound):
            await rig.ask("node.remove", name="a")


async def test_a_node_removed_twice_at_once_is_removed_once(autojump_clock, tmp_path):
    """The second finds nothing."""
    async with a_rig(tmp_path, None, "a") as rig:
        rig.disconnect("a")
        rig.store.hold()
        outcomes = []

        async def remove():
            try:
                outcomes.append(await rig.ask("node.remove", name="a"))
            except NotFound as error:
                outcomes.append(error)

        async def cordon():
            try:
                outcomes.append(await rig.ask("node.change", names=["a"], cordoned=True))
            except NotFound as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            await wait_all_tasks_blocked()
            nursery.start_soon(remove)
            nursery.start_soon(cordon)
            await wait_all_tasks_blocked()
            rig.store.release()

        assert [type(one) for one in outcomes] == [dict, NotFound, NotFound]
        assert rig.cluster.state.nodes == {}
        assert "node/a" not in rig.disk.entries


async def test_cordon_keeps_new_instances_away_and_uncordon_lets_them_in(autojump_clock, tmp_path):
    """What is there stays."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec(replicas=2))
        rig.run()
        await rig.ask("node.change", names=["a"], cordoned=True)
        await rig.ask("service.scale", replicas={"web": 4})
        rig.run()
        assert rig.cluster.state.nodes["a"].state is NodeState.CORDONED
        assert rig.running() == [1, 2]
        await rig.ask("node.change", names=["a"], cordoned=False)
        rig.run()

        assert rig.running() == [1, 2, 3, 4]


async def test_labels_are_set_and_taken_away_and_two_changes_at_once_both_count(
    autojump_clock, tmp_path
):
    """An empty value takes a label away."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        async with trio.open_nursery() as nursery:
            for label in ("x", "y", "z"):
                nursery.start_soon(
                    lambda label=label: rig.ask(
                        "node.change", names=["a", "b"], labels={label: "1"}
                    )
                )
        await rig.ask("node.change", names=["b"], labels={"x": ""})

        assert rig.cluster.state.nodes["a"].record.labels == {"x": "1", "y": "1", "z": "1"}
        assert rig.cluster.state.nodes["b"].record.labels == {"y": "1", "z": "1"}
        stored = records.decode(rig.disk.entries["node/b"].value, records.NodeRecord, "node/b")
        assert stored == rig.cluster.state.nodes["b"].record


async def test_a_lost_node_stays_lost_whatever_is_changed_of_it(autojump_clock, tmp_path):
    """Only its own hello brings it back."""
    async with a_rig(tmp_path, None, "a") as rig:
        rig.disconnect("a")
        assert rig.cluster.state.nodes["a"].state is NodeState.LOST
        await rig.ask("node.change", names=["a"], labels={"x": "1"})
        await rig.apply(spec())
        rig.run()
        assert rig.cluster.state.nodes["a"].state is NodeState.LOST
        assert rig.cluster.state.nodes["a"].instances == {}
        rig.connect("a")
        rig.run()

        assert rig.cluster.state.nodes["a"].state is NodeState.READY
        assert rig.running() == [1]


@pytest.mark.parametrize(
    "params",
    [
        {"names": "a"},
        {"names": ["a"], "labels": "x"},
        {"names": ["a"], "labels": {"x": 1}},
        {"names": ["a"], "cordoned": "yes"},
    ],
)
async def test_a_change_of_a_node_that_makes_no_sense_is_refused(autojump_clock, tmp_path, params):
    """It is the client's fault."""
    async with a_rig(tmp_path, None, "a") as rig:
        with pytest.raises(ProtocolError):
            await rig.ask("node.change", **params)


# --- files -----------------------------------------------------------------------------------


def _made(folder):
    identity = identities.load_or_make(folder)
    context = identities.write_context(folder, identity, ("tcp://127.0.0.1:7077",), "dev")
    token = identities.make_token(identity, ("tcp://127.0.0.1:7077",))
    identities.write_join_token(folder, token)
    return identity, context, token


def test_the_files_are_for_their_owner_alone_and_come_back_the_same(tmp_path):
    """Keys are kept over restarts; secrets are in no representation."""
    identity, context, token = _made(tmp_path)
    for name in ("cluster.key", "admin.context", "join.token"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    again = identities.load_or_make(tmp_path)
    moved = identities.write_context(tmp_path, again, ("tcp://10.0.0.1:1",), "dev")

    assert again == identity
    assert (moved.public_key, moved.secret_key) == (context.public_key, context.secret_key)
    assert moved.addresses == ("tcp://10.0.0.1:1",)
    assert parse_context((tmp_path / "admin.context").read_text(), "x") == moved
    assert identities.read_join_token(tmp_path) == parse_token(token.to_text()) == token
    for one in (identity, context, token):
        assert one.secret_key not in repr(one)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"{}",
        json.dumps({"cluster_id": "c", "public_key": "x", "secret_key": "top secret"}).encode(),
        json.dumps({"cluster_id": "c", "public_key": None, "secret_key": 1}).encode(),
    ],
)
def test_a_damaged_key_is_a_fault_that_quotes_no_secret(tmp_path, damaged):
    """It is never replaced by a new one: no node would know the cluster any more."""
    (tmp_path / "cluster.key").write_bytes(damaged)
    with pytest.raises(StorageFault, match="cluster's key") as caught:
        identities.load_or_make(tmp_path)

    assert "top secret" not in str(caught.value)
    assert (tmp_path / "cluster.key").read_bytes() == damaged


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"\xff\xfe", b"swarmctl-join-AAAA"])
def test_damaged_ways_in_are_named(tmp_path, damaged):
    """With the file's name, and what to do."""
    identity, _, _ = _made(tmp_path)
    for name in ("admin.context", "join.token"):
        (tmp_path / name).write_bytes(damaged)
    with pytest.raises(InvalidSpec) as caught:
        identities.write_context(tmp_path, identity, (), "dev")
    assert "admin.context" in caught.value.where
    assert caught.value.hint
    with pytest.raises(InvalidSpec, match="join token"):
        identities.read_join_token(tmp_path)


@pytest.mark.parametrize("commits", [0, 1, 2])
async def test_a_first_leader_that_dies_soon_has_not_revoked_its_token(
    autojump_clock, tmp_path, commits
):
    """However many of its first commits came through."""
    identity, _, token = _made(tmp_path)
    disk, network = MemoryDisk(), MemoryNetwork()
    store = await MemoryStore.open(disk)
    commit = store.commit

    async def commit_some(ops, expected=None):
        nonlocal commits
        if not commits:
            raise StorageFault("the power is gone")
        commits -= 1
        return await commit(ops)

    store.commit = commit_some
    pair = keys.KeyPair(identity.public_key, identity.secret_key)
    async with network.open_listener("tcp://10.0.0.1:7077", pair, lambda _: None) as listener:
        with suppress(StorageFault):
            await Controller.start(ControllerConfig(tmp_path), identity, Access(), listener, store)

    await shared.withdraw_revoked_token(tmp_path, await MemoryStore.open(disk))
    assert identities.read_join_token(tmp_path).id == token.id
