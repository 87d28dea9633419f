"""Many processes with one deployment: each tick of its schedule begins one run.

    python -m tests.many --ticks 10000 --processes 4

Each process serves the same deployment on one database, by a clock of its own that runs fast and
is ahead of or behind the others. At the end every tick must have one run, and no run two ticks.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from math import sin
from pathlib import Path

from asyncflow import DeploymentSchedule, Engine, Interval, flow
from tests.patience import until

#: Seconds between two ticks, by the clock of the processes.
EVERY = 10.0
#: How much faster than time that clock runs.
FAST = 1000.0
#: Seconds that all of it may take.
LONGEST = 900.0
BEGAN = 1_800_000_000.0


@flow(validate_parameters=False)
async def tick() -> None:
    """What runs at each tick."""


class Fast:
    """A clock that runs fast from a common beginning, now ahead of the others, now behind."""

    def __init__(self, began: float, number: int) -> None:
        self._began, self._number = began, number

    def time(self) -> float:
        passed = time.time() - self._began
        return BEGAN + passed * FAST + 60.0 * sin(passed * (2 + self._number) + self._number)


async def declare(engine: Engine, ticks: int) -> None:
    anchor = datetime.fromtimestamp(BEGAN, UTC)
    last = datetime.fromtimestamp(BEGAN + (ticks - 1) * EVERY, UTC)
    schedule = DeploymentSchedule(Interval(EVERY, anchor=anchor), "ticks", start=anchor, end=last)
    await engine.deploy(
        tick, "many", schedules=[schedule], overlap="allow", catchup="all", catchup_limit=ticks
    )


class Before:
    """A clock before the first tick."""

    def time(self) -> float:
        return BEGAN - 1.0


async def prepare(path: Path, ticks: int) -> None:
    """What is declared later than its ticks would never run them."""
    async with Engine(path, clock=Before(), retention_days=None) as engine:
        await declare(engine, ticks)


async def serve(path: str, ticks: int, began: float, number: int) -> None:
    clock = Fast(began, number)
    async with Engine(path, clock=clock, retention_days=None) as engine:
        await declare(engine, ticks)

        async def all_ran() -> bool:
            decided = (await engine.deployment("many")).ticks
            return sum(decided.values()) >= ticks and not engine.live

        await until(all_ran, within=LONGEST, pause=0.05)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.many")
    parser.add_argument("--ticks", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        path, began, number = options.serve
        asyncio.run(serve(path, options.ticks, float(began), int(number)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return _many(Path(folder) / "state.db", options.ticks, options.processes)


def _many(path: Path, ticks: int, processes: int) -> int:
    asyncio.run(prepare(path, ticks))
    began = time.time() + 2.0
    start = time.monotonic()
    children = [
        subprocess.Popen(
            [
                sys.executable, "-m", "tests.many", "--ticks", str(ticks),
                "--serve", str(path), str(began), str(n),
            ],
            cwd=Path(__file__).parents[1],
        )
        for n in range(processes)
    ]  # fmt: skip
    codes = [child.wait(LONGEST) for child in children]
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT tick, state, run FROM ticks").fetchall()
        runs = db.execute("SELECT id, state FROM flow_runs").fetchall()
    states = Counter(state for _, state, _ in rows)
    fine = (
        codes == [0] * processes
        and len(rows) == ticks
        and {run for _, _, run in rows} == {id_ for id_, _ in runs}
        and len(runs) == ticks
        and {state for _, state in runs} == {"COMPLETED"}
    )
    print(
        f"{len(rows):,} ticks ({dict(states)}), {len(runs):,} runs of {processes}"
        f" processes in {time.monotonic() - start:.1f} s:"
        f" {'each tick one run' if fine else f'BROKEN, exit codes {codes}'}"
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
