"""Where OVN's northbound database may be: OVSDB's own way to write addresses."""

from typing import Final

from swarmctl.proto.errors import InvalidSpec

#: In place of an address: this cluster is to do without OVN from now on.
NORTHBOUND_NONE: Final = "none"
_SCHEMES: Final = ("tcp:", "ssl:", "unix:")


def check_northbound(text: str) -> str:
    """``text`` when the northbound database can be there; empty says nothing.

    Raises:
        InvalidSpec: it is no address of OVSDB's.
    """
    if text and text != NORTHBOUND_NONE and not text.startswith(_SCHEMES):
        raise InvalidSpec(
            f'"{text}" is not where a northbound database is',
            "--ovn",
            "write tcp:HOST:6641, ssl:HOST:6641 or unix:PATH; none to do without",
        )
    return text
