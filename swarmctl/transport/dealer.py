"""The options of a DEALER that connects to a controller, for the link and the plain client.

``IMMEDIATE`` keeps libzmq from queueing for a connection that does not exist; its own
reconnecting is as good as off (see :mod:`~swarmctl.transport.zmq_link`).
"""

from typing import Final

import zmq

from swarmctl.transport import bounds as limits
from swarmctl.transport.bounds import Bounds
from swarmctl.transport.context import ZmqSocket
from swarmctl.transport.errors import InvalidEndpoint
from swarmctl.transport.keys import KeyPair

# Finds out that the other machine is gone; for both ends (see bounds.PING_TIMEOUT_S).
PROBES: Final = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, int(limits.PROBE_AFTER_S)),
    (zmq.TCP_KEEPALIVE_INTVL, int(limits.PROBE_EVERY_S)),
    (zmq.TCP_MAXRT, int(limits.PING_TIMEOUT_S * 1000)),
)


def configure_dealer(
    socket: ZmqSocket, server_public_key: str, keypair: KeyPair, bounds: Bounds, handshake_s: float
) -> None:
    """Set all options; to be called before :func:`start_connecting`."""
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.IMMEDIATE, 1),
        (zmq.SNDHWM, bounds.send_hwm),
        (zmq.RCVHWM, bounds.receive_hwm),
        (zmq.MAXMSGSIZE, bounds.payload_bytes + limits.FRAME_SLACK_BYTES),
        (zmq.RECONNECT_IVL, int(limits.LIBZMQ_RECONNECT_S * 1000)),
        (zmq.HANDSHAKE_IVL, int(handshake_s * 1000)),
        *PROBES,
    ):
        socket.set(option, value)
    socket.set(zmq.CURVE_SERVERKEY, server_public_key.encode("ascii"))
    socket.set(zmq.CURVE_PUBLICKEY, keypair.public.encode("ascii"))
    socket.set(zmq.CURVE_SECRETKEY, keypair.secret.encode("ascii"))


def start_connecting(socket: ZmqSocket, endpoint: str) -> None:
    """Begin to connect, in libzmq's background thread.

    Raises:
        InvalidEndpoint: libzmq does not take the address.
    """
    socket.set(zmq.IPV6, int("[" in endpoint))
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise InvalidEndpoint(f"not an address: {error.strerror}", endpoint) from None


def read_dealer(
    socket: ZmqSocket, count_max: int, payload_max_bytes: int
) -> tuple[list[bytes], int]:
    """Take the payloads that wait, up to ``count_max``; also returns how many were malformed."""
    batch: list[bytes] = []
    malformed = 0
    size = 0
    for _ in range(count_max):
        try:
            payload = socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            break
        several = bool(socket.get(zmq.RCVMORE))
        while socket.get(zmq.RCVMORE):
            socket.recv(zmq.NOBLOCK)
        if several or len(payload) > payload_max_bytes:
            malformed += 1
            continue
        batch.append(payload)
        size += len(payload)
        if size >= limits.BATCH_MAX_BYTES:
            break
    return batch, malformed
