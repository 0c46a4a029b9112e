"""The stack file: the Compose Specification's, with VMs and placement added to it.

Reading is a pipeline of pure steps, each in a module of its own:

1. :mod:`yamltree`: text to a tree with lines, within bounds;
2. :mod:`expansion`: the variables in its values;
3. :mod:`merge`: several files as one;
4. :mod:`services` and what it calls (:mod:`containers`, :mod:`machines`, :mod:`deploys`,
   :mod:`resources`, :mod:`placements`): the tree to specs.

The first error ends it, and says file, line, field, what is wrong and what to do.
What is understood but has no effect becomes a warning with the same parts: nothing is dropped
silently.

No file is opened and no environment is read here; the caller gives both.
"""

import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from typing import Final

from attrs import frozen

from swarmctl.net.model import SecurityGroup
from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.containers import Surroundings
from swarmctl.spec.expansion import expand_tree
from swarmctl.spec.merge import merge
from swarmctl.spec.models import ServiceSpec
from swarmctl.spec.mounts import check_volume_name
from swarmctl.spec.names import check_stack_name, tidy_name
from swarmctl.spec.networks import Declared, read_networks
from swarmctl.spec.reading import Field, Warning_, Warnings
from swarmctl.spec.security import read_groups
from swarmctl.spec.services import read_service
from swarmctl.spec.unsupported import NOT_YET, VOLUME
from swarmctl.spec.yamltree import parse_yaml

__all__ = ["Stack", "Warning_", "load_stack"]

# Files of one stack; a base, an override and one an environment are three.
FILES_MAX: Final = 32


@frozen
class Stack:
    """What a stack file asks for, in the order of the file.

    ``externals`` are networks that are made elsewhere: a tenant's, or the nodes' own.
    """

    name: str
    services: tuple[ServiceSpec, ...]
    warnings: tuple[Warning_, ...] = ()
    networks: tuple[Declared, ...] = ()
    groups: tuple[SecurityGroup, ...] = ()
    externals: tuple[str, ...] = ()


def load_stack(
    files: Sequence[tuple[str, str]],
    environment: Mapping[str, str],
    read_file: Callable[[str], str],
    *,
    folder: str = "",
    default_name: str = "",
    tenant_networks: Collection[str] = (),
) -> Stack:
    """Read a stack from the texts of its files.

    Args:
        files: (name, text) of each file, later ones laid over earlier ones. Names are shown in
            messages, so give them as the user wrote them.
        environment: for ``${VARIABLES}``, for variables that are passed on by name, and for
            ``HOME``, ``COMPOSE_PROJECT_NAME`` and ``COMPOSE_PROFILES``.
        read_file: returns the text of an environment file, or raises OSError.
        folder: the absolute path of the first file's folder, where relative paths begin; without
            it they begin at the folder in the first file's name.
        default_name: the stack's name when neither the file nor the environment has one; without
            it, the folder's name.
        tenant_networks: the tenant networks that there are; an external network of such a name
            is that, any other one of the nodes' own.

    Raises:
        InvalidSpec: the first thing that is wrong: where, what, and what to do.
    """
    warnings = Warnings()
    root = _read_files(files, environment, warnings)
    fields = root.fields(
        (
            "services",
            "networks",
            "security_groups",
            "volumes",
            "name",
            "version",
            "include",
        ),
        {"configs": NOT_YET, "secrets": NOT_YET, "models": NOT_YET},
    )
    if "include" in fields:
        raise fields["include"].fail("not supported", "give the other file with another -f")
    folder = folder or posixpath.dirname(files[0][0])
    stack = _read_name(fields, environment, default_name or posixpath.basename(folder))
    groups = read_groups(fields.get("security_groups"), stack)
    networks = read_networks(fields.get("networks"), stack, groups, frozenset(tenant_networks))
    surroundings = Surroundings(
        stack=stack,
        environment=environment,
        read_file=read_file,
        folder=folder,
        networks=networks.names,
        volumes=_read_volumes(fields.get("volumes"), stack),
        warnings=warnings,
    )
    return Stack(
        stack,
        _read_services(root, fields, surroundings),
        warnings.collected(),
        networks.declared,
        tuple(groups.values()),
        networks.externals,
    )


def _read_files(
    files: Sequence[tuple[str, str]], environment: Mapping[str, str], warnings: Warnings
) -> Field:
    """The files as one tree, with its variables expanded."""
    if not files:
        raise InvalidSpec("no stack file was given", hint="name one with -f")
    if len(files) > FILES_MAX:
        raise InvalidSpec(f"{len(files)} stack files are too many", hint=f"at most {FILES_MAX}")
    trees = []
    for name, text in files:
        tree = parse_yaml(name, text)
        if not Field(tree, "", tree.mark, warnings).is_map:
            raise InvalidSpec(
                "a stack file is a map", where=str(tree.mark), hint='begin with "services:"'
            )
        trees.append(expand_tree(tree, environment, warnings))
    merged = reduce(merge, trees)
    return Field(merged, "", merged.mark, warnings)


def _read_name(fields: dict[str, Field], environment: Mapping[str, str], otherwise: str) -> str:
    """The project's name, with compose's precedence."""
    if given := environment.get("COMPOSE_PROJECT_NAME"):
        try:
            return check_stack_name(given)
        except InvalidSpec as error:
            raise InvalidSpec(error.what, "COMPOSE_PROJECT_NAME", error.hint) from error
    if "name" in fields:
        return fields["name"].parse(check_stack_name)
    return tidy_name(otherwise) or "default"


def _read_services(
    root: Field, fields: dict[str, Field], surroundings: Surroundings
) -> tuple[ServiceSpec, ...]:
    if "services" not in fields or not (listed := fields["services"].entries()):
        raise fields.get("services", root).fail(
            "the file has no services", 'add "services:" with at least one'
        )
    specs = (read_service(name, field, surroundings) for name, field in listed.items())
    return tuple(spec for spec in specs if spec is not None)


def _read_volumes(field: Field | None, stack: str) -> dict[str, str]:
    """Name in the file to name on the node: the stack's own begin with its name."""
    found: dict[str, str] = {}
    for name, entry in (field.entries() if field else {}).items():
        options = entry.fields(("name", "external"), VOLUME)
        external, outer = _read_external(name, options)
        if "name" in options:
            outer = options["name"].parse(check_volume_name)
        elif not external:
            outer = f"{stack}_{name}"
        try:
            found[name] = check_volume_name(outer)
        except InvalidSpec as error:
            raise entry.fail(error.what, error.hint) from error
    return found


def _read_external(name: str, options: dict[str, Field]) -> tuple[bool, str]:
    """Whether something is made outside, and its name there (``external: {name: …}`` is old)."""
    if "external" not in options:
        return False, name
    external = options["external"]
    if not external.is_map:
        return external.boolean(), name
    inner = external.fields(("name",))
    return True, inner["name"].text() if "name" in inner else name
