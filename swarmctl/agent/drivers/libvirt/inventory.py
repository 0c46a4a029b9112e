"""What domains this owner has, as the agent sees them.

All of them come in one call with their states.  What was read once and never changes (a domain's
metadata), and when an end was seen, is kept; both may be lost without harm.
"""

import time
from pathlib import Path
from typing import Any

from attrs import evolve

from swarmctl.agent.drivers.api import Found, Launch, Owner, Phase
from swarmctl.agent.drivers.libvirt import domain_xml, identity, states
from swarmctl.agent.drivers.libvirt.connection import Lifecycle, load
from swarmctl.agent.drivers.libvirt.host import Host


class Inventory:
    """Finds one owner's domains. Its methods that take a connection block."""

    def __init__(self, owner: Owner, places: identity.Places, host: Host) -> None:
        self._owner = owner
        self._places = places
        self._host = host
        self._metadata: dict[str, domain_xml.Metadata] = {}
        self._ended_at: dict[str, float] = {}

    def all(self, conn: Any) -> list[Found]:
        """Every domain of this owner."""
        libvirt = load()
        found: list[Found] = []
        for domain, facts in conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
            uuid = str(domain.UUIDString())
            if identity.incarnation_of(self._owner, domain.name(), uuid) is None:
                continue
            meta = self._read_metadata(domain, uuid)
            if meta is not None:
                one = self._found(uuid, meta, facts["state.state"], facts["state.reason"])
                found.append(evolve(one, template=_content(self._places.template(one.incarnation))))
        self._forget_others({one.runtime_id for one in found})
        if not any(one.phase is Phase.RUNNING for one in found):
            return found
        leased = self._host.addresses(conn)
        return [_with_lease(one, leased) for one in found]

    def one(self, domain: Any, launch: Launch) -> Found:
        """The domain that was made for ``launch``."""
        meta = domain_xml.Metadata(
            cluster_id=self._owner.cluster_id,
            node=self._owner.node,
            service=launch.service,
            slot=launch.slot,
            incarnation=launch.incarnation,
            tenant=launch.tenant,
        )
        return self._found(str(domain.UUIDString()), meta, *domain.state())

    def note(self, event: Lifecycle | None) -> None:
        """Remember when a domain ended; a listener for lifecycle events."""
        if event is None or event.event != states.EventType.STOPPED:
            return
        if identity.incarnation_of(self._owner, event.name, event.uuid) is not None:
            self._ended_at[event.uuid] = event.at

    def note_stopped(self, uuid: str) -> None:
        """It was stopped just now, whether or not its event has come already."""
        self._ended_at.setdefault(uuid, time.time())

    def note_started(self, uuid: str) -> None:
        """It runs again."""
        self._ended_at.pop(uuid, None)

    def forget(self, uuid: str) -> None:
        """It was removed."""
        self._metadata.pop(uuid, None)
        self._ended_at.pop(uuid, None)

    def _read_metadata(self, domain: Any, uuid: str) -> domain_xml.Metadata | None:
        """None if the domain went away meanwhile."""
        if uuid not in self._metadata:
            libvirt = load()
            try:
                xml = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, domain_xml.NAMESPACE)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise
            self._metadata[uuid] = domain_xml.read_metadata(xml)
        return self._metadata[uuid]

    def _forget_others(self, there: set[str]) -> None:
        # Copies: events come in the meantime, in another thread.
        for uuid in {*tuple(self._metadata), *tuple(self._ended_at)} - there:
            self.forget(uuid)

    def _found(self, uuid: str, meta: domain_xml.Metadata, state: int, reason: int) -> Found:
        started_at = _changed_at(self._places.started_mark(meta.incarnation))
        condition = states.condition(state, reason, was_started=started_at > 0)
        has_ended = condition.phase is Phase.EXITED
        return Found(
            incarnation=meta.incarnation,
            service=meta.service,
            slot=meta.slot,
            runtime_id=uuid,
            phase=condition.phase,
            exit_code=condition.exit_code,
            started_at=started_at,
            finished_at=self._ended_at.get(uuid, 0.0) if has_ended else 0.0,
            reason=condition.reason,
            tenant=meta.tenant,
        )


def _with_lease(found: Found, leased: dict[str, tuple[str, ...]]) -> Found:
    addresses = leased.get(identity.mac_address(found.runtime_id), ())
    return evolve(found, addresses=addresses) if found.phase is Phase.RUNNING else found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
