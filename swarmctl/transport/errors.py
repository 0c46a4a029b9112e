"""What can go wrong between two ends, by who is at fault.

:class:`~swarmctl.proto.errors.PeerUnreachable` and ``NoController`` come from ``proto``: they mean
the same above this layer.
"""

from typing import Self

from swarmctl.proto.errors import (
    Busy,
    EnvironmentFault,
    InternalError,
    PeerError,
    PeerUnreachable,
    Refused,
    UserError,
)


class LinkLost(PeerUnreachable):
    """The connection that the caller adopted is gone, or none was adopted yet."""

    code = "link-lost"


class Backpressure(Busy):
    """The peer's queue is at its high-water mark; this payload was not taken."""

    code = "backpressure"


class AddressInUse(EnvironmentFault):
    """Another process listens on this address."""

    code = "address-in-use"


class CannotListen(EnvironmentFault):
    """This address cannot be listened on: not ours, or not permitted."""

    code = "cannot-listen"


class InvalidEndpoint(UserError):
    """An address that is not of the form ``tcp://HOST:PORT``."""

    code = "invalid-endpoint"
    exit_code = 2


class HandshakeFailed(PeerError):
    """Something answers at the address, but not as the controller whose key we hold."""

    code = "handshake"
    exit_code = 3  # As with nobody there: no controller of ours is in reach.


class HandshakeLate(HandshakeFailed):
    """Something listens at the address, and has said nothing yet: it hangs, or is another thing."""

    code = "handshake-late"

    @classmethod
    def at(cls, endpoint: str) -> Self:
        """The error for the handshake with ``endpoint``."""
        return cls(
            "something listens there, but it did not complete the handshake in time",
            endpoint,
            "is it a swarmctl controller, and does it run?",
        )


class KeyRefused(Refused):
    """The controller does not know our key, or has revoked it."""

    code = "key-refused"


class KeyFileError(UserError):
    """A key file is missing, malformed, or readable by others."""

    code = "key-file"


class KeyFileFault(EnvironmentFault):
    """A key file cannot be written or read: permission, a full disk."""

    code = "key-file-fault"


class PayloadTooLarge(InternalError):
    """A payload beyond the bound was to be sent: whoever built it has to split it."""

    code = "payload-too-large"
