"""Faults of the wires: what is lost, late, doubled or overtaken, and who cannot reach whom."""

import trio

from swarmctl.transport.memory import Direction


async def for_a_while(world):
    """As long as most faults last."""
    await trio.sleep(world.random.uniform(1.0, 8.0))


async def drop(world):
    """Payloads are lost."""
    world.network.drop = world.random.uniform(0.02, 0.4)
    await for_a_while(world)
    world.network.drop = 0.0


async def delay(world):
    """They are late."""
    world.network.slow, world.network.slow_s = world.random.uniform(0.1, 1.0), 1.5
    await for_a_while(world)
    world.network.slow = 0.0


async def duplicate(world):
    """They arrive twice."""
    world.network.duplicate = world.random.uniform(0.05, 0.5)
    await for_a_while(world)
    world.network.duplicate = 0.0


async def reorder(world):
    """They overtake each other."""
    world.network.reorder = world.random.uniform(0.05, 0.5)
    await for_a_while(world)
    world.network.reorder = 0.0


async def partition(world):
    """Nodes and controllers do not reach each other."""
    await _partition_of(world, "partition", None)


async def partition_to_agents(world):
    """Nodes are heard, and hear nothing."""
    await _partition_of(world, "partition-to-agents", Direction.TO_LINK)


async def partition_to_controller(world):
    """Nodes hear, and are not heard."""
    await _partition_of(world, "partition-to-controller", Direction.TO_LISTENER)


async def _partition_of(world, name, direction):
    count = world.random.choice((1, 1, 2, 5, len(world.machines)))
    for machine in world.random.sample(world.machines, count):
        world.network.block(
            public_key=world.keys[machine.name].public, direction=direction, fault=name
        )
    await trio.sleep(world.random.uniform(0.5, 12.0))
    end_partitions(world)


async def keep_blocked(world, at_least_s, at_most_s, **whom):
    """For a while of that length, whatever else ends meanwhile: where one partition ends all do."""
    with trio.move_on_after(world.random.uniform(at_least_s, at_most_s)):
        while True:
            if not world.network.blocks(**whom):
                world.network.block(**whom)
            await world.network.unblocked.wait()
            await trio.sleep(world.random.uniform(0.0, 0.1))


def end_partitions(world):
    """All of them: one that began later ends early."""
    world.network.unblock()
    world.restore_isolation()


async def sever(world):
    """Connections are cut: all, or a node's."""
    if world.random.random() < 0.5:
        cut = world.network.sever()
    else:
        machine = world.random.choice(world.machines)
        cut = world.network.sever(public_key=world.keys[machine.name].public)
    world.books.fire("sever", cut, times=bool(cut))
    await trio.lowlevel.checkpoint()
