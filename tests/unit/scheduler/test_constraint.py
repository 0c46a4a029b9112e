"""Constraints as users write them."""

import pytest

from swarmctl.proto.errors import UserError
from swarmctl.scheduler import Constraint, InvalidConstraint


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("node.labels.zone == eu-1", "node.labels.zone == eu-1"),
        ("node.labels.zone==eu-1", "node.labels.zone == eu-1"),
        ("  node.name  !=  n7 ", "node.name != n7"),
        ("node.hostname == n7", "node.name == n7"),
        ("node.labels.rack in (r1,r2)", "node.labels.rack in (r1, r2)"),
        ("node.labels.rack not  in (r1)", "node.labels.rack not in (r1)"),
        ("node.labels.in == 'in'", "node.labels.in == in"),
    ],
)
def test_spellings_have_one_meaning(text, canonical):
    """A constraint reads back as it would be written plainly."""
    parsed = Constraint.parse(text)

    assert str(parsed) == canonical
    assert parsed == Constraint.parse(canonical)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not of the form"),
        ("node.labels.zone = eu-1", "not of the form"),
        ("zone == eu-1", "no attribute 'zone'"),
        ("node.labels. == eu-1", "no attribute 'node.labels.'"),
        ("node.labels.zone ==", "no value"),
        ("node.labels.zone === eu-1", "cannot read the value"),
        ("node.labels.zone == eu 1", "cannot read the value"),
        ("node.labels.zone in eu-1", "in parentheses"),
        ("node.labels.zone in (a,)", "is empty"),
    ],
)
def test_what_cannot_be_read_is_named_with_a_hint(text, complaint):
    """The error is the user's, quotes the text, and says what to do."""
    with pytest.raises(InvalidConstraint, match=complaint) as caught:
        Constraint.parse(text)

    assert isinstance(caught.value, UserError)
    assert repr(text) in caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("node.labels.zone == eu-1", True),
        ("node.labels.zone != eu-1", False),
        ("node.labels.zone in (eu-2, eu-1)", True),
        ("node.labels.zone not in (eu-2, eu-1)", False),
        ("node.labels.rack == r1", False),
        ("node.labels.rack != r1", True),
        ("node.labels.rack in (r1)", False),
        ("node.labels.rack not in (r1)", True),
        ("node.name == n1", True),
    ],
)
def test_a_label_that_is_absent_has_no_value(text, holds):
    """It fails what asks for a value, and passes what refuses one."""
    assert Constraint.parse(text).matches("n1", {"zone": "eu-1"}) == holds
