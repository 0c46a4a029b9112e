"""One identity for several controllers: keys and ways in, kept in etcd (DESIGN 8.9).

The first controller of a cluster puts there what a single one has in its folder: the cluster's id
and key pair, an administrator's key pair, a join token; and a key pair by which controllers reach
each other. Every other one takes it from there, or its key from a file that an operator brings
(``--join FILE``). So contexts and tokens are everybody's, and outlive whoever issued them.

Whoever may read etcd is an administrator of the cluster; that is so with the store's content, too.

A cluster that is there already is not begun anew in an etcd that knows nothing of it: that one was
emptied, or is another one, or the prefix is; and a second leader with the cluster's key would lead
its nodes by an empty store (:mod:`swarmctl.controller.rebuilding` is the same of a file).
"""

import json
from pathlib import Path
from typing import Final

import cattrs
from attrs import field, frozen

from swarmctl.controller import identity as identities
from swarmctl.controller import records
from swarmctl.controller.etcd import client as etcd
from swarmctl.controller.etcd.address import EtcdAddress
from swarmctl.controller.etcd.client import EtcdClient
from swarmctl.controller.identity import ADMIN_CONTEXT, CLUSTER_KEY, ClusterIdentity
from swarmctl.controller.store.api import Store
from swarmctl.credentials import parse_token
from swarmctl.folder import atomic_write
from swarmctl.proto.errors import Conflict, InvalidSpec, StorageDamaged, StorageFault
from swarmctl.transport import keys
from swarmctl.transport.keys import KeyPair

_ASK_S: Final = 6.0
# Who the controllers are to each other; an administrator's record like any other.
RELAY: Final = "controllers"


@frozen
class SharedIdentity:
    """What all controllers of a cluster have in common."""

    cluster: ClusterIdentity
    admin: KeyPair
    relay: KeyPair
    token: str = field(repr=False)

    def to_bytes(self) -> bytes:
        """As it is kept in etcd."""
        return json.dumps(cattrs.unstructure(self)).encode()


def take(folder: Path, join: Path | None) -> None:
    """Take the cluster's key from a file of another controller, before the first start.

    Raises:
        InvalidSpec: it cannot be read, or is none.
        Conflict: this folder is another cluster's.
    """
    if join is None:
        return
    path = folder / CLUSTER_KEY
    try:
        content = join.read_bytes()
    except OSError as error:
        raise InvalidSpec(
            f"it cannot be read: {error.strerror}", str(join), f"give another one's {CLUSTER_KEY}"
        ) from error
    try:
        theirs = identities.parse_identity(content.decode(), str(join))
    except (StorageFault, UnicodeDecodeError) as error:
        raise InvalidSpec(
            "it is no cluster's key", str(join), f"give another controller's {CLUSTER_KEY}"
        ) from error
    if not path.exists():
        atomic_write(path, content)
    elif identities.load_or_make(folder).cluster_id != theirs.cluster_id:
        raise Conflict(
            "this folder belongs to another cluster", str(folder), "choose another with --data"
        )


def settle(
    address: EtcdAddress, folder: Path, advertised: tuple[str, ...], *, joins: bool = False
) -> SharedIdentity:
    """The identity in etcd, put there if there is none; and the folder's files made those.

    Blocking; for a thread.

    Args:
        address: of the etcd.
        folder: our data folder, locked.
        advertised: our addresses, for the first token.
        joins: there are others: an operator brought the key of one.

    Raises:
        Conflict: the folder is another cluster's.
        StorageDamaged: the cluster was there before, and its store is not in this etcd.
        StorageFault: etcd does not serve, or the folder cannot be written.
    """
    client = EtcdClient(address)
    key = address.key("fact/identity")
    try:
        found = etcd.entries(client.range(key, deadline_s=_ASK_S))
        if not found:
            _check_not_lost(client, address, folder, joins=joins)
            made = _make(folder, advertised)
            answer = client.transact(
                [etcd.is_absent(key)],
                [etcd.put(key, made.to_bytes()), etcd.get(key)],
                [etcd.get(key)],
                deadline_s=_ASK_S,
            )
            value = etcd.values_read(answer)[0]
            assert value is not None, "it was made, or was there"
            found = [(key, value)]
    finally:
        client.close()
    shared = _read(found[0][1])
    _write(folder, shared)
    return shared


def _check_not_lost(client: EtcdClient, address: EtcdAddress, folder: Path, *, joins: bool) -> None:
    """A store that was copied here, or a new cluster: there is no identity yet, and that is right.

    Raises:
        StorageDamaged: it is not.
    """
    served = (folder / ADMIN_CONTEXT).exists()
    data = address.key("data/")
    if not (served or joins) or etcd.entries(
        client.range(data, etcd.after_prefix(data), limit=1, deadline_s=_ASK_S)
    ):
        return
    why = "a controller has served from this folder before" if served else "--join was given"
    raise StorageDamaged(
        f"there is no store in etcd, and {why}",
        str(address),
        "check the addresses of the etcd, and the prefix: etcd://HOST:PORT/PREFIX; if it was "
        f"lost, with a backup: swarmctl store restore BACKUP {address}; without one "
        "'swarmctl controller --rebuild --store sqlite:FILE' takes in what the nodes run, and "
        f"'swarmctl store migrate sqlite:FILE {address}' moves that here (or one used until now)",
    )


def _make(folder: Path, advertised: tuple[str, ...]) -> SharedIdentity:
    """Of what the folder has, and of new keys where it has none."""
    cluster = identities.load_or_make(folder)
    context = identities.read_context(folder)
    admin = keys.generate()
    if context is not None and context.server_key == cluster.public_key:
        admin = KeyPair(context.public_key, context.secret_key)
    token = identities.read_join_token(folder) or identities.make_token(cluster, advertised)
    return SharedIdentity(cluster, admin, keys.generate(), token.to_text())


def _read(value: bytes) -> SharedIdentity:
    try:
        return cattrs.structure(json.loads(value), SharedIdentity)
    except Exception as error:
        # Whatever json or cattrs trip over; its text is not repeated: it could quote a secret.
        raise StorageFault(
            f"the cluster's identity in etcd cannot be read: {type(error).__name__}",
            hint="restore etcd from a backup",
        ) from error


def _write(folder: Path, shared: SharedIdentity) -> None:
    """Make the folder's files say the same, so that a restart without etcd is known, too."""
    path = folder / CLUSTER_KEY
    if not path.exists():
        identities.write_identity(folder, shared.cluster)
    elif (mine := identities.load_or_make(folder)) != shared.cluster:
        raise Conflict(
            f"this folder is of cluster {mine.cluster_id[:8]}, the store in etcd of "
            f"{shared.cluster.cluster_id[:8]}",
            str(folder),
            "give it a folder of its own with --data, or another prefix: etcd://HOST/PREFIX",
        )
    context = identities.read_context(folder)
    if context is None or context.public_key != shared.admin.public:
        (folder / ADMIN_CONTEXT).unlink(missing_ok=True)
        identities.write_context(folder, shared.cluster, (), "", shared.admin)
    if identities.read_join_token(folder) is None:
        identities.write_join_token(folder, parse_token(shared.token))


async def withdraw_revoked_token(folder: Path, store: Store) -> None:
    """Take ``join.token`` away if the store, which is not new, does not know it (any more)."""
    token = identities.read_join_token(folder)
    if token is None:
        return
    known = await store.read(records.TOKEN)
    if records.TOKEN + token.id in known:
        return
    if known or await store.read(records.ADMIN):  # The first leader writes both at once.
        identities.remove_join_token(folder)
