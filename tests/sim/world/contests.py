"""Faults of controllers that are not alone: who leads is in doubt, or who leads hears nothing.

Two on one store know nothing of each other (``usurp``); three that elect one have an etcd, and
lines to it.
"""

import trio

from tests.sim.world.wires import end_partitions, keep_blocked

# Nodes that stay with a controller that was usurped.
_STAY_MAX = 3
# A takeover waits for the leases of the one before (13.1 s); what it places anew begins after that.
_BEYOND_A_LEASE_S = (16.0, 26.0)

# A leader that does not write within this time is frozen all the same.
_WRITES_WITHIN_S = 6.0


async def usurp(world):
    """A second controller begins on the same store, and the first does not know.

    It is cut off from all agents; or some with something fenced stay with it alone, as users do
    not: it has to find out by itself, and they stay for longer than a lease.
    """
    stay = []
    if world.random.random() < 0.75:
        await world.some_fencing()
        stay = _with_something_fenced(world)
    old = world.serving
    if not world.controllers[old].alive or world.usurping:
        await trio.lowlevel.checkpoint()
        return
    world.usurping = True
    new = world.controllers[1 - old]
    try:
        world.isolate_controller(old, but=stay, users=bool(stay))
        world.serving = 1 - old
        new.wanted = True
        world.second_wanted.set()
        world.controllers[old].wanted = False
        await trio.sleep(world.random.uniform(*(_BEYOND_A_LEASE_S if stay else (1.0, 10.0))))
        if new.value is not None:
            world.books.fire("usurp-with-agents" if stay else "usurp", world.endpoints[old])
    finally:
        world.controllers[old].kill()
        world.network.sever(endpoint=world.endpoints[old])
        world.usurping = False
        world.isolated = None
        world.network.unblock()  # All: a partition that began earlier ends, too.


def _with_something_fenced(world):
    machines = world.fencing()
    return world.random.sample(machines, min(_STAY_MAX, len(machines)))


def _others(world):
    """Controllers that do not lead."""
    return [one for number, one in enumerate(world.controllers) if number != world.serving]


async def freeze_leader(world):
    """It stops for a while, mostly beyond its lease, and goes on as if nothing had happened.

    It does so as it is about to write, if it writes soon: so it writes as one that was deposed.
    """
    if world.cluster is None:
        await trio.lowlevel.checkpoint()
        return
    process = world.controllers[world.serving]
    with trio.move_on_after(_WRITES_WITHIN_S):
        await process.freeze_at_write()
    await _freeze(world, process, "freeze-leader", 4.0)


async def freeze_follower(world):
    """It is the address that nodes and users come to, and that does not answer."""
    await _freeze(world, world.random.choice(_others(world)), "freeze-follower", 1.0)


async def _freeze(world, process, fault, at_least_s):
    process.freeze()
    world.books.fire(fault, process.name)
    endpoint = world.endpoints[world.controllers.index(process)]
    await keep_blocked(world, at_least_s, 12.0, endpoint=endpoint)
    process.thaw()
    end_partitions(world)


async def leader_without_store(world):
    """It is cut off from etcd, and reached by everybody else; some of what it asks is done."""
    if world.cluster is None:
        await trio.lowlevel.checkpoint()
        return
    await _without_store(world, [world.controllers[world.serving]], "leader-without-store", 12.0)


async def follower_without_store(world):
    """It does not know who leads; whoever comes to it is not helped."""
    one = world.random.choice(_others(world))
    await _without_store(world, [one], "follower-without-store", 12.0)


async def etcd_out_of_reach(world):
    """Of all controllers at once, for longer than a leader's lease at times."""
    await _without_store(world, world.controllers, "etcd-out-of-reach", 8.0)


async def _without_store(world, processes, fault, at_most_s):
    for process in processes:
        process.line.cut(fault, deaf=world.random.random() < 0.5)
    await trio.sleep(world.random.uniform(1.0, at_most_s))
    for process in processes:
        process.line.mend()


async def etcd_restarts(world):
    """It keeps its keys, and gives each lease its whole time anew, as etcd does."""
    for process in world.controllers:
        process.line.cut("etcd-restarts", deaf=False)
    world.etcd.stop(trio.current_time())
    try:
        await trio.sleep(world.random.uniform(0.3, 5.0))
    finally:
        world.etcd.start(trio.current_time())
    for process in world.controllers:
        process.line.mend()


async def relay_blocked(world):
    """Controllers do not reach each other: a follower passes nothing on to who leads."""
    whom = {"public_key": world.shared.relay.public, "fault": "relay-blocked"}
    await keep_blocked(world, 1.0, 10.0, **whom)
    end_partitions(world)


async def late_assignment(world):
    """What an earlier controller told nodes comes in their session with the next: it is refused."""
    network = world.network
    if network.assignments is not None:
        await trio.lowlevel.checkpoint()
        return
    network.assignments = kept = {}
    await trio.sleep(world.random.uniform(2.0, 8.0))
    network.assignments = None
    world.controllers[world.serving].kill()
    await trio.sleep(world.random.uniform(4.0, 14.0))
    for machine in world.machines:
        term, payload = kept.get(world.keys[machine.name].public, (0, b""))
        agent = world.agent_of(machine).value
        if payload and agent is not None and agent.supervisor.term > term:
            late = network.deliver(world.keys[machine.name].public, payload)
            world.books.fire("late-assignment", machine.name, times=late)
