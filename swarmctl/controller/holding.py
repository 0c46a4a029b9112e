"""On hold: a controller that looks, and tells no node anything (DESIGN 8.5).

A store that was restored is older than what runs, one that is rebuilt knows nothing of it. Until an
operator has looked and releases it, nothing is placed, started, stopped or taken away; nodes report
as ever and ``ps`` shows all. The hold is in the store, so it outlives the controller.

What is fenced runs on, too, where the node's lease had not run out when its session began: such a
lease is renewed. One that had run out is not: what the guard has ended stays so until the release,
since it may be elsewhere.
"""

from typing import Final

import structlog

from swarmctl.controller.store.api import Store

_log = structlog.get_logger(__name__)

HOLD: Final = "hold"
# Why, of a store that ``controller --rebuild`` began: its release takes in what the nodes run.
REBUILT: Final = "rebuilt from what the nodes run"


async def read(store: Store) -> str:
    """Why this cluster is on hold; empty when it is not."""
    reason = (await store.read(HOLD)).get(HOLD, b"").decode(errors="replace")
    if reason:
        _log.warning("on hold until 'swarmctl store release'", why=reason)
    return reason
