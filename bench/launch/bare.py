"""What a connection takes in a bare pyzmq ROUTER with CURVE: the floor under an agent's memory.

Two kinds of processes, both of this module: ``router`` echoes whatever comes, lets everybody in
and says how much memory it has; ``peers`` hold the connections.  Each peer has sent one message
and received its echo, so that buffers that are made at the first message are counted.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import zmq

from bench.launch.cluster import memory_mib
from swarmctl.proto.errors import EnvironmentFault
from swarmctl.transport import keys
from swarmctl.transport.bounds import ACCEPT_BACKLOG, Bounds
from swarmctl.transport.context import ZmqSocket, new_context
from swarmctl.transport.dealer import configure_dealer
from swarmctl.transport.keys import KeyPair

# As large as a heartbeat.
_PAYLOAD: Final = bytes(64)
# Handshakes under way at once of one process.
_AT_ONCE: Final = 200
_DEADLINE_S: Final = 60.0
_ROOT: Final = Path(__file__).parents[2]


def memory_per_connection_kib(connections: int, processes: int) -> float:
    """Measure it; both ends are ended before this returns.

    Raises:
        EnvironmentFault: one of the processes failed.
    """
    server, pair = keys.generate(), keys.generate()
    with _process("router", server.public, server.secret) as router:
        port = _line(router)
        before_mib = memory_mib(router.pid)
        share = connections // processes
        with _peers(processes, [port, server.public, pair.public, pair.secret, str(share)]):
            after_mib = memory_mib(router.pid)
    return (after_mib - before_mib) * 1024 / (share * processes)


@contextmanager
def _peers(processes: int, arguments: list[str]) -> Iterator[None]:
    """Processes of connected peers; all connected inside the block."""
    if not processes:
        yield
        return
    with _process("peers", *arguments) as peers:
        _line(peers)
        with _peers(processes - 1, arguments):
            yield


@contextmanager
def _process(role: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.launch.bare", role, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise EnvironmentFault("a process of the bare measurement ended early")
    return line


def route(public: str, secret: str) -> None:
    """Echo until killed."""
    del public
    context = new_context()
    authenticator = context.socket(zmq.REP)
    authenticator.bind("inproc://zeromq.zap.01")
    router = context.socket(zmq.ROUTER)
    router.set(zmq.BACKLOG, ACCEPT_BACKLOG)
    router.set(zmq.CURVE_SERVER, 1)
    router.set(zmq.CURVE_SECRETKEY, secret.encode())
    router.set_string(zmq.ZAP_DOMAIN, "bench")
    print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    poller = zmq.Poller()
    poller.register(authenticator, zmq.POLLIN)
    poller.register(router, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if authenticator in ready:
            request = authenticator.recv_multipart()
            authenticator.send_multipart([request[0], request[1], b"200", b"OK", b"peer", b""])
        if router in ready:
            router.send_multipart(router.recv_multipart())


def hold(port: str, server_public: str, public: str, secret: str, count: int) -> None:
    """Hold ``count`` connections until killed."""
    context = new_context()
    pair = KeyPair(public, secret)
    sockets: list[ZmqSocket] = []
    for start in range(0, count, _AT_ONCE):
        fresh = [
            _dial(context.socket(zmq.DEALER), f"tcp://127.0.0.1:{port}", server_public, pair)
            for _ in range(min(_AT_ONCE, count - start))
        ]
        for socket in fresh:
            socket.recv()
        sockets += fresh
    print(len(sockets), flush=True)
    sys.stdin.read()


def _dial(socket: ZmqSocket, endpoint: str, server_public: str, pair: KeyPair) -> ZmqSocket:
    configure_dealer(socket, server_public, pair, Bounds(), _DEADLINE_S)
    # It waits for its connection by queueing, which IMMEDIATE forbids.
    socket.set(zmq.IMMEDIATE, 0)
    socket.set(zmq.RCVTIMEO, int(_DEADLINE_S * 1000))
    socket.connect(endpoint)
    socket.send(_PAYLOAD)
    return socket


if __name__ == "__main__":
    if sys.argv[1] == "router":
        route(sys.argv[2], sys.argv[3])
    else:
        port, server_public, public, secret, count = sys.argv[2:]
        hold(port, server_public, public, secret, int(count))
