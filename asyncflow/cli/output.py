"""How things look in a terminal: times, states, tables, JSON. Control characters never pass."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import datetime
from typing import Any

import click

from asyncflow.errors import AsyncflowError
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

#: What could move the cursor, change the order of letters or break a line; tab and newline aside.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: str) -> str:
    """*text* without what could change what a terminal shows beside it; escapes are shown."""
    return _CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def one_line(text: str, width: int = 100) -> str:
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def label(text: str) -> str:
    """A name, which may be anything, as part of a line."""
    return one_line(text, 80)


def paragraph(text: str) -> str:
    """Text of several lines, of which none looks like a line of ours."""
    return "\n    ".join(clean(text).splitlines())


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


def amount(done: float, total: float | None) -> str:
    """How much of something is done: 3/10 (30 %), or 3."""
    if not total:
        return _number(done)
    return f"{_number(done)}/{_number(total)} ({100 * done / total:.0f} %)"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) and value < 1e15 else f"{value:,.6g}"


def between(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None:
        return ""
    return duration(max(0.0, (end - start).total_seconds()))


def local(moment: datetime | None) -> str:
    """A point in time, in the zone of this machine."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}" if moment is not None else ""


def coloured(type_: StateType, text: str) -> str:
    return click.style(text, fg=COLOURS[type_])


def colours_wanted() -> bool:
    """Whether the user has not asked for none (https://no-color.org)."""
    return not os.environ.get("NO_COLOR")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns; cells may hold colour. On a terminal the last column is cut to fit."""
    all_rows = [list(head), *[list(r) for r in rows]]
    widths = [max(len(click.unstyle(r[i])) for r in all_rows) for i in range(len(head))]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * (len(head) - 1)
        for row in all_rows:
            row[-1] = one_line(row[-1], max(10, room))
        widths[-1] = 0
    lines = []
    for number, row in enumerate(all_rows):
        cells = [c + " " * (w - len(click.unstyle(c))) for c, w in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        lines.append(click.style(line, bold=True) if number == 0 else line)
    return "\n".join(lines)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    out = getattr(sys.stdout, "real", sys.stdout)
    out.write(_as_json(value, indent=2) + "\n")
    out.flush()


def print_json_line(value: Any) -> None:
    """One JSON document on a line of its own."""
    sys.stdout.write(_as_json(value) + "\n")
    sys.stdout.flush()


def _as_json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)
    # Inside of strings only; JSON itself escapes no more than the first 32.
    return re.sub(r"[^\x20-\x7e\n]", lambda m: _json_escape(m.group()), text)


def _json_escape(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if _CONTROL.match(letter) else letter


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return str(value)


def say(text: str = "", *, error: bool = False) -> None:
    click.echo(text, err=error, color=None if colours_wanted() else False)


def fail(text: str) -> int:
    """One clear line on standard error; the exit code for wrong usage."""
    say(f"asyncflow: {one_line(text, 2000)}", error=True)
    return 2


def answered(work: Callable[[], int]) -> int:
    """Do the work of a command, whose exit code it returns; what goes wrong is one line."""
    try:
        return work()
    except (AsyncflowError, ValueError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` has.
        hush(sys.stdout)
        hush(sys.stderr)
        return 0
    except OSError as error:
        say(f"asyncflow: {one_line(error.strerror or str(error))}", error=True)
        hush(sys.stdout)
        return 1


def answered_async(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """`answered`, of work on a loop of its own."""
    import asyncio

    return answered(lambda: asyncio.run(work()))


def hush(stream: Any) -> None:
    """Let go of what is written to a stream from now on: nobody reads it, and it must not fail."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class Unbreakable:
    """A stream that goes on when nobody reads it any more: a run must not fail of that."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self.stream.write(text))
        except BrokenPipeError:
            hush(self.stream)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            hush(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
