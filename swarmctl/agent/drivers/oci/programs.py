"""The programs that the driver starts, and short runs of them in threads.

runc, conmon, skopeo and umoci are Debian packages of the same names; ``ip`` is in iproute2.  They
get an environment of their own, so that nothing of the agent's reaches a container.
"""

import os
import shutil
import subprocess
from typing import Final

from swarmctl.proto.errors import DriverUnavailable

RUNC: Final = "runc"
CONMON: Final = "conmon"
SKOPEO: Final = "skopeo"
UMOCI: Final = "umoci"
IP: Final = "ip"
# All that have to be there, and the packages that have them.
PACKAGES: Final = {RUNC: "runc", CONMON: "conmon", SKOPEO: "skopeo", UMOCI: "umoci", IP: "iproute2"}

# An agent that a service manager starts may have a poor PATH.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What skopeo needs to know of the outside: where logins are kept, and proxies.
_PASSED_ON: Final = (
    "HOME",
    "XDG_RUNTIME_DIR",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "DOCKER_HOST",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TMPDIR",
)


def environment() -> dict[str, str]:
    """What the programs are told."""
    known = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return known | {"PATH": PATH, "LC_ALL": "C.UTF-8"}


def path_of(program: str) -> str:
    """Where a program is.

    Raises:
        DriverUnavailable: it is not installed.
    """
    path = shutil.which(program, path=PATH)
    if path is None:
        package = PACKAGES.get(program, program)
        raise DriverUnavailable(
            f"{program} is not installed", "oci", f"install the package {package}"
        )
    return path


def run(*command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in the calling thread; its output is text.

    Raises:
        DriverUnavailable: it is not installed, or does not end in time.
    """
    program, *arguments = command
    try:
        return subprocess.run(
            [path_of(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment(),
            cwd="/",
            timeout=timeout_s,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise DriverUnavailable(f"{command[0]} did not end within {timeout_s:g} s", "oci") from None
