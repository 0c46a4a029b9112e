"""Record what this release says on the wire: ``python -m tests.sim.wire_recording``, at a release.

The file is kept for ever, as later releases have to read it (``test_version_skew``): an example of
each message with every field set, and all that agents said to the controller and back in the life
of a small cluster.
"""

import json
import tempfile
import types
import typing
from pathlib import Path

import attrs
import trio
import trio.testing

import swarmctl
from swarmctl.proto import codec, messages
from swarmctl.proto.messages import PROTOCOL_VERSION, Message
from swarmctl.transport.memory import Direction
from tests.sim.cluster_fixture import a_cluster, service

DATA = Path(__file__).parent.parent / "data"
_PLAIN = {str: "text", bytes: b"bytes", bool: True, int: 7, float: 1.5, typing.Any: ["any", 1]}


def kinds():
    """The messages of today, by name."""
    return {
        name: one
        for name, one in vars(messages).items()
        if isinstance(one, type) and issubclass(one, Message) and one.TAG
    }


def example(kind):
    """A value of a field's annotation, none of which is a default."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if attrs.has(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{one.name: example(hints[one.name]) for one in attrs.fields(kind)})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and arguments[-1] is Ellipsis:
        return (example(arguments[0]),)
    if origin is tuple:
        return tuple(map(example, arguments))
    if origin is dict:
        return {example(arguments[0]): example(arguments[1])}
    assert origin in (types.UnionType, typing.Union), kind
    return example(next(one for one in arguments if one is not type(None)))


async def _life(folder):
    """All payloads between three nodes and a controller, in the order of their sending."""
    said = []

    async with a_cluster(folder, 2) as world:

        def hear(passage):
            who = next((n for n, m in world.machines.items() if m.key == passage.public_key), "")
            if who:
                upwards = passage.direction is Direction.TO_LISTENER
                said.append([who, "controller" if upwards else "agent", passage.payload.hex()])
            return 0.0

        world.network.fate = hear
        await world.apply(service("web", 4), service("bad", 1, "exit=3"))
        await world.until(lambda: len(world.running()) == 4)
        await world.ask("service.restart", {"names": ["web.2"]})
        await world.ask("service.scale", {"replicas": {"web": 3}})
        await world.until(lambda: len(world.running()) == 3)
        await world.ask("service.stop", {"names": ["web.1"]})
        await world.until(lambda: len(world.running()) == 2)
        await world.restart_controller()
        await trio.sleep(20)
        for machine in world.machines.values():
            machine.scope.cancel()
        world.kill_controller()
        return said, world.cluster.state.cluster_id


def record():
    """The recording of this release, as its file holds it."""
    with tempfile.TemporaryDirectory() as folder:
        clock = trio.testing.MockClock(autojump_threshold=0)
        said, cluster_id = trio.run(_life, Path(folder), clock=clock)
    return {
        "release": swarmctl.__version__,
        "protocol": PROTOCOL_VERSION,
        "cluster_id": cluster_id,
        "examples": {name: codec.encode(example(one)).hex() for name, one in kinds().items()},
        "fields": {name: [a.name for a in attrs.fields(one)] for name, one in kinds().items()},
        "said": said,
    }


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    file = DATA / f"wire-{swarmctl.__version__}.json"
    file.write_text(json.dumps(record(), indent=0) + "\n")
