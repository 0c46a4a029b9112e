"""What the files say of a container: records read and written, and the phase that follows.

Pure but for :func:`read` and the two that write: what a container is, is a table over three facts
(was it started, does a process of it live, has its end been recorded).

A monitor that is killed records no end.  Then a process that lives says that it runs, and one that
does not says that it ended, with an exit code that nobody saw.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import frozen

from swarmctl.agent import guard
from swarmctl.agent.drivers import made_of
from swarmctl.agent.drivers.api import Found, Launch, Owner, Phase
from swarmctl.agent.drivers.endings import exit_reason
from swarmctl.agent.drivers.oci.layout import Place

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
UNSEEN_END: Final = "it ended while nobody watched, so its exit code is not known"


@frozen
class Record:
    """Whose container it is, and what later calls need to know of it."""

    cluster_id: str
    node: str
    incarnation: int
    service: str
    slot: int
    tenant: str
    stop_signal: str
    storage: str
    image: str
    tty: bool = False
    namespace: bool = False
    addresses: tuple[str, ...] = ()
    # Older releases wrote none.
    template: str = ""

    @property
    def owner(self) -> Owner:
        """Whose it is."""
        return Owner(self.cluster_id, self.node)


@frozen
class Start:
    """One start: ``began`` are the kernel's ticks, which tell the process from a later one."""

    pid: int
    began: int
    boot: str
    at: float

    @property
    def is_alive(self) -> bool:
        """Whether that very process lives."""
        return self.boot == boot_id() and guard.began(self.pid) == self.began != 0


@frozen
class End:
    """The recorded end of a container; ``code`` is None when nobody saw it."""

    code: int | None
    at: float
    out_of_memory: bool = False


@frozen
class State:
    """A container as its files have it. ``alive`` is asked only where it matters."""

    record: Record
    start: Start | None = None
    end: End | None = None

    @property
    def phase(self) -> Phase:
        """What the facts amount to."""
        if self.start is None:
            return Phase.CREATED
        return Phase.RUNNING if self.end is None else Phase.EXITED


def new_record(
    owner: Owner,
    launch: Launch,
    *,
    stop_signal: str,
    storage: str,
    image: str,
    tty: bool,
    namespace: bool,
) -> Record:
    """The record of a launch."""
    return Record(
        cluster_id=owner.cluster_id,
        node=owner.node,
        incarnation=launch.incarnation,
        service=launch.service,
        slot=launch.slot,
        tenant=launch.tenant,
        stop_signal=stop_signal,
        storage=storage,
        image=image,
        tty=tty,
        namespace=namespace,
        addresses=tuple(
            address.partition("/")[0] for one in launch.attachments for address in one.addresses
        ),
        template=made_of.text_of(launch.template),
    )


def read(place: Place) -> State | None:
    """What there is of a container; None when it is not there.

    The end is read before the start is trusted: between the two looks it may end, not begin.
    """
    record = read_record(place)
    if record is None:
        return None
    start = _read_start(place)
    if start is None:
        return State(record)
    end = _read_end(place)
    if end is None and not start.is_alive and not monitor_lives(place):
        # It may have ended between the two looks.
        end = _read_end(place) or End(None, 0.0)
    return State(record, start, end)


def found(state: State, container: str) -> Found:
    """As the agent sees it."""
    start, end = state.start, state.end
    record = state.record
    return Found(
        incarnation=record.incarnation,
        service=record.service,
        slot=record.slot,
        runtime_id=container,
        phase=state.phase,
        exit_code=end.code if end is not None else None,
        started_at=start.at if start is not None else 0.0,
        finished_at=end.at if end is not None else 0.0,
        addresses=record.addresses,
        reason=reason(end) if end is not None else "",
        tenant=record.tenant,
        template=made_of.encoded_of(record.template),
    )


def reason(end: End) -> str:
    """Why it ended, in words; empty when the code says all there is to say."""
    if end.code is None:
        return UNSEEN_END
    return exit_reason(end.code, out_of_memory=end.out_of_memory)


def read_record(place: Place) -> Record | None:
    """Whose it is; None when it is not there."""
    fields = _read_json(place.record)
    if fields is None:
        return None
    return Record(**(fields | {"addresses": tuple(fields["addresses"])}))


def write_record(record: Record, path: Path) -> None:
    """Write the record of a container that is being made."""
    path.write_text(json.dumps(attrs.asdict(record)), encoding="utf-8")


def write_start(place: Place, start: Start) -> None:
    """Tell that it was started."""
    hidden = place.start.with_name(f".{place.id}")
    hidden.write_text(json.dumps(attrs.asdict(start)), encoding="utf-8")
    hidden.rename(place.start)


def monitor_lives(place: Place) -> bool:
    """Whether its monitor is alive and may yet record its end."""
    pid = read_pid(place.monitor_pid_file)
    if pid is None:
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return place.id.encode() in words


def read_pid(path: Path) -> int | None:
    """The process id in a file; None when there is none (yet)."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def boot_id() -> str:
    """Tells this boot of the machine from all others."""
    return BOOT_ID.read_text(encoding="ascii").strip()


def _read_start(place: Place) -> Start | None:
    fields = _read_json(place.start)
    return None if fields is None else Start(**fields)


def _read_end(place: Place) -> End | None:
    try:
        with place.exit.open(encoding="ascii") as file:
            text = file.read()
            at = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    # Empty is what a machine that lost its power leaves of it.
    return End(int(text) if text else None, at, place.out_of_memory.exists())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not text:
        return None  # what a machine that lost its power leaves of it
    fields: dict[str, Any] = json.loads(text)
    return fields
