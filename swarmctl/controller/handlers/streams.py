"""Requests that the agents answer: logs, exec, console.  The controller passes them on.

Data flows with credit on both legs, so a slow terminal slows the source and grows nothing here.
"""

from typing import Any

import trio

from swarmctl.controller.cluster import Cluster
from swarmctl.controller.handlers.targets import holders, resolve, sole, tenant_of
from swarmctl.controller.instance import Instance
from swarmctl.proto.errors import NotFound, PeerUnreachable
from swarmctl.transport.rpc import Call, Handler, StreamCall


def handlers(cluster: Cluster) -> dict[str, Handler]:
    """Method to handler."""

    async def logs(call: Call) -> Any:
        return await _logs(cluster, call)

    async def terminal(call: Call) -> Any:
        return await _terminal(cluster, call)

    return {"instance.logs": logs, "instance.exec": terminal, "instance.console": terminal}


async def _logs(cluster: Cluster, call: Call) -> Any:
    """Output of all instances of the targets, merged.

    Parameters: ``names``, ``follow``, ``tail`` (lines of each; 0 is all), ``timestamps``.
    Streams on ``stdout`` and ``stderr``: [instance, bytes].
    Result: {"unreachable": [[instance, why], ...]}.
    """
    targets = resolve(cluster, call.texts("names"), tenant_of(call))
    instances = holders(cluster, targets)
    if not instances:
        raise NotFound(f"no instance of {targets[0].name} is on any node yet")
    params = {
        "follow": call.flag("follow"),
        "tail": call.integer("tail", 0),
        "timestamps": call.flag("timestamps"),
    }
    unreachable: list[list[str]] = []

    async def pass_on(instance: Instance) -> None:
        try:
            async with cluster.ask_agent(instance, "instance.logs", params) as stream:
                while (item := await stream.receive()) is not None:
                    await call.send(item.channel, [instance.name, item.data])
                await stream.result()
        except (PeerUnreachable, NotFound) as error:
            # The other instances' output is still worth having; this one is named at the end.
            unreachable.append([instance.name, str(error)])

    async with trio.open_nursery() as nursery:
        for instance in instances:
            nursery.start_soon(pass_on, instance)
    return {"unreachable": unreachable}


async def _terminal(cluster: Cluster, call: Call) -> Any:
    """A two-way stream to a command (or the console) of one instance.

    Parameters: ``name``, and for exec ``command``, ``tty``, ``stdin``.
    """
    target = sole(cluster, call.text("name"), tenant_of(call))
    found = holders(cluster, [target])
    if not found:
        raise NotFound(f"no instance of {target.name} is on any node now")
    instance = found[0]
    params = {key: value for key, value in call.params.items() if key not in ("name", "tenant")}
    async with (
        cluster.ask_agent(instance, call.method, params) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_pass_input, call, stream)
        while (item := await stream.receive()) is not None:
            await call.send(item.channel, item.data)
        result = await stream.result()
        nursery.cancel_scope.cancel()
    return result


async def _pass_input(call: Call, stream: StreamCall) -> None:
    while (item := await call.receive()) is not None:
        await stream.send(item.channel, item.data)
