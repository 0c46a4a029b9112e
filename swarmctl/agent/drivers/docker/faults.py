"""From what dockerd says went wrong to our errors, by who is at fault. Pure.

Docker tells most troubles of a start by one status (500 or 400) and a long text that gathered the
words of every layer below.
The table here knows the texts that a user can do something about; the rest stays
:class:`LaunchFailed` with Docker's last words.
"""

import re
from typing import Final

from swarmctl.proto.errors import (
    Conflict,
    DriverUnavailable,
    InvalidSpec,
    LaunchFailed,
    NotFound,
    SwarmError,
)

# A text from dockerd may hold a whole runtime trace; a reason fits on a screen.
TEXT_MAX_CHARS: Final = 500

_ErrorClass = type[SwarmError]

# Looked for in this order; the first that matches decides. The groups of a pattern are what the
# texts may use.
_KNOWN: Final[tuple[tuple[re.Pattern[str], _ErrorClass, str, str], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), error, what, hint)
    for pattern, error, what, hint in (
        (
            r"no such image: (?P<a>.+?): invalid reference format|(?P<b>invalid reference format)",
            InvalidSpec,
            "{0} is not an image's name",
            "such as name:tag",
        ),
        (
            r"no such image:? (?P<a>\S+)|(?P<b>\S+): image not known",
            NotFound,
            "image {0} is not there",
            "check the image's name and tag",
        ),
        (
            r'exec:? "(?P<a>[^"]*)":?.*(?:executable file not found|no such file or directory)',
            InvalidSpec,
            "command {0} does not exist in the image",
            "check command and entrypoint",
        ),
        (
            r'exec:? "(?P<a>[^"]*)":?.*permission denied',
            InvalidSpec,
            "command {0} is not executable in the image",
            "check command and entrypoint, and the file's mode",
        ),
        (
            r"no command specified",
            InvalidSpec,
            "the image says no command and the service gives none",
            "set command",
        ),
        (
            r"bind for (?P<a>\S+) failed: port is already allocated",
            LaunchFailed,
            "host port {0} is in use by another container",
            "choose another host port, or none to let the node choose",
        ),
        (
            r"listen (?P<b>\w+ \S+?): bind: address already in use|address already in use",
            LaunchFailed,
            "a host port is in use on the node ({0})",
            "choose another host port, or none to let the node choose",
        ),
        (
            r"bind: cannot assign requested address",
            InvalidSpec,
            "the host address of a published port is not one of the node's",
            "leave the host address out, or constrain the service to that node",
        ),
        (
            r"unable to find (?P<a>user|group) (?P<b>[^:\s]+)",
            InvalidSpec,
            "{0} {1} does not exist in the image",
            "use a numeric id, or one that the image has",
        ),
        (
            r"bind source path does not exist: (?P<a>\S+)",
            InvalidSpec,
            "the bind mount's source {0} does not exist on the node",
            "make it there, or constrain the service to nodes that have it",
        ),
        (
            r"network (?P<a>\S+) not found",
            NotFound,
            "Docker network {0} does not exist on the node",
            "create it there, or leave the network out",
        ),
        (
            r"range of cpus is from [\d.]+ to (?P<a>[\d.]+)",
            InvalidSpec,
            "more cpus than the {0} that the node has",
            "ask for fewer cpus",
        ),
        (
            r"(?P<a>minimum memory limit allowed is \w+)",
            InvalidSpec,
            "{0}",
            "ask for more memory",
        ),
        (
            r"no space left on device",
            LaunchFailed,
            "the node's disk is full",
            "make room under Docker's data folder",
        ),
    )
)


def translate(status: int | None, text: str, where: str, doing: str) -> SwarmError:
    """The error for an answer of dockerd.

    Args:
        status: the HTTP status; None when there was none.
        text: dockerd's explanation.
        where: the instance or container it is about.
        doing: what was tried, as in ``could not {doing}``.
    """
    for pattern, error, what, hint in _KNOWN:
        match = pattern.search(text)
        if match:
            parts = [group for group in match.groups() if group] or ["?"]
            return error(what.format(*parts), where, hint)
    shortened = shorten(text)
    if status == 400:
        return InvalidSpec(f"Docker refused to {doing}: {shortened}", where)
    if status == 404:
        return NotFound(f"could not {doing}: {shortened}", where)
    if status == 409:
        return Conflict(f"could not {doing}: {shortened}", where)
    if status == 503:
        return DriverUnavailable(f"Docker could not {doing}: {shortened}", where)
    return LaunchFailed(f"Docker could not {doing}: {shortened}", where)


# Texts of a pull that failed because nobody answered, against those of a registry that said no.
_UNREACHABLE: Final = re.compile(
    r"no such host|dial tcp|i/o timeout|connection refused|connection reset|network is unreachable"
    r"|no route to host|tls handshake timeout|client\.timeout|request canceled"
    r"|temporary failure in name resolution|server misbehaving|\bEOF\b|tls: |x509: |HTTP response"
    r"|received unexpected HTTP status: 5|toomanyrequests",
    re.IGNORECASE,
)
_UNKNOWN: Final = re.compile(
    r"manifest unknown|not found|does not exist|repository name not known|no matching manifest"
    r"|manifest for .* not found|name unknown",
    re.IGNORECASE,
)
_DENIED: Final = re.compile(r"denied|unauthorized|no basic auth|authentication", re.IGNORECASE)


def translate_pull(image: str, registry: str, text: str, where: str) -> SwarmError:
    """The error for a pull that failed.

    Whether the image is unknown or the registry out of reach is read from the text, for Docker
    answers both alike.
    """
    if _UNREACHABLE.search(text):
        return LaunchFailed(
            f"image {image} is not on the node, and registry {registry} cannot be asked for it: "
            + shorten(text),
            where,
            "check the image's name, and that the node reaches the registry; or load the image "
            "on the node with `docker load`",
        )
    if _DENIED.search(text):
        return NotFound(
            f"registry {registry} does not give image {image}: it does not exist, or needs a login",
            where,
            "check the image's name; log in with `docker login` on the node",
        )
    if _UNKNOWN.search(text):
        return NotFound(
            f"image {image} does not exist in registry {registry}",
            where,
            "check the image's name and tag",
        )
    if re.search(r"invalid reference format", text, re.IGNORECASE):
        return InvalidSpec(f"{image!r} is not an image's name", where, "such as name:tag")
    return LaunchFailed(f"could not pull image {image}: {shorten(text)}", where)


def shorten(text: str) -> str:
    """``text`` on one line, and its end when it is long: the innermost cause comes last."""
    flat = " ".join(text.split()).removesuffix(": unknown")
    return flat if len(flat) <= TEXT_MAX_CHARS else "… " + flat[-TEXT_MAX_CHARS:]
