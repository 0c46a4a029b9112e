"""What a command prints: a table for people, or data for programs (``-o``).

The controller's views are the source of both.  In data, times are RFC 3339 and everything else
is as it came; in tables times are ages.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

from swarmctl.cli.tables import Column, Row, render
from swarmctl.spec.sizes import format_age

_F = TypeVar("_F", bound=Callable[..., Any])

FORMATS: Final = ("table", "wide", "json", "yaml", "name")
# Fields of the controller's views that hold seconds since the epoch.
_TIMES: Final = frozenset(
    {
        "created",
        "drain_deadline",
        "enrolled",
        "joined",
        "placed",
        "since",
        "started",
        "updated",
        "when",
    }
)


def output_option(*formats: str) -> Callable[[_F], _F]:
    """``-o``, for a command that lists."""
    choice = click.Choice(formats or FORMATS)
    return click.option(
        "-o", "--output", "output", type=choice, default=choice.choices[0], help="How to print it."
    )


def show_list(rows: Sequence[Row], columns: Sequence[Column], key: str, output: str) -> None:
    """Print ``rows`` as ``-o`` says; ``key`` is the field with their names."""
    if output == "name":
        for row in rows:
            print(row[key])
    elif output in ("json", "yaml"):
        show_data(list(rows), output)
    else:
        on_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if on_terminal else 0
        print(
            render(columns, rows, wide=output == "wide", width=width, colour=has_colour(sys.stdout))
        )


def show_data(data: Any, output: str) -> None:
    """Print ``data`` as JSON or YAML."""
    plain = for_programs(data)
    if output == "yaml":
        import yaml

        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
    else:
        print(json.dumps(plain, indent=2, ensure_ascii=False))


def has_colour(stream: Any) -> bool:
    """Whether to colour what goes to ``stream``: a terminal whose user does not object."""
    import os

    return bool(stream.isatty()) and not os.environ.get("NO_COLOR")


def for_programs(data: Any) -> Any:
    """``data`` with times in RFC 3339, and histories as objects."""
    if isinstance(data, dict):
        return {key: _field(key, value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [for_programs(item) for item in data]
    if isinstance(data, bytes):
        return data.hex()
    return data


def _field(key: str, value: Any) -> Any:
    if key in _TIMES and isinstance(value, int | float):
        return rfc3339(value)
    if key == "history":
        return [{"at": rfc3339(at), "what": what} for at, what in value]
    return for_programs(value)


def rfc3339(seconds: float) -> str | None:
    """A time as programs read it; None when it is not known (0)."""
    if not seconds:
        return None
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def age(seconds: float | None) -> str:
    """A time as people read it: how long ago; empty when it is not known."""
    return format_age(time.time() - seconds) if seconds else ""


def age_column(heading: str, key: str, *, wide: bool = False) -> Column:
    """A column of ages."""
    return Column(heading, lambda row: age(row.get(key)), wide=wide)
