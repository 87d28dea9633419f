"""What a commit costs: in place or through the writer's thread, alone or with many rows.

``python -m benchmarks.store_write`` gives the figures that stand in `asyncflow.writer`: task
rows as the journal writes them, each new, into a file of the folder that is given (a disk, not
a file system in memory, for a figure that means something).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from asyncflow import SqliteStore
from asyncflow.store.base import ResultKind, RunRow, TaskRow, Writes
from asyncflow.writer import Writer
from benchmarks.report import Document, machine, machine_line, markdown_of

ROWS = (1, 10, 100, 1000)
#: PRAGMA synchronous of the levels of durability that wait for a commit.
SYNC = {"strict": "NORMAL", "full": "FULL"}
#: Left to itself the kernel puts the loop and the writer's thread on one core or on two, for
#: seconds on end, and what the way through the thread costs depends on which: so each is asked.
CORES = ("one core", "two cores")
LOOPS = ("idle", "busy")


@dataclass
class Cell:
    """One way to write: microseconds a commit, one number a round (the median of its commits)."""

    durability: str
    place: str
    rows: int
    busy: bool = False  #: whether the loop has other things to do meanwhile
    cores: tuple[int, int] | None = None  #: for the loop and the thread; None: as it comes
    us: list[float] = field(default_factory=list)


def places() -> list[Cell]:
    """Where a commit can be made, here: pinned only where the system can do that."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    through: list[tuple[str, bool, tuple[int, int] | None]]
    if len(cores) < 2:
        through = [(f"thread, {loop} loop", loop == "busy", None) for loop in LOOPS]
    else:
        pairs = dict(zip(CORES, ((cores[0], cores[0]), (cores[0], cores[1])), strict=True))
        through = [
            (f"thread, {loop} loop, {name}", loop == "busy", pair)
            for loop in LOOPS
            for name, pair in pairs.items()
        ]
    return [Cell("", "in place", 0), *(Cell("", n, 0, busy, pair) for n, busy, pair in through)]


class Target:
    """A store with one run in it, and the writer in front of it."""

    def __init__(self, folder: Path, durability: str) -> None:
        self.store = SqliteStore(folder / f"{durability}.db")
        self.store.open(durability)
        row, _ = self.store.create_run(_run_row(), [])
        self._run = row.pk
        self._seq = count(1)
        self.writer = Writer(f"bench-{durability}", asyncio.get_running_loop(), here=True)

    def writes(self, rows: int) -> Writes:
        """What one transaction of the journal holds: new rows, and the fence of their run."""
        now = time.time()
        tasks = [_task_row(self._run, next(self._seq), now) for _ in range(rows)]
        return Writes(tasks=tasks, fences={self._run: 1})

    async def aclose(self) -> None:
        await self.writer.aclose()
        self.store.close()


def _run_row() -> RunRow:
    nothing: dict[str, Any] = dict.fromkeys(RunRow._fields)
    return RunRow(
        **nothing
        | {
            "pk": 0,
            "id": "bench",
            "flow_name": "bench",
            "flow_ref": "{}",
            "name": "bench",
            "root": 0,
            "state": "RUNNING",
            "state_name": "Running",
            "message": "",
            "state_at": time.time(),
            "parameters": b"{}",
            "tags": (),
            "created_at": time.time(),
            "epoch": 1,
            "attempt": 1,
            "recoveries": 0,
            "result_kind": ResultKind.NONE,
            "ended_by": (),
        }
    )


def _task_row(run: int, seq: int, now: float) -> TaskRow:
    return TaskRow(
        run=run,
        seq=seq,
        identity=b"12345678\x00[%d]" % seq,
        task="nothing",
        name=None,
        parent=None,
        state="COMPLETED",
        state_name=None,
        message="",
        attempt=1,
        failures=0,
        interruptions=0,
        created_at=now,
        started_at=now,
        ended_at=now,
        retry_at=None,
        upstream=(),
        tags=(),
        result_kind=ResultKind.JSON,
        result=b"%d" % seq,
        error=None,
    )


async def _in_place(target: Target, writes: Writes) -> None:
    assert target.writer.here(lambda: target.store.write(writes, wait=False))


async def _on_the_thread(target: Target, writes: Writes) -> None:
    assert await target.writer.do(lambda: target.store.write(writes))


@asynccontextmanager
async def _busy_loop() -> AsyncIterator[None]:
    """The loop always has something else to do, as it has while tasks run."""

    async def turn() -> None:
        while True:  # noqa: ASYNC110 - a busy loop is the point
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    try:
        yield
    finally:
        turning.cancel()
        with suppress(asyncio.CancelledError):
            await turning


@asynccontextmanager
async def _pinned(target: Target, cores: tuple[int, int] | None) -> AsyncIterator[None]:
    """The loop's thread and the writer's, each on its core."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    # Of the thread that asks, not of the process.
    os.sched_setaffinity(0, {cores[0]})
    await target.writer.do(lambda: os.sched_setaffinity(0, {cores[1]}))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        await target.writer.do(lambda: os.sched_setaffinity(0, before))


async def _commits(cell: Cell, target: Target, commits: int) -> float:
    """The median of so many commits, microseconds."""
    write: Callable[[Target, Writes], Awaitable[None]]
    write = _in_place if cell.place == "in place" else _on_the_thread
    batches = [target.writes(cell.rows) for _ in range(commits)]
    took = []
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_pinned(target, cell.cores))
        if cell.busy:
            await stack.enter_async_context(_busy_loop())
        for batch in batches:
            began = time.perf_counter()
            await write(target, batch)
            took.append((time.perf_counter() - began) * 1e6)
    # Off the clock, as the engine does it: on the thread, between transactions.
    await target.writer.do(target.store.checkpoint)
    return statistics.median(took)


async def measure(folder: Path, rounds: int, commits: int) -> list[Cell]:
    """All cells, one after another in each round, so that a slow minute slows all of them."""
    cells = [
        replace(place, durability=durability, rows=rows, us=[])
        for durability in SYNC
        for place in places()
        for rows in ROWS
    ]
    targets = {durability: Target(folder, durability) for durability in SYNC}
    try:
        for cell in cells:  # unmeasured: statements are prepared, files have grown
            await _commits(cell, targets[cell.durability], 3)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for cell in cells:
                few = max(5, commits // cell.rows)
                cell.us.append(await _commits(cell, targets[cell.durability], few))
    finally:
        for target in targets.values():
            await target.aclose()
    return cells


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store_write", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commits", type=int, default=500, help="of one row, in each round")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: temporary)")
    parser.add_argument("--json", type=Path, help="write all samples here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cells = asyncio.run(measure(Path(folder), options.rounds, options.commits))
    document: Document = {
        "kind": "commits",
        "machine": machine(),
        "results": [
            {
                "synchronous": SYNC[c.durability],
                "where": c.place,
                "rows": c.rows,
                "us a commit": c.us,
            }
            for c in cells
        ],
    }
    print(machine_line(document["machine"]))
    print(markdown_of(document))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
