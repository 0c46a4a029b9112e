"""Users: each has one service, asks for one change at a time, and knows what may be durable.

What a user's service is in the store is checked at every commit: it is as the last acknowledged
change left it, or as the one under way would.  An answer that was lost leaves both possible until
the disk shows which it is.
"""

import attrs
import trio

from swarmctl.controller.records import SlotOverride, SlotWish
from swarmctl.proto import codec
from swarmctl.proto.errors import (
    Busy,
    InternalError,
    StaleTerm,
    StorageFault,
    SwarmError,
    UserError,
    sole_error,
)
from swarmctl.spec import wire
from swarmctl.spec.models import (
    ContainerSpec,
    HealthCheck,
    HealthKind,
    Resources,
    ServiceSpec,
    Template,
)
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.rpc import RpcCaller

REPLICAS_MAX = 10
# The service whose instances are asked whether they are well.
CHECKED = "db"
CHECK = HealthCheck(HealthKind.COMMAND, ("well",), interval_s=2.0, timeout_s=1.0, retries=2)
_PATIENCE_S = 8.0
_JOB_COPIES = 6
# How likely it is in a second that a job is removed.
_JOB_ENDS = 0.1


@attrs.frozen
class Wish:
    """What a service should be in the store; ``spec`` None: not there."""

    spec: ServiceSpec | None = None
    stopped: bool = False
    generation: int = 0
    overrides: dict = attrs.field(factory=dict)

    def is_in(self, record):
        """Whether ``record`` (None: there is none) says the same."""
        if self.spec is None or record is None:
            return self.spec is None and record is None
        return (self.spec, self.stopped, self.generation, self.overrides) == (
            record.spec,
            record.stopped,
            record.generation,
            record.overrides,
        )

    def override(self, slot, **changes):
        """With the exception of ``slot`` changed."""
        changed = attrs.evolve(self.overrides.get(slot, SlotOverride()), **changes)
        overrides = {k: v for k, v in self.overrides.items() if k != slot}
        if changed.wish is not None or changed.generation:
            overrides[slot] = changed
        return attrs.evolve(self, overrides=overrides)

    def following(self, *, stopped):
        """The whole service is stopped or started: single slots follow again."""
        wish = attrs.evolve(self, stopped=stopped)
        for slot in self.overrides:
            wish = wish.override(slot, wish=None)
        return wish

    def with_spec(self, spec):
        """Another spec; exceptions of slots beyond it go."""
        kept = {slot: one for slot, one in self.overrides.items() if slot <= spec.replicas}
        return attrs.evolve(self, spec=spec, overrides=kept)


class User:
    """One user and her service. ``wish`` is acknowledged, ``next`` is under way."""

    def __init__(self, world, name, random, *, job=False):
        self.world = world
        self.name = name
        self.random = random
        self.job = job
        self.fenced = name == "fenced"
        self.wish = Wish()
        self.next = None
        self.landed = False
        self.completed = frozenset()
        self.resources = Resources(
            cpu_millis=random.choice((100, 150, 200)),
            memory_bytes=self._choice("memory", (0, 1, 2)) << 20,
            disk_bytes=self._choice("disk", (0, 0, 20)) << 20,
            named={"gpu": gpus} if (gpus := self._choice("gpu", (0, 0, 1, 2))) else {},
        )
        self.grace_s = random.choice((1.0, 3.0))
        self.restarted_at = {}
        self.priority = self._choice("priority", (0, 0, 50))

    def _choice(self, what, among):
        return self.world.chance(f"{self.name}'s {what}").choice(among)

    # --- what may be durable ----------------------------------------------------------------

    def synced(self, record):
        """A commit of the service has reached the disk."""
        books = self.world.books
        was = self.next if self.landed else self.wish
        if was.is_in(record):
            ok = True  # Written again as it was: a job's completions.
        else:
            ok = self.next is not None and not self.landed and self.next.is_in(record)
            self.landed = self.landed or ok
            if ok:
                self._note_restarts(was)
        books.check("write-is-asked-for", ok, lambda: f"{self.name} became {record}, not {was}")
        if self.job:
            self._note_completions(record)

    def _note_completions(self, record):
        """What counts as completed has run to its end, for the job that there is now."""
        invariants = self.world.invariants
        if record is None:
            invariants.forget_ends(self.name)
        completed = frozenset(() if record is None else record.completed)
        for slot in sorted(completed - self.completed):
            invariants.completed(self.name, slot)
        self.completed = completed

    def _note_restarts(self, was):
        """From now on what runs has to have begun later, where a restart was asked for."""
        if self.next.spec is None or was.spec is None:
            self.restarted_at.clear()
            return
        replicas = self.next.spec.replicas
        # A restart of a slot that is scaled away is asked for no more, though it may come again.
        for slot in [one for one in self.restarted_at if one > replicas]:
            del self.restarted_at[slot]
        for slot in range(1, replicas + 1):
            if _generation(self.next, slot) > _generation(was, slot):
                self.restarted_at[slot] = trio.current_time()

    def look(self):
        """Acknowledged writes are on the disk, now."""
        self._check("acknowledged-is-durable", self.world.disk.services().get(self.name))

    def look_at(self, record):
        """They are in what a controller begins with, too."""
        self._check("acknowledged-is-served", record)

    def _check(self, invariant, record):
        was = self.next if self.landed else self.wish
        self.world.books.check(
            invariant,
            was.is_in(record),
            lambda: f"{self.name} is {record}, and was acknowledged as {was}",
        )

    # --- asking -----------------------------------------------------------------------------

    async def live(self, until_s):
        """Ask for changes now and then."""
        while trio.current_time() < until_s:
            if self.job:
                await self._ask_for_job()
                continue
            await self.change(*self._choose())
            await trio.sleep(self.random.expovariate(1 / 2.5))

    async def _ask_for_job(self):
        """Once more after a while, under its name: copies of the one before may run still."""
        if self.wish.spec is None:
            await self.change(*self._apply(_JOB_COPIES))
        elif self.random.random() < _JOB_ENDS:
            await self.change("service.remove", {"names": [self.name]}, Wish())
            return
        await trio.sleep(1.0)

    async def make_room(self):
        """Faults are over, and all is to be as it was asked for."""

    def _choose(self):
        wish, random = self.wish, self.random
        if wish.spec is None:
            return self._apply(random.randint(1, REPLICAS_MAX))
        whole, slot = [self.name], random.randint(1, max(1, wish.spec.replicas))
        one = [f"{self.name}.{slot}"]
        what = random.choice(
            ("apply", "apply", "scale", "scale", "restart", "restart one", "stop", "start", "start",
             "stop one", "start one", "remove one", "remove")
        )  # fmt: skip
        if self.fenced and what in ("stop", "remove"):
            # What was fenced waits for leases: it is to run while there are faults.
            what = random.choice(("start", "start", what))
        if what == "apply":
            return self._apply(random.randint(0, REPLICAS_MAX))
        if what == "scale":
            count = random.randint(0, REPLICAS_MAX)
            after = wish.with_spec(wish.spec.with_replicas(count))
            return "service.scale", {"replicas": {self.name: count}}, after
        if what == "remove":
            return "service.remove", {"names": whole}, Wish()
        if what in ("stop", "start"):
            return f"service.{what}", {"names": whole}, wish.following(stopped=what == "stop")
        if what == "restart" or not wish.spec.replicas:
            after = attrs.evolve(wish, generation=wish.generation + 1)
            return "service.restart", {"names": whole}, after
        if what == "restart one":
            count = wish.overrides.get(slot, SlotOverride()).generation + 1
            return "service.restart", {"names": one}, wish.override(slot, generation=count)
        started = SlotWish.RUNNING if wish.stopped else None
        wishes = {"stop": SlotWish.STOPPED, "start": started, "remove": SlotWish.REMOVED}
        verb = what.partition(" ")[0]
        return f"service.{verb}", {"names": one}, wish.override(slot, wish=wishes[verb])

    def _apply(self, replicas):
        command = ("run_for=2",) if self.job else ()
        template = Template(
            container=ContainerSpec(self.random.choice("xyz"), command),
            resources=self.resources,
            stop_grace_period_s=self.grace_s,
            health=CHECK if self.name == CHECKED else None,
            job=self.job,
            fenced=self.fenced,
        )
        fencing = "lease" if self.fenced else "none"
        spec = ServiceSpec(
            self.name,
            template,
            replicas,
            driver="sim",
            fencing=fencing,
            priority=self.priority,
        )
        params = {"services": [wire.encode_service(spec)]}
        return "service.apply", params, self.wish.with_spec(spec)

    async def change(self, method, params, after):
        """Ask for one change, and find out what came of it."""
        world = self.world
        self.next, self.landed = after, False
        self.world.trace.note("asked", self.name, method)
        try:
            with trio.fail_after(_PATIENCE_S):
                await self._request(method, params)
        except (trio.TooSlowError, SwarmError) as error:
            world.trace.note("refused", self.name, getattr(error, "code", "too-slow"))
            self._refused(error)
            if isinstance(error, Busy | StorageFault | UserError | StaleTerm):
                world.books.check("refused-is-not-done", not self.landed, f"{self.name}: {error}")
            else:
                await self._find_out()
        else:
            world.trace.note("acknowledged", self.name, method)
            same = self.wish == after
            world.books.check(
                "acknowledged-is-synced",
                self.landed or same,
                lambda: f"{method} of {self.name} was acknowledged and is not on the disk",
            )
            self.landed = True
        if self.landed:
            self.wish = after
        self.next = None
        self.landed = False

    def _refused(self, error):
        self.world.books.check(
            "no-defect", not isinstance(error, InternalError), lambda: f"answered: {error}"
        )

    async def _find_out(self):
        """Nobody said whether it was done: wait until it cannot happen any more."""
        await trio.sleep(2.0)
        while not self.world.disk.idle:  # noqa: ASYNC110 - of the disk, which has no event
            await trio.sleep(0.5)

    async def _request(self, method, params):
        self.world.user_starts += 1
        await request(self.world, self.random, method, params)


class Bulk(User):
    """One whose few, large copies matter least, and fill most machines: they are preempted.

    Where all of it has room is nobody's affair: in the end she takes it away.
    """

    def __init__(self, world, name, random):
        super().__init__(world, name, random)
        self.resources = Resources(cpu_millis=400)
        self.priority = -10

    async def live(self, until_s):
        """Fill the machines, and now and then so many of them."""
        while trio.current_time() < until_s:
            await self.change(*self._choose())
            await trio.sleep(self.random.expovariate(1 / 8))

    def _choose(self):
        return self._apply(self.random.randint(12, 19))

    async def make_room(self):
        """She is done."""
        while self.wish.spec is not None:
            await self.change("service.remove", {"names": [self.name]}, Wish())


async def request(world, random, method, params):
    """Ask whichever controller answers, over a connection of its own.

    Raises:
        SwarmError: it was refused, or nobody knows.
    """
    pair = KeyPair(world.admin.public, world.admin.secret)
    caller = RpcCaller()
    number = random.randrange(len(world.endpoints))
    addresses = world.endpoints[number:] + world.endpoints[:number]
    try:
        async with (
            world.network.open_link(addresses, world.identity.public_key, pair) as link,
            trio.open_nursery() as nursery,
        ):
            await link.wait_connected()
            nursery.start_soon(_listen, link, caller)
            await caller.call(
                b"c",
                lambda message: link.send(codec.encode(message)),
                method,
                params,
                timeout_s=_PATIENCE_S,
            )
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise sole_error(group) from group


async def _listen(link, caller):
    while True:
        for payload in await link.receive_batch():
            caller.on_message(b"c", codec.decode(payload))


def _generation(wish, slot):
    return wish.generation + wish.overrides.get(slot, SlotOverride()).generation
