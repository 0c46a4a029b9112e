"""What applying a spec would change, field by field, for ``diff`` and ``apply --dry-run``.

Fields are named as in the stack file, nearly: ``image``, ``environment.A``, ``vm.disk``,
``replicas``, ``resources.memory``. Values are texts for a person; None is "not there".
A field that an instance is made from ``restarts`` the instances when it changes; the others (how
many, where) touch only what must go or come.
"""

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final

import attrs
from attrs import frozen

from swarmctl.spec.models import (
    AffinityTerm,
    DiskSpec,
    Mount,
    PortMapping,
    ServiceSpec,
)
from swarmctl.spec.mounts import format_mount
from swarmctl.spec.ports import format_port
from swarmctl.spec.sizes import format_bytes_exact, format_cpus, format_duration

# Long texts (user data) are shown by their beginning and their length.
_SHOWN_MAX_CHARS: Final = 200

# How the paths of the models are called in a stack file.
_SPOKEN: Final = (
    ("template.container.", ""),
    ("template.vm.", "vm."),
    ("template.", ""),
)
_TEMPLATE: Final = "template."
# Units last in the names of the models' numbers; a person reads "512 MiB" instead.
_UNITS: Final[dict[str, Callable[[Any], str]]] = {
    "_bytes": format_bytes_exact,
    "_millis": format_cpus,
    "_s": format_duration,
}


@frozen
class Change:
    """One field that differs; ``restarts`` when instances have to be made anew for it."""

    field_path: str
    before: str | None
    after: str | None
    restarts: bool = False

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.field_path}: {self.after}"
        if self.after is None:
            return f"- {self.field_path}: {self.before}"
        return f"~ {self.field_path}: {self.before} -> {self.after}"


@frozen
class _Leaf:
    """A value that is compared as a whole; ``unit`` is how the models' name for it ends."""

    value: Any
    unit: str = ""

    def shown(self) -> str:
        return _UNITS[self.unit](self.value) if self.unit else _shown(self.value)


def diff_services(old: ServiceSpec | None, new: ServiceSpec) -> tuple[Change, ...]:
    """The changes from ``old`` to ``new``, in the order of the models' fields.

    Without ``old``, everything that ``new`` says beyond the defaults is added, and nothing
    restarts.
    """
    before = dict(_leaves(old, defaults=True)) if old is not None else {}
    after = dict(_leaves(new, defaults=old is not None))
    return tuple(
        Change(
            _spoken(path, (after.get(path) or before[path]).unit),
            before[path].shown() if path in before else None,
            after[path].shown() if path in after else None,
            restarts=old is not None and path.startswith(_TEMPLATE),
        )
        for path in dict.fromkeys((*after, *before))
        if before.get(path) != after.get(path)
    )


def _leaves(value: Any, path: str = "", *, defaults: bool) -> Iterator[tuple[str, _Leaf]]:
    """Path and value of all that says something, with or without what the defaults say."""
    for attribute in attrs.fields(type(value)):
        child = getattr(value, attribute.name)
        inner = f"{path}.{attribute.name}" if path else attribute.name
        is_default = child == _default(attribute)
        if is_default and not (defaults and child) and inner != "replicas":
            continue
        if attrs.has(type(child)) and not isinstance(child, DiskSpec):
            yield from _leaves(child, inner, defaults=defaults)
        elif isinstance(child, dict):
            yield from ((f"{inner}.{key}", _Leaf(child[key])) for key in sorted(child))
        elif child is not None:
            unit = next((unit for unit in _UNITS if attribute.name.endswith(unit)), "")
            yield inner, _Leaf(child, unit)


def _default(attribute: "attrs.Attribute[Any]") -> Any:
    default = attribute.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # typed as a function
        return default.factory()  # type: ignore[union-attr]  # likewise
    return default


def _spoken(path: str, unit: str) -> str:
    for prefix, word in _SPOKEN:
        if path.startswith(prefix):
            path = word + path[len(prefix) :]
            break
    path = path.removesuffix(unit)
    return f"{path}s" if unit == "_millis" else path


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_shown(item) for item in value) or "(none)"
    if isinstance(value, PortMapping):
        return format_port(value)
    if isinstance(value, Mount):
        return format_mount(value)
    if isinstance(value, DiskSpec):
        size = f" of {format_bytes_exact(value.size_bytes)}" if value.size_bytes else ""
        return f"{value.image}{size}{', persistent' if value.persistent else ''}"
    if isinstance(value, AffinityTerm):
        return f"{value.service} ({'required' if value.required else value.weight})"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if len(text) > _SHOWN_MAX_CHARS:
        return f"{text[:_SHOWN_MAX_CHARS]}… ({len(text)} characters)"
    return text
