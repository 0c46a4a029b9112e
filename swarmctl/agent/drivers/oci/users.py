"""Whom a container's process runs as: ``USER[:GROUP]`` and the image's own passwd and group. Pure.

Numbers need no entry; names do.  As in Docker, the other groups that name the user are given too,
unless a group is said.
"""

from collections.abc import Iterator
from typing import Final

from attrs import frozen

from swarmctl.proto.errors import InvalidSpec

# Beyond these numbers the kernel has no users.
ID_MAX: Final = (1 << 31) - 1
_HINT: Final = "use a numeric id, or one that the image has"


@frozen
class Identity:
    """A process's user and groups, and where that user is at home."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def identify(user: str, passwd: str, group: str, where: str = "") -> Identity:
    """The identity that ``user`` stands for.

    Args:
        user: ``USER[:GROUP]``, names or numbers; empty is root.
        passwd: the text of the image's ``/etc/passwd``.
        group: that of its ``/etc/group``.
        where: the instance, for errors.

    Raises:
        InvalidSpec: the image has no such user or group.
    """
    name, colon, group_name = user.partition(":")
    uid, gid, home, login = _user(name or "0", passwd, where)
    if colon and group_name:
        return Identity(uid, _group(group_name, group, where), (), home)
    groups = tuple(number for _, number, members in _groups(group) if login and login in members)
    return Identity(uid, gid, tuple(dict.fromkeys(g for g in groups if g != gid)), home)


def _user(name: str, passwd: str, where: str) -> tuple[int, int, str, str]:
    number = _number(name)
    for entry, uid, gid, home in _users(passwd):
        if entry == name or (number is not None and uid == number):
            return uid, gid, home or "/", entry
    if number is None:
        raise InvalidSpec(f"user {name} does not exist in the image", where, _HINT)
    return number, 0, "/", ""


def _group(name: str, group: str, where: str) -> int:
    number = _number(name)
    if number is not None:
        return number
    for entry, gid, _ in _groups(group):
        if entry == name:
            return gid
    raise InvalidSpec(f"group {name} does not exist in the image", where, _HINT)


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and int(text[:11]) <= ID_MAX:
        return int(text)
    return None


def _users(passwd: str) -> Iterator[tuple[str, int, int, str]]:
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[2].isdigit() and fields[3].isdigit():
            yield fields[0], int(fields[2]), int(fields[3]), fields[5]


def _groups(group: str) -> Iterator[tuple[str, int, list[str]]]:
    for line in group.splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and fields[2].isdigit():
            yield fields[0], int(fields[2]), fields[3].split(",")
