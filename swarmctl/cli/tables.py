"""Tables of text: columns side by side, headed, without borders.

One renderer for a terminal and a pipe, so both show the same; a pipe gets no colour and every
cell whole.  On a terminal the widest column that may be cut is, so that a row stays one line.
(rich draws the progress of ``--wait``; importing it for each ``ps`` would be felt.)
"""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Final

import click
from attrs import frozen

_GAP: Final = "   "
# A column that is cut keeps this much, or is left as it is.
_CUT_MIN_CELLS: Final = 16
# States to colours: what is well, on its way, or wrong. Anything else stays plain.
_COLOURS: Final = {
    **dict.fromkeys(("running", "ready", "succeeded", "created", "yes"), "green"),
    **dict.fromkeys(
        ("pending", "assigned", "preparing", "starting", "stopping", "joining", "draining"),
        "yellow",
    ),
    **dict.fromkeys(("cordoned", "quarantined", "updated"), "yellow"),
    **dict.fromkeys(("failed", "lost", "rejected", "sick", "removed"), "red"),
}

Row = dict[str, Any]


@frozen
class Column:
    """A heading, and what a row shows under it.

    ``wide`` is shown by ``-o wide`` only; ``may_cut`` is cut on a narrow terminal; ``is_state``
    is coloured.
    """

    heading: str
    text: Callable[[Row], str]
    wide: bool = False
    may_cut: bool = False
    is_state: bool = False


def column(heading: str, key: str, **kind: bool) -> Column:
    """A column that shows one field as it is."""

    def text(row: Row) -> str:
        value = row.get(key)
        return "" if value is None else str(value)

    return Column(heading, text, **kind)


def render(
    columns: Sequence[Column], rows: Sequence[Row], *, wide: bool, width: int, colour: bool
) -> str:
    """The table, a line a row; ``width`` 0 cuts nothing."""
    shown = [one for one in columns if wide or not one.wide]
    cells = [[_one_line(one.text(row)) for one in shown] for row in rows]
    widths = [
        max([len(one.heading), *(cell_width(line[index]) for line in cells)])
        for index, one in enumerate(shown)
    ]
    if width:
        _cut(shown, cells, widths, width)
    heading = [one.heading for one in shown]
    lines = [_line(heading, widths)]
    for line in cells:
        styles = [
            _colour(cell) if one.is_state else None for one, cell in zip(shown, line, strict=True)
        ]
        lines.append(_line(line, widths, styles if colour else None))
    return "\n".join(lines)


def _colour(state: str) -> str | None:
    """That of a state; ``running (unhealthy)`` is as wrong as one that failed."""
    return "red" if state.endswith("(unhealthy)") else _COLOURS.get(state.partition(" ")[0])


def _cut(columns: Sequence[Column], cells: list[list[str]], widths: list[int], width: int) -> None:
    """Narrow the columns that may be cut, from the last, until a line fits."""
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    for index in reversed(range(len(columns))):
        if excess <= 0:
            return
        if not columns[index].may_cut or widths[index] <= _CUT_MIN_CELLS:
            continue
        target = max(_CUT_MIN_CELLS, len(columns[index].heading), widths[index] - excess)
        excess -= widths[index] - target
        widths[index] = target
        for line in cells:
            line[index] = shorten(line[index], target)


def _line(
    cells: Sequence[str], widths: Sequence[int], styles: Sequence[str | None] | None = None
) -> str:
    parts: list[str] = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        padding = " " * (width - cell_width(cell))
        style = styles[index] if styles is not None else None
        parts.append((click.style(cell, fg=style) if style else cell) + padding)
    return _GAP.join(parts).rstrip()


def cell_width(text: str) -> int:
    """How many cells of a terminal ``text`` takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )


def shorten(text: str, cells: int) -> str:
    """``text`` in at most ``cells`` cells; an ellipsis stands for what was left out."""
    if cell_width(text) <= cells:
        return text
    while text and cell_width(text) > cells - 1:
        text = text[:-1]
    return text.rstrip() + "…"


def _one_line(text: str) -> str:
    """Without what would break the table, or drive the terminal (a container wrote some of it)."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " for one in text)
