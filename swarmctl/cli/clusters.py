"""Which cluster a command talks to: contexts by file, by name, or the current one.

Named contexts live in the user's configuration folder (``$SWARMCTL_CONFIG``, else
``$XDG_CONFIG_HOME/swarmctl``, else ``~/.config/swarmctl``), one file each, mode 0600; the file
``current`` holds the name of the one in use.
"""

import os
from pathlib import Path
from typing import Final

import click
from attrs import evolve

from swarmctl.cli.main import Globals
from swarmctl.client import Client
from swarmctl.credentials import Context, parse_context
from swarmctl.folder import atomic_write
from swarmctl.proto.errors import InvalidSpec, NoController, NotFound, SwarmError
from swarmctl.spec.names import did_you_mean

_SUFFIX: Final = ".context"


def config_folder() -> Path:
    """Where named contexts are."""
    explicit = os.environ.get("SWARMCTL_CONFIG")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "swarmctl"


def names() -> list[str]:
    """The named contexts."""
    folder = config_folder()
    return sorted(path.name.removesuffix(_SUFFIX) for path in folder.glob(f"*{_SUFFIX}"))


def current_name() -> str:
    """The name of the context in use; empty when there is none."""
    try:
        return (config_folder() / "current").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def register(context: Context, *, use: bool) -> None:
    """Keep ``context`` under its name, and with ``use`` make it the current one."""
    folder = config_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    atomic_write(folder / f"{context.name}{_SUFFIX}", context.to_json().encode(), 0o600)
    if use:
        use_name(context.name)


def use_name(name: str) -> None:
    """Make a named context the current one.

    Raises:
        NotFound: there is none of that name.
    """
    named(name)
    atomic_write(config_folder() / "current", f"{name}\n".encode(), 0o600)


def unregister(name: str) -> None:
    """Forget a named context.

    Raises:
        NotFound: there is none of that name.
    """
    named(name)
    (config_folder() / f"{name}{_SUFFIX}").unlink()
    if current_name() == name:
        (config_folder() / "current").unlink()


def from_file(path: Path) -> Context:
    """The context in a file.

    Raises:
        InvalidSpec: it cannot be read, or is not a context.
    """
    try:
        return parse_context(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(
            f"the context file cannot be read: {getattr(error, 'strerror', error)}",
            str(path),
            "use the admin.context that the controller wrote into its data folder",
        ) from error


def named(name: str) -> Context:
    """A named context.

    Raises:
        NotFound: there is none of that name.
    """
    path = config_folder() / f"{name}{_SUFFIX}"
    if not path.exists():
        raise NotFound(
            f"no context {name!r}",
            hint=did_you_mean(name, names(), "'swarmctl context ls' lists them"),
        )
    return from_file(path)


def chosen(options: Globals) -> Context:
    """The context that this command uses.

    Raises:
        NoController: none was named and none is current.
        NotFound, InvalidSpec: the one named does not exist, or is damaged.
    """
    given = options.context
    if given:
        if os.sep in given or Path(given).is_file():
            return from_file(Path(given))
        return named(given)
    current = current_name()
    if not current:
        raise NoController(
            "no cluster is chosen",
            hint="start one with 'swarmctl dev --detach', or add one with "
            "'swarmctl context add FILE'",
        )
    return named(current)


def connect(ctx: click.Context) -> Client:
    """A connection to the cluster that this command talks to.

    Raises:
        NoController: nothing answers at its addresses.
    """
    context = chosen(ctx.obj)
    try:
        return Client(context)
    except NoController as error:
        raise NoController(
            error.what,
            error.where or ", ".join(context.addresses),
            f"is the controller of context {context.name!r} running? "
            "('swarmctl dev --detach' starts one on this machine)",
        ) from error


# --- completion of names ---------------------------------------------------------------------

# Somebody holds the Tab key: better no suggestion than one that has to be waited for.
_COMPLETION_TIMEOUT_S: Final = 0.5


def _asked(ctx: click.Context, method: str, key: str) -> list[str]:
    """The names that the cluster gives for ``method``; none when it does not answer at once."""
    given = ctx.find_root().params.get("context") or ""
    try:
        context = chosen(Globals(given))
        timeout_s = _COMPLETION_TIMEOUT_S
        with Client(context, connect_timeout_s=timeout_s, patience_s=0.0) as client:
            rows = client.call(method, {"all": True}, timeout_s=timeout_s)
    except SwarmError:
        return []  # A shell that completes has no place for an error.
    return [str(row[key]) for row in rows]


def _starting_with(text: str, known: list[str]) -> list[str]:
    return [name for name in known if name.startswith(text)]


def complete_services(ctx: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Names of services."""
    return _starting_with(text, _asked(ctx, "service.list", "service"))


def complete_instances(ctx: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Names of instances."""
    return _starting_with(text, _asked(ctx, "instance.list", "instance"))


def complete_nodes(ctx: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Names of nodes."""
    return _starting_with(text, _asked(ctx, "node.list", "node"))


def complete_networks(ctx: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Names of tenant networks."""
    return _starting_with(text, _asked(ctx, "network.list", "network"))


def complete_targets(ctx: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    """Names of services; after a dot those of instances."""
    if "." in text:
        return complete_instances(ctx, parameter, text)
    return complete_services(ctx, parameter, text)


def complete_anything(ctx: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    """Names of services, instances and nodes."""
    return [*complete_targets(ctx, parameter, text), *complete_nodes(ctx, parameter, text)]


def complete_contexts(_ctx: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    """Names of contexts."""
    return _starting_with(text, names())


def renamed(context: Context, name: str) -> Context:
    """The same context under another name."""
    return evolve(context, name=name)
