"""What is going on, while it goes on: a block that is redrawn on a terminal, lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TextIO

import click

from asyncflow.cli.output import amount, coloured, colours_wanted, duration, label, one_line

if TYPE_CHECKING:
    from asyncflow.engine import Engine
    from asyncflow.run import Batch, Call, Run

#: Seconds between two pictures on a terminal, and between two lines elsewhere.
FRAME, LINE = 0.1, 10.0
#: Seconds over which a rate is measured.
WINDOW = 5.0
#: Tasks that are shown at once; of more, those that are busy.
MOST_TASKS = 20
#: Progresses that are shown at once.
MOST_TOLD = 5
_BAR = 20


class Tally:
    """How many calls of one task there are, and how they ended."""

    __slots__ = ("completed", "failed", "kept", "name", "samples", "stopped", "total")

    def __init__(self, name: str) -> None:
        self.name = name
        self.total = self.completed = self.failed = self.stopped = self.kept = 0
        self.samples: deque[tuple[float, int]] = deque()

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.stopped

    def rate(self, now: float) -> float:
        """Calls that ended per second, over the last few seconds."""
        done = self.ended - self.kept
        samples = self.samples
        samples.append((now, done))
        while len(samples) > 2 and samples[0][0] < now - WINDOW:
            samples.popleft()
        began, before = samples[0]
        return (done - before) / (now - began) if now - began > 0.2 else 0.0


class Tallies:
    """Counts the calls of an engine by task; the machine's `Observer`."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.by_task: dict[str, Tally] = {}

    def made(self, source: Call | Batch, count: int) -> None:
        name = source.spec.name
        tally = self.by_task.get(name)
        if tally is None:
            tally = self.by_task[name] = Tally(name)
        tally.total += count

    def ended(self, call: Call) -> None:
        tally = self.by_task[call.spec.name]
        match call.phase.value:
            case "COMPLETED":
                tally.completed += 1
            case "FAILED":
                tally.failed += 1
            case _:
                tally.stopped += 1
        if call.ended is not None and call.ended < self._began:
            tally.kept += 1

    def completed(self, source: Batch, count: int, before: int) -> None:
        tally = self.by_task[source.spec.name]
        tally.completed += count
        tally.kept += before


class Progress:
    """Shows the runs of an engine on standard error until it is stopped."""

    def __init__(self, engine: Engine, quiet: bool) -> None:
        self._engine = engine
        self._out: TextIO = sys.stderr
        self._live = self._out.isatty() and not quiet
        self._quiet = quiet
        self._began = time.monotonic()
        self._lines = 0
        self._shown = ""
        self._next_line = self._began + LINE
        self._streams: tuple[TextIO, TextIO] | None = None
        self.tallies = Tallies(engine.clock.time())
        engine.machine.observe(self.tallies)

    def start(self) -> None:
        if self._live:
            self._streams = (sys.stdout, sys.stderr)
            if sys.stdout.isatty():
                sys.stdout = _Above(sys.stdout, self)
            sys.stderr = _Above(sys.stderr, self)
        if not self._quiet:
            self._frame()

    def stop(self) -> None:
        if self._streams is not None:
            for above in (sys.stdout, sys.stderr):
                if isinstance(above, _Above):
                    above.finish()
            sys.stdout, sys.stderr = self._streams
            self._streams = None
        self._quiet = True
        if self._live:
            self.erase()
            lines = self._picture(final=True)
            self._out.write("".join(f"{line}\n" for line in lines))
            self._out.flush()

    def _frame(self) -> None:
        if self._quiet:
            return
        if self._live:
            self.draw()
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE
            self._out.write(f"{self.in_a_line()}\n")
            self._out.flush()
        self._engine.loop.call_later(FRAME, self._frame)

    # --- the picture ----------------------------------------------------------------------------

    def erase(self) -> None:
        """Take the picture away, so that something can be written in its place."""
        if self._lines:
            self._out.write(f"\x1b[{self._lines}F\x1b[J")
            self._out.flush()
            self._lines = 0
            self._shown = ""

    def draw(self) -> None:
        lines = self._picture()
        text = "\n".join(lines)
        if text == self._shown:
            return
        start = f"\x1b[{self._lines}F" if self._lines else ""
        body = "".join(f"{line}\x1b[K\n" for line in lines)
        self._out.write(f"{start}{body}\x1b[J")
        self._out.flush()
        self._lines, self._shown = len(lines), text

    def _picture(self, final: bool = False) -> list[str]:
        width, height = shutil.get_terminal_size()
        now = time.monotonic()
        lines = []
        if not final:
            elapsed = duration(now - self._began)
            for run in self._roots()[: max(1, height // 3)]:
                state = coloured(run.phase, run.shown_phase)
                name = click.style(label(run.run_name or run.flow_name), bold=True)
                lines.append(_cut(f"{name}  {state}  {elapsed}", width))
            lines += [_cut(line, width) for line in self._told()[-MOST_TOLD:]]
        counts = self._busy()
        tallies = list(self.tallies.by_task.values())
        room = max(1, min(MOST_TASKS, height - len(lines) - 2))
        if len(tallies) > room and not final:
            tallies.sort(key=lambda t: t.ended == t.total)
            lines.append(f"  ({len(tallies) - room} more tasks)")
            tallies = tallies[:room]
        wide = min(max(24, width // 3), max((len(t.name) for t in tallies), default=0))
        for tally in tallies:
            running, retrying = counts.get(tally.name, (0, 0))
            lines.append(_cut(_row(tally, wide, running, retrying, now, final), width))
        return lines if colours_wanted() else [click.unstyle(line) for line in lines]

    def _told(self) -> list[str]:
        """What flows and tasks tell of their progress themselves, where there is more to come."""
        told = [one for run in self._engine.live.values() for one in self._engine.shown.told(run)]
        lines = []
        for one in told:
            if one.total is None or one.done < one.total:
                line = f"  {label(one.name)}  {amount(one.done, one.total)}"
                lines.append(f"{line}  {one_line(one.message, 60)}".rstrip())
        return lines

    def _roots(self) -> list[Run]:
        return [run for run in self._engine.live.values() if run.parent is None]

    def _busy(self) -> dict[str, tuple[int, int]]:
        """How many calls of each task are running, and wait for a retry."""
        counts: dict[str, tuple[int, int]] = {}
        for call in self._engine.executor.running:
            running, retrying = counts.get(call.spec.name, (0, 0))
            counts[call.spec.name] = (running + 1, retrying)
        for call in self._engine.machine.retrying():
            running, retrying = counts.get(call.spec.name, (0, 0))
            counts[call.spec.name] = (running, retrying + 1)
        return counts

    def in_a_line(self) -> str:
        """All tasks in one plain line."""
        counts = self._busy()
        parts = []
        for tally in self.tallies.by_task.values():
            running, retrying = counts.get(tally.name, (0, 0))
            part = f"{label(tally.name)} {tally.ended:,}/{tally.total:,}"
            more = [f"{n} {what}" for n, what in _told(tally, running, retrying)]
            parts.append(f"{part} ({', '.join(more)})" if more else part)
        if not parts:
            parts = [
                f"{label(run.flow_name)} {run.shown_phase}" for run in self._roots()[:MOST_TASKS]
            ]
        return f"{duration(time.monotonic() - self._began)}: {'; '.join(parts) or 'starting'}"


def _told(tally: Tally, running: int, retrying: int) -> list[tuple[int, str]]:
    numbers = [
        (running, "running"),
        (retrying, "retrying"),
        (tally.failed, "failed"),
        (tally.stopped, "cancelled"),
        (tally.kept, "from before"),
    ]
    return [(n, what) for n, what in numbers if n]


_COLOURS = {"failed": "red", "retrying": "blue", "cancelled": "yellow", "running": "cyan"}


def _row(tally: Tally, wide: int, running: int, retrying: int, now: float, final: bool) -> str:
    share = tally.ended / tally.total if tally.total else 0.0
    filled = round(share * _BAR)
    colour = "red" if tally.failed else "green"
    bar = click.style("━" * filled, fg=colour) + click.style(
        "─" * (_BAR - filled), fg="bright_black"
    )
    parts = [f"  {one_line(tally.name, wide):<{wide}}", bar, f"{tally.ended:,}/{tally.total:,}"]
    parts += [
        click.style(f"{n:,} {what}", fg=_COLOURS.get(what))
        for n, what in _told(tally, running, retrying)
    ]
    rate = tally.rate(now)
    left = tally.total - tally.ended
    if rate and not final and left:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
        parts.append(f"ETA {duration(left / rate)}")
    return "  ".join(parts)


def _cut(line: str, width: int) -> str:
    """A line that does not wrap, which would spoil the redrawing."""
    plain = click.unstyle(line)
    return line if len(plain) < width else plain[: max(1, width - 2)] + "…"


class _Above:
    """A stream whose text appears above the picture."""

    def __init__(self, stream: TextIO, progress: Progress) -> None:
        self._stream = stream
        self._progress = progress
        self._rest = ""

    def write(self, text: str) -> int:
        self._rest += text
        whole, newline, self._rest = self._rest.rpartition("\n")
        if newline:
            self._progress.erase()
            self._stream.write(whole + newline)
            self._stream.flush()
        return len(text)

    def finish(self) -> None:
        """Nothing more will come: a last line that has no end gets one."""
        if self._rest:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
