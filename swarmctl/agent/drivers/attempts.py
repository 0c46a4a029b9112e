"""Work that many want at once, done once: images that forty launches wait for.

Those who want the same thing at the same time wait for one of them, and share what came of it; if
that one is cancelled, the next one takes over.
"""

from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from swarmctl.proto.errors import SwarmError


@define
class _Attempt:
    """One task at work, and those who wait for it."""

    done: trio.Event = field(factory=trio.Event)
    error: SwarmError | None = None


class Attempts:
    """Attempts that are under way, by what they are for."""

    def __init__(self) -> None:
        self._attempts: dict[str, _Attempt] = {}

    async def until(
        self, done: Callable[[], bool], key: str, where: str, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Have ``work`` done, by us or by another, until ``done`` says so.

        Raises:
            SwarmError: what went wrong for whoever tried, about ``where``.
        """
        while not done():
            attempt = self._attempts.get(key)
            if attempt is None:
                await self._lead(key, work)
                return
            await attempt.done.wait()
            if attempt.error is not None:
                error = attempt.error
                raise type(error)(error.what, where, error.hint)
        await trio.lowlevel.checkpoint()

    async def _lead(self, key: str, work: Callable[[], Awaitable[None]]) -> None:
        attempt = self._attempts[key] = _Attempt()
        try:
            await work()
        except SwarmError as error:
            attempt.error = error
            raise
        finally:
            del self._attempts[key]
            attempt.done.set()
