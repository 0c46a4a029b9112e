"""Network namespaces by name, for containers that are plugged into networks before they start.

runc makes the namespaces of all others itself.  One of ours is there from the container's creation
to its removal, at a path known from the first (:attr:`Place.namespace_path`), so that whoever
plugs ports into it can do so between the two.
"""

from typing import Final

from swarmctl.agent.drivers.oci.faults import shorten
from swarmctl.agent.drivers.oci.layout import NAMESPACES, Place
from swarmctl.agent.drivers.oci.programs import IP, run
from swarmctl.proto.errors import LaunchFailed

IP_S: Final = 20.0


def ensure(place: Place, where: str) -> None:
    """Have the container's namespace there, with its loopback up.

    Raises:
        LaunchFailed: it cannot be made.
    """
    if not _is_there(place):
        # What a restart of the machine leaves of one is an empty file.
        place.namespace_path.unlink(missing_ok=True)
        _ip(where, "netns", "add", place.namespace)
    _ip(where, "-n", place.namespace, "link", "set", "lo", "up")


def remove(place: Place, where: str) -> None:
    """Have it gone; nothing happens when there is none.

    Raises:
        LaunchFailed: it stays.
    """
    if place.namespace_path.exists():
        _ip(where, "netns", "delete", place.namespace)


def _is_there(place: Place) -> bool:
    """Whether the file is a namespace: then it is on a file system of the kernel's own."""
    try:
        return place.namespace_path.stat().st_dev != NAMESPACES.stat().st_dev
    except FileNotFoundError:
        return False


def _ip(where: str, *words: str) -> None:
    done = run(IP, *words, timeout_s=IP_S)
    if done.returncode != 0:
        raise LaunchFailed(f"`ip {' '.join(words)}` failed: {shorten(done.stderr)}", where)
