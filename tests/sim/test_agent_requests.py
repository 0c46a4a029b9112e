"""Requests that an agent answers: output, commands, consoles, and itself."""

from contextlib import asynccontextmanager

import pytest
import trio

from swarmctl.agent.drivers.api import LogChunk
from swarmctl.agent.drivers.sim import SimDriver
from swarmctl.proto import limits
from swarmctl.proto.errors import InvalidSpec, NotFound, SwarmError
from swarmctl.proto.states import InstanceState
from tests.sim.agent_fixture import a_world, inc, template


class EchoTerminal:
    """Says what is typed, ends at the end of its input with 7."""

    def __init__(self):
        self.put, self.get = trio.open_memory_channel(10)
        self.sizes = []

    async def receive(self):
        try:
            return await self.get.receive()
        except trio.EndOfChannel:
            return None

    async def send(self, data):
        await self.put.send(LogChunk("stdout", data.upper()))

    async def send_eof(self):
        self.put.close()

    async def resize(self, rows, columns):
        self.sizes.append((rows, columns))

    async def exit_code(self):
        return 7


class TalkingDriver(SimDriver):
    """A simulated driver whose instances say something."""

    def __init__(self, owner, host):
        super().__init__(owner, host)
        self.asked = []
        self.terminal = EchoTerminal()
        self.closed = trio.Event()

    async def logs(self, incarnation, *, follow, tail, timestamps):
        self.asked.append((incarnation, follow, tail, timestamps))
        try:
            yield LogChunk("stdout", b"x" * (limits.STREAM_CHUNK_BYTES + 1))
            yield LogChunk("stderr", b"oops\n")
            while follow:
                await trio.sleep(1)
                yield LogChunk("stdout", b"tick\n")
        finally:
            self.closed.set()

    @asynccontextmanager
    async def exec(self, incarnation, command, *, tty, stdin):
        self.asked.append((incarnation, command, tty, stdin))
        yield self.terminal


@asynccontextmanager
async def a_talking_world(tmp_path):
    async with a_world(tmp_path) as world:
        drivers = []

        def make(_config, owner):
            drivers.append(TalkingDriver(owner, world.host))
            return {"sim": drivers[0]}

        world.make_drivers = make
        world.controller.want(1, template())
        await world.start_agent()
        await world.controller.until_state(1, InstanceState.RUNNING)
        yield world, drivers[0]


async def collect(stream):
    found = {}
    while (item := await stream.receive()) is not None:
        found[item.channel] = found.get(item.channel, b"") + item.data
        assert len(item.data) <= limits.STREAM_CHUNK_BYTES
    return found


async def test_logs_stream_in_bounded_chunks(autojump_clock, tmp_path):
    """Output comes on its own channel; a large chunk is cut; 0 lines is all of them."""
    async with a_talking_world(tmp_path) as (world, driver):
        params = {"incarnation": inc(1), "follow": False, "tail": 0, "timestamps": True}
        async with world.controller.stream("instance.logs", params) as stream:
            found = await collect(stream)
            await stream.result()

        assert len(found["stdout"]) == limits.STREAM_CHUNK_BYTES + 1
        assert found["stderr"] == b"oops\n"
        assert driver.asked == [(inc(1), False, None, True)]


async def test_following_ends_with_its_caller(autojump_clock, tmp_path):
    """When nobody looks any more the driver's stream is closed."""
    async with a_talking_world(tmp_path) as (world, driver):
        params = {"incarnation": inc(1), "follow": True}
        async with world.controller.stream("instance.logs", params) as stream:
            for _ in range(5):
                await stream.receive()
        with trio.fail_after(5):
            await driver.closed.wait()


async def test_exec_is_two_way(autojump_clock, tmp_path):
    """Input, its end and the terminal's size go in; output and the exit code come out."""
    async with a_talking_world(tmp_path) as (world, driver):
        params = {"incarnation": inc(1), "command": ["sh", "-c", "x"], "tty": True, "stdin": True}
        async with world.controller.stream("instance.exec", params) as stream:
            await stream.send("resize", [40, 100])
            await stream.send("stdin", b"hello ")
            await stream.send("stdin", b"there")
            await stream.send("eof", None)
            assert await collect(stream) == {"stdout": b"HELLO THERE"}
            assert await stream.result() == {"exit_code": 7}

        assert driver.terminal.sizes == [(40, 100)]
        assert driver.asked == [(inc(1), ("sh", "-c", "x"), True, True)]


@pytest.mark.parametrize(
    ("method", "params", "kind", "said"),
    [
        ("instance.logs", {"incarnation": inc(9)}, NotFound, "no instance 1-9"),
        ("instance.exec", {"incarnation": inc(1)}, InvalidSpec, "no command"),
        ("instance.console", {"incarnation": inc(1)}, InvalidSpec, "no serial console"),
        ("instance.logs", {"incarnation": "x"}, SwarmError, "should be int"),
        ("instance.fly", {}, SwarmError, "no method"),
    ],
)
async def test_what_cannot_be_done_is_said(autojump_clock, tmp_path, method, params, kind, said):
    """Each impossible request is answered by one clear error, and the agent goes on."""
    async with a_talking_world(tmp_path) as (world, _):
        with pytest.raises(kind, match=said):
            await world.controller.ask(method, params)
        await world.controller.until_agreed()


async def test_node_tells_of_itself(autojump_clock, tmp_path):
    """Facts and counters can be asked for."""
    async with a_talking_world(tmp_path) as (world, _):
        facts = await world.controller.ask("node.facts", {})
        statistics = await world.controller.ask("node.statistics", {})

        assert facts["capacity"]["cpu_millis"] >= 1000
        assert statistics["instances"] == {"running": 1}
