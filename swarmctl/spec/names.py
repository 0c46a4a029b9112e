"""Names of services, nodes, tenants, stacks and instances.

A service's name becomes part of host names, of the names of containers and domains and of
``web.3``, so it is a DNS label with ``_`` allowed besides: lower-case letters, digits, ``-`` and
``_``, from a letter or digit to a letter or digit, at most 63 characters, and never a dot.
A node's name is its host name, so it may have dots.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Final

from attrs import frozen

from swarmctl.proto.errors import InvalidSpec
from swarmctl.proto.limits import REPLICAS_MAX

# A DNS label's bound; the names of containers and domains, made from two of these, fit 255.
NAME_MAX_CHARS: Final = 63

# What starts containers and what VMs; the first of each is the usual one. ``sim`` only simulates.
CONTAINER_DRIVERS: Final = ("docker", "oci", "sim")
VM_DRIVERS: Final = ("libvirt", "sim")

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?")
_NODE: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_SLOT: Final = re.compile(r"[1-9]\d{0,8}")
_RULE: Final = (
    'lower-case letters, digits, "-" and "_", from a letter or digit to a letter or digit'
)


@frozen
class InstanceName:
    """``web.3``: a service and a slot."""

    service: str
    slot: int

    def __str__(self) -> str:
        return f"{self.service}.{self.slot}"


def check_service_name(text: str) -> str:
    """``text`` when a service may be called so; else InvalidSpec is raised."""
    return _check("service", text, _LABEL)


def check_node_name(text: str) -> str:
    """``text`` when a node may be called so (dots are allowed); else InvalidSpec is raised."""
    return _check("node", text, _NODE)


def check_tenant_name(text: str) -> str:
    """``text`` when a tenant may be called so; else InvalidSpec is raised."""
    return _check("tenant", text, _LABEL)


def check_stack_name(text: str) -> str:
    """``text`` when a stack may be called so; else InvalidSpec is raised."""
    return _check("stack", text, _LABEL)


def check_driver(text: str, *, is_vm: bool) -> str:
    """``text`` when it names a driver that can start this; else InvalidSpec is raised."""
    able = VM_DRIVERS if is_vm else CONTAINER_DRIVERS
    if text in able:
        return text
    what = "VMs" if is_vm else "containers"
    raise InvalidSpec(
        f'no driver "{text}" starts {what}', hint=did_you_mean(text, able, " or ".join(able))
    )


def check_network_name(text: str) -> str:
    """``text`` when a network may be called so (dots are allowed); else InvalidSpec is raised."""
    return _check("network", text, _NODE)


def check_tenant_network(text: str) -> str:
    """``text`` when a tenant network may be called so; else InvalidSpec is raised."""
    return _check("network", text, _LABEL)


def check_alias(text: str) -> str:
    """``text`` when a service may also be called so on a network (dots are allowed)."""
    return _check("network alias", text, _NODE)


def parse_instance(text: str) -> InstanceName:
    """The parts of ``web.3``.

    Raises:
        InvalidSpec: it is not a service's name, a dot and a slot from 1.
    """
    service, dot, slot = text.rpartition(".")
    if not dot:
        raise InvalidSpec(
            f'"{text}" is not an instance', hint=f'add its slot: "{text}.1" is the first copy'
        )
    if _SLOT.fullmatch(slot) is None or int(slot) > REPLICAS_MAX:
        raise InvalidSpec(
            f'"{text}" is not an instance: "{slot}" is not a slot', hint="slots count from 1"
        )
    return InstanceName(check_service_name(service), int(slot))


def parse_target(text: str) -> tuple[str, int | None]:
    """A service or an instance, as most commands take them: ``("web", None)``, ``("web", 3)``.

    Raises:
        InvalidSpec: it is neither.
    """
    if "." not in text:
        return check_service_name(text), None
    instance = parse_instance(text)
    return instance.service, instance.slot


def tidy_name(text: str) -> str:
    """The nearest valid name to ``text``, or an empty text when nothing of it remains."""
    tidied = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")
    return tidied[:NAME_MAX_CHARS].rstrip("-_")


def name_from_image(image: str) -> str:
    """A service's name from an image or a disk: ``lab/testbox:1`` and ``/x/testbox.qcow2``.

    Raises:
        InvalidSpec: nothing of the image can be a name.
    """
    base = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    base = re.sub(r"\.(qcow2|raw|img|iso|gz|xz)$", "", base)
    if not (name := tidy_name(base)):
        raise InvalidSpec(f'no name can be made from "{image}"', hint="give one with --name")
    return name


def free_name(base: str, taken: Collection[str]) -> str:
    """``base``, or the first of ``base-2``, ``base-3``… that is not taken."""
    name, number = base, 1
    while name in taken:
        number += 1
        suffix = f"-{number}"
        name = base[: NAME_MAX_CHARS - len(suffix)] + suffix
    return name


def suggest(word: str, known: Iterable[str]) -> str:
    """The known word that ``word`` was probably meant to be, or an empty text."""
    by_folded = {candidate.casefold(): candidate for candidate in sorted(known)}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else ""


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint with the nearest known word; ``otherwise`` when none is near."""
    found = suggest(word, known)
    return f'did you mean "{found}"?' if found else otherwise


def _check(kind: str, text: str, allowed: re.Pattern[str]) -> str:
    if len(text) > NAME_MAX_CHARS:
        raise InvalidSpec(
            f'a {kind} name of {len(text)} characters ("{text[:20]}…") is too long',
            hint=f"use at most {NAME_MAX_CHARS}",
        )
    if allowed.fullmatch(text) is None:
        rule = _RULE.replace('"-"', '"-", "."') if allowed is _NODE else _RULE
        example = tidy_name(text)
        raise InvalidSpec(
            f'"{text}" cannot be a {kind} name' if text else f"the {kind} name is empty",
            hint=f"use {rule}" + (f': for example "{example}"' if example else ""),
        )
    return text
