"""Short calls of the Docker SDK, in threads, each with a deadline.

The SDK blocks, and a blocked call cannot be cancelled: its caller goes on and the thread is
abandoned until the call ends by itself, which it does, for every request has a timeout of its own
just past the deadline.
A client (a connection) belongs to one call at a time: the thread takes it from the idle ones and
puts it back when it is done, so an abandoned thread never shares its client with the next call,
and there are never more of them than threads.

The SDK is imported by the first call, in its thread: it takes a quarter of a second.
"""

import socket
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

import trio

from swarmctl.agent.drivers.docker.faults import translate
from swarmctl.agent.drivers.docker.wire import Endpoint, unreachable
from swarmctl.proto.errors import DriverUnavailable

T = TypeVar("T")
# docker.APIClient; half of its methods have no types.
Client: TypeAlias = Any

# After the deadline the thread ends by itself this much later.
THREAD_MARGIN_S: Final = 1.0
# Connecting and asking for the version, where a call is the first.
CONNECT_S: Final = 5.0


class Missing(Exception):
    """dockerd knows nothing of that name; the caller knows whether that is wrong."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class NoImage(Exception):
    """dockerd does not have the image that a container is to be made from."""


class Taken(Exception):
    """dockerd answered 409: a name in use, a removal under way, a container that does not run."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Calls:
    """Where the driver's threads and connections come from.

    Args:
        endpoint: where dockerd listens.
        threads: how many calls there are at once, at the most.
    """

    def __init__(self, endpoint: Endpoint, threads: int) -> None:
        self._endpoint = endpoint
        self.limiter = trio.CapacityLimiter(threads)
        self.version = ""
        self._idle: list[Client] = []

    async def run(
        self,
        work: Callable[[Client], T],
        *,
        where: str,
        doing: str,
        deadline_s: float,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        """Run ``work`` in a thread.

        Args:
            work: what to do with a client; it must not keep it.
            where: the instance it is about, for errors.
            doing: what is done, for errors, as in ``could not {doing}``.
            deadline_s: after which the caller is told that dockerd does not answer; waiting for
                a free thread counts.
            limiter: in place of the driver's own.

        Raises:
            DriverUnavailable: dockerd is not there or does not answer in time.
            NoImage: it answered 404 for want of an image.
            Missing: it answered 404 for another reason.
            Taken: it answered 409.
            SwarmError: another error, see :func:`translate`.
        """
        with trio.move_on_after(deadline_s):
            return await trio.to_thread.run_sync(
                lambda: self._in_thread(work, where, doing, deadline_s + THREAD_MARGIN_S),
                limiter=limiter or self.limiter,
                abandon_on_cancel=True,
            )
        raise DriverUnavailable(
            f"dockerd did not {doing} within {deadline_s:g} s", where, "is dockerd hung?"
        )

    def _in_thread(
        self, work: Callable[[Client], T], where: str, doing: str, timeout_s: float
    ) -> T:
        # Local: importing them is slow, and here it delays nothing but the first call.
        import requests
        from docker.errors import APIError, DockerException, ImageNotFound

        client: Client | None = None
        try:
            client = self._take()
            client.timeout = timeout_s
            result = work(client)
        except APIError as error:
            assert client is not None
            self._put_back(client)
            text = error.explanation or str(error)
            if isinstance(error, ImageNotFound):
                raise NoImage(text) from None
            if error.status_code == 404:
                raise Missing(text) from None
            if error.status_code == 409:
                raise Taken(text) from None
            raise translate(error.status_code, text, where, doing) from None
        except (DockerException, requests.exceptions.RequestException) as error:
            self._discard(client)
            raise unavailable(error, self._endpoint) from error
        except BaseException:
            self._discard(client)
            raise
        self._put_back(client)
        return result

    def _take(self) -> Client:
        from docker import APIClient

        try:
            return self._idle.pop()
        except IndexError:
            pass  # all are in use
        self._knock()
        # The version is agreed upon once; later clients save the round trip.
        url, version = str(self._endpoint), self.version or "auto"
        client = APIClient(url, version=version, timeout=int(CONNECT_S))
        self.version = client.api_version
        return client

    def _put_back(self, client: Client) -> None:
        """It is idle, and has no connection open: it makes one when it is used.

        The SDK keeps one for each of 25 URLs, and every container has URLs of its own: they would
        all stay open, here and in dockerd, and never be used again.
        """
        client.close()
        self._idle.append(client)

    def _knock(self) -> None:
        """Connect once without the SDK, which leaks its socket and the cause when nobody is there.

        Raises:
            DriverUnavailable: nobody is there.
        """
        endpoint = self._endpoint
        try:
            if endpoint.path:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.settimeout(CONNECT_S)
                    probe.connect(endpoint.path)
            else:
                socket.create_connection((endpoint.host, endpoint.port), CONNECT_S).close()
        except OSError as error:
            raise unreachable(error, endpoint) from error

    def _discard(self, client: Client | None) -> None:
        """Close a client that may be in any state, and forget what was agreed with that dockerd."""
        self.version = ""
        if client is not None:
            client.close()

    def close(self) -> None:
        """Close the idle connections. Calls that are under way put theirs back; close again."""
        while self._idle:
            self._idle.pop().close()


def unavailable(error: Exception, endpoint: Endpoint) -> DriverUnavailable:
    """The error for an exchange with dockerd that broke off."""
    if "timed out" in str(error).lower():
        return unreachable(TimeoutError(), endpoint)
    return DriverUnavailable(
        f"dockerd broke off: {error}", str(endpoint), "was dockerd restarted? It is tried again"
    )
