"""Equal parts of what nodes say about themselves are kept once.

The machines of a cluster are of few kinds: drivers, capacities and most labels of thousands of
nodes are the same, word for word.  What a hello says of them takes some 4 KiB once it is decoded,
as much as everything else of an idle node; here all but the first are replaced by a reference.
Nobody changes facts in place: news come as new facts.
"""

from typing import Final

from attrs import evolve

from swarmctl.proto.messages import DriverFacts, NodeFacts

# Parts that are remembered; past that all are forgotten and gathered anew. A cluster has dozens.
_PARTS_MAX: Final = 4096

_Items = tuple[tuple[str, str | int], ...]


class SharedFacts:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._drivers: dict[object, tuple[DriverFacts, ...]] = {}
        self._capacities: dict[object, dict[str, int]] = {}
        self._words: dict[str, str] = {}

    def share(self, facts: NodeFacts) -> NodeFacts:
        """The same facts, of parts that other nodes' have as well."""
        for table in (self._drivers, self._capacities, self._words):
            if len(table) >= _PARTS_MAX:
                table.clear()
        drivers = tuple([_driver_key(one) for one in facts.drivers])
        return evolve(
            facts,
            labels=self._of_shared_words(facts.labels),
            capacity=self._capacities.setdefault(tuple(facts.capacity.items()), facts.capacity),
            drivers=self._drivers.setdefault(drivers, facts.drivers),
            facts=self._of_shared_words(facts.facts),
        )

    def _of_shared_words(self, words: dict[str, str]) -> dict[str, str]:
        """A map of its own: names and addresses in it are of one node."""
        shared = self._words.setdefault
        return {shared(name, name): shared(value, value) for name, value in words.items()}


def _driver_key(one: DriverFacts) -> tuple[str, bool, str, str, _Items, bool]:
    facts = tuple(one.facts.items())
    return (one.name, one.available, one.version, one.reason, facts, one.listed)
