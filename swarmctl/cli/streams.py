"""``logs``, ``exec`` and ``console``: bytes from instances, and to them.

A terminal is two-way: keys, the connection and changes of the window's size are waited for at
once, and nothing is read from the keyboard while the controller has no room for it.
"""

import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TextIO

import click
from attrs import define, field

from swarmctl.cli import clusters
from swarmctl.cli.output import has_colour
from swarmctl.client import Client, ClientStream
from swarmctl.proto import limits
from swarmctl.proto.errors import InvalidSpec

# Each instance's prefix gets one of these, in turn.
_PREFIX_COLOURS: Final = ("cyan", "yellow", "green", "magenta", "blue", "bright_red")
# Ctrl-], as telnet and virsh have it.
_ESCAPE: Final = b"\x1d"
# Sequences of ECMA-48 but for colours (SGR), and strings such as window titles.
_CONTROL: Final = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-ln-~]|\x1b[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-Z\\`-~]|\x07"
)
_COLOUR: Final = re.compile(rb"\x1b\[[0-9;:]*m")
# A sequence that has not ended by then is none.
_SEQUENCE_MAX_BYTES: Final = 256
# Without news the loop looks around this often, so that a lost connection is noticed.
_LOOK_S: Final = 5.0


# --- logs ------------------------------------------------------------------------------------


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option(
    "-n", "--tail", type=click.IntRange(1), metavar="N", help="Only the last N lines of each."
)
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@click.argument(
    "names",
    nargs=-1,
    required=True,
    metavar="SERVICE|INSTANCE...",
    shell_complete=clusters.complete_targets,
)
@click.pass_context
def logs(
    ctx: click.Context, follow: bool, tail: int | None, timestamps: bool, names: tuple[str, ...]
) -> int:
    """Show the output of instances, each in lines of its own."""
    with clusters.connect(ctx) as client:
        missing = show_logs(client, names, follow=follow, tail=tail or 0, timestamps=timestamps)
    return 1 if missing else 0


def show_logs(
    client: Client,
    names: Sequence[str],
    *,
    follow: bool = False,
    tail: int = 0,
    timestamps: bool = False,
) -> bool:
    """Copy output to stdout and stderr; whether some instance's could not be had."""
    known = client.call("instance.list", {"names": list(names), "all": True})
    instances = [str(view["instance"]) for view in known]
    params = {"names": list(names), "follow": follow, "tail": tail, "timestamps": timestamps}
    writer = _Lines(instances) if len(instances) > 1 else None
    cleaners = {name: _Cleaner(_output(name).isatty()) for name in ("stdout", "stderr")}
    with client.stream("instance.logs", params) as stream:
        for item in stream:
            instance, data = item.data
            if writer is None:
                _write(_output(item.channel), cleaners[item.channel].clean(data))
            else:
                writer.add(instance, item.channel, data)
        if writer is not None:
            writer.finish()
        unreachable = (stream.result or {}).get("unreachable", [])
    for instance, why in unreachable:
        print(f"{instance}: {why}", file=sys.stderr)
    return bool(unreachable)


@define
class _Lines:
    """Whole lines of several instances, each behind the instance's name."""

    instances: list[str]
    _cleaners: dict[tuple[str, str], "_Cleaner"] = field(factory=dict)
    _open: dict[tuple[str, str], bytes] = field(factory=dict)

    def add(self, instance: str, channel: str, data: bytes) -> None:
        """Print what is complete, keep the rest."""
        cleaner = self._cleaners.setdefault(
            (instance, channel), _Cleaner(_output(channel).isatty())
        )
        data = cleaner.clean(data)
        *lines, rest = (self._open.pop((instance, channel), b"") + data).split(b"\n")
        if len(rest) > limits.STREAM_CHUNK_BYTES:  # A line without end is cut, not collected.
            lines, rest = [*lines, rest], b""
        if lines:
            prefix = self._prefix(instance, channel)
            text = b"".join(prefix + line + b"\n" for line in lines)
            _write(_output(channel), text)
        if rest:
            self._open[instance, channel] = rest

    def finish(self) -> None:
        """Print the lines that never ended."""
        for instance, channel in list(self._open):
            self.add(instance, channel, b"\n")

    def _prefix(self, instance: str, channel: str) -> bytes:
        width = max(map(len, self.instances))
        text = f"{instance:<{width}} | "
        if has_colour(_output(channel)):
            slot = self.instances.index(instance) if instance in self.instances else 0
            text = click.style(text, fg=_PREFIX_COLOURS[slot % len(_PREFIX_COLOURS)])
        return text.encode()


@define
class _Cleaner:
    """Takes out what would drive the terminal: a VM's console asks it for its size, and moves.

    Colours stay.  Output that does not go to a terminal is left as it is.
    """

    active: bool
    _rest: bytes = b""

    def clean(self, data: bytes) -> bytes:
        """``data`` without control sequences; the beginning of one waits for its end."""
        if not self.active:
            return data
        data = _CONTROL.sub(b"", self._rest + data)
        start = data.rfind(b"\x1b", max(0, len(data) - _SEQUENCE_MAX_BYTES))
        whole = start < 0 or _COLOUR.match(data, start)
        data, self._rest = (data, b"") if whole else (data[:start], data[start:])
        return data


def _output(channel: str) -> TextIO:
    return sys.stderr if channel == "stderr" else sys.stdout


def _write(stream: TextIO, data: bytes) -> None:
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()


# --- exec and console ------------------------------------------------------------------------


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Pass on what is typed or piped in.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Give the command a terminal.")
@click.argument("instance", shell_complete=clusters.complete_instances)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(
    ctx: click.Context, interactive: bool, terminal: bool, instance: str, command: tuple[str, ...]
) -> int:
    """Run COMMAND in an instance; ends with its exit code."""
    if terminal and interactive and not sys.stdin.isatty():
        raise InvalidSpec("there is no terminal to pass on", "--tty", "leave -t out")
    params = {
        "name": instance,
        "command": list(command),
        "tty": terminal,
        "stdin": interactive,
    }
    with clusters.connect(ctx) as client, client.stream("instance.exec", params) as stream:
        return _attached(client, stream, reads=interactive, raw=terminal and interactive)


@click.command()
@click.argument("instance", shell_complete=clusters.complete_instances)
@click.pass_context
def console(ctx: click.Context, instance: str) -> int:
    """Attach to the serial console of a VM; ctrl-] leaves it."""
    on_terminal = sys.stdin.isatty()
    with (
        clusters.connect(ctx) as client,
        client.stream("instance.console", {"name": instance}) as stream,
    ):
        if on_terminal:
            print(f"attached to {instance}; ctrl-] leaves", file=sys.stderr)
        code = _attached(client, stream, reads=True, raw=on_terminal, escape=_ESCAPE)
        if on_terminal:
            print(f"\r\nleft {instance}, which runs on", file=sys.stderr)
    return code


def _attached(
    client: Client, stream: ClientStream, *, reads: bool, raw: bool, escape: bytes = b""
) -> int:
    """Connect the terminal with a stream until one of them ends; the exit code."""
    with _raw_terminal(active=raw), _window_changes(active=raw) as window:
        keys = _Keys(sys.stdin.fileno() if reads else -1, escape if raw else b"")
        if raw:
            _send_size(stream)
        while not stream.ended:
            watched = [window] if window >= 0 else []
            if keys.open and stream.may_send:
                watched.append(keys.descriptor)
            readable = client.connection.wait_readable(watched, _LOOK_S)
            if window in readable:
                os.read(window, limits.STREAM_CHUNK_BYTES)
                if stream.may_send:
                    _send_size(stream)
            if keys.descriptor in readable and not keys.pass_on(stream):
                return 0
            _drain(stream)
    result: dict[str, Any] = stream.result or {}
    return int(result.get("exit_code") or 0)


def _drain(stream: ClientStream) -> None:
    while (item := stream.receive(0)) is not None:
        _write(_output(item.channel), item.data)


@define
class _Keys:
    """What is typed; closed when ``descriptor`` is -1."""

    descriptor: int
    escape: bytes

    @property
    def open(self) -> bool:
        """Whether more may come."""
        return self.descriptor >= 0

    def pass_on(self, stream: ClientStream) -> bool:
        """Send what is there; False when the user wants to leave."""
        data = os.read(self.descriptor, limits.STREAM_CHUNK_BYTES)
        if self.escape and self.escape in data:
            return False
        if data:
            stream.send("stdin", data)
        else:
            self.descriptor = -1
            stream.send("eof", None)
        return True


def _send_size(stream: ClientStream) -> None:
    size = os.get_terminal_size(sys.stdin.fileno())
    stream.send("resize", [size.lines, size.columns])


@contextmanager
def _raw_terminal(*, active: bool) -> Generator[None, None, None]:
    """Keys come as they are typed, ctrl-C included; the terminal is given back as it was."""
    if not active:
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _window_changes(*, active: bool) -> Generator[int, None, None]:
    """A descriptor that is readable when the window's size has changed; -1 when inactive."""
    if not active:
        yield -1
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGWINCH, before)
        os.close(read)
        os.close(write)


COMMANDS: Final[dict[str, click.Command]] = {"logs": logs, "exec": exec_, "console": console}
