"""A launch as a timeline: what the controller knows of it, joined with what the agent says. Pure.

Two clocks are involved, and they are not taken for one.  Each side's steps are counted from that
side's own first step (``after_ms``).  To put them on one line (``total_ms``, from the very first
step), the agent's times are moved by how far its clock is ahead of the controller's, which the
request that asked for them has measured: what went by on the way is its error.  Where that cannot
be true, because something would have come before it was sent, a clock was set since the launch:
then there is no ``total_ms``, and the answer says so.

The controller keeps few times: the service's last change, and for each planning when it was made
and sent (:class:`~swarmctl.controller.instance.Placing`).  What it does not know it calls unknown.
"""

from collections.abc import Sequence
from typing import Any, Final

from attrs import frozen

from swarmctl.proto.errors import ProtocolError

CONTROLLER: Final = "controller"
AGENT: Final = "agent"
# Clocks are read to the millisecond; less than this is not called a contradiction.
_SLACK_S: Final = 0.001

View = dict[str, Any]


@frozen
class Moment:
    """One step; ``at`` is by the clock of its side, epoch seconds, and 0 where it is not known."""

    step: str
    side: str
    at: float = 0.0
    detail: str = ""


@frozen
class Clocks:
    """How far the node's clock is ahead of the controller's (may be negative), and how sure.

    ``moved_s`` is what its times are moved by: nothing where the two agree as far as was measured,
    so that one question is not answered differently each time that it is asked.
    """

    ahead_s: float
    error_s: float

    @property
    def moved_s(self) -> float:
        """See the class."""
        return 0.0 if abs(self.ahead_s) <= self.error_s else self.ahead_s


@frozen
class Told:
    """What the agent has answered: its moments, and what is plugged in, as it came."""

    moments: tuple[Moment, ...]
    clocks: Clocks
    attempt: int
    state: str
    health: str
    answer: View


def told_of(answer: Any, sent_at: float, came_at: float) -> Told:
    """What an agent's answer says.

    Args:
        answer: of ``instance.trace`` at the agent, perhaps of another release.
        sent_at: when it was asked, by the controller's clock, epoch seconds.
        came_at: when the answer was here.

    Raises:
        ProtocolError: it is not such an answer.
    """
    try:
        heard_at, answered_at = (float(one) for one in answer["clock_s"])
        clocks = Clocks(
            ((heard_at - sent_at) + (answered_at - came_at)) / 2,
            max(0.0, (came_at - sent_at) - (answered_at - heard_at)) / 2,
        )
        moments = tuple(
            Moment(str(step), AGENT, float(at), str(detail)) for step, at, detail in answer["steps"]
        )
        return Told(
            moments,
            clocks,
            int(answer["attempt"]),
            str(answer["state"]),
            str(answer["health"]),
            answer,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"not an answer to a trace: {error!r}") from error


def controllers_moments(
    *,
    accepted_at: float,
    began_at: float,
    placed_at: float,
    sent_at: float,
    node: str,
    joined_at: float,
) -> list[Moment]:
    """The controller's own steps; all times by its clock, epoch seconds.

    Args:
        accepted_at: when the service was changed last.
        began_at: when this controller started: what is older has another one's clock.
        placed_at: when the instance was given to its node; 0 when an earlier controller did.
        sent_at: when the nodes began to be told of that planning; 0 when they were not yet.
        node: the node that it was given to.
        joined_at: when that node's session began.
    """
    if not placed_at:
        why = "not known: an earlier controller placed it, and this one has adopted it"
        return [Moment(step, CONTROLLER, 0.0, why) for step in ("accepted", "placed", "sent")]
    found: list[Moment] = []
    if accepted_at > placed_at:
        found.append(Moment("accepted", CONTROLLER, 0.0, "not known: the service changed since"))
    elif accepted_at < began_at:
        why = "not known: an earlier controller took it in, by its own clock"
        found.append(Moment("accepted", CONTROLLER, 0.0, why))
    else:
        found.append(Moment("accepted", CONTROLLER, accepted_at, "the service's last change"))
    found.append(Moment("placed", CONTROLLER, placed_at, f"on {node}"))
    if not sent_at:
        found.append(Moment("sent", CONTROLLER, 0.0, "not yet"))
    elif joined_at > sent_at:
        again = "the node's session began later, and was told all of it again"
        found.append(Moment("sent", CONTROLLER, sent_at, again))
    else:
        found.append(Moment("sent", CONTROLLER, sent_at))
    return found


def contradiction_s(moments: Sequence[Moment], clocks: Clocks) -> float:
    """By how much the clocks contradict what must have come first; 0 when they do not."""
    sent = [one.at for one in moments if one.at and one.step in ("placed", "sent")]
    begun = _first(moments, AGENT)
    if not sent or not begun:
        return 0.0
    early_s = max(sent) - (begun - clocks.moved_s)
    return early_s if early_s > clocks.error_s + _SLACK_S else 0.0


def joined(moments: Sequence[Moment], clocks: Clocks | None) -> list[View]:
    """The steps of both sides as one list; see the module's docstring for their times.

    Args:
        moments: of both sides, in their order.
        clocks: how the two clocks compare; None where that was not measured.
    """
    first = {side: _first(moments, side) for side in (CONTROLLER, AGENT)}
    # By which a side's times are moved onto the controller's clock; None when they cannot be.
    ahead_s: dict[str, float | None] = {CONTROLLER: 0.0, AGENT: 0.0}
    start = first[CONTROLLER] or first[AGENT]
    if first[CONTROLLER]:
        compared = clocks is not None and not contradiction_s(moments, clocks)
        ahead_s[AGENT] = clocks.moved_s if clocks is not None and compared else None
    views: list[View] = []
    for one in moments:
        moved = ahead_s[one.side]
        views.append(
            {
                "step": one.step,
                "side": one.side,
                "when": one.at,
                "after_ms": _ms(one.at - first[one.side]) if one.at else None,
                "total_ms": _ms(one.at - moved - start) if one.at and moved is not None else None,
                "detail": one.detail,
            }
        )
    return views


def _first(moments: Sequence[Moment], side: str) -> float:
    return min((one.at for one in moments if one.at and one.side == side), default=0.0)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def clocks_view(moments: Sequence[Moment], clocks: Clocks | None) -> View | None:
    """How the two clocks were compared, for programs and people; None when they were not."""
    if clocks is None:
        return None
    early_s = contradiction_s(moments, clocks)
    way = "ahead of" if clocks.ahead_s >= 0 else "behind"
    differs = f"is {abs(clocks.ahead_s) * 1000:.1f} ms {way} the controller's, give or take"
    agrees = "agrees with the controller's within"
    said = (
        f"the node's clock {differs if clocks.moved_s else agrees} {clocks.error_s * 1000:.1f} ms, "
        "as this request has measured"
    )
    if early_s:
        said += (
            f"; by that the agent began {early_s * 1000:.0f} ms before it was told: a clock was "
            "set since, and the two sides are not put on one line"
        )
    return {
        "ahead_ms": _ms(clocks.ahead_s),
        "moved_ms": _ms(clocks.moved_s),
        "error_ms": _ms(clocks.error_s),
        "used": not early_s,
        "note": said,
    }
