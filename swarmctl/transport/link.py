"""The agent's end, whatever carries it: one connection at a time, renewed for ever.

A :data:`Dial` makes one connection to one address or raises why not; :class:`SupervisedLink`
dials the addresses in turn, waits longer after each round in which none answered (doubled up to a
bound, jittered so that a fleet does not come back in one instant), and hands the live connection
to the caller. A key that is refused is tried again like everything else: it may be enrolled later.

A controller that is frozen takes connections and never shakes hands. Where there are other
addresses it may hold up the round for :data:`HANG_S` only, and for twice as long each further time
that it hangs: one that is merely overrun by a fleet is given the time that it needs.

Each connection has a number, and carries traffic only once the caller has adopted it (see
:class:`swarmctl.transport.api.Link`). What had arrived when it was lost is kept until the caller
has read it or adopted the next.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import attrs
import trio

from swarmctl.proto.errors import PeerUnreachable
from swarmctl.proto.limits import RECONNECT_MAX_S, RECONNECT_MIN_S
from swarmctl.transport.api import LinkFailure, LinkStatistics
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.errors import (
    HandshakeFailed,
    HandshakeLate,
    InvalidEndpoint,
    KeyRefused,
    LinkLost,
    PayloadTooLarge,
)
from swarmctl.transport.readiness import running

# Of an address that does not answer, where there are others: an answer takes milliseconds, and a
# leader that has taken over waits for its nodes no longer than some seconds.
HANG_S: Final = 2.0
# Doublings: half a minute at the most, for one that is frozen must not keep us from the others.
_HANGS_MAX: Final = 4
# So late, it was this process that was kept from running: that says nothing of the other end.
_OWN_DELAY_S: Final = 0.5


class Connection(Protocol):
    """One established connection."""

    malformed: int
    """Messages dropped because they were not one frame of bounded size."""

    def send(self, payload: bytes) -> None:
        """Queue a payload; raises Backpressure, or LinkLost."""

    def receive_nowait(self, count_max: int) -> list[bytes]:
        """What has arrived, up to ``count_max``."""

    async def wait_readable(self) -> None:
        """Wait for a payload or for the end; may return without either."""

    async def wait_ended(self) -> None:
        """Wait until the connection is lost."""

    def close(self) -> None:
        """Let go of it; wakes whoever waits."""


Dial = Callable[[str], Awaitable[Connection]]


@attrs.frozen
class Backoff:
    """Waits between rounds of attempts, in seconds."""

    minimum_s: float = RECONNECT_MIN_S
    maximum_s: float = RECONNECT_MAX_S

    def delay_s(self, rounds: int, draw: float) -> float:
        """The wait after ``rounds`` fruitless rounds; ``draw`` in [0, 1) jitters it by a half."""
        # The exponent is bounded only to keep the number finite.
        delay = min(self.maximum_s, self.minimum_s * 2.0 ** min(rounds, 30))
        return float(delay * (0.5 + draw))


class SupervisedLink:
    """See :class:`swarmctl.transport.api.Link`; :meth:`run` must run beside its user."""

    def __init__(
        self,
        dial: Dial,
        endpoints: Sequence[str],
        bounds: Bounds,
        backoff: Backoff,
        random_: random.Random,
    ) -> None:
        if not endpoints:
            raise InvalidEndpoint("a link needs at least one address")
        self.last_failure: LinkFailure | None = None
        self._dial = dial
        self._endpoints = tuple(endpoints)
        self._position = 0
        # By address: how often in a row it took no notice of us.
        self._hangs: dict[str, int] = {}
        self._bounds = bounds
        self._backoff = backoff
        self._random = random_
        self._live: Connection | None = None
        self._number = 0
        self._adopted = 0
        self._leftover: list[bytes] = []
        self._failures = 0
        self._sent = 0
        self._received = 0
        self._malformed = 0
        self._changed = trio.Event()
        self._failed = trio.Event()
        self._hang_up = trio.CancelScope()

    # --- state --------------------------------------------------------------------------------

    @property
    def connection(self) -> int:
        """How many connections were made so far."""
        return self._number

    @property
    def connected(self) -> bool:
        """Whether a connection is alive now."""
        return self._live is not None

    @property
    def endpoint(self) -> str:
        """The address of the live connection, or the one to try."""
        return self._endpoints[self._position % len(self._endpoints)]

    @property
    def has_others(self) -> bool:
        """Whether there are other addresses than :attr:`endpoint`."""
        return len(self._endpoints) > 1

    async def wait_connected(self) -> int:
        """See :meth:`swarmctl.transport.api.Link.wait_connected`."""
        await trio.lowlevel.checkpoint()
        while self._live is None:
            await self._changed.wait()
        if self._adopted != self._number:
            self._adopted = self._number
            self._leftover = []
        return self._number

    async def wait_lost(self) -> None:
        """See :meth:`swarmctl.transport.api.Link.wait_lost`."""
        await trio.lowlevel.checkpoint()
        while self._live is not None and self._adopted == self._number:
            await self._changed.wait()

    async def wait_failure(self) -> LinkFailure:
        """See :meth:`swarmctl.transport.api.Link.wait_failure`."""
        seen = self._failures
        while self._failures == seen or self.last_failure is None:
            await self._failed.wait()
        return self.last_failure

    def statistics(self) -> LinkStatistics:
        """The counters at this moment."""
        return LinkStatistics(
            connections=self._number,
            failures=self._failures,
            received=self._received,
            sent=self._sent,
            malformed=self._malformed + (self._live.malformed if self._live else 0),
        )

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- traffic ------------------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """See :meth:`swarmctl.transport.api.Link.send`."""
        if len(payload) > self._bounds.payload_bytes:
            raise PayloadTooLarge(
                f"a payload of {len(payload)} bytes; the bound is {self._bounds.payload_bytes}"
            )
        self._adopted_connection().send(payload)
        self._sent += 1

    async def receive_batch(self) -> list[bytes]:
        """See :meth:`swarmctl.transport.api.Link.receive_batch`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        others_had_their_turn = False
        while True:
            batch = self._take_leftover() or self._adopted_connection().receive_nowait(
                self._bounds.batch_max
            )
            if batch:
                self._received += len(batch)
                if not others_had_their_turn:
                    # Shielded: what is taken is handed out.
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return batch
            await self._adopted_connection().wait_readable()
            others_had_their_turn = True

    def _take_leftover(self) -> list[bytes]:
        batch = self._leftover[: self._bounds.batch_max]
        del self._leftover[: self._bounds.batch_max]
        return batch

    def _adopted_connection(self) -> Connection:
        if self._live is None or self._adopted != self._number:
            why = self.last_failure
            raise LinkLost(
                why.what if why is not None else "the connection to the controller is lost",
                self.endpoint,
                why.hint if why is not None else "",
            )
        return self._live

    # --- supervision --------------------------------------------------------------------------

    def use_next(self) -> None:
        """See :meth:`swarmctl.transport.api.Link.use_next`."""
        self._position += 1
        self._hang_up.cancel()

    def use_addresses(self, endpoints: Sequence[str]) -> None:
        """See :meth:`swarmctl.transport.api.Link.use_addresses`."""
        if not endpoints:
            raise InvalidEndpoint("a link needs at least one address")
        now = self.endpoint
        self._endpoints = tuple(endpoints)
        self._position = self._endpoints.index(now) if now in self._endpoints else 0

    async def run(self) -> None:
        """Keep a connection until cancelled."""
        fruitless = 0
        while True:
            # A cut by use_next before the dial is over ends the dial as well.
            with trio.CancelScope() as self._hang_up:
                try:
                    connection = await self._attempt(self.endpoint)
                except (PeerUnreachable, HandshakeFailed, KeyRefused) as failure:
                    self._note_failure(failure)
                    fruitless += 1
                else:
                    fruitless = 0
                    await self._hold(connection)
            rounds, others_left = divmod(fruitless, len(self._endpoints))
            # Within a round the next address is tried soon; a whole fruitless round costs more.
            delay_s = self._backoff.delay_s(0 if others_left else rounds, self._random.random())
            await trio.sleep(delay_s)

    async def _attempt(self, endpoint: str) -> Connection:
        """Dial; see the module's docstring for how long that may take."""
        if len(self._endpoints) == 1:
            return await self._dial(endpoint)
        hangs = self._hangs.get(endpoint, 0)
        with trio.move_on_after(HANG_S * 2.0**hangs) as scope:
            connection = await self._dial(endpoint)
            self._hangs.pop(endpoint, None)
            return connection
        if trio.current_time() - scope.deadline < _OWN_DELAY_S:
            self._hangs[endpoint] = min(hangs + 1, _HANGS_MAX)
        raise HandshakeLate.at(endpoint)

    async def _hold(self, connection: Connection) -> None:
        self._live = connection
        self._number += 1
        self.last_failure = None
        self._note_change()
        try:
            await connection.wait_ended()
        finally:
            self._live = None
            # Bounded by the receive queue: nothing comes in any more.
            while self._adopted == self._number and (
                batch := connection.receive_nowait(self._bounds.batch_max)
            ):
                self._leftover += batch
            self._malformed += connection.malformed
            connection.close()
            self._note_change()

    def _note_failure(self, failure: LinkFailure) -> None:
        self.last_failure = failure
        self._failures += 1
        self._position += 1
        # Apart from the changes: whoever waits for failures is not woken by every connection.
        self._failed.set()
        self._failed = trio.Event()


@asynccontextmanager
async def supervised(link: SupervisedLink) -> AsyncIterator[SupervisedLink]:
    """Run a link's supervision for the length of a block."""
    async with running(link.run):
        yield link
