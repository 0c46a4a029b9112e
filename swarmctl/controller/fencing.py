"""The controller's side of fencing: leases that nodes have, and slots that have to wait for them.

A *fenced* slot is given to a node only when nothing that had it before can still run.  That is
known of an instance whose node says that it has it no more; and of one on a node that is lost,
when the lease that the node was granted last has run out, and the time has passed that its guard
takes to kill and that clocks may differ by.  A node whose guard was not alive when it was last
heard says nothing by its silence: then an operator has to (``swarmctl node fenced``).

The book keeps, by slot, every fenced instance that was given to a node and is not known to have
ended.  What nobody knows the template of is taken for fenced: it was found by its labels, or the
hello had no room for it, and what its service is now says nothing about what it was made from.
The book is kept by change and costs nothing where nothing is fenced.  After a takeover it is
filled by what the nodes report; until all have, or the longest lease of the controller before has
run out, nothing fenced is placed (DESIGN 8.4).  Of which nodes silence says nothing is written down
(:mod:`swarmctl.controller.guardless`), so the next controller asks an operator about them, too.

A lease counts from the sending of a heartbeat on the node, and here from its arrival: so it ends
there first.  Times are those of the caller's clock; one that stands still for a while only makes
everybody wait longer.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from attrs import define, field

from swarmctl.proto import limits

if TYPE_CHECKING:
    from swarmctl.controller.instance import Instance, ServiceKey
    from swarmctl.controller.state import Service

_NEVER: Final = math.inf
# What a node is called here after it was taken out of the registry.
_REMOVED: Final = " (removed)"


@define
class Grant:
    """A node's lease as it was last renewed; ``guarded`` is what the node last said of its guard.

    ``silent`` says that the node is lost or no longer registered, ``released`` that an operator
    says that it is off.
    """

    granted_at: float
    guarded: bool = True
    silent: bool = False
    released: bool = False


def always() -> bool:
    """Whether one leads that nobody elects: the store tells (``in_doubt_s``)."""
    return True


def _surely() -> float:
    return 0.0


@define(eq=False)
class FenceBook:
    """Leases and fenced instances of one controller's term.

    Attributes:
        lease_s: how long a lease holds.
        may_grant: whether this controller still is the one that grants.
        templates: those that are fenced, and those of which nobody knows whether they are.
        unwritten: nodes of whose guard the store says what is not true any more.
        in_doubt_s: for how long nobody has confirmed that: it shortens the leases.
    """

    lease_s: float = limits.FENCING_LEASE_S
    may_grant: Callable[[], bool] = always
    in_doubt_s: Callable[[], float] = _surely
    templates: set[bytes] = field(factory=set)
    now: float = 0.0
    took_over_at: float | None = None
    unwritten: set[str] = field(factory=set)
    # Nodes that an earlier controller took out of the registry: they do not report.
    _removed: set[str] = field(factory=set)
    _grants: dict[str, Grant] = field(factory=dict)
    # By service and slot: who may still run, and on which node.
    _alive: dict["tuple[ServiceKey, int]", dict[int, str]] = field(factory=dict)
    # Services with a slot that waits, and when the first of them need not wait longer.
    _waiting: "dict[ServiceKey, float]" = field(factory=dict)
    # Whether what a slot waits for may have changed for all of them.
    _look_again: bool = False

    @property
    def wait_s(self) -> float:
        """From the granting of a lease until nothing that it fenced can run."""
        return self.lease_s * (1 + limits.CLOCK_DRIFT_MAX) + limits.FENCING_KILL_S

    # --- what is fenced ----------------------------------------------------------------------

    def learn(self, template: bytes, *, fenced: bool) -> None:
        """What a template says is known (now); until then it was taken for fenced."""
        if fenced:
            self.templates.add(template)
        else:
            self.templates.discard(template)

    def enter(self, instance: "Instance") -> None:
        """A node has it, or is told to."""
        where = (instance.key, instance.slot)
        self._alive.setdefault(where, {})[instance.incarnation] = instance.node

    def leave(self, instance: "Instance") -> bool:
        """Its node says that it has it no more; whether it was fenced, and that is news."""
        if not self._alive:
            return False
        where = (instance.key, instance.slot)
        found = self._alive.get(where)
        if found is None or found.get(instance.incarnation) != instance.node:
            return False
        del found[instance.incarnation]
        if not found:
            del self._alive[where]
        return True

    def outdated(self, instances: "Iterable[Instance]") -> bool:
        """Whether a newer incarnation of one of ``instances`` is on a node, too."""
        return any(
            max(self._alive.get((one.key, one.slot), ()), default=0) > one.incarnation
            for one in instances
            if one.template in self.templates
        )

    # --- nodes -------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """The controller has its term; the one before may have granted leases until now."""
        self.now = now
        if self.took_over_at is None:
            self.took_over_at = now

    def know_unguarded(self, node: str) -> None:
        """An earlier controller heard of no live guard there, and it has not reported yet."""
        self._grants[node] = Grant(self.took_over_at or 0.0, guarded=False, silent=True)

    def know_removed(self, node: str, *, guarded: bool) -> None:
        """An earlier controller took it out of the registry, where it may run on."""
        former = node + _REMOVED
        if former in self._removed:  # There were several of that name.
            guarded = guarded and self._grants[former].guarded
        self._removed.add(former)
        self._grants[former] = Grant(self.took_over_at or 0.0, guarded, silent=True)

    def heard(self, node: str, now: float, *, guarded: bool) -> None:
        """A node has begun a session: its lease may be as young as this."""
        self.now = now
        self._grants[node] = Grant(now, guarded)

    def note_guard(self, node: str, *, guarded: bool) -> None:
        """A node says that a guard lives there now, or that none does."""
        if node in self._grants:
            self._grants[node].guarded = guarded

    def grant(self, node: str, *, guarded: bool, now: float) -> float:
        """Answer a heartbeat: for how long from its sending the node's lease holds; 0 for none."""
        self.now = now
        grant = self._grants.setdefault(node, Grant(now))
        grant.guarded, grant.silent, grant.released = guarded, False, False
        lease_s = self.lease_s - self.in_doubt_s() if self.may_grant() else 0.0
        if lease_s <= 0:
            return 0.0
        grant.granted_at = now
        return lease_s

    def removed(self, node: str) -> None:
        """A node leaves the registry: it may run on, until its lease ends.

        Another one may come under its name, and says nothing about what this one runs.
        """
        self.silent(node)
        former = node + _REMOVED
        gone = self._grants.pop(node)
        if former in self._grants:  # One of that name before it may not be over yet.
            gone.guarded = gone.guarded and self._grants[former].guarded
        self._grants[former] = gone
        for found in self._alive.values():
            for incarnation, where in found.items():
                if where == node:
                    found[incarnation] = former

    def silent(self, node: str) -> None:
        """A node is lost: its lease runs out."""
        assert self.took_over_at is not None, "nodes are lost by a controller that has begun"
        self._grants.setdefault(node, Grant(self.took_over_at)).silent = True
        # What waited for its word waits for its lease now, or for an operator.
        self._look_again = True

    def is_off(self, node: str) -> bool:
        """Whether an operator has said that it is."""
        return node in self._grants and self._grants[node].released

    def awaits(self, node: str) -> bool:
        """Whether it is a silent node, of which an operator may say that it is off."""
        found = [self._grants.get(name) for name in (node, node + _REMOVED)]
        return any(grant is not None and grant.silent for grant in found)

    def release(self, node: str) -> bool:
        """An operator says that a silent node is off for sure; whether it is a silent one."""
        found = [self._grants.get(name) for name in (node, node + _REMOVED)]
        silent = [grant for grant in found if grant is not None and grant.silent]
        for grant in silent:
            grant.released = True
        for key in self._waiting:
            self._waiting[key] = self.now
        return bool(silent)

    def _over_at(self, node: str) -> float:
        """When nothing fenced can run on ``node`` any more; infinite while nobody knows."""
        grant = self._grants.get(node)
        if grant is None:
            return (self.took_over_at or 0.0) + self.wait_s
        if grant.released:
            return -_NEVER
        if not grant.silent or not grant.guarded:
            return _NEVER
        return grant.granted_at + self.wait_s

    # --- slots -------------------------------------------------------------------------------

    def admit(
        self,
        service: "Service",
        slots: Iterable[int],
        unreported: Mapping[str, float | None],
        *,
        new: bool = False,
    ) -> list[int]:
        """Those of ``slots`` that may be given to a node; the others are noted with the reason.

        Args:
            service: whose slots they are; its ``unplaced`` takes the reasons.
            slots: in order.
            unreported: registered nodes of which it is not known what they run, and from when on
                nothing fenced can; None for those that have not reported since the takeover.
            new: no node can have had any of it before the takeover.
        """
        key = service.key
        self._waiting.pop(key, None)
        self.templates.add(service.template)
        takeover, missing = self._takeover_wait(unreported, new=new)
        free: list[int] = []
        for slot in slots:
            until, why = takeover, missing
            for node in self._alive.get((key, slot), {}).values():
                over_at = self._over_at(node)
                if over_at > max(until, self.now):
                    until, why = over_at, self._reason(node, over_at)
            if until <= self.now:
                self._alive.pop((key, slot), None)
                free.append(slot)
            else:
                service.unplaced[slot] = f"fenced: {why}"
                self._waiting[key] = min(until, self._waiting.get(key, _NEVER))
        return free

    def _takeover_wait(
        self, unreported: Mapping[str, float | None], *, new: bool
    ) -> tuple[float, str]:
        takeover = (self.took_over_at or 0.0) + self.wait_s
        names = {
            name: takeover if known_at is None else known_at
            for name, known_at in {**unreported, **dict.fromkeys(sorted(self._removed))}.items()
            if not (name in self._grants and self._grants[name].released)
        }
        unproven = [
            name
            for name, known_at in names.items()
            if known_at == _NEVER or (name in self._grants and not self._grants[name].guarded)
        ]
        if unproven and not new:
            silent = [name for name in unproven if self._grants[name].silent]
            return _NEVER, _operator_has_to_say(silent) if silent else _has_to_tell(unproven)
        late = {n: at for n, at in names.items() if at > self.now and n not in unproven}
        if not late:
            return -_NEVER, ""
        until = max(late.values())
        seconds = math.ceil(until - self.now)
        where = ", ".join(sorted(late)[:3])
        return until, f"{where} may run it still; waits {seconds} s for its lease"

    def _reason(self, node: str, over_at: float) -> str:
        grant = self._grants.get(node)
        if over_at < _NEVER:
            seconds = math.ceil(over_at - self.now)
            return f"it may still run on {node}, whose lease ends in {seconds} s at the latest"
        if grant is not None and grant.silent:
            return _operator_has_to_say([node])
        return f"waits until it has ended on {node}"

    def waits(self, key: "ServiceKey") -> bool:
        """Whether a slot of the service waits for what time alone brings about."""
        return self._waiting.get(key, _NEVER) < _NEVER

    def tick(self, now: float) -> "list[ServiceKey]":
        """Services to look at again: a slot of theirs need not wait any longer, or not for that."""
        self.now = now
        if self._look_again:
            self._look_again = False
            return list(self._waiting)
        return [key for key, until in self._waiting.items() if until <= now]


def _has_to_tell(nodes: list[str]) -> str:
    """Of nodes that are here and do not know what they run."""
    return (
        f"it may still run on {', '.join(nodes)}, where the agent has lost its journal, a driver "
        "has not told yet what it has, and no guard lives; see there what keeps its daemon"
    )


def _operator_has_to_say(nodes: list[str]) -> str:
    """Of nodes whose silence proves nothing."""
    where, names = ", ".join(nodes), " ".join(name.removesuffix(_REMOVED) for name in nodes)
    return (
        f"it may still run on {where}, whose guard was not alive when it was last heard; "
        f"see that it is off, then: swarmctl node fenced {names}"
    )
