"""Whether this controller still is the one that leads: its store is asked every few seconds.

A controller on SQLite has no lease of its own.  When another one takes over on the same file, it
finds out with its next write, which may be never; until then it would grant leases to the nodes
that are still connected to it, while the other one places elsewhere what they run.  So a lease
that it grants ends when one would that was granted as the store was last asked: before the other
one, which waits for a whole lease after its takeover, places anything.  Where controllers are
elected (:mod:`swarmctl.controller.election`) the election's lease tells, and the store is not
asked.
"""

import math
from typing import Final

import structlog
import trio

from swarmctl.controller.cluster import Cluster
from swarmctl.controller.fencing import always
from swarmctl.proto.errors import Busy, StaleTerm, StorageFault

_log = structlog.get_logger(__name__)
# Between two questions. Each shortens the leases that are granted until the next one.
CONFIRM_S: Final = 2.0


async def run(cluster: Cluster) -> None:
    """Ask until cancelled; when another has taken over, ``cluster`` is told that, and it ends."""
    fences = cluster.state.fences
    if fences.may_grant is not always:
        return
    confirmed_at = -math.inf
    fences.in_doubt_s = lambda: trio.current_time() - confirmed_at
    while cluster.deposed is None:
        asked_at = trio.current_time()
        try:
            await cluster.store.commit(())
        except StaleTerm as error:
            _log.error("another controller has taken over", error=str(error))
            cluster.deposed = error
            cluster.wake()
        except (StorageFault, Busy) as error:
            # What refuses writes says so by itself; here only leases end, if it goes on.
            _log.debug("not confirmed that this controller leads", error=str(error))
        else:
            confirmed_at = asked_at
        await trio.sleep(CONFIRM_S)
