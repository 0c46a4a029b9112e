"""Who leads: a lease in etcd, kept alive by a thread of its own.

Theory of operation. Each controller has a lease. Whoever finds no key ``leader`` puts one there on
its lease, which etcd does for one of them only, and leads while the lease lives: etcd takes the key
away when the lease has not been renewed for its time to live. The thread renews it four times in
that, so that neither planning nor a slow disk of ours holds a renewal up; a process that is stopped
renews nothing, and another one leads when the time is over.

When it cannot renew, a leader ends by its own clock (which counts while the machine sleeps),
measured from the moment before the last renewal was sent: never later than etcd. Even a leader that
has not noticed yet does no harm: its transactions compare the lease (:mod:`...etcd.ledger`), and
nodes refuse its term once they have seen a higher one.

A follower asks four times a second who leads and where, which revision the store has, and which
controllers there are. What it was told last is a :class:`View`.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio
from attrs import evolve, frozen

from swarmctl.controller.etcd import client as etcd
from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.etcd.client import EtcdClient
from swarmctl.controller.etcd.faults import EtcdRefused, NoEtcd
from swarmctl.controller.etcd.ledger import LeaseGuard
from swarmctl.proto.errors import StorageFault

_log = structlog.get_logger(__name__)

# How long a leader may be silent. Long enough for etcd to lose a member and elect another, so that
# this does not change our leader too; short, since nobody is served meanwhile.
LEASE_TTL_S: Final = 4
_RENEW_S: Final = LEASE_TTL_S / 4
# A follower looks this often; it is the most that an election waits after the lease is over.
_LOOK_S: Final = 0.25
# Longest wait of the thread in one request, so that it sees the end of its lease.
_ASK_S: Final = 1.7
# Giving the lease back at the end must not hold up the end.
_RESIGN_S: Final = 1.0


def _boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@frozen
class Place:
    """A controller: an id for this run of it, and its addresses."""

    id: str
    addresses: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """As it is kept in etcd."""
        return json.dumps({"id": self.id, "addresses": self.addresses}).encode()


def _place(value: bytes) -> Place:
    try:
        loaded: Any = json.loads(value)
        return Place(str(loaded["id"]), tuple(str(one) for one in loaded["addresses"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageFault(
            "what is kept in etcd of a controller cannot be read",
            hint="something else writes below this prefix: choose another",
        ) from error


@frozen
class View:
    """What a controller knows of the others.

    Args:
        leader: who leads; None while nobody does, or nobody knows.
        guard: set while *we* lead.
        controllers: the addresses of all that ever joined, the leader's first.
        revision: changes with every change of the store.
        fault: why etcd cannot be asked; empty when it can.
    """

    leader: Place | None = None
    guard: LeaseGuard | None = None
    controllers: tuple[str, ...] = ()
    revision: bytes = b""
    fault: str = ""


class Election:
    """One controller's part in it; :meth:`start` starts the thread, :meth:`resign` ends it.

    Args:
        address: of the etcd.
        me: who we are, and where others reach us.
        now: seconds of a clock that counts while the machine sleeps.
        client: for the thread alone; simulations bring their own.
    """

    def __init__(
        self,
        address: EtcdAddress,
        me: Place,
        *,
        now: Callable[[], float] = _boot_clock,
        client: EtcdClient | None = None,
    ) -> None:
        self.view = View()
        self._me = me
        self._now = now
        self._client = client or EtcdClient(address)
        self._leader_key = address.key("leader")
        self._members = address.key("member/")
        self._revision_key = address.key("fact/revision")
        self._changed = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        # Set by trio: whether to stand, and whether to end.
        self._standing = threading.Event()
        self._ending = threading.Event()
        self._stir = threading.Event()
        self._ended = trio.Event()
        # Of the thread.
        self._lease = 0
        self._renewed_at = 0.0
        self._asked_at = 0.0
        self._leads = False
        self._known = View()
        self._thread = threading.Thread(target=self._run, name="election", daemon=True)

    # --- trio's side --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look; it stands for election once :meth:`stand` is called."""
        self._thread.start()

    def stand(self) -> None:
        """Lead, if nobody else does."""
        self._standing.set()
        self._stir.set()

    def step_down(self) -> None:
        """Lead no more, and do not stand again until told; another one may at once."""
        self._standing.clear()
        self._stir.set()

    @property
    def leads_surely(self) -> bool:
        """Whether we lead at this moment by our own clock, whatever was last looked at.

        A process that was stopped asks this before it grants what only a leader may.
        """
        return self._leads and self._now() < self._renewed_at + LEASE_TTL_S

    async def wait_change(self) -> None:
        """Wait until :attr:`view` is another."""
        await self._changed.wait()

    async def resign(self) -> None:
        """Give the lease back, so that another one leads at once; and end."""
        self._ending.set()
        self._stir.set()
        with trio.move_on_after(_ASK_S + 2 * _RESIGN_S, shield=True):
            await self._ended.wait()

    def _take(self, view: View) -> None:
        if view != self.view:
            self.view = view
            self._changed.set()
            self._changed = trio.Event()

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            try:
                while not self._ending.is_set():
                    self._stir.wait(self._turn())
                    self._stir.clear()
            finally:
                self._give_back()
                self._client.close()
                self._token.run_sync_soon(self._ended.set)
        except trio.RunFinishedError:
            # Trio has ended without us: the lease runs out by itself.
            return

    def _turn(self) -> float:
        """One look; how long to wait for the next."""
        try:
            self._check_end()
            if self._leads and not self._standing.is_set():
                self._give_back()
            self._renew_if_due()
            self._look()
        except (NoEtcd, EtcdRefused) as error:
            if str(error) != self._known.fault:
                _log.warning("etcd cannot be asked", error=str(error))
            # Who leads is not known any more: whoever did may have lost it since.
            self._known = evolve(self._known, fault=str(error), leader=None)
            self._check_end()
        self._tell()
        return _LOOK_S

    def _tell(self) -> None:
        guard = LeaseGuard(self._leader_key, self._lease) if self._leads else None
        leader = self._me if self._leads else self._known.leader
        view = evolve(self._known, guard=guard, leader=leader)
        self._token.run_sync_soon(self._take, view)

    def _check_end(self) -> None:
        """By our own clock: the lease may be over, and another one lead."""
        if self._lease and self._now() >= self._renewed_at + LEASE_TTL_S:
            if self._leads:
                _log.warning("the lease was not renewed in time: not leading any more")
            self._lease, self._leads = 0, False

    def _renew_if_due(self) -> None:
        now = self._now()
        if not self._lease:
            answer = self._ask("/v3/lease/grant", {"TTL": str(LEASE_TTL_S)})
            self._lease, self._renewed_at = int(answer["ID"]), now
            self._asked_at = now
            # Durable: a controller that is down for now stays in contexts and tokens.
            for one in self._me.addresses:
                self._client.transact(
                    [],
                    [etcd.put(self._members + one.encode(), self._me.to_bytes())],
                    [],
                    deadline_s=_ASK_S,
                )
        elif now - self._asked_at >= _RENEW_S:
            self._asked_at = now
            answer = self._ask("/v3/lease/keepalive", {"ID": str(self._lease)})
            left_s = int(answer.get("result", {}).get("TTL", "0"))
            if left_s > 0:
                self._renewed_at = now
            else:
                if self._leads:
                    _log.warning("the lease has run out: not leading any more")
                self._lease, self._leads = 0, False

    def _look(self) -> None:
        """Who leads, and what there is; stands for it when nobody does."""
        end = etcd.encode(etcd.after_prefix(self._members))
        members = {"request_range": {"key": etcd.encode(self._members), "range_end": end}}
        look = [etcd.get(self._leader_key), etcd.get(self._revision_key), members]
        compare, success = [], look
        if self._lease and self._standing.is_set() and not self._leads:
            compare = [etcd.is_absent(self._leader_key)]
            mine = evolve(self._me, id=f"{self._me.id}-{self._lease}")
            success = [etcd.put(self._leader_key, mine.to_bytes(), self._lease), *look]
        answer = self._client.transact(compare, success, look, deadline_s=self._patience_s())
        ranges = [
            etcd.entries(one["response_range"])
            for one in answer["responses"]
            if "response_range" in one
        ]
        leader = _place(ranges[0][0][1]) if ranges[0] else None
        # A key of ours on an earlier lease of ours is not one to lead by: it is about to go.
        ours = leader is not None and leader.id == f"{self._me.id}-{self._lease}"
        if ours != self._leads and (not ours or self._standing.is_set()):
            # Also after a request whose answer was lost: the key says it.
            self._leads = ours and bool(self._lease)
            _log.info("leading" if self._leads else "not leading any more", id=self._me.id)
        known = [key[len(self._members) :].decode() for key, _ in ranges[2]]
        first = leader.addresses if leader is not None else ()
        self._known = View(
            leader=leader,
            controllers=tuple(dict.fromkeys((*first, *known))),
            revision=ranges[1][0][1] if ranges[1] else b"",
        )

    def _ask(self, path: str, body: etcd.Json) -> etcd.Json:
        return self._client.call(path, body, deadline_s=self._patience_s())

    def _patience_s(self) -> float:
        """For one request: not beyond the end of our lease, which has to be noticed."""
        if not self._leads:
            return _ASK_S
        return max(0.0, min(_ASK_S, self._renewed_at + LEASE_TTL_S - self._now()))

    def _give_back(self) -> None:
        """The key goes with the lease, and whoever waits may lead at once."""
        lease, self._lease, self._leads = self._lease, 0, False
        if lease:
            try:
                self._client.call("/v3/lease/revoke", {"ID": str(lease)}, deadline_s=_RESIGN_S)
            except StorageFault as error:
                _log.info("the lease runs out by itself", error=str(error))
