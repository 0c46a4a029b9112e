"""The files by which a cluster is known: its key pair, and the first ways in.

On first start a controller makes, in its data folder and readable by its user alone:

- ``cluster.key``: the cluster's id and the controllers' CURVE key pair,
- ``admin.context``: an administrator's way in,
- ``join.token``: lets nodes enrol until it is revoked.

They are apart from the store, so an emptied or restored store is still the same cluster to the
nodes (DESIGN 8.5).
"""

import json
import secrets
import uuid
from pathlib import Path
from typing import Final

from attrs import asdict, field, frozen

from swarmctl.credentials import Context, JoinToken, parse_context, parse_token
from swarmctl.folder import atomic_write
from swarmctl.proto.errors import StorageFault
from swarmctl.transport import keys
from swarmctl.transport.errors import KeyFileError

CLUSTER_KEY: Final = "cluster.key"
ADMIN_CONTEXT: Final = "admin.context"
JOIN_TOKEN: Final = "join.token"  # noqa: S105 - a file's name
_PRIVATE: Final = 0o600


@frozen
class ClusterIdentity:
    """Who the controllers of this cluster are."""

    cluster_id: str
    public_key: str
    secret_key: str = field(repr=False)


def load_or_make(folder: Path) -> ClusterIdentity:
    """The identity in ``folder``, made on first start.

    Raises:
        StorageFault: the file is damaged or cannot be read or written.
    """
    path = folder / CLUSTER_KEY
    if path.exists():
        return _parse(path)
    pair = keys.generate()
    identity = ClusterIdentity(uuid.uuid4().hex, pair.public, pair.secret)
    write_identity(folder, identity)
    return identity


def write_identity(folder: Path, identity: ClusterIdentity) -> None:
    """Leave ``identity`` in the folder."""
    atomic_write(folder / CLUSTER_KEY, json.dumps(asdict(identity)).encode(), _PRIVATE)


def _parse(path: Path) -> ClusterIdentity:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(str(path), error) from error
    return parse_identity(text, str(path))


def _unreadable(where: str, error: Exception) -> StorageFault:
    # Its text is not repeated: it could quote the secret.
    return StorageFault(
        f"the cluster's key cannot be read: {type(error).__name__}",
        where,
        "restore it from a backup: without it no node or administrator knows this cluster",
    )


def parse_identity(text: str, where: str) -> ClusterIdentity:
    """The identity in a ``cluster.key``.

    Raises:
        StorageFault: it is damaged.
    """
    try:
        loaded = json.loads(text)
        pair = keys.KeyPair(loaded["public_key"], loaded["secret_key"])
        return ClusterIdentity(str(loaded["cluster_id"]), pair.public, pair.secret)
    except (ValueError, KeyError, TypeError, KeyFileError) as error:
        raise _unreadable(where, error) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StorageFault(f"it cannot be read: {error.strerror}", str(path)) from error


def read_context(folder: Path) -> Context | None:
    """The administrator's context in the folder; None when there is none."""
    path = folder / ADMIN_CONTEXT
    return parse_context(_read(path), str(path)) if path.exists() else None


def write_context(
    folder: Path,
    identity: ClusterIdentity,
    addresses: tuple[str, ...],
    name: str,
    pair: keys.KeyPair | None = None,
) -> Context:
    """The administrator's context, with a key pair kept over restarts and addresses of now.

    Args:
        folder: where.
        identity: whose.
        addresses: of all controllers.
        name: of the context.
        pair: for the first time; made unless given.
    """
    path = folder / ADMIN_CONTEXT
    kept = read_context(folder)
    if kept is not None:
        pair = keys.KeyPair(kept.public_key, kept.secret_key)
    pair = pair or keys.generate()
    context = Context(
        name, addresses, identity.public_key, pair.public, pair.secret, identity.cluster_id
    )
    atomic_write(path, context.to_json().encode(), _PRIVATE)
    return context


def make_token(identity: ClusterIdentity, addresses: tuple[str, ...]) -> JoinToken:
    """A new join token."""
    pair = keys.generate()
    return JoinToken(secrets.token_hex(4), addresses, identity.public_key, pair.public, pair.secret)


def read_join_token(folder: Path) -> JoinToken | None:
    """The token in the folder's ``join.token``; None when there is none."""
    path = folder / JOIN_TOKEN
    if not path.exists():
        return None
    return parse_token(_read(path), str(path))


def write_join_token(folder: Path, token: JoinToken) -> None:
    """Leave ``token`` in the folder's ``join.token``."""
    atomic_write(folder / JOIN_TOKEN, (token.to_text() + "\n").encode(), _PRIVATE)


def remove_join_token(folder: Path) -> None:
    """Take the folder's ``join.token`` away: it was revoked."""
    (folder / JOIN_TOKEN).unlink(missing_ok=True)
