"""How things look in a terminal: times, states, tables, JSON. Control characters never pass."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click

from asyncflow.states import StateType

COLOURS = {
    StateType.COMPLETED: "green",
    StateType.FAILED: "red",
    StateType.CRASHED: "red",
    StateType.CANCELLED: "yellow",
    StateType.CANCELLING: "yellow",
    StateType.PAUSED: "magenta",
    StateType.RUNNING: "cyan",
    StateType.PENDING: "bright_black",
    StateType.SCHEDULED: "blue",
}

MARKS = {
    StateType.COMPLETED: "✓",
    StateType.FAILED: "✗",
    StateType.CRASHED: "✗",
    StateType.CANCELLED: "-",
    StateType.CANCELLING: "-",
    StateType.PAUSED: "‖",
    StateType.RUNNING: "▶",
    StateType.PENDING: "·",
    StateType.SCHEDULED: "◷",
}

#: Exit code by the type of the state that a run ended in.
EXITS = {
    StateType.COMPLETED: 0,
    StateType.FAILED: 1,
    StateType.CRASHED: 3,
    StateType.CANCELLED: 4,
    StateType.PAUSED: 130,
}

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """*text* without what could move the cursor or forge a line; escapes are shown."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", text)


def one_line(text: str, width: int = 100) -> str:
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def duration(seconds: float | None) -> str:
    """A duration for people: 840 ms, 12.3 s, 4 m 05 s, 2 h 10 m."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} m {seconds % 60:02.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} m"


def between(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None:
        return ""
    return duration(max(0.0, (end - start).total_seconds()))


def local(moment: datetime | None) -> str:
    """A point in time, in the zone of this machine."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment is not None else ""


def coloured(type_: StateType, text: str) -> str:
    return click.style(text, fg=COLOURS[type_])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns; cells may hold colour."""
    all_rows = [list(head), *[list(r) for r in rows]]
    widths = [max(len(click.unstyle(r[i])) for r in all_rows) for i in range(len(head))]
    lines = []
    for number, row in enumerate(all_rows):
        cells = [c + " " * (w - len(click.unstyle(c))) for c, w in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        lines.append(click.style(line, bold=True) if number == 0 else line)
    return "\n".join(lines)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    out = getattr(sys.stdout, "real", sys.stdout)
    json.dump(value, out, indent=2, ensure_ascii=False, default=_plain)
    out.write("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)


def say(text: str = "", *, error: bool = False) -> None:
    click.echo(text, err=error)


def fail(text: str) -> int:
    """One clear line on standard error; the exit code for wrong usage."""
    say(f"asyncflow: {one_line(text, 2000)}", error=True)
    return 2
