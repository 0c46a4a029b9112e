"""What must pass and what must not: each beside a control that shows that it could have been seen.

A network that blocks everything would pass any test of blocking, and a capture that sees nothing
would too. So a forged frame counts as blocked when it was seen to leave its sender, was not seen at
its target, and honest frames on the same way, before and after, were seen at both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from attrs import frozen

from bench.net.capture import Captured, capturing
from bench.net.frames import Frame
from bench.net.traffic import PING_BYTES, Endpoint
from bench.net.world import World

_PINGS: Final = ("-c", "4", "-i", "0.2", "-W", "1")
# A forged ping is known by its size, whatever else of it may have been changed on the way.
_FORGED_BYTES: Final = 101
_HEADERS_BYTES: Final = 28  # of IPv4 and ICMP
_PINGS_ALONE: Final = "icmp or (vlan and icmp)"
# Locally administered, and in nobody's book.
_STRANGER_MAC: Final = "02:00:00:00:de:ad"
_REACH_S: Final = 30.0


@frozen
class Reach:
    """Who asked whom, and whether an answer came."""

    source: str
    target: str
    answered: bool


@frozen
class Forgery:
    """One way to send in another's name.

    Attributes:
        what: is forged, in words.
        source: who did.
        sent: forged frames that were seen to leave its port.
        arrived: those that were seen at the target's.
        honest_sent: honest ones that left, meanwhile.
        honest_arrived: those that arrived.
    """

    what: str
    source: str
    sent: int
    arrived: int
    honest_sent: int
    honest_arrived: int

    @property
    def blocked(self) -> bool:
        """Whether it was tried, could have been seen, and did not pass."""
        return min(self.sent, self.honest_sent, self.honest_arrived) > 0 and self.arrived == 0


def reach(source: Endpoint, target: Endpoint) -> Reach:
    """Ask until an answer comes, or long enough."""
    answered = source.await_reach(target.address, _REACH_S)
    return Reach(source.instance, target.instance, answered)


def cut_off(source: Endpoint, target: Endpoint, friend: Endpoint) -> Reach:
    """Ask what should not be reached, while its ``friend`` reaches it: before and after.

    ``answered`` is also true where the question was seen to arrive, and where the friend is not
    answered, for then nothing is known.
    """
    known = reach(friend, target).answered
    with capturing(target.place, target.interface) as seen:
        answered = source.reaches(target.address)
    arrived = [one for one in seen.frames if source.address in (one.source, one.target)]
    known = known and reach(friend, target).answered
    return Reach(source.instance, target.instance, answered or bool(arrived) or not known)


@frozen
class Attempt:
    """How a forgery is made: what is changed, and what the frames are known by.

    Attributes:
        what: is forged, in words.
        forger: who does that: the honest source itself, or another in its name.
        there: the commands that change it.
        back: those that put it right again.
        words: for ``ping``, before the target.
        is_forged: of a frame at the source's port.
    """

    what: str
    forger: Endpoint
    there: str
    back: str
    words: tuple[str, ...]
    is_forged: Callable[[Frame], bool]


def attempts(world: World, source: str, target: str, victim: str) -> Iterator[Attempt]:
    """A source that takes a stranger's MAC, or its victim's address."""
    one, own_mac, stolen = world.ends[source], world.macs[source], world.ends[victim].address
    link, address = "ip link set dev eth0 address", f"{stolen}/32 dev eth0"
    # Without it a forger's ARP is stopped, and its packets are never sent.
    other = world.ends[target].address
    known, unknown = f"arp -s {other} {world.macs[target]}", f"arp -d {other}"
    yield Attempt(
        "another MAC",
        one,
        f"{link} {_STRANGER_MAC} && {known}",
        f"{unknown}; {link} {own_mac}",
        (),
        lambda frame: frame.source_mac == _STRANGER_MAC,
    )
    yield Attempt(
        "another IP address",
        one,
        f"ip address add {address} && {known}",
        f"{unknown}; ip address del {address}",
        ("-I", stolen),
        lambda frame: frame.source == stolen and frame.source_mac == own_mac,
    )


def forge(attempt: Attempt, source: Endpoint, target: Endpoint) -> Forgery:
    """Send honestly, in another's name, and honestly again, and look at both ends."""
    forged = f"ping {' '.join((*_PINGS, '-s', str(_FORGED_BYTES), *attempt.words))}"
    with (
        capturing(source.place, source.interface, _PINGS_ALONE) as left,
        capturing(target.place, target.interface, _PINGS_ALONE) as came,
    ):
        reach(source, target)
        with _set(attempt):
            attempt.forger.call("sh", "-c", f"{forged} {target.address}")
        reach(source, target)
    return Forgery(
        attempt.what,
        source.instance,
        sent=sum(map(attempt.is_forged, _pings(left, _FORGED_BYTES))),
        arrived=len(_pings(came, _FORGED_BYTES)),
        honest_sent=len(_pings(left, PING_BYTES)),
        honest_arrived=len(_pings(came, PING_BYTES)),
    )


def _pings(seen: Captured, payload_bytes: int) -> list[Frame]:
    """The pings of that size, in either direction: a forged one is to have no answer either."""
    wanted = payload_bytes + _HEADERS_BYTES
    return [one for one in seen.frames if "icmp" in one.layers and one.packet_bytes == wanted]


@contextmanager
def _set(attempt: Attempt) -> Iterator[None]:
    attempt.forger.run("sh", "-c", attempt.there)
    try:
        yield
    finally:
        attempt.forger.run("sh", "-c", attempt.back)
