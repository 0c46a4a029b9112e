"""The table's rows: a fault, what came of it, and when."""

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from attrs import define, field, frozen

# What has not come by then does not come; on a quiet machine everything does in a fifth of it.
PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.02


@frozen
class Row:
    """One fault.

    Attributes:
        fault: what was done.
        outcome: what was seen to be so: the program fails where it is not.
        noticed_s: until it was said by name (the node lost or sick); None where nothing is.
        healed_s: until all was as desired again, counted from ``healed_from``.
        more: other times.
    """

    fault: str
    outcome: str
    healed_s: float
    healed_from: str = "the fault"
    noticed_s: float | None = None
    more: dict[str, float] = field(factory=dict)


@define
class Watch:
    """A stop-watch that waits for conditions."""

    began: float = field(factory=time.monotonic)

    def until(self, condition: Callable[[], Any], what: str) -> float:
        """Seconds since the start until ``condition()``.

        Raises:
            AssertionError: it never was so.
        """
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"no {what} within {PATIENCE_S:g} s"
            time.sleep(_LOOK_S)
        return self.passed_s

    @property
    def passed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began


def summary(rounds: list[Row]) -> dict[str, Any]:
    """Rounds of one fault as plain data: medians and the slowest, and each round's own numbers."""
    first = rounds[0]
    noticed = [one.noticed_s for one in rounds if one.noticed_s is not None]
    return {
        "fault": first.fault,
        "outcome": first.outcome,
        "rounds": len(rounds),
        "noticed_s": _median(noticed) if noticed else None,
        "noticed_max_s": round(max(noticed), 2) if noticed else None,
        "healed_s": _median([one.healed_s for one in rounds]),
        "healed_max_s": round(max(one.healed_s for one in rounds), 2),
        "healed_from": first.healed_from,
        "more": {name: _median([one.more[name] for one in rounds]) for name in first.more},
        "each": [_numbers(one) for one in rounds],
    }


def _numbers(row: Row) -> dict[str, Any]:
    """What was measured in one round."""
    return {
        "noticed_s": None if row.noticed_s is None else round(row.noticed_s, 3),
        "healed_s": round(row.healed_s, 3),
        "more": {name: round(seconds, 3) for name, seconds in row.more.items()},
    }


def record(recorded: dict[str, Any], name: str, row: dict[str, Any]) -> None:
    """Put a row that was measured just now into what the file has.

    Files of before had one machine for all rows, that of the last run, and of rounds the median
    and the slowest; rows that are not measured again stay so, and that machine as long as any do.
    """
    recorded["rows"][name] = row
    if all("machine" in one for one in recorded["rows"].values()):
        recorded.pop("machine", None)


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| fault | outcome | noticed | healed | counted from |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        more = "; ".join(f"{name} {seconds:.1f} s" for name, seconds in row["more"].items())
        outcome = f"{row['outcome']} ({more})" if more else row["outcome"]
        noticed = "" if row["noticed_s"] is None else f"{row['noticed_s']:.1f} s"
        lines.append(
            f"| {row['fault']} | {outcome} | {noticed} | {row['healed_s']:.1f} s "
            f"| {row['healed_from']} |"
        )
    return "\n".join(lines)
