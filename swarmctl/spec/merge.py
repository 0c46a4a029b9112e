"""Several stack files as one: later files change and add to earlier ones.

- Maps are merged key by key; of two values of different kinds, the later stands.
- Lists are joined; an item that is already there is not repeated.
- ``command``, ``entrypoint`` and ``test`` are one value written as a list: the later replaces.
- ``environment``, ``labels`` and the like may be a list of ``A=1`` or a map; either way they are
  merged by name.
- ``volumes`` of a service are merged by their target: the later mount replaces.
- A later null changes nothing.
"""

from typing import Final

from swarmctl.spec.yamltree import ListNode, MapNode, Mark, Node, ScalarNode

_REPLACED: Final = frozenset({"command", "entrypoint", "test"})
_BY_NAME: Final = frozenset({"environment", "labels", "annotations", "sysctls", "extra_hosts"})
_BY_TARGET: Final = frozenset({"volumes", "devices"})


def merge(older: Node, newer: Node, key: str = "") -> Node:
    """``older`` with ``newer`` laid over it; ``key`` is the field that both are the value of."""
    if isinstance(newer, ScalarNode) and newer.is_null:
        return older
    if key in _BY_NAME:
        older, newer = _as_map(older), _as_map(newer)
    if isinstance(older, MapNode) and isinstance(newer, MapNode):
        return _merge_maps(older, newer)
    if isinstance(older, ListNode) and isinstance(newer, ListNode) and key not in _REPLACED:
        return _merge_lists(older, newer, by_target=key in _BY_TARGET)
    return newer


def _merge_maps(older: MapNode, newer: MapNode) -> MapNode:
    entries = dict(older.entries)
    for key, (mark, value) in newer.entries.items():
        entries[key] = (mark, merge(entries[key][1], value, key) if key in entries else value)
    return MapNode(entries, newer.mark, older.size + newer.size)


def _merge_lists(older: ListNode, newer: ListNode, *, by_target: bool) -> ListNode:
    identify = _target if by_target else _content
    replaced = {identify(item) for item in newer.items}
    kept = [item for item in older.items if identify(item) not in replaced]
    return ListNode((*kept, *newer.items), newer.mark, older.size + newer.size)


def _as_map(node: Node) -> Node:
    """``[A=1, B]`` as ``{A: 1, B: null}``; anything else as it is."""
    if not isinstance(node, ListNode):
        return node
    entries: dict[str, tuple[Mark, Node]] = {}
    for item in node.items:
        if not isinstance(item, ScalarNode):
            return node
        name, equals, value = item.text.partition("=")
        entries[name] = (item.mark, ScalarNode(value, not equals, item.mark))
    return MapNode(entries, node.mark, node.size)


def _target(item: Node) -> str:
    """The path in the container that an item of ``volumes:`` is mounted at."""
    if isinstance(item, MapNode):
        entry = item.entries.get("target")
        return _content(entry[1]) if entry else ""
    if isinstance(item, ScalarNode):
        parts = item.text.split(":")
        return parts[1] if len(parts) > 1 else parts[0]
    return _content(item)


def _content(node: Node) -> str:
    """A text that is the same for equal nodes."""
    if isinstance(node, ScalarNode):
        return node.text
    if isinstance(node, ListNode):
        return repr([_content(item) for item in node.items])
    return repr(sorted((key, _content(value)) for key, (_, value) in node.entries.items()))
