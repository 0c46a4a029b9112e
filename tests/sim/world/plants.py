"""Bugs to plant, each a mistake that somebody could make: the simulator has to find them."""

import sys
from contextlib import contextmanager
from unittest import mock

import trio

from swarmctl.agent.guard import FencedList
from swarmctl.agent.instance import Instance
from swarmctl.agent.transitions import Goal
from swarmctl.controller import confirming, sessions
from swarmctl.controller.candidate import Candidate
from swarmctl.controller.fencing import FenceBook, always
from swarmctl.controller.judge import Verdict, judge
from swarmctl.controller.sessions import Sessions
from swarmctl.controller.state import ClusterState
from swarmctl.controller.store import memory
from swarmctl.controller.store.commits import validate
from swarmctl.spec.models import Resources
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

    def admit(_self, _service, slots, _unreported):
        return slots

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


def _believe_absence():
    """What a node does not name is gone, whether its driver has said what it has or not."""
    return mock.patch.object(Sessions, "_absent", lambda self, _, one: self._gone(one))


PLANTS = {
    "no-lease-check": _no_lease_check,
    "no-fence": _no_fence,
    "acknowledge-first": _acknowledge_first,
    "ignore-generation": _ignore_generation,
    "keep-what-returns": _keep_what_returns,
    "create-unwritten": _create_unwritten,
    "defect": _defect,
    "count-no-memory": _count_no_memory,
    "guard-nothing": _guard_nothing,
    "lead-on": _lead_on,
    "never-confirm": _never_confirm,
    "believe-absence": _believe_absence,
}


@contextmanager
def planted(name):
    """With the bug ``name`` in the product; the empty name plants none."""
    if name:
        with PLANTS[name]():
            yield
    else:
        yield
