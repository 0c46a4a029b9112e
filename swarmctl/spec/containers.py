"""The container of a service of a stack file: its process, environment, ports and mounts."""

import posixpath
from collections.abc import Callable, Mapping
from typing import Final

from attrs import evolve, frozen

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec import mounts, ports
from swarmctl.spec.attachments import NetworkName
from swarmctl.spec.environments import check_variable_name, parse_assignment, parse_env_file
from swarmctl.spec.models import ContainerSpec, Mount, PortMapping
from swarmctl.spec.processes import (
    check_hostname,
    check_image,
    check_working_dir,
    parse_capability,
    parse_signal,
    split_command,
)
from swarmctl.spec.reading import Field, Warnings
from swarmctl.spec.sizes import parse_size
from swarmctl.spec.unsupported import NOT_YET


@frozen
class Surroundings:
    """What a service may refer to outside of itself.

    Attributes:
        stack: its stack's name.
        environment: the variables of whoever reads the file.
        read_file: returns the text of an environment file.
        folder: where relative paths begin.
        networks: name in the file to what it is called outside.
        volumes: name in the file to name on the node.
        warnings: where warnings go.
    """

    stack: str
    environment: Mapping[str, str]
    read_file: Callable[[str], str]
    folder: str
    networks: Mapping[str, NetworkName]
    volumes: Mapping[str, str]
    warnings: Warnings

    def resolve(self, path: str) -> str:
        """``path``, made absolute when it is written as a relative one (``./``, ``~/``)."""
        if not path.startswith((".", "~")):
            return path
        return mounts.resolve_path(path, self.folder, self.environment.get("HOME", ""))


def read_container(
    service: dict[str, Field], network: str, surroundings: Surroundings
) -> ContainerSpec:
    """The container that a service's fields describe; ``image`` is among them.

    Raises:
        InvalidSpec: a part of it is not valid.
    """

    def text(key: str, check: Callable[[str], str] = str) -> str:
        return service[key].parse(check) if key in service else ""

    return ContainerSpec(
        image=text("image", check_image),
        command=_read_command(service.get("command")),
        entrypoint=_read_command(service.get("entrypoint")),
        environment=_read_environment(service, surroundings),
        user=text("user"),
        working_dir=text("working_dir", check_working_dir),
        hostname=text("hostname", check_hostname),
        ports=_read_ports(service["ports"]) if "ports" in service else (),
        mounts=_read_mounts(service, surroundings),
        network=network,
        cap_add=_read_capabilities(service.get("cap_add")),
        stop_signal=text("stop_signal", parse_signal),
        tty=service["tty"].boolean() if "tty" in service else False,
    )


def _read_command(field: Field | None) -> tuple[str, ...] | None:
    if field is None:
        return None
    if field.is_map:
        raise field.mismatch("text or a list of texts")
    return field.parse(split_command) if field.is_scalar else field.texts()


def _read_capabilities(field: Field | None) -> tuple[str, ...]:
    return tuple(item.parse(parse_capability) for item in field.elements()) if field else ()


# --- environment ---


def _read_environment(service: dict[str, Field], surroundings: Surroundings) -> dict[str, str]:
    found: dict[str, str] = {}
    if "env_file" in service:
        source = service["env_file"]
        for item in [source] if source.is_scalar else source.elements():
            found.update(_read_env_file(item, surroundings))
    if "environment" in service:
        for name, (value, field) in _read_variables(service["environment"]).items():
            _settle(found, name, value, field, surroundings)
    return found


def _read_variables(field: Field) -> dict[str, tuple[str | None, Field]]:
    if field.is_list:
        pairs = ((item.parse(parse_assignment), item) for item in field.elements())
        return {name: (value, item) for (name, value), item in pairs}
    found: dict[str, tuple[str | None, Field]] = {}
    for name, entry in field.entries().items():
        try:
            check_variable_name(name)
        except InvalidSpec as error:
            raise entry.fail(error.what, error.hint) from error
        found[name] = (None if entry.is_null else entry.text(), entry)
    return found


def _settle(
    found: dict[str, str], name: str, value: str | None, field: Field, surroundings: Surroundings
) -> None:
    """Give ``name`` its value, which comes from our own environment when it is None."""
    if value is None:
        value = surroundings.environment.get(name)
    if value is not None:
        found[name] = value
    else:
        field.warn(f"{name} is not set here, so not in the container either", f"write {name}=VALUE")


def _read_env_file(item: Field, surroundings: Surroundings) -> dict[str, str]:
    required, path_field = True, item
    if item.is_map:
        fields = item.fields(("path", "required"), {"format": NOT_YET})
        if "path" not in fields:
            raise item.fail("an env_file needs a path")
        path_field = fields["path"]
        required = fields["required"].boolean() if "required" in fields else True
    written = path_field.text()
    path = posixpath.join(surroundings.folder, path_field.parse(surroundings.resolve))
    try:
        text = surroundings.read_file(path)
    except FileNotFoundError as error:
        if not required:
            return {}
        raise path_field.fail(f"the file {written} does not exist", f"looked at {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise path_field.fail(f"the file {written} cannot be read: {error}") from error

    def unset(where: str, name: str) -> None:
        surroundings.warnings.add(where, f"the variable {name} is not set and became an empty text")

    found: dict[str, str] = {}
    for name, value in parse_env_file(written, text, surroundings.environment, unset).items():
        _settle(found, name, value, item, surroundings)
    return found


# --- ports ---


def _read_ports(field: Field) -> tuple[PortMapping, ...]:
    found: list[PortMapping] = []
    for item in field.elements():
        found.extend(_read_long_port(item) if item.is_map else item.parse(ports.parse_port))
    try:
        ports.check_ports(tuple(found))
    except InvalidSpec as error:
        raise field.fail(error.what, error.hint) from error
    return tuple(found)


def _read_long_port(item: Field) -> tuple[PortMapping, ...]:
    fields = item.fields(
        ("target", "published", "protocol", "host_ip"),
        {
            "mode": "the port is published on each node that runs an instance (mode: host)",
            "name": NOT_YET,
            "app_protocol": NOT_YET,
        },
    )
    if "target" not in fields:
        raise item.fail("a port needs a target", "the port in the container")
    target = fields["target"].parse(ports.parse_port_range)
    published: range | None = None
    if "published" in fields and fields["published"].text() not in ("", "0"):
        published = fields["published"].parse(ports.parse_port_range)
    protocol = fields["protocol"].choice(ports.PROTOCOLS) if "protocol" in fields else "tcp"
    host_ip = fields["host_ip"].parse(ports.parse_host_ip) if "host_ip" in fields else ""
    try:
        return ports.expand_ports(target, published, protocol, host_ip)
    except InvalidSpec as error:
        raise item.fail(error.what, error.hint) from error


# --- mounts ---


def _read_mounts(service: dict[str, Field], surroundings: Surroundings) -> tuple[Mount, ...]:
    found: list[Mount] = []
    place: Field | None = service.get("tmpfs")
    if place is not None:
        items = [place] if place.is_scalar else place.elements()
        found.extend(item.parse_warning(mounts.parse_tmpfs) for item in items)
    if "volumes" in service:
        place = service["volumes"]
        for item in place.elements():
            mount = (
                _read_long_mount(item) if item.is_map else item.parse_warning(mounts.parse_mount)
            )
            found.append(_settle_source(mount, item, surroundings))
    if place is not None:
        try:
            mounts.check_mounts(found)
        except InvalidSpec as error:
            raise place.fail(error.what, error.hint) from error
    return tuple(found)


def _settle_source(mount: Mount, item: Field, surroundings: Surroundings) -> Mount:
    """The mount with its source as the node knows it."""
    if mount.kind == mounts.VOLUME and mount.source:
        if mount.source not in surroundings.volumes:
            raise item.fail(
                f'the volume "{mount.source}" is not declared',
                f'add it under "volumes:" at the top level, or write "./{mount.source}" for a path',
            )
        return evolve(mount, source=surroundings.volumes[mount.source])
    if mount.kind == mounts.BIND and not mount.source.startswith("/"):
        try:
            source = surroundings.resolve(mount.source)
        except InvalidSpec as error:
            raise item.fail(error.what, error.hint) from error
        item.warn(
            f"{mount.source} is {source} of the node that runs the instance",
            "with several nodes, have the same files on each, or use a volume",
        )
        return evolve(mount, source=source)
    return mount


def _read_long_mount(item: Field) -> Mount:
    fields = item.fields(
        ("type", "source", "target", "read_only", "bind", "volume", "tmpfs"),
        {"consistency": "has no effect"},
    )
    for key in ("type", "target"):
        if key not in fields:
            raise item.fail(f"a mount needs a {key}", "such as {type: volume, target: /data}")
    kind = fields["type"].choice(mounts.KINDS)
    size = 0
    for key in mounts.KINDS:
        if key in fields:
            options = fields[key].fields(("size",) if key == mounts.TMPFS else (), _OPTIONS[key])
            size = options["size"].parse(parse_size) if "size" in options else size
    source = fields["source"].text() if "source" in fields else ""
    if kind == mounts.BIND and not mounts.is_path(source):
        raise item.fail("a bind mount needs a path as its source", "such as ./data or /srv/data")
    if kind == mounts.VOLUME and source:
        fields["source"].parse(mounts.check_volume_name)
    return Mount(
        kind=kind,
        source="" if kind == mounts.TMPFS else source,
        target=fields["target"].parse(mounts.check_target),
        read_only=fields["read_only"].boolean() if "read_only" in fields else False,
        size_bytes=size if kind == mounts.TMPFS else 0,
    )


_OPTIONS: Final = {
    mounts.BIND: {
        "propagation": NOT_YET,
        "create_host_path": "not supported yet, ignored; make the folder on the nodes",
        "selinux": NOT_YET,
        "recursive": NOT_YET,
    },
    mounts.VOLUME: {"nocopy": NOT_YET, "subpath": NOT_YET, "labels": NOT_YET},
    mounts.TMPFS: {"mode": NOT_YET},
}
