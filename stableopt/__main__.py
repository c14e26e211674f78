"""The console command, which asks for its packages politely when they are not there."""

from __future__ import annotations

import sys

from stableopt.errors import MissingExtraError


def main() -> None:
    """Run the command line; exit with code 2 if its packages are not installed."""
    try:
        from stableopt.commands.command_line import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"rich", "typer"}:
            raise
        sys.stderr.write(f"Error: {MissingExtraError('the stableopt command', 'cli')}\n")
        raise SystemExit(2) from None
    app(prog_name="stableopt")


if __name__ == "__main__":
    main()
