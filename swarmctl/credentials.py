"""What opens a cluster's door: contexts (for people) and join tokens (for nodes).

Both carry the controllers' public key and all their addresses, so whoever holds one can check
that it speaks to the right controller and reach it by another address when one is gone.
A *context* is a small JSON file with an administrator's key pair.
A *join token* is one line of text with a key pair of its own, which opens nothing but enrolment:
the node sends the public half of a key that it made itself, and that key is pinned.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Any, Final

import msgpack
from attrs import asdict, field, frozen

from swarmctl.proto.errors import InvalidSpec

_TOKEN_PREFIX: Final = "swarmctl-join-"  # noqa: S105 - a public prefix, not a secret
_FORMAT: Final = 1
# CURVE keys in Z85 (ZeroMQ RFC 32) are 40 characters.
_KEY_CHARS: Final = 40


@frozen
class Context:
    """A way into a cluster, as ``admin.context`` holds it."""

    name: str
    addresses: tuple[str, ...]
    server_key: str
    public_key: str
    secret_key: str = field(repr=False)
    cluster_id: str = ""
    role: str = "admin"

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"format": _FORMAT} | asdict(self), indent=2) + "\n"


def parse_context(text: str, where: str) -> Context:
    """The context in ``text``.

    Args:
        text: the file's content.
        where: the file's name, for errors.

    Raises:
        InvalidSpec: not a context file.
    """
    hint = "use the admin.context that the controller wrote into its data folder"
    try:
        loaded: Any = json.loads(text)
        if not isinstance(loaded, dict):
            raise InvalidSpec("not a context file", where, hint)
        context = Context(
            name=str(loaded["name"]),
            addresses=tuple(str(one) for one in loaded["addresses"]),
            server_key=str(loaded["server_key"]),
            public_key=str(loaded["public_key"]),
            secret_key=str(loaded["secret_key"]),
            cluster_id=str(loaded.get("cluster_id", "")),
            role=str(loaded.get("role", "admin")),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InvalidSpec(f"not a context file: {error}", where, hint) from error
    _check_keys((context.server_key, context.public_key, context.secret_key), where, hint)
    return context


@frozen
class JoinToken:
    """The right to enrol one node (or many, until it is revoked)."""

    id: str
    addresses: tuple[str, ...]
    server_key: str
    public_key: str
    secret_key: str = field(repr=False)

    def to_text(self) -> str:
        """One line, safe to paste."""
        packed = msgpack.packb(
            [
                _FORMAT,
                self.id,
                list(self.addresses),
                self.server_key,
                self.public_key,
                self.secret_key,
            ]
        )
        return _TOKEN_PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def parse_token(text: str, where: str = "join token") -> JoinToken:
    """The token in ``text``.

    Raises:
        InvalidSpec: not a join token, or one of another format.
    """
    hint = "use the controller's join.token, or make one with: swarmctl token create"
    text = text.strip()
    if not text.startswith(_TOKEN_PREFIX):
        raise InvalidSpec("not a join token", where, hint)
    body = text.removeprefix(_TOKEN_PREFIX)
    try:
        parts = msgpack.unpackb(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        version, token_id, addresses, *keys = parts
        token = JoinToken(str(token_id), tuple(str(one) for one in addresses), *keys[:3])
    except (ValueError, TypeError, binascii.Error, msgpack.UnpackException) as error:
        raise InvalidSpec("the join token is damaged", where, hint) from error
    if version != _FORMAT:
        raise InvalidSpec(f"a join token of format {version}; this release knows 1", where, hint)
    _check_keys((token.server_key, token.public_key, token.secret_key), where, hint)
    return token


def read_token(argument: str) -> JoinToken:
    """The token that ``argument`` is, or that the file of that name holds.

    Raises:
        InvalidSpec: neither.
    """
    if argument.startswith(_TOKEN_PREFIX):
        return parse_token(argument)
    try:
        return parse_token(Path(argument).read_text(encoding="utf-8"), argument)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(
            f"neither a join token nor a readable file: {getattr(error, 'strerror', error)}",
            argument,
            "use the controller's join.token, or make one with: swarmctl token create",
        ) from error


def _check_keys(keys: tuple[str, ...], where: str, hint: str) -> None:
    if not all(isinstance(key, str) and len(key) == _KEY_CHARS for key in keys):
        raise InvalidSpec("a key in it is not a CURVE key of 40 characters", where, hint)
