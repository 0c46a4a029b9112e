"""Makes the health checks that are due: a bounded number at once, each with its deadline.

One task waits for the next due time; a check is a task only while it is under way.  With nothing
to check there is nothing but that one sleeping task.  A command runs inside the container by the
driver, TCP and HTTP are asked at the instance's address (of one on tenant networks from inside of
its network namespace, as the node has no way there), a VM's guest agent through its driver.

A daemon that does not answer says nothing about the instance: such a check counts neither way.
"""

import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

import structlog
import trio

from swarmctl.agent import healthcare
from swarmctl.agent.drivers.api import Driver, Enclosing, Exec, GuestAgent, KillsCommand
from swarmctl.agent.health import Answer, Watch
from swarmctl.agent.instance import Instance
from swarmctl.agent.supervisor import Supervisor
from swarmctl.proto.errors import Conflict, DeadlineExceeded, NotFound, PeerError, SwarmError
from swarmctl.proto.errors import DriverUnavailable as Away
from swarmctl.spec.models import HealthCheck, HealthKind

_log = structlog.get_logger(__name__)

# At once; a command costs its daemon about as much as a start does.
CHECKS_AT_ONCE: Final = 16
# Kept of what a failed command printed: what people see in `ps` is a line.
OUTPUT_MAX_BYTES: Final = 4_096
SAID_MAX_CHARS: Final = 200
# A status line and some headers; the body tells nothing here.
HTTP_HEAD_MAX_BYTES: Final = 8_192
HTTP_GOOD: Final = range(200, 400)
# Killing what a check that ran out of time has left behind.
KILL_DEADLINE_S: Final = 5.0
# Beyond the check's own time: making a command ready is the daemon's affair, not the instance's.
DAEMON_MARGIN_S: Final = 15.0


class Checker:
    """The health checks of one agent.

    Args:
        supervisor: whose instances they are.
        drivers: by name.
        wake: called when the supervisor was told something.
    """

    def __init__(
        self, supervisor: Supervisor, drivers: Mapping[str, Driver], wake: Callable[[], None]
    ) -> None:
        self._supervisor = supervisor
        self._drivers = drivers
        self._wake = wake
        self._changed = trio.Event()
        self._under_way = 0
        supervisor.health.changed = self._look_again

    def _look_again(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Check until cancelled."""
        watchlist = self._supervisor.health
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                room = CHECKS_AT_ONCE - self._under_way
                for watch in watchlist.due(trio.current_time(), room):
                    self._under_way += 1
                    nursery.start_soon(self._check, watch)
                full = self._under_way >= CHECKS_AT_ONCE
                deadline = float("inf") if full else watchlist.next_due()
                with trio.move_on_at(deadline):
                    await self._changed.wait()

    async def _check(self, watch: Watch) -> None:
        answer: Answer | None = None
        try:
            if healthcare.is_current(self._supervisor, watch):
                instance = self._supervisor.instances[watch.incarnation]
                answer = await self.ask(instance, watch.check)
        finally:
            self._under_way -= 1
            self._changed.set()
        healthcare.answered(self._supervisor, watch, answer, trio.current_time())
        self._wake()

    async def ask(self, instance: Instance, check: HealthCheck) -> Answer | None:
        """Make a check now; None when its daemon did not answer, so that nothing is known."""
        try:
            if check.kind is HealthKind.COMMAND:
                return await self._run(instance, check)
            with trio.move_on_after(check.timeout_s):
                if check.kind is HealthKind.GUEST_AGENT:
                    return await self._ask_guest(instance)
                return await self._ask_network(instance, check)
        except (Away, NotFound, Conflict, DeadlineExceeded, PeerError) as error:
            _log.debug("check not made", instance=instance.name, error=str(error))
            return None
        except SwarmError as error:
            return Answer(good=False, said=_line(error.what))
        return _late(check)

    # --- commands ------------------------------------------------------------------------------

    async def _run(self, instance: Instance, check: HealthCheck) -> Answer | None:
        driver = self._drivers.get(instance.driver)
        if not isinstance(driver, Exec):
            return Answer(good=False, said=f"driver {instance.driver} runs no commands")
        output = bytearray()
        with trio.move_on_after(check.timeout_s + DAEMON_MARGIN_S):
            async with driver.exec(
                instance.incarnation, check.command, tty=False, stdin=False
            ) as terminal:
                with trio.move_on_after(check.timeout_s):
                    while (chunk := await terminal.receive()) is not None:
                        output = (output + chunk.data)[-OUTPUT_MAX_BYTES:]
                    code = await terminal.exit_code()
                    return _answer_of_command(code, bytes(output))
                if isinstance(terminal, KillsCommand):
                    with trio.move_on_after(KILL_DEADLINE_S):
                        await terminal.kill()
                return _late(check)
        return None

    # --- guest agents --------------------------------------------------------------------------

    async def _ask_guest(self, instance: Instance) -> Answer:
        driver = self._drivers.get(instance.driver)
        if not isinstance(driver, GuestAgent):
            return Answer(good=False, said=f"driver {instance.driver} knows no guest agents")
        await driver.ping_guest(instance.incarnation)
        return Answer(good=True)

    # --- networks ------------------------------------------------------------------------------

    async def _ask_network(self, instance: Instance, check: HealthCheck) -> Answer:
        if instance.attachments:
            return await self._ask_inside(instance, check)
        address = self._address_of(instance)
        if not address:
            # A VM's address is known once it has asked for one: the next list may have it.
            self._supervisor.actions.relists.add(instance.driver)
            return Answer(good=False, said="it has no address yet")
        try:
            return await _ask_stream(
                await trio.open_tcp_stream(address, check.port), address, check
            )
        except (OSError, trio.BrokenResourceError) as error:
            return Answer(good=False, said=f"{address}:{check.port}: {_why(error)}")

    async def _ask_inside(self, instance: Instance, check: HealthCheck) -> Answer:
        """Ask in the instance's own namespace, at its own address: the node has no way there."""
        driver = self._drivers.get(instance.driver)
        if not isinstance(driver, Enclosing):
            said = "the node has no way into its tenant network: have its guest agent checked"
            return Answer(good=False, said=said)
        given = [one.partition("/")[0] for port in instance.attachments for one in port.addresses]
        address = next((one for one in given if ":" not in one), given[0])
        namespace = await driver.network_namespace(instance.incarnation)
        opened = await trio.to_thread.run_sync(_socket_in, namespace, ":" in address)
        try:
            # Where it was made is where it is, whichever thread uses it.
            with trio.socket.from_stdlib_socket(opened) as asking:
                await asking.connect((address, check.port))
                return await _ask_stream(trio.SocketStream(asking), address, check)
        except (OSError, trio.BrokenResourceError) as error:
            return Answer(good=False, said=f"{address}:{check.port}: {_why(error)}")

    def _address_of(self, instance: Instance) -> str:
        if instance.addresses:
            return instance.addresses[0]
        template = self._supervisor.templates.get(instance.template)
        on_host = template is not None and template.container is not None
        if on_host and template.container.network == "host":  # type: ignore[union-attr]  # seen just now
            return "127.0.0.1"
        return ""


def _socket_in(namespace: str, is_v6: bool) -> socket.socket:  # noqa: FBT001 - for a thread, which takes no names
    from swarmctl.net.plugging import links

    with links.inside(namespace):
        made = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_STREAM)
    made.settimeout(0.0)
    return made


async def _ask_stream(stream: trio.SocketStream, address: str, check: HealthCheck) -> Answer:
    async with stream:
        if check.kind is HealthKind.TCP:
            return Answer(good=True)
        return await _ask_http(stream, address, check)


async def _ask_http(stream: trio.SocketStream, address: str, check: HealthCheck) -> Answer:
    host = f"[{address}]" if ":" in address else address
    await stream.send_all(
        f"GET {check.path} HTTP/1.1\r\nHost: {host}:{check.port}\r\n"
        "User-Agent: swarmctl-health\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
    )
    head = bytearray()
    while b"\n" not in head and len(head) < HTTP_HEAD_MAX_BYTES:
        data = await stream.receive_some(HTTP_HEAD_MAX_BYTES)
        if not data:
            break
        head += data
    return answer_of_http(bytes(head), f"{host}:{check.port}{check.path}")


def answer_of_http(head: bytes, where: str) -> Answer:
    """What the beginning of an HTTP answer means."""
    words = head.split(b"\n", 1)[0].split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Answer(good=False, said=f"{where}: the answer is not HTTP")
    status = int(words[1][:4])
    if status in HTTP_GOOD:
        return Answer(good=True)
    return Answer(good=False, said=f"{where} answered {status}")


def _answer_of_command(code: int | None, output: bytes) -> Answer | None:
    if code is None:
        return None  # Its container has gone: the driver tells that.
    if code == 0:
        return Answer(good=True)
    said = _line(output.decode(errors="replace"))
    return Answer(good=False, said=f"exited {code}: {said}" if said else f"exited {code}")


def _late(check: HealthCheck) -> Answer:
    return Answer(good=False, said=f"no answer within {check.timeout_s:g} s")


def _why(error: Exception) -> str:
    """The system's own words; trio's repeat the address."""
    # trio tries an address more than once, and hides what they said in the cause.
    cause = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno).lower()
    return "no connection"


def _line(text: str) -> str:
    """The last line that says something, short enough for a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:SAID_MAX_CHARS] if lines else ""
