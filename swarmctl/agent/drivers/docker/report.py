"""From what dockerd tells of a container to :class:`Found`. Pure.

A row of ``docker ps`` has the state, the exit code (in a text), labels, addresses and ports, for
all containers in one answer; times and reasons are in ``docker inspect`` only, one answer each.
"""

import re
from datetime import datetime
from typing import Any, Final

import attrs

from swarmctl.agent.drivers.api import Found, Launch, Phase
from swarmctl.agent.drivers.docker.config import Identity, identity_of
from swarmctl.agent.drivers.endings import exit_reason
from swarmctl.spec.models import PortMapping

PHASES: Final = {
    "created": Phase.CREATED,
    "running": Phase.RUNNING,
    "paused": Phase.RUNNING,
    "restarting": Phase.RUNNING,
    "removing": Phase.STOPPING,
    "exited": Phase.EXITED,
    "dead": Phase.EXITED,
}
_EXITED: Final = re.compile(r"^Exited \((-?\d+)\)")
_FRACTION: Final = re.compile(r"\.(\d+)")


def found_of_row(row: dict[str, Any]) -> Found | None:
    """One row of the list, without times and reason; None when it is not ours."""
    identity = identity_of(row.get("Labels") or {})
    if identity is None:
        return None
    phase = PHASES.get(row["State"], Phase.EXITED)
    exited = _EXITED.match(row.get("Status") or "")
    return Found(
        incarnation=identity.incarnation,
        service=identity.service,
        slot=identity.slot,
        runtime_id=row["Id"],
        phase=phase,
        exit_code=int(exited[1]) if exited and phase is Phase.EXITED else None,
        addresses=addresses_of(row.get("NetworkSettings") or {}),
        tenant=identity.tenant,
        ports=_ports_of_row(row.get("Ports") or []),
    )


def found_of_start(launch: Launch, container_id: str, started_at: float) -> Found:
    """A container that was just started and has no address: nothing needs to be asked for."""
    return Found(
        incarnation=launch.incarnation,
        service=launch.service,
        slot=launch.slot,
        runtime_id=container_id,
        phase=Phase.RUNNING,
        started_at=started_at,
        tenant=launch.tenant,
    )


def found_of_inspect(info: dict[str, Any], identity: Identity, template: bytes = b"") -> Found:
    """All that an inspect tells; ``template`` is what it was made of, for lists."""
    state = info["State"]
    phase = PHASES.get(state["Status"], Phase.EXITED)
    ended = phase is Phase.EXITED
    reason = state.get("Error") or exit_reason(
        state.get("ExitCode") or 0, out_of_memory=bool(state.get("OOMKilled"))
    )
    settings = info.get("NetworkSettings") or {}
    return Found(
        incarnation=identity.incarnation,
        service=identity.service,
        slot=identity.slot,
        runtime_id=info["Id"],
        phase=phase,
        exit_code=state.get("ExitCode") if ended else None,
        started_at=epoch(state.get("StartedAt")),
        finished_at=epoch(state.get("FinishedAt")) if ended else 0.0,
        addresses=addresses_of(settings),
        reason=reason if ended else "",
        tenant=identity.tenant,
        ports=_ports_of_inspect(settings.get("Ports") or {}),
        template=template,
    )


def addresses_of(settings: dict[str, Any]) -> tuple[str, ...]:
    """The container's own addresses on its networks, IPv4 first."""
    networks = (settings.get("Networks") or {}).values()
    keys = ("IPAddress", "GlobalIPv6Address")
    return tuple(net[key] for key in keys for net in networks if net and net.get(key))


def epoch(text: str | None) -> float:
    """Seconds since the epoch of an RFC 3339 time with any number of digits; 0 for Go's zero."""
    if not text or text.startswith("0001-"):
        return 0.0
    # Before Python 3.11 only 3 or 6 digits are read, and nowhere more than 6.
    microseconds = _FRACTION.sub(lambda match: "." + match[1][:6].ljust(6, "0"), text)
    return datetime.fromisoformat(microseconds.replace("Z", "+00:00")).timestamp()


def _ports_of_row(ports: list[dict[str, Any]]) -> tuple[PortMapping, ...]:
    return _unique(
        PortMapping(port["PrivatePort"], port["PublicPort"], port["Type"], port.get("IP", ""))
        for port in ports
        if port.get("PublicPort")
    )


def _ports_of_inspect(ports: dict[str, Any]) -> tuple[PortMapping, ...]:
    found = []
    for key, bindings in ports.items():
        number, _, protocol = key.partition("/")
        for binding in bindings or ():
            host_port, host_ip = int(binding["HostPort"] or 0), binding.get("HostIp", "")
            found.append(PortMapping(int(number), host_port, protocol or "tcp", host_ip))
    return _unique(found)


def _unique(ports: Any) -> tuple[PortMapping, ...]:
    """Sorted, and once where Docker binds IPv4 and IPv6 to the same port."""
    plain = {
        attrs.evolve(port, host_ip="" if port.host_ip in ("0.0.0.0", "::") else port.host_ip)  # noqa: S104 - read, not bound
        for port in ports
    }
    return tuple(sorted(plain, key=lambda p: (p.container_port, p.protocol, p.host_port)))
