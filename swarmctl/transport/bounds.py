"""Every bound of the transport, each with its reason.

What both sides of the protocol must agree on is in :mod:`swarmctl.proto.limits`.
"""

from typing import Final

import attrs

from swarmctl.proto.limits import MESSAGE_MAX_BYTES

# --- queues ------------------------------------------------------------------------------------

# A peer this many messages behind is stuck, not slow: a heartbeat is due every 2 s.
PEER_HWM: Final = 1_000
# Messages in one batch: large enough that one plan takes a whole burst, small enough that the
# loop gets its turn (about 5 ms of reading).
BATCH_MAX: Final = 1_000
# Bytes in one batch, so that a thousand large messages are not held at once.
BATCH_MAX_BYTES: Final = 32 * 1024 * 1024
# Connection events that wait for the loop; beyond that libzmq stops accepting until it is read.
MONITOR_HWM: Final = 100_000
# Departed peers that wait to be taken; the oldest are dropped (heartbeats tell it later).
DEPARTED_MAX: Final = 100_000
# Handshakes that the kernel holds while the I/O thread computes: a fleet that joins at once.
ACCEPT_BACKLOG: Final = 4_096
# A frame may exceed the payload's bound by this much and is then counted and dropped, with the
# connection kept; more than that, and libzmq ends the connection. It covers CURVE's 33 bytes.
FRAME_SLACK_BYTES: Final = 64 * 1024
# Sockets of a context (libzmq's default of 1,023 is too few): a link takes three.
SOCKETS_MAX: Final = 65_535

# --- times -------------------------------------------------------------------------------------

# The answer to a SYN; longer means that no machine is there. The kernel asks again after 1 and 3 s.
CONNECT_TIMEOUT_S: Final = 3.0
# CURVE and the key's check. 10,000 agents that join at once need 7 s on two cores and 45 s on two
# slow ones that also simulate the agents; a bound that is shorter than that makes them give up and
# come again, half of them with 20 s.
HANDSHAKE_TIMEOUT_S: Final = 60.0
# libzmq's own bound is that much longer at the connecting end: what it ends looks like a refusal.
HANDSHAKE_MARGIN_S: Final = 5.0
# A connection whose other end vanished without a FIN is ended after this, by the kernel: it sends
# probes where nothing moves, and waits no longer for what is not acknowledged. The session's
# heartbeats are quicker; this frees the connection's memory. ZeroMQ's own pings would do it too,
# but between 10,000 agents and a controller they cost more than the heartbeats.
PING_TIMEOUT_S: Final = 15.0
PROBE_AFTER_S: Final = 5.0
PROBE_EVERY_S: Final = 3.0
# The same for the plain client: it waits for one answer.
CLIENT_CONNECT_TIMEOUT_S: Final = 1.0
CLIENT_HANDSHAKE_TIMEOUT_S: Final = 5.0
# It also pings: it has no heartbeats, and the kernel of a controller that hangs still answers.
# libzmq's own threads reply, however busy the controller is; a request that has ten seconds is to
# notice one that is frozen in time to ask another.
CLIENT_PING_S: Final = 1.5
CLIENT_PING_TIMEOUT_S: Final = 5.0
# libzmq must not reconnect behind our back: see zmq_link.
LIBZMQ_RECONNECT_S: Final = 3_600.0


@attrs.frozen
class Bounds:
    """The bounds that a caller (above all a test) may set for one listener or link.

    Attributes:
        payload_bytes: the largest payload, both ways.
        send_hwm: messages queued to one peer before a send raises Backpressure.
        receive_hwm: messages of one peer held before TCP is made to wait.
        batch_max: messages in one batch.
    """

    payload_bytes: int = MESSAGE_MAX_BYTES
    send_hwm: int = PEER_HWM
    receive_hwm: int = PEER_HWM
    batch_max: int = BATCH_MAX
