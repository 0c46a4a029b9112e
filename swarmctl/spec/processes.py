"""What a container runs, and as whom: commands, signals, capabilities."""

import re
import shlex
import signal
from typing import Final

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.names import did_you_mean

_SIGNALS: Final = frozenset(member.name for member in signal.Signals)
_REALTIME: Final = re.compile(r"SIGRT(MIN(\+\d{1,2})?|MAX(-\d{1,2})?)")
_CAPABILITY: Final = re.compile(r"(?:CAP_)?([A-Z][A-Z_]{1,30})")
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def split_command(text: str) -> tuple[str, ...]:
    """The words of a command written as one text, with a shell's quotes and no shell.

    Raises:
        InvalidSpec: a quote is not closed.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidSpec(
            f'"{text[:60]}" is not a command: {str(error).lower()}',
            hint='close the quote, or write a list: ["sh", "-c", "…"]',
        ) from error


def parse_signal(text: str) -> str:
    """``SIGTERM`` of ``SIGTERM``, ``TERM`` or ``15``.

    Raises:
        InvalidSpec: there is no such signal.
    """
    if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= signal.SIGRTMAX:
        number = int(text)
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name not in _SIGNALS and _REALTIME.fullmatch(name) is None:
        raise InvalidSpec(
            f'"{text}" is not a signal', hint=did_you_mean(name, _SIGNALS, "such as SIGTERM")
        )
    return name


def parse_capability(text: str) -> str:
    """``NET_ADMIN`` of ``NET_ADMIN`` or ``CAP_NET_ADMIN``.

    Raises:
        InvalidSpec: it does not look like a capability.
    """
    match = _CAPABILITY.fullmatch(text.upper())
    if match is None:
        raise InvalidSpec(f'"{text}" is not a capability', hint='such as "NET_ADMIN"')
    return match.group(1)


def check_hostname(text: str) -> str:
    """``text`` when a machine may call itself so.

    Raises:
        InvalidSpec: it may not.
    """
    if _HOSTNAME.fullmatch(text) is None:
        raise InvalidSpec(
            f'"{text}" cannot be a host name',
            hint='use letters, digits, "-", "_" and ".", at most 63 characters',
        )
    return text


def check_image(text: str) -> str:
    """``text`` when it can be the name of an image; whether there is one is seen on the node.

    Raises:
        InvalidSpec: it is empty, or has a space.
    """
    if not text or text.startswith("-") or any(char.isspace() for char in text):
        raise InvalidSpec(
            f'"{text}" cannot be the name of an image', hint='such as "nginx:1.27" or "host/app"'
        )
    return text


def check_working_dir(text: str) -> str:
    """``text`` when it is an absolute path.

    Raises:
        InvalidSpec: it is not.
    """
    if not text.startswith("/"):
        raise InvalidSpec(f'"{text}" is not an absolute path', hint='it begins with "/"')
    return text
