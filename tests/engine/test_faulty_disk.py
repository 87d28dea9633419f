"""A disk that fails below a run: it ends Completed all the same, and nothing runs too often."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from asyncflow import RunInterrupted, SqliteStore, StoreError, flow, journal, task
from asyncflow.store import sqlite
from asyncflow.store.sqlite import SqliteReader
from asyncflow.testing import VirtualEngine, run
from tests.faultyfiles import Disk, lay_out, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

INLINE_LIMIT = 1000
#: How often each task runs when nothing fails.
ONCE = Counter(first=1, double=3, large=1, last=1)
RESULT = 1 + 6 + 5000


class Work:
    """A flow of six calls, which tells what ran and what was handed to whoever awaited it."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()
        work = self

        @task
        async def first() -> int:
            work.ran["first"] += 1
            return 1

        @task
        async def double(n: int) -> int:
            work.ran["double"] += 1
            await asyncio.sleep(n)
            return 2 * n

        @task
        async def large() -> str:
            work.ran["large"] += 1
            return "x" * 5000

        @task
        async def last(*parts: int) -> int:
            work.ran["last"] += 1
            return sum(parts)

        @flow
        async def main() -> int:
            one = await first()
            work.acknowledged["first"] += 1
            doubles = double.map(range(3))
            text = await large()
            work.acknowledged["large"] += 1
            found = await doubles
            work.acknowledged["double"] += 3
            total = await last(one, *found, len(text))
            work.acknowledged["last"] += 1
            return total

        self.main = main


class Reader(SqliteReader):
    """Reads in place: virtual time does not wait for a thread."""

    async def _all(self, sql: str, values: Any) -> list[Any]:
        return self._store._connection.execute(sql, values).fetchall()


class Store(SqliteStore):
    def reader(self) -> Reader:
        return Reader(self)


def store_in(folder: Path) -> Store:
    return Store(folder / "state.db", inline_limit=INLINE_LIMIT, busy_timeout=0.1)


def completed(folder: Path) -> Counter[str]:
    """The completions that are on disk."""
    store = store_in(folder)
    store.open("relaxed")
    found = store._connection.execute(
        "SELECT task, count(*) FROM task_runs WHERE state = 'COMPLETED' GROUP BY task"
    ).fetchall()
    assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()
    return Counter({name.rpartition(".")[2]: count for name, count in found})


class Trial:
    """A run during which the k-th operation of the disk fails, and its second life."""

    def __init__(self, folder: Path, k: int, durability: str) -> None:
        self.folder = folder
        self.durability = durability
        self.work = Work()
        shutil.copytree(folder / "start", folder / f"{k}")
        self.disk = Disk(folder / f"{k}", fails=k, full=k % 2 == 0)
        self.dead: Path = folder / f"{k}-died"
        self.at_death = Counter[str](), Counter[str]()

    def go(self) -> bool:
        """Whether something failed."""
        work = self.work
        with self.disk:
            result = run(self.life(self.disk.folder))
            if result is None:
                acknowledged = work.acknowledged
                self.second(self.disk.folder, acknowledged)
                # And as if the process had died when it was told of the failure.
                with Disk(self.dead):
                    work.ran, acknowledged = self.at_death
                    self.second(self.dead, acknowledged)
            else:
                assert result == RESULT
                assert work.ran == ONCE
        return bool(self.disk.failed)

    def second(self, folder: Path, acknowledged: Counter[str]) -> None:
        done = completed(folder)
        assert acknowledged <= done, "it was acknowledged and is not on disk"
        self.work.ran = Counter()
        assert run(self.life(folder)) == RESULT
        assert self.work.ran <= ONCE - done, f"{self.work.ran} ran again, {done} was on disk"

    async def life(self, folder: Path) -> int | None:
        """The result of the run; None if the storage failed, whose state then is kept."""
        async with asyncio.timeout(1000):
            try:
                async with VirtualEngine(store_in(folder), durability=self.durability) as engine:
                    try:
                        failed = len(self.disk.failed)
                        await engine.recover()
                        result = await (await engine.submit(self.work.main, idempotency_key="k"))
                        await asyncio.sleep(1)  # until a checkpoint that was begun is over
                        assert engine.broken == (len(self.disk.failed) > failed), "swallowed"
                        return result
                    except (StoreError, RunInterrupted):
                        self.die()
                        return None
            except StoreError:
                self.die()
                return None

    def die(self) -> None:
        assert self.disk.failed, "it fails though the disk does not"
        assert not self.dead.exists(), "it fails again though the disk does not"
        self.at_death = self.work.ran.copy(), self.work.acknowledged.copy()
        lay_out(self.disk.found(keep=True), self.dead)


@pytest.mark.parametrize("durability", ["full", "strict"])
def test_whichever_operation_of_the_disk_fails_the_run_is_completed_by_its_next_life(
    tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(sqlite, "WAL_PAGES", 0)
    (tmp_path / "start").mkdir()
    completed(tmp_path / "start")  # makes it: that its making fails is tried elsewhere
    for k in itertools.count(1):
        trial = Trial(tmp_path, k, durability)
        try:
            if not trial.go():
                break
        except BaseException as error:
            error.add_note(f"k={k}: {trial.disk.failed}")
            raise
    assert k > 60
