"""What the controller keeps for ever: the durable records, and their keys in the store.

Intent and identity only (DESIGN 1.2).  Placements and states are not here: they are read from
the nodes.  Each record is one value, written whole.

===========================  ======================================================
``service/TENANT/NAME``      :class:`ServiceRecord`
``tombstone/TENANT/NAME``    :class:`Tombstone`, of a service that was deleted
``node/NAME``                :class:`NodeRecord`, the registry: who may open a session
``token/ID``                 :class:`TokenRecord`
``admin/ID``                 :class:`AdminRecord`
``revoked/DIGEST``           :class:`RevokedKey`, of a node that was removed
``network/TENANT/NAME``      :class:`~swarmctl.controller.networks.NetworkRecord`
``security/TENANT/NAME``     :class:`~swarmctl.controller.networks.GroupRecord`
``preempted/TENANT/NAME``    :class:`~swarmctl.controller.victims.PreemptedRecord`
``past/TENANT/NAME``         :class:`~swarmctl.controller.pasts.PastRecord`
``moved``                    :class:`~swarmctl.controller.moving.Moved`, of what is used no more
``ovn``                      where OVN's northbound database is, once it was given
===========================  ======================================================
"""

import hashlib
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar

import msgpack
from attrs import evolve, field, frozen
from cattrs import Converter

from swarmctl.controller.slots import SlotSet, slot_set
from swarmctl.proto import limits
from swarmctl.proto.errors import InvalidSpec, StorageDamaged
from swarmctl.spec.models import ServiceSpec
from swarmctl.spec.wire import canonical, converter

SERVICE: Final = "service/"
TOMBSTONE: Final = "tombstone/"
NODE: Final = "node/"
TOKEN: Final = "token/"  # noqa: S105 - a key in the store
ADMIN: Final = "admin/"
REVOKED: Final = "revoked/"
NETWORK: Final = "network/"
SECURITY: Final = "security/"
PREEMPTED: Final = "preempted/"
PAST: Final = "past/"
OVN: Final = "ovn"

_T = TypeVar("_T")


class SlotWish(Enum):
    """What a user asked of one slot, against the service's own desired state."""

    RUNNING = "running"
    STOPPED = "stopped"
    REMOVED = "removed"


@frozen
class SlotOverride:
    """A durable, sparse exception for one slot (DESIGN 8.3).

    ``wish`` None follows the service; ``generation`` counts restarts that were asked for.
    """

    wish: SlotWish | None = None
    generation: int = 0

    @property
    def is_void(self) -> bool:
        """Whether it says nothing, so that it need not be kept."""
        return self.wish is None and self.generation == 0


@frozen
class ServiceRecord:
    """One service: the spec, and what was asked of it and of its slots since.

    ``revision`` counts changes of the spec, ``generation`` restarts of the whole service;
    ``completed`` are the slots of a job that have succeeded; ``previous`` is the spec before the
    last change, for ``service rollback``.  ``addresses`` are the service's own, by network: its
    published ports are reached there, whichever instances there are.  ``floating`` is the address
    of the uplink that it has, if it asks for one.
    """

    spec: ServiceSpec
    created_at: float
    updated_at: float
    revision: int = 1
    stopped: bool = False
    generation: int = 0
    overrides: dict[int, SlotOverride] = field(factory=dict)
    completed: SlotSet = field(factory=SlotSet, converter=slot_set)
    previous: ServiceSpec | None = None
    addresses: dict[str, str] = field(factory=dict)
    floating: str = ""

    @property
    def untouched(self) -> bool:
        """Whether all slots are wanted, and none is done: nobody stopped or restarted any."""
        return not (self.stopped or self.overrides or self.completed)

    def wish(self, slot: int) -> SlotWish:
        """What is wanted of ``slot``, which is within the replicas."""
        override = self.overrides.get(slot)
        if override is not None and override.wish is not None:
            return override.wish
        return SlotWish.STOPPED if self.stopped else SlotWish.RUNNING

    def slot_generation(self, slot: int) -> int:
        """How many restarts were asked for, of this slot and of the whole service."""
        override = self.overrides.get(slot)
        return self.generation + (override.generation if override else 0)

    def with_override(self, slot: int, override: SlotOverride) -> "ServiceRecord":
        """The record with one slot's exception replaced."""
        overrides = {k: v for k, v in self.overrides.items() if k != slot}
        if not override.is_void:
            overrides[slot] = override
        return evolve(self, overrides=overrides)


@frozen
class Tombstone:
    """A service that was deleted: its incarnations up to ``incarnation`` are unwanted.

    Newer ones of the same name belong to a service that was made again.
    """

    tenant: str
    service: str
    incarnation: int
    deleted_at: float


@frozen
class NodeRecord:
    """A node that was enrolled: its pinned key, and what operators said of it.

    ``cordoned`` keeps new instances away; ``draining`` sends those that are there elsewhere too,
    and from ``drain_deadline`` on (epoch seconds; 0 for never) whatever their services allow.
    ``unguarded``: it had fenced instances and no live guard when it was last heard.
    """

    name: str
    public_key: str
    enrolled_at: float
    token_id: str = ""
    labels: dict[str, str] = field(factory=dict)
    cordoned: bool = False
    draining: bool = False
    unguarded: bool = False
    drain_deadline: float = 0.0


@frozen
class TokenRecord:
    """A join token; the secret half is not kept here."""

    id: str
    public_key: str
    created_at: float
    one_time: bool = True
    used_by: str = ""


@frozen
class AdminRecord:
    """An administrator's key."""

    id: str
    public_key: str
    created_at: float


@frozen
class RevokedKey:
    """The key of a node that was removed: it may not enrol again, whatever token it kept.

    ``token_id`` is that of the token that it came with: one for a VM is not used twice.
    ``unguarded`` is as in its :class:`NodeRecord`: until an operator says that it is off.
    """

    node: str
    public_key: str
    revoked_at: float
    token_id: str = ""
    unguarded: bool = False


def revoked_key(public_key: str) -> str:
    """Where a node's revoked key is kept; keys have characters that names have not."""
    return REVOKED + hashlib.sha256(public_key.encode()).hexdigest()[:32]


def service_key(tenant: str, name: str) -> str:
    """Where a service is kept."""
    return f"{SERVICE}{tenant}/{name}"


def tombstone_key(tenant: str, name: str) -> str:
    """Where a deleted service is remembered."""
    return f"{TOMBSTONE}{tenant}/{name}"


def network_key(tenant: str, name: str) -> str:
    """Where a tenant network is kept."""
    return f"{NETWORK}{tenant}/{name}"


def security_key(tenant: str, name: str) -> str:
    """Where a security group is kept."""
    return f"{SECURITY}{tenant}/{name}"


def preempted_key(tenant: str, name: str) -> str:
    """Where it is kept which slots of a service were preempted."""
    return f"{PREEMPTED}{tenant}/{name}"


def past_key(tenant: str, name: str) -> str:
    """Where it is kept what the slots of a service went through."""
    return f"{PAST}{tenant}/{name}"


def encode(record: Any) -> bytes:
    """``record`` as bytes.

    Raises:
        InvalidSpec: it is over the store's bound for one value.
    """
    plain = converter().unstructure(record)
    if isinstance(record, ServiceRecord) and record.completed:
        plain["completed"] = record.completed.packed()
    return _bounded(plain)


def encode_new(record: ServiceRecord) -> tuple[bytes, bytes]:
    """``record`` (of a job without completions) as :func:`encode` has it, and its template's bytes.

    Both from one look at the record, as the hot path needs both.
    """
    assert not record.completed, "a new record"
    plain = converter().unstructure(record)
    return _bounded(plain), canonical(plain["spec"]["template"])


@cache
def _converter() -> Converter:
    made = converter().copy()
    made.register_structure_hook(SlotSet, lambda slots, _: slots)
    return made


def _bounded(plain: Any) -> bytes:
    packed: bytes = msgpack.packb(plain)
    if len(packed) > limits.RECORD_MAX_BYTES:
        raise InvalidSpec(
            f"the record would take {len(packed)} bytes; the limit is {limits.RECORD_MAX_BYTES}",
            hint="move large texts (user data, environment) into an image or a volume",
        )
    return packed


def decode(data: bytes, cls: type[_T], key: str) -> _T:
    """The inverse of :func:`encode`.

    Raises:
        StorageDamaged: the value is damaged; ``key`` says which.
    """
    try:
        plain = msgpack.unpackb(data, strict_map_key=False)
        if cls is ServiceRecord and "completed" in plain:
            plain["completed"] = SlotSet.unpacked(plain["completed"])
        return _converter().structure(plain, cls)
    except Exception as error:
        # Whatever cattrs or msgpack trip over, the meaning is one: this record is damaged.
        raise StorageDamaged(
            f"the record {key} is damaged: {error}",
            hint="restore a backup: swarmctl store restore; or take in what the nodes run: "
            "swarmctl controller --rebuild",
        ) from error
