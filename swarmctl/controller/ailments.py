"""What a node does not know, or not say, of its own health: seen from here.

A node tells what it knows itself: a driver that does not answer, a disk that is full (its
heartbeats carry the reasons).  Seen only from here are

- *launches that fail there and not elsewhere*: several in a row, of what has been launched on
  another node meanwhile; an image that does not exist fails everywhere, and is nobody's illness;
- *heartbeats that jitter*: it lives, but falls silent for longer than a living node does, again
  and again, or is lost and returns. When many nodes do so together, what they share is slow (the
  network, or we), and no node is blamed: a launch that loads all of them makes none of them sick;
- *a clock that is off*, by what the clocks of most others say (``clocks.py``).

Each has its way back.  Gaps and clocks heal when they have been well for a while; a node where
launches failed is left alone for a minute, then tried again, and for twice as long each time that
it fails once more.

Pure: times come in as arguments.  A node that is well costs one comparison a message, and a
launch that succeeds one look into a table.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import structlog
from attrs import define, field

from swarmctl.controller.clocks import Clocks
from swarmctl.controller.instance import Instance
from swarmctl.controller.state import ClusterState, Node
from swarmctl.controller.storm import SUSPECT_S
from swarmctl.proto import limits
from swarmctl.proto.states import InstanceState

_log = structlog.get_logger(__name__)

# Launches that failed in a row before it is the node: one may be an accident, two a coincidence.
_FAILURES_MIN: Final = 3
# For so long a launch elsewhere says that it is not the image, and failures belong together.
_ELSEWHERE_S: Final = 600.0
# Templates and nodes that are remembered for that: the newest matter.
_TEMPLATES_MAX: Final = 1_000
# For so long a node where launches failed gets nothing, the first and the longest time.
_REST_MIN_S: Final = 60.0
_REST_MAX_S: Final = 960.0
# So many gaps in so long are no accident.
_GAPS_MIN: Final = 3
_GAPS_WINDOW_S: Final = 60.0
# More nodes than this share, and than so few, that are late within so long have a cause in common.
_LATE_SHARE_MAX: Final = 0.1
_LATE_MIN: Final = 2
_LATE_TOGETHER_S: Final = 10.0


@define
class _Signs:
    """What was seen of one node."""

    failures: dict[bytes, float] = field(factory=dict)
    failed: int = 0
    rests_until: float = 0.0
    rest_s: float = 0.0
    gaps: deque[float] = field(factory=lambda: deque(maxlen=_GAPS_MIN))

    def well(self, now: float) -> bool:
        """Whether there is nothing to remember."""
        over = now >= self.rests_until + self.rest_s
        return over and not (self.failed or self.gaps)


class Ailments:
    """The signs of all nodes; see the module's docstring."""

    def __init__(self, nodes: Callable[[], int]) -> None:
        """Of so many ``nodes``."""
        self._nodes = nodes
        self._signs: dict[str, _Signs] = {}
        self.clocks = Clocks()
        # Nodes that were late just now, and when; the oldest first.
        self._late: dict[str, float] = {}
        # Where a template was launched lately: two nodes, and when.
        self._launched: dict[bytes, dict[str, float]] = {}

    def reasons(self, node: str, now: float) -> tuple[str, ...]:
        """What is wrong with a node, as far as it is seen from here."""
        clock = self.clocks.reason(node)
        return (*self._signs_of(node, now), clock) if clock else self._signs_of(node, now)

    def _signs_of(self, node: str, now: float) -> tuple[str, ...]:
        signs = self._signs.get(node)
        if signs is None:
            return ()
        found: list[str] = []
        if now < signs.rests_until:
            left_s = signs.rests_until - now
            found.append(f"launches fail here and not elsewhere; tried again in {_about(left_s)}")
        while signs.gaps and now - signs.gaps[0] > _GAPS_WINDOW_S:
            signs.gaps.popleft()
        if len(signs.gaps) >= _GAPS_MIN:
            found.append(f"heartbeats come late: {_GAPS_MIN} times in {_GAPS_WINDOW_S:g} s")
        if not found and signs.well(now):
            del self._signs[node]
        return tuple(found)

    def hear(self, node: Node, now: float) -> None:
        """A node says something."""
        if now - node.heard_at > SUSPECT_S:
            self._came_late(node.name, now)
        node.heard_at = now

    def _came_late(self, node: str, now: float) -> None:
        late = self._late
        late.pop(node, None)
        late[node] = now
        while now - next(iter(late.values())) > _LATE_TOGETHER_S:
            del late[next(iter(late))]
        if len(late) <= max(_LATE_MIN, _LATE_SHARE_MAX * self._nodes()):
            self._of(node).gaps.append(now)

    def failed(self, state: ClusterState, instance: Instance, now: float) -> bool:
        """An instance did not come to run; whether its node is sick from now on.

        What did not come to run there is then sent elsewhere.
        """
        node = state.nodes[instance.node]
        if not self.launch_failed(node.name, instance.template, now):
            return False
        node.reasons += self.reasons(node.name, now)
        moved = send_elsewhere(state, node)
        _log.warning("launches fail there and not elsewhere", node=node.name, moved=moved)
        return True

    def launched(self, node: str, templates: Iterable[bytes], now: float) -> None:
        """Something was launched there, of each of ``templates``."""
        known = self._launched
        for template in templates:
            nodes = known.get(template)
            if nodes is None:
                if len(known) >= _TEMPLATES_MAX:
                    del known[next(iter(known))]
                nodes = known[template] = {}
            elif len(nodes) >= 2 and node not in nodes:
                del nodes[next(iter(nodes))]
            nodes[node] = now
        if self._signs:
            signs = self._signs.get(node)
            if signs is not None:
                signs.failures.clear()
                signs.failed = 0

    def launch_failed(self, node: str, template: bytes, now: float) -> bool:
        """A launch failed there; whether the node is to be left alone from now on."""
        signs = self._of(node)
        signs.failures[template] = now
        signs.failed += 1
        if signs.failed < _FAILURES_MIN or now < signs.rests_until:
            return False
        if not any(
            self._runs_elsewhere(template, node, now)
            for template, at in signs.failures.items()
            if now - at < _ELSEWHERE_S
        ):
            return False
        again = now - signs.rests_until < _REST_MAX_S and signs.rest_s
        signs.rest_s = min(_REST_MAX_S, 2 * signs.rest_s) if again else _REST_MIN_S
        signs.rests_until = now + signs.rest_s
        signs.failures.clear()
        signs.failed = 0
        return True

    def forget(self, node: str) -> None:
        """It was taken out of the registry."""
        self._signs.pop(node, None)
        self.clocks.forget(node)
        self._late.pop(node, None)

    def _of(self, node: str) -> _Signs:
        return self._signs.setdefault(node, _Signs())

    def _runs_elsewhere(self, template: bytes, node: str, now: float) -> bool:
        nodes = self._launched.get(template, {})
        return any(other != node and now - at < _ELSEWHERE_S for other, at in nodes.items())


def never_ran(instance: Instance) -> bool:
    """Whether its launch failed: it ended without an exit code."""
    return instance.state is InstanceState.FAILED and instance.exit_code is None


def send_elsewhere(state: ClusterState, node: Node) -> int:
    """What does not come to run on a node is placed on another one; how many were."""
    moved = 0
    for instance in list(node.instances.values()):
        service = state.services.get(instance.key)
        holds = service is not None and service.holders.get(instance.slot) is instance
        if holds and never_ran(instance) and not instance.removing:
            instance.departure = f"launches fail on {node.name} and not elsewhere"
            state.remove(instance)
            moved += 1
    return moved


def _about(seconds: float) -> str:
    """A time that does not change with each heartbeat."""
    if seconds <= limits.NODE_LOST_S:
        return "a moment"
    return "a minute" if seconds <= 60 else f"{seconds / 60:.0f} minutes"
