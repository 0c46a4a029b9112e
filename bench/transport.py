"""Joins and messages per second of the listener, beside bare pyzmq in the same run.

    python -m bench.transport [--peers 1000] [--rounds 20] [--repeat 3] [--processes 1]

Other processes hold the peers as bare CURVE DEALERs, the same for both servers, so that the two
differ in the server alone:

- *bare*: a ROUTER and an authenticator that lets everybody in, in one ``zmq.Poller`` loop,
  echoing what comes, without a check of anything;
- *listener*: ``swarmctl.transport.zmq_listener`` on trio, with its ``authorize``, its watch over
  connections and its batches, echoing likewise.

*Joins*: connect all peers, each says one payload and waits for its echo. *Messages*: each peer
sends ``rounds`` payloads, all under way at once, and takes their echoes. The servers take turns;
medians are shown. It also times the plain client: connect, one round trip, close.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import attrs
import trio
import zmq

from swarmctl.transport import keys, sync_client
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.context import ZmqSocket, new_context
from swarmctl.transport.dealer import configure_dealer
from swarmctl.transport.keys import KeyPair
from swarmctl.transport.zmq_listener import open_listener

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

PAYLOAD = bytes(100)
# Nothing here takes longer unless it hangs.
DEADLINE_S = 120.0


@attrs.frozen
class Load:
    """How much one run does."""

    peers: int
    rounds: int
    processes: int

    @property
    def messages(self) -> int:
        """Payloads that a server echoes in one run."""
        return self.peers * (1 + self.rounds)


@attrs.frozen
class Result:
    """What one run reached."""

    joins_per_s: float
    messages_per_s: float


# --- the peers' processes -------------------------------------------------------------------------


def be_peers(
    pipe: Connection, endpoint: str, server_public: str, pair: KeyPair, peers: int, rounds: int
) -> None:
    """Hold ``peers`` DEALERs; report after the joins and after the rounds."""
    context = new_context()
    sockets: list[ZmqSocket] = []
    pipe.send("ready")
    pipe.recv()
    for _ in range(peers):
        socket = context.socket(zmq.DEALER)
        configure_dealer(socket, server_public, pair, Bounds(), DEADLINE_S)
        # This one waits for its connection by queueing, which IMMEDIATE forbids.
        socket.set(zmq.IMMEDIATE, 0)
        socket.set(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        socket.connect(endpoint)
        socket.send(PAYLOAD)
        sockets.append(socket)
    for socket in sockets:
        socket.recv()
    pipe.send("joined")
    pipe.recv()
    for _ in range(rounds):
        for socket in sockets:
            socket.send(PAYLOAD)
    for socket in sockets:
        for _ in range(rounds):
            socket.recv()
    pipe.send("done")
    pipe.recv()
    for socket in sockets:
        socket.close()
    context.term()


def drive(endpoint: str, server_public: str, pair: KeyPair, load: Load) -> Result:
    """Start the peers' processes and time them; runs beside the server."""
    spawn = multiprocessing.get_context("spawn")
    share = load.peers // load.processes
    pipes: list[Connection] = []
    processes: list[SpawnProcess] = []
    for _ in range(load.processes):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=be_peers, args=(theirs, endpoint, server_public, pair, share, load.rounds)
        )
        process.start()
        pipes.append(ours)
        processes.append(process)
    try:
        _await_all(pipes)
        joining_s = _time_phase(pipes)
        messaging_s = _time_phase(pipes)
        for pipe in pipes:
            pipe.send("go")
    finally:
        for process in processes:
            process.join(DEADLINE_S)
            if process.is_alive():
                process.kill()
    peers = share * load.processes
    return Result(peers / joining_s, peers * load.rounds / messaging_s)


def _time_phase(pipes: Sequence[Connection]) -> float:
    begun = time.perf_counter()
    for pipe in pipes:
        pipe.send("go")
    _await_all(pipes)
    return time.perf_counter() - begun


def _await_all(pipes: Sequence[Connection]) -> None:
    for pipe in pipes:
        if not pipe.poll(DEADLINE_S):
            raise TimeoutError("a process of peers did not finish")
        pipe.recv()


# --- the servers ----------------------------------------------------------------------------------


def run_bare(load: Load) -> Result:
    """Serve with pyzmq alone."""
    server, pair = keys.generate(), keys.generate()
    context = new_context()
    authenticator = context.socket(zmq.REP)
    authenticator.bind("inproc://zeromq.zap.01")
    router = context.socket(zmq.ROUTER)
    router.set(zmq.LINGER, 0)
    router.set(zmq.BACKLOG, 4096)
    router.set(zmq.CURVE_SERVER, 1)
    router.set(zmq.CURVE_SECRETKEY, server.secret.encode())
    router.set_string(zmq.ZAP_DOMAIN, "bench")
    port = router.bind_to_random_port("tcp://127.0.0.1")
    poller = zmq.Poller()
    poller.register(authenticator, zmq.POLLIN)
    poller.register(router, zmq.POLLIN)

    async def main() -> Result:
        # The echo loop has its own thread; trio only waits for the driver's.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve)
            return await trio.to_thread.run_sync(
                drive, f"tcp://127.0.0.1:{port}", server.public, pair, load
            )

    def serve() -> None:
        echoed = 0
        while echoed < load.messages:
            ready = dict(poller.poll(int(DEADLINE_S * 1000)))
            if authenticator in ready:
                _drain(authenticator, _let_in)
            if router in ready:
                echoed += _drain(router, router.send_multipart)

    def _let_in(request: list[bytes]) -> None:
        authenticator.send_multipart([request[0], request[1], b"200", b"OK", b"peer", b""])

    try:
        return trio.run(main)
    finally:
        router.close()
        authenticator.close()
        context.term()


def _drain(socket: ZmqSocket, handle: Callable[[list[bytes]], object]) -> int:
    handled = 0
    while True:
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return handled
        handle(frames)
        handled += 1


def run_listener(load: Load) -> Result:
    """Serve with swarmctl's listener."""
    server, pair = keys.generate(), keys.generate()
    users = {pair.public: "peer"}

    async def main() -> Result:
        async with (
            open_listener("tcp://127.0.0.1:0", server, users.get) as listener,
            trio.open_nursery() as nursery,
        ):

            async def serve() -> None:
                while True:
                    for arrival in await listener.receive_batch():
                        listener.send(arrival.peer, arrival.payload)
                    listener.take_departed()

            nursery.start_soon(serve)
            result = await trio.to_thread.run_sync(
                drive, listener.endpoint, server.public, pair, load
            )
            nursery.cancel_scope.cancel()
        return result

    return trio.run(main)


# --- the plain client -----------------------------------------------------------------------------


def time_plain_client(count: int) -> list[float]:
    """Seconds for connect, one round trip and close, ``count`` times."""
    server, pair = keys.generate(), keys.generate()
    users = {pair.public: "admin"}

    def talk(endpoint: str) -> float:
        begun = time.perf_counter()
        with sync_client.connect(endpoint, server.public, pair) as client:
            client.send(PAYLOAD)
            client.receive(5.0)
        return time.perf_counter() - begun

    async def main() -> list[float]:
        times = []
        async with (
            open_listener("tcp://127.0.0.1:0", server, users.get) as listener,
            trio.open_nursery() as nursery,
        ):

            async def serve() -> None:
                while True:
                    for arrival in await listener.receive_batch():
                        listener.send(arrival.peer, arrival.payload)

            nursery.start_soon(serve)
            for _ in range(count):
                times.append(await trio.to_thread.run_sync(talk, listener.endpoint))  # noqa: PERF401
            nursery.cancel_scope.cancel()
        return times

    return trio.run(main)


def main() -> None:
    """Run it all and print a table."""
    parser = argparse.ArgumentParser(description="joins and messages per second")
    parser.add_argument("--peers", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="that hold the peers")
    options = parser.parse_args()
    load = Load(options.peers, options.rounds, options.processes)
    results: dict[str, list[Result]] = {"bare": [], "listener": []}
    for _ in range(options.repeat):
        results["bare"].append(run_bare(load))
        results["listener"].append(run_listener(load))
    joins = {n: statistics.median(r.joins_per_s for r in rs) for n, rs in results.items()}
    messages = {n: statistics.median(r.messages_per_s for r in rs) for n, rs in results.items()}
    print(f"{load.peers} peers, {load.rounds} rounds, median of {options.repeat}")
    print(f"{'':10}{'joins/s':>12}{'messages/s':>12}")
    for name in results:
        print(f"{name:10}{joins[name]:12.0f}{messages[name]:12.0f}")
    print(
        f"{'ratio':10}{joins['listener'] / joins['bare']:12.2f}"
        f"{messages['listener'] / messages['bare']:12.2f}"
    )
    client_ms = statistics.median(time_plain_client(7)) * 1000
    print(f"plain client: connect, round trip and close in {client_ms:.1f} ms (median of 7)")


if __name__ == "__main__":
    main()
