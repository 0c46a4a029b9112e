"""Locks of records, by name: who changes a record holds its name, in the order of asking.

A free name is taken and given back by a look-up each, without a task: a batch of requests takes a
hundred of them. Whoever gives a name back to someone who waits hands it over, so nobody can take
it in between.
"""

from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import trio


class RecordLocks:
    """The names that are held now, each with those who wait for it."""

    def __init__(self) -> None:
        self._held: dict[str, deque[trio.Event] | None] = {}

    def __len__(self) -> int:
        return len(self._held)

    def try_hold(self, name: str) -> bool:
        """Take ``name`` if it is free."""
        if name in self._held:
            return False
        self._held[name] = None
        return True

    async def hold(self, name: str) -> None:
        """Take ``name``, once all who asked before have given it back."""
        if self.try_hold(name):
            return
        waiters = self._held[name]
        if waiters is None:
            waiters = self._held[name] = deque()
        mine = trio.Event()
        waiters.append(mine)
        try:
            await mine.wait()
        except BaseException:
            if mine.is_set():
                # Handed over by one that was cancelled in the same moment, before we noticed.
                self.release(name)
            else:
                waiters.remove(mine)
            raise

    def release(self, name: str) -> None:
        """Give ``name`` back, or on to who waits first."""
        waiters = self._held[name]
        if waiters:
            waiters.popleft().set()
        else:
            del self._held[name]

    @asynccontextmanager
    async def holding(self, names: Iterable[str]) -> AsyncGenerator[None, None]:
        """Hold all of ``names``, taken in one order by everyone, for the length of a block."""
        taken: list[str] = []
        try:
            for name in sorted(set(names)):
                await self.hold(name)
                taken.append(name)
            yield
        finally:
            for name in taken:
                self.release(name)
