"""Bugs to plant, each a mistake that somebody could make: the simulator has to find them.

Each names the invariants that may find it.  What something else finds is not the bug that was
meant: such a plant does not fit the product any more, and ends it by an exception, say.
"""

import sys
from collections.abc import Callable
from contextlib import contextmanager
from unittest import mock

import trio
from attrs import frozen

from swarmctl.agent.guard import FencedList
from swarmctl.agent.instance import Instance
from swarmctl.agent.transitions import Goal
from swarmctl.controller import confirming, forgetful, jobs, sessions
from swarmctl.controller.candidate import Candidate
from swarmctl.controller.fencing import FenceBook, always
from swarmctl.controller.judge import Verdict, judge
from swarmctl.controller.sessions import Sessions
from swarmctl.controller.state import ClusterState
from swarmctl.controller.store import memory
from swarmctl.controller.store.commits import validate
from swarmctl.proto.states import InstanceState
from swarmctl.spec.models import Resources
from tests.sim.world.books import A_DEFECT
from tests.sim.world.disks import Journal


def _no_fence():
    """The store does not compare the writer's term: a deposed controller goes on writing."""
    return mock.patch.object(memory, "check_term", return_value=None)


def _acknowledge_first():
    """A commit is answered when it is queued; the disk comes later."""

    async def commit(self, ops):
        ops = tuple(ops)
        validate(ops)
        waiting = memory._Waiting(ops)
        self._queue.append(waiting)
        self._waiting_ops += max(1, len(ops))
        self._disk.books.world.later(0.2, lambda: self._queue and self._sync_first())
        await memory.trio.lowlevel.checkpoint()
        return self._disk.revision + len(self._queue)

    return mock.patch.object(memory.MemoryStore, "commit", commit)


def _ignore_generation():
    """An agent knows that a restart was asked for, and does not do it."""
    goal = Instance.goal.fget

    def without(self):
        found = goal(self)
        return Goal.RUN if found is Goal.RESTART else found

    return mock.patch.object(Instance, "goal", property(without))


def _keep_what_returns():
    """What comes back on a node that was lost stays beside its replacement."""

    def lenient(state, report, node):
        verdict, why = judge(state, report, node)
        newer = "newer" in why
        return (Verdict.QUARANTINE, why) if verdict is Verdict.REMOVE and newer else (verdict, why)

    return mock.patch.object(sessions, "judge", lenient)


def _create_unwritten():
    """A journal that answers before its disk has the record."""

    async def commit(self, write):
        self._queue.append(write)
        self.books.world.later(0.2, lambda: self._queue and self._take(self._queue.popleft()))
        await memory.trio.lowlevel.checkpoint()

    return mock.patch.object(Journal, "_commit", commit)


def _no_lease_check():
    """A fenced slot is placed anew as soon as its node is lost."""

    def admit(_self, _service, slots, *_, **__):
        return list(slots)

    return mock.patch.object(FenceBook, "admit", admit)


def _defect():
    """An exception that nobody expects ends a controller."""

    def lose(*_):
        raise KeyError("planted")

    return mock.patch.object(ClusterState, "lose", lose)


def _count_no_memory():
    """The controller places as if instances took no memory."""
    amounts = Resources.amounts

    def without(self):
        found = amounts(self)
        counting = sys._getframe(1).f_globals["__name__"].startswith("swarmctl.controller")
        return {k: v for k, v in found.items() if k != "memory_bytes" or not counting}

    return mock.patch.object(Resources, "amounts", without)


def _guard_nothing():
    """A guard that lives, and takes its list for empty."""
    return mock.patch.object(FencedList, "read", return_value=frozenset())


def _lead_on():
    """A leader does not look whether its lease is lost; it hears of it when a write is refused."""

    async def never(_self, _guard):
        await trio.sleep_forever()

    return mock.patch.multiple(Candidate, _until_lost=never)


def _never_confirm():
    """A controller on SQLite does not ask whether it was superseded."""

    async def never(cluster):
        if cluster.state.fences.may_grant is always:
            await trio.sleep_forever()

    return mock.patch.object(confirming, "run", never)


@contextmanager
def _believe_absence():
    """What a node does not name is gone, whether its driver has said what it has or not."""

    def hear(node, _hello, _now):
        node.told_all, node.doubtful_since = True, None

    with (
        mock.patch.object(Sessions, "_absent", lambda self, _, one: self._gone(one)),
        mock.patch.object(forgetful, "hear", hear),
    ):
        yield


def _complete_as_it_runs():
    """A job's copy counts as completed as soon as it runs."""
    settle = jobs.settle

    def hasty(state, fleet, instance):
        service = state.services.get(instance.key)
        runs = instance.state is InstanceState.RUNNING
        job = service is not None and service.record.spec.template.job
        return settle(state, fleet, instance) or (job and runs)

    return mock.patch.object(jobs, "settle", hasty)


def _adopt_the_dead():
    """What runs of a service that was removed counts for the one that has its name now."""

    def forgetful(state, report, node):
        with mock.patch.object(state, "tombstones", {}):
            return judge(state, report, node)

    return mock.patch.object(sessions, "judge", forgetful)


@frozen
class Plant:
    """A bug: ``sow`` is a context that has it, ``found_by`` are the invariants that may find it."""

    sow: Callable
    found_by: frozenset

    @property
    def what(self):
        """What is wrong with it, in a line."""
        return self.sow.__doc__.strip()


def _plant(sow, *found_by):
    return Plant(sow, frozenset(found_by))


PLANTS = {
    "no-lease-check": _plant(_no_lease_check, "fenced-runs-once"),
    "no-fence": _plant(
        _no_fence, "write-is-asked-for", "refused-is-not-done", "acknowledged-is-durable"
    ),
    "acknowledge-first": _plant(
        _acknowledge_first, "acknowledged-is-synced", "acknowledged-is-durable"
    ),
    "ignore-generation": _plant(_ignore_generation, "comes-to-rest"),
    "keep-what-returns": _plant(
        _keep_what_returns, "comes-to-rest", "nothing-left-over", "within-capacity"
    ),
    "create-unwritten": _plant(_create_unwritten, "journaled-before-created"),
    "defect": _plant(_defect, A_DEFECT),
    "count-no-memory": _plant(
        _count_no_memory, "comes-to-rest", "within-capacity", "booked-within-capacity"
    ),
    "guard-nothing": _plant(_guard_nothing, "fenced-runs-once"),
    "lead-on": _plant(_lead_on, "comes-to-rest", "fenced-runs-once"),
    "never-confirm": _plant(_never_confirm, "fenced-runs-once"),
    "complete-as-it-runs": _plant(_complete_as_it_runs, "completion-is-earned"),
    "adopt-the-dead": _plant(
        _adopt_the_dead, "completion-is-earned", "comes-to-rest", "write-is-asked-for"
    ),
    "believe-absence": _plant(_believe_absence, "fenced-runs-once", "comes-to-rest"),
}


@contextmanager
def planted(name):
    """With the bug ``name`` in the product; the empty name plants none."""
    if name:
        with PLANTS[name].sow():
            yield
    else:
        yield
