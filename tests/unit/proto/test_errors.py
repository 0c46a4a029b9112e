"""Errors cross the wire as what they are, and say who is at fault."""

import pytest

from swarmctl.proto import errors
from swarmctl.proto.errors import (
    InternalError,
    NotFound,
    PeerError,
    SwarmError,
    UserError,
    from_wire,
    sole_error,
)


def _all(cls=SwarmError):
    yield cls
    for child in cls.__subclasses__():
        yield from _all(child)


OURS = [one for one in _all() if one.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", OURS, ids=lambda one: one.code)
def test_an_error_comes_back_as_its_class_and_texts(kind):
    """The command line shows what the far side saw."""
    back = from_wire(kind.code, "what", "where", "hint")

    assert type(back) is kind
    assert (back.what, back.where, back.hint) == ("what", "where", "hint")


def test_codes_are_unique():
    """Two classes with one code would come back as each other."""
    # By name: attrs and reloads leave twins of a class behind.
    codes = {(one.__module__, one.__name__): one.code for one in _all()}

    assert len(codes) == len(set(codes.values()))


def test_an_unknown_code_is_a_peer_error():
    """A newer release's errors still reach the user."""
    assert type(from_wire("no-such-code", "x", "", "")) is PeerError


def test_an_error_reads_as_a_sentence():
    """Where, what, and in brackets what to do."""
    assert str(NotFound("no service 'x'", "web.yaml:3", "try ls")) == (
        "web.yaml:3: no service 'x' (try ls)"
    )
    assert str(UserError("bad")) == "bad"


def test_the_sole_error_of_nested_groups_is_found():
    """Nurseries wrap what their tasks raise, once for each level."""
    error = NotFound("x")

    assert sole_error(error) is error
    assert sole_error(ExceptionGroup("a", [ExceptionGroup("b", [error])])) is error
    assert sole_error(ExceptionGroup("a", [error, InternalError("y")])) is error


def test_a_defect_is_not_hidden_behind_errors_of_ours():
    """What it caused elsewhere is not the news."""
    defect = TypeError("x")

    assert sole_error(ExceptionGroup("a", [NotFound("x"), defect])) is defect
