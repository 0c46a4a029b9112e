"""``python -m swarmctl`` and the ``swarmctl`` executable."""

import sys


def main() -> None:
    """Run the command line; ``--version`` is answered before anything is imported."""
    if sys.argv[1:] == ["--version"]:
        from swarmctl import __version__

        print(f"swarmctl {__version__}")  # noqa: T201 - the one output outside cli/, for speed
        return
    from swarmctl.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
