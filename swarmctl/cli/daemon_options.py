"""What the options of ``controller``, ``agent`` and ``dev`` mean: addresses, stores, amounts."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swarmctl.proto.errors import InvalidSpec

if TYPE_CHECKING:
    from swarmctl.controller.etcd.address import EtcdAddress
    from swarmctl.net.tls import Credentials

DEFAULT_LISTEN: Final = "tcp://127.0.0.1:7077"
_WILDCARDS: Final = ("0.0.0.0", "*", "[::]", "::")  # noqa: S104 - recognised, not listened on
# Any address beyond this machine: asking for the way there sends nothing.
_ELSEWHERE: Final = ("192.0.2.1", 9)
_PORT_MAX: Final = 65535


def listen_address(text: str) -> str:
    """``HOST:PORT``, with or without ``tcp://``, as ``tcp://HOST:PORT``.

    Raises:
        InvalidSpec: it is neither.
    """
    scheme, separator, rest = text.rpartition("://")
    host, colon, port = rest.rpartition(":")
    good = scheme == ("tcp" if separator else "") and colon and host and port.isdecimal()
    if not good or int(port) > _PORT_MAX:
        raise InvalidSpec(
            f'"{text}" is not an address', hint=f"write tcp://HOST:PORT, such as {DEFAULT_LISTEN}"
        )
    return f"tcp://{rest}"


def reachable(listened: Sequence[str]) -> tuple[str, ...]:
    """What to advertise: an address of this machine where all of them are listened on.

    Empty when what is listened on will do, and is known for sure only then (port 0).
    """
    if not any(_host(one) in _WILDCARDS for one in listened):
        return ()
    if any(one.endswith(":0") for one in listened):
        raise InvalidSpec(
            "port 0 on all addresses cannot be told to others", "--listen", "name a port"
        )
    return tuple(
        one.replace(_host(one), _primary_address(), 1) if _host(one) in _WILDCARDS else one
        for one in listened
    )


def _host(address: str) -> str:
    return address.removeprefix("tcp://").rpartition(":")[0]


def _primary_address() -> str:
    """This machine's address as others see it; loopback when it has no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return "127.0.0.1"  # There is no way out: nobody else is there to be told.
        return str(probe.getsockname()[0])


def check_store_options(join: Path | None, rebuild: bool, *, on_etcd: bool) -> None:
    """See that the options go together.

    Raises:
        InvalidSpec: they do not.
    """
    if join is not None and not on_etcd:
        raise InvalidSpec("a single controller joins no others", "--join", "give --store etcd://…")
    if rebuild and on_etcd:
        raise InvalidSpec(
            "only a SQLite store is rebuilt",
            "--rebuild",
            "an etcd that lost its data gets a backup: swarmctl store restore BACKUP etcd://…; "
            "without one rebuild with --store sqlite:FILE, and move that: swarmctl store migrate",
        )


def ovn_credentials(
    ovn: str, private_key: Path | None, certificate: Path | None, authority: Path | None
) -> "Credentials | None":
    """What is shown and believed at ``ssl:``; None where nothing was given.

    Raises:
        InvalidSpec: one is missing or cannot be used, or ``ovn`` is without certificates.
    """
    given = {
        "--ovn-private-key": private_key,
        "--ovn-certificate": certificate,
        "--ovn-ca-cert": authority,
    }
    if not any(given.values()):
        return None
    if private_key is None or certificate is None or authority is None:
        missing = ", ".join(option for option, file in given.items() if file is None)
        raise InvalidSpec("key, certificate and authority go together", missing, "give it, too")
    if ovn and "ssl:" not in ovn:
        raise InvalidSpec(
            f"{ovn} is reached without certificates",
            "--ovn-certificate",
            "write --ovn ssl:HOST:PORT",
        )
    from swarmctl.net.tls import Credentials, tls_context

    credentials = Credentials(*(one.absolute() for one in (private_key, certificate, authority)))
    tls_context(credentials)
    return credentials


def etcd_address(store: str) -> "EtcdAddress | None":
    """The etcd that ``--store`` names; None when it names a file, or nothing."""
    if not store.startswith("etcd:"):
        return None
    from swarmctl.controller.etcd.address import parse_etcd

    return parse_etcd(store)


def store_file(store: str) -> Path | None:
    """The file that ``--store`` names; None when it names none.

    Raises:
        InvalidSpec: it is neither that nor an etcd.
    """
    scheme, _, rest = store.partition(":")
    if not store:
        return None
    if scheme != "sqlite" or not rest:
        raise InvalidSpec(
            f'"{store}" is not a store', "--store", "write sqlite:FILE or etcd://HOST:PORT,…"
        )
    return Path(rest.removeprefix("//")).absolute()


def lease_seconds(text: str) -> float:
    """``--fencing-lease`` in seconds."""
    from swarmctl.proto.limits import FENCING_LEASE_MIN_S
    from swarmctl.spec.sizes import parse_duration

    try:
        seconds = parse_duration(text)
    except InvalidSpec as error:
        raise InvalidSpec(error.what, "--fencing-lease", error.hint) from error
    if seconds < FENCING_LEASE_MIN_S:
        raise InvalidSpec(
            f'"{text}" is too short',
            "--fencing-lease",
            f"{FENCING_LEASE_MIN_S:g}s is the least: it is renewed with every heartbeat",
        )
    return seconds


def key_value(option: str, text: str) -> tuple[str, str]:
    """``K=V`` apart.

    Raises:
        InvalidSpec: there is no ``=``, or nothing before it.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidSpec(f'"{text}" is not of the form NAME=VALUE', option)
    return key, value


def amount(option: str, text: str) -> tuple[str, int]:
    """``cpus=4``, ``memory=8g`` or ``gpu=2`` as the scheduler counts it."""
    from swarmctl.spec.sizes import parse_cpus, parse_size

    name, value = key_value(option, text)
    try:
        if name in ("cpu", "cpus"):
            return "cpu_millis", parse_cpus(value)
        if name in ("memory", "disk"):
            return f"{name}_bytes", parse_size(value)
    except InvalidSpec as error:
        raise InvalidSpec(error.what, option, error.hint) from error
    if not value.isdecimal():
        raise InvalidSpec(f'"{value}" is not a count', option, "such as gpu=2")
    return name, int(value)
