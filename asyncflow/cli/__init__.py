"""The command line: ``asyncflow``. Each command imports what it needs when it runs."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """The entry point. Errors of asyncflow become one line and an exit code, never a traceback."""
    from asyncflow.cli.commands import cli
    from asyncflow.cli.output import answered

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What the terminal cannot show is spelled out, and stops nothing.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(answered(lambda: cli(standalone_mode=True)))
