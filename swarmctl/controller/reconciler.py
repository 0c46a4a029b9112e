"""From what is wanted and what is seen to what each node is told: level-triggered, no I/O.

A *cycle* takes services marked dirty, compares their slots with the holders, collects what has to
be placed, plans it in one call of the scheduler, and marks the nodes whose assignment has changed.
Running a cycle twice changes nothing the second time.

A cycle looks at a bounded number of slots, so that it takes a fraction of a second however much
is wanted: services beyond that stay dirty, and one that is larger is gone on with where the
cycle before left it.

Slots that existed before this controller's term are placed anew only once every registered node
has reported or has been silent for the lost-timeout (DESIGN 8.4): :meth:`Reconciler.settle`.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Final

from swarmctl.controller.availability import is_to_begin
from swarmctl.controller.forgetful import is_known, known_from
from swarmctl.controller.instance import Instance, Placing, ServiceKey, scheduler_key
from swarmctl.controller.meters import Meters
from swarmctl.controller.nesting import look_at, trunk_of
from swarmctl.controller.placing import NETWORK_LABEL, Fleet, request_for
from swarmctl.controller.preempting import Preempting
from swarmctl.controller.records import SlotWish
from swarmctl.controller.state import ClusterState, Node, Service
from swarmctl.proto.errors import UserError
from swarmctl.proto.states import Desired, InstanceState, NodeState
from swarmctl.scheduler import Plan, Request, plan

# While a changed template is rolled out, this share of a service's slots may be away from
# running at a time, and always at least one, unless the service says how many.
_ROLL_SHARE: Final = 0.25
_DESIRED: Final = {SlotWish.RUNNING: Desired.RUNNING, SlotWish.STOPPED: Desired.STOPPED}


class Reconciler:
    """Works on one cluster state.

    Args:
        state: what it reads and changes.
        fleet: the scheduler's index over it.
        meters: counts the time that planning takes.
        now: the wall clock, epoch seconds (for people; no decision depends on it).
        seed: of the scheduler's tie-breaking.
    """

    def __init__(
        self,
        state: ClusterState,
        fleet: Fleet,
        meters: Meters,
        now: Callable[[], float],
        seed: int = 0,
    ) -> None:
        self._state = state
        self._fleet = fleet
        self._meters = meters
        self._now = now
        self._seed = seed
        # Services of which only the slots before this one were looked at.
        self._resume: dict[ServiceKey, int] = {}
        # Services of which something may be nowhere: those to look at when there is room again.
        self._nowhere: set[ServiceKey] = set()
        self.settled = False
        self.preempting = Preempting(state, fleet)
        # Instances given to nodes so far.
        self.assigned = 0

    def settle(self) -> None:
        """The takeover rule is satisfied: old slots without a holder may be placed."""
        self.settled = True
        self._state.capacity_changed = True  # Addresses that nobody has told of are free.
        self._state.dirty_services.update(
            key for key, service in self._state.services.items() if service.old
        )

    def cycle(self, slots_max: int = sys.maxsize) -> bool:
        """Reconcile what is dirty, up to about ``slots_max`` slots; whether some is left."""
        state = self._state
        if state.capacity_changed:
            state.capacity_changed = False
            self._look_again()
            self._retry_unplaced()
        if self.preempting.active:
            # First: what they were waiting for must not go to others.
            self._resume.update(dict.fromkeys(self.preempting.settle(), 1))
        state.ports.begin_cycle()
        requests: list[Request] = []
        wanting: dict[str, Service] = {}
        looked_into: list[Service] = []
        left = slots_max
        while left > 0 and (state.dirty_services or self._resume):
            key, start = self._next_service()
            service = state.services.get(key)
            if service is None or key in state.ending:
                continue
            looked_into.append(service)
            slots, looked_at = self._slots_to_place(service, start, left)
            # What was taken away just now has been seen: else its slot is asked for twice.
            state.dirty_services.discard(key)
            left -= looked_at
            if start + looked_at <= service.record.spec.replicas and looked_at:
                self._resume[key] = start + looked_at
            if start == 1:
                service.unplaced = {}
            slots = self._admitted(service, slots)
            if slots:
                requests.append(request_for(service, slots))
                wanting[scheduler_key(key)] = service
        if requests:
            self._place(requests, wanting)
        self._nowhere.update(service.key for service in looked_into if service.unplaced)
        return bool(state.dirty_services or self._resume)

    def _admitted(self, service: Service, slots: list[int]) -> list[int]:
        """Those of ``slots`` that nothing but a node is missing to; the others know why."""
        state, template = self._state, service.record.spec.template
        if slots and template.fenced:
            wait_s, now = state.fences.wait_s, state.fences.now
            silent = {
                one.name: known_from(one, wait_s)
                for one in state.nodes.values()
                if not is_known(one, now, wait_s)
            }
            new = not service.old and service.key not in state.tombstones
            slots = state.fences.admit(service, slots, silent, new=new)
        if slots and template.networks:
            slots = state.ports.admit(service, slots, settled=self.settled)
        return self.preempting.asking(service, slots)

    def _next_service(self) -> tuple[ServiceKey, int]:
        """A service to look at, and the slot to begin with: one that was begun goes first."""
        dirty = self._state.dirty_services
        if self._resume:
            key, start = self._resume.popitem()
            if key not in dirty:
                return key, start
        else:
            key = next(iter(dirty))
        dirty.discard(key)
        return key, 1

    def _retry_unplaced(self) -> None:
        """Look again at what found no node: costs as much as that is, not as all there is."""
        self._state.dirty_services |= self._nowhere
        self._nowhere.clear()

    # --- what a service wants ---------------------------------------------------------------

    def _slots_to_place(
        self, service: Service, start: int, slots_max: int
    ) -> tuple[list[int], int]:
        """The slots from ``start`` on that want a node, in order; and how many were looked at.

        Before the first slot is looked at the holders are brought in line.
        """
        record = service.record
        if start == 1:
            for slot, holder in list(service.holders.items()):
                self._align(service, slot, holder)
            if service.rolling:
                self._roll(service)
        if service.old and not self.settled:
            return [], 0
        after = min(record.spec.replicas + 1, start + slots_max)
        if not service.holders and record.untouched:
            return list(range(start, after)), after - start
        completed = record.completed
        wanted = [
            slot
            for slot in range(start, after)
            if slot not in completed
            and self._is_vacant(service.holders.get(slot))
            and record.wish(slot) is SlotWish.RUNNING
        ]
        return wanted, after - start

    def _align(self, service: Service, slot: int, holder: Instance) -> None:
        record = service.record
        wish = record.wish(slot)
        if slot > record.spec.replicas or wish is SlotWish.REMOVED:
            self._state.remove(holder)
            return
        if self._state.wish(holder, _DESIRED[wish], record.slot_generation(slot)):
            self._lose_what_cannot_begin(holder)

    def _lose_what_cannot_begin(self, holder: Instance) -> None:
        """What had ended when its node was lost was not lost with it; asked to run now, it is."""
        node = self._state.nodes[holder.node]
        lost = node.state is NodeState.LOST and holder.state is not InstanceState.LOST
        if lost and is_to_begin(holder):
            self._state.lose(node, [holder], self._now(), f"node {node.name} is lost")

    def _is_vacant(self, holder: Instance | None) -> bool:
        if holder is None:
            return True
        return holder.state is InstanceState.LOST and not self._state.braked

    def _roll(self, service: Service) -> None:
        """Take away as many holders of an older template as the roll-out may miss at a time."""
        outdated = [
            holder for holder in service.holders.values() if holder.template != service.template
        ]
        if not outdated:
            service.rolling = False
            return
        wanted = [
            slot
            for slot in range(1, service.record.spec.replicas + 1)
            if service.record.wish(slot) is SlotWish.RUNNING
        ]
        running = sum(
            slot in service.holders and service.holders[slot].state is InstanceState.RUNNING
            for slot in wanted
        )
        allowed = service.record.spec.max_unavailable or max(1, int(len(wanted) * _ROLL_SHARE))
        budget = allowed - (len(wanted) - running)
        # Those that do not run are replaced first: they serve nobody.
        outdated.sort(key=lambda one: (one.state is InstanceState.RUNNING, one.slot))
        for holder in outdated:
            if holder.state is InstanceState.RUNNING:
                if budget <= 0:
                    break
                budget -= 1
            self._state.remove(holder)

    # --- placing -----------------------------------------------------------------------------

    def _place(self, requests: list[Request], wanting: dict[str, Service]) -> None:
        with self._meters.stage("plan"):
            made: Plan = plan(self._fleet.snapshot, requests, seed=self._seed)
            self._fleet.snapshot.commit(made)
        now = self._now()
        placing = Placing(now)
        with self._meters.stage("assign"):
            for batch in made.placements.batches():
                self._assign(wanting[batch.service], batch.slots, batch.nodes, placing)
        passed_over = self._passed_over() if made.unplaced else ""
        for rejected in made.unplaced:
            service = wanting[rejected.service]
            text = str(rejected.rejection)
            if any(NETWORK_LABEL in reason.subject for reason in rejected.rejection.reasons):
                text += passed_over
            service.unplaced |= dict.fromkeys(rejected.slots, text)
            happened = f"{len(rejected.slots)} not placed: {text}"
            # It is tried again and again: what stays as it was is no news.
            if not service.history or service.history[-1][1] != happened:
                service.history.append((now, happened))
        if made.unplaced and self.settled:
            self.preempting.unplaced(made.unplaced, wanting, now)

    def _assign(
        self, service: Service, slots: Sequence[int], nodes: Sequence[str], placing: Placing
    ) -> None:
        """Give slots of a service to nodes: 3 us each, on the hot path of a launch."""
        state, record, holders = self._state, service.record, service.holders
        # One object for all of them: a million instances of their own would take 70 MB.
        key, template, driver = service.key, service.template, record.spec.driver_name
        overrides, usual = record.overrides, record.generation
        state.templates[template] = service.encoded_template
        made: list[Instance] = []
        burdened = state.pasts.has(key)
        names = state.take_incarnations(len(slots))
        for slot, node, incarnation in zip(slots, nodes, names, strict=True):
            one = Instance(key, slot, incarnation, node, template, driver)
            before = holders.get(slot)
            if before is not None:  # Lost: told to go when its node returns.
                state.remove(before)
                burdened = state.pasts.has(key)
            one.generation = record.slot_generation(slot) if overrides else usual
            if burdened and (past := state.pasts.get(key, slot, template)) is not None:
                one.carried = past.restarts, past.failures_now(one.generation, placing.at)
            one.counted = True
            one.since, one.placing = placing.at, placing
            made.append(one)
        if state.ports.active and record.spec.template.networks:
            made = self._attach(service, made)
        self.assigned += len(made)
        state.add_placed(service, made)
        if made:
            state.untold.add(placing)

    def _attach(self, service: Service, placed: list[Instance]) -> list[Instance]:
        """Those of ``placed`` that have got their ports; the others are nowhere, with the reason.

        Addresses were counted before, so it is something about a trunk, by which the node is passed
        over from now on, or two who want one address.
        """
        attached: list[Instance] = []
        for one in placed:
            try:
                parent = trunk_of(self._state, self._state.nodes[one.node])
                self._state.ports.attach(service, one, parent)
                attached.append(one)
            except UserError as error:
                service.unplaced[one.slot] = error.what
                self._fleet.snapshot.free(one.node, scheduler_key(one.key), service.amounts)
                self._pass_over(service, self._state.nodes[one.node])
        return attached

    def _pass_over(self, service: Service, node: Node) -> None:
        """What could not be plugged in on a node is tried on another, if it is for the node."""
        tenant, uses = service.key[0], service.record.spec.template.networks
        keys = {None, *node.obstacles, *((tenant, use.network) for use in uses)}
        if look_at(self._state, node, keys):
            self._fleet.node_changed(node)
            self._state.dirty_services.add(service.key)

    def _look_again(self) -> None:
        """Nodes that could take no port may be able to."""
        for node in self._state.nodes.values():
            if node.obstacles and look_at(self._state, node, node.obstacles):
                self._fleet.node_changed(node)

    def _passed_over(self) -> str:
        """Why nodes were passed over for their trunk, in few words."""
        obstacles = (node.obstacles.values() for node in self._state.nodes.values())
        found = sorted({why for one in obstacles for why in one})
        more = f" (and {len(found) - 1} more such)" if len(found) > 1 else ""
        return f"; {found[0]}{more}" if found else ""
