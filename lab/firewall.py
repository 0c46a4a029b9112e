"""What Docker changes in the machine's network when it starts, and putting it back.

Theory of operation. dockerd turns IP forwarding on, sets the FORWARD chain's policy to DROP, adds
chains of its own and makes the bridge ``docker0``, and leaves all that behind when it stops. Before
the lab starts the first dockerd it records how these were; after it stopped it, it restores them.
Where Docker's chains or bridge were there before, they stay.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab import procs
from lab.state import State

FACT = "firewall"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
BRIDGE = "docker0"
COMMAND_S = 20.0  # includes waiting for the lock of another iptables (-w)


def record(state: State) -> None:
    """Remember how things are, unless that was remembered already (before a crash, say)."""
    if state.get(FACT) is not None or "docker" in "".join(_rules("filter")).lower():
        return
    state.put(
        FACT,
        {
            "boot_id": procs.boot_id(),
            "ip_forward": FORWARDING.read_text().strip(),
            "forward_policy": forward_policy(_rules("filter")),
            "bridge": bridge_exists(),
        },
    )


def restore(state: State) -> str:
    """Put things back as they were recorded; what was done, in words (empty for nothing)."""
    before = state.get(FACT)
    state.put(FACT, None)
    if before is None or before["boot_id"] != procs.boot_id():
        return ""  # a new boot begins without any of it
    for table in ("filter", "nat"):
        for arguments in removals(_rules(table)):
            _iptables("-t", table, *arguments)
    if before["forward_policy"]:
        _iptables("-P", "FORWARD", before["forward_policy"])
    if not before["bridge"] and bridge_exists():
        procs.run(["ip", "link", "delete", BRIDGE], timeout_s=COMMAND_S)
    FORWARDING.write_text(before["ip_forward"])
    return "bridge, firewall chains and forwarding put back"


def bridge_exists() -> bool:
    """Whether Docker's default bridge is there."""
    return Path("/sys/class/net", BRIDGE).exists()


def forward_policy(rules: list[str]) -> str:
    """The policy of the FORWARD chain in `iptables -S` output (empty when there is none)."""
    for rule in rules:
        words = rule.split()
        if words[:2] == ["-P", "FORWARD"]:
            return words[2]
    return ""


def removals(rules: list[str]) -> list[list[str]]:
    """The iptables arguments that take Docker's rules and chains out of `iptables -S` output.

    Rules of other chains that jump to Docker's or name its bridge go first, then the chains are
    emptied, then deleted: a chain that is referred to cannot be deleted.
    """
    chains = [rule.split()[1] for rule in rules if rule.startswith("-N DOCKER")]
    deletions = []
    for rule in rules:
        words = rule.split()
        if words[0] != "-A" or words[1] in chains:
            continue
        target = words[words.index("-j") + 1] if "-j" in words else ""
        if target in chains or BRIDGE in words or _is_default_masquerade(words):
            deletions.append(["-D", *words[1:]])
    flushes = [["-F", chain] for chain in chains]
    return deletions + flushes + [["-X", chain] for chain in chains]


def _is_default_masquerade(words: list[str]) -> bool:
    """`-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE` names the bridge already."""
    return words[1] == "POSTROUTING" and "MASQUERADE" in words and BRIDGE in words


def _rules(table: str) -> list[str]:
    if procs.which("iptables") is None:
        return []
    try:
        return procs.run(["iptables", "-w", "-t", table, "-S"], timeout_s=COMMAND_S).splitlines()
    except subprocess.CalledProcessError:
        return []  # a kernel without that table: dockerd could not have used it either


def _iptables(*arguments: str) -> None:
    procs.run(["iptables", "-w", *arguments], timeout_s=COMMAND_S)
