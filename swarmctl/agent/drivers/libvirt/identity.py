"""Names of things made for one incarnation, all computed and none remembered (DESIGN 8.6).

A domain's UUID is derived from (cluster, node, incarnation): a repeated define finds the domain
of the first one, and whoever knows an incarnation can look its domain up without a list.
It works the other way round too: a domain's *name* ends in the incarnation, and if the UUID made
from that is the domain's, then the domain is this owner's.  That proof needs no call to libvirt,
so it is also right inside an event callback, where no call may be made.
"""

import uuid
from pathlib import Path
from typing import Final

from attrs import frozen

from swarmctl.agent.drivers.api import Owner
from swarmctl.proto import incarnation as incarnations

# Any fixed value will do; it must never change, or running domains are no longer found.
_NAMESPACE: Final = uuid.UUID("6f1d0a34-2f0c-5b1e-9a53-0d7c5e1b8f42")


def domain_uuid(owner: Owner, incarnation: int) -> str:
    """The UUID of an incarnation's domain."""
    return str(uuid.uuid5(_NAMESPACE, f"{owner.cluster_id}/{owner.node}/{incarnation}"))


def incarnation_of(owner: Owner, name: str, domain: str) -> int | None:
    """The incarnation of the domain called ``name`` with UUID ``domain``; None if not ours."""
    if not name.startswith(f"swarmctl-{owner.cluster_id[:8]}-{owner.node}-"):
        return None
    try:
        incarnation = incarnations.parse("-".join(name.rsplit("-", 2)[1:]))
    except (ValueError, AssertionError):
        return None  # somebody else's name that looks like ours
    return incarnation if domain_uuid(owner, incarnation) == domain else None


def mac_address(domain: str) -> str:
    """A fixed MAC address for the domain with that UUID, in QEMU's own prefix."""
    tail = uuid.UUID(domain).bytes[-3:]
    return ":".join(["52", "54", "00", *(f"{byte:02x}" for byte in tail)])


@frozen
class Places:
    """Where the files of one owner's instances are, below ``folder``."""

    folder: Path

    def instance(self, incarnation: int) -> Path:
        """The folder of one incarnation; it goes away with it."""
        return self.folder / "instances" / incarnations.label(incarnation)

    def overlay(self, incarnation: int) -> Path:
        """The disk of an instance that keeps nothing."""
        return self.instance(incarnation) / "disk.qcow2"

    def persistent_disk(self, tenant: str, service: str, slot: int) -> Path:
        """The disk that belongs to a slot, whichever incarnation is in it."""
        return self.folder / "disks" / tenant / f"{service}.{slot}.qcow2"

    def seed(self, incarnation: int) -> Path:
        """The NoCloud image."""
        return self.instance(incarnation) / "seed.iso"

    def template(self, incarnation: int) -> Path:
        """What the instance was made of, encoded; instances of older releases have none.

        It is no part of the domain's metadata, which every user of the host can read.
        """
        return self.instance(incarnation) / "template"

    def console_log(self, incarnation: int) -> Path:
        """What the serial console printed; virtlogd writes and rotates it."""
        return self.instance(incarnation) / "console.log"

    def started_mark(self, incarnation: int) -> Path:
        """Made when the domain was first started; its time is that of the latest start.

        libvirt forgets why a domain is off when its daemon restarts, and a domain that was never
        started looks just the same then: this file tells them apart.
        """
        return self.instance(incarnation) / "started"
