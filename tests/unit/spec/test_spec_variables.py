"""Variables in texts and in environment files."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.environments import parse_env_file
from swarmctl.spec.variables import EXPANDED_MAX_CHARS, interpolate

ENVIRONMENT = {"A": "1", "EMPTY": "", "LONG_1": "x"}


def expand(text, environment=None):
    unset = []
    expanded = interpolate(text, ENVIRONMENT if environment is None else environment, unset.append)
    return expanded, unset


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("$A", "1"),
        ("${A}", "1"),
        ("a${A}b$A-", "a1b1-"),
        ("$LONG_1.x", "x.x"),
        ("$$A $$$$", "$A $$"),
        ("$${A}", "${A}"),
        ("${A:-no}", "1"),
        ("${EMPTY:-yes}", "yes"),
        ("${EMPTY-no}", ""),
        ("${NONE-yes}", "yes"),
        ("${NONE:-}", ""),
        ("${NONE:-${EMPTY:-$A}}", "1"),
        ("${NONE:-a}b}", "ab}"),
        ("${NONE:-$$}", "$"),
        ("${A:+yes}", "yes"),
        ("${EMPTY:+no}", ""),
        ("${EMPTY+yes}", "yes"),
        ("${NONE+no}", ""),
        ("${A:?never}", "1"),
        ("${EMPTY?never}", ""),
        ("${NONE:-a:-b}", "a:-b"),
    ],
)
def test_variables(text, expanded):
    """Every form of the Compose Specification."""
    assert expand(text) == (expanded, [])


def test_unset_variables_are_told():
    """Without value and default a variable is empty, and its name is passed on."""
    assert expand("$NONE ${OTHER} ${A}") == ("  1", ["NONE", "OTHER"])


def test_defaults_that_are_not_used_are_not_looked_at():
    """An unset variable inside an unused default is no news, and no error."""
    assert expand("${A:-$NONE}") == ("1", [])
    assert expand("${A:-${NONE:?needed}}") == ("1", [])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("$", "a lone"),
        ("$5", "a lone"),
        ("a $ b", "a lone"),
        ("${", "no closing"),
        ("${A", "no closing"),
        ("${A:-${B}", "no closing"),
        ("${}", "names no variable"),
        ("${1A}", "names no variable"),
        ("${A/x}", "is not a variable"),
        ("${A:x}", "is not a variable"),
        ("${NONE:?give $A}", "the variable NONE is not set: give 1"),
        ("${EMPTY:?}", "the variable EMPTY is not set: it is required"),
        ("${N:-" * 20 + "}" * 20, "nested more than"),
    ],
)
def test_bad_variables(text, what):
    """What is wrong with a variable is said, with how to write it."""
    with pytest.raises(InvalidSpec) as caught:
        expand(text)

    assert what in caught.value.what


def test_expansion_is_bounded():
    """Many uses of a large variable end in an error, not in the machine's memory."""
    with pytest.raises(InvalidSpec, match="characters"):
        expand("$A" * 1000, {"A": "x" * EXPANDED_MAX_CHARS})


@given(st.text(max_size=30))
def test_doubled_dollars_come_back(text):
    """Any text survives when its dollars are doubled."""
    assert expand(text.replace("$", "$$")) == (text, [])


@given(st.text(alphabet="${}A:-?+x", max_size=25))
def test_any_text_expands_or_is_refused(text):
    """No text makes it raise anything but InvalidSpec."""
    with suppress(InvalidSpec):
        expand(text)


def test_environment_files():
    """Comments, quotes, export, names alone, and variables of earlier lines."""
    unset = []
    found = parse_env_file(
        "app.env",
        "# comment\n"
        "\n"
        "A=1\n"
        "export B = two words # comment\n"
        "C='$A # literal'\n"
        'D="$A\\n\\$A" # comment\n'
        "E=$A-$HERE-$NONE\n"
        "F\n"
        "G=\n"
        "H=a#b\n"
        "A=again\n",
        {"HERE": "h"},
        lambda where, name: unset.append((where, name)),
    )

    assert found == {
        "A": "again",
        "B": "two words",
        "C": "$A # literal",
        "D": "1\n$A",
        "E": "1-h-",
        "F": None,
        "G": "",
        "H": "a#b",
    }
    assert unset == [("app.env:7", "NONE")]


@pytest.mark.parametrize("line", ["=1", "A B=1", 'A="open', "A=${B", "A='x' y"])
def test_bad_environment_files_name_the_line(line):
    """The file and the line are the place of the error."""
    with pytest.raises(InvalidSpec) as caught:
        parse_env_file("app.env", f"OK=1\n{line}\n", {}, lambda *_: None)

    assert caught.value.where == "app.env:2"
