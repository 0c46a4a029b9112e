"""Who may come in: public keys to user ids, and user ids to roles (DESIGN 10).

The transport asks :meth:`Access.authorise` in every handshake; it is a look-up in memory, kept in
step with the store's records.  A key that is not in it does not get a connection.

User ids are ``admin:ID``, ``node:NAME`` and ``token:ID``; a token's connection may enrol and
nothing else.
"""

from collections.abc import Callable
from functools import wraps
from typing import Final

from swarmctl.proto.errors import Refused
from swarmctl.transport.rpc import Call, Handler

ADMIN: Final = "admin"
NODE: Final = "node"
TOKEN: Final = "token"  # noqa: S105 - a role's name


def user_id(role: str, name: str) -> str:
    """The user id of ``name`` in ``role``."""
    return f"{role}:{name}"


def role_of(user: str) -> str:
    """The role in a user id."""
    return user.partition(":")[0]


def name_of(user: str) -> str:
    """The name in a user id."""
    return user.partition(":")[2]


class Access:
    """The keys that are known now."""

    def __init__(self) -> None:
        self._users: dict[str, str] = {}

    def authorise(self, public_key: str) -> str | None:
        """The user id of a key; None refuses it."""
        return self._users.get(public_key)

    def allow(self, public_key: str, user: str) -> None:
        """Let a key in as ``user``."""
        self._users[public_key] = user

    def revoke(self, public_key: str) -> None:
        """Let a key in no more."""
        self._users.pop(public_key, None)

    def revoke_user(self, user: str) -> None:
        """Let no key of ``user`` in any more."""
        self._users = {key: who for key, who in self._users.items() if who != user}


def admins_only(handlers: dict[str, Handler]) -> dict[str, Handler]:
    """The same handlers, refusing anyone but administrators."""
    return {method: _guarded(handler) for method, handler in handlers.items()}


def _guarded(handler: Handler) -> Handler:
    inner: Callable[[Call], object] = handler

    @wraps(inner)
    async def guarded(call: Call) -> object:
        if role_of(call.user_id) != ADMIN:
            raise Refused(f"{call.user_id} may not call {call.method}")
        return await handler(call)

    return guarded
