"""From a launch to the body of Docker's create request, and back from labels. Pure.

The body is the Engine API's own (not the SDK's keyword arguments): what is written here is what
dockerd gets, and nothing of the SDK is needed to test it.

The agent restarts instances itself, so Docker's own restart policy is always ``no``.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import attrs
from attrs import frozen

from swarmctl.agent.drivers import made_of
from swarmctl.agent.drivers.api import Launch, Owner, resource_name
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import ProtocolError
from swarmctl.spec import wire
from swarmctl.spec.models import ContainerSpec, Mount, Resources, Template

LABEL_CLUSTER: Final = "swarmctl.cluster"
LABEL_NODE: Final = "swarmctl.node"
LABEL_INCARNATION: Final = "swarmctl.incarnation"
LABEL_SERVICE: Final = "swarmctl.service"
LABEL_SLOT: Final = "swarmctl.slot"
LABEL_TENANT: Final = "swarmctl.tenant"
LABEL_TEMPLATE: Final = "swarmctl.template"
# In place of the incarnation's label, on what holds an instance's network: see holders.
LABEL_HOLDS: Final = "swarmctl.holds"

# Kept output of one container: 30 MB at the most, so that a chatty one cannot fill the disk.
LOG_FILE_SIZE: Final = "10m"
LOG_FILES: Final = "3"
# Docker refuses less than a hundredth of a core.
CPU_MILLIS_MIN: Final = 10
NANO_CPUS_PER_MILLI: Final = 1_000_000


@frozen
class Identity:
    """Whose container it is, and which instance: what our labels say."""

    owner: Owner
    incarnation: int
    service: str
    slot: int
    tenant: str


def identity_of(labels: dict[str, str]) -> Identity | None:
    """What a container's labels say; None when they are not (all) ours."""
    try:
        return Identity(
            Owner(labels[LABEL_CLUSTER], labels[LABEL_NODE]),
            incarnations.parse(labels[LABEL_INCARNATION]),
            labels[LABEL_SERVICE],
            int(labels[LABEL_SLOT]),
            labels.get(LABEL_TENANT, "default"),
        )
    except (KeyError, ValueError, AssertionError):
        return None


def identity(owner: Owner, launch: Launch) -> Identity:
    """What the labels of a launch's container say."""
    return Identity(owner, launch.incarnation, launch.service, launch.slot, launch.tenant)


def owner_filter(owner: Owner, incarnation: int | None = None) -> list[str]:
    """Docker's label filter for the owner's containers, or for one of them."""
    wanted = [f"{LABEL_CLUSTER}={owner.cluster_id}", f"{LABEL_NODE}={owner.node}"]
    if incarnation is not None:
        wanted.append(f"{LABEL_INCARNATION}={incarnations.label(incarnation)}")
    return wanted


def holder_name(owner: Owner, launch: Launch) -> str:
    """The container whose network namespace an instance with ports of its own is in."""
    return f"{resource_name(owner, launch)}-net"


def container_body(owner: Owner, launch: Launch) -> dict[str, Any]:
    """The body of ``POST /containers/create``."""
    template = launch.template
    spec = template.container
    assert spec is not None, "the docker driver makes containers"
    if launch.attachments:
        spec = _in_holder(owner, launch, spec)
    body: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in spec.environment.items()],
        "Labels": _labels(owner, launch),
        "Tty": spec.tty,
        # Without a grace of our own (someone runs `docker stop`), the spec's is right, too.
        "StopTimeout": math.ceil(template.stop_grace_period_s),
        "HostConfig": _host_config(spec, template),
    }
    optional: dict[str, Any] = {
        "Cmd": None if spec.command is None else list(spec.command),
        # An entrypoint that was set to nothing takes the image's away: Docker spells that [""].
        "Entrypoint": None if spec.entrypoint is None else list(spec.entrypoint) or [""],
        "User": spec.user or None,
        "WorkingDir": spec.working_dir or None,
        "StopSignal": spec.stop_signal or None,
        "ExposedPorts": {_port_key(p.container_port, p.protocol): {} for p in spec.ports} or None,
        "NetworkingConfig": _networking(spec, launch),
        # The agent makes the checks; the image's own are not made as well.
        "Healthcheck": {"Test": ["NONE"]} if template.health is not None else None,
        "Hostname": None if launch.attachments else spec.hostname or launch.hostname,
    }
    return body | {name: value for name, value in optional.items() if value is not None}


def _in_holder(owner: Owner, launch: Launch, spec: ContainerSpec) -> ContainerSpec:
    """``spec`` in its holder's network namespace; Docker takes name and resolver from there too.

    What it publishes is reached by the address that its service has on its networks, not by a port
    of the node.
    """
    return attrs.evolve(spec, network=f"container:{holder_name(owner, launch)}", ports=())


def holder_body(owner: Owner, launch: Launch, image: str) -> dict[str, Any]:
    """The body of the create request for the holder: it does nothing, and may do nothing."""
    spec = launch.template.container
    assert spec is not None, "the docker driver makes containers"
    ports, hostname = launch.attachments, spec.hostname or launch.hostname
    addresses = [address.partition("/")[0] for port in ports for address in port.addresses]
    return {
        "Image": image,
        "Hostname": hostname,
        "Labels": {
            LABEL_CLUSTER: owner.cluster_id,
            LABEL_NODE: owner.node,
            LABEL_HOLDS: incarnations.label(launch.incarnation),
        },
        "HostConfig": {
            "NetworkMode": "none",
            "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "none"},
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            # As Docker itself does where it gives the address.
            "ExtraHosts": [f"{hostname}:{address}" for address in addresses],
            "Dns": list(dict.fromkeys(server for port in ports for server in port.dns)),
            "DnsSearch": list(dict.fromkeys(domain for port in ports for domain in port.search)),
        },
    }


def _labels(owner: Owner, launch: Launch) -> dict[str, str]:
    return launch.template.labels | {
        LABEL_CLUSTER: owner.cluster_id,
        LABEL_NODE: owner.node,
        LABEL_INCARNATION: incarnations.label(launch.incarnation),
        LABEL_SERVICE: launch.service,
        LABEL_SLOT: str(launch.slot),
        LABEL_TENANT: launch.tenant,
        LABEL_TEMPLATE: made_of.text_of(_with_environment(launch.template, {})),
    }


def template_of(config: dict[str, Any]) -> bytes:
    """What a container was made of, encoded, from the ``Config`` of its inspect; empty if unknown.

    Labels get around, to events and to collectors of metrics: the values of variables are not
    among them, and are taken from where Docker itself has them.
    """
    encoded = made_of.encoded_of((config.get("Labels") or {}).get(LABEL_TEMPLATE, ""))
    try:
        template = wire.decode_template(encoded)
    except ProtocolError:
        return b""  # There is none, or a newer release wrote it.
    values = dict(one.partition("=")[::2] for one in config.get("Env") or ())
    return wire.encode_template(_with_environment(template, values))


def _with_environment(template: Template, values: Mapping[str, str]) -> Template:
    """``template`` with these values of its variables, and empty ones for all others."""
    spec = template.container
    if spec is None or not spec.environment:
        return template
    environment = {name: values.get(name, "") for name in spec.environment}
    return attrs.evolve(template, container=attrs.evolve(spec, environment=environment))


def _host_config(spec: ContainerSpec, template: Template) -> dict[str, Any]:
    config: dict[str, Any] = {
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": LOG_FILE_SIZE, "max-file": LOG_FILES},
        },
        **_limits(template.limits),
    }
    if spec.network:
        config["NetworkMode"] = spec.network
    if spec.cap_add:
        config["CapAdd"] = list(spec.cap_add)
    if spec.mounts:
        config["Mounts"] = [_mount(mount) for mount in spec.mounts]
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in spec.ports:
        host_port = str(port.host_port) if port.host_port else ""
        bindings.setdefault(_port_key(port.container_port, port.protocol), []).append(
            {"HostIp": port.host_ip, "HostPort": host_port}
        )
    if bindings:
        config["PortBindings"] = bindings
    return config


def _limits(resources: Resources) -> dict[str, int]:
    limits: dict[str, int] = {}
    if resources.cpu_millis:
        limits["NanoCpus"] = max(resources.cpu_millis, CPU_MILLIS_MIN) * NANO_CPUS_PER_MILLI
    if resources.memory_bytes:
        limits["Memory"] = resources.memory_bytes
    return limits


def _mount(mount: Mount) -> dict[str, Any]:
    body: dict[str, Any] = {"Type": mount.kind, "Target": mount.target}
    if mount.read_only:
        body["ReadOnly"] = True
    if mount.kind == "tmpfs":
        if mount.size_bytes:
            body["TmpfsOptions"] = {"SizeBytes": mount.size_bytes}
    elif mount.source:
        body["Source"] = mount.source
    return body


def _networking(spec: ContainerSpec, launch: Launch) -> dict[str, Any] | None:
    """A network of the user's own gives the container its service's name as an alias."""
    if spec.network in ("", "none", "host", "bridge", "default") or launch.attachments:
        return None
    aliases = [launch.service, launch.hostname]
    return {"EndpointsConfig": {spec.network: {"Aliases": aliases}}}


def _port_key(port: int, protocol: str) -> str:
    return f"{port}/{protocol}"
