"""Several controllers on an etcd: leases and transactions of its gateway, as elections use them.

The election is the product's, but for its thread, which here is a task of the controller's process:
a look is made at once, and what it would have waited for passes afterwards.  The store's content is
on the world's disk, and whoever leads writes there under the guard of its lease, as in the ledger.
Each controller may be cut off from the etcd, or frozen.
"""

import attrs
import trio

from swarmctl.controller.election import Election
from swarmctl.controller.etcd import client as wire
from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.etcd.faults import NoEtcd
from swarmctl.controller.etcd.ledger import GIVE_UP_S

ADDRESS = EtcdAddress(("10.0.0.9:2379",))
# What an answer takes while nothing is wrong.
_ANSWERS_WITHIN_S = (0.001, 0.01)
# It lets a lease end a little late, never early.
_LATE_S = 0.5


@attrs.define
class _Lease:
    ttl_s: int
    ends_at: float


class Etcd:
    """Keys, some of them on leases."""

    def __init__(self, world):
        self.world = world
        self.random = world.chance("etcd")
        self._entries = {}
        self._leases = {}
        self._granted = 0
        self._stopped = False

    def stop(self, now):
        """Nobody reaches it, and no time passes for its leases."""
        self._expire(now)
        self._stopped = True

    def start(self, now):
        """It has what it had, and does not know how much of a lease was left."""
        self._stopped = False
        for lease in self._leases.values():
            lease.ends_at = self._end(now, lease.ttl_s)

    def holds(self, key, lease, now):
        """Whether ``key`` is there, on that lease."""
        self._expire(now)
        return key in self._entries and self._entries[key][1] == lease

    def answer(self, path, body, now):
        """What the gateway answers at ``now``."""
        self._expire(now)
        if path == "/v3/kv/txn":
            holds = all(wire.decode(one["key"]) not in self._entries for one in body["compare"])
            done = [self._do(one) for one in body["success" if holds else "failure"]]
            return {"succeeded": holds, "responses": done}
        lease = int(body.get("ID", 0))
        if path == "/v3/lease/grant":
            self._granted += 1
            ttl_s = int(body["TTL"])
            self._leases[self._granted] = _Lease(ttl_s, self._end(now, ttl_s))
            return {"ID": str(self._granted), "TTL": str(ttl_s)}
        if path == "/v3/lease/keepalive":
            found = self._leases.get(lease)
            if found is None:
                return {"result": {}}
            found.ends_at = self._end(now, found.ttl_s)
            return {"result": {"TTL": str(found.ttl_s)}}
        assert path == "/v3/lease/revoke", path
        self._leases.pop(lease, None)
        self._expire(now)
        return {}

    def _end(self, now, ttl_s):
        return now + ttl_s + self.random.uniform(0, _LATE_S)

    def _expire(self, now):
        if self._stopped:
            return
        self._leases = {n: one for n, one in self._leases.items() if one.ends_at > now}
        self._entries = {
            key: (value, lease)
            for key, (value, lease) in self._entries.items()
            if not lease or lease in self._leases
        }

    def _do(self, operation):
        if "request_put" in operation:
            put = operation["request_put"]
            lease = int(put.get("lease", 0))
            self._entries[wire.decode(put["key"])] = (wire.decode(put["value"]), lease)
            return {"response_put": {}}
        asked = operation["request_range"]
        first = wire.decode(asked["key"])
        end = wire.decode(asked["range_end"]) if "range_end" in asked else first + b"\0"
        there = self._entries | {ADDRESS.key("fact/revision"): (self._revision, 0)}
        found = [
            {"key": wire.encode(key), "value": wire.encode(value)}
            for key, (value, _) in sorted(there.items())
            if first <= key < end
        ]
        return {"response_range": {"kvs": found}}

    @property
    def _revision(self):
        return b"%d" % self.world.disk.revision


class EtcdLine:
    """One controller's connection: the product's client as far as an election uses it.

    ``fault`` says by what it is out of reach, if it is; ``spent_s`` is what the calls of this look
    have waited.
    """

    def __init__(self, etcd):
        self.etcd = etcd
        self.fault = ""
        self.deaf = False
        self.spent_s = 0.0
        self.mended = trio.Event()

    def call(self, path, body, *, deadline_s):
        """One request."""
        if self.fault:
            if self.deaf:
                self.etcd.answer(path, body, self.now())  # It is done, and the answer is lost.
            self.spent_s += deadline_s
            self.etcd.world.books.fire(self.fault)
            raise NoEtcd("no member of etcd serves", where="simulated etcd")
        self.spent_s += self.etcd.random.uniform(*_ANSWERS_WITHIN_S)
        return self.etcd.answer(path, body, self.now())

    def transact(self, compare, success, failure, *, deadline_s):
        """A transaction, whose comparisons are for absent keys."""
        assert all(one["target"] == "CREATE" for one in compare), compare
        body = {"compare": compare, "success": success, "failure": failure}
        return self.call("/v3/kv/txn", body, deadline_s=deadline_s)

    def close(self):
        """Nothing to let go of."""

    def now(self):
        """The time at which the caller is, in the middle of a look."""
        return trio.current_time() + self.spent_s

    def cut(self, fault, *, deaf):
        """Etcd is out of reach; what is asked is done all the same if only the line is ``deaf``."""
        self.fault, self.deaf = fault, deaf

    def mend(self):
        """Etcd is in reach again."""
        self.fault, self.deaf = "", False
        self.mended.set()
        self.mended = trio.Event()

    async def wait_mended(self):
        """As long as a ledger tries.

        Raises:
            NoEtcd: it is cut off still; nothing was done.
        """
        with trio.move_on_after(GIVE_UP_S):
            while self.fault:
                await self.mended.wait()
        if self.fault:
            self.etcd.world.books.fire(self.fault)
            raise NoEtcd("no member of etcd serves", where="simulated etcd")


class SimElection(Election):
    """The product's judgement, in a task of ``nursery`` in place of a thread."""

    def __init__(self, process, nursery, address, me):
        self.line = process.line
        super().__init__(address, me, now=self.line.now, client=self.line)
        self._process = process
        self._nursery = nursery
        self._token = self
        self._told = []

    def run_sync_soon(self, function, *args):
        """What the thread tells trio; it arrives when the look is over."""
        self._told.append((function, args))

    def start(self):
        """See Election."""
        self._nursery.start_soon(self._look_again_and_again)

    async def resign(self):
        """Processes here end as by ``kill -9`` only: the lease runs out by itself."""
        await trio.lowlevel.checkpoint()

    async def _look_again_and_again(self):
        while True:
            await self._process.thawed()
            pause_s = self._turn()
            spent_s, self.line.spent_s = self.line.spent_s, 0.0
            await trio.sleep(spent_s)
            await self._process.thawed()
            told, self._told = self._told, []
            for function, args in told:
                function(*args)
            await trio.sleep(pause_s)
