"""Disks of VMs: an overlay for each instance on an image that is never written to.

Everything is checked before anything is made: that the image is there, is qcow2 or raw, is not
corrupt, and is not larger than the disk asked for.  An image is checked once for each version of
its file (by size and time of change), since a look costs a process or two.
An overlay appears under its name when it is whole: it is made beside it and renamed.

All functions block (they run ``qemu-img``); the driver calls them in threads.
"""

import json
import subprocess
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from swarmctl.proto.errors import (
    DeadlineExceeded,
    EnvironmentFault,
    InvalidSpec,
    LaunchFailed,
    NotFound,
    StorageFault,
)
from swarmctl.spec.models import DiskSpec

FORMATS: Final = ("qcow2", "raw")
# Checking walks an image's tables, which are 1/8192 of its size: a terabyte takes seconds.
QEMU_IMG_TIMEOUT_S: Final = 60.0
# `qemu-img check`: 0 fine, 3 fine with leaked clusters; 2 corrupt, 1 not even checkable.
_CHECK_FINE: Final = (0, 3)
_GET_AGAIN: Final = "get it again; `qemu-img check` shows the details"


# Images remembered as checked: many more than a node uses; past that all are checked anew.
_KNOWN_MAX: Final = 256


@frozen
class Image:
    """A checked image file."""

    path: Path
    kind: str
    virtual_bytes: int
    backing: str = ""


class ImageCheck:
    """Checks image files, each version of one only once."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known: dict[Path, tuple[tuple[int, int], Image]] = {}

    def file(self, name: str, field: str) -> Path:
        """The path of a file that a spec names: absolute, or within the image folder.

        Raises:
            InvalidSpec: it is relative and there is no image folder, or it points out of that.
            NotFound: no such file.
        """
        path = Path(name)
        if not path.is_absolute():
            path = self._within_folder(name, field)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file on this node"
            raise NotFound(f"{field}: {what}", str(path), "give the path of a file on the node")
        return path

    def _within_folder(self, name: str, field: str) -> Path:
        if self._folder is None:
            raise InvalidSpec(
                f"{field} is a relative path, and this agent has no image folder", name
            )
        # By its words only: where links in that folder lead is the operator's business.
        if ".." in Path(name).parts:
            raise InvalidSpec(f"{field} points out of the agent's image folder", name)
        return self._folder / name

    def image(self, name: str) -> Image:
        """The image ``name``, checked.

        Raises:
            UserError: it is not there, or not an image that a VM can run from.
            EnvironmentFault: ``qemu-img`` is missing or does not end.
        """
        path = self.file(name, "disk image")
        status = path.stat()
        version = (status.st_size, status.st_mtime_ns)
        known = self._known.get(path)
        if known is not None and known[0] == version:
            return known[1]
        checked = inspect(path)
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[path] = (version, checked)
        return checked


def inspect(path: Path) -> Image:
    """What the image at ``path`` is, after a check that it is whole.

    Raises:
        InvalidSpec: it is of another format, or corrupt.
        EnvironmentFault: ``qemu-img`` is missing or does not end.
    """
    image = look(path)
    if image.kind == "qcow2":
        _require_sound(path)
    return image


def look(path: Path) -> Image:
    """What the image at ``path`` is, by its header: also while a VM writes to it.

    Raises:
        InvalidSpec: it is of another format, cannot be opened, or is marked as corrupt.
        EnvironmentFault: ``qemu-img`` is missing or does not end.
    """
    # -U: without the lock, the image may be in use by other instances.
    looked = _qemu_img("info", "-U", "--backing-chain", "--output=json", str(path))
    if looked.returncode != 0:
        raise InvalidSpec(
            f"the disk image cannot be opened: {_complaint(looked)}",
            str(path),
            "is it corrupt, or was its download cut short?",
        )
    facts: dict[str, Any] = json.loads(looked.stdout)[0]
    kind = str(facts["format"])
    if kind not in FORMATS:
        hint = f"convert it: qemu-img convert -O qcow2 {path.name} {path.stem}.qcow2"
        raise InvalidSpec(f"the disk image is {kind}, and must be qcow2 or raw", str(path), hint)
    if kind == "raw" and path.suffix in (".qcow2", ".qcow"):
        raise InvalidSpec(
            "the disk image is called qcow2 and does not begin as one: it is corrupt or misnamed",
            str(path),
        )
    if facts.get("format-specific", {}).get("data", {}).get("corrupt"):
        raise InvalidSpec("the disk image is marked as corrupt", str(path), _GET_AGAIN)
    backing = facts.get("full-backing-filename") or facts.get("backing-filename") or ""
    return Image(path, kind, int(facts["virtual-size"]), str(backing))


def _require_sound(path: Path) -> None:
    checked = _qemu_img("check", "-U", "--output=json", str(path))
    if checked.returncode in _CHECK_FINE:
        return
    damage = "its tables cannot be read"
    if checked.stdout.strip():
        counts = json.loads(checked.stdout)
        damage = f"{counts.get('corruptions', 0)} corruptions, {counts['check-errors']} errors"
    raise InvalidSpec(f"the disk image is corrupt: {damage}", str(path), _GET_AGAIN)


def make_overlay(image: Image, spec: DiskSpec, overlay: Path) -> None:
    """See to it that ``overlay`` is there, on ``image`` and of the size that ``spec`` asks for.

    A disk that is there already (a persistent one, or a repeated call) is kept, and grown where
    the spec asks for more.

    Raises:
        InvalidSpec: the size is smaller than the image, or the kept disk is on another image.
        StorageFault: the disk under it is full or refuses.
    """
    if spec.size_bytes and spec.size_bytes < image.virtual_bytes:
        raise InvalidSpec(
            f"a disk of {spec.size_bytes} bytes is smaller than its image, which has "
            f"{image.virtual_bytes}",
            str(image.path),
            f"ask for at least {image.virtual_bytes} bytes, or leave `size` out",
        )
    if overlay.exists():
        _keep(image, spec, overlay)
        return
    overlay.parent.mkdir(parents=True, exist_ok=True)
    unfinished = overlay.with_name(overlay.name + ".new")
    base = ["-F", image.kind, "-b", str(image.path.absolute())]
    size = [str(spec.size_bytes)] if spec.size_bytes else []
    # Its own lock would refuse an image that a VM of somebody else has open for writing.
    made = _qemu_img(
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        *base,
        str(unfinished),
        *(size or [str(image.virtual_bytes)]),
    )
    _require_written(made, overlay)
    unfinished.rename(overlay)


def _keep(image: Image, spec: DiskSpec, overlay: Path) -> None:
    there = look(overlay)
    if Path(there.backing) != image.path.absolute():
        raise InvalidSpec(
            f"the instance's kept disk was made from {there.backing or 'no image'}, "
            f"not from {image.path}",
            str(overlay),
            "remove that file to start afresh, or name the old image",
        )
    if spec.size_bytes and spec.size_bytes < there.virtual_bytes:
        raise InvalidSpec(
            f"the instance's kept disk has {there.virtual_bytes} bytes; it cannot shrink to "
            f"{spec.size_bytes}",
            str(overlay),
        )
    if spec.size_bytes > there.virtual_bytes:
        grown = _qemu_img("resize", "-q", "-f", "qcow2", str(overlay), str(spec.size_bytes))
        _require_written(grown, overlay)


def _require_written(done: subprocess.CompletedProcess[str], overlay: Path) -> None:
    if done.returncode == 0:
        return
    complaint = _complaint(done)
    if "No space left" in complaint:
        raise StorageFault("no space left for the instance's disk", str(overlay))
    raise LaunchFailed(f"the instance's disk could not be made: {complaint}", str(overlay))


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1].removeprefix("qemu-img: ") if lines else f"exit code {done.returncode}"


def _qemu_img(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A check prints a line for each broken table entry, without bound, and nobody reads them.
    errors = subprocess.DEVNULL if arguments[0] == "check" else subprocess.PIPE
    try:
        return subprocess.run(
            ["qemu-img", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=QEMU_IMG_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise EnvironmentFault(
            "qemu-img is not installed", hint="install qemu-utils on the node"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded(
            f"qemu-img {arguments[0]} did not end within {QEMU_IMG_TIMEOUT_S:.0f} s",
            arguments[-1],
        ) from error
