"""Two sides' steps on one line: what is known, what is not, and whose clock it is."""

import pytest

from swarmctl.controller import timelines
from swarmctl.controller.timelines import AGENT, CONTROLLER, Clocks, Moment
from swarmctl.proto.errors import ProtocolError


def agents(*steps):
    """An agent's moments, of these (step, when)."""
    return [Moment(step, AGENT, at) for step, at in steps]


def clocks(ahead_s=0.0, error_s=0.001):
    """How they compare."""
    return Clocks(ahead_s, error_s)


def own(accepted_at=100.0, placed_at=100.01, sent_at=100.012, **fields):
    """A controller's moments, for what it placed itself."""
    known = {"began_at": 50.0, "node": "n1", "joined_at": 60.0} | fields
    return timelines.controllers_moments(
        accepted_at=accepted_at, placed_at=placed_at, sent_at=sent_at, **known
    )


def answer(**fields):
    """What an agent sends."""
    whole = {
        "clock_s": [1000.0, 1000.5],
        "attempt": 1,
        "state": "running",
        "health": "",
        "steps": [["received", 999.0, ""]],
    }
    return whole | fields


def test_each_side_is_counted_from_its_own_first_step():
    """And on one line the agent's times are moved by what its clock is ahead."""
    moments = own() + agents(("received", 400.02), ("running", 400.5))
    views = timelines.joined(moments, clocks(300.0))

    assert [one["step"] for one in views] == ["accepted", "placed", "sent", "received", "running"]
    assert [one["after_ms"] for one in views] == [0.0, 10.0, 12.0, 0.0, 480.0]
    assert [one["total_ms"] for one in views] == [0.0, 10.0, 12.0, 20.0, 500.0]


def test_clocks_that_contradict_the_order_are_not_put_on_one_line():
    """Nobody begins before it is told: each side keeps its own times, and it is said."""
    moments = own() + agents(("received", 90.0), ("running", 90.5))
    views = timelines.joined(moments, clocks())
    compared = timelines.clocks_view(moments, clocks())

    assert [one["total_ms"] for one in views] == [0.0, 10.0, 12.0, None, None]
    assert views[-1]["after_ms"] == 500.0
    assert compared["used"] is False
    assert "began 10012 ms before it was told" in compared["note"]


def test_what_the_error_explains_is_no_contradiction():
    """A slow answer measures badly, and is not blamed on the clocks."""
    moments = own() + agents(("received", 99.9))
    views = timelines.joined(moments, clocks(error_s=0.2))

    assert views[-1]["total_ms"] == -100.0
    assert timelines.clocks_view(moments, clocks(error_s=0.2))["used"] is True


def test_clocks_that_agree_as_far_as_was_measured_move_nothing():
    """Two answers to one question are the same, whatever the way took."""
    moments = own() + agents(("received", 100.02))
    for ahead_s in (0.004, -0.003):
        compared = clocks(ahead_s, error_s=0.005)
        assert timelines.joined(moments, compared)[-1]["total_ms"] == 20.0
        note = timelines.clocks_view(moments, compared)["note"]
        assert note.startswith("the node's clock agrees with the controller's within 5.0 ms")
    note = timelines.clocks_view(moments, clocks(0.01))["note"]
    assert note.startswith("the node's clock is 10.0 ms ahead of the controller's, give or take")


def test_clocks_that_were_not_compared_are_not_mixed():
    """What a lost node reported last stays on its own clock, between the controller's steps."""
    lost = Moment("lost", CONTROLLER, 130.0)
    views = timelines.joined([*own(), *agents(("running", 7.0)), lost], None)

    assert [one["after_ms"] for one in views] == [0.0, 10.0, 12.0, 0.0, 30000.0]
    assert [one["total_ms"] for one in views] == [0.0, 10.0, 12.0, None, 30000.0]
    assert timelines.clocks_view(own(), None) is None


def test_an_offset_is_measured_by_the_request_that_asked():
    """By four times; what the agent took itself is no part of the error."""
    found = timelines.told_of(answer(), sent_at=700.0, came_at=700.7)

    assert found.clocks.ahead_s == pytest.approx(299.9)
    assert found.clocks.error_s == pytest.approx(0.1)
    assert found.moments == (Moment("received", AGENT, 999.0),)


@pytest.mark.parametrize(
    "wrong",
    [{"clock_s": [1.0]}, {"clock_s": None}, {"steps": [["received"]]}, {"attempt": "first"}],
)
def test_an_answer_that_is_none_is_refused(wrong):
    """And not half understood."""
    with pytest.raises(ProtocolError, match="not an answer to a trace"):
        timelines.told_of(answer(**wrong), 700.0, 700.1)


def test_what_an_earlier_controller_placed_has_no_times_here():
    """It is said, not invented; the agent's steps stand alone."""
    adopted = own(placed_at=0.0, sent_at=0.0)
    moments = adopted + agents(("received", 10.0), ("running", 10.5))
    views = timelines.joined(moments, clocks(3.0))

    assert [one["when"] for one in views] == [0.0, 0.0, 0.0, 10.0, 10.5]
    assert all("earlier controller" in one["detail"] for one in views[:3])
    assert [one["total_ms"] for one in views] == [None, None, None, 0.0, 500.0]


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"accepted_at": 100.5}, "the service changed since"),
        ({"accepted_at": 49.0}, "by its own clock"),
    ],
)
def test_an_acceptance_that_is_not_this_instances_is_not_known(fields, detail):
    """A change after the placement, or one that another controller's clock has timed."""
    first, placed, *_ = own(**fields)

    assert (first.step, first.at, detail in first.detail) == ("accepted", 0.0, True)
    assert placed == Moment("placed", CONTROLLER, 100.01, "on n1")


def test_a_session_that_began_after_the_sending_is_told_of():
    """What was sent before it may have been lost, and was sent again."""
    assert "session began later" in own(joined_at=200.0)[-1].detail
    assert own(sent_at=0.0)[-1] == Moment("sent", CONTROLLER, 0.0, "not yet")
