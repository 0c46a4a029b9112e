"""The agents in VMs: the tokens that they enrol with, and their end with their VMs.

A VM with ``trunk: true`` may be a node.  Its agent enrols with a token that is derived from the
controllers' secret key and the VM's incarnation, so there is nothing to be kept: whichever
controller leads knows it again.  The VM's host is told it with the VM's assignment, and puts it on
the VM's seed.  It is

- valid once: for one node, whose record has the token's id,
- refused when the VM is gone, is to go, or was replaced.

A node that enrolled so *is* in that VM, whatever it says of itself; when the VM's host has
confirmed that the VM is gone, the node is taken out of the registry.
"""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog
import trio
from attrs import define, field

from swarmctl.controller import records
from swarmctl.controller.access import TOKEN, Access, user_id
from swarmctl.controller.identity import ClusterIdentity
from swarmctl.controller.instance import Instance
from swarmctl.credentials import JoinToken
from swarmctl.net import relays
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import Busy, StorageFault
from swarmctl.spec import wire
from swarmctl.transport import keys

if TYPE_CHECKING:
    from swarmctl.controller.cluster import Cluster
    from swarmctl.controller.state import Node

_log = structlog.get_logger(__name__)

_PREFIX: Final = "vm-"
_SECRET_BYTES: Final = 32
# Which use of the secret key this is (at most 16 bytes).
_PURPOSE: Final = b"swarmctl-guest"
# Nodes whose VM is gone and that nobody saw go: they were there before this controller was.
LOOK_EVERY_S: Final = 5.0
# A store that refuses is asked again after this.
RETRY_S: Final = 2.0


def token_id(incarnation: int) -> str:
    """The id of the token for the agent in that VM."""
    return _PREFIX + incarnations.label(incarnation)


def vm_of_token(name: str) -> int:
    """The incarnation of the VM that a token is for; 0 when it is for none."""
    try:
        return incarnations.parse(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else 0
    except ValueError:
        return 0


def derive(identity: ClusterIdentity, incarnation: int) -> JoinToken:
    """The token for the agent in the VM ``incarnation``; always the same one."""
    name = token_id(incarnation)
    digest = hashlib.blake2b(
        name.encode(),
        key=identity.secret_key.encode(),
        person=_PURPOSE,
        digest_size=_SECRET_BYTES,
    )
    secret = keys.encode_z85(digest.digest())
    public = keys.public_of(secret)
    return JoinToken(name, (relays.endpoint(),), identity.public_key, public, secret)


@define(eq=False)
class Guests:
    """The tokens that are in use.

    ``identity`` is None where no tokens are given out.  ``forget_user`` ends the connections of a
    user; ``vms`` are incarnations of VMs that may be nodes, ``leaving`` nodes whose VM is gone.
    """

    identity: ClusterIdentity | None = None
    access: Access = field(factory=Access)
    forget_user: Callable[[str], int] = lambda _: 0
    vms: set[int] = field(factory=set)
    leaving: "dict[str, Node]" = field(factory=dict)
    woken: trio.Event = field(factory=trio.Event)
    _issued: dict[int, JoinToken] = field(factory=dict)
    _trunks: dict[bytes, bool] = field(factory=dict)

    def issue(self, instance: Instance, encoded: bytes) -> str:
        """The token for an instance that is told to its host; empty when it hosts no pods.

        Args:
            instance: on a tenant network, and not to go.
            encoded: its template.
        """
        if self.identity is None or not self._is_trunk(instance.template, encoded):
            return ""
        token = self._issued.get(instance.incarnation)
        if token is None:
            token = self._issued[instance.incarnation] = derive(self.identity, instance.incarnation)
            self.access.allow(token.public_key, user_id(TOKEN, token.id))
            self.vms.add(instance.incarnation)
        return token.to_text()

    def _is_trunk(self, template: bytes, encoded: bytes) -> bool:
        known = self._trunks.get(template)
        if known is None:
            vm = wire.decode_template(encoded).vm if encoded else None
            known = self._trunks[template] = vm is not None and vm.trunk
        return known

    def revoke(self, incarnation: int) -> None:
        """The VM is to go: nobody enrols in it any more."""
        token = self._issued.pop(incarnation, None) if self._issued else None
        if token is not None:
            self.access.revoke(token.public_key)
            self.forget_user(user_id(TOKEN, token.id))

    def gone(self, incarnation: int) -> None:
        """The VM is gone."""
        self.revoke(incarnation)
        self.vms.discard(incarnation)

    def issued(self, name: str) -> JoinToken | None:
        """The token ``name`` where its VM is there; None when it is no VM's, or revoked."""
        return self._issued.get(vm_of_token(name))

    def ended(self, node: "Node") -> None:
        """The VM that the node is in is gone; called once that is known for sure."""
        if vm_of_token(node.record.token_id):
            self.leaving[node.name] = node
            self.woken.set()

    async def run(self, cluster: "Cluster") -> None:
        """Take nodes out of the registry whose VM is gone, until cancelled."""
        while True:
            with trio.move_on_after(LOOK_EVERY_S):
                await self.woken.wait()
            self.woken = trio.Event()
            for node in _orphans(cluster):
                self.leaving[node.name] = node
            try:
                await self._unregister(cluster)
            except (StorageFault, Busy) as error:
                _log.error("nodes whose VM is gone stay for now", error=str(error))
                await trio.sleep(RETRY_S)

    async def _unregister(self, cluster: "Cluster") -> None:
        for name, node in list(self.leaving.items()):
            async with cluster.holding([records.NODE + name]):
                if cluster.state.nodes.get(name) is node:
                    await cluster.delete_node(node, revoke=False)
                    _log.info("node unregistered: its VM is gone", node=name)
            del self.leaving[name]


def _orphans(cluster: "Cluster") -> "list[Node]":
    """Nodes whose VM no machine has, once all machines have told what they have."""
    nodes = cluster.state.nodes.values()
    nested = [(node, vm_of_token(node.record.token_id)) for node in nodes if _has_vms_token(node)]
    missing = {vm for _, vm in nested}
    if not missing or any(not node.reported for node in nodes if not _has_vms_token(node)):
        return []
    for node in nodes:
        missing -= node.instances.keys()
    return [node for node, vm in nested if vm in missing]


def _has_vms_token(node: "Node") -> bool:
    return node.record.token_id.startswith(_PREFIX)
