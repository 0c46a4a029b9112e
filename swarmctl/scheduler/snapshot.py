"""The scheduler's picture of the cluster, kept up to date by change.

It is derived: nodes and allocations can be told to a new ``Snapshot`` in any order, at any time,
and give the same answers.
Changes of allocation go into the columns at once.  Nodes that come and go are collected, and
the columns are laid out again when the next question is asked: a thousand joins cost one layout.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np

from swarmctl.proto.errors import InternalError
from swarmctl.scheduler.explanation import Explanation, explain_view
from swarmctl.scheduler.facts import Facts
from swarmctl.scheduler.model import Node, Placement, Request
from swarmctl.scheduler.planner import Plan, Ways, plan_view, rows_list
from swarmctl.scheduler.usage import Follower, Usage, View

_NONE: Final[Mapping[str, int]] = MappingProxyType({})
_WAYS: Final = Ways()


class Snapshot:
    """Nodes and what is allocated on them; see the module's docstring.

    Attributes:
        version: grows with every change.
    """

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self.version = 0
        self._nodes: dict[str, Node] = {}
        self._copies: dict[str, dict[str, int]] = {}
        self._facts = Facts(())
        self._usage = Usage.empty(self._facts)
        self._stale = False
        self._index: Follower | None = None
        # Allocations on nodes, or of resources, that the columns do not have yet.
        self._pending: list[tuple[str, tuple[tuple[str, int], ...], int]] = []
        for node in nodes:
            self.add_node(node)

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes by name."""
        return MappingProxyType(self._nodes)

    def add_node(self, node: Node) -> None:
        """A node joins.

        Raises:
            InternalError: there is a node of that name.
        """
        if node.name in self._nodes:
            raise InternalError("node is there already", node.name)
        self._nodes[node.name] = node
        self._stale = True
        self.version += 1

    def update_node(self, node: Node) -> None:
        """A node's labels, capacity, drivers or health have changed; what is on it stays.

        Raises:
            InternalError: there is no node of that name.
        """
        old = self._nodes.get(node.name)
        if old is None:
            raise InternalError("no such node", node.name)
        self._nodes[node.name] = node
        self.version += 1
        if self._stale or old == node:
            return
        self._facts = self._facts.with_node(node)
        if node.capacity != old.capacity:
            self._usage = self._usage.refreshed(self._facts)

    def remove_node(self, name: str) -> None:
        """A node is gone, and all that was allocated on it.

        Raises:
            InternalError: there is no node of that name.
        """
        if self._nodes.pop(name, None) is None:
            raise InternalError("no such node", name)
        for service in [key for key, nodes in self._copies.items() if name in nodes]:
            self._add_copies(service, name, -self._copies[service][name])
        self._pending = [entry for entry in self._pending if entry[0] != name]
        # A node of that name that joins again starts empty.
        self._facts = self._facts.forgetting(name)
        self._stale = True
        self.version += 1

    def allocate(
        self, node: str, service: str, resources: Mapping[str, int], copies: int = 1
    ) -> None:
        """Count copies of a service on a node, whether they fit or not: they are there.

        Raises:
            InternalError: there is no node of that name.
        """
        if node not in self._nodes:
            raise InternalError("no such node", node)
        self._add_copies(service, node, copies)
        self._change(node, resources, copies)

    def free(self, node: str, service: str, resources: Mapping[str, int], copies: int = 1) -> None:
        """Undo ``allocate`` with the same arguments.

        Raises:
            InternalError: the node does not have that many copies of the service.
        """
        if self._copies.get(service, _NONE).get(node, 0) < copies:
            raise InternalError(f"{service} has no {copies} copies there to free", node)
        self._add_copies(service, node, -copies)
        self._change(node, resources, -copies)

    def _change(self, node: str, resources: Mapping[str, int], copies: int) -> None:
        self.version += 1
        row = self._facts.row_of.get(node)
        if row is None or not resources.keys() <= self._usage.used.keys():
            self._pending.append((node, tuple(resources.items()), copies))
            self._stale = True
        else:
            self._usage.add(self._facts, row, resources.items(), copies)
            if self._index is not None:
                self._index.note_changed((row,))

    def _add_copies(self, service: str, node: str, copies: int) -> None:
        by_node = self._copies.setdefault(service, {})
        count = by_node.get(node, 0) + copies
        if count:
            by_node[node] = count
        else:
            by_node.pop(node, None)
            if not by_node:
                del self._copies[service]

    def copies(self, service: str) -> Mapping[str, int]:
        """How many copies of a service each node has; nodes without one are left out."""
        return MappingProxyType(self._copies.get(service, {}))

    def allocated(self, node: str) -> dict[str, int]:
        """Units allocated on a node, by resource; what is zero is left out.

        Raises:
            InternalError: there is no node of that name.
        """
        if node not in self._nodes:
            raise InternalError("no such node", node)
        self._settle()
        row = self._facts.row_of[node]
        units = {name: int(column[row]) for name, column in self._usage.used.items()}
        return {name: amount for name, amount in units.items() if amount}

    def _settle(self) -> None:
        """Lay out the columns again when nodes have come or gone."""
        if not self._stale:
            return
        extra = {name for _, needs, _ in self._pending for name, _ in needs}
        facts = Facts(self._nodes.values(), extra | self._usage.used.keys())
        self._usage = self._usage.moved(self._facts, facts)
        self._facts = facts
        for node, needs, copies in self._pending:
            self._usage.add(facts, facts.row_of[node], needs, copies)
        self._pending = []
        self._stale = False

    def _view(self, usage: Usage) -> View:
        return View(self._facts, usage, lambda service: self._copies.get(service, _NONE))

    def fork(self) -> View:
        """A view of its own to try things on."""
        self._settle()
        return self._view(self._usage.fork())

    def plan(self, requests: Sequence[Request], seed: int = 0, ways: Ways = _WAYS) -> Plan:
        """See ``plan``."""
        self._settle()
        view = self._view(self._usage.fork())
        # The plan takes the index along and changes it with its columns: a commit brings it back.
        view.index, self._index = self._index, None
        return plan_view(view, requests, seed, self.version, ways)

    def explain(self, request: Request, seed: int = 0) -> Explanation:
        """See ``explain``."""
        self._settle()
        return explain_view(self._view(self._usage), request, seed)

    def commit(self, plan: Plan) -> tuple[Placement, ...]:
        """Allocate what a plan places.

        On the snapshot that it was planned on, all of it.  When the snapshot has changed since,
        what still fits: copies are refused whose node is gone, no longer schedulable or too full.

        Returns:
            The placements refused.
        """
        if plan.base_version == self.version:
            # Rejections that the plan still has to word refer to its columns: they stay its own.
            usage = plan.after.usage
            self._usage = usage.fork() if plan.unplaced else usage
            self._index, plan.after.index = plan.after.index, None
            self._commit_copies(plan)
            self.version += 1
            return ()
        refused: list[Placement] = []
        for request, batch in zip(plan.placements.requests, plan.placements.batches(), strict=True):
            for slot, name in zip(batch.slots, batch.nodes, strict=True):
                if self._takes(name, request):
                    self.allocate(name, request.service, request.resources)
                else:
                    refused.append(Placement(request.service, slot, name))
        return tuple(refused)

    def _commit_copies(self, plan: Plan) -> None:
        names = plan.placements.facts.names
        for request, rows in zip(plan.placements.requests, plan.placements.rows, strict=True):
            service = request.service
            if isinstance(rows, np.ndarray):
                counts = np.bincount(rows)
                distinct = np.flatnonzero(counts)
                on = [names[row] for row in distinct.tolist()]
                by_node = dict(zip(on, counts[distinct].tolist(), strict=True))
                if service not in self._copies:
                    self._copies[service] = by_node
                    continue
                for name, count in by_node.items():
                    self._add_copies(service, name, count)
            else:
                for row in rows_list(rows):
                    self._add_copies(service, names[row], 1)

    def _takes(self, name: str, request: Request) -> bool:
        """Whether a node is there, schedulable, and has what one copy needs."""
        node = self._nodes.get(name)
        if node is None or not node.schedulable:
            return False
        self._settle()
        row = self._facts.row_of[name]
        return all(
            resource in node.capacity
            and self._usage.used[resource][row] + amount <= node.capacity[resource]
            for resource, amount in request.needs
        )


def plan(snapshot: Snapshot, requests: Sequence[Request], seed: int = 0) -> Plan:
    """Decide where copies go; the snapshot stays as it is.

    Args:
        snapshot: nodes and what is allocated on them.
        requests: what is wanted.
        seed: chooses among nodes that are equally good; the same seed gives the same plan.
    """
    return snapshot.plan(requests, seed)


def explain(snapshot: Snapshot, request: Request, seed: int = 0) -> Explanation:
    """Say where one more copy of a request could go now, and what keeps other nodes from it."""
    return snapshot.explain(request, seed)
