"""Jobs: completions are durable, in groups, and belong to what was asked for last."""

import attrs
import pytest
import trio

from swarmctl.controller import completions
from swarmctl.proto.errors import StorageFault
from swarmctl.proto.messages import Report
from swarmctl.proto.states import InstanceState
from tests.unit.controller.harness import spec
from tests.unit.controller.requests_fixture import a_rig


def succeed(rig, name, *slots):
    """The node says that copies of the job have succeeded."""
    node = rig.nodes[name]
    told = []
    for number, one in list(node.instances.items()):
        if one.slot in slots:
            done = attrs.evolve(one, state=int(InstanceState.SUCCEEDED), exit_code=0)
            node.instances[number] = done
            told.append(done)
    node.sequence += 1
    rig.cluster.sessions.on_message(node.peer, f"node:{name}", Report(node.sequence, tuple(told)))


async def commit(rig):
    """As the controller does when it is woken."""
    done, rig.cluster.sessions.completions = rig.cluster.sessions.completions, []
    await completions.commit(rig.cluster, done)


async def test_many_completions_are_one_write(autojump_clock, tmp_path):
    """However many have gathered; and the next controller knows them."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec("job", 30, job=True))
        rig.run()
        succeed(rig, "a", *range(1, 21))
        await commit(rig)
        assert rig.record("job").completed == tuple(range(1, 21))
        disk = rig.disk
    async with a_rig(tmp_path, disk) as rig:
        assert rig.record("job").completed == tuple(range(1, 21))


async def test_a_completion_before_a_restart_counts_no_more(autojump_clock, tmp_path):
    """What was asked for last has not run yet."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec("job", 2, job=True))
        rig.run()
        succeed(rig, "a", 1, 2)
        await rig.ask("service.restart", names=["job.1"])
        await commit(rig)
        assert rig.record("job").completed == (2,)

        rig.run()
        succeed(rig, "a", 1)
        await commit(rig)
        assert rig.record("job").completed == (1, 2)


async def test_a_restarted_job_runs_all_of_it_again(autojump_clock, tmp_path):
    """Also copies whose node is gone."""
    async with a_rig(tmp_path, None, "a", "b") as rig:
        await rig.apply(spec("job", 4, job=True))
        rig.run()
        for name in rig.nodes:
            succeed(rig, name, 1, 2, 3, 4)
        await commit(rig)
        gone = [one.slot for one in rig.nodes["b"].instances.values()]
        rig.disconnect("b")
        await rig.ask("node.remove", name="b", force=True)
        rig.nodes.pop("b")
        rig.run()
        assert rig.running("job") == []
        listed = await rig.ask("instance.list", all=True)
        assert {one["state"] for one in listed} == {"succeeded"}
        assert {one["node"] for one in listed} == {"a", ""}
        assert len(listed) == 4
        assert (await rig.ask("instance.list")) == []
        counts = await rig.ask("service.wait", names=["job"])
        assert counts["job"] == {"succeeded": 4, "wanted": 4}

        await rig.ask("service.restart", names=["job"])
        rig.run()
        assert rig.running("job") == [1, 2, 3, 4]
        assert gone


async def test_the_wait_for_a_job_ends_when_its_completions_are_durable(autojump_clock, tmp_path):
    """Not before: a completion that nobody kept may run again."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec("job", 2, job=True))
        rig.run()
        succeed(rig, "a", 1, 2)
        with pytest.raises(Exception, match="not running after 1 s"):
            await rig.ask("service.wait", names=["job"], timeout_s=1)
        await commit(rig)
        await rig.ask("service.wait", names=["job"], timeout_s=1)


async def test_what_the_disk_refused_is_not_in_memory_either(autojump_clock, tmp_path):
    """Whoever asked tries again."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec("job", 2, job=True))
        rig.run()
        succeed(rig, "a", 1)
        rig.store.fail_next(StorageFault("disk full"), 1)
        noted = list(rig.cluster.sessions.completions)
        with pytest.raises(StorageFault):
            await commit(rig)
        assert rig.record("job").completed == ()
        rig.cluster.sessions.completions = noted
        await commit(rig)
        assert rig.record("job").completed == (1,)


async def test_completions_of_many_services_take_several_transactions(autojump_clock, tmp_path):
    """A transaction has a bounded number of operations."""
    async with a_rig(tmp_path, None, "a") as rig:
        jobs = [spec(f"job{number}", 1, cpu_millis=1, job=True) for number in range(150)]
        await rig.apply(*jobs)
        rig.run()
        succeed(rig, "a", 1)
        await commit(rig)
        assert all(rig.record(one.name).completed == (1,) for one in jobs)
        await trio.lowlevel.checkpoint()


async def test_a_completion_is_not_of_a_new_job_of_the_same_name(autojump_clock, tmp_path):
    """It waited behind `rm` and `run` of that name, and nothing of the new one has run."""
    async with a_rig(tmp_path, None, "a") as rig:
        await rig.apply(spec("job", 2, job=True))
        rig.run()
        succeed(rig, "a", 1)
        await rig.ask("service.remove", names=["job"])
        await rig.apply(spec("job", 2, job=True))
        await commit(rig)
        assert rig.record("job").completed == ()

        rig.run()
        succeed(rig, "a", 2)
        await commit(rig)
        assert rig.record("job").completed == (2,)
