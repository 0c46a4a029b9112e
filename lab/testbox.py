"""The test image ``swarmctl/testbox:latest``: the static busybox, imported without a registry.

Theory of operation. An image is a tar of a root file system; Docker imports one over its API. The
tar is made in memory and is the same for the same busybox (no times, fixed order), and its digest
is kept as a label on the image: an image with the right label is left alone.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import tarfile
import urllib.parse
from pathlib import Path

from lab import docker, fetch
from lab.config import IMAGE_TAG, Paths
from lab.faults import LabFault
from lab.report import Step

LABEL = "swarmctl.testbox"
IMPORT_S = 60.0  # 0.3 s normally; a cold disk and a busy daemon get the rest
FOLDERS = ("dev", "etc", "proc", "root", "run", "srv", "sys", "tmp", "var", "var/log", "www")
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/os-release": 'ID=swarmctl-testbox\nPRETTY_NAME="swarmctl testbox"\n',
    "www/index.html": "swarmctl testbox\n",
}
CHANGES = ('CMD ["/bin/sh"]', "ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin")


def build(busybox: bytes, applets: list[str]) -> bytes:
    """The image's root file system as a tar, the same bytes for the same input."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        parents = {str(Path(name).parent) for name in applets} - {"."}
        for folder in sorted({*FOLDERS, *parents, "bin", "usr"}):
            _add(tar, folder, kind=tarfile.DIRTYPE, mode=0o1777 if folder == "tmp" else 0o755)
        _add(tar, "bin/busybox", content=busybox, mode=0o755)
        for name in applets:
            _add(tar, name, kind=tarfile.SYMTYPE, target="/bin/busybox", mode=0o777)
        for name, text in FILES.items():
            _add(tar, name, content=text.encode())
    return buffer.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    *,
    kind: bytes = tarfile.REGTYPE,
    content: bytes = b"",
    target: str = "",
    mode: int = 0o644,
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode, entry.size = kind, target, mode, len(content)
    tar.addfile(entry, io.BytesIO(content))


def digest(archive: bytes) -> str:
    """What the image's label says when it was made of this tar with these settings."""
    return hashlib.sha256(archive + "\n".join(CHANGES).encode()).hexdigest()


def labelled_digest(paths: Paths) -> str | None:
    """The label of the image that Docker has, `""` for one without, None for no image.

    Raises:
        OSError: Docker does not answer.
    """
    status, answer = docker.request(paths, "GET", f"/images/{IMAGE_TAG}/json")
    if status != 200:
        return None
    return str((answer["Config"].get("Labels") or {}).get(LABEL, ""))


def up(paths: Paths, step: Step) -> None:
    """See to it that Docker has the test image.

    Raises:
        LabFault: Docker does not answer, or busybox cannot be had.
    """
    busybox = fetch.busybox(paths, step)
    archive = build(busybox.read_bytes(), fetch.applets(busybox))
    wanted = digest(archive)
    try:
        if labelled_digest(paths) == wanted:
            step.kept(f"{IMAGE_TAG} is there")
            return
        step.progress(f"importing {IMAGE_TAG}")
        _import(paths, archive, wanted)
    except (OSError, http.client.HTTPException) as error:
        raise LabFault(
            f"Docker does not take {IMAGE_TAG}: {error}", "see `python3 -m lab status`"
        ) from error
    step.done(f"{IMAGE_TAG} imported ({len(archive) / 1e6:.1f} MB)")


def _import(paths: Paths, archive: bytes, label: str) -> None:
    repository, _, tag = IMAGE_TAG.partition(":")
    query = urllib.parse.urlencode(
        [("fromSrc", "-"), ("repo", repository), ("tag", tag)]
        + [("changes", change) for change in (*CHANGES, f"LABEL {LABEL}={label}")]
    )
    status, answer = docker.request(
        paths, "POST", f"/images/create?{query}", body=archive, timeout_s=IMPORT_S
    )
    if status != 200 or "error" in str(answer):
        raise LabFault(f"Docker refused to import {IMAGE_TAG}: {answer}", "see Docker's log")


def remove(paths: Paths, step: Step) -> None:
    """Take the image out of Docker, if Docker answers and has it."""
    try:
        if labelled_digest(paths) in (None, ""):
            step.kept("not there, or not ours")
            return
        status, answer = docker.request(paths, "DELETE", f"/images/{IMAGE_TAG}")
    except (OSError, http.client.HTTPException):
        step.kept("Docker is not running")
        return
    if status != 200:
        step.kept(f"{IMAGE_TAG} stays: {answer}")
        return
    step.done(f"{IMAGE_TAG} removed")
