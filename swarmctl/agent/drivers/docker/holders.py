"""Network namespaces that are there before their container: a *holder* for each instance.

Docker starts a container's process in the same request that makes its network namespace, so there
is no moment to plug something in between (ADR 17).  An instance with ports on tenant networks
therefore joins the namespace of another container, which does nothing but hold it: the holder is
started, its namespace plugged in, and only then the instance starts, as often as it has to.

A holder is a container of an image with one file of 4 KiB that is imported when it is first needed.
It carries cluster, node and incarnation as instances do, under a label that does not make it
one; its file for name resolution is the instance's as well.
"""

import io
import struct
import tarfile
import threading
from typing import Any, Final

from swarmctl.agent.drivers.api import Launch, Owner
from swarmctl.agent.drivers.docker.calls import Calls, Client, Missing, Taken
from swarmctl.agent.drivers.docker.config import (
    LABEL_HOLDS,
    holder_body,
    holder_name,
    owner_filter,
)
from swarmctl.agent.drivers.docker.faults import translate
from swarmctl.net.plugging.api import InNamespace, Switch
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import LaunchFailed, NotFound

REPOSITORY: Final = "swarmctl/holder"
# Raised when what is in the image changes.
TAG: Final = "1"
PROGRAM: Final = "/hold"
# All three requests of a place; as long as a create of an instance and its start may take.
PLACE_S: Final = 30.0
REMOVE_S: Final = 60.0
LIST_S: Final = 30.0

# A process that waits for ever, in each machine's language: pause(2) again and again on x86-64,
# ppoll(2) of nothing on arm64, which has no pause.
_CODE: Final = {
    62: bytes.fromhex("b822000000 0f05 ebf7".replace(" ", "")),
    183: struct.pack(
        "<8I",
        *(0xD2800000 + register for register in range(5)),  # mov x0..x4, #0
        0xD2800928,  # mov x8, #73 (ppoll)
        0xD4000001,  # svc #0
        0x17FFFFF9,  # b to the first
    ),
}
_ELF_MACHINE: Final = {"x86_64": 62, "amd64": 62, "aarch64": 183, "arm64": 183}
_LOAD_AT: Final = 0x400000
_HEADERS_BYTES: Final = 64 + 56


def program(architecture: str) -> bytes:
    """The holder's program: an ELF file with one segment, made of its few instructions.

    Raises:
        LaunchFailed: there is none for such machines.
    """
    machine = _ELF_MACHINE.get(architecture)
    if machine is None:
        raise LaunchFailed(
            f"containers on tenant networks need x86-64 or arm64, not {architecture}",
            "docker",
            "use another driver on this node",
        )
    code = _CODE[machine]
    size = _HEADERS_BYTES + len(code)
    ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    entry = _LOAD_AT + _HEADERS_BYTES
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_AT, _LOAD_AT, size, size, 0x1000)
    return ident + header + segment + code


def image_archive(architecture: str) -> bytes:
    """The image's one layer, as a tar file."""
    content = program(architecture)
    member = tarfile.TarInfo(PROGRAM.lstrip("/"))
    member.size, member.mode = len(content), 0o755
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()


class Holders:
    """The holders of one owner on one dockerd: the driver's ``Places``."""

    def __init__(self, owner: Owner, calls: Calls) -> None:
        self._owner = owner
        self._calls = calls
        # Launches come many at once, and each import makes an image of its own.
        self._importing = threading.Lock()

    async def place(self, launch: Launch, switch: Switch) -> tuple[InNamespace, ...]:  # noqa: ARG002 - the contract's
        """A running holder for the launch; see :class:`swarmctl.agent.drivers.api.Places`."""
        name = holder_name(self._owner, launch)
        image = f"{REPOSITORY}:{TAG}"
        body = holder_body(self._owner, launch, image) | {"Cmd": [PROGRAM]}
        try:
            pid = await self._calls.run(
                lambda client: self._running(client, name, body),
                where=launch.instance,
                doing="hold its network",
                deadline_s=PLACE_S,
            )
        except Missing as error:
            raise translate(404, error.text, launch.instance, "hold its network") from None
        except Taken as error:
            raise translate(409, error.text, launch.instance, "hold its network") from None
        path = f"/proc/{pid}/ns/net"
        return tuple(InNamespace(path, f"eth{i}") for i, _ in enumerate(launch.attachments))

    async def namespace_of(self, incarnation: int) -> str:
        """Where the namespace that the holder of ``incarnation`` holds is entered.

        Raises:
            NotFound: it has no holder, or that one has ended.
        """
        label = incarnations.label(incarnation)
        filters = {"label": [*owner_filter(self._owner), f"{LABEL_HOLDS}={label}"]}

        def look(client: Client) -> int:
            found = client.containers(filters=filters)
            return int(client.inspect_container(found[0]["Id"])["State"]["Pid"]) if found else 0

        pid: int = await self._calls.run(
            look, where=label, doing="say where its network is", deadline_s=LIST_S
        )
        if not pid:
            raise NotFound("nothing holds its network", label)
        return f"/proc/{pid}/ns/net"

    async def displace(self, incarnation: int) -> None:
        """Remove the holder of ``incarnation``."""
        label = f"{LABEL_HOLDS}={incarnations.label(incarnation)}"
        filters = {"label": [*owner_filter(self._owner), label]}
        await self._calls.run(
            lambda client: _remove(client, filters),
            where=incarnations.label(incarnation),
            doing="let go of its network",
            deadline_s=REMOVE_S,
        )

    async def placed(self) -> tuple[int, ...]:
        """The incarnations that have a holder."""
        filters = {"label": [*owner_filter(self._owner), LABEL_HOLDS]}
        rows: list[dict[str, Any]] = await self._calls.run(
            lambda client: client.containers(all=True, filters=filters),
            where="docker",
            doing="list what holds networks",
            deadline_s=LIST_S,
        )
        return tuple(incarnations.parse(row["Labels"][LABEL_HOLDS]) for row in rows)

    def _running(self, client: Client, name: str, body: dict[str, Any]) -> int:
        """Have the holder run, whether it is there or not; its process's number."""
        from docker.errors import APIError, ImageNotFound

        try:
            client.create_container_from_config(body, name)
        except ImageNotFound:
            self._import_image(client)
            client.create_container_from_config(body, name)
        except APIError as error:
            if error.status_code != 409:
                raise
            labels = client.inspect_container(name)["Config"]["Labels"] or {}
            if labels.get(LABEL_HOLDS) != body["Labels"][LABEL_HOLDS]:
                raise Taken(f"container {name} is there already and is not ours") from error
        client.start(name)
        pid = int(client.inspect_container(name)["State"]["Pid"])
        if not pid:
            raise LaunchFailed("what holds its network ended at once", name)
        return pid

    def _import_image(self, client: Client) -> None:
        with self._importing:
            if not client.images(f"{REPOSITORY}:{TAG}"):
                layer = image_archive(str(client.info()["Architecture"]))
                client.import_image_from_data(layer, repository=REPOSITORY, tag=TAG)


def _remove(client: Client, filters: dict[str, Any]) -> None:
    from docker.errors import NotFound

    for row in client.containers(all=True, filters=filters):
        try:
            client.remove_container(row["Id"], v=True, force=True)
        except NotFound:
            continue  # someone else was quicker
