"""`python3 -m lab.image`: swarmctl's own image, on a base made here where none can be pulled.

Theory of operation. The base of the Dockerfile is pulled where a registry is in reach. Elsewhere
mmdebstrap makes one from the machine's own package mirror: the few Debian packages that the binary
needs with their dependencies, unpacked and not configured, so it has a shell, glibc and libvirt's
library, and no package manager. Its tar is kept in the cache under a name that changes with the
recipe. The image is built by dockerd itself, over its socket.
"""

from __future__ import annotations

import http.client
import io
import json
import sys
import tarfile
import time
import urllib.parse
from pathlib import Path

from lab import bootstrap, docker, procs
from lab.config import Paths, paths_from
from lab.faults import Interrupted, LabFault
from lab.report import Report, Step
from lab.state import exclusive

ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "dist" / "swarmctl"
DOCKERFILE = ROOT / "Dockerfile"
IMAGE_TAG = "swarmctl/swarmctl:latest"
BASE_TAG = "swarmctl/base:latest"
PUBLIC_BASE = "debian:12-slim"
LABEL = "swarmctl.lab.recipe"
BASE_PACKAGES = ("base-files", "base-passwd", "coreutils", "dash", "libvirt0")
MMDEBSTRAP_OPTIONS = (
    "--variant=extract",
    f"--include={','.join(BASE_PACKAGES)}",
    *bootstrap.WITHOUT_MANUALS,
    # What these packages' own scripts would have done, as far as it matters here.
    '--customize-hook=cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"',
    '--customize-hook=cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"',
)
PULL_S = 120.0  # 30 MB over a slow line; without a registry the answer comes at once
IMPORT_S = 120.0
BUILD_S = 300.0  # 5 s; the public base fetches libvirt's library meanwhile


def context(dockerfile: bytes, binary: bytes) -> bytes:
    """What dockerd builds from, as a tar; the same bytes for the same files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content, mode in (
            ("Dockerfile", dockerfile, 0o644),
            ("dist/swarmctl", binary, 0o755),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def choose_base(paths: Paths, step: Step) -> str:
    """A base that Docker has, pulled or made if need be; its tag.

    Raises:
        LabFault: none can be had.
    """
    wanted = bootstrap.recipe(bootstrap.codename(), MMDEBSTRAP_OPTIONS)
    if _label(paths, BASE_TAG) == wanted:
        step.kept(f"{BASE_TAG} is there")
        return BASE_TAG
    if _label(paths, PUBLIC_BASE) is not None or _pull(paths, step):
        step.kept(f"{PUBLIC_BASE} is there")
        return PUBLIC_BASE
    tar = bootstrap.made(paths.cache_dir / "base", MMDEBSTRAP_OPTIONS, step)
    step.progress(f"importing {BASE_TAG}")
    repository, _, tag = BASE_TAG.partition(":")
    query = urllib.parse.urlencode(
        {"fromSrc": "-", "repo": repository, "tag": tag, "changes": f"LABEL {LABEL}={wanted}"}
    )
    _expect(paths, f"/images/create?{query}", tar.read_bytes(), IMPORT_S)
    step.done(f"{BASE_TAG} made of {', '.join(BASE_PACKAGES)}")
    return BASE_TAG


def _label(paths: Paths, tag: str) -> str | None:
    """Our label on an image, empty for one without; None for no image."""
    status, answer = _ask(paths, "GET", f"/images/{tag}/json", None, docker.ANSWER_S)
    if status != http.HTTPStatus.OK:
        return None
    return str((json.loads(answer)["Config"].get("Labels") or {}).get(LABEL, ""))


def _pull(paths: Paths, step: Step) -> bool:
    step.progress(f"looking for {PUBLIC_BASE} in a registry")
    repository, _, tag = PUBLIC_BASE.partition(":")
    try:
        _expect(paths, f"/images/create?fromImage={repository}&tag={tag}", b"", PULL_S)
    except LabFault:
        return False  # no registry in reach: the base is made here
    return True


def build(paths: Paths, base: str, step: Step) -> None:
    """Build the image from the Dockerfile and the binary.

    Raises:
        LabFault: there is no binary, or a step of the build failed.
    """
    if not BINARY.exists():
        raise LabFault(f"there is no {BINARY.relative_to(ROOT)}", "make binary")
    step.progress(f"building {IMAGE_TAG}")
    arguments = json.dumps({"BASE": base})
    query = urllib.parse.urlencode({"t": IMAGE_TAG, "buildargs": arguments, "forcerm": "1"})
    body = context(DOCKERFILE.read_bytes(), BINARY.read_bytes())
    _expect(paths, f"/build?{query}", body, BUILD_S)
    step.done(f"{IMAGE_TAG} built on {base}")


def remove(paths: Paths, step: Step) -> None:
    """Take our images out of Docker, where it answers and has them."""
    removed = []
    for tag in (IMAGE_TAG, BASE_TAG):
        try:
            status, _ = docker.request(paths, "DELETE", f"/images/{tag}", timeout_s=IMPORT_S)
        except (OSError, http.client.HTTPException):
            step.kept("Docker is not running")
            return
        removed += [tag] if status == http.HTTPStatus.OK else []
    if removed:
        step.done(f"{', '.join(removed)} removed")
    else:
        step.kept("none is there, or one is in use")


def _expect(paths: Paths, path: str, body: bytes, timeout_s: float) -> None:
    """One POST whose answer is a stream of JSON lines, of which none may be an error."""
    status, text = _ask(paths, "POST", path, body, timeout_s)
    messages = [json.loads(line) for line in text.splitlines() if line.strip()]
    errors = [each["error"] for each in messages if "error" in each]
    if status != http.HTTPStatus.OK or errors:
        told = errors[-1] if errors else messages[-1:] or f"status {status}"
        raise LabFault(f"Docker failed: {told}", "see the Docker daemon's log")


def _ask(
    paths: Paths, method: str, path: str, body: bytes | None, timeout_s: float
) -> tuple[int, str]:
    try:
        status, answer = docker.request(paths, method, path, body=body, timeout_s=timeout_s)
    except (OSError, http.client.HTTPException) as error:
        raise LabFault(
            f"Docker does not answer at {paths.docker_socket}: {error}", "python3 -m lab up"
        ) from error
    return status, answer if isinstance(answer, str) else json.dumps(answer)


def main() -> int:
    """Make what is missing; the exit code."""
    paths, report = paths_from(), Report()
    started = time.monotonic()
    procs.heed_interrupts()
    try:
        with exclusive(paths), report:
            with report.step("base") as step:
                base = choose_base(paths, step)
            with report.step("image") as step:
                build(paths, base, step)
    except LabFault as fault:
        if not report.failures:
            print(f"image: {fault.what}" + (f"; {fault.hint}" if fault.hint else ""))
        return 1
    except (Interrupted, KeyboardInterrupt):
        print("image: interrupted")
        return 130
    print(f"image: {IMAGE_TAG} in {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
