"""Images on the node: brought by skopeo, unpacked by umoci, once for each digest.

Theory of operation.  An image is made in a hidden folder (skopeo copies it into an OCI layout
there, umoci unpacks that) and put in its place by one rename, so what is in ``images/DIGEST`` is
whole; the layout goes.  ``names/`` says which digest a name stands for.  So two launches, or two
agents' crashes, cannot leave half an image, and nothing is locked.  The price is that images do not
share layers, on disk or on the wire; a node that runs many related images is better off with
Docker.

A name from a registry that is here is used as it is, as Docker does; a layout or an archive on the
node is looked at again each time, and unpacked anew when it has changed.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final

import trio
from attrs import field, frozen

from swarmctl.agent.drivers.api import Progress
from swarmctl.agent.drivers.attempts import Attempts
from swarmctl.agent.drivers.oci import faults
from swarmctl.agent.drivers.oci.layout import Layout
from swarmctl.agent.drivers.oci.programs import SKOPEO, UMOCI, environment, path_of
from swarmctl.agent.drivers.oci.reference import LAYOUT, Reference, parse_reference
from swarmctl.proto.errors import LaunchFailed, NotFound

# Gigabytes from a slow registry.
COPY_S: Final = 1_800.0
# Gigabytes of small files on a slow disk.
UNPACK_S: Final = 1_200.0
# Of what skopeo prints, what can matter is at the end.
OUTPUT_MAX_CHARS: Final = 4_000
STAGING: Final = ".staging"
# The only tag in a layout of ours.
TAG: Final = "image"
DOCKER_SOCKET: Final = Path("/var/run/docker.sock")


@frozen
class ImageConfig:
    """What an image says of the containers made from it."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""


@frozen
class Image:
    """An image that is here, unpacked at ``rootfs``."""

    digest: str
    rootfs: Path
    config: ImageConfig = field(factory=ImageConfig)


class Images:
    """The images in the driver's folder."""

    def __init__(self, layout: Layout, docker_socket: Path = DOCKER_SOCKET) -> None:
        self._layout = layout
        self._docker_socket = docker_socket
        self._attempts = Attempts()

    async def ensure(self, name: str, where: str, progress: Progress) -> Image:
        """See to it that the image ``name`` is here.

        Raises:
            NotFound: it does not exist, or may not be had.
            InvalidSpec: that is no image's name.
            LaunchFailed: its registry is out of reach, or it cannot be unpacked.
        """
        reference = parse_reference(name, where)
        found: list[Image] = []

        def is_here() -> bool:
            found[:] = self._known(reference, where)
            return bool(found)

        await self._attempts.until(
            is_here, name, where, partial(self._fetch, reference, where, progress)
        )
        if not found and not is_here():
            raise LaunchFailed(f"image {name} vanished as soon as it was here", where)
        return found[0]

    def _known(self, reference: Reference, where: str) -> list[Image]:
        """The image, when it is here and still what its source has."""
        try:
            text = self._name_file(reference).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        if not text:
            return []  # what a machine that lost its power leaves of it
        known = json.loads(text)
        if known["fingerprint"] != _fingerprint(reference, where):
            return []
        folder = self._layout.images / known["digest"]
        try:
            config = json.loads((folder / "image.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []  # someone removed it
        return [Image(known["digest"], folder / "rootfs", read_config(config))]

    def _name_file(self, reference: Reference) -> Path:
        return self._layout.names / hashlib.sha256(reference.text.encode()).hexdigest()

    async def _fetch(self, reference: Reference, where: str, progress: Progress) -> None:
        self._sweep()
        staging = self._layout.images / f"{STAGING}-{os.getpid()}-{secrets.token_hex(8)}"
        staging.mkdir(mode=0o700)
        try:
            fingerprint = _fingerprint(reference, where)
            progress(f"pulling {reference.text}")
            await self._copy(reference, staging / "layout", where)
            digest, config = _manifest(staging / "layout")
            if not (self._layout.images / digest).exists():
                progress(f"unpacking {reference.text}")
                await self._unpack(staging, where)
                (staging / "image.json").write_text(json.dumps(config), encoding="utf-8")
                shutil.rmtree(staging / "layout")
                # In its place it is taken for whole, also after the power was lost.
                await run_to_end("sync", "-f", str(staging), deadline_s=UNPACK_S)
                self._put_in_place(staging, digest)
            self._remember(reference, digest, fingerprint)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _put_in_place(self, staging: Path, digest: str) -> None:
        """Where another one was faster, its folder is as good."""
        try:
            staging.rename(self._layout.images / digest)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise

    def _remember(self, reference: Reference, digest: str, fingerprint: str) -> None:
        entry = {"name": reference.text, "digest": digest, "fingerprint": fingerprint}
        file = self._name_file(reference)
        hidden = file.with_name(f".{file.name}")
        hidden.write_text(json.dumps(entry), encoding="utf-8")
        hidden.rename(file)

    async def _copy(self, reference: Reference, layout: Path, where: str) -> None:
        """Bring the image into a layout of its own, from the first place that has it."""
        target = f"oci:{layout}:{TAG}"
        if reference.is_plain and self._docker_socket.exists():
            copied = await _copy_image(reference.daemon_source, target)
            if copied.returncode == 0:
                return
            # Docker does not have it, or is away: then the registry is asked, and quoted.
            shutil.rmtree(layout, ignore_errors=True)
        options = ["--src-tls-verify=false"] if reference.is_insecure else []
        copied = await _copy_image(*options, reference.source, target)
        if copied.returncode != 0:
            raise faults.translate_copy(reference, _text(copied), where)

    async def _unpack(self, staging: Path, where: str) -> None:
        rootfs = staging / "rootfs"
        image = f"{staging / 'layout'}:{TAG}"
        unpacked = await run_to_end(
            UMOCI, "raw", "unpack", "--image", image, str(rootfs), deadline_s=UNPACK_S
        )
        if unpacked.returncode != 0:
            raise faults.translate(_text(unpacked), where, "unpack the image")

    def _sweep(self) -> None:
        """Remove what agents that are no more have left half made."""
        for folder in self._layout.images.glob(f"{STAGING}-*"):
            if not Path(f"/proc/{folder.name.split('-')[1]}").exists():
                shutil.rmtree(folder, ignore_errors=True)


def read_config(config: Mapping[str, Any]) -> ImageConfig:
    """The ``config`` of an image's configuration, of which every part may be missing or null."""
    return ImageConfig(
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        environment=tuple(config.get("Env") or ()),
        user=config.get("User") or "",
        working_dir=config.get("WorkingDir") or "",
        stop_signal=config.get("StopSignal") or "",
    )


def _manifest(layout: Path) -> tuple[str, dict[str, Any]]:
    """The digest (its digits) of the one image in ``layout``, and the ``config`` it comes with."""

    def blob(descriptor: dict[str, Any]) -> dict[str, Any]:
        algorithm, _, digits = descriptor["digest"].partition(":")
        content: dict[str, Any] = json.loads((layout / "blobs" / algorithm / digits).read_bytes())
        return content

    index = json.loads((layout / "index.json").read_bytes())
    (descriptor,) = index["manifests"]
    config = blob(blob(descriptor)["config"])
    return descriptor["digest"].partition(":")[2], config.get("config") or {}


def _fingerprint(reference: Reference, where: str) -> str:
    """Changes when what is at a path of the node does; empty for what is elsewhere.

    Raises:
        NotFound: there is nothing at that path.
    """
    if not reference.path:
        return ""
    path = Path(reference.path)
    try:
        seen = (path / "index.json" if reference.transport == LAYOUT else path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            f"image {reference.text} does not exist: nothing is at {error.filename} on the node",
            where,
            "put it there, or constrain the service to nodes that have it",
        ) from None
    return f"{seen.st_mtime_ns} {seen.st_size} {seen.st_ino}"


async def _copy_image(*words: str) -> CompletedProcess[bytes]:
    return await run_to_end(SKOPEO, "copy", "-q", *words, deadline_s=COPY_S)


async def run_to_end(program: str, *words: str, deadline_s: float) -> CompletedProcess[bytes]:
    """Run a program to its end; cancelled, it is killed.

    Raises:
        LaunchFailed: it did not end in time.
        DriverUnavailable: it is not installed.
    """
    command = [path_of(program), *words]
    with trio.move_on_after(deadline_s):
        return await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env=environment()
        )
    raise LaunchFailed(f"{program} did not end within {deadline_s:g} s")


def _text(finished: CompletedProcess[bytes]) -> str:
    return (finished.stderr + finished.stdout).decode(errors="replace")[-OUTPUT_MAX_CHARS:]
