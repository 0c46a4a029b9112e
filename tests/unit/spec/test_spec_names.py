"""Names: which are allowed, and what is said about the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.names import (
    InstanceName,
    check_node_name,
    check_service_name,
    did_you_mean,
    free_name,
    name_from_image,
    parse_instance,
    parse_target,
    suggest,
    tidy_name,
)
from tests.strategies import names


@pytest.mark.parametrize("name", ["web", "a", "0", "web-1", "voting_app", "w" * 63])
def test_good_service_names(name):
    """Labels of DNS, with underscores."""
    assert check_service_name(name) == name


@pytest.mark.parametrize(
    ("name", "example"),
    [
        ("web/1", "web-1"),
        ("Web", "web"),
        ("web.1", "web-1"),
        ("-web", "web"),
        ("web_", "web"),
        ("my web", "my-web"),
        ("../../etc", "etc"),
        ("web\n", "web"),
        ("ｗeb", "eb"),
    ],
)
def test_bad_service_names_get_an_example(name, example):
    """What cannot be a name is refused with one that can."""
    with pytest.raises(InvalidSpec) as caught:
        check_service_name(name)

    assert caught.value.hint.endswith(f'for example "{example}"')


@pytest.mark.parametrize("name", ["", "w" * 64, "///"])
def test_bad_service_names_without_example(name):
    """Nothing, too much, and nothing that could remain."""
    with pytest.raises(InvalidSpec):
        check_service_name(name)


def test_node_names_may_have_dots():
    """A node is called what its host is called."""
    assert check_node_name("n1.example.com") == "n1.example.com"
    with pytest.raises(InvalidSpec):
        check_node_name("n1..")


def test_instances():
    """``web.3`` is a service and a slot from 1."""
    assert parse_instance("web.3") == InstanceName("web", 3)
    assert str(InstanceName("web", 3)) == "web.3"
    assert parse_target("web") == ("web", None)
    assert parse_target("web.12") == ("web", 12)


@pytest.mark.parametrize(
    "text", ["web", "web.", "web.0", "web.03", "web.-1", "web.x", ".1", "a.b.1", "web.9999999999"]
)
def test_bad_instances(text):
    """Anything else is not an instance."""
    with pytest.raises(InvalidSpec):
        parse_instance(text)


@given(names, st.integers(1, 5_000_000))
def test_instances_come_back(service, slot):
    """An instance's text names the same instance."""
    assert parse_instance(str(InstanceName(service, slot))) == InstanceName(service, slot)


@given(st.text(max_size=80))
def test_tidied_names_are_valid(text):
    """Whatever remains of a text is a name."""
    if tidied := tidy_name(text):
        assert check_service_name(tidied) == tidied


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("swarmctl/testbox:latest", "testbox"),
        ("registry:5000/team/App@sha256:00", "app"),
        ("nginx", "nginx"),
        ("/images/debian-12.qcow2", "debian-12"),
    ],
)
def test_names_from_images(image, name):
    """A service without a name is called after what it runs."""
    assert name_from_image(image) == name


def test_free_names():
    """A taken name gets a number, within the bound."""
    assert free_name("web", []) == "web"
    assert free_name("web", ["web", "web-2"]) == "web-3"
    assert len(free_name("w" * 63, ["w" * 63])) == 63


def test_suggestions():
    """The nearest known word, if any is near."""
    assert suggest("wbe", ["web", "db"]) == "web"
    assert suggest("zzz", ["web", "db"]) == ""
    assert did_you_mean("WEB", ["web"]) == 'did you mean "web"?'
    assert did_you_mean("zzz", ["web"], "try ps") == "try ps"
