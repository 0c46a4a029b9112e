"""Simple requests on their way in: let in by time, served by turns of the peers.

Theory of operation. Each peer has a queue of its own, and turns go round: a peer that sends one
request waits for one round, whatever the others have sent. What is finished shows how long a
request takes (the *pace*), so the length of the queues says how long a new request would wait.
Past :data:`~swarmctl.proto.limits.BULK_WAIT_S` it is refused, and told after how long its peer's
queue will be done; a count would be too much on a slow disk and too little on a fast one. Counts
and bytes are bounded besides, so that memory is. While nothing at all is finished the wait is at
least the time since it last was, so a disk that hangs refuses everybody after half a second.

No task, no clock: who uses it says what time it is.
"""

from collections import OrderedDict, deque
from typing import Final, Generic, TypeVar

from swarmctl.proto import limits

T = TypeVar("T")

# Before anything was finished: a slow machine's. A few hundred requests correct it.
_PACE_FIRST_S: Final = 200e-6
# Requests that a measured pace is smoothed over.
_PACE_MEMORY: Final = 1_000


class Intake(Generic[T]):
    """What waits, by peer, and how many are being served."""

    def __init__(self) -> None:
        # Peers that have something waiting; whose turn is next comes first.
        self._queues: OrderedDict[bytes, deque[tuple[T, int]]] = OrderedDict()
        self._pace_s = _PACE_FIRST_S
        # When something was finished last, or work began after there was none.
        self._progress_at = 0.0
        self.waiting = 0
        self.waiting_bytes = 0
        self.under_way = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is being served."""
        return not self.waiting and not self.under_way

    @property
    def may_take(self) -> bool:
        """Whether something waits, and not too much is being served."""
        return bool(self.waiting) and self.under_way < limits.BULK_UNDER_WAY

    def refusal_ms(self, peer: bytes, now: float) -> int:
        """0 when one more request of ``peer`` may come in; else when it should come again."""
        queue = self._queues.get(peer)
        mine = len(queue) if queue is not None else 0
        # By turns: of every other queue as much as of its own comes before it.
        rounds = mine * (len(self._queues) + (queue is None))
        before = min(rounds, self.waiting) + self.under_way
        wait_s = before * self._pace_s
        if self.under_way:
            wait_s = max(wait_s, now - self._progress_at)
        full = self.waiting >= limits.RPC_TOTAL or self.waiting_bytes >= limits.BULK_BYTES
        if wait_s <= limits.BULK_WAIT_S and not full:
            return 0
        return max(limits.BUSY_RETRY_MS, min(int(wait_s * 1000), limits.BUSY_RETRY_MAX_MS))

    def add(self, peer: bytes, item: T, size_bytes: int, now: float) -> None:
        """Let a request in."""
        if self.is_idle:
            self._progress_at = now
        queue = self._queues.get(peer)
        if queue is None:
            queue = self._queues[peer] = deque()
        queue.append((item, size_bytes))
        self.waiting += 1
        self.waiting_bytes += size_bytes

    def take(self, most: int) -> list[T]:
        """Up to ``most`` requests, one of each peer in turn; they count as being served."""
        taken: list[T] = []
        queues = self._queues
        if len(queues) == 1:
            [(peer, queue)] = queues.items()
            while queue and len(taken) < most:
                taken.append(self._pop(queue))
            if not queue:
                del queues[peer]
        else:
            while queues and len(taken) < most:
                peer, queue = queues.popitem(last=False)
                taken.append(self._pop(queue))
                if queue:
                    queues[peer] = queue
        self.under_way += len(taken)
        return taken

    def _pop(self, queue: deque[tuple[T, int]]) -> T:
        item, size_bytes = queue.popleft()
        self.waiting -= 1
        self.waiting_bytes -= size_bytes
        return item

    def finished(self, count: int, now: float) -> None:
        """``count`` of those taken are done, well or not."""
        self.under_way -= count
        took_s = (now - self._progress_at) / count
        self._pace_s += (took_s - self._pace_s) * min(1.0, count / _PACE_MEMORY)
        self._progress_at = now

    def drop(self, peer: bytes) -> None:
        """Nobody waits for what ``peer`` asked: forget what has not been taken yet."""
        queue = self._queues.pop(peer, None)
        while queue:
            self._pop(queue)
