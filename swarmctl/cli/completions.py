"""``completion``: the script that makes a shell complete commands, options and names."""

import os
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

from swarmctl.proto.errors import InvalidSpec

SHELLS: Final = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print the completion script of a shell (yours, unless one is named).

    \b
    bash:  eval "$(swarmctl completion bash)"      in ~/.bashrc
    zsh:   eval "$(swarmctl completion zsh)"       in ~/.zshrc
    fish:  swarmctl completion fish | source       in ~/.config/fish/config.fish
    """  # noqa: D301 - click's mark for text that is not to be wrapped
    shell = shell or Path(os.environ.get("SHELL", "")).name
    found = get_completion_class(shell) if shell in SHELLS else None
    if found is None:
        raise InvalidSpec(
            "which shell is yours is not known", "SHELL", f"name one: {', '.join(SHELLS)}"
        )
    root = ctx.find_root().command
    print(found(root, {}, "swarmctl", "_SWARMCTL_COMPLETE").source())


COMMANDS: Final[dict[str, click.Command]] = {"completion": completion}
