"""YAML as a tree that remembers lines, within bounds.

Built from the parser's events rather than from its values, for three reasons: every node keeps
its line, a bad file cannot run away with the machine, and scalars keep their text.
The last one matters: YAML 1.1 turns ``22:22`` into 1342 and ``no`` into false, which is never
what a port or a restart policy meant; here whoever reads a field decides what its text means.

Aliases share the node that they name, and each node knows how large it would be written out, so
a few lines of aliases that multiply into billions of nodes are refused before anything walks
them.
"""

from collections.abc import Iterator
from typing import Final

import yaml
from attrs import evolve, frozen

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.wording import one_line

# A thousand services written out are some 300 KiB.
FILE_MAX_CHARS: Final = 1024 * 1024
# Nodes with all aliases written out: the same thousand services are some 50,000.
NODES_MAX: Final = 200_000
# Nesting: the deepest field of a stack file is 9 deep. Bounds our own recursion.
DEPTH_MAX: Final = 40

# The same parser in C, where PyYAML was built with it, is ten times faster.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE: Final = "tag:yaml.org,2002:"
_STRUCTURE_TAGS: Final = frozenset({None, "!", f"{_CORE}map", f"{_CORE}seq"})
_SCALAR_TAGS: Final = frozenset({None, *(f"{_CORE}{kind}" for kind in ("int", "float", "bool"))})
_TEXT_TAGS: Final = frozenset({"!", f"{_CORE}str"})
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})


@frozen
class Mark:
    """A line, counted from 1, of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@frozen(eq=False)
class ScalarNode:
    """A scalar's text; ``plain`` when it was not quoted, so may stand for null or a number."""

    text: str
    plain: bool
    mark: Mark
    size: int = 1

    @property
    def is_null(self) -> bool:
        """Whether it says nothing."""
        return self.plain and self.text in _NULLS


@frozen(eq=False)
class ListNode:
    """A sequence."""

    items: "tuple[Node, ...]"
    mark: Mark
    size: int


@frozen(eq=False)
class MapNode:
    """A mapping: key to (where the key is, value)."""

    entries: "dict[str, tuple[Mark, Node]]"
    mark: Mark
    size: int


Node = ScalarNode | ListNode | MapNode


def parse_yaml(file: str, text: str) -> Node:
    """The tree of the one document in ``text``; ``file`` is its name for messages.

    Raises:
        InvalidSpec: it is not YAML, is not one document, or is past a bound.
    """
    if len(text) > FILE_MAX_CHARS:
        raise InvalidSpec(
            f"the file has {len(text)} characters, {FILE_MAX_CHARS} are allowed",
            where=file,
            hint="is it a stack file? A large stack can be several files",
        )
    try:
        return _Builder(file, text).document()
    except yaml.YAMLError as error:
        raise _explain(file, text, error) from error
    except UnicodeEncodeError as error:
        # Half of a surrogate pair, from bytes that were not UTF-8; the parser in C says it so.
        raise InvalidSpec("the file is not UTF-8 text", where=file) from error


class _Builder:
    """Turns the parser's events into nodes."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, Node | None] = {}
        self._merged = 0  # entries that merge keys copied so far

    def document(self) -> Node:
        next(self._events)  # the stream's start
        first = next(self._events)
        if isinstance(first, yaml.StreamEndEvent):
            raise InvalidSpec(
                "the file is empty", where=self._file, hint='a stack file has "services:"'
            )
        root = self._node(next(self._events), depth=0)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._fail(
                after,
                "a second document begins here",
                "a stack is one document; give a second file with another -f",
            )
        return root

    def _mark(self, event: yaml.Event) -> Mark:
        assert event.start_mark is not None, "the parser marks all that it reads"
        return Mark(self._file, event.start_mark.line + 1)

    def _fail(self, event: yaml.Event, what: str, hint: str) -> InvalidSpec:
        return InvalidSpec(one_line(what), where=str(self._mark(event)), hint=hint)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise self._fail(event, f"nested more than {DEPTH_MAX} deep", "")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        assert isinstance(event, yaml.NodeEvent)
        if event.anchor is not None:
            self._anchors[event.anchor] = None  # under construction: an alias now is a cycle
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, event.tag, _STRUCTURE_TAGS)
            node = self._list(event, depth)
        else:
            assert isinstance(event, yaml.MappingStartEvent)
            self._check_tag(event, event.tag, _STRUCTURE_TAGS)
            node = self._map(event, depth)
        self._check_size(event, node.size)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _check_size(self, event: yaml.Event, size: int) -> None:
        if size > NODES_MAX:
            raise self._fail(
                event,
                f"with its aliases written out this has more than {NODES_MAX} values",
                "use fewer aliases of aliases",
            )

    def _alias(self, event: yaml.AliasEvent) -> Node:
        if event.anchor not in self._anchors:
            raise self._fail(
                event, f'nothing is anchored as "&{event.anchor}"', "anchor it above its first use"
            )
        node = self._anchors[event.anchor]
        if node is None:
            raise self._fail(event, f'"*{event.anchor}" is inside itself', "")
        return node

    def _check_tag(
        self, event: yaml.Event, tag: str | None, allowed: frozenset[str | None]
    ) -> None:
        if tag not in allowed:
            shown = (tag or "").replace(_CORE, "!!")
            raise self._fail(event, f'the tag "{shown}" is not supported here', "leave it out")

    def _scalar(self, event: yaml.ScalarEvent) -> ScalarNode:
        self._check_tag(event, event.tag, _SCALAR_TAGS | _TEXT_TAGS | {f"{_CORE}null"})
        plain = event.tag not in _TEXT_TAGS and event.style in (None, "")
        return ScalarNode(event.value, plain, self._mark(event))

    def _list(self, start: yaml.Event, depth: int) -> ListNode:
        items: list[Node] = []
        size = 1
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
            size += items[-1].size
            self._check_size(start, size)
        return ListNode(tuple(items), self._mark(start), size)

    def _map(self, start: yaml.Event, depth: int) -> MapNode:
        entries: dict[str, tuple[Mark, Node]] = {}
        merged: list[MapNode] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, ScalarNode):
                raise self._fail(event, "a key must be text, not a list or a map", "")
            value = self._node(next(self._events), depth + 1)
            if key.text == "<<" and key.plain:
                merged.extend(self._merge_sources(event, value))
            elif key.text in entries:
                raise self._fail(
                    event,
                    f'"{key.text}" is given twice',
                    f"it is already on line {entries[key.text][0].line}; remove one",
                )
            else:
                entries[key.text] = (key.mark, value)
        for source in merged:
            self._merged += len(source.entries)
            self._check_size(start, self._merged)
            for name, entry in source.entries.items():
                entries.setdefault(name, entry)
        size = 1 + sum(1 + value.size for _, value in entries.values())
        return MapNode(entries, self._mark(start), size)

    def _merge_sources(self, event: yaml.Event, value: Node) -> list[MapNode]:
        sources = value.items if isinstance(value, ListNode) else (value,)
        maps = [source for source in sources if isinstance(source, MapNode)]
        if len(maps) != len(sources):
            raise self._fail(event, '"<<" takes a map or a list of maps', 'such as "<<: *defaults"')
        return maps


def with_mark(node: Node, mark: Mark) -> Node:
    """The same node, said to be at ``mark``."""
    return evolve(node, mark=mark)


def _explain(file: str, text: str, error: yaml.YAMLError) -> InvalidSpec:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        # A character that YAML does not allow (a NUL, half of a surrogate pair).
        return InvalidSpec(one_line(f"not readable as YAML: {error}"), where=file)
    lines = text.split("\n")
    for number in (mark.line, mark.line - 1):
        line = lines[number] if 0 <= number < len(lines) else ""
        if "\t" in line[: len(line) - len(line.lstrip())]:
            return InvalidSpec(
                "a tab is used for indentation",
                where=str(Mark(file, number + 1)),
                hint="YAML indents with spaces; replace the tab by spaces",
            )
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    shown = one_line(lines[mark.line].strip()[:60]) if mark.line < len(lines) else ""
    return InvalidSpec(
        f"not valid YAML: {problem}",
        where=str(Mark(file, mark.line + 1)),
        hint=f'look at "{shown}" and the line above it' if shown else "is a quote or bracket open?",
    )
