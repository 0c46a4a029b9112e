"""What is mounted into a container: the spec's mounts, and the files that name it.

Volumes are folders: named ones in the driver's ``volumes``, unnamed ones in the container's own
folder, with which they go.  A new volume begins with what the image has at that place, as Docker's
do.  A host name, a hosts file and a resolver configuration are made for each container.
"""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from swarmctl.agent.drivers.api import Launch
from swarmctl.agent.drivers.oci.bundle import HOST_NETWORK, container_of
from swarmctl.agent.drivers.oci.layout import HIDDEN, Layout, Place
from swarmctl.agent.drivers.oci.programs import run
from swarmctl.proto.errors import InvalidSpec, LaunchFailed
from swarmctl.proto.messages import Attachment
from swarmctl.spec.models import Mount
from swarmctl.spec.mounts import TMPFS, VOLUME

# A volume's first content may be gigabytes.
COPY_S: Final = 600.0
HOST_RESOLVER: Final = Path("/etc/resolv.conf")
_HOSTS: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def mounts_of(
    launch: Launch, layout: Layout, place: Place, made_in: Path, image: Path
) -> list[dict[str, Any]]:
    """Make what the mounts need, and say what runc has to mount.

    Args:
        launch: whose.
        layout: the driver's folder.
        place: where the container will be.
        made_in: the folder that it is made in, and that is renamed to its place.
        image: the image's root file system.

    Raises:
        InvalidSpec: a source is not there.
        LaunchFailed: a volume cannot be made.
    """
    spec = container_of(launch)
    found = _identity_mounts(launch, place, made_in)
    for number, mount in enumerate(spec.mounts):
        if mount.kind == TMPFS:
            found.append(_tmpfs(mount))
            continue
        if mount.kind == VOLUME:
            name = mount.source or f"volume-{number}"
            parent = layout.volumes if mount.source else made_in
            _make_volume(parent / name, image, mount.target, launch.instance)
            source = (layout.volumes if mount.source else place.folder) / name
        else:
            source = Path(mount.source)
            if not source.exists():
                raise InvalidSpec(
                    f"the bind mount's source {source} does not exist on the node",
                    launch.instance,
                    "make it there, or constrain the service to nodes that have it",
                )
        found.append(_bind(source, mount.target, read_only=mount.read_only))
    return found


def hosts_file(hostname: str, attachments: Sequence[Attachment]) -> str:
    """The text of ``/etc/hosts``."""
    addresses = [one.partition("/")[0] for each in attachments for one in each.addresses]
    return _HOSTS + "".join(f"{address}\t{hostname}\n" for address in addresses or ["127.0.1.1"])


def resolver_file(attachments: Sequence[Attachment]) -> str:
    """The text of ``/etc/resolv.conf`` for tenant networks; empty when they have no resolver."""
    servers = dict.fromkeys(server for one in attachments for server in one.dns)
    search = dict.fromkeys(domain for one in attachments for domain in one.search)
    lines = [f"search {' '.join(search)}"] if search else []
    return "".join(f"{line}\n" for line in [*lines, *(f"nameserver {one}" for one in servers)])


def _identity_mounts(launch: Launch, place: Place, made_in: Path) -> list[dict[str, Any]]:
    spec = container_of(launch)
    hostname = spec.hostname or launch.hostname
    texts = {
        "hostname": f"{hostname}\n",
        "hosts": hosts_file(hostname, launch.attachments),
        "resolv.conf": resolver_file(launch.attachments),
    }
    if spec.network == HOST_NETWORK and not launch.attachments:
        texts["resolv.conf"] = HOST_RESOLVER.read_text() if HOST_RESOLVER.exists() else ""
    taken = {mount.target for mount in spec.mounts}
    found = []
    for name, text in texts.items():
        target = f"/etc/{name}"
        if target in taken:
            continue
        (made_in / name).write_text(text, encoding="utf-8")
        (made_in / name).chmod(0o644)
        found.append(_bind(place.folder / name, target, read_only=False))
    return found


def _bind(source: Path, target: str, *, read_only: bool) -> dict[str, Any]:
    options = ["rbind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": target, "type": "bind", "source": str(source), "options": options}


def _tmpfs(mount: Mount) -> dict[str, Any]:
    options = ["nosuid", "nodev", "mode=1777", "ro" if mount.read_only else "rw"]
    if mount.size_bytes:
        options.append(f"size={mount.size_bytes}")
    return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}


def _make_volume(volume: Path, image: Path, target: str, where: str) -> None:
    """Make a volume, unless it is there, with what the image has at its place."""
    if volume.exists():
        return
    hidden = volume.with_name(f"{HIDDEN}{volume.name}-{secrets.token_hex(8)}")
    hidden.mkdir(mode=0o755)
    content = inside(image, target)
    if content is not None and content.is_dir():
        copied = run("cp", "-a", f"{content}/.", str(hidden), timeout_s=COPY_S)
        if copied.returncode != 0:
            raise LaunchFailed(f"could not fill a volume: {copied.stderr.strip()}", where)
    try:
        hidden.rename(volume)
    except OSError:
        # Another container made it meanwhile, and may have written to it.
        shutil.rmtree(hidden)


def inside(rootfs: Path, target: str) -> Path | None:
    """``target`` in an image's root file system; None when a symbolic link is on the way.

    An image may have a link to a place of the host's; it is not followed.
    """
    path = rootfs
    for part in Path(target).parts[1:]:
        path = path / part
        if path.is_symlink():
            return None
    return path
