"""`lab status`: what is there, whose it is, which version; as a table or as JSON.

Theory of operation. Everything is asked anew - nothing is believed from the registry but whose a
daemon is - and asking changes nothing, needs no root and takes no lock.
"""

from __future__ import annotations

from typing import Any

from lab import docker, etcd, guest, hosts, kvm, libvirt, ovn, packages, testbox
from lab.config import (
    GUEST_CMDLINE,
    GUEST_MEMORY_MIB,
    GUEST_READY_LINE,
    IMAGE_TAG,
    LIBVIRT_URI,
    PARTS,
    Paths,
)
from lab.report import table
from lab.state import State


def collect(paths: Paths) -> dict[str, Any]:
    """The whole status as JSON-able data; `ok` says whether every part is up."""
    state = State(paths.state_file)
    parts = {
        "docker": _docker(paths, state),
        "libvirt": _libvirt(state),
        "etcd": _etcd(),
        "ovn": _ovn(),
        "image": _image(paths),
        "guest": _guest(paths),
        "build": _build(),
    }
    verdict, reason = kvm.verdict(paths, state)
    return {
        "ok": all(part["up"] for part in parts.values()),
        "parts": parts,
        "kvm": {
            "verdict": verdict,
            "usable": verdict == "usable",
            "reason": reason,
            "node": str(paths.kvm_node),
            "aside": str(paths.kvm_aside) if verdict == "aside" else None,
        },
        "state_dir": str(paths.state_dir),
        "cache_dir": str(paths.cache_dir),
        "log_dir": str(paths.log_dir),
    }


def _docker(paths: Paths, state: State) -> dict[str, Any]:
    version = docker.version(paths)
    return {
        "up": version is not None,
        "ours": version is not None and docker.is_ours(paths, state),
        "version": version,
        "pid": docker.daemon_pid(paths),
        "socket": str(paths.docker_socket),
    }


def _libvirt(state: State) -> dict[str, Any]:
    version = libvirt.version()
    process = state.daemon("libvirtd")
    return {
        "up": version is not None,
        "ours": version is not None and state.owns("libvirtd"),
        "version": version,
        "pid": process.pid if process and state.owns("libvirtd") else None,
        "uri": LIBVIRT_URI,
    }


def _etcd() -> dict[str, Any]:
    version = etcd.version()
    return {"up": version is not None, "ours": False, "version": version, "program": etcd.program()}


def _ovn() -> dict[str, Any]:
    missing = [need.package for need in packages.plan(["ovn"])]
    return {
        "up": not missing,
        "ours": False,
        "version": ovn.version(),
        "missing": missing,
        "hosts": sorted(hosts.labs()),
    }


def _image(paths: Paths) -> dict[str, Any]:
    try:
        label = testbox.labelled_digest(paths)
    except OSError:
        label = None
    return {"up": label is not None, "ours": bool(label), "version": None, "tag": IMAGE_TAG}


def _guest(paths: Paths) -> dict[str, Any]:
    built = guest.is_built(paths)
    return {
        "up": built,
        "ours": built,
        "version": guest.kernel_version(paths) if built else None,
        "kernel": str(paths.kernel),
        "initrd": str(paths.initrd),
        "testdisk": str(paths.testdisk),
        "cmdline": GUEST_CMDLINE,
        "memory_mib": GUEST_MEMORY_MIB,
        "ready_line": GUEST_READY_LINE,
    }


def _build() -> dict[str, Any]:
    missing = [need.package for need in packages.plan(["build"])]
    return {"up": not missing, "ours": False, "version": None, "missing": missing}


def as_table(status: dict[str, Any]) -> str:
    """The status for a person."""
    rows = [["PART", "STATE", "WHOSE", "VERSION", "WHERE"]]
    for name in PARTS:
        part = status["parts"][name]
        rows.append([name, _state(name, part), _whose(name, part), part["version"] or "-",
                     _where(name, part, status)])  # fmt: skip
    found = status["kvm"]
    rows.append(["kvm", found["verdict"], "-", "-", found["reason"]])
    return table(rows)


def _state(name: str, part: dict[str, Any]) -> str:
    up, down = {
        "docker": ("running", "down"),
        "libvirt": ("running", "down"),
        "etcd": ("installed", "missing"),
        "ovn": ("installed", "missing"),
        "image": ("present", "absent"),
        "guest": ("built", "absent"),
        "build": ("installed", "missing"),
    }[name]
    return up if part["up"] else down


def _whose(name: str, part: dict[str, Any]) -> str:
    if name in ("build", "etcd", "ovn") or not part["up"]:
        return "-"
    return "lab" if part["ours"] else "not ours"


def _where(name: str, part: dict[str, Any], status: dict[str, Any]) -> str:
    if name == "docker":
        return f"unix://{part['socket']}"
    if name == "libvirt":
        return str(part["uri"])
    if name == "etcd":
        return str(part["program"] or "-")
    if name == "ovn" and not part["missing"]:
        return f"labs of hosts: {', '.join(part['hosts']) or 'none'}"
    if name == "image":
        return str(part["tag"])
    if name == "guest":
        return f"{status['cache_dir']}/guest"
    return ", ".join(part["missing"]) or "all there"
