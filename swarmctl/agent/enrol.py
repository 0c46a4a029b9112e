"""How a node comes into a cluster: once, with a join token; and how it remembers.

The node makes its own key pair first and keeps it, then asks, over the token's key pair, for the
public half to be pinned under its name.  A crash in between repeats the request with the same key,
which the controller answers alike.
What is kept in the data folder: ``node.key`` (the key pair), ``node.token`` (the join token) and
``node.json`` (the node's name, the cluster's id and public key, the controllers' addresses); the
last is written last and is the proof of enrolment.

A controller whose store was emptied or restored does not know the node any more: :func:`rejoin`
asks it again, with the token and the key that are kept, so that a fleet comes back by itself.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from attrs import asdict, evolve, frozen

import swarmctl
from swarmctl import folder
from swarmctl.credentials import JoinToken, read_token
from swarmctl.proto import codec, limits
from swarmctl.proto.errors import (
    Busy,
    Conflict,
    InvalidSpec,
    NotLeader,
    PeerUnreachable,
    ProtocolError,
    Refused,
    from_wire,
)
from swarmctl.proto.messages import PROTOCOL_VERSION, Enrol, Enrolled, Message, Refuse
from swarmctl.transport import keys
from swarmctl.transport.api import Link
from swarmctl.transport.errors import HandshakeFailed, HandshakeLate, KeyRefused, LinkLost
from swarmctl.transport.keys import KeyPair

_log = structlog.get_logger(__name__)

KEY_FILE: Final = "node.key"
IDENTITY_FILE: Final = "node.json"
TOKEN_FILE: Final = "node.token"  # noqa: S105 - a file's name
_FORMAT: Final = 1
# An enrolment over again that the controller goes away from is begun anew after this.
REJOIN_DEADLINE_S: Final = 30.0

OpenLink = Callable[[Sequence[str], str, KeyPair], AbstractAsyncContextManager[Link]]


@frozen
class NodeIdentity:
    """Who this node is, and where it belongs."""

    name: str
    cluster_id: str
    server_key: str
    addresses: tuple[str, ...]


@frozen
class Membership:
    """An enrolled node: its identity, its key pair, and the token that it came in with."""

    identity: NodeIdentity
    keypair: KeyPair
    token: JoinToken | None = None


def load(data: Path) -> NodeIdentity | None:
    """The identity kept in ``data``; None when this node was never enrolled.

    Raises:
        InvalidSpec: the file is not ours, or damaged.
    """
    path = data / IDENTITY_FILE
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        return NodeIdentity(
            str(found["name"]),
            str(found["cluster_id"]),
            str(found["server_key"]),
            tuple(str(one) for one in found["addresses"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidSpec(
            f"the node's identity cannot be read: {error}",
            str(path),
            "restore the file, or enrol again with a join token and an empty folder",
        ) from error


async def membership(
    data: Path,
    *,
    name: str,
    join: str,
    controllers: tuple[str, ...],
    open_link: OpenLink,
    default_name: str = "",
) -> Membership:
    """The node's identity and key, enrolled now if it was not before.

    Args:
        data: the locked data folder.
        name: the node's name; empty takes the one that it enrolled as.
        join: a join token, or the file with one; empty when it is enrolled already.
        controllers: addresses that replace the token's.
        open_link: how to reach a controller.
        default_name: to enrol as when ``name`` is empty.

    Raises:
        InvalidSpec: not enrolled and no token; or the token is none.
        Conflict: the folder belongs to another node or another cluster.
        Refused: the controller refuses the token or the name.
    """
    token = read_token(join) if join else None
    identity = load(data)
    if identity is not None:
        _check_same(identity, name, token, data)
        known = controllers or (token.addresses if token is not None else identity.addresses)
        if known != identity.addresses:
            identity = NodeIdentity(identity.name, identity.cluster_id, identity.server_key, known)
            _save(data, identity)
        if token is not None:
            _keep_token(data, token)
        return Membership(identity, keys.load(data / KEY_FILE), token or _kept_token(data))
    if token is None:
        raise InvalidSpec(
            "this node is not enrolled yet, and there is no join token",
            str(data),
            "give the controller's join.token: swarmctl agent --join FILE|TOKEN",
        )
    keypair = _own_key(data)
    addresses = controllers or token.addresses
    enrolled = await _enrol(name or default_name, token, addresses, keypair.public, open_link)
    identity = NodeIdentity(enrolled.node, enrolled.cluster_id, token.server_key, addresses)
    _keep_token(data, token)
    _save(data, identity)
    _log.info("enrolled", node=identity.name, cluster=identity.cluster_id)
    return Membership(identity, keypair, token)


async def rejoin(member: Membership, open_link: OpenLink) -> None:
    """Enrol again as who we are, where the controller has forgotten us.

    Raises:
        Refused: there is no token to do it with, or it is refused, or the node was removed.
        Conflict: another node has the name now.
    """
    identity, token = member.identity, member.token
    if token is None:
        raise Refused(
            f"the controller does not know the key of node {identity.name}, and no join token "
            "was kept",
            ", ".join(identity.addresses),
            "give it one: swarmctl agent --join FILE|TOKEN",
        )
    with trio.move_on_after(REJOIN_DEADLINE_S):
        await _enrol(identity.name, token, identity.addresses, member.keypair.public, open_link)
        _log.info("enrolled again", node=identity.name)


def learn(data: Path, member: Membership, addresses: tuple[str, ...]) -> Membership:
    """Remember where the controllers are now, durably if that is news.

    Raises:
        StorageFault: the folder cannot be written; it is as it was.
    """
    if addresses == member.identity.addresses:
        return member
    identity = evolve(member.identity, addresses=addresses)
    _save(data, identity)
    _log.info("controllers are at", addresses=list(addresses))
    return evolve(member, identity=identity)


def _check_same(identity: NodeIdentity, name: str, token: JoinToken | None, data: Path) -> None:
    if name and name != identity.name:
        raise Conflict(
            f"this folder is that of node {identity.name}, not {name}",
            str(data),
            f"use --name {identity.name}, or another --data for {name}",
        )
    if token is not None and token.server_key != identity.server_key:
        raise Conflict(
            f"this folder belongs to cluster {identity.cluster_id[:8]}; the join token is "
            "another cluster's",
            str(data),
            "use another --data for another cluster",
        )


def _own_key(data: Path) -> KeyPair:
    path = data / KEY_FILE
    if path.exists():
        return keys.load(path)
    keypair = keys.generate()
    keys.save(keypair, path)
    return keypair


def _keep_token(data: Path, token: JoinToken) -> None:
    path, content = data / TOKEN_FILE, f"{token.to_text()}\n".encode()
    if not path.exists() or path.read_bytes() != content:
        folder.atomic_write(path, content)


def _kept_token(data: Path) -> JoinToken | None:
    path = data / TOKEN_FILE
    return read_token(str(path)) if path.exists() else None


def _save(data: Path, identity: NodeIdentity) -> None:
    text = json.dumps({"format": _FORMAT} | asdict(identity), indent=2) + "\n"
    folder.atomic_write(data / IDENTITY_FILE, text.encode())


async def _enrol(
    name: str, token: JoinToken, addresses: Sequence[str], public_key: str, open_link: OpenLink
) -> Enrolled:
    """Ask until somebody answers: an agent may be started before its controller."""
    keypair = KeyPair(token.public_key, token.secret_key)
    request = Enrol(PROTOCOL_VERSION, swarmctl.__version__, name, public_key)
    async with open_link(addresses, token.server_key, keypair) as link:
        while True:
            await _connected(link, len(addresses))
            try:
                link.send(codec.encode(request))
                with trio.move_on_after(limits.HANDSHAKE_S):
                    return await _answer(link)
                _log.warning("no answer to the enrolment", endpoint=link.endpoint)
                link.use_next()
            except (NotLeader, Busy) as error:
                _log.info("enrolment elsewhere or later", why=str(error))
                link.use_next()
            except LinkLost as error:
                _log.warning("enrolment interrupted", why=str(error))
            await trio.sleep(limits.RECONNECT_MIN_S)


async def _connected(link: Link, addresses: int) -> None:
    """Wait for a connection to one of so many addresses.

    Raises:
        Refused: the token's key is refused, by every controller that answers.
        HandshakeFailed: what answers is not the token's controller.
    """
    refusal: list[KeyRefused | HandshakeFailed] = []
    # One that follows may not know yet what the one that leads does.
    refused = 0

    async def watch() -> None:
        nonlocal refused
        while True:
            failure = await link.wait_failure()
            _log.info("no controller", endpoint=failure.where, why=failure.what)
            # One that has not answered yet hangs, or has yet to begin, as one that is not there.
            if isinstance(failure, PeerUnreachable | HandshakeLate):
                continue
            refused += 1
            if refused >= addresses:
                refusal.append(failure)
                nursery.cancel_scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await link.wait_connected()
        nursery.cancel_scope.cancel()
    if refusal and isinstance(refusal[0], KeyRefused):
        raise Refused(
            "the join token is refused: it was used, revoked, or is another cluster's",
            refusal[0].where,
            "make a new one with: swarmctl token create",
        )
    if refusal:
        raise refusal[0]


async def _answer(link: Link) -> Enrolled:
    """The answer; what only the other release knows, either of us, is passed over."""
    unknown = codec.UnknownMessage
    while True:
        for payload in await link.receive_batch():
            try:
                message: Message = codec.decode(payload)
            except unknown as error:
                _log.warning("not understood", error=str(error))
                continue
            if isinstance(message, Enrolled):
                return message
            if isinstance(message, Refuse):
                if message.code == unknown.code:
                    _log.warning("not understood by the controller", error=message.what)
                    continue
                raise from_wire(message.code, message.what, message.where, message.hint)
            raise ProtocolError(
                f"the controller answered the enrolment by {type(message).__name__}"
            )
