"""Which user QEMU runs as, so that it can open what the spec names and nothing more.

libvirtd would start QEMU as its own unprivileged user and hand every file of the domain over to
that user: also the image and the kernel that others share.  Here files keep their owners: the
label is given, relabelling is off, and only files that we made are handed over.

The unprivileged user is used wherever it can reach all the files.  Where it cannot (an image
below a private folder) QEMU runs as the agent's own user, and the agent says so.
"""

import os
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen


@frozen
class Account:
    """A user and group by number."""

    uid: int
    gid: int

    @property
    def label(self) -> str:
        """As libvirt's DAC driver writes it; the plus says that it is a number."""
        return f"+{self.uid}:+{self.gid}"


def own_account() -> Account:
    """The agent's."""
    return Account(os.geteuid(), os.getegid())


def parse_account(capabilities_xml: str) -> Account | None:
    """QEMU's user according to libvirt's capabilities; None where it labels no owners.

    That is so in ``qemu:///session``, where QEMU is the caller's own process.
    """
    # libvirtd wrote this XML, and it is trusted.
    root = ET.fromstring(capabilities_xml)  # noqa: S314
    for model in root.iterfind("./host/secmodel"):
        label = model.findtext("baselabel")
        if model.findtext("model") == "dac" and label:
            uid, _, gid = label.partition(":")
            return Account(int(uid.lstrip("+")), int(gid.lstrip("+")))
    return None


def unreadable(account: Account, files: Iterable[Path]) -> Path | None:
    """The first file, or folder above one, that keeps ``account`` out; None if it reads all.

    It looks at owner, group and mode; access lists may grant more.
    """
    for file in files:
        path = file.resolve()
        blocked = impassable(account, path.parent)
        if blocked is not None:
            return blocked
        if not _allows(path.stat(), account, stat.S_IRUSR, stat.S_IRGRP, stat.S_IROTH):
            return path
    return None


def impassable(account: Account, folder: Path) -> Path | None:
    """The first folder on the way into ``folder`` that keeps ``account`` out; None if none does."""
    path = folder.resolve()
    for step in (*reversed(path.parents), path):
        if not _allows(step.stat(), account, stat.S_IXUSR, stat.S_IXGRP, stat.S_IXOTH):
            return step
    return None


def _allows(status: os.stat_result, account: Account, user: int, group: int, other: int) -> bool:
    if account.uid == 0:
        return True
    if status.st_uid == account.uid:
        return bool(status.st_mode & user)
    if status.st_gid == account.gid:
        return bool(status.st_mode & group)
    return bool(status.st_mode & other)


def can_hand_over() -> bool:
    """Whether this process may give its files to another user."""
    return os.geteuid() == 0


def hand_over(account: Account, file: Path) -> None:
    """Make ``account`` the owner of a file of ours."""
    if can_hand_over():
        os.chown(file, account.uid, account.gid)
