"""The guards of a machine: what ends fenced instances when the lease has run out, agent or not.

List and judgement are the product's (:mod:`swarmctl.agent.guard`), and so is the agent's side of
them; a guard here is a task of the world in place of a process, which can be killed and frozen.
It outlives the agent; a loss of power takes it, and the memory disk with its list.  Its clock is
that of the machine's boot: it drifts, and nobody sets it.
"""

import math
import shutil

import trio

from swarmctl.agent import guard
from swarmctl.agent.drivers.sim import EXIT_KILLED
from swarmctl.agent.drivers.sim_host import runtime_id
from swarmctl.agent.fencing import GUARD_START_S, LOOK_S, GuardFence

# From its start until a new process shows itself.
_BEGINS_WITHIN_S = 0.2


class Page:
    """The shared page.  A guard that lives has just shown itself, whenever somebody looks.

    So the task of a guard need not wake up for that, four times a second on each machine; nor that
    of an agent, to see it.
    """

    is_there = True

    def __init__(self, machine):
        self._machine = machine
        self._words = [0] * 6

    def __getitem__(self, word):
        if word == guard.BEAT_NS:
            self._words[word] = max(self._words[word], self._machine.beat_ns(self))
        return self._words[word]

    def keep_beat(self):
        """Of a guard that ends now."""
        self._words[guard.BEAT_NS] = self[guard.BEAT_NS]

    async def wait_doubtful(self):
        """Until its guard shows itself no more."""
        while self._machine.shows_itself(self):
            await self._machine.guards_changed.wait()

    def __setitem__(self, word, value):
        self._words[word] = value


class Fence(GuardFence):
    """The agent's side: the product's, but for the page and for how a process is started."""

    def __init__(self, machine):
        self._machine = machine
        self._now_ns = machine.boottime_ns
        self._page = machine.page
        self.folder = machine.folder / "run"
        self._list = self.folder / guard.LIST
        self._list.mkdir(parents=True, exist_ok=True)

    def enlist(self, incarnation, runtime_id):
        super().enlist(incarnation, runtime_id)
        self._machine.wake_guards()

    async def dismiss_dead(self, incarnations):
        for one in set(incarnations).difference(self._machine.alive()):
            self.dismiss(one)

    async def _start(self):
        self._machine.begin_guard()
        await self.wait_alive()

    async def wait_alive(self):
        with trio.move_on_after(GUARD_START_S):
            while not self.is_alive:
                await self._machine.guards_changed.wait()

    async def _sweep(self):
        """A machine here has one folder; and a thread would end when it likes."""

    async def _pause(self):
        """Looks that are made at a guard which shows itself are left out; the others are not."""
        due = trio.current_time() + LOOK_S
        await self._page.wait_doubtful()
        late_s = max(0.0, trio.current_time() - due)
        await trio.sleep_until(due + math.ceil(late_s / LOOK_S) * LOOK_S)

    async def _dissolve(self):
        """Agents here end as by ``kill -9`` only, without a word to anybody."""


class GuardProcess(guard.Guard):
    """One guard of a machine, as a task.  ``beat_ns`` is set when it shows itself no more."""

    def __init__(self, machine, number):
        self.machine = machine
        self.number = self._me = number
        self.page = machine.page
        self.list = guard.FencedList(str(machine.folder / "run"))
        self._last_kill_ns = 0
        self.page[guard.GUARD_PID] = number
        self.beat_ns = None
        self.woken = trio.Event()
        self.scope = trio.CancelScope()

    async def run(self):
        """Guard until done, or killed."""
        machine = self.machine
        with self.scope:
            while (wait_s := self.look()) is not None:
                self.woken = trio.Event()
                if not self.list.names or self.is_frozen:
                    await self.woken.wait()
                    continue
                left_s = (self.page[guard.LEASE_NS] - self.now_ns()) / guard.NS
                if left_s <= 0 and not self._find(self.list.names):
                    # The lease has run out and nothing is left to kill: so it stays until
                    # something is begun, which wakes us; then as late as one that looks always.
                    await self.woken.wait()
                    left_s = 0.0
                await trio.sleep(max(wait_s, left_s) + machine.random.uniform(0, guard.BEAT_S))
        machine.guard_ended(self)

    @property
    def is_frozen(self):
        """Whether it was stopped, or killed."""
        return self.beat_ns is not None

    def look(self):
        """The product's; one that is frozen sees nothing."""
        return guard.BEAT_S if self.is_frozen else super().look()

    def freeze(self):
        """SIGSTOP."""
        if not self.is_frozen:
            self.beat_ns = self.now_ns()
            self.machine.note_guards()

    def thaw(self):
        """SIGCONT."""
        self.beat_ns = None
        self.machine.note_guards()
        self.woken.set()

    def kill(self):
        """``kill -9``."""
        self.freeze()
        self.scope.cancel()

    def now_ns(self):
        """The machine's."""
        return self.machine.boottime_ns()

    def _end_all(self, names):
        machine = self.machine
        owner = machine.world.owner(machine.name)
        found = self._find(names)
        for one in found:
            machine.world.books.fire("lease-ran-out", machine.name)
            machine.host._end(owner, one, EXIT_KILLED, trio.current_time())
        return bool(found)

    def _find(self, names):
        alive = self.machine.alive().items()
        return [one for number, one in alive if runtime_id(number).encode() in names]

    def _has_agent(self, _now):
        """Looked at as often as a process does: see :meth:`Guards.agent_ended`."""
        return self.machine.world.agent_of(self.machine).alive


class Guards:
    """What a machine has of them: its part of :class:`tests.sim.world.machines.Machine`."""

    def __init__(self):
        self.guards = []
        self.page = Page(self)
        self.guards_changed = trio.Event()
        self._guards_begun = 0

    def boottime_ns(self):
        """The time since the boot, by the machine's own quartz."""
        return int(self.quartz.at(trio.current_time()) * guard.NS)

    def beat_ns(self, page):
        """When the guard of ``page`` has shown itself last."""
        for one in self.guards:
            if one.number == page[guard.GUARD_PID]:
                return one.beat_ns if one.is_frozen else one.now_ns()
        return 0

    def shows_itself(self, page):
        """Whether the guard of ``page`` lives and is not frozen."""
        number = page[guard.GUARD_PID]
        return any(one.number == number and not one.is_frozen for one in self.guards)

    def note_guards(self):
        """One of them shows itself no more, or does so now."""
        self.guards_changed.set()
        self.guards_changed = trio.Event()

    def guard_ended(self, one):
        """Its page keeps when it has shown itself last."""
        one.page.keep_beat()
        self.guards.remove(one)
        self.note_guards()

    def begin_guard(self):
        """A new process, a moment later."""
        page = self.page

        def begin():
            if self.page is page:  # Else the power has gone meanwhile.
                self._guards_begun += 1
                made = GuardProcess(self, self._guards_begun)
                self.guards.append(made)
                self.note_guards()
                self.world.nursery.start_soon(made.run)

        self.world.later(self.random.uniform(0, _BEGINS_WITHIN_S), begin)

    def agent_ended(self):
        """Those that guard nothing end, once they have looked."""
        looks_within_s = self.random.uniform(0, guard.AGENT_EVERY_S + guard.BEAT_S)
        self.world.later(looks_within_s, self.wake_guards)

    def wake_guards(self):
        """Something is in the list, or the agent may have ended."""
        for one in self.guards:
            one.woken.set()

    def lose_guards(self):
        """A loss of power: neither guard nor list is left."""
        for one in self.guards:
            one.kill()
        self.page = Page(self)
        shutil.rmtree(self.folder / "run", ignore_errors=True)
