"""What one port may send to another, by the security groups of both."""

import pytest

from swarmctl.net.model import (
    Direction,
    PortWish,
    Protocol,
    Remote,
    RemoteKind,
    Rule,
    SecurityGroup,
)
from swarmctl.net.reach import Passage, judge

IN, OUT = Direction.INGRESS, Direction.EGRESS
HTTP = Rule(IN, Protocol.TCP, (80, 80))
A, B = "10.20.0.2", "10.20.0.3"


def port(service, *groups, labels=()):
    """A port of a service in these groups."""
    return PortWish(
        f"p-{service}",
        "default",
        "front",
        service,
        1,
        "02:00:00:00:00:01",
        (A,),
        labels=labels,
        security_groups=groups,
    )


def judged(source, target, **groups):
    """What passes, as texts, and why nothing does."""
    known = {
        ("default", name): SecurityGroup("default", name, rules) for name, rules in groups.items()
    }
    found = judge(source, target, (A, B), known)
    return [str(one) for one in found.passages], found.stopped_by


def test_ports_without_groups_are_open():
    """All of it passes."""
    assert judged(port("a"), port("b")) == (["any"], "")


def test_a_group_lets_in_what_its_rules_say():
    """And nothing else; one that has no rules lets nothing in."""
    assert judged(port("a"), port("b", "web"), web=(HTTP,)) == (["tcp 80"], "")
    passed, why = judged(port("a"), port("b", "web"), web=())
    assert passed == []
    assert why == "no rule of security group web (ingress of b.1) lets it through"


def test_a_port_whose_group_is_gone_stays_closed():
    """As its rows in OVN do."""
    assert judged(port("a"), port("b", "gone"))[0] == []


def test_both_ends_have_a_say():
    """What passes is in a rule of each; names and addresses are always let out."""
    out = Rule(OUT, Protocol.TCP, (8000, 8080))
    into = Rule(IN, Protocol.TCP, (8080, 9000))
    groups = {"one": (out,), "two": (into,), "dns": (Rule(IN, Protocol.UDP, (53, 53)),)}

    assert judged(port("a", "one"), port("b", "two"), **groups)[0] == ["tcp 8080"]
    assert judged(port("a", "one"), port("b", "dns"), **groups)[0] == ["udp 53"]
    passed, why = judged(port("a", "one"), port("b", "web"), **groups, web=(HTTP,))
    assert (passed, why) == (
        [],
        "nothing that security group one lets out is let in by security group web",
    )


@pytest.mark.parametrize(
    ("remote", "passes"),
    [
        (Remote(), True),
        (Remote(RemoteKind.CIDR, "10.20.0.0/24"), True),
        (Remote(RemoteKind.CIDR, "10.21.0.0/24"), False),
        (Remote(RemoteKind.CIDR, "fd00::/64"), False),
        (Remote(RemoteKind.SERVICE, "a"), True),
        (Remote(RemoteKind.SERVICE, "b"), False),
        (Remote(RemoteKind.LABEL, "tier=db"), True),
        (Remote(RemoteKind.LABEL, "tier=web"), False),
        (Remote(RemoteKind.GROUP, "own"), True),
        (Remote(RemoteKind.GROUP, "web"), False),
    ],
)
def test_the_other_end_of_a_rule_is_who_it_says(remote, passes):
    """By address, service, label or group, of the sender."""
    source = port("a", "own", labels=(("tier", "db"),))
    rule = Rule(IN, Protocol.TCP, (80, 80), remote)
    assert bool(judged(source, port("b", "web"), web=(rule,), own=())[0]) is passes


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Passage(), Passage(Protocol.ICMP), "icmp"),
        (Passage(Protocol.TCP), Passage(Protocol.TCP, 1, 9), "tcp 1-9"),
        (Passage(Protocol.TCP, 1, 9), Passage(Protocol.TCP, 9, 12), "tcp 9"),
        (Passage(Protocol.TCP, 1, 9), Passage(Protocol.TCP, 10, 12), None),
        (Passage(Protocol.TCP), Passage(Protocol.UDP), None),
    ],
)
def test_two_passages_meet(one, other, both):
    """The same whichever comes first."""
    for found in (one.meet(other), other.meet(one)):
        assert (None if found is None else str(found)) == both
