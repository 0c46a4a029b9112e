"""Where OVN's northbound database may be, as an operator writes it: one server, or several."""

from typing import Final

from swarmctl.proto.errors import InvalidSpec

#: In place of an address: this cluster is to do without OVN from now on.
NORTHBOUND_NONE: Final = "none"


def check_northbound(text: str) -> str:
    """``text`` when the northbound database can be there; empty says nothing.

    Raises:
        InvalidSpec: it is no address of OVSDB's.
    """
    if text in ("", NORTHBOUND_NONE):
        return text
    # What it needs is not needed by any other command.
    from swarmctl.net.ovsdb import parse_remote

    for remote in text.split(","):
        try:
            parse_remote(remote)
        except InvalidSpec as error:
            hint = f"{error.hint}; none to do without"
            raise InvalidSpec(error.what, "--ovn", hint) from error
    return text
