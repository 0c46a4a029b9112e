"""What goes wrong: each fault is a function that begins it, waits, and lets it end.

A seed enables about half of them (so that they meet in ever other combinations) and begins one of
those every second or so.  What they count as fired is their effect, where it is met: a drop is a
payload lost, a slow store a commit that was late, a clock's step the first look at it after that.
"""

import trio

from swarmctl.proto.errors import LaunchFailed
from swarmctl.proto.limits import CLOCK_DRIFT_MAX
from tests.sim.world import contests, wires
from tests.sim.world.disks import FULL, USUAL_SYNC_S
from tests.sim.world.machines import is_checked
from tests.sim.world.processes import Killer
from tests.sim.world.wires import end_partitions, for_a_while, keep_blocked

# A process is killed at one of its next steps; busy ones take hundreds a second.
_STEPS = (1, 5, 20, 60, 200)
# Machines of one run that never return: what is wanted has to have room on the others.
_LOST_MAX = 2


async def _crash_controller(world):
    await _kill_at_some_step(world, world.controllers[world.serving], "crash-controller")


async def _crash_agent(world):
    await _kill_at_some_step(world, world.random.choice(world.agents), "crash-agent")


async def _kill_at_some_step(world, process, fault):
    def done(was_alive):
        if was_alive:
            world.books.fire(fault, process.name)

    killer = Killer(process, world.random.randint(1, world.random.choice(_STEPS)), done)
    killer.arm()
    await trio.sleep(world.random.uniform(0.5, 4.0))
    killer.disarm()


def _kill_within(world, process, fault):
    """A hook: kill ``process`` within the time that it is given."""

    def kill():
        if process.kill():
            world.books.fire(fault, process.name)

    return lambda within_s: world.later(world.random.uniform(0.0, within_s), kill)


async def _crash_mid_commit(world):
    process = world.controllers[world.serving]
    world.disk.on_write = _kill_within(world, process, "crash-mid-commit")
    await trio.lowlevel.checkpoint()


async def _crash_mid_write(world):
    for machine in world.random.sample(world.machines, 4):
        process = world.agent_of(machine)
        machine.journal.on_write = _kill_within(world, process, "crash-mid-write")
    await trio.lowlevel.checkpoint()


async def _crash_mid_call(world):
    for machine in world.random.sample(world.machines, 4):
        machine.on_call = _kill_within(world, world.agent_of(machine), "crash-mid-call")
    await trio.lowlevel.checkpoint()


async def _crash_machine(world):
    machine = world.random.choice(world.machines)
    process = world.agent_of(machine)
    process.wanted = False
    try:
        process.kill()
        machine.lose_power()
        world.books.fire("crash-machine", machine.name)
        await trio.sleep(world.random.uniform(0.5, 10.0))
    finally:
        process.wanted = not machine.lost


async def _agent_away(world):
    """Nobody starts it again for longer than a lease; its guard is alone with what is fenced."""
    machine = await _some_fencing_machine(world)
    fences = machine in world.fencing()
    process = world.agent_of(machine)
    if all(one.is_frozen for one in machine.guards):
        await trio.lowlevel.checkpoint()  # Then nobody is left to kill (docs/fencing.md).
        return
    process.wanted = False
    try:
        process.kill()
        await trio.sleep(world.random.uniform(10.0, 20.0))
        world.books.fire("agent-away", machine.name, times=fences)
    finally:
        process.wanted = not machine.lost


async def _lose_machine(world):
    """One is off for good, at once or after it was cut off; an operator takes it out."""
    machine = world.random.choice((world.random.choice(world.machines), _fencing_machine(world)))
    if machine.lost or len(world.machines) - len(world.living) >= _LOST_MAX:
        await trio.lowlevel.checkpoint()
        return
    machine.lost = True
    world.books.fire("lose-machine", machine.name)
    if world.random.random() < 0.5:
        if world.harsh and world.random.random() < 0.5:
            world.operator.lose(machine.name)  # It runs on, and nobody knows for how long.
        await keep_blocked(world, 1.0, 20.0, public_key=world.keys[machine.name].public)
    process = world.agent_of(machine)
    process.wanted = False
    process.kill()
    machine.lose_power()
    world.operator.lose(machine.name)


async def _hold(world):
    """The controller starts on a store that an operator has put on hold, and releases later."""
    process = world.controllers[world.serving]
    world.disk.put_on_hold("by chance")
    if process.kill():
        world.books.fire("hold", process.name)
    await trio.sleep(world.random.uniform(0.5, 20.0 if world.harsh else 4.0))
    world.operator.on_hold = True


async def _crash_instance(world):
    machine = world.random.choice(world.machines)
    running = sorted(machine.running())
    if running:
        machine.kill_instance(world.random.choice(running))
        world.books.fire("crash-instance", machine.name)
    await trio.lowlevel.checkpoint()


async def _unwell(world):
    """What runs on a machine answers health checks badly: it is stopped, and begun again."""
    checked = [one for one in world.machines if any(map(is_checked, one.running().values()))]
    if not checked:
        await trio.lowlevel.checkpoint()
        return
    machine = world.random.choice(checked)
    machine.unwell = True
    await trio.sleep(world.random.uniform(3.0, 12.0))
    machine.unwell = False


async def _crash_many(world):
    """Several agents and the controller at once, as when a rack loses power for a moment."""
    victims = world.random.sample(world.agents, world.random.randint(2, 6))
    killed = [process.kill() for process in [world.controllers[world.serving], *victims]]
    world.books.fire("crash-many", sum(killed), times=sum(killed))
    await trio.lowlevel.checkpoint()


def _fencing_machine(world):
    """One with something fenced, if there is any."""
    return world.random.choice(world.fencing() or world.machines)


async def _some_fencing_machine(world):
    """One with something fenced, or any if there is none for a while."""
    await world.some_fencing()
    return _fencing_machine(world)


async def _crash_guard(world):
    """Alone, or with the agent that would start another; both come back (docs/fencing.md)."""
    machine = _fencing_machine(world)
    process = world.agent_of(machine)
    for one in machine.guards if process.wanted else ():
        one.kill()
        world.books.fire("crash-guard", machine.name)
    if world.random.random() < 0.3 and process.wanted:
        process.kill()
    await trio.lowlevel.checkpoint()


async def _freeze_guard(world):
    machine = _fencing_machine(world)
    frozen = list(machine.guards) if world.agent_of(machine).wanted else []
    for one in frozen:
        one.freeze()
        world.books.fire("freeze-guard", machine.name)
    await trio.sleep(world.random.uniform(0.5, 12.0))
    for one in frozen:
        one.thaw()


async def _cut_off(world):
    """A node with something fenced is away for longer than its lease, and others take over."""
    machine = await _some_fencing_machine(world)
    fences = machine in world.fencing()
    await keep_blocked(world, 14.0, 20.0, public_key=world.keys[machine.name].public)
    world.books.fire("cut-off", machine.name, times=fences)
    end_partitions(world)


async def _slow_store(world):
    world.disk.slow(world.random.uniform(0.05, 1.0))
    await for_a_while(world)
    world.disk.slow(USUAL_SYNC_S)


async def _stalled_store(world):
    world.disk.hold()
    await trio.sleep(world.random.uniform(0.5, 4.0))
    world.disk.release()


async def _full_store(world):
    world.disk.full = True
    await trio.sleep(world.random.uniform(0.5, 5.0))
    world.disk.full = False


async def _lost_journal(world):
    """An operator moves a journal aside, mostly while the driver's daemon is away."""
    machine = await _some_fencing_machine(world)
    process = world.agent_of(machine)
    process.wanted = False
    try:
        process.kill()
        machine.host.reachable = world.random.random() < 0.3
        machine.journal.forget_all()
        machine.forgotten |= machine.book.keys()
        world.books.fire("lost-journal", machine.name)
    finally:
        process.wanted = not machine.lost
    end = trio.current_time() + world.random.uniform(1.0, 25.0)
    if not machine.host.reachable:
        await trio.sleep(world.random.uniform(0.5, 6.0))
        _again(world, machine)
    await trio.sleep(max(0.0, end - trio.current_time()))
    machine.host.reachable = True


def _again(world, machine):
    """A node that has forgotten, and is in a session, is in another one; or its guard dies."""
    match world.random.randrange(4):
        case 0:
            cut = world.network.sever(public_key=world.keys[machine.name].public)
            world.books.fire("sever", cut, times=bool(cut))
        case 1:
            process = world.controllers[world.serving]
            if process.kill():
                world.books.fire("crash-controller", process.name)
        case 2:
            for one in machine.guards:
                one.kill()
                world.books.fire("crash-guard", machine.name)


async def _slow_journal(world):
    some = world.random.sample(world.machines, 5)
    for machine in some:
        machine.journal.sync_s = world.random.uniform(0.05, 2.0)
    await for_a_while(world)
    for machine in some:
        machine.journal.sync_s = USUAL_SYNC_S


async def _full_journal(world):
    some = world.random.sample(world.machines, 8)
    for machine in some:
        machine.journal.fault = FULL
    await for_a_while(world)
    for machine in some:
        machine.journal.fault = None


async def _driver_away(world):
    machine = world.random.choice(world.machines)
    machine.host.reachable = False
    await for_a_while(world)
    machine.host.reachable = True


async def _driver_silent(world):
    machine = world.random.choice(world.machines)
    if machine.silent is None:
        machine.silent = trio.Event()
        await trio.sleep(world.random.uniform(1.0, 12.0))
        machine.speak()
    else:
        await trio.lowlevel.checkpoint()


async def _driver_fails(world):
    for machine in world.random.sample(world.machines, 5):
        what = world.random.choice(("create", "start", "stop", "remove"))
        machine.host.fail_next(what, LaunchFailed("chance says so", machine.name))
    await trio.lowlevel.checkpoint()


async def _events_lost(world):
    machine = world.random.choice(world.machines)
    listening = machine.host.lose_events(world.owner(machine.name))
    world.books.fire("events-lost", machine.name, times=listening)
    await trio.lowlevel.checkpoint()


async def _clock_drifts(world):
    for clock in world.random.sample(world.clocks, 5):
        clock.drift(world.random.uniform(-0.05, 0.05))
        clock.on_look = lambda: world.books.fire("clock-drift")
    for machine in world.random.sample(world.machines, 5):
        machine.quartz.drift(world.random.uniform(-CLOCK_DRIFT_MAX, CLOCK_DRIFT_MAX))
        machine.quartz.on_look = lambda: world.books.fire("clock-drift")
    await trio.lowlevel.checkpoint()


async def _clock_steps(world):
    clock = world.random.choice(world.clocks)
    clock.offset_s += world.random.uniform(-1, 1) * 10 ** world.random.uniform(0, 5)
    clock.on_look = lambda: world.books.fire("clock-step")
    await trio.lowlevel.checkpoint()


FAULTS = {
    "crash-controller": _crash_controller,
    "crash-agent": _crash_agent,
    "crash-mid-commit": _crash_mid_commit,
    "crash-mid-write": _crash_mid_write,
    "crash-mid-call": _crash_mid_call,
    "crash-machine": _crash_machine,
    "agent-away": _agent_away,
    "lose-machine": _lose_machine,
    "hold": _hold,
    "crash-instance": _crash_instance,
    "unwell": _unwell,
    "crash-many": _crash_many,
    "crash-guard": _crash_guard,
    "freeze-guard": _freeze_guard,
    "usurp": contests.usurp,
    "freeze-leader": contests.freeze_leader,
    "freeze-follower": contests.freeze_follower,
    "leader-without-store": contests.leader_without_store,
    "follower-without-store": contests.follower_without_store,
    "etcd-out-of-reach": contests.etcd_out_of_reach,
    "etcd-restarts": contests.etcd_restarts,
    "relay-blocked": contests.relay_blocked,
    "late-assignment": contests.late_assignment,
    "drop": wires.drop,
    "delay": wires.delay,
    "duplicate": wires.duplicate,
    "reorder": wires.reorder,
    "partition": wires.partition,
    "partition-to-agents": wires.partition_to_agents,
    "partition-to-controller": wires.partition_to_controller,
    "cut-off": _cut_off,
    "sever": wires.sever,
    "slow-store": _slow_store,
    "stalled-store": _stalled_store,
    "store-full": _full_store,
    "lost-journal": _lost_journal,
    "slow-journal": _slow_journal,
    "journal-full": _full_journal,
    "driver-away": _driver_away,
    "driver-silent": _driver_silent,
    "driver-fails": _driver_fails,
    "events-lost": _events_lost,
    "clock-drift": _clock_drifts,
    "clock-step": _clock_steps,
}
# Those that only two on one store meet, or only controllers that elect a leader: enabled wherever
# there are such.
OF_STORES = ("usurp",)
OF_LEADERS = (
    "freeze-leader",
    "freeze-follower",
    "leader-without-store",
    "follower-without-store",
    "etcd-out-of-reach",
    "etcd-restarts",
    "relay-blocked",
)
# Effects that no fault is chosen for: crashes bring them.
EFFECTS = (
    "lease-ran-out",
    "usurp-with-agents",
    "led",
    "deposed-write-refused",
    "unsynced-commit-lost",
    "unsynced-journal-lost",
    "call-outlives-caller",
    "preempted",
    "partitioned",
)
