"""The command line's root: global options, lazy commands, and errors to exit codes.

Start-up is felt (DESIGN 5), so a command's module is imported only when that command runs, and
nothing here imports trio, rich or a driver.
"""

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import click
from attrs import define

from swarmctl import __version__
from swarmctl.proto.errors import InternalError, SwarmError, sole_error

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Each command, the module it lives in, and its one-line help (so that --help imports nothing).
_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "dev": ("daemons", "Controller and agent on this machine, zero configuration"),
    "controller": ("daemons", "Run a controller"),
    "agent": ("daemons", "Run an agent on this node"),
    "run": ("run", "Start a service from an image"),
    "apply": ("apply", "Make the services of a stack file true"),
    "diff": ("apply", "Show what apply would change"),
    "ps": ("listing", "List instances"),
    "service": ("services", "Services: ls, inspect, rollback"),
    "scale": ("services", "Set the number of copies"),
    "stop": ("services", "Stop services or instances"),
    "start": ("services", "Start what was stopped"),
    "restart": ("services", "Restart services or instances"),
    "rm": ("services", "Remove services or instances"),
    "logs": ("streams", "Show the output of instances"),
    "exec": ("streams", "Run a command in an instance"),
    "console": ("streams", "Attach to a VM's serial console"),
    "inspect": ("listing", "Show all about a service, instance or node"),
    "explain": ("listing", "Why it is there, or why it is nowhere"),
    "trace": ("traces", "The launch as a timeline, and the path of its packets"),
    "wait": ("services", "Wait until services run, stop or are gone"),
    "node": ("nodes", "Nodes: ls, inspect, drain, cordon, label, rm"),
    "network": ("networks", "Tenant networks: ls, create, inspect, rm"),
    "token": ("nodes", "Join tokens: create, ls, revoke"),
    "store": ("stores", "The store: backup, restore, migrate, release"),
    "context": ("contexts", "Ways into clusters: ls, use, add, rm"),
    "bench": ("bench", "Measure launches at scale, on simulated nodes"),
    "version": ("listing", "Versions of this command and of the controller"),
    "completion": ("completions", "Print a shell's completion script"),
}

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
# What a shell reports for a program that ended by Ctrl-C (128 + SIGINT).
EXIT_INTERRUPTED: Final = 130


@define
class Globals:
    """The options of every command; they may stand before it or after it."""

    context: str = ""
    debug: bool = False


def _late_options() -> list[click.Parameter]:
    """``--context`` and ``--debug`` once more, for who writes them after the command."""

    def keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.find_root().obj, str(parameter.name), value)

    return [
        click.Option(["--context"], hidden=True, expose_value=False, callback=keep),
        click.Option(["--debug"], is_flag=True, hidden=True, expose_value=False, callback=keep),
    ]


def _with_late_options(command: click.Command) -> click.Command:
    known = {parameter.name for parameter in command.params}
    if "debug" not in known:
        command.params.extend(_late_options())
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _with_late_options(child)
    return command


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, and whose typos get a suggestion."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the table."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"swarmctl.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = module.COMMANDS[cmd_name]
        return _with_late_options(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a suggestion for a command that does not exist."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in _COMMANDS:
            near = get_close_matches(name, _COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Commands by the table, again without importing them; else options, as click's."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(name, help=help_)
            for name, (_, help_) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="swarmctl", message="%(prog)s %(version)s")
@click.option(
    "--context",
    default="",
    envvar="SWARMCTL_CONTEXT",
    metavar="FILE|NAME",
    help="The cluster to talk to: a context file, or a name from 'swarmctl context ls'.",
)
@click.option("--debug", is_flag=True, envvar="SWARMCTL_DEBUG", help="Show tracebacks.")
@click.pass_context
def root(ctx: click.Context, context: str, debug: bool) -> None:
    """Launch containers and virtual machines on a fleet, and keep them running."""
    ctx.obj.context = context
    ctx.obj.debug = ctx.obj.debug or debug


def run(arguments: Sequence[str]) -> int:
    """Run one command; the exit code."""
    settings = Globals()
    try:
        result: Any = root.main(
            list(arguments), prog_name="swarmctl", standalone_mode=False, obj=settings
        )
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.Abort:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseExceptionGroup as group:
        return _report(sole_error(group), settings.debug)
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback reaches a user
        return _report(error, settings.debug)
    return result if isinstance(result, int) else 0


# A file or a pipe that the machine refuses is not our defect.
_MACHINE_FAULTS: Final = {errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def _report(error: BaseException, debug: bool) -> int:
    """Print an error the way every error is printed: what, where, what to do."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
        from swarmctl.folder import storage_fault

        error = storage_fault(error, error.filename or "output", "cannot be read or written")
    if not isinstance(error, SwarmError):
        error = InternalError(
            f"{type(error).__name__}: {error}",
            hint="this is a defect in swarmctl; --debug shows where",
        )
    print(describe(error), file=sys.stderr)
    return error.exit_code


def describe(error: SwarmError) -> str:
    """An error as people read it, in one line and at most one more for what to do."""
    where = f"{error.where}: " if error.where else ""
    hint = f"\n  {error.hint}" if error.hint else ""
    return f"error: {where}{error.what}{hint}"
