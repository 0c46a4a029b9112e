"""Requests that the agent answers: output, commands and consoles of instances, and itself.

``instance.logs``: ``incarnation``, ``follow``, ``tail`` (lines; 0 is all), ``timestamps``;
streams on ``stdout`` and ``stderr``.
``instance.exec``: ``incarnation``, ``command``, ``tty``, ``stdin``; ``instance.console``:
``incarnation``; both stream as above, and take ``stdin`` (bytes), ``resize`` ([rows, columns])
and ``eof``.  Result: ``{"exit_code": N}``, None where there is none.
``node.facts`` and ``node.statistics``: what they say.  Beside these there is ``instance.trace``, in
:mod:`swarmctl.agent.tracing`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import attrs
import trio

from swarmctl.agent.drivers.api import Console, Driver, Exec, Logs, Terminal
from swarmctl.agent.instance import Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto import limits
from swarmctl.proto.errors import InvalidSpec, NotFound, ProtocolError
from swarmctl.proto.messages import NodeFacts
from swarmctl.transport.rpc import Call, Handler


def handlers(
    supervisor: Supervisor,
    drivers: Mapping[str, Driver],
    facts: Callable[[], NodeFacts],
    statistics: Callable[[], dict[str, Any]],
) -> dict[str, Handler]:
    """Method to handler."""

    async def logs(call: Call) -> None:
        instance = instance_of(supervisor, call)
        driver = drivers.get(instance.driver)
        if not isinstance(driver, Logs):
            raise _lacks(instance, "keeps no output")
        await _logs(call, driver, instance)

    async def execute(call: Call) -> dict[str, Any]:
        instance = instance_of(supervisor, call)
        driver = drivers.get(instance.driver)
        if not isinstance(driver, Exec):
            raise _lacks(instance, "runs no commands inside its instances")
        command = call.texts("command")
        if not command:
            raise InvalidSpec("there is no command to run", instance.name)
        session = driver.exec(
            instance.incarnation, command, tty=call.flag("tty"), stdin=call.flag("stdin")
        )
        return await _attach(call, session)

    async def console(call: Call) -> dict[str, Any]:
        instance = instance_of(supervisor, call)
        driver = drivers.get(instance.driver)
        if not isinstance(driver, Console):
            raise _lacks(instance, "has no serial console")
        return await _attach(call, driver.console(instance.incarnation))

    async def node_facts(call: Call) -> Any:
        await trio.lowlevel.checkpoint()
        assert call.method == "node.facts"
        return attrs.asdict(facts())

    async def node_statistics(call: Call) -> Any:
        await trio.lowlevel.checkpoint()
        assert call.method == "node.statistics"
        return statistics()

    return {
        "instance.logs": logs,
        "instance.exec": execute,
        "instance.console": console,
        "node.facts": node_facts,
        "node.statistics": node_statistics,
    }


def instance_of(supervisor: Supervisor, call: Call) -> Instance:
    """The instance that a request is about.

    Raises:
        NotFound: this node does not have it.
    """
    incarnation = call.integer("incarnation")
    instance = supervisor.instances.get(incarnation)
    if instance is None:
        label = incarnations.label(incarnation)
        raise NotFound(f"this node has no instance {label}", hint="it may have been removed")
    return instance


def _lacks(instance: Instance, what: str) -> InvalidSpec:
    return InvalidSpec(f"driver {instance.driver or 'unknown'} {what}", instance.name)


async def _logs(call: Call, driver: Logs, instance: Instance) -> None:
    stream = driver.logs(
        instance.incarnation,
        follow=call.flag("follow"),
        tail=call.integer("tail", 0) or None,
        timestamps=call.flag("timestamps"),
    )
    async with aclosing(stream) as chunks:
        async for chunk in chunks:
            await _send(call, chunk.stream, chunk.data)


async def _send(call: Call, channel: str, data: bytes) -> None:
    for start in range(0, len(data), limits.STREAM_CHUNK_BYTES):
        await call.send(channel, data[start : start + limits.STREAM_CHUNK_BYTES])


async def _attach(call: Call, session: AbstractAsyncContextManager[Terminal]) -> dict[str, Any]:
    """Connect the caller with a terminal until that ends."""
    async with session as terminal, trio.open_nursery() as nursery:
        nursery.start_soon(_pass_input, call, terminal)
        while (chunk := await terminal.receive()) is not None:
            await _send(call, chunk.stream, chunk.data)
        exit_code = await terminal.exit_code()
        nursery.cancel_scope.cancel()
    return {"exit_code": exit_code}


async def _pass_input(call: Call, terminal: Terminal) -> None:
    while (item := await call.receive()) is not None:
        match item.channel, item.data:
            case "stdin", bytes(data):
                await terminal.send(data)
            case "resize", (int(rows), int(columns)):
                await terminal.resize(rows, columns)
            case "eof", _:
                await terminal.send_eof()
            case channel, _:
                raise ProtocolError(f"not something to type: {channel}", call.method)
