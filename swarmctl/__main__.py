"""``python -m swarmctl`` and the ``swarmctl`` executable."""

import sys


def main() -> None:
    """Run the command line; ``--version`` is answered before anything is imported."""
    if sys.argv[1:] == ["--version"]:
        from swarmctl import __version__

        print(f"swarmctl {__version__}")  # noqa: T201 - the one output outside cli/, for speed
        return
    if sys.argv[1:2] == ["guard"] and len(sys.argv) == 3:
        # The agent's helper (agent/guard.py): of the command line it needs nothing.
        from swarmctl.agent.guard import main as guard

        guard(sys.argv[2:])
        return
    from swarmctl.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
