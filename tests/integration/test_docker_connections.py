"""The connections that calls of the Docker SDK leave open, against a real dockerd."""

from pathlib import Path

import pytest

from swarmctl.agent.drivers.docker.calls import Calls, Missing
from swarmctl.agent.drivers.docker.wire import Endpoint

CALLS = 40


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_connection_is_not_kept_for_every_container():
    """Calls about forty containers leave no more open than the first one did."""
    calls = Calls(Endpoint(path="/var/run/docker.sock"), 2)

    async def ask(number):
        with pytest.raises(Missing):
            await calls.run(
                lambda client: client.inspect_container(f"nobody-{number}"),
                where="",
                doing="inspect",
                deadline_s=30.0,
            )

    try:
        await ask(0)
        before = open_descriptors()
        for number in range(1, CALLS):
            await ask(number)
        assert open_descriptors() <= before + 1
    finally:
        calls.close()
