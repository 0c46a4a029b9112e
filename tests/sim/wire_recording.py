"""Record what this release says on the wire: ``python -m tests.sim.wire_recording``, at a release.

The file is kept for ever, as later releases have to read it and to act on it
(``test_recorded_releases``).  In it are an example of each message with every field set, and all
payloads, in the order of their sending, of a node, a client and a controller through the life of a
small cluster: enrolment, launches, a crash loop, a restart, scaling, a stop, logs, a new start of
the controller, and the end of it all.

It runs in older checkouts too (those that have ``tests/sim/cluster_fixture.py``): copy it there.
"""

import contextlib
import json
import platform
import sys
import tempfile
import types
import typing
from pathlib import Path

import attrs
import trio
import trio.testing

import swarmctl
from swarmctl.controller import identity as identities
from swarmctl.proto import codec, messages
from swarmctl.proto.errors import InvalidSpec
from swarmctl.proto.messages import PROTOCOL_VERSION, Message
from swarmctl.transport.memory import Direction
from tests.sim.cluster_fixture import ENDPOINT, a_cluster, service

DATA = Path(__file__).parent.parent / "data"
NODE, CLIENT = "n1", "client"
# What is not a payload: the controller's process ends, and another begins.
RESTARTED = "restarted"
# Whose words do not belong into the file: the machine that it is made on.
MACHINE = {"node": "recorded", "release": "6.1", "machine": "x86_64", "system": "Linux"}
# Virtual seconds until heartbeats have told that both sides agree.
CALM_S = 10
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
    """What was said, as [seconds from the begin, who, to whom, payload]; and the cluster's id."""
    said = []

    async with a_cluster(folder, 0) as world:
        began = trio.current_time()
        identity = identities.load_or_make(world.folder)
        admin = identities.write_context(world.folder, identity, (ENDPOINT,), "default").public_key

        def note(who, to, payload=b""):
            said.append([round(trio.current_time() - began, 3), who, to, payload.hex()])

        def hear(passage):
            who = CLIENT if passage.public_key == admin else NODE
            upwards = passage.direction is Direction.TO_LISTENER
            note(who, "controller" if upwards else who, passage.payload)
            return 0.0

        async def calm(**slots):
            """Until each service runs in so many slots, and a while longer."""
            await world.until(
                lambda: all(len(world.running(name)) == many for name, many in slots.items())
            )
            await trio.sleep(CALM_S)

        world.network.fate = hear
        await world.start_node(NODE)
        await world.apply(service("web", 4))
        await calm(web=4)
        await world.apply(service("bad", 1, "exit=3"))
        await trio.sleep(CALM_S)
        await world.ask("service.restart", {"names": ["web.2"]})
        await calm(web=4)
        with contextlib.suppress(InvalidSpec):  # A simulated node is asked, and has none.
            await world.ask("instance.logs", {"names": ["web.2"]})
        await world.ask("service.scale", {"replicas": {"web": 3}})
        await calm(web=3)
        await world.ask("service.stop", {"names": ["web.1"]})
        await calm(web=2)
        await world.ask("instance.list")
        note("controller", RESTARTED)
        await world.restart_controller()
        await trio.sleep(CALM_S)
        await world.ask("service.start", {"names": ["web.1"]})
        await world.ask("service.remove", {"names": ["bad"]})
        await calm(web=3)
        await world.ask("instance.list")
        await world.ask("node.list")
        return said, identity.cluster_id


def record():
    """The recording of this release, as its file holds it."""
    for name, value in MACHINE.items():
        setattr(platform, name, lambda value=value: value)
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
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    folder.mkdir(exist_ok=True)
    file = folder / f"wire-{swarmctl.__version__}.json"
    file.write_text(json.dumps(record(), indent=None, separators=(",", ":")) + "\n")
