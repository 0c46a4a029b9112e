"""Payloads in memory: there when they are due, and nobody is woken before that."""

import trio
import trio.testing

from swarmctl.transport.due_queue import DueQueue


async def test_who_waits_is_woken_once_and_when_the_payload_is_due(autojump_clock):
    """Put while it waits, the later one first: neither wakes it before the sooner is due."""
    queue, woken_at = DueQueue(), []

    async def wait():
        while len(woken_at) < 2:
            await queue.wait()
            while queue.take() is not None:
                pass
            woken_at.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        queue.put(began + 3, "wire", b"later")
        queue.put(began + 1, "wire", b"sooner")

    assert woken_at == [began + 1, began + 3]


async def test_what_is_due_at_once_is_there_at_once(autojump_clock):
    """Without a turn of the clock."""
    queue = DueQueue()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.wait)
        await trio.testing.wait_all_tasks_blocked()
        now = trio.current_time()
        queue.put(now, "wire", b"now")

    assert trio.current_time() == now
    assert queue.take() == ("wire", b"now")
