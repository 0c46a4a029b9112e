"""Many requests over one connection, sent ahead of their answers.

Each is a request by itself, answered by itself. A window bounds how many have no answer yet; a
controller that is busy makes it smaller (by half, once in the time it asks us to wait), and each
answer makes it larger again, so that a client settles at what the controller can do. What was
refused is sent again after the time that the refusal names, a little spread out, so that clients
that were refused together do not come again together.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, Final

from attrs import define, field, frozen

from swarmctl.proto import limits
from swarmctl.proto.errors import Busy, DeadlineExceeded, SwarmError, from_wire
from swarmctl.proto.messages import Failure, Message, Refuse, Reply, Request
from swarmctl.transport.errors import Backpressure

# Requests without an answer: a fifteenth of a second's worth for a controller that does 15,000 a
# second, and no more than a socket holds.
WINDOW: Final = 1_000
_WINDOW_MIN: Final = 8
# Waits are stretched by up to this share.
_SPREAD: Final = 0.25

Send = Callable[[Message], None]
Receive = Callable[[float], Message]


def pause_s(busy: Busy, attempt: int, left_s: float) -> float | None:
    """How long to wait before a refused request is sent again; None when it should not be.

    Args:
        busy: the refusal.
        attempt: which one was refused, from 1 on.
        left_s: what is left of the request's time.
    """
    if not busy.retry_ms or attempt >= limits.BUSY_ATTEMPTS_MAX:
        return None
    wait_s = busy.retry_ms / 1000 * random.uniform(1.0, 1.0 + _SPREAD)  # noqa: S311 - no secret
    return wait_s if wait_s < left_s else None


@frozen
class Answer:
    """What became of a request: its place among all, and a result or an error.

    ``took_s`` is from when it was first sent, ``refusals`` how often it was refused as busy.
    """

    index: int
    result: Any
    error: SwarmError | None
    took_s: float
    refusals: int


@define(order=False)
class _Asked:
    """A request on its way."""

    index: int
    params: dict[str, Any]
    began: float
    deadline: float
    refusals: int = 0


@define
class Pipeline:
    """Requests of one method over one connection.

    Args:
        send: hands a message to the connection.
        receive: the next message, within so many seconds; DeadlineExceeded when none came.
        next_id: a number that no other request on the connection has.
        method: what is asked.
        timeout_s: for each request, from its first sending, refusals included.
        window: how many may have no answer.
    """

    send: Send
    receive: Receive
    next_id: Callable[[], int]
    method: str
    timeout_s: float = limits.RPC_TIMEOUT_S
    window: int = WINDOW
    _open: float = field(init=False)
    _narrowed_until: float = 0.0
    _asked: dict[int, _Asked] = field(factory=dict)
    # By when they are to be sent again; the number keeps the order of those of one moment.
    _refused: list[tuple[float, int, _Asked]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self._open = float(self.window)

    def run(self, each: Iterable[dict[str, Any]]) -> Iterator[Answer]:
        """Ask with each of the parameters; the answers, in the order in which they come.

        Raises:
            PeerUnreachable: the connection was lost; what has no answer may have been done.
        """
        todo = enumerate(each)
        more = True
        while more or self._asked or self._refused:
            more = self._fill(todo, more=more)
            try:
                message = self.receive(self._wait_s())
            except DeadlineExceeded:
                yield from self._expired()
                continue
            answer = self._take(message)
            if answer is not None:
                yield answer

    def _fill(self, todo: Iterator[tuple[int, dict[str, Any]]], *, more: bool) -> bool:
        """Send as many as the window takes; False when there are no new ones."""
        while len(self._asked) < self._open:
            now = monotonic()
            if self._refused and self._refused[0][0] <= now:
                asked = heapq.heappop(self._refused)[2]
            elif more:
                index, params = next(todo, (-1, {}))
                if index < 0:
                    return False
                asked = _Asked(index, params, now, now + self.timeout_s)
            else:
                break
            if not self._ask(asked):
                break
        return more

    def _ask(self, asked: _Asked) -> bool:
        """Send one; False when the connection takes no more at present."""
        number = self.next_id()
        left_ms = max(1, int((asked.deadline - monotonic()) * 1000))
        try:
            self.send(Request(number, self.method, asked.params, left_ms))
        except Backpressure:
            heapq.heappush(self._refused, (monotonic(), asked.index, asked))
            # Answers make room; without any there is nothing to wait for but the other end.
            self._open = max(_WINDOW_MIN, float(len(self._asked)))
            return False
        self._asked[number] = asked
        return True

    def _wait_s(self) -> float:
        """Until something has to be sent again, or is too late."""
        until = math.inf
        if self._asked:
            # Nearly the earliest: those that were asked first are the first in the table.
            until = next(iter(self._asked.values())).deadline
        if self._refused and len(self._asked) < self._open:
            until = min(until, self._refused[0][0])
        return max(0.0, min(self.timeout_s, until - monotonic()))

    def _take(self, message: Message) -> Answer | None:
        if isinstance(message, Refuse):
            raise from_wire(message.code, message.what, message.where, message.hint)
        if not isinstance(message, Reply | Failure):
            return None
        asked = self._asked.pop(message.id, None)
        if asked is None:
            return None  # Late, and given up.
        now = monotonic()
        if isinstance(message, Reply):
            self._open = min(float(self.window), self._open + 1.0)
            return Answer(asked.index, message.result, None, now - asked.began, asked.refusals)
        error = from_wire(message.code, message.what, message.where, message.hint, message.retry_ms)
        if isinstance(error, Busy):
            asked.refusals += 1
            wait_s = pause_s(error, asked.refusals, asked.deadline - now)
            if wait_s is not None:
                heapq.heappush(self._refused, (now + wait_s, asked.index, asked))
                self._narrow(now, error.retry_ms / 1000)
                return None
        return Answer(asked.index, None, error, now - asked.began, asked.refusals)

    def _narrow(self, now: float, for_s: float) -> None:
        """The controller is busy; those that are refused together count once."""
        if now >= self._narrowed_until:
            self._narrowed_until = now + for_s
            self._open = max(_WINDOW_MIN, self._open / 2)

    def _expired(self) -> Iterator[Answer]:
        """Those whose time is over."""
        now = monotonic()
        for number, asked in list(self._asked.items()):
            if now >= asked.deadline:
                del self._asked[number]
                error = DeadlineExceeded(f"no answer to {self.method} in {self.timeout_s:g} s")
                yield Answer(asked.index, None, error, now - asked.began, asked.refusals)
