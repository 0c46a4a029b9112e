"""Names of images: where one is to be had from, and what skopeo calls that. Pure.

Written as skopeo writes it, a name says where the image is:

- ``oci:/path/to/layout[:TAG]``: an OCI layout on the node,
- ``oci-archive:/path/to/file.tar[:TAG]``, ``docker-archive:/path/to/file.tar[:NAME]``: a tar,
- ``docker-daemon:NAME[:TAG]``: the node's Docker,
- ``docker://NAME[:TAG|@DIGEST]``: a registry.

A plain name, as everywhere else, is a registry's; the node's own Docker is asked for it first where
there is one, so that an image that was built or loaded there need not be in any registry.
"""

import re
from typing import Final

from attrs import frozen

from swarmctl.proto.errors import InvalidSpec

LAYOUT: Final = "oci"
ARCHIVES: Final = ("oci-archive", "docker-archive")
DAEMON: Final = "docker-daemon"
REGISTRY: Final = "docker"
DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"

# The grammar of the distribution project, less the fine print.
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(
    r"(?:(?P<host>(?:localhost|[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+|[a-zA-Z0-9-]+(?=:\d)|\[[0-9a-f:]+\])"
    rf"(?::\d+)?)/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_LOOPBACK: Final = re.compile(r"(?:localhost|127(?:\.\d+){3}|\[::1\])(?::\d+)?")
_TRANSPORT: Final = re.compile(r"(oci|oci-archive|docker-archive|docker-daemon):(.*)", re.DOTALL)


@frozen
class Reference:
    """Where an image is. ``location`` is the rest of skopeo's name for it.

    ``path`` is the file or folder, for those that are on the node; ``registry`` the host that is
    asked, for those that are not.  ``is_plain`` says that the node's Docker may have it too.
    """

    text: str
    transport: str
    location: str
    path: str = ""
    registry: str = ""
    is_plain: bool = False

    @property
    def source(self) -> str:
        """What skopeo calls it."""
        return f"{self.transport}:{self.location}"

    @property
    def is_insecure(self) -> bool:
        """Whether the registry is on this machine, where plain HTTP will do, as for Docker."""
        return _LOOPBACK.fullmatch(self.registry) is not None

    @property
    def daemon_source(self) -> str:
        """What skopeo calls it in the node's own Docker."""
        return f"{DAEMON}:{self.location.removeprefix('//')}"


def parse_reference(text: str, where: str = "") -> Reference:
    """The image that ``text`` names.

    Raises:
        InvalidSpec: it names none.
    """
    match = _TRANSPORT.fullmatch(text)
    if match is None:
        plain = not text.startswith("docker://")
        return _registry_reference(text, text.removeprefix("docker://"), where, is_plain=plain)
    transport, location = match.groups()
    if transport == DAEMON:
        full = _full_name(location, where)
        return Reference(text, DAEMON, full[1])
    path, _, tag = location.partition(":")
    if not path.startswith("/"):
        raise InvalidSpec(
            f'image "{text}": "{path}" is not an absolute path of the node',
            where,
            f"such as {transport}:/srv/images/web:latest",
        )
    if transport == LAYOUT:
        location = f"{path}:{tag or DEFAULT_TAG}"
    return Reference(text, transport, location, path=path)


def _registry_reference(text: str, name: str, where: str, *, is_plain: bool) -> Reference:
    host, full = _full_name(name, where)
    return Reference(
        text, REGISTRY, f"//{full}", registry=host or DEFAULT_REGISTRY, is_plain=is_plain
    )


def _full_name(name: str, where: str) -> tuple[str, str]:
    """The host that a name says ("" for none), and the name with a tag or a digest."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidSpec(f'"{name}" is not an image\'s name', where, "such as name:tag")
    if match["digest"]:
        # skopeo refuses a tag beside the digest, which says it all.
        base = name.partition("@")[0]
        base = base.removesuffix(f":{match['tag']}") if match["tag"] else base
        return match["host"] or "", f"{base}@{match['digest']}"
    return match["host"] or "", name if match["tag"] else f"{name}:{DEFAULT_TAG}"
