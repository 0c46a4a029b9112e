"""A listener and links over ZeroMQ, or over the twin in memory: the contract runs on both."""

import functools
import inspect
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import pytest
import trio

from swarmctl.transport import keys, zmq_link, zmq_listener
from swarmctl.transport.memory import MemoryNetwork

# Real sockets and a real clock: generous, since the machine may be busy; never slept away.
DEADLINE_S = 20


@attrs.frozen
class Carrier:
    """One implementation of the transport, as its two openers."""

    name: str
    open_listener: Callable[..., AbstractAsyncContextManager[Any]]
    open_link: Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture(params=["zeromq", "memory"])
def carrier(request: pytest.FixtureRequest) -> Carrier:
    if request.param == "zeromq":
        return Carrier("zeromq", zmq_listener.open_listener, zmq_link.open_link)
    network = MemoryNetwork()
    return Carrier("memory", network.open_listener, network.open_link)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give every asynchronous test of this folder a deadline."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = _within_deadline(item.obj)


def _within_deadline(test):
    @functools.wraps(test)
    async def bounded(*args, **kwargs):
        # A virtual clock jumps: there a hang shows as the end of a long virtual time.
        with trio.fail_after(3600 if "autojump_clock" in kwargs else DEADLINE_S):
            await test(*args, **kwargs)

    return bounded


@pytest.fixture(scope="session")
def server_keys() -> keys.KeyPair:
    return keys.generate()


@pytest.fixture(scope="session")
def agent_keys() -> keys.KeyPair:
    return keys.generate()


@pytest.fixture(scope="session")
def stranger_keys() -> keys.KeyPair:
    return keys.generate()


@pytest.fixture
def users(agent_keys: keys.KeyPair) -> dict[str, str]:
    """Public key to user id; a test may change it."""
    return {agent_keys.public: "agent-1"}


@pytest.fixture
def free_endpoint() -> str:
    """An address of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"
