"""What the agent in a VM is told by its host, and its way to the controllers.

The host puts one file on the VM's seed disk, ``swarmctl.json``: which VM this is, which of its
interfaces is the trunk (by MAC, for names are the guest's own), where the relay is, and the token
to enrol with, once.  ``swarmctl agent --seed`` reads it, from the disk itself or where that is
mounted.  The file is a secret until it was used; a seed disk is readable by root alone.

The relay is at a link-local address on the trunk.  The agent sees to the way there itself: the
trunk is up, has an address (its own in the tenant's network, where nobody gave it one) and a route;
and it makes them again when the guest's network service, which does not know them, took them away.
So a guest's image has to start the agent, and nothing else.
"""

import io
import ipaddress
import json
import sys
from pathlib import Path
from typing import Any, Final

import attrs
import structlog
import trio
from attrs import field, frozen

from swarmctl.agent.config import AgentConfig
from swarmctl.agent.enrol import IDENTITY_FILE
from swarmctl.net import relays
from swarmctl.proto.errors import EnvironmentFault, InvalidSpec

_log = structlog.get_logger(__name__)

SEED_FILE: Final = "swarmctl.json"
INTERFACES: Final = Path("/sys/class/net")
ROUTES: Final = Path("/proc/net/route")
_FORMAT: Final = 1
# ISO 9660: the first volume descriptor says so, one byte into the 17th sector of 2 KiB.
_ISO: Final = b"CD001"
_ISO_AT: Final = 16 * 2048 + 1
# A guest's drivers are loaded while its services start.
TRUNK_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.2
# A session outlives the loss of its way for longer than this.
_WAY_EVERY_S: Final = 2.0
_ON_LINK: Final = 253  # RT_SCOPE_LINK: no gateway


@frozen
class GuestSeed:
    """What an agent in a VM is told.

    ``vm`` is the name of the VM's port on which its pods' are, ``node`` what the agent calls
    itself; ``mac``, ``mtu`` and ``addresses`` (with prefix) are the trunk's; ``labels`` the node's.
    """

    node: str
    vm: str
    mac: str
    mtu: int
    addresses: tuple[str, ...]
    token: str = field(repr=False)
    labels: dict[str, str] = field(factory=dict)
    controllers: tuple[str, ...] = (relays.endpoint(),)

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"format": _FORMAT} | attrs.asdict(self), indent=2) + "\n"


def read_seed(path: Path) -> GuestSeed:
    """The seed in a file: ``swarmctl.json``, or the disk that it is on.

    Raises:
        InvalidSpec: it cannot be read, or is no seed.
        EnvironmentFault: the library that reads such disks is not installed.
    """
    hint = f"give the seed disk (/dev/disk/by-label/cidata), or its {SEED_FILE} where it is mounted"
    try:
        found: Any = json.loads(_text_of(path))
        if found["format"] != _FORMAT:
            raise InvalidSpec(f"a seed of format {found['format']}", str(path), "upgrade the agent")
        return GuestSeed(
            node=str(found["node"]),
            vm=str(found["vm"]),
            mac=str(found["mac"]).lower(),
            mtu=int(found["mtu"]),
            addresses=tuple(str(ipaddress.ip_interface(one)) for one in found["addresses"]),
            token=str(found["token"]),
            labels={str(name): str(value) for name, value in found["labels"].items()},
            controllers=tuple(str(one) for one in found["controllers"]),
        )
    except OSError as error:
        raise InvalidSpec(f"it cannot be read: {error.strerror}", str(path), hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # Its text is not repeated: it could quote the token.
        raise InvalidSpec(f"not a seed: {type(error).__name__}", str(path), hint) from error


def _text_of(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(_ISO_AT)
        if file.read(len(_ISO)) != _ISO:
            file.seek(0)
            return file.read().decode()
        try:
            import pycdlib
            from pycdlib.pycdlibexception import PyCdlibException
        except ImportError as error:
            raise EnvironmentFault(
                "pycdlib is not installed, so the seed disk has to be mounted",
                hint=f"pip install 'swarmctl[libvirt]', or mount it and give its {SEED_FILE}",
            ) from error
        disk, text = pycdlib.PyCdlib(), io.BytesIO()
        try:
            disk.open_fp(file)
            disk.get_file_from_iso_fp(text, rr_path=f"/{SEED_FILE}")
        except PyCdlibException as error:
            raise InvalidSpec(
                f"there is no {SEED_FILE} on this disk", str(path), "has its VM `trunk: true`?"
            ) from error
        return text.getvalue().decode()


def interface_of(mac: str, interfaces: Path = INTERFACES) -> str:
    """The name of the interface with that MAC; empty when there is none.

    What others were made upon (a VLAN, a bridge) has its MAC as well: it has no device of its own.
    """
    for found in sorted(interfaces.glob("*/device")):
        try:
            address = found.with_name("address").read_text(encoding="ascii").strip()
        except OSError:
            continue  # It went away.
        if address.lower() == mac:
            return found.parent.name
    return ""


async def prepare_trunk(seed: GuestSeed) -> str:
    """Have the way to the relay; the trunk's name.

    Raises:
        EnvironmentFault: the trunk does not appear, or the kernel refuses.
    """
    with trio.move_on_after(TRUNK_S):
        while not (trunk := interface_of(seed.mac)):  # noqa: ASYNC110 - the kernel's devices
            await trio.sleep(_LOOK_EVERY_S)
        await trio.to_thread.run_sync(_make_way, trunk, seed, abandon_on_cancel=True)
        _log.info("trunk", interface=trunk, vm=seed.vm)
        return trunk
    raise EnvironmentFault(
        f"no interface with MAC {seed.mac} has appeared within {TRUNK_S:g} s",
        hint="is the driver of the VM's network card loaded (virtio_net)?",
    )


async def keep_way(path: Path) -> None:
    """Make the way to the relay again whenever it is gone, until cancelled.

    A network service that starts anew (systemd-networkd on an upgrade, say) removes from its links
    what it did not make.

    Args:
        path: of the seed that :func:`told_by` has read.
    """
    seed = read_seed(path)
    while True:
        await trio.sleep(_WAY_EVERY_S)
        if has_way(ROUTES.read_text(encoding="ascii")):
            continue
        _log.warning("the way to the relay is gone; it is made again", vm=seed.vm)
        try:
            await prepare_trunk(seed)
        except EnvironmentFault as error:
            _log.error("there is no way to the relay", error=str(error))


def has_way(routes: str) -> bool:
    """Whether the kernel's table of routes, as ``/proc/net/route`` shows it, has the relay's."""
    address = ipaddress.ip_address(relays.ADDRESS).packed
    wanted = f"{int.from_bytes(address, sys.byteorder):08X}"
    return any(line.split()[1:2] == [wanted] for line in routes.splitlines())


async def told_by(path: Path, config: AgentConfig) -> AgentConfig:
    """``config`` with what the seed in a file says; what it says already is left.

    Raises:
        InvalidSpec: it is no seed.
        EnvironmentFault: the trunk does not appear.
    """
    seed = read_seed(path)
    trunk = await prepare_trunk(seed)
    enrolled = (config.data / IDENTITY_FILE).exists()
    return attrs.evolve(
        config,
        name=config.name or ("" if enrolled else seed.node),
        controllers=config.controllers or seed.controllers,
        join=config.join or ("" if enrolled else seed.token),
        trunk=config.trunk or trunk,
        parent=config.parent or seed.vm,
        labels=seed.labels | config.labels,
    )


def _make_way(trunk: str, seed: GuestSeed) -> None:
    # Local: the library takes half a second to import, and only agents in VMs come here.
    from pyroute2 import IPRoute, NetlinkError

    from swarmctl.net.plugging import links

    try:
        with IPRoute() as here:
            index = links.index_of(here, trunk)
            here.link("set", index=index, state="up", **({"mtu": seed.mtu} if seed.mtu else {}))
            if not here.get_addr(index=index, family=2):
                for one in map(ipaddress.ip_interface, seed.addresses):
                    here.addr("replace", index=index, address=str(one.ip),
                              prefixlen=one.network.prefixlen)  # fmt: skip
            here.route("replace", dst=f"{relays.ADDRESS}/32", oif=index, scope=_ON_LINK)
    except NetlinkError as error:
        raise EnvironmentFault(
            f"the trunk cannot be set up: {error}", trunk, "run the agent as root"
        ) from error
