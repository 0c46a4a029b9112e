"""Placement constraints: the text that users write, parsed once and compared often.

A constraint names one attribute of a node and the values that are right or wrong for it:
``node.labels.zone == eu-1``, ``node.name != n7``, ``node.labels.rack in (r1, r2)``.
A node without the label has no value: it fails ``==`` and ``in``, and passes ``!=`` and
``not in``.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import attrs

from swarmctl.proto.errors import InvalidSpec

Operator = Literal["==", "!=", "in", "not in"]
_OPERATORS: Final[Mapping[str, Operator]] = {
    "==": "==",
    "!=": "!=",
    "in": "in",
    "not in": "not in",
}

NAME_ATTRIBUTE: Final = "node.name"
LABEL_PREFIX: Final = "node.labels."
# Other names that people bring along for the same thing.
_ALIASES: Final[Mapping[str, str]] = {"node.hostname": NAME_ATTRIBUTE}

_EXPRESSION: Final = re.compile(
    r"""\s*(?P<attribute>[^\s=!()]+)\s*
        (?P<operator>==|!=|(?<=\s)not\s+in(?=[\s(])|(?<=\s)in(?=[\s(]))
        \s*(?P<value>.*?)\s*""",
    re.VERBOSE | re.DOTALL,
)
_HINT: Final = (
    "write for example: node.labels.zone == eu-1, node.name != n7, node.labels.rack in (r1, r2)"
)


class InvalidConstraint(InvalidSpec):
    """A constraint that cannot be read, or that names an attribute nodes do not have."""

    code = "invalid-constraint"


def check_attribute(attribute: str, where: str) -> str:
    """Return the attribute's canonical name.

    Args:
        attribute: ``node.name``, ``node.hostname`` or ``node.labels.NAME``.
        where: the text to name in the error.

    Raises:
        InvalidConstraint: nodes have no such attribute.
    """
    attribute = _ALIASES.get(attribute, attribute)
    labelled = attribute.startswith(LABEL_PREFIX) and len(attribute) > len(LABEL_PREFIX)
    if attribute != NAME_ATTRIBUTE and not labelled:
        raise InvalidConstraint(
            f"nodes have no attribute {attribute!r}", where, "use node.name or node.labels.NAME"
        )
    return attribute


def attribute_value(attribute: str, name: str, labels: Mapping[str, str]) -> str | None:
    """The value that a node has for a canonical attribute, or None when it has none."""
    if attribute == NAME_ATTRIBUTE:
        return name
    return labels.get(attribute[len(LABEL_PREFIX) :])


@attrs.frozen(cache_hash=True)
class Constraint:
    """One condition on a node's name or on one of its labels.

    Attributes:
        attribute: ``node.name`` or ``node.labels.NAME``.
        operator: ``==`` and ``!=`` have one value, ``in`` and ``not in`` one or more.
        values: what the attribute is compared with.
    """

    attribute: str
    operator: Operator
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Read a constraint.

        Raises:
            InvalidConstraint: the text is not a constraint; it says why.
        """
        where = f"constraint {text!r}"
        match = _EXPRESSION.fullmatch(text)
        if match is None:
            raise InvalidConstraint("not of the form ATTRIBUTE == VALUE", where, _HINT)
        attribute = check_attribute(match["attribute"], where)
        operator = _OPERATORS[" ".join(match["operator"].split())]
        if operator == "in" or operator == "not in":
            return cls(attribute, operator, _parse_set(match["value"], where))
        value = _unquote(match["value"])
        if not value:
            raise InvalidConstraint(f"no value after {operator}", where, _HINT)
        if value[0] in "=!(" or any(c.isspace() for c in value):
            raise InvalidConstraint(f"cannot read the value {value!r}", where, _HINT)
        return cls(attribute, operator, (value,))

    @property
    def wants_value(self) -> bool:
        """Whether a node must have one of the values, rather than none of them."""
        return self.operator == "==" or self.operator == "in"

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether a node of that name and those labels satisfies this."""
        value = attribute_value(self.attribute, name, labels)
        return (value in self.values) == self.wants_value

    def __str__(self) -> str:
        if self.operator == "==" or self.operator == "!=":
            return f"{self.attribute} {self.operator} {self.values[0]}"
        return f"{self.attribute} {self.operator} ({', '.join(self.values)})"


def parse_constraints(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """Read several constraints, all of which must hold.

    Raises:
        InvalidConstraint: one of them is not a constraint.
    """
    return tuple(Constraint.parse(text) for text in texts)


def _parse_set(text: str, where: str) -> tuple[str, ...]:
    if not (text.startswith("(") and text.endswith(")")):
        raise InvalidConstraint("a set of values stands in parentheses", where, _HINT)
    values = tuple(_unquote(part.strip()) for part in text[1:-1].split(","))
    if not all(values):
        raise InvalidConstraint("a value of the set is empty", where, _HINT)
    return values


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
