"""On hold: a controller that looks, and tells no node anything (DESIGN 8.5).

A store that was restored is older than what runs. Until an operator has looked and releases it,
nothing is placed, started, stopped or taken away; nodes report as ever and ``ps`` shows all. The
hold is in the store, so it outlives the controller.
"""

from typing import Any, Final

import structlog

from swarmctl.controller.cluster import Cluster
from swarmctl.controller.store.api import Delete, Store
from swarmctl.transport.rpc import Call, Handler

_log = structlog.get_logger(__name__)

HOLD: Final = "hold"


async def read(store: Store) -> str:
    """Why this cluster is on hold; empty when it is not."""
    reason = (await store.read(HOLD)).get(HOLD, b"").decode(errors="replace")
    if reason:
        _log.warning("on hold until 'swarmctl store release'", why=reason)
    return reason


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def release(call: Call) -> Any:
        del call
        reason = cluster.hold

        def follow() -> None:
            cluster.hold = ""
            cluster.wake()

        if reason:
            await cluster.commit([Delete(HOLD)], follow)
            _log.warning("released", why=reason)
        return {"was": reason}

    return {"store.release": release}
