"""The command line: ``asyncflow``. Each command imports what it needs when it runs."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point. Errors of asyncflow become one line and an exit code, never a traceback."""
    from asyncflow.cli.commands import cli
    from asyncflow.errors import AsyncflowError

    try:
        cli(standalone_mode=True)
    except AsyncflowError as error:
        print(f"asyncflow: {error}", file=sys.stderr)  # noqa: T201 - it is what a CLI does
        sys.exit(2)
