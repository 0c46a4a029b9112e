"""Which system calls a container may make: the default of Podman and CRI-O, made to measure. Pure.

The profile comes with the distribution's ``containers-common``, which skopeo brings, and is kept up
with kernels there.  Its rules hold for some architectures, or with or without some capabilities;
runc wants rules without conditions.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

PROFILE: Final = Path("/usr/share/containers/seccomp.json")
# As the kernel calls architectures, as the rules do, and as libseccomp does.
ARCHITECTURES: Final = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
}
_KEPT: Final[tuple[str, ...]] = ("names", "action", "errnoRet")
_ARGUMENT: Final[tuple[str, ...]] = ("index", "value", "valueTwo", "op")


def filter_of(
    profile: dict[str, Any], capabilities: Collection[str], machine: str
) -> dict[str, Any] | None:
    """The ``linux.seccomp`` of a configuration; None for an architecture that we do not know.

    Args:
        profile: what the file says.
        capabilities: the container's, as ``CAP_CHOWN``.
        machine: the architecture, as ``uname -m`` says.
    """
    if machine not in ARCHITECTURES:
        return None
    name, native = ARCHITECTURES[machine]
    found: dict[str, Any] = {
        "defaultAction": profile["defaultAction"],
        "architectures": list(_architectures(profile, native)),
        "syscalls": [
            _rule(rule)
            for rule in profile["syscalls"]
            if _included(rule.get("includes") or {}, capabilities, name)
            and not _excluded(rule.get("excludes") or {}, capabilities, name)
        ],
    }
    if "defaultErrnoRet" in profile:
        found["defaultErrnoRet"] = profile["defaultErrnoRet"]
    return found


def _architectures(profile: dict[str, Any], native: str) -> Iterator[str]:
    """The machine's own, and the older ones that it can run."""
    yield native
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            yield from entry.get("subArchitectures") or ()


def _included(condition: dict[str, Any], capabilities: Collection[str], architecture: str) -> bool:
    """Whether all of a condition is true."""
    arches = condition.get("arches")
    return (not arches or architecture in arches) and all(
        one in capabilities for one in condition.get("caps") or ()
    )


def _excluded(condition: dict[str, Any], capabilities: Collection[str], architecture: str) -> bool:
    """Whether any of a condition is true."""
    return architecture in (condition.get("arches") or ()) or any(
        one in capabilities for one in condition.get("caps") or ()
    )


def _rule(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule as runc wants it."""
    found = {key: rule[key] for key in _KEPT if key in rule}
    if rule.get("args"):
        found["args"] = [
            {key: argument[key] for key in _ARGUMENT if key in argument}
            for argument in rule["args"]
        ]
    return found
