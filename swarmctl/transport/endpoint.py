"""Addresses of the form ``tcp://HOST:PORT``."""

import re
from typing import Final

from swarmctl.transport.errors import InvalidEndpoint

_FORM: Final = re.compile(
    r"tcp://(?P<host>\*|\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)"
    r":(?P<port>\d{1,5}|\*)"
)
_PORT_MAX: Final = 65_535


def check_endpoint(endpoint: str) -> str:
    """Return the address unchanged if it is one to listen on (port 0 takes a free one).

    Raises:
        InvalidEndpoint: it has another form.
    """
    match = _FORM.fullmatch(endpoint)
    if match is None or (match["port"] != "*" and int(match["port"]) > _PORT_MAX):
        raise InvalidEndpoint("an address has the form tcp://HOST:PORT", endpoint)
    return endpoint


def check_remote_endpoint(endpoint: str) -> str:
    """Return the address unchanged if it is one to connect to.

    Raises:
        InvalidEndpoint: it has another form, or no definite host and port.
    """
    match = _FORM.fullmatch(check_endpoint(endpoint))
    if match is None or match["host"] == "*" or match["port"] in ("*", "0"):
        raise InvalidEndpoint("an address to connect to needs a host and a port", endpoint)
    return endpoint
