"""Mounts in their short syntax: ``[SOURCE:]TARGET[:OPTIONS]`` and ``TARGET:size=64m``.

A source that begins with ``/``, ``.`` or ``~`` is a path of the node that the instance runs on;
any other is the name of a volume; none is a volume that goes with the instance.
"""

import posixpath
import re
from collections.abc import Callable, Sequence
from typing import Final

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.models import Mount
from swarmctl.spec.sizes import format_bytes_exact, parse_size

BIND: Final = "bind"
VOLUME: Final = "volume"
TMPFS: Final = "tmpfs"
KINDS: Final = (BIND, VOLUME, TMPFS)

Warn = Callable[[str], None]

_VOLUME_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_HINT: Final = 'write "data:/var/lib/data", "/host/path:/path:ro" or "/path"'
# Options of docker's that have no effect on Linux without SELinux and Docker Desktop.
_WITHOUT_EFFECT: Final = frozenset(
    {"z", "Z", "cached", "delegated", "consistent", "default", "nocopy"}
)
_PROPAGATION: Final = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})


def parse_mount(text: str, warn: Warn) -> Mount:
    """The mount that one ``-v`` or one short item of ``volumes:`` asks for.

    Args:
        text: the short syntax.
        warn: told about options that are accepted without effect.

    Raises:
        InvalidSpec: it is not a mount.
    """
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise InvalidSpec(f'"{text}" is not a mount', hint=_HINT)
    if len(parts) == 1:
        return Mount(VOLUME, "", check_target(text))
    source, target = parts[:2]
    read_only = False
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option == "ro":
            read_only = True
        elif option in _WITHOUT_EFFECT or option in _PROPAGATION:
            warn(f'the mount option "{option}" has no effect')
        elif option != "rw":
            raise InvalidSpec(
                f'"{option}" in "{text}" is not a mount option', hint='use "ro" or "rw"'
            )
    kind = BIND if is_path(source) else VOLUME
    if kind == VOLUME:
        check_volume_name(source)
    return Mount(kind, source, check_target(target), read_only)


def parse_tmpfs(text: str, warn: Warn) -> Mount:
    """The mount that one ``tmpfs:`` item asks for, such as ``/run:size=64m``.

    Raises:
        InvalidSpec: it is not one.
    """
    target, _, options = text.partition(":")
    size, read_only = 0, False
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name == "size":
            size = parse_size(value)
        elif name in ("ro", "rw"):
            read_only = name == "ro"
        else:
            warn(f'the tmpfs option "{option}" is not supported yet')
    return Mount(TMPFS, "", check_target(target), read_only, size)


def is_path(source: str) -> bool:
    """Whether a mount's source is a path of the node, not a volume's name."""
    return source.startswith(("/", ".", "~"))


def check_target(target: str) -> str:
    """``target``, normalised, when something can be mounted there.

    Raises:
        InvalidSpec: it is not an absolute path, or it is the root.
    """
    if not target.startswith("/"):
        raise InvalidSpec(f'"{target}" is not an absolute path in the container', hint=_HINT)
    normal = posixpath.normpath(target)
    if normal.strip("/") == "":
        raise InvalidSpec("nothing can be mounted over /", hint=_HINT)
    return normal


def check_volume_name(name: str) -> str:
    """``name`` when a volume may be called so.

    Raises:
        InvalidSpec: it may not.
    """
    if _VOLUME_NAME.fullmatch(name) is None:
        raise InvalidSpec(
            f'"{name}" cannot be a volume\'s name',
            hint='use letters, digits, "_", "." and "-"; a path begins with "/" or "./"',
        )
    return name


def resolve_path(path: str, folder: str, home: str) -> str:
    """An absolute form of ``path``, which may begin with ``./`` (``folder``) or ``~`` (``home``).

    Raises:
        InvalidSpec: it cannot be made absolute.
    """
    if path == "~" or path.startswith("~/"):
        if not home:
            raise InvalidSpec(f'"{path}" needs HOME, which is not set', hint="write it in full")
        path = posixpath.join(home, path[2:])
    resolved = posixpath.normpath(posixpath.join(folder, path))
    if not resolved.startswith("/"):
        raise InvalidSpec(f'"{path}" is not an absolute path', hint="write it in full")
    return resolved


def check_mounts(mounts: Sequence[Mount]) -> None:
    """Refuse two mounts at one place.

    Raises:
        InvalidSpec: naming the place.
    """
    seen: set[str] = set()
    for mount in mounts:
        if mount.target in seen:
            raise InvalidSpec(f"two mounts at {mount.target}", hint="remove one")
        seen.add(mount.target)


def format_mount(mount: Mount) -> str:
    """The short syntax of a mount."""
    source = "tmpfs" if mount.kind == TMPFS else mount.source
    options = [
        *(["ro"] if mount.read_only else []),
        *([f"size={format_bytes_exact(mount.size_bytes)}"] if mount.size_bytes else []),
    ]
    return ":".join(filter(None, (source, mount.target, ",".join(options))))
