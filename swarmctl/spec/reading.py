"""Reading a tree as fields: a node with the path that leads to it.

A :class:`Field` knows its file, line and path, so that whatever reads it can say where it went
wrong without being told. Readers ask for what they expect (``text``, ``integer``, ``fields``) and
get it, or InvalidSpec is raised.

Scalars are read by what the field wants, not by what YAML makes of them: a text field takes
``22:22``, ``no`` and ``1.10`` as written.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeVar

from attrs import frozen

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.names import did_you_mean
from swarmctl.spec.wording import one_line
from swarmctl.spec.yamltree import ListNode, MapNode, Mark, Node, ScalarNode

_T = TypeVar("_T")

# YAML 1.2's booleans, and the older words that people still write where only a boolean can be.
_BOOLEANS: Final = {
    "true": True,
    "false": False,
    "yes": True,
    "no": False,
    "on": True,
    "off": False,
}
_EMPTY_SCALARS: Final = frozenset({"", "false", "0"})


@frozen
class Warning_:  # noqa: N801  # Warning alone is Python's own
    """Something in a stack file that has no effect, or not the one that was probably meant."""

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        located = f"{self.where}: {self.what}"
        return f"{located} ({self.hint})" if self.hint else located


class Warnings:
    """Collects warnings, each once, in the order in which they came."""

    def __init__(self) -> None:
        self._seen: dict[Warning_, None] = {}

    def add(self, where: str, what: str, hint: str = "") -> None:
        """Note a warning."""
        self._seen[Warning_(where, what, hint)] = None

    def collected(self) -> tuple[Warning_, ...]:
        """All warnings so far."""
        return tuple(self._seen)


@frozen(eq=False)
class Field:
    """A node, and where it is: ``mark`` is the line that its reader should look at."""

    node: Node
    path: str
    mark: Mark
    warnings: Warnings

    # --- where it is, and what is wrong with it ---

    @property
    def where(self) -> str:
        """``compose.yaml:7: services.web.image``."""
        return one_line(f"{self.mark}: {self.path}") if self.path else str(self.mark)

    def fail(self, what: str, hint: str = "") -> InvalidSpec:
        """The error to raise about this field."""
        return InvalidSpec(one_line(what), where=self.where, hint=one_line(hint))

    def warn(self, what: str, hint: str = "") -> None:
        """Note a warning about this field."""
        self.warnings.add(self.where, one_line(what), one_line(hint))

    def mismatch(self, wanted: str, hint: str = "") -> InvalidSpec:
        """The error to raise when this is not what was ``wanted``."""
        return self.fail(f"must be {wanted}, not {self.describe()}", hint)

    def describe(self) -> str:
        """What the node is, in words."""
        if isinstance(self.node, MapNode):
            return "a map"
        if isinstance(self.node, ListNode):
            return "a list"
        if self.node.is_null:
            return "nothing"
        return f'"{self.node.text[:40]}"'

    # --- what it is ---

    @property
    def is_null(self) -> bool:
        """Whether nothing is said."""
        return isinstance(self.node, ScalarNode) and self.node.is_null

    @property
    def is_scalar(self) -> bool:
        """Whether it is one value that is not null."""
        return isinstance(self.node, ScalarNode) and not self.node.is_null

    @property
    def is_list(self) -> bool:
        """Whether it is a sequence."""
        return isinstance(self.node, ListNode)

    @property
    def is_map(self) -> bool:
        """Whether it is a mapping."""
        return isinstance(self.node, MapNode)

    @property
    def asks_for_nothing(self) -> bool:
        """Whether leaving it out would say the same: null, empty, ``false`` or 0."""
        if isinstance(self.node, MapNode):
            return not self.node.entries
        if isinstance(self.node, ListNode):
            return not self.node.items
        return self.node.is_null or self.node.text.lower() in _EMPTY_SCALARS

    # --- scalars ---

    def text(self) -> str:
        """The text as written."""
        if not isinstance(self.node, ScalarNode) or self.node.is_null:
            raise self.mismatch("text")
        return self.node.text

    def parse(self, parser: Callable[[str], _T]) -> _T:
        """What ``parser`` makes of the text; its errors get this field's place."""
        text = self.text()
        try:
            return parser(text)
        except InvalidSpec as error:
            raise self.fail(error.what, error.hint) from error

    def parse_warning(self, parser: Callable[[str, Callable[[str], None]], _T]) -> _T:
        """Like :meth:`parse`, for a parser that may also warn."""
        return self.parse(lambda text: parser(text, self.warn))

    def integer(self, least: int, most: int) -> int:
        """A whole number between two bounds."""
        if not self.is_scalar or re.fullmatch(r"[+-]?\d{1,18}", self.text()) is None:
            raise self.mismatch("a whole number")
        value = int(self.text())
        if not least <= value <= most:
            raise self.fail(f"{value} is not between {least} and {most}")
        return value

    def boolean(self) -> bool:
        """``true`` or ``false``."""
        value = _BOOLEANS.get(self.text().lower()) if self.is_scalar else None
        if value is None:
            raise self.mismatch("true or false")
        return value

    def choice(self, allowed: Collection[str]) -> str:
        """One of some words."""
        text = self.text()
        if text not in allowed:
            listed = ", ".join(allowed)
            raise self.fail(f'"{text}" is not one of {listed}', did_you_mean(text, allowed))
        return text

    # --- lists and maps ---

    def elements(self) -> list["Field"]:
        """The fields of a list; nothing is an empty list."""
        if self.is_null:
            return []
        if not isinstance(self.node, ListNode):
            raise self.mismatch("a list", 'begin each item with "- "')
        return [
            Field(item, f"{self.path}[{index}]", item.mark, self.warnings)
            for index, item in enumerate(self.node.items)
        ]

    def texts(self) -> tuple[str, ...]:
        """The texts of a list of texts."""
        return tuple(item.text() for item in self.elements())

    def texts_or_one(self) -> tuple[str, ...]:
        """Like :meth:`texts`; one text is a list of one."""
        return (self.text(),) if self.is_scalar else self.texts()

    def entries(self) -> dict[str, "Field"]:
        """The fields of a map with any keys; nothing is an empty map."""
        if self.is_null:
            return {}
        if not isinstance(self.node, MapNode):
            raise self.mismatch("a map", 'write "key: value" on lines of their own')
        prefix = f"{self.path}." if self.path else ""
        return {
            key: Field(value, f"{prefix}{key}", mark, self.warnings)
            for key, (mark, value) in self.node.entries.items()
        }

    def fields(
        self, known: Collection[str], unsupported: Mapping[str, str] | None = None
    ) -> dict[str, "Field"]:
        """The fields of a map whose keys are known; those that say nothing are left out.

        Args:
            known: keys that are returned.
            unsupported: keys that are warned about with the reason given here.
        """
        reasons = unsupported or {}
        found: dict[str, Field] = {}
        for key, value in self.entries().items():
            if key in known:
                if not value.is_null:
                    found[key] = value
            elif key in reasons:
                if not value.asks_for_nothing:
                    value.warn(reasons[key])
            elif not key.startswith("x-"):
                raise value.fail(
                    f'"{key}" is not known here',
                    did_you_mean(key, {*known, *reasons}, "known are: " + ", ".join(known)),
                )
        return found
