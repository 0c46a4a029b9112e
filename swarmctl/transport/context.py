"""ZeroMQ contexts with room for thousands of peers.

A listener has a context of its own, because a context has one authenticator. All links of a
process share one, because each context costs two threads; it lives as long as the process.
"""

import os
import resource
from typing import Final

import zmq

from swarmctl.transport.bounds import SOCKETS_MAX

ZmqContext = zmq.Context[zmq.Socket[bytes]]
ZmqSocket = zmq.Socket[bytes]

# libzmq's ZMQ_ZERO_COPY_RECV, which pyzmq has no name for. With it every message that waits holds
# on to the 18 KiB into which it was received (libzmq's pull request 2969): gigabytes a minute, to a
# controller that is behind ten thousand agents.
_ZERO_COPY_RECV: Final = 10

_shared: dict[int, ZmqContext] = {}


def new_context() -> ZmqContext:
    """A context that may have ``SOCKETS_MAX`` sockets; also raises the limit of open files."""
    raise_open_files_limit()
    context: ZmqContext = zmq.Context()
    context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
    context.set(_ZERO_COPY_RECV, 0)
    return context


def shared_context() -> ZmqContext:
    """The context of all links of this process (keyed by pid: it does not survive a fork)."""
    process = os.getpid()
    if process not in _shared:
        _shared[process] = new_context()
    return _shared[process]


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
