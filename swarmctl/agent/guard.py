"""The guard: a process that ends fenced instances when nobody renews their lease (DESIGN 7).

It shares nothing with the agent but a folder: a *page* of memory with the time until which the
lease holds (``CLOCK_BOOTTIME``), and a file for each fenced instance that names it as its
processes do: a container's id (Docker's, or of the oci driver) is in their cgroup, libvirt's
domain UUID is an argument of QEMU.  So nothing has to be asked of the agent, dockerd or libvirtd,
which may all be dead or stopped: past the lease the guard looks through /proc and kills what it
finds, and goes on looking, since a daemon that was stopped may carry out late what it was told
before.

It imports nothing beyond the standard library, needs no disk while it works, cannot be swapped out
and is the last that the kernel kills for want of memory.  It lives in a session and cgroup of its
own and outlives the agent; an agent that starts again goes on with it, or starts another, which
takes over by writing its process id into the page.  Without fenced instances it ends with its
agent; with some it stays, for as long as the machine or its folder does: nobody can say when a
daemon that was stopped will go on.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import re
import signal
import sys
import time

PAGE = "page"
LIST = "instances"
LOG = "log"
PAGE_BYTES = 4096
# Words of the page.
LEASE_NS, BEAT_NS, GUARD_PID, AGENT_PID, AGENT_BEGAN, KILLS = range(6)

# The guard shows that it lives this often; the agent looks for less than six of these.
BEAT_S = 0.25
# Between looks past the lease: for so long a late start may live.
LOOK_S = 0.05
# And while something is being killed.
KILL_PAUSE_S = 0.005
# Whether the agent lives is looked at this often; it matters only for tidiness.
AGENT_EVERY_S = 1.0
# Without an agent it looks so often for this long after the lease and its last kill, then rarely.
LINGER_S = 600.0
LOOK_RARELY_S = 1.0
LOG_MAX_BYTES = 256 * 1024
# Never killed for want of memory.
OOM_SCORE = "-1000"
# mlockall: what is mapped, what will be, each page when it is used.
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4

CONTAINER_ID = re.compile(rb"[0-9a-f]{64}")
NS = 1_000_000_000


def boottime_ns() -> int:
    """The clock of leases: it counts while the machine is suspended, and nobody can set it."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def began(pid: int) -> int:
    """When the process began, in the kernel's ticks: tells it from a later one of its number.

    0 when there is none.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


class Page:
    """The shared page; each word is written and read as a whole.

    It is locked, together with others, for as long as it is open: so nobody takes the folder for
    one of the dead.  Raises FileNotFoundError when the folder is not there.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, PAGE)
        while True:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)
                os.ftruncate(self._descriptor, PAGE_BYTES)
                self._map = mmap.mmap(self._descriptor, PAGE_BYTES)
                self._file = os.fstat(self._descriptor).st_ino
            except BaseException:
                os.close(self._descriptor)
                raise
            if self.is_there:
                break
            # The folder was removed as one of the dead while we waited for the lock.
            os.close(self._descriptor)
        self._words = memoryview(self._map).cast("Q")

    def __getitem__(self, word: int) -> int:
        return self._words[word]

    def __setitem__(self, word: int, value: int) -> None:
        self._words[word] = value

    @property
    def is_there(self) -> bool:
        """Whether the folder still has this page."""
        try:
            return os.stat(self._path).st_ino == self._file
        except OSError:
            return False

    def close(self) -> None:
        """Let go of it."""
        self._words.release()
        self._map.close()
        os.close(self._descriptor)


class FencedList:
    """What is fenced, read again when the folder has changed."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, LIST)
        self._seen = 0
        self.names: frozenset[bytes] = frozenset()

    def read(self) -> frozenset[bytes]:
        """The names that processes of fenced instances have."""
        try:
            changed = os.stat(self._folder).st_mtime_ns
            if changed != self._seen:
                found = set()
                for file in os.listdir(self._folder):
                    if not file.startswith("."):
                        with open(os.path.join(self._folder, file), "rb") as lines:
                            found.add(lines.read().strip())
                self.names = frozenset(found - {b""})
                # A change within the clock's grain would go unseen: read once more after it.
                settled = time.time_ns() - changed > NS // 10
                self._seen = changed if settled else 0
        except OSError:
            pass  # What was known is kept: better one too many than one too few.
        return self.names


# --- finding and killing ---------------------------------------------------------------------


def find(names: frozenset[bytes]) -> dict[int, bytes]:
    """Every process of an instance in ``names``: its id, and what /proc says of its cgroups.

    Raises:
        OSError: there is no file descriptor to look with: nothing is said of who lives.
    """
    found: dict[int, bytes] = {}
    me = os.getpid()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == me:
            continue
        try:
            with open(f"/proc/{entry}/cgroup", "rb") as file:
                cgroups = file.read()
            if names.isdisjoint(CONTAINER_ID.findall(cgroups)):
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    if not is_domain(file.read(), names):
                        continue
            if began(int(entry)):
                found[int(entry)] = cgroups
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            # It has ended.
    return found


def is_domain(cmdline: bytes, names: frozenset[bytes]) -> bool:
    """Whether it is the QEMU of a domain in ``names``."""
    words = cmdline.split(b"\0")
    return b"-uuid" in words[:-1] and words[words.index(b"-uuid") + 1] in names


def mounts() -> dict[str, str]:
    """Where the cgroup hierarchies are: by controller, and ``""`` for version 2."""
    found: dict[str, str] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            head, _, tail = line.partition(" - ")
            kind, _, options = tail.split(" ", 2)
            place = head.split(" ")[4]
            if kind == "cgroup2":
                found.setdefault("", place)
            elif kind == "cgroup":
                for option in options.strip().split(","):
                    found.setdefault(option.removeprefix("name="), place)
    return found


def kill(pid: int, cgroups: bytes, names: frozenset[bytes], places: dict[str, str]) -> None:
    """Kill one process, and with it all of its container where the kernel can do that."""
    for line in cgroups.decode(errors="replace").splitlines():
        _, controllers, path = line.split(":", 2)
        whole = container_path(path, names)
        if whole is None:
            continue
        if controllers == "" and "" in places:
            write(places[""] + whole + "/cgroup.kill", "1")
        elif controllers == "freezer" and "freezer" in places:
            # A paused container of version 1 would not die.
            write(places["freezer"] + whole + "/freezer.state", "THAWED")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def container_path(path: str, names: frozenset[bytes]) -> str | None:
    """The container's own cgroup in ``path``; None when it has none there."""
    parts = path.split("/")
    for count, part in enumerate(parts, 1):
        if not names.isdisjoint(CONTAINER_ID.findall(part.encode())):
            return "/".join(parts[:count])
    return None


def write(path: str, text: str) -> bool:
    """Whether the kernel took it."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError:
        return False
    return True


# --- the process -----------------------------------------------------------------------------


class Guard:
    """One guard of a folder; ``me`` is how it is known from an earlier or later one."""

    def __init__(self, folder: str, me: int = 0) -> None:
        self.page = Page(folder)
        self.list = FencedList(folder)
        self._me = me or os.getpid()
        self._log_path = os.path.join(folder, LOG)
        self._places = mounts()
        self._last_kill_ns = 0
        self._agent_seen_ns = 0
        self._agent_lives = True
        self.page[GUARD_PID] = self._me

    def run(self) -> None:
        """Guard until there is nothing to guard, or another guard has taken over."""
        while (wait_s := self.look()) is not None:
            time.sleep(wait_s)

    def look(self) -> float | None:
        """Do what is to be done now; for how long to wait then, or None when this guard is done."""
        if not self.page.is_there or self.page[GUARD_PID] != self._me:
            return None
        self.page[BEAT_NS] = now = self.now_ns()
        names = self.list.read()
        left_ns = self.page[LEASE_NS] - now
        if not names:
            return BEAT_S if self._has_agent(now) else None
        if left_ns > 0:
            return min(BEAT_S, left_ns / NS)
        if self._end_all(names):
            return KILL_PAUSE_S
        quiet_ns = min(-left_ns, now - self._last_kill_ns)
        rarely = quiet_ns > LINGER_S * NS and not self._has_agent(now)
        return LOOK_RARELY_S if rarely else LOOK_S

    def now_ns(self) -> int:
        """The clock of leases."""
        return boottime_ns()

    def _end_all(self, names: frozenset[bytes]) -> bool:
        """Kill what is there of them; whether there was something, or may be."""
        try:
            found = find(names)
        except OSError:
            return True  # There may be something; it is looked for again at once.
        # An agent that came back to life has renewed the lease meanwhile: then nothing is killed.
        if not found or self.page[LEASE_NS] > self.now_ns():
            return False
        for pid, cgroups in found.items():
            kill(pid, cgroups, names, self._places)
            self.page[KILLS] += 1
        self._last_kill_ns = self.now_ns()
        late_ms = (self._last_kill_ns - self.page[LEASE_NS]) / 1e6
        self._log(f"killed {sorted(found)} {late_ms:.1f} ms after the lease ended")
        return True

    def _has_agent(self, now: int) -> bool:
        if now - self._agent_seen_ns > AGENT_EVERY_S * NS:
            self._agent_seen_ns = now
            self._agent_lives = began(self.page[AGENT_PID]) == self.page[AGENT_BEGAN] != 0
        return self._agent_lives

    def _log(self, text: str) -> None:
        try:
            with open(self._log_path, "a", encoding="utf-8") as file:
                if file.tell() < LOG_MAX_BYTES:
                    file.write(f"{self.now_ns() / NS:.3f} {text}\n")
        except OSError:
            pass  # It is for people; what counts is that they are dead.


def stand_apart() -> None:
    """Leave whatever might take this process down with the agent, as far as it is allowed."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    write("/proc/self/oom_score_adj", OOM_SCORE)
    for place in set(mounts().values()):
        # A service manager that stops the agent kills its whole cgroup.
        write(place + "/cgroup.procs", str(os.getpid()))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        import ctypes

        ctypes.CDLL(None).mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)
    except (ImportError, OSError, AttributeError):
        pass  # It may be swapped out, then.


def main(arguments: list[str]) -> None:
    """Guard the folder that is the only argument."""
    (folder,) = arguments
    stand_apart()
    Guard(folder).run()


if __name__ == "__main__":
    main(sys.argv[1:])
