"""What etcd's refusals mean, and what to do about them.

A member answers an error with gRPC's code and a sentence. Some say that it cannot serve just now
(no leader, too busy): the next member is asked. The others are for good, and become a
:class:`StorageFault` that says what an operator does.
"""

import http.client
from collections.abc import Mapping
from typing import Any, Final

from swarmctl.proto.errors import StorageFault

_DEADLINE_EXCEEDED: Final = 4
_RESOURCE_EXHAUSTED: Final = 8
_OUT_OF_RANGE: Final = 11
_UNAVAILABLE: Final = 14
_NOT_FOUND: Final = 5
_UNKNOWN: Final = 2
_DENIED: Final = (7, 16)
# The member cannot serve now; another one may, or itself a moment later. UNKNOWN is what the
# gateway says when its own connection into the member breaks.
RETRIED: Final = frozenset({_UNKNOWN, _DEADLINE_EXCEEDED, _UNAVAILABLE})

_NO_SPACE: Final = "database space exceeded"
_NO_SPACE_HINT: Final = (
    "free some: etcdctl compact $(a revision of now), etcdctl defrag, then etcdctl alarm disarm; "
    "or start etcd with a larger --quota-backend-bytes and disarm; work goes on by itself then"
)


class NoEtcd(StorageFault):
    """No member serves: too few of them run, or none can be reached."""

    code = "no-etcd"
    temporary = True


class EtcdRefused(StorageFault):
    """A member refused for good; ``grpc_code`` says how."""

    code = "etcd-refused"

    def __init__(self, what: str, where: str = "", hint: str = "", grpc_code: int = 0) -> None:
        super().__init__(what, where, hint)
        self.grpc_code = grpc_code

    @property
    def is_compacted(self) -> bool:
        """The revision that was asked for is gone; a newer one is there."""
        return self.grpc_code == _OUT_OF_RANGE

    @property
    def is_missing(self) -> bool:
        """The lease that was named is not there (any more)."""
        return self.grpc_code == _NOT_FOUND


def refused(answer: Mapping[str, Any], member: str) -> EtcdRefused:
    """The fault for a member's error."""
    code = answer.get("code")
    code = code if isinstance(code, int) else _UNKNOWN
    text = str(answer.get("message") or answer.get("error") or "an error without words")
    text = text.removeprefix("etcdserver: ")
    if _NO_SPACE in text:
        return EtcdRefused(
            "etcd has used up its quota (alarm NOSPACE) and takes no writes",
            member,
            _NO_SPACE_HINT,
            code,
        )
    if code == _RESOURCE_EXHAUSTED:  # "too many requests": it says so only for a moment
        hint = "it is asked again; if this stays, give etcd a faster disk, or less to do for others"
        return EtcdRefused(f"etcd is overloaded: {text}", member, hint, _UNAVAILABLE)
    if "corrupt" in text:
        hint = "see etcd's own documentation on its CORRUPT alarm; restore the member from another"
        return EtcdRefused(f"etcd says that its data is corrupt: {text}", member, hint, code)
    if code in _DENIED:
        return EtcdRefused(
            f"etcd does not let us in: {text}", member, "switch off its authentication", code
        )
    return EtcdRefused(f"etcd refuses: {text}", member, "see the log of that member", code)


def unavailable(member: str, error: Exception) -> str:
    """Why a member could not be asked, in a few words."""
    if isinstance(error, TimeoutError):
        return f"{member} does not answer"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {member}"
    if isinstance(error, http.client.HTTPException | ValueError):
        return f"{member} does not speak as an etcd does ({type(error).__name__})"
    return f"{member}: {getattr(error, 'strerror', None) or error}"
