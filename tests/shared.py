"""Several processes on one database: none gets an error, and none starves.

    python -m tests.shared --seconds 60 --rate 500

Two engines run flows that together record so many task runs a second; meanwhile one process
lists runs by the command line again and again, and one polls lists as a dashboard does. Any
error in any of them (`database is locked`, say) is a failure. Printed are, of each process:
how often it wrote or asked, the longest that it waited for one write or answer, and how the
engines compare (the one with the fewest writes to the one with the most).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from asyncflow import Engine, flow, task

#: Seconds between two bursts of an engine.
BEAT = 0.1
#: Seconds that processes may take to begin and to end.
PATIENCE = 60.0


@task
async def work(n: int) -> int:
    await asyncio.sleep(0)
    return n


@flow
async def burst(size: int) -> int:
    """Half of them together, half one after another: each of those is a transaction."""
    mapped = work.map(range(size // 2))
    for n in range(size // 2, size):
        began = perf_counter()
        await work(n)
        WAITS.append(perf_counter() - began)
    return len(await mapped)


#: How long each of those took, of this process.
WAITS: list[float] = []


@dataclass
class Account:
    """What one process did."""

    role: str
    count: int = 0
    longest: float = 0.0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def note(self, began: float) -> None:
        self.count += 1
        self.longest = max(self.longest, perf_counter() - began)

    def rate(self) -> float:
        return self.count / self.seconds if self.seconds else 0.0


async def write(account: Account, seconds: float, rate: float) -> None:
    """Record task runs at a rate."""
    async with Engine("shared.db") as engine:
        begin = perf_counter()
        ends = begin + seconds
        done = 0
        while (now := perf_counter()) < ends:
            size = int((now - begin + BEAT) * rate) - done
            if size > 0:
                await engine.run(burst, size)
                done += size
            await asyncio.sleep(max(0.0, now + BEAT - perf_counter()))
        account.seconds = perf_counter() - begin
    account.count, account.longest = done, max(WAITS, default=0.0)


async def poll(account: Account, seconds: float) -> None:
    """Ask what a dashboard asks."""
    async with Engine("shared.db") as engine:
        begin = perf_counter()
        while perf_counter() < begin + seconds:
            began = perf_counter()
            runs = await engine.runs(limit=50)
            await engine.runs(state="running", flow="burst")
            await engine.events(limit=50)
            for run in runs[:3]:
                await engine.task_runs(run.id, limit=50)
                await engine.logs(run.id)
            account.note(began)
            await asyncio.sleep(0.05)
        account.seconds = perf_counter() - begin


def ask(account: Account, seconds: float) -> None:
    """List runs by the command line."""
    begin = perf_counter()
    while perf_counter() < begin + seconds:
        began = perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "asyncflow", "runs", "ls"],
            env={**os.environ, "ASYNCFLOW_DATABASE": "shared.db"},
            capture_output=True,
            text=True,
        )
        account.note(began)
        if ended.returncode or ended.stderr:
            account.errors.append(f"exit code {ended.returncode}: {ended.stderr}")
    account.seconds = perf_counter() - begin


def play(role: str, seconds: float, rate: float) -> None:
    """One process: what it did is its last line."""
    account = Account(role)
    try:
        match role:
            case "engine":
                asyncio.run(write(account, seconds, rate))
            case "lists":
                asyncio.run(poll(account, seconds))
            case _:
                ask(account, seconds)
    except Exception as error:
        account.errors.append(repr(error))
    print(json.dumps(vars(account)))


@dataclass
class Report:
    """What came of it."""

    accounts: list[Account]
    problems: list[str]

    @property
    def engines(self) -> list[Account]:
        return [account for account in self.accounts if account.role == "engine"]

    @property
    def starvation(self) -> float:
        """Writes of the engine with the fewest, as a part of those of the one with the most."""
        rates = [account.rate() for account in self.engines]
        return min(rates) / max(rates) if max(rates) else 0.0

    def __bool__(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{'process':<12}{'a second':>10}{'in all':>10}{'longest wait':>15}"]
        lines += [
            f"{a.role:<12}{a.rate():>10,.1f}{a.count:>10,}{a.longest * 1000:>12,.0f} ms"
            for a in self.accounts
        ]
        lines.append(
            f"{sum(a.rate() for a in self.engines):,.0f} task runs a second by"
            f" {len(self.engines)} engines, fewest to most {self.starvation:.2f};"
            f" {len(self.problems)} errors"
        )
        return "\n".join([*lines, *self.problems[:20]])


def share(folder: Path, seconds: float, rate: float, engines: int = 2) -> Report:
    """Have them all at it for so long."""
    roles = ["engine"] * engines + ["lists", "runs ls"]
    root = Path(__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, role, f"--seconds={seconds}", f"--rate={rate / engines}"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in roles
    ]
    accounts, problems = [], []
    for role, process in zip(roles, processes, strict=True):
        try:
            out, err = process.communicate(timeout=seconds + PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            problems.append(f"{role}: it does not end")
        account = Account(**json.loads(out.splitlines()[-1])) if out else Account(role)
        accounts.append(account)
        problems += [f"{role}: {error}" for error in account.errors]
        problems += [f"{role}: {line}" for line in err.splitlines()]
    told = sum(account.count for account in accounts if account.role == "engine")
    with sqlite3.connect(folder / "shared.db") as db:
        (found,) = db.execute("SELECT count(*) FROM task_runs WHERE state = 'COMPLETED'").fetchone()
        if found != told:
            problems.append(f"{told:,} task runs were acknowledged, and {found:,} are there")
        if db.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            problems.append("the database is damaged")
    db.close()
    return Report(accounts, problems)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.shared")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=500.0, help="task runs a second, in all")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("role", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role:
        play(options.role, options.seconds, options.rate)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        report = share(Path(folder), options.seconds, options.rate, options.engines)
    print(report)
    return 0 if report else 1


if __name__ == "__main__":
    sys.exit(main())
