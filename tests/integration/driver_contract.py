"""What every driver does, as tests that each driver's own test module inherits.

A module gives a fixture ``harness`` (a :class:`Harness`) and subclasses the classes that fit::

    class TestDockerDriver(DriverContract, ExitCodeContract, LogsContract): ...

:class:`DriverContract` is for all; the others are for abilities that not every driver has, so that
nothing needs to be skipped.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from enum import Enum, auto
from itertools import count

import pytest
import trio
from attrs import evolve

from swarmctl.agent.drivers.api import (
    Driver,
    DriverEvent,
    EventKind,
    Exec,
    Found,
    Launch,
    LogChunk,
    Logs,
    Owner,
    Phase,
    Terminal,
)
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import SwarmError, UserError
from swarmctl.spec import wire
from swarmctl.spec.models import RestartCondition, RestartPolicy, Template

NODE = "n1"
# At once, on a machine that is busy: what is not prompt waits for a grace of 20 s, or for ever.
PROMPT_S = 5.0
_sequence = count(1)


class Behaviour(Enum):
    """What an instance of the test does."""

    RUNS = auto()  # until it is stopped, and ends politely
    STUBBORN = auto()  # until it is stopped by force
    ENDS = auto()  # at once and by itself, with success
    ENDS_WITH_3 = auto()  # at once, with exit code 3
    NO_IMAGE = auto()  # its image does not exist
    NO_COMMAND = auto()  # its command does not exist in its image
    TALKS = auto()  # prints "out 1", "out 2", "out 3" and on stderr "oops", then runs
    TALKS_AND_ENDS = auto()  # the same, and ends


class Harness(ABC):
    """What the suite needs to know of a driver; made afresh for each test.

    Attributes:
        deadline_s: within which any single thing must happen.
        grace_s: of stops that may end by force. Less than the deadline: a signal may come before
            the program has set its trap, and a first process ignores it then.
        clean_up: called at the end of a test; leaves nothing behind.
    """

    deadline_s: float = 60.0
    grace_s: float = 5.0

    def __init__(self, cluster_id: str | None = None) -> None:
        self.owner = Owner(cluster_id or f"test{secrets.token_hex(6)}", NODE)
        self.driver = self.driver_for(self.owner)

    @abstractmethod
    def driver_for(self, owner: Owner) -> Driver:
        """A driver of ``owner`` on the same daemon; also a second one of the same owner."""

    @abstractmethod
    def template(self, behaviour: Behaviour) -> Template:
        """What makes instances behave so."""

    @abstractmethod
    async def kill(self, found: Found) -> None:
        """End an instance behind the driver's back, by force."""

    @abstractmethod
    async def vanish(self, found: Found) -> None:
        """Take an instance away, whole, behind the driver's back."""

    def launch(self, behaviour: Behaviour = Behaviour.RUNS, slot: int = 1) -> Launch:
        """A launch of a new incarnation."""
        incarnation = incarnations.make(1, next(_sequence))
        return Launch("web", slot, incarnation, self.template(behaviour))

    async def run(self, launch: Launch) -> Found:
        """Prepare, create and start."""
        with trio.fail_after(self.deadline_s):
            await self.driver.prepare(launch, ignore)
            await self.driver.create(launch)
            return await self.driver.start(launch)

    async def find(self, incarnation: int) -> Found | None:
        """The one of ``incarnation`` in the driver's list."""
        with trio.fail_after(self.deadline_s):
            found = [f for f in await self.driver.list() if f.incarnation == incarnation]
        assert len(found) <= 1, found
        return found[0] if found else None

    async def await_phase(self, incarnation: int, phase: Phase) -> Found:
        """Wait until the list shows ``phase``."""
        seen: Found | None = None

        async def reached() -> bool:
            nonlocal seen
            seen = await self.find(incarnation)
            return seen is not None and seen.phase is phase

        await eventually(reached, self.deadline_s)
        assert seen is not None
        return seen

    async def clean_up(self) -> None:
        """Remove all that the test's own driver lists."""
        with trio.fail_after(self.deadline_s * 2):
            for found in await self.driver.list():
                await self.driver.remove(found.incarnation)


def ignore(_: str) -> None:
    """Take progress and do nothing with it."""


async def eventually(
    condition: Callable[[], Awaitable[bool]], deadline_s: float, pause_s: float = 0.05
) -> None:
    """Ask until ``condition`` is true."""
    with trio.fail_after(deadline_s):
        while not await condition():  # noqa: ASYNC110 - a daemon's state has no event to wait for
            await trio.sleep(pause_s)


async def next_event(
    channel: trio.MemoryReceiveChannel[DriverEvent],
    kind: EventKind,
    incarnation: int,
    deadline_s: float,
) -> DriverEvent:
    """The next event of that kind and instance; others are passed over."""
    with trio.fail_after(deadline_s):
        async for event in channel:
            if event.kind is kind and event.incarnation == incarnation:
                return event
    raise AssertionError("the events ended")


class DriverContract:
    """For every driver."""

    async def test_probe_says_that_it_is_available(self, harness: Harness):
        """A driver whose daemon works says so, with the daemon's version."""
        with trio.fail_after(harness.deadline_s):
            health = await harness.driver.probe()

        assert health.available, health.reason
        assert health.version

    async def test_launch_runs_and_is_listed(self, harness: Harness):
        """A launched instance is listed as running, under the names of its launch."""
        launch = evolve(harness.launch(slot=3), tenant="acme")
        started = await harness.run(launch)
        listed = await harness.find(launch.incarnation)

        assert listed is not None
        assert started.phase is Phase.RUNNING
        assert listed.phase is Phase.RUNNING
        assert (listed.service, listed.slot, listed.tenant) == ("web", 3, "acme")
        assert listed.runtime_id == started.runtime_id != ""
        assert listed.started_at > 0
        assert listed.exit_code is None

    async def test_list_tells_the_template_that_it_was_made_of(self, harness: Harness):
        """All of it, also to another agent's driver, and when it has ended."""
        launch = harness.launch()
        launch = evolve(launch, template=_with_variables(launch.template))
        found = await harness.run(launch)
        for look in (harness.driver, harness.driver_for(harness.owner)):
            with trio.fail_after(harness.deadline_s):
                (listed,) = await look.list()
            assert wire.decode_template(listed.template) == launch.template
        await harness.kill(found)
        ended = await harness.await_phase(launch.incarnation, Phase.EXITED)

        assert ended.template == wire.encode_template(launch.template)

    async def test_created_is_not_running(self, harness: Harness):
        """Create alone makes an instance that does not run yet."""
        launch = harness.launch()
        await harness.driver.prepare(launch, ignore)
        await harness.driver.create(launch)
        found = await harness.find(launch.incarnation)

        assert found is not None
        assert found.phase is Phase.CREATED

    async def test_create_twice_is_one(self, harness: Harness):
        """A repeated create, also from a second driver of the owner, returns what is there."""
        launch = harness.launch()
        await harness.driver.prepare(launch, ignore)
        first = await harness.driver.create(launch)
        second = await harness.driver.create(launch)
        third = await harness.driver_for(harness.owner).create(launch)

        assert first == second == third
        assert len(await harness.driver.list()) == 1

    async def test_creates_at_once_are_one(self, harness: Harness):
        """Creates of the same launch that overlap all end with the same instance."""
        launch = harness.launch()
        await harness.driver.prepare(launch, ignore)
        made: list[str] = []

        async def create() -> None:
            made.append(await harness.driver.create(launch))

        with trio.fail_after(harness.deadline_s):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(create)

        assert len(made) == 3
        assert len(set(made)) == 1

    async def test_start_twice_is_once(self, harness: Harness):
        """Starting what runs changes nothing."""
        launch = harness.launch()
        first = await harness.run(launch)
        again = await harness.driver.start(launch)

        assert again.phase is Phase.RUNNING
        assert again.runtime_id == first.runtime_id

    async def test_stop_is_repeatable(self, harness: Harness):
        """Stop ends an instance; a second stop, and one of nothing, do no harm."""
        launch = harness.launch()
        await harness.run(launch)
        with trio.fail_after(harness.deadline_s):
            await harness.driver.stop(launch.incarnation, harness.grace_s)
            found = await harness.await_phase(launch.incarnation, Phase.EXITED)
            await harness.driver.stop(launch.incarnation, harness.grace_s)
            await harness.driver.stop(launch.incarnation + 1_000_000, 1.0)

        assert found.finished_at >= found.started_at

    async def test_grace_then_force(self, harness: Harness):
        """One that does not end politely is left its grace, and is ended by force then."""
        launch = harness.launch(Behaviour.STUBBORN)
        await harness.run(launch)
        began = trio.current_time()
        with trio.fail_after(harness.deadline_s):
            await harness.driver.stop(launch.incarnation, 1.0)
        took = trio.current_time() - began
        found = await harness.find(launch.incarnation)

        assert took >= 0.9
        assert found is None or found.phase is Phase.EXITED

    async def test_remove_is_repeatable(self, harness: Harness):
        """Remove leaves nothing in the list; a second remove, and one of nothing, do no harm."""
        launch = harness.launch()
        await harness.run(launch)
        with trio.fail_after(harness.deadline_s):
            await harness.driver.stop(launch.incarnation, harness.grace_s)
            await harness.driver.remove(launch.incarnation)
            await harness.driver.remove(launch.incarnation)
            await harness.driver.remove(launch.incarnation + 1_000_000)

        assert await harness.driver.list() == []

    async def test_remove_forces(self, harness: Harness):
        """Remove takes a running instance away."""
        launch = harness.launch(Behaviour.STUBBORN)
        await harness.run(launch)
        with trio.fail_after(harness.deadline_s):
            await harness.driver.remove(launch.incarnation)

        assert await harness.driver.list() == []

    async def test_removes_at_once_all_succeed(self, harness: Harness):
        """Removes of one instance that overlap all return, once it is gone."""
        launch = harness.launch()
        await harness.run(launch)
        with trio.fail_after(harness.deadline_s):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(harness.driver.remove, launch.incarnation)

        assert await harness.driver.list() == []

    async def test_remove_of_a_created_one(self, harness: Harness):
        """What was created and never started is removed as well."""
        launch = harness.launch()
        await harness.driver.prepare(launch, ignore)
        await harness.driver.create(launch)
        await harness.driver.remove(launch.incarnation)

        assert await harness.driver.list() == []

    async def test_others_are_not_seen_nor_touched(self, harness: Harness):
        """A driver of another node or cluster neither lists, stops nor removes what is ours."""
        launch = harness.launch()
        await harness.run(launch)
        for owner in (
            Owner(harness.owner.cluster_id, "other"),
            Owner("other" + harness.owner.cluster_id, NODE),
        ):
            stranger = harness.driver_for(owner)
            with trio.fail_after(harness.deadline_s):
                assert await stranger.list() == []
                await stranger.stop(launch.incarnation, 0.1)
                await stranger.remove(launch.incarnation)
        found = await harness.find(launch.incarnation)

        assert found is not None
        assert found.phase is Phase.RUNNING

    async def test_a_new_driver_adopts(self, harness: Harness):
        """A driver made after a crash of the agent finds, stops and removes what runs."""
        launch = harness.launch()
        started = await harness.run(launch)
        second = harness.driver_for(harness.owner)
        with trio.fail_after(harness.deadline_s):
            (found,) = await second.list()
            await second.stop(launch.incarnation, harness.grace_s)
            await second.remove(launch.incarnation)

        assert found.runtime_id == started.runtime_id
        assert found.incarnation == launch.incarnation
        assert await harness.driver.list() == []

    async def test_starts_again_after_its_end(self, harness: Harness):
        """An instance that ended is started again in place, and keeps its runtime id."""
        launch = harness.launch()
        first = await harness.run(launch)
        await harness.kill(first)
        await harness.await_phase(launch.incarnation, Phase.EXITED)
        with trio.fail_after(harness.deadline_s):
            again = await harness.driver.start(launch)
        found = await harness.find(launch.incarnation)

        assert again.runtime_id == first.runtime_id
        assert found is not None
        assert found.phase is Phase.RUNNING
        assert found.exit_code is None

    async def test_ends_by_itself(self, harness: Harness):
        """One that ends by itself is told by event, and listed as exited."""
        launch = harness.launch(Behaviour.ENDS)
        async with harness.driver.events() as channel:
            await harness.run(launch)
            event = await next_event(
                channel, EventKind.EXITED, launch.incarnation, harness.deadline_s
            )
        found = await harness.find(launch.incarnation)

        assert event.at > 0
        assert found is not None
        assert found.phase is Phase.EXITED

    async def test_kill_behind_its_back_is_told(self, harness: Harness):
        """An instance that someone else kills is told by event."""
        launch = harness.launch()
        async with harness.driver.events() as channel:
            found = await harness.run(launch)
            await next_event(channel, EventKind.STARTED, launch.incarnation, harness.deadline_s)
            await harness.kill(found)
            await next_event(channel, EventKind.EXITED, launch.incarnation, harness.deadline_s)
        listed = await harness.find(launch.incarnation)

        assert listed is None or listed.phase is Phase.EXITED

    async def test_vanished_is_told_and_not_listed(self, harness: Harness):
        """An instance that someone else takes away is told as removed."""
        launch = harness.launch()
        async with harness.driver.events() as channel:
            found = await harness.run(launch)
            await harness.vanish(found)
            await next_event(channel, EventKind.REMOVED, launch.incarnation, harness.deadline_s)

        assert await harness.find(launch.incarnation) is None

    async def test_events_are_of_this_owner(self, harness: Harness):
        """What another node's driver does is not told."""
        stranger = harness.driver_for(Owner(harness.owner.cluster_id, "other"))
        theirs, ours = harness.launch(), harness.launch()
        try:
            async with harness.driver.events() as channel:
                with trio.fail_after(harness.deadline_s * 2):
                    await stranger.prepare(theirs, ignore)
                    await stranger.create(theirs)
                    await stranger.start(theirs)
                    await harness.run(ours)
                    seen = [event async for event in _until_started(channel, ours.incarnation)]
        finally:
            await stranger.remove(theirs.incarnation)

        assert {event.incarnation for event in seen} <= {0, ours.incarnation}

    async def test_events_close_promptly(self, harness: Harness):
        """Leaving the events' context takes no time, even when nothing happens."""
        with trio.fail_after(harness.deadline_s):
            async with harness.driver.events():
                await trio.lowlevel.checkpoint()
            began = trio.current_time()
            async with harness.driver.events():
                await trio.lowlevel.checkpoint()

        assert trio.current_time() - began < PROMPT_S

    async def test_unknown_image_is_the_users_error(self, harness: Harness):
        """An image that does not exist is refused by prepare or create, and leaves nothing."""
        launch = harness.launch(Behaviour.NO_IMAGE)
        with pytest.raises(UserError) as raised:
            await harness.run(launch)
        await harness.driver.remove(launch.incarnation)

        assert raised.value.what
        assert await harness.driver.list() == []

    @pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05, 0.2])
    async def test_cancelled_launch_can_be_reaped(self, harness: Harness, after_s: float):
        """A launch whose caller gave up leaves at most one instance, that list and remove get."""
        launch = harness.launch()
        await harness.driver.prepare(launch, ignore)
        with trio.move_on_after(after_s):
            await harness.driver.create(launch)
            await harness.driver.start(launch)
        await harness.run(launch)
        found = await harness.find(launch.incarnation)
        assert found is not None
        assert found.phase is Phase.RUNNING

        async def gone() -> bool:
            for left in await harness.driver.list():
                await harness.driver.remove(left.incarnation)
            return await harness.driver.list() == []

        await eventually(gone, harness.deadline_s)

    async def test_cancelled_calls_return_at_once(self, harness: Harness):
        """Giving up on a stop does not wait for it, and the next call works."""
        launch = harness.launch(Behaviour.STUBBORN)
        await harness.run(launch)
        began = trio.current_time()
        with trio.move_on_after(0.3):
            await harness.driver.stop(launch.incarnation, 20.0)
        took = trio.current_time() - began
        with trio.fail_after(harness.deadline_s):
            await harness.driver.remove(launch.incarnation)

        assert took < PROMPT_S
        assert await harness.driver.list() == []


def _with_variables(template: Template) -> Template:
    """``template`` with variables, where it is a container's, whose values are not plain ones."""
    spec = template.container
    if spec is None:
        return evolve(template, stop_grace_period_s=3.5)
    return evolve(
        template,
        container=evolve(spec, environment={"PASSWORD": "a=b ü\nc", "EMPTY": "", "PATH": "/bin"}),
        restart=RestartPolicy(RestartCondition.NEVER),
    )


async def _until_started(channel, incarnation):
    async for event in channel:
        yield event
        if event.incarnation == incarnation and event.kind is EventKind.STARTED:
            return


class ExitCodeContract:
    """For drivers whose instances end with an exit code."""

    async def test_exit_code_is_told_and_listed(self, harness: Harness):
        """The exit code is in the event and in the list."""
        launch = harness.launch(Behaviour.ENDS_WITH_3)
        async with harness.driver.events() as channel:
            await harness.run(launch)
            event = await next_event(
                channel, EventKind.EXITED, launch.incarnation, harness.deadline_s
            )
        found = await harness.find(launch.incarnation)

        assert event.exit_code == 3
        assert found is not None
        assert found.exit_code == 3

    async def test_success_is_exit_code_0(self, harness: Harness):
        """One that ends well has exit code 0, not none."""
        launch = harness.launch(Behaviour.ENDS)
        async with harness.driver.events() as channel:
            await harness.run(launch)
            event = await next_event(
                channel, EventKind.EXITED, launch.incarnation, harness.deadline_s
            )

        assert event.exit_code == 0

    async def test_killed_one_has_exit_code_137(self, harness: Harness):
        """One that was killed has the exit code that shells give that."""
        launch = harness.launch()
        await harness.kill(await harness.run(launch))
        found = await harness.await_phase(launch.incarnation, Phase.EXITED)

        assert found.exit_code == 137

    async def test_bad_command_is_the_users_error(self, harness: Harness):
        """A command that the image does not have is refused, and what was made can be removed."""
        launch = harness.launch(Behaviour.NO_COMMAND)
        with pytest.raises(UserError):
            await harness.run(launch)
        await harness.driver.remove(launch.incarnation)

        assert await harness.driver.list() == []


async def _collect(logs: Logs, incarnation: int, **options) -> list[LogChunk]:
    options = {"follow": False, "tail": None, "timestamps": False} | options
    async with aclosing(logs.logs(incarnation, **options)) as chunks:
        return [chunk async for chunk in chunks]


def _text(chunks: list[LogChunk], stream: str = "stdout") -> str:
    return b"".join(chunk.data for chunk in chunks if chunk.stream == stream).decode()


class LogsContract:
    """For drivers that keep output."""

    async def test_streams_are_told_apart(self, harness: Harness):
        """Following ends when the instance does, and has all of both streams."""
        launch = harness.launch(Behaviour.TALKS_AND_ENDS)
        await harness.run(launch)
        with trio.fail_after(harness.deadline_s):
            chunks = await _collect(harness.driver, launch.incarnation, follow=True)

        assert _text(chunks) == "out 1\nout 2\nout 3\n"
        assert _text(chunks, "stderr") == "oops\n"

    async def test_tail_and_timestamps(self, harness: Harness):
        """The last line alone, with its time before it."""
        launch = harness.launch(Behaviour.TALKS_AND_ENDS)
        await harness.run(launch)
        await harness.await_phase(launch.incarnation, Phase.EXITED)
        with trio.fail_after(harness.deadline_s):
            every = await _collect(harness.driver, launch.incarnation, timestamps=True)
            last = await _collect(harness.driver, launch.incarnation, tail=1)

        stamp, _, rest = _text(every).splitlines()[0].partition(" ")
        assert rest == "out 1"
        assert stamp[10] == "T"
        assert all(chunk.at > 0 for chunk in every)
        assert sum(chunk.data.count(b"\n") for chunk in last) == 1

    async def test_follow_of_a_running_one_closes_promptly(self, harness: Harness):
        """Closing the generator while it waits for more takes no time."""
        launch = harness.launch(Behaviour.TALKS)
        await harness.run(launch)
        seen: list[LogChunk] = []
        with trio.fail_after(harness.deadline_s):
            logs = harness.driver.logs(launch.incarnation, follow=True, tail=None, timestamps=False)
            async with aclosing(logs):
                async for chunk in logs:
                    seen.append(chunk)
                    if "out 3\n" in _text(seen):
                        break
            began = trio.current_time()
            with trio.move_on_after(0.5):
                await _collect(harness.driver, launch.incarnation, follow=True)

        assert trio.current_time() - began < PROMPT_S

    async def test_logs_of_nothing_is_the_users_error(self, harness: Harness):
        """Output of an instance that is not there is an error, not silence."""
        with pytest.raises(UserError), trio.fail_after(harness.deadline_s):
            await _collect(harness.driver, incarnations.make(1, 999_999_999))


async def _read_all(terminal: Terminal) -> str:
    text = b""
    while (chunk := await terminal.receive()) is not None:
        text += chunk.data
    return text.decode()


class ExecContract:
    """For drivers that run commands inside their instances."""

    async def test_exec_gives_output_and_exit_code(self, harness: Harness):
        """Output of both streams is told apart, and the exit code comes after."""
        driver: Exec = harness.driver
        launch = harness.launch()
        await harness.run(launch)
        command = ("sh", "-c", "echo out; echo err >&2; exit 5")
        chunks: list[LogChunk] = []
        with trio.fail_after(harness.deadline_s):
            async with driver.exec(launch.incarnation, command, tty=False, stdin=False) as terminal:
                while (chunk := await terminal.receive()) is not None:
                    chunks.append(chunk)
                code = await terminal.exit_code()

        assert _text(chunks) == "out\n"
        assert _text(chunks, "stderr") == "err\n"
        assert code == 5

    async def test_exec_reads_standard_input(self, harness: Harness):
        """What is sent arrives, and the end of it is seen."""
        driver: Exec = harness.driver
        launch = harness.launch()
        await harness.run(launch)
        payload = b"0123456789abcdef" * 8_192
        with trio.fail_after(harness.deadline_s):
            async with driver.exec(
                launch.incarnation, ("wc", "-c"), tty=False, stdin=True
            ) as terminal:
                await terminal.send(payload)
                await terminal.send_eof()
                text = await _read_all(terminal)
                code = await terminal.exit_code()

        assert text.strip() == str(len(payload))
        assert code == 0

    async def test_exec_on_a_terminal(self, harness: Harness):
        """A terminal has the size that it is told, and takes typed lines."""
        driver: Exec = harness.driver
        launch = harness.launch()
        await harness.run(launch)
        with trio.fail_after(harness.deadline_s):
            async with driver.exec(launch.incarnation, ("sh",), tty=True, stdin=True) as terminal:
                await terminal.resize(33, 101)
                await terminal.send(b"stty size; exit 4\n")
                text = await _read_all(terminal)
                code = await terminal.exit_code()

        assert "33 101" in text
        assert code == 4

    async def test_exec_closes_promptly(self, harness: Harness):
        """Leaving while the command still runs takes no time."""
        driver: Exec = harness.driver
        launch = harness.launch()
        await harness.run(launch)
        with trio.fail_after(harness.deadline_s):
            began = trio.current_time()
            async with driver.exec(
                launch.incarnation, ("sleep", "60"), tty=False, stdin=False
            ) as terminal:
                with trio.move_on_after(0.3):
                    await terminal.receive()
            took = trio.current_time() - began

        assert took < PROMPT_S

    async def test_exec_in_nothing_is_the_users_error(self, harness: Harness):
        """A command for an instance that is not there, or not running, is an error."""
        driver: Exec = harness.driver
        launch = harness.launch()
        await harness.driver.prepare(launch, ignore)
        await harness.driver.create(launch)
        for incarnation in (launch.incarnation, incarnations.make(1, 999_999_999)):
            with pytest.raises(SwarmError) as raised, trio.fail_after(harness.deadline_s):
                async with driver.exec(incarnation, ("true",), tty=False, stdin=False):
                    raise AssertionError("not reached")
            assert isinstance(raised.value, UserError)
