"""Many requests at once over real sockets: each one that was let in is answered."""

from functools import partial

import trio

from swarmctl.client import Client
from swarmctl.controller.daemon import ControllerConfig, Edges, run_controller
from swarmctl.credentials import parse_context
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, ServiceSpec, Template
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.zmq_listener import open_listener

REQUESTS = 1_500


def ask_all(folder):
    """A window of requests at once; the answers' indexes and errors."""
    template = Template(container=ContainerSpec("box"))
    specs = [ServiceSpec(f"s{number}", template, driver="sim") for number in range(REQUESTS)]
    path = folder / "admin.context"
    with Client(parse_context(path.read_text(encoding="utf-8"), str(path))) as client:
        params = ({"services": [wire.encode_service(one)], "create_only": True} for one in specs)
        answers = list(client.call_each("service.apply", params, timeout_s=90.0))
        return [one.index for one in answers], [one.error for one in answers if one.error]


async def test_each_is_answered_though_the_clients_queue_is_full(tmp_path):
    """Answers come in bursts far larger than what a peer takes at once."""
    edges = Edges(open_listener=partial(open_listener, bounds=Bounds(send_hwm=4)))
    config = ControllerConfig(tmp_path, listen=("tcp://127.0.0.1:0",))
    with trio.fail_after(180):
        async with trio.open_nursery() as nursery:
            cluster = await nursery.start(partial(run_controller, config, edges=edges))
            indexes, errors = await trio.to_thread.run_sync(ask_all, tmp_path)

            assert sorted(indexes) == list(range(REQUESTS))
            assert errors == []
            assert len(cluster.state.services) == REQUESTS
            nursery.cancel_scope.cancel()
