"""Tables, data and words: the pure parts of what is printed."""

import math

import pytest

from swarmctl.cli import output, waiting
from swarmctl.cli.streams import _Cleaner
from swarmctl.cli.tables import Column, cell_width, column, render, shorten

COLUMNS = (
    column("NAME", "name"),
    column("STATE", "state", is_state=True),
    column("DEEP", "deep", wide=True),
    column("REASON", "reason", may_cut=True),
)
ROWS = [
    {"name": "web.1", "state": "running", "deep": 1, "reason": ""},
    {"name": "a-long-name.10", "state": "failed", "deep": None, "reason": "it is broken " * 5},
]


def table(**options) -> list[str]:
    chosen = {"wide": False, "width": 0, "colour": False} | options
    return render(COLUMNS, ROWS, **chosen).splitlines()


def test_columns_line_up_and_nothing_is_cut_in_a_pipe():
    """Every cell begins under its heading; without a width each is whole."""
    heading, first, second = table()

    assert heading.index("STATE") == first.index("running") == second.index("failed")
    assert second.endswith(ROWS[1]["reason"].rstrip())


def test_wide_shows_more_columns():
    """What is marked wide appears with -o wide alone."""
    assert "DEEP" not in table()[0]
    assert "DEEP" in table(wide=True)[0]


def test_a_narrow_terminal_cuts_the_column_that_may_be_cut():
    """A row stays one line, with an ellipsis where something is missing."""
    lines = table(width=50)

    assert max(map(cell_width, lines)) <= 50
    assert lines[2].endswith("…")
    assert "a-long-name.10" in lines[2]


def test_colour_changes_nothing_but_colour():
    """With the escapes taken out, both tables are the same."""
    coloured = "\n".join(table(colour=True))

    assert "\x1b[32mrunning" in coloured
    assert _Cleaner(True).clean(coloured.encode()) == coloured.encode()
    plain = coloured.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert plain == "\n".join(table())


def test_a_cell_cannot_break_the_table_or_drive_the_terminal():
    """Newlines and escapes in a reason, which a container may have written, become spaces."""
    text = render([column("X", "x")], [{"x": "a\nb\x1b[2Jc"}], wide=False, width=0, colour=False)

    assert text.splitlines() == ["X", "a b [2Jc"]


@pytest.mark.parametrize(("text", "cells"), [("abc", 3), ("日本", 4), ("e\u0301", 1)])
def test_width_is_counted_in_cells(text: str, cells: int):
    """Wide characters take two, combining ones none."""
    assert cell_width(text) == cells
    assert cell_width(shorten(text * 20, 7)) <= 7


def test_a_column_shows_nothing_for_what_is_not_known():
    """None is an empty cell, zero is not."""
    assert Column("X", lambda row: str(row["x"])).text({"x": 0}) == "0"
    assert column("X", "x").text({"x": None}) == ""
    assert column("X", "x").text({"x": 0}) == "0"


def test_times_are_rfc_3339_for_programs():
    """Known fields of seconds become texts, histories objects, and 0 is not a time."""
    shown = output.for_programs(
        {
            "since": 0.5,
            "joined": 0,
            "restarts": 3,
            "history": [[1, "made"]],
            "inner": [{"since": 1}],
        }
    )

    assert shown == {
        "since": "1970-01-01T00:00:00.500Z",
        "joined": None,
        "restarts": 3,
        "history": [{"at": "1970-01-01T00:00:01.000Z", "what": "made"}],
        "inner": [{"since": "1970-01-01T00:00:01.000Z"}],
    }


@pytest.mark.parametrize(
    ("states", "condition", "text"),
    [
        ({"running": 3, "wanted": 3}, "running", "3 running"),
        (
            {"pending": 20, "running": 12, "starting": 8, "wanted": 40},
            "running",
            "12 of 40 running, 8 starting, 20 pending",
        ),
        ({"stopping": 1, "stopped": 1, "wanted": 2}, "stopped", "1 of 2 stopped, 1 stopping"),
        ({"leaving": 2, "wanted": 0}, "gone", "2 left"),
        ({"wanted": 0}, "gone", "gone"),
        ({"wanted": 4}, "running", "0 of 4"),
        ({"wanted": 0}, "running", "none"),
        ({"succeeded": 2, "wanted": 2}, "running", "2 succeeded"),
    ],
)
def test_progress_in_words(states: dict[str, int], condition: str, text: str):
    """What is waited for comes first, then the rest in the order of an instance's life."""
    assert waiting.summary(states, condition) == text


def test_a_timeout_is_a_time_with_units():
    """``5m`` is 300 seconds, nothing is for ever."""
    assert waiting.timeout_of("5m") == 300
    assert waiting.timeout_of("") == math.inf


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"plain\n", b"plain\n"),
        (b"\x1b[32mgreen\x1b[0m", b"\x1b[32mgreen\x1b[0m"),
        (b"\x1b[6n\x1b[2J\x1b[1;1Hx", b"x"),
        (b"\x1b]0;title\x07x", b"x"),
        (b"\x1bcx", b"x"),
        ("käse ☃".encode(), "käse ☃".encode()),
    ],
)
def test_output_does_not_drive_the_terminal(written: bytes, shown: bytes):
    """A guest's console asks the terminal for its size; colours stay, in any chunking."""
    assert _Cleaner(True).clean(written) == shown
    cleaner = _Cleaner(True)
    assert b"".join(cleaner.clean(written[i : i + 1]) for i in range(len(written))) == shown
    assert _Cleaner(False).clean(written) == written
