"""A blocking client of etcd's JSON gateway: all members' addresses in turn, with deadlines.

For threads; one client belongs to one thread, and keeps one connection.
A request goes to the member that answered last. One that refuses, is silent past ``ATTEMPT_S``, or
says that it has no leader is left for the next, until the call's deadline. So a request may have
been carried out although its answer was lost, and then is sent again: whoever calls makes requests
that can be repeated without harm.

Keys and values are bytes, base64 on the wire; int64 are decimal strings there, and left out when
they are zero.
"""

import base64
import http.client
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.etcd.faults import (
    RETRIED,
    EtcdRefused,
    NoEtcd,
    refused,
    unavailable,
)

# One member's time for a request: a healthy one takes milliseconds, and a lease must survive two
# that are frozen.
ATTEMPT_S: Final = 0.8
# A commit of a mebibyte on a slow disk may take longer than a small question.
LARGE_ATTEMPT_S: Final = 5.0
LARGE_BYTES: Final = 128 * 1024
# Between two rounds in which no member could serve; an election takes about a second.
ROUND_PAUSE_S: Final = 0.05

Json = dict[str, Any]


def encode(data: bytes) -> str:
    """Bytes as the gateway takes them."""
    return base64.b64encode(data).decode("ascii")


def decode(text: str) -> bytes:
    """Bytes that the gateway gave."""
    return base64.b64decode(text)


def after_prefix(prefix: bytes) -> bytes:
    """The first key beyond all that begin with ``prefix``, whose last byte is not 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


class EtcdClient:
    """See the module's docstring.

    Args:
        address: the members.
        now: monotonic seconds.
        sleep: waits seconds.
    """

    def __init__(
        self,
        address: EtcdAddress,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._members = address.members
        self._position = 0
        self._connection: http.client.HTTPConnection | None = None
        self._now = now
        self._sleep = sleep

    def close(self) -> None:
        """Let go of the connection; the next call makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- operations ---------------------------------------------------------------------------

    def range(
        self, key: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0, deadline_s: float
    ) -> Json:
        """Keys from ``key`` up to ``end`` (``key`` alone without one), linearizable."""
        body: Json = {"key": encode(key)}
        if end:
            body["range_end"] = encode(end)
        if limit:
            body["limit"] = str(limit)
        if revision:
            body["revision"] = str(revision)
        return self.call("/v3/kv/range", body, deadline_s=deadline_s)

    def transact(
        self,
        compare: Sequence[Json],
        success: Sequence[Json],
        failure: Sequence[Json],
        *,
        deadline_s: float,
        note_doubt: Callable[[], None] = lambda: None,
    ) -> Json:
        """``success`` if every ``compare`` holds, else ``failure``; ``succeeded`` says which.

        ``note_doubt`` is called when an attempt ended without an answer: it may have been done.
        """
        body = {"compare": list(compare), "success": list(success), "failure": list(failure)}
        return self.call("/v3/kv/txn", body, deadline_s=deadline_s, note_doubt=note_doubt)

    def call(
        self,
        path: str,
        body: Json,
        *,
        deadline_s: float,
        note_doubt: Callable[[], None] = lambda: None,
    ) -> Json:
        """POST ``body`` to ``path`` of some member.

        Args:
            path: of the gateway.
            body: the request.
            deadline_s: for all attempts together, in seconds from now.
            note_doubt: see :meth:`transact`.

        Raises:
            NoEtcd: no member served it in time; it may have been carried out.
            EtcdRefused: a member refused it for good; nothing was done.
        """
        payload = json.dumps(body).encode()
        attempt_s = LARGE_ATTEMPT_S if len(payload) > LARGE_BYTES else ATTEMPT_S
        deadline = self._now() + deadline_s
        tried = 0
        why = "its time was over"
        while (left_s := deadline - self._now()) > 0:
            try:
                status, answer = self._attempt(path, payload, min(attempt_s, left_s))
            except ConnectionRefusedError as error:
                why = unavailable(self._members[self._position], error)
            except (OSError, http.client.HTTPException, ValueError) as error:
                note_doubt()
                why = unavailable(self._members[self._position], error)
            else:
                if status == http.client.OK:
                    return answer
                failure = refused(answer, self._members[self._position])
                if failure.grpc_code not in RETRIED:
                    raise failure
                note_doubt()
                why = failure.what
            tried += 1
            self.close()
            self._position = (self._position + 1) % len(self._members)
            if tried % len(self._members) == 0:
                self._sleep(min(ROUND_PAUSE_S, max(0.0, deadline - self._now())))
        raise NoEtcd(
            f"no member of etcd serves: {why}",
            where=", ".join(self._members),
            hint="a majority of its members has to run; work goes on by itself once it does",
        )

    def _attempt(self, path: str, payload: bytes, timeout_s: float) -> tuple[int, Json]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                self._members[self._position], timeout=timeout_s
            )
        self._connection.timeout = timeout_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", path, payload, headers)
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if not isinstance(answer, dict):
            raise ValueError(f"an answer that is no object: {str(answer)[:80]}")  # noqa: TRY004 - caught above with other noise
        return response.status, answer


# --- parts of transactions --------------------------------------------------------------------


def value_is(key: bytes, value: bytes) -> Json:
    """``key`` exists and has this value."""
    return {"key": encode(key), "target": "VALUE", "result": "EQUAL", "value": encode(value)}


def is_absent(key: bytes) -> Json:
    """There is no such key."""
    return {"key": encode(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}


def has_lease(key: bytes, lease: int) -> Json:
    """``key`` exists, on this lease."""
    return {"key": encode(key), "target": "LEASE", "result": "EQUAL", "lease": str(lease)}


def put(key: bytes, value: bytes, lease: int = 0) -> Json:
    """Set ``key``."""
    request = {"key": encode(key), "value": encode(value)}
    if lease:
        request["lease"] = str(lease)
    return {"request_put": request}


def get(key: bytes) -> Json:
    """Read ``key``."""
    return {"request_range": {"key": encode(key)}}


def delete(key: bytes) -> Json:
    """Remove ``key``."""
    return {"request_delete_range": {"key": encode(key)}}


def entries(answer: Json) -> list[tuple[bytes, bytes]]:
    """Keys and values in a range's answer, by key."""
    return [(decode(one["key"]), decode(one.get("value", ""))) for one in answer.get("kvs", ())]


def values_read(answer: Json) -> list[bytes | None]:
    """What each :func:`get` of a transaction found, in order."""
    found: list[bytes | None] = []
    for response in answer.get("responses", ()):
        part = response.get("response_range")
        if part is not None:
            kvs = entries(part)
            found.append(kvs[0][1] if kvs else None)
    return found


__all__ = [
    "EtcdClient",
    "EtcdRefused",
    "Json",
    "NoEtcd",
    "after_prefix",
    "decode",
    "delete",
    "encode",
    "entries",
    "get",
    "has_lease",
    "is_absent",
    "put",
    "value_is",
    "values_read",
]
