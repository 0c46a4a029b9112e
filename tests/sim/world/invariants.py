"""What must hold, whatever happens; and what must hold again once it has stopped happening."""

from collections import Counter

import trio

from swarmctl.controller.records import SlotWish
from swarmctl.proto.errors import Conflict, Refused, StaleTerm, StorageFault
from swarmctl.proto.states import NodeState
from swarmctl.spec import wire
from tests.sim.world.machines import CAPACITY
from tests.sim.world.users import CHECK

# By these a daemon may end by itself: its disk, a successor, a session that still counts, or a
# key that its controller, which has only begun, does not know yet.
_ENDINGS = (StorageFault, StaleTerm, Conflict, Refused)
# Of a controller at rest: receive, answer, reconcile, tick, commit, confirm, the networks' plane,
# guests' tokens, its end; a candidate has its election, and what tells addresses, beside them.
_TASKS = {"serves alone": 9, "leads": 12, "follows": 3}


class Invariants:
    """Looks at one world."""

    def __init__(self, world):
        self.world = world
        self.homes = {}
        # Copies of jobs that have ended well, by service and slot; and those that count no more.
        self._ended_well = {}
        self._of_earlier_jobs = set()
        # By a template's identity: the template, so that it stays, and its digest.
        self._digests = {}
        # Bad answers in a row, by machine, incarnation, its start and its agent's.
        self._unwell = Counter()

    # --- at every step ------------------------------------------------------------------------

    def created(self, machine, launch):
        """A machine has an instance more."""
        home = self.homes.setdefault(launch.incarnation, machine.name)
        self.world.books.check(
            "incarnation-on-one-node",
            home == machine.name,
            lambda: f"{launch.instance} ({launch.incarnation}) on {home} and {machine.name}",
        )

    def journaled(self, machine, launch):
        """An agent is about to create."""
        self.world.books.check(
            "journaled-before-created",
            machine.journal.has(launch.incarnation),
            lambda: f"{launch.instance} on {machine.name}",
        )

    def started(self, machine, instance):
        """An instance begins to run."""
        world = self.world
        world.trace.note("started", machine.name, instance.launch.instance)
        self._within_capacity(machine)
        if instance.launch.template.fenced:
            world.fenced_started.set()
            world.fenced_started = trio.Event()
            twins = [
                other.name
                for other in world.machines
                for one in other.alive().values()
                if (one.launch.service, one.launch.slot)
                == (instance.launch.service, instance.launch.slot)
            ]
            world.books.check("fenced-runs-once", len(twins) == 1, lambda: f"on {twins}")

    def ended(self, instance, code):
        """An instance has ended by itself, or was made to."""
        launch = instance.launch
        if code == 0 and launch.template.job:
            where = (launch.service, launch.slot)
            self._ended_well.setdefault(where, set()).add(launch.incarnation)

    def asked(self, machine, instance, *, well):
        """An instance has answered a health check."""
        key = self._life_of(machine, instance)
        self._unwell[key] = 0 if well else self._unwell[key] + 1

    def _life_of(self, machine, instance):
        begun = self.world.agent_of(machine).starts
        return (machine.name, instance.launch.incarnation, instance.started_at, begun)

    def forget_ends(self, service):
        """A job is removed: what runs, or is told to, is of no later one of that name."""
        world = self.world
        on_machines = (
            number
            for machine in world.machines
            for number, one in machine.book.items()
            if one.launch.service == service
        )
        told = (
            number
            for process in world.controllers
            if process.value is not None
            for node in process.value.state.nodes.values()
            for number, one in node.instances.items()
            if one.key[1] == service
        )
        self._of_earlier_jobs.update(on_machines, told)

    def completed(self, service, slot):
        """It is written that a copy of a job has succeeded."""
        ended = self._ended_well.get((service, slot), set())
        self.world.books.check(
            "completion-is-earned",
            bool(ended - self._of_earlier_jobs),
            lambda: f"{service}.{slot} has not, as it is asked for now: {sorted(ended)} have",
        )

    def _within_capacity(self, machine):
        used = _total(one.launch.template.resources for one in machine.book.values() if one.alive)
        self.world.books.check(
            "within-capacity", _fits(used), lambda: f"{machine.name} runs {used}"
        )

    def look_at_capacity(self):
        """Machines run no more than they have, and the controller's books say so, too."""
        cluster = self.world.cluster
        users = {one.name: one for one in self.world.users}
        for machine in self.world.machines:
            self._within_capacity(machine)
            node = cluster and cluster.state.nodes.get(machine.name)
            if node is not None:
                self._booked_within_capacity(node, cluster.fleet.snapshot, users)

    def _booked_within_capacity(self, node, snapshot, users):
        """Room may be kept for what takes the place of others: those are on their way out."""
        leaving = _total(
            users[one.key[1]].resources
            for one in node.instances.values()
            if one.removing and one.counted
        )
        booked = snapshot.allocated(node.record.name)
        for name, amount in leaving.items():
            booked[name] = booked.get(name, 0) - amount
        self.world.books.check(
            "booked-within-capacity",
            _fits(booked),
            lambda: f"{node.record.name} is given {booked}",
        )

    def process_ended(self, process, error):
        """A daemon ended by itself."""
        self.world.books.check(
            "ends-for-a-reason",
            isinstance(error, _ENDINGS),
            lambda: f"{process.name}: {type(error).__name__}: {error}",
        )

    # --- once the faults have stopped ---------------------------------------------------------

    def differences(self):
        """What is not yet as it should be, in words; nothing when all is."""
        records = self.world.disk.services()
        found = self._intruders(records)
        for name, record in records.items():
            found += self._job(name, record) if record.spec.template.job else self._slots(record)
        return found + self._controller()

    def _intruders(self, records):
        """Instances that nobody asked for."""
        found = []
        for machine in self.world.living:
            for one in machine.book.values():
                record = records.get(one.launch.service)
                wanted = (
                    record is not None
                    and one.launch.slot <= record.spec.replicas
                    and record.wish(one.launch.slot) is not SlotWish.REMOVED
                )
                if not wanted:
                    found.append(f"{one.launch.instance} is on {machine.name}, and not wanted")
        return found

    def _holders(self, name):
        """Slot to the instances that run, with their machines."""
        found = {}
        for machine in self.world.machines:
            for one in machine.alive().values():
                if one.launch.service == name:
                    found.setdefault(one.launch.slot, []).append((machine, one))
        return found

    def _slots(self, record):
        name, found = record.spec.name, []
        holders = self._holders(name)
        restarted = next(one for one in self.world.users if one.name == name).restarted_at
        wanted = self._digest(record.spec.template)
        for slot in range(1, record.spec.replicas + 1):
            there = holders.get(slot, [])
            runs = record.wish(slot) is SlotWish.RUNNING
            if len(there) != runs:
                nodes = [machine.name for machine, _ in there]
                found.append(f"{name}.{slot} should run {runs:d} times and does on {nodes}")
            for machine, one in there:
                if self._digest(one.launch.template) != wanted:
                    found.append(f"{name}.{slot} on {machine.name} is of an older spec")
                if self._unwell[self._life_of(machine, one)] >= CHECK.retries:
                    found.append(f"{name}.{slot} on {machine.name} is not well, and was left so")
                # Which restarts were done only the journal knew: where that was lost, what is found
                # counts as restarted.
                if one.launch.incarnation in machine.forgotten:
                    continue
                if one.started_at < restarted.get(slot, 0.0):
                    found.append(f"{name}.{slot} on {machine.name} was not restarted")
        return found

    def _digest(self, template):
        if id(template) not in self._digests:
            encoded = wire.encode_template(template)
            self._digests[id(template)] = (template, wire.digest(encoded))
        return self._digests[id(template)][1]

    def _job(self, name, record):
        missing = set(range(1, record.spec.replicas + 1)) - set(record.completed)
        found = [f"{name}.{slot} is not completed" for slot in sorted(missing)]
        return found + [f"{name}.{slot} still runs" for slot in self._holders(name)]

    def _controller(self):
        """The serving controller sees what there is."""
        cluster = self.world.cluster
        if cluster is None:
            return ["no controller serves"]
        found = [] if cluster.reconciler.settled else ["the controller has not settled"]
        for machine in self.world.machines:
            node = cluster.state.nodes.get(machine.name)
            if machine.lost:
                found += [f"{machine.name} is registered, and was taken out"] if node else []
                continue
            if node is None:
                found.append(f"{machine.name} is not registered")
                continue
            if node.state is not NodeState.READY:
                found.append(f"{machine.name} is {node.state.value} {node.reasons}")
            agent = self.world.agent_of(machine).value
            if agent is None:
                found.append(f"{machine.name} is not supervised")
                continue
            found += self._pictures(machine, agent, node)
        return found

    def _pictures(self, machine, agent, node):
        """The controller's picture of a node is its agent's, and that is the machine's."""
        found = []
        known, seen = agent.supervisor.instances, set(node.instances)
        if seen != set(known):
            found.append(
                f"{machine.name}: controller or agent alone has {sorted(seen ^ set(known))}"
            )
        if not set(machine.book) <= set(known):
            found.append(f"{machine.name}: {sorted(set(machine.book) - set(known))} not supervised")
        users = {one.name: one for one in self.world.users}
        holders = [users[one.service] for one in known.values()]
        taken = _total(one.resources for one in holders if not one.job)
        counted = self.world.cluster.fleet.snapshot.allocated(machine.name)
        if {name: amount for name, amount in counted.items() if amount} != taken:
            found.append(f"{machine.name}: {counted} allocated, {taken} taken")
        return found

    # --- nothing is left over -----------------------------------------------------------------

    def leaks(self):
        """What is still there though nobody needs it, in words."""
        world, cluster = self.world, self.world.cluster
        left = {
            "completions": len(cluster.sessions.completions),
            "locks": len(cluster.locks),
            "commits": len(cluster._commits),
            "leaving": len(cluster.state.leaving),
            "quarantined": len(cluster.state.quarantine),
            "requests of the controller": len(cluster.caller._pending),
            "unplaced": sum(len(one.unplaced) for one in cluster.state.services.values()),
            "untold": sum(len(one.dirty) for one in cluster.state.nodes.values()),
            "sessions": len(cluster.sessions._by_peer) - len(world.living),
            "wires": len(world.network.wires) - len(world.living),
        }
        counts = Counter()
        for process in map(world.agent_of, world.living):
            agent = process.value
            if agent is None:
                return [f"{process.name} does not supervise"]
            counts[process.tasks()] += 1
            left[f"reports of {process.name}"] = (
                len(agent.outbox._under_way)
                + len(agent.supervisor.gone)
                + len(agent.supervisor.unsent_gone)
                + len(agent.supervisor.dirty)
            )
            left[f"records of {process.name}"] = sum(
                number >= 1 << 40 and number not in agent.supervisor.instances
                for number in agent.journal._records
            )
        found = [f"{count} {what}" for what, count in left.items() if count]
        found += self._tasks_of_controllers()
        if len(counts) != 1:
            found.append(f"agents have different numbers of tasks at rest: {dict(counts)}")
        return found

    def _tasks_of_controllers(self):
        """Those that serve nobody in particular are as many as when nothing has happened yet."""
        world, found = self.world, []
        for number, process in enumerate(world.controllers):
            if not process.alive:
                continue
            role = "follows"
            if number == world.serving:
                role = "leads" if world.several else "serves alone"
            if process.tasks() != _TASKS[role]:
                found.append(f"{process.name}, which {role}, has {process.tasks()} tasks")
        return found


def _total(resources):
    """What all of them take, by name."""
    total = {}
    for one in resources:
        for name, amount in one.amounts().items():
            total[name] = total.get(name, 0) + amount
    return total


def _fits(amounts):
    return all(amount <= CAPACITY[name] for name, amount in amounts.items())
