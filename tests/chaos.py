"""Kills a mixed flow again and again at random points: nothing is lost, nothing repeated.

    python -m tests.chaos --trials 200 [--seed 1]

Each life is a process of its own that recovers what the last one left, starts new runs, and is
killed after a random time: mostly by SIGKILL, sometimes by SIGTERM, sometimes it is only
stopped for a while and must then go on as the owner that it still is. What the flow's tasks do
is written to a file outside of the database. At the end:

* lost: runs that did not end, or ended with a wrong result;
* repeated: tasks that ran again although their completion was on record;
* stuck: lives that did not end when they were let.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from asyncflow import Engine, SqliteStore, as_completed, flow, runtime, send_event, sleep, task
from asyncflow import wait_for_event as expect_event

#: Items of the maps of one run; and what a run gives.
ITEMS = 60
#: Seconds after which a life that should end has not.
PATIENCE = 60.0


def _tell(what: str) -> None:
    with open("work.log", "a") as file:
        file.write(f"{runtime.flow_run.id} {what}\n")


class Flaky(Exception):
    pass


@task(retries=2, retry_delay_seconds=0.001)
async def fetch(x: int) -> int:
    _tell(f"fetch {x}")
    await asyncio.sleep(0.001 * (x % 3))
    if x % 7 == 0 and runtime.task_run.attempt == 1:
        raise Flaky(x)
    return x


@task
def parse(x: int) -> int:
    _tell(f"parse {x}")
    return x + 1


@task
async def quick(x: int) -> int:
    _tell(f"quick {x}")
    return x


@flow
async def part(n: int) -> int:
    await sleep(0.01)
    return sum(await quick.map(range(1000, 1000 + n)))


@flow(max_concurrency=5)
async def mixed(n: int) -> int:
    rows = parse.map(fetch.map(range(n)))
    parts = [part.submit(i) for i in range(3)]
    total = 0
    async for future in as_completed([fetch.submit(1000 + i) for i in range(5)]):
        total += await future
    await send_event("go", 5, runtime.flow_run.id)
    total += await expect_event("go")
    return total + sum(await rows) + sum([await p for p in parts])


def expected(n: int) -> int:
    parts = sum(sum(range(1000, 1000 + i)) for i in range(3))
    return sum(range(1000, 1005)) + 5 + sum(x + 1 for x in range(n)) + parts


async def live(until_done: bool) -> None:
    """One life: recover, keep two runs going, until killed; or until all have ended."""
    async with Engine("chaos.db", max_recoveries=10_000) as engine:
        runs = await engine.recover()
        if not until_done:
            # From here on it may be killed: before, a slow machine might never begin a run.
            runs.append(await engine.submit(mixed, ITEMS))
            print("up", flush=True)
        while not until_done:
            while len([r for r in runs if not r.state.is_final()]) < 2:
                runs.append(await engine.submit(mixed, ITEMS))
            await asyncio.wait(
                [asyncio.ensure_future(r.wait()) for r in runs], return_when="FIRST_COMPLETED"
            )
            runs = [r for r in runs if not r.state.is_final()]
        for run in runs:
            await run.wait()


@dataclass
class Report:
    """What came of it."""

    kills: int = 0
    runs: int = 0
    tasks: int = 0
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    stuck: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.runs} runs, {self.tasks:,} task runs:"
            f" {len(self.lost)} lost, {len(self.repeated)} repeated, {self.stuck} stuck"
        )

    def __bool__(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.repeated or self.stuck)


def _plain(result: bytes | None) -> bytes:
    """A stored number without its check sum."""
    return bytes(result or b"").rpartition(b" ")[2]


class Chaos:
    """A series of lives and deaths in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = Random(seed)
        self.report = Report()
        self._completed: set[str] = set()
        self._read = 0

    def life(self) -> None:
        """One life that is cut off."""
        child = self._start("live")
        assert child.stdout is not None
        if child.stdout.readline() != "up\n":
            raise RuntimeError("a life did not begin: its error is above")
        time.sleep(self.random.uniform(0.0, 0.25))
        kind = self.random.choice(("kill",) * 8 + ("stop", "term"))
        if kind == "stop":
            child.send_signal(signal.SIGSTOP)
            time.sleep(0.05)
            child.send_signal(signal.SIGCONT)
            time.sleep(self.random.uniform(0.0, 0.05))
        child.send_signal(signal.SIGTERM if kind == "term" else signal.SIGKILL)
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.report.stuck += 1
            child.kill()
            child.wait()
        child.stdout.close()
        self.report.kills += 1
        self._check_life()

    def finish(self) -> Report:
        """A last life that ends by itself, and the account."""
        child = self._start("finish")
        try:
            child.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.report.stuck += 1
            child.kill()
            child.communicate()
        self._check_life()
        with sqlite3.connect(self.folder / "chaos.db") as db:
            rows = db.execute(
                "SELECT id, state, result FROM flow_runs WHERE parent IS NULL"
            ).fetchall()
            self.report.tasks = db.execute("SELECT count(*) FROM task_runs").fetchone()[0]
            problems = db.execute("PRAGMA integrity_check").fetchall()
        self.report.runs = len(rows)
        right = str(expected(ITEMS)).encode()
        self.report.lost = [
            f"{run} {state} {result!r}"
            for run, state, result in rows
            if state != "COMPLETED" or _plain(result) != right
        ]
        if problems != [("ok",)]:
            self.report.lost.append(f"the database is damaged: {problems}")
        return self.report

    def _start(self, how: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.chaos", f"--{how}"],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        )

    def _check_life(self) -> None:
        """What this life began must not be on record as completed before it."""
        log = self.folder / "work.log"
        lines = log.read_text().splitlines() if log.exists() else []
        began, self._read = lines[self._read :], len(lines)
        self.report.repeated += [line for line in began if line in self._completed]
        self._completed |= self._on_record()

    def _on_record(self) -> set[str]:
        """Lines of the tasks whose completion is on record, in the form of the log."""
        store = SqliteStore(self.folder / "chaos.db")
        found: set[str] = set()
        with sqlite3.connect(f"file:{store.path}?mode=ro", uri=True) as db:
            rows: list[Any] = db.execute(
                "SELECT r.id, t.task, t.result FROM task_runs t"
                " JOIN flow_runs r ON r.pk = t.id >> 32 WHERE t.state = 'COMPLETED'"
            ).fetchall()
        for run, name, result in rows:
            value = int(_plain(result)) - (name == "parse")
            found.add(f"{run} {name} {value}")
        return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--live", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--finish", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.live or options.finish:
        asyncio.run(live(options.finish))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        chaos = Chaos(Path(folder), options.seed)
        for trial in range(options.trials):
            chaos.life()
            if sys.stderr.isatty() or trial % 20 == 19:
                end = "\r" if sys.stderr.isatty() else "\n"
                print(f"{trial + 1} of {options.trials}", end=end, file=sys.stderr)
        report = chaos.finish()
    print(f"seed {options.seed}: {report}")
    for line in [*report.lost, *report.repeated][:20]:
        print(f"  {line}")
    return 0 if report else 1


__all__ = ["Chaos", "Report"]

if __name__ == "__main__":
    sys.exit(main())
