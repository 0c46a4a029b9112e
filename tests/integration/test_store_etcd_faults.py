"""The store while etcd's members are killed and frozen, run out of space, or lose the lease."""

import random
import signal
from contextlib import aclosing, closing, suppress

import pytest
import trio

from lab.etcd import EtcdCluster
from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.etcd.client import EtcdClient
from swarmctl.controller.etcd.client import put as etcd_put
from swarmctl.controller.etcd.faults import EtcdRefused, NoEtcd
from swarmctl.controller.etcd.ledger import LeaseGuard
from swarmctl.controller.store.api import Put
from swarmctl.controller.store.etcd import EtcdStore
from swarmctl.proto.errors import StaleTerm, StorageFault
from tests.integration.etcd_fixture import etcd, own_address, three

__all__ = ["etcd", "three"]

DEADLINE_S = 120


async def opened(address, guard=None):
    return await EtcdStore.open(address, new_cluster_id=lambda: "ab" * 16, guard=guard)


def address_of(cluster):
    return EtcdAddress(tuple(cluster.addresses))


async def until(condition):
    """Wait for what another process does; the test's deadline bounds it."""
    while not await trio.to_thread.run_sync(condition):  # noqa: ASYNC110 - nobody sets an event
        await trio.sleep(0.02)


@pytest.fixture
def client(etcd):
    """Another program's connection to the etcd of the module."""
    with closing(EtcdClient(EtcdAddress(tuple(etcd.addresses)))) as made:
        yield made


def grant(client, address, ttl_s=60):
    """The leader's key on a lease of its own."""
    lease = int(client.call("/v3/lease/grant", {"TTL": str(ttl_s)}, deadline_s=30)["ID"])
    key = address.key("leader")
    client.transact([], [etcd_put(key, b"me", lease)], [], deadline_s=30)
    return LeaseGuard(key, lease)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_one_of_three_members_is_not_missed(three, number):
    """Each in turn is killed or frozen under a stream of commits: all of them are done, once."""
    done = []
    with trio.fail_after(DEADLINE_S):
        async with aclosing(await opened(address_of(three))) as store:
            await store.take_term()
            turns = 0

            async def write(task):
                step = 0
                while turns < 3 or step < 10:
                    await store.commit([Put(f"k/{task}/{step}", b"x", expect=0)])
                    done.append(f"k/{task}/{step}")
                    step += 1
                    await trio.sleep(0.002)

            async def harm():
                nonlocal turns
                for member in three.members:
                    before = len(done)
                    member.send_signal(number)
                    await until(lambda before=before: len(done) >= before + 50)
                    if number == signal.SIGKILL:
                        member.kill()
                        three.spawn(member)
                    else:
                        member.send_signal(signal.SIGCONT)
                    await until(member.is_healthy)
                    turns += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(harm)
                for task in range(4):
                    nursery.start_soon(write, task)
            assert set(await store.read("k/")) == set(done)
            assert len(done) == len(set(done))


async def test_without_a_majority_it_says_so_and_goes_on_after(three):
    """Two of three are gone: writes are refused by name, nothing is lost, and then they work."""
    with trio.fail_after(DEADLINE_S):
        async with aclosing(await opened(address_of(three))) as store:
            await store.take_term()
            await store.commit([Put("a", b"1")])
            for member in three.members[:2]:
                member.kill()
            with pytest.raises(StorageFault) as caught:
                await store.commit([Put("a", b"2")])
            assert "majority" in caught.value.hint
            three.start()
            await store.commit([Put("b", b"1")])
            # The refused one was said to be in doubt: it may be there, and is not half there.
            found = await store.read()
            assert found.pop("b") == b"1"
            assert found in ({"a": b"1"}, {"a": b"2"})


async def test_no_etcd_is_said_by_name(tmp_path):
    """An address where no etcd is: named, with what to do."""
    cluster = EtcdCluster(tmp_path / "etcd")
    with trio.fail_after(DEADLINE_S), pytest.raises(NoEtcd) as caught:
        await opened(address_of(cluster))
    assert cluster.addresses[0] in str(caught.value)


async def test_the_quota_is_named_and_work_goes_on_once_it_is_cleared(tmp_path):
    """NOSPACE: the alarm's name and the commands; after a compaction and a disarm it goes on."""
    more = ("--quota-backend-bytes", str(6 * 1024 * 1024))
    with EtcdCluster(tmp_path / "etcd", 1, more) as cluster, trio.fail_after(DEADLINE_S):
        address = address_of(cluster)
        async with aclosing(await opened(address)) as store:
            await store.take_term()
            await store.commit([Put("a", b"kept")])
            with pytest.raises(EtcdRefused) as caught:
                await fill(store)
            assert "NOSPACE" in caught.value.what
            assert "alarm disarm" in caught.value.hint
            assert (await store.read("a"))["a"] == b"kept"

            await trio.to_thread.run_sync(clear_the_alarm, address)
            await store.commit([Put("b", b"after")])
            assert (await store.read("b"))["b"] == b"after"


async def fill(store):
    """More than the quota, until the store says so."""
    for number in range(100):
        await store.commit([Put("big", random.Random(number).randbytes(400_000))])


def clear_the_alarm(address):
    """What the hint says, without etcdctl."""
    with closing(EtcdClient(address)) as client:
        revision = client.range(address.key("x"), deadline_s=30)["header"]["revision"]
        client.call("/v3/kv/compaction", {"revision": revision, "physical": True}, deadline_s=30)
        client.call("/v3/maintenance/defragment", {}, deadline_s=30)
        found = client.call("/v3/maintenance/alarm", {"action": "GET"}, deadline_s=30)
        for one in found["alarms"]:
            client.call("/v3/maintenance/alarm", {"action": "DEACTIVATE", **one}, deadline_s=30)


async def test_nothing_is_written_once_the_lease_has_run_out(etcd, client):
    """Although nobody took a higher term: the transaction compares the leader's lease."""
    address = own_address(etcd)
    guard = await trio.to_thread.run_sync(grant, client, address)
    with trio.fail_after(DEADLINE_S):
        async with aclosing(await opened(address, guard)) as store:
            await store.take_term()
            await store.commit([Put("a", b"1")])
            client.call("/v3/lease/revoke", {"ID": str(guard.lease)}, deadline_s=30)
            for use in (
                lambda: store.commit([Put("a", b"2")]),
                lambda: store.commit([]),
                store.take_term,
            ):
                with pytest.raises(StaleTerm):
                    await use()
            assert await store.read() == {"a": b"1"}
        async with aclosing(await opened(address, guard)) as late:
            with pytest.raises(StaleTerm):
                await late.take_term()


async def test_another_leaders_key_does_not_let_the_old_one_write(etcd, client):
    """The key is there again, on another's lease."""
    address = own_address(etcd)
    guard = await trio.to_thread.run_sync(grant, client, address)
    async with aclosing(await opened(address, guard)) as store:
        await store.take_term()
        client.call("/v3/lease/revoke", {"ID": str(guard.lease)}, deadline_s=30)
        await trio.to_thread.run_sync(grant, client, address)
        with pytest.raises(StaleTerm):
            await store.commit([Put("a", b"2")])


async def test_an_answer_that_was_lost_does_not_do_it_twice(etcd, monkeypatch):
    """The transaction was done, its answer lost: sent again, it finds itself done."""
    address = own_address(etcd)
    async with aclosing(await opened(address)) as store:
        await store.take_term()
        lost = []
        attempt = EtcdClient._attempt

        def losing(self, path, payload, timeout_s):
            answer = attempt(self, path, payload, timeout_s)
            if path == "/v3/kv/txn" and not lost:
                lost.append(path)
                raise TimeoutError("lost")
            return answer

        monkeypatch.setattr(EtcdClient, "_attempt", losing)
        first = await store.commit([Put("a", b"1", expect=0)])
        lost.clear()
        second = await store.commit([Put("a", b"2")])
        assert len(lost) == 1
        assert second == first + 1
        assert (await store.read("a"))["a"] == b"2"
        third = await store.commit([Put("a", b"3", expect=second)])
        assert third == second + 1


async def test_a_compaction_by_someone_else_disturbs_no_reader(etcd, client):
    """Pages are read as of one revision; when that goes, the reading begins again."""
    address = own_address(etcd)
    async with aclosing(await opened(address)) as store:
        await store.take_term()
        keys = [f"k/{number:04}" for number in range(700)]
        for start in range(0, len(keys), 100):
            await store.commit([Put(key, b"x" * 1000) for key in keys[start : start + 100]])

        async def compact():
            for _ in range(20):
                await store.commit([Put("other", b"")])
                answer = await trio.to_thread.run_sync(
                    lambda: client.range(address.key("x"), deadline_s=30)
                )
                body = {"revision": answer["header"]["revision"]}
                with suppress(EtcdRefused):  # It is the latest already.
                    await trio.to_thread.run_sync(
                        lambda body=body: client.call("/v3/kv/compaction", body, deadline_s=30)
                    )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(compact)
            for _ in range(10):
                assert list(await store.read("k/")) == keys
