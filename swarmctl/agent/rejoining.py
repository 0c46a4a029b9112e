"""When the controller refuses the node's key: whether to enrol again, or to give up.

A key may be refused because it was revoked, because the store that knew it was lost or is an older
one, or because the controller has just begun.  So it counts after some refusals in a row, and then
the join token that the node has kept is tried; only a refusal of that is final.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from swarmctl.proto.errors import SwarmError, UserError
from swarmctl.transport.api import Link
from swarmctl.transport.errors import KeyRefused

_log = structlog.get_logger(__name__)

# Handshakes in a row that refuse the key before it counts as revoked: one could hit a controller
# in the moment of its start.
KEY_REFUSALS: Final = 3


async def until_refused(link: Link, rejoin: Callable[[], Awaitable[None]], node: str) -> KeyRefused:
    """Enrol again whenever the key of ``node`` is not known; the error when that is refused."""
    refusals = 0
    while True:
        failure = await link.wait_failure()
        if not isinstance(failure, KeyRefused):
            refusals = 0
            _log.info("no controller", endpoint=failure.where, why=failure.what)
            continue
        refusals += 1
        if refusals < KEY_REFUSALS or link.connected:
            continue
        refusals = 0
        try:
            await rejoin()
        except UserError as error:
            return KeyRefused(
                f"the controller does not accept the key of node {node}: {error.what}",
                link.endpoint,
                error.hint,
            )
        except SwarmError as error:
            _log.warning("not enrolled again yet", why=str(error))
