"""Error classes, by who is at fault.

An error that a person will read carries three things: *what* is wrong, *where* (a file, a line,
a field, a node) and a *hint* of what to do.
Errors cross the wire as their class's ``code`` and those three texts, so that the command line
shows what the agent saw, and maps it to an exit code without parsing text.

The four families are closed: :class:`UserError` (the request is wrong), :class:`PeerError` (the
other end broke the protocol or is not there), :class:`EnvironmentFault` (a daemon, disk or network
outside of us does not work) and :class:`InternalError` (our bug).
Whether a repetition may help is a property of the error: ``temporary``.
"""

from typing import ClassVar


class SwarmError(Exception):
    """Base of all errors that swarmctl raises on purpose.

    Args:
        what: one sentence without a final full stop: what is wrong.
        where: the file, field, node or address it is about; empty when there is none.
        hint: what to do about it; empty when there is nothing to do.
    """

    code: ClassVar[str] = "error"
    temporary: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        located = f"{self.where}: {self.what}" if self.where else self.what
        return f"{located} ({self.hint})" if self.hint else located


class UserError(SwarmError):
    """The request is wrong: a name, a size, a file, an image that does not exist."""

    code = "user"


class InvalidSpec(UserError):
    """A stack file, an option or a field in a request is not valid."""

    code = "invalid"
    exit_code = 2


class NotFound(UserError):
    """A service, instance, node or token of that name does not exist."""

    code = "not-found"


class Conflict(UserError):
    """The request contradicts what is there: a name in use, a live session of the same node."""

    code = "conflict"


class Refused(UserError):
    """The key or token presented does not allow this."""

    code = "refused"


class NothingFits(UserError):
    """No node can take the instance; ``what`` counts the reasons."""

    code = "nothing-fits"
    exit_code = 4


class WaitExpired(UserError):
    """A ``--wait`` ran out of time before its condition was true."""

    code = "wait-expired"
    exit_code = 4


class PeerError(SwarmError):
    """The other end broke the protocol, or is not there."""

    code = "peer"


class PeerUnreachable(PeerError):
    """The peer is not connected; nothing was queued."""

    code = "unreachable"
    temporary = True


class NoController(PeerUnreachable):
    """No controller answers at any of the context's addresses."""

    code = "no-controller"
    exit_code = 3


class ProtocolError(PeerError):
    """The peer sent something that the protocol does not allow."""

    code = "protocol"


class VersionMismatch(ProtocolError):
    """The peer speaks a protocol version that this release does not."""

    code = "version"


class NotLeader(PeerUnreachable):
    """This controller does not lead; another one does, or will in a moment."""

    code = "not-leader"


class StaleTerm(PeerError):
    """Another controller has taken a higher term (DESIGN 8.1): whoever gets this must stop."""

    code = "stale-term"


class EnvironmentFault(SwarmError):
    """Something outside of swarmctl does not work: a daemon, a disk, a network."""

    code = "environment"


class Busy(EnvironmentFault):
    """A bound is reached; repeating the request a little later will work.

    ``retry_ms`` says when; then nothing of it was done, so that whoever asked may repeat it
    without looking. 0 leaves that to a person.
    """

    code = "busy"
    temporary = True

    def __init__(self, what: str, where: str = "", hint: str = "", retry_ms: int = 0) -> None:
        super().__init__(what, where, hint)
        self.retry_ms = retry_ms


class DriverUnavailable(EnvironmentFault):
    """A driver's daemon (dockerd, libvirtd) does not answer."""

    code = "driver-unavailable"
    temporary = True


class LaunchFailed(EnvironmentFault):
    """An instance could not be created or started, for a reason that a retry may not mend."""

    code = "launch-failed"


class PortNotUp(LaunchFailed):
    """A port of an instance did not come up in time; ``port`` is its name, where that is known."""

    code = "port-not-up"

    def __init__(self, what: str, where: str = "", hint: str = "", *, port: str = "") -> None:
        super().__init__(what, where, hint)
        self.port = port


class StorageFault(EnvironmentFault):
    """The disk under the store or the journal refuses: full, read-only, no permission."""

    code = "storage"


class StorageDamaged(StorageFault):
    """A file that holds truth cannot be trusted any more; it is left as it is."""

    code = "storage-damaged"


class DeadlineExceeded(EnvironmentFault):
    """An operation did not end within its deadline."""

    code = "deadline"
    temporary = True


class InternalError(SwarmError):
    """A defect in swarmctl itself."""

    code = "internal"


def _families(cls: type[SwarmError]) -> dict[str, type[SwarmError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found.update(_families(child))
    return found


def from_wire(code: str, what: str, where: str, hint: str, retry_ms: int = 0) -> SwarmError:
    """Rebuild an error that crossed the wire; an unknown code becomes a plain PeerError."""
    if code == Busy.code:
        return Busy(what, where, hint, retry_ms)
    return _families(SwarmError).get(code, PeerError)(what, where, hint)


def sole_error(error: BaseException) -> BaseException:
    """What really went wrong in a group of a nursery's tasks: a defect, else the first of ours."""
    while isinstance(error, BaseExceptionGroup):
        _, defects = error.split(SwarmError)
        error = (defects or error).exceptions[0]
    return error
