"""Whether KVM really runs a guest here, found out once with a deadline, and what follows.

Theory of operation. A KVM node can exist and not work (nested virtualisation cut off, a broken
hypervisor); libvirt then probes it for a minute at every domain start. Presence proves nothing, so
a guest is run: a boot sector that switches to 64-bit mode, turns a loop fifty million times and
writes one value to QEMU's debug-exit port. QEMU ends with the exit code made from that value only
when the guest's own instructions ran, at a processor's speed: there are hypervisors that crawl
through a BIOS in three seconds and never get a kernel up. Where it did not within the deadline,
the node is renamed aside - recorded first - and `lab down` renames it back. A node that works is
never touched.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path

from lab import procs
from lab.config import Paths
from lab.faults import LabFault
from lab.report import Step
from lab.state import State

PROBE_DEADLINE_S = 5.0  # a working KVM needs 0.3 s; a loaded machine gets the rest
DEBUG_EXIT_PORT = 0xF4
DEBUG_EXIT_VALUE = 0x2A
#: isa-debug-exit turns a value written by the guest into this exit code.
GUEST_RAN_EXIT_CODE = (DEBUG_EXIT_VALUE << 1) | 1
LOOP_TURNS = 50_000_000  # 0.03 s on a processor; hours where each instruction is trapped
SECTOR_BYTES = 512
LOAD_ADDRESS = 0x7C00  # where a BIOS puts a boot sector


def boot_sector() -> bytes:
    """A boot sector that goes to 64-bit mode, loops, writes to the debug-exit port and halts.

    The loop is the point: a broken hypervisor may crawl through a few instructions by emulating
    each, and only one that runs guest code on the processor is through it in time.
    """
    code = bytes.fromhex(
        "fa 6631c0 8ed8 8ec0"  # cli; eax, ds, es = 0
        "66bf00100000 0f22df"  # edi = cr3 = 0x1000: the page tables
        "b9000c fc 66f3ab"  # clear three pages there
        "c70600100320 c70600200330 c70600308300"  # one 2 MiB page, mapped onto itself
        "660f0116787c"  # lgdt [0x7c78]
        "0f20e0 0c20 0f22e0"  # cr4.PAE
        "66b9800000c0 0f32 80cc01 0f30"  # EFER.LME
        "0f20c0 660d01000080 0f22c0"  # cr0.PG, cr0.PE: long mode
        "ea567c0800"  # far jump to the 64-bit code, which is the next instruction
        "b9" + LOOP_TURNS.to_bytes(4, "little").hex() + "ffc9 75fc"  # loop: dec ecx; jnz loop
        f"b0{DEBUG_EXIT_VALUE:02x} e6{DEBUG_EXIT_PORT:02x}"  # out: QEMU ends here
        "f4 ebfd"  # hlt, for ever
    )
    descriptors = bytes(8) + (0x00209A0000000000).to_bytes(8, "little")  # null, 64-bit code
    pointer = (15).to_bytes(2, "little") + (LOAD_ADDRESS + 0x68).to_bytes(4, "little")
    body = code.ljust(0x68, b"\0") + descriptors + pointer
    return body.ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"


def probe(accelerator: str = "kvm", deadline_s: float = PROBE_DEADLINE_S) -> tuple[bool, str]:
    """Run guest code under an accelerator; whether it ran, and the reason when it did not."""
    with tempfile.TemporaryDirectory(prefix="swarmctl-kvm-") as folder:
        image = Path(folder) / "boot.img"
        image.write_bytes(boot_sector())
        command = [
            "qemu-system-x86_64", "-accel", accelerator, "-machine", "pc", "-m", "16",
            "-nodefaults", "-display", "none", "-no-reboot",
            "-device", f"isa-debug-exit,iobase={DEBUG_EXIT_PORT:#x},iosize=0x04",
            "-drive", f"file={image},format=raw,if=ide",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=deadline_s,
                check=False,
                start_new_session=True,
                env={"PATH": procs.search_path()},
            )
        except subprocess.TimeoutExpired:
            return False, f"a guest did not get through its boot sector within {deadline_s:.0f} s"
        except FileNotFoundError:
            return False, "qemu-system-x86_64 is not installed"
    if done.returncode == GUEST_RAN_EXIT_CODE:
        return True, "ran a guest"
    words = done.stderr.strip().splitlines()
    return False, words[-1] if words else f"QEMU ended with code {done.returncode}"


def is_device(node: Path) -> bool:
    """Whether the path is a character device."""
    try:
        return stat.S_ISCHR(node.stat().st_mode)
    except FileNotFoundError:
        return False


def settle(paths: Paths, state: State, step: Step) -> str:
    """Find out about KVM and put an unusable node aside; the verdict in words.

    The verdict is remembered for this boot. Nothing is done without QEMU: then nothing is proved.

    Raises:
        LabFault: the node is unusable and cannot be moved.
    """
    known = state.get("kvm")
    fresh = known is not None and known["boot_id"] == procs.boot_id()
    if not is_device(paths.kvm_node):
        aside = is_device(paths.kvm_aside)
        step.kept(
            f"not usable, node is aside at {paths.kvm_aside}; VMs are emulated (TCG)"
            if aside
            else f"no {paths.kvm_node}; VMs are emulated (TCG)"
        )
        return "aside" if aside else "absent"
    if fresh and known["verdict"] == "usable":
        step.kept("usable (proved earlier in this boot)")
        return "usable"
    if os.geteuid() != 0:
        step.kept(f"{paths.kvm_node} is there and not checked: that is done as root")
        return "unknown"
    step.progress(f"running a guest on {paths.kvm_node}, at most {PROBE_DEADLINE_S:.0f} s")
    usable, reason = probe()
    if usable:
        state.put("kvm", {"verdict": "usable", "reason": reason, "boot_id": procs.boot_id()})
        step.done(f"usable: {paths.kvm_node} {reason}")
        return "usable"
    if reason.endswith("not installed"):
        step.done(f"not checked: {reason}")
        return "unknown"
    _put_aside(paths, state, reason)
    step.done(
        f"NOT usable ({reason}); {paths.kvm_node} moved to {paths.kvm_aside} until `lab down`, "
        "VMs are emulated (TCG)"
    )
    return "aside"


def _put_aside(paths: Paths, state: State, reason: str) -> None:
    state.put("kvm", {"verdict": "aside", "reason": reason, "boot_id": procs.boot_id()})
    try:
        paths.kvm_node.rename(paths.kvm_aside)
    except OSError as error:
        raise LabFault(
            f"{paths.kvm_node} does not run guests ({reason}) and cannot be moved aside: "
            f"{error.strerror}",
            "run as root; until then each start of a VM through libvirt takes a minute",
        ) from error


def give_back(paths: Paths, state: State) -> str | None:
    """Undo what :func:`settle` did to the node; what was done in words, or None for nothing."""
    known = state.get("kvm")
    state.put("kvm", None)
    if known is None or known["verdict"] != "aside" or not is_device(paths.kvm_aside):
        return None
    if is_device(paths.kvm_node):
        paths.kvm_aside.unlink()  # the system has made a new node meanwhile: that one stays
        return f"{paths.kvm_node} is there again by itself; removed {paths.kvm_aside}"
    paths.kvm_aside.rename(paths.kvm_node)
    return f"{paths.kvm_node} given back"


def verdict(paths: Paths, state: State) -> tuple[str, str]:
    """(`usable` | `aside` | `absent` | `unknown`, reason) without probing anything."""
    known = state.get("kvm") or {}
    if is_device(paths.kvm_node):
        if known.get("verdict") == "usable" and known.get("boot_id") == procs.boot_id():
            return "usable", known["reason"]
        return "unknown", "not checked yet in this boot"
    if is_device(paths.kvm_aside):
        return "aside", known.get("reason", "moved aside")
    return "absent", f"no {paths.kvm_node}"
