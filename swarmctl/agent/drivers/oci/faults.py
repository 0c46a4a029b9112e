"""From what runc, skopeo and umoci say went wrong to our errors, by who is at fault. Pure."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from swarmctl.agent.drivers.oci.reference import Reference
from swarmctl.proto.errors import InvalidSpec, LaunchFailed, NotFound, SwarmError

# A text may hold a whole trace; a reason fits on a screen, and the cause comes last.
TEXT_MAX_CHARS: Final = 500

_ErrorClass = type[SwarmError]

# Looked for in this order; the first that matches decides.
_KNOWN: Final[tuple[tuple[re.Pattern[str], _ErrorClass, str, str], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), error, what, hint)
    for pattern, error, what, hint in (
        (
            r'exec: \\*"(?P<a>[^"\\]*)\\*":.*(?:executable file not found|no such file or dir)',
            InvalidSpec,
            "command {0} does not exist in the image",
            "check command and entrypoint",
        ),
        (
            r'exec: \\*"(?P<a>[^"\\]*)\\*":.*permission denied',
            InvalidSpec,
            "command {0} is not executable in the image",
            "check command and entrypoint, and the file's mode",
        ),
        (
            r"exec (?P<a>\S+): exec format error|(?P<b>exec format error)",
            InvalidSpec,
            "the command is no program for this machine ({0})",
            "use an image for the node's architecture; a script needs its first line",
        ),
        (
            r"no space left on device",
            LaunchFailed,
            "the node's disk is full",
            "make room under the agent's data folder",
        ),
    )
)

_UNREACHABLE: Final = re.compile(
    r"no such host|dial tcp|i/o timeout|connection refused|connection reset|network is unreachable"
    r"|no route to host|handshake timeout|client\.timeout|request canceled|server misbehaving"
    r"|\bEOF\b|tls: |x509: |HTTP response|toomanyrequests|status: 5|deadline exceeded",
    re.IGNORECASE,
)
_DENIED: Final = re.compile(r"denied|unauthorized|authentication", re.IGNORECASE)
_UNKNOWN: Final = re.compile(
    r"manifest unknown|not found|no such image|no such file or directory|name unknown"
    r"|no descriptor found|no image found|does not exist",
    re.IGNORECASE,
)


def translate(text: str, where: str, doing: str) -> SwarmError:
    """The error for a program's last words; ``doing`` as in ``could not {doing}``."""
    for pattern, error, what, hint in _KNOWN:
        match = pattern.search(text)
        if match:
            parts = [group for group in match.groups() if group] or ["?"]
            return error(what.format(*parts), where, hint)
    return LaunchFailed(f"could not {doing}: {shorten(text)}", where)


def translate_copy(reference: Reference, text: str, where: str) -> SwarmError:
    """The error for an image that skopeo did not bring."""
    image = reference.text
    if reference.registry and _UNREACHABLE.search(text):
        return LaunchFailed(
            f"image {image} is not on the node, and registry {reference.registry} cannot be asked "
            f"for it: {shorten(text)}",
            where,
            "check the image's name, and that the node reaches the registry; or put the image on "
            "the node as oci:/PATH or oci-archive:/PATH",
        )
    if reference.registry and _DENIED.search(text):
        return NotFound(
            f"registry {reference.registry} does not give image {image}: it does not exist, or "
            "needs a login",
            where,
            "check the image's name; log in with `skopeo login` on the node",
        )
    if _UNKNOWN.search(text):
        place = f"in registry {reference.registry}" if reference.registry else "on the node"
        return NotFound(
            f"image {image} does not exist {place}", where, "check the image's name and tag"
        )
    return LaunchFailed(f"could not get image {image}: {shorten(text)}", where)


@contextmanager
def refusals(doing: str, where: str) -> Generator[None, None, None]:
    """What the kernel refuses in this context becomes an error of ours.

    Raises:
        LaunchFailed: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise translate(str(error), where, doing) from error


def shorten(text: str) -> str:
    """``text`` on one line, and its end when it is long: the innermost cause comes last."""
    flat = " ".join(text.split())
    return flat if len(flat) <= TEXT_MAX_CHARS else "… " + flat[-TEXT_MAX_CHARS:]
