"""Many parts of one type, checked together: column by column.

A launch's messages hold hundreds of small parts of one shape, such as the groups of an assignment.
What such parts have in one place is a *column*, and a column is checked by one pass in C over the
types in it, where part by part each field would cost a call.

A check of columns only ever says yes: it takes values, at least one, and gives them back in their
Python form (the same object where nothing had to be made), or None where one of them is not plainly
right.  Then :mod:`swarmctl.proto.codec` looks at them one by one, which is lenient where the
protocol is, and says what is wrong.
"""

import types
import typing
from collections.abc import Callable, Collection
from itertools import chain, islice
from typing import Any, Final

import attrs

Column = Callable[[Collection[Any]], Collection[Any] | None]

EXACT: Final = frozenset({int, str, bytes, bool})
_TUPLES: Final = frozenset({tuple})


def is_attrs(kind: Any) -> bool:
    """Whether values of this type are objects, on the wire tuples of their fields."""
    return isinstance(kind, type) and attrs.has(kind)


def is_flat(kind: Any) -> bool:
    """Whether a value of this type is right as soon as its own type is."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return all(one is type(None) or is_flat(one) for one in typing.get_args(kind))
    return kind is float or kind in EXACT


def one_by_one(values: Collection[Any]) -> None:
    """Of a type whose values are never checked together."""
    del values


def column_of(kind: Any) -> Column:
    """How many values of type ``kind`` are checked together."""
    if is_attrs(kind):
        return _object_column(kind)
    if is_flat(kind):
        return _flat_column(typing.get_args(kind) or (kind,))
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return _series_column(column_of(arguments[0]))
        return _tuple_column([column_of(one) for one in arguments])
    return one_by_one


def _flat_column(kinds: tuple[type, ...]) -> Column:
    allowed = frozenset(kinds)
    return lambda values: values if allowed.issuperset(map(type, values)) else None


def _series_column(inner: Column) -> Column:
    """Of tuples of any length: all that is in them is one column."""

    def check(values: Collection[Any]) -> Collection[Any] | None:
        if not _TUPLES.issuperset(map(type, values)):
            return None
        flat = tuple(chain.from_iterable(values))
        found = inner(flat) if flat else flat
        if found is flat:
            return values
        if found is None:
            return None
        rest = iter(found)
        return [tuple(islice(rest, len(one))) for one in values]

    return check


def _tuple_column(inner: list[Column]) -> Column:
    """Of tuples of a fixed length."""

    def check(values: Collection[Any]) -> Collection[Any] | None:
        if not _TUPLES.issuperset(map(type, values)) or {len(inner)} != set(map(len, values)):
            return None
        columns = zip(*values, strict=True)
        right = all(many(column) is column for many, column in zip(inner, columns, strict=True))
        return values if right else None

    return check


def _object_column(cls: type) -> Column:
    """Of objects, on the wire tuples of their fields."""
    hints = typing.get_type_hints(cls)
    fields = attrs.fields(cls)
    inner = [column_of(hints[each.name]) for each in fields]
    required = sum(each.default is attrs.NOTHING for each in fields)

    def check(values: Collection[Any]) -> Collection[Any] | None:
        if not _TUPLES.issuperset(map(type, values)):
            return None
        widths = set(map(len, values))
        if len(widths) > 1 or not required <= widths.pop() <= len(inner):
            return None
        columns = []
        for many, column in zip(inner, zip(*values, strict=True), strict=False):
            found = many(column)
            if found is None:
                return None
            columns.append(found)
        return list(map(cls, *columns))

    return check
