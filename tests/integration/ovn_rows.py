"""Rows in a real northbound database, as the controller writes them, from wishes."""

import trio

from swarmctl.net.diff import difference, transactions
from swarmctl.net.ovn import OvnNorthbound
from swarmctl.net.rows import desired_rows
from tests.unit.net.wishes import CLUSTER


def converge(northbound_address, world):
    """Make OVN's rows so."""

    async def main():
        async with trio.open_nursery() as nursery:
            northbound = OvnNorthbound([northbound_address], CLUSTER)
            nursery.start_soon(northbound.run)
            await northbound.take_term(7)
            wanted = desired_rows(CLUSTER, world)
            for piece in transactions(difference(await northbound.read(), wanted)):
                await northbound.apply(piece)
            nursery.cancel_scope.cancel()

    trio.run(main)
