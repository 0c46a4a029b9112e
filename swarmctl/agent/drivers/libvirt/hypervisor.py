"""Whether guests run under KVM or under QEMU's own emulation (TCG).

The presence of the KVM node proves nothing: in containers and nested machines it may exist and
not be able to run a guest, and then libvirt probes it for a minute at every start.  So a guest is
run: a ROM of a few bytes whose first instruction tells QEMU to exit with a number of our choice.
That number comes back only if a virtual cpu executed it.  It takes some tens of milliseconds, and
a deadline ends one that hangs.
"""

import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from attrs import frozen

KVM_NODE: Final = Path("/dev/kvm")
# The proof takes 0.04 s on an idle machine; this is for a loaded one. Below the probe's 3 s.
PROOF_TIMEOUT_S: Final = 2.0
# How long QEMU may take to die after SIGKILL; one stuck in the kernel is left behind.
_KILL_WAIT_S: Final = 0.5
# After a proof that ran out of time (a loaded machine, perhaps) it is tried again.
RETRY_AFTER_S: Final = 60.0
NO_QEMU: Final = "QEMU is not installed"
EMULATORS: Final = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm")

_EXIT_PORT: Final = 0xF4
_EXIT_VALUE: Final = 0x31
# isa-debug-exit ends QEMU with (value << 1) | 1.
_EXIT_CODE: Final = (_EXIT_VALUE << 1) | 1
_ROM_BYTES: Final = 64 * 1024
# mov al, value; out port, al; hlt -- at the reset vector, 16 bytes before the ROM's end.
_CODE: Final = bytes([0xB0, _EXIT_VALUE, 0xE6, _EXIT_PORT, 0xF4])


@frozen
class Verdict:
    """Which domain type to use; ``reason`` says how it is known, or why it is not KVM.

    ``broken_node`` is a KVM node that is there and does not work: it makes libvirt hang.
    ``final`` is false when asking again later may give another answer.
    """

    domain_type: str
    reason: str
    broken_node: bool = False
    final: bool = True


def rom() -> bytes:
    """The guest: a BIOS image whose first instruction ends QEMU with :data:`_EXIT_CODE`."""
    image = bytearray(b"\xf4" * _ROM_BYTES)
    image[-16 : -16 + len(_CODE)] = _CODE
    return bytes(image)


def prove(accelerator: str, timeout_s: float = PROOF_TIMEOUT_S) -> str:
    """Run the guest under ``accelerator``; empty when it ran, else why not. Blocks."""
    emulator = next((found for name in EMULATORS if (found := shutil.which(name))), None)
    if emulator is None:
        return NO_QEMU
    with tempfile.TemporaryDirectory(prefix="swarmctl-kvm-") as folder:
        bios = Path(folder) / "rom"
        bios.write_bytes(rom())
        arguments = f"-accel {accelerator} -machine pc -m 16 -nodefaults -display none -no-reboot"
        exit_device = f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"
        process = subprocess.Popen(
            [emulator, *arguments.split(), "-bios", str(bios), "-device", exit_device],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"a guest did not run within {timeout_s:g} s"
    if process.returncode == _EXIT_CODE:
        return ""
    lines = errors.strip().splitlines()
    return lines[0][:200] if lines else f"QEMU ended with {process.returncode}"


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    try:
        process.communicate(timeout=_KILL_WAIT_S)
    except subprocess.TimeoutExpired:
        # Stuck in the kernel; waiting longer would hang us as well. Popen reaps it later.
        if process.stderr is not None:
            process.stderr.close()


def decide(node: Path = KVM_NODE, timeout_s: float = PROOF_TIMEOUT_S) -> Verdict:
    """KVM if a guest runs under it, TCG otherwise. Blocks."""
    if not node.exists():
        return Verdict("qemu", f"{node} does not exist")
    problem = prove("kvm", timeout_s)
    if not problem:
        return Verdict("kvm", "a guest ran under it")
    if problem == NO_QEMU:
        return Verdict("qemu", NO_QEMU, final=False)
    late = problem.startswith("a guest did not run")
    return Verdict(
        "qemu", f"{node} cannot run a guest: {problem}", broken_node=True, final=not late
    )


class Decision:
    """The verdict of this process, found once; safe to ask from several threads."""

    def __init__(self, node: Path = KVM_NODE) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._verdict: Verdict | None = None
        self._at = 0.0

    def verdict(self) -> Verdict:
        """Blocks for up to the proof's deadline the first time, and after an undecided one."""
        with self._lock:
            if self._is_stale():
                self._verdict = decide(self._node)
                self._at = time.monotonic()
            assert self._verdict is not None, "decided above"
            return self._verdict

    def known(self) -> Verdict | None:
        """The verdict, if there is one already."""
        return self._verdict

    def _is_stale(self) -> bool:
        if self._verdict is None:
            return True
        if self._verdict.broken_node != self._node.exists() and self._verdict.domain_type == "qemu":
            return True  # the node came, or somebody moved it aside
        return not self._verdict.final and time.monotonic() - self._at > RETRY_AFTER_S
