"""Where an etcd is: ``etcd://HOST:PORT,HOST:PORT[/PREFIX]``.

The prefix keeps several clusters apart in one etcd; it is ``swarmctl`` unless given.
"""

import re
from typing import Final

import attrs

from swarmctl.proto.errors import InvalidSpec

SCHEME: Final = "etcd://"
DEFAULT_PREFIX: Final = "swarmctl"
DEFAULT_PORT: Final = 2379
_PORT_MAX: Final = 65_535
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MEMBER: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(?::(\d{1,5}))?")


@attrs.frozen
class EtcdAddress:
    """The members' ``HOST:PORT``, and what all keys begin with."""

    members: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX

    def __str__(self) -> str:
        return f"{SCHEME}{','.join(self.members)}/{self.prefix}"

    def key(self, name: str) -> bytes:
        """A key of ours in etcd."""
        return f"/{self.prefix}/{name}".encode()


def parse_etcd(text: str, option: str = "--store") -> EtcdAddress:
    """The address in ``text``.

    Raises:
        InvalidSpec: it is not one.
    """
    hint = "write etcd://HOST:PORT,HOST:PORT"
    hosts, _, prefix = text.removeprefix(SCHEME).partition("/")
    prefix = prefix.strip("/") or DEFAULT_PREFIX
    if _PREFIX.fullmatch(prefix) is None:
        raise InvalidSpec(f'"{prefix}" is not a prefix of keys', option, hint + "/PREFIX")
    members = []
    for one in hosts.split(","):
        found = _MEMBER.fullmatch(one.strip())
        port = int(found[2] or DEFAULT_PORT) if found is not None else 0
        if found is None or not 0 < port <= _PORT_MAX:
            raise InvalidSpec(f'"{one}" is not the address of an etcd', option, hint)
        members.append(f"{found[1]}:{port}")
    return EtcdAddress(tuple(dict.fromkeys(members)), prefix)
