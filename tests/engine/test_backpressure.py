"""Workers that are ahead of the disk wait for it, and leave it the time that it needs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from patience import until

from asyncflow import Engine, MemoryStore, SqliteStore, StoreError, flow, task
from asyncflow.executor import TURN
from asyncflow.journal import Journal

ITEMS = 600


class HeldStore(SqliteStore):
    """Its writes wait on their thread until they may go on; in place it writes nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may = threading.Event()
        self.may.set()
        self.fails = False

    def write(self, *args: Any, **options: Any) -> bool:
        if options.get("wait") is False:
            return False  # the disk is not quick
        assert self.may.wait(30), "nobody lets it go on"
        if self.fails:
            raise StoreError("the disk failed")
        return super().write(*args, **options)


@task
async def one(n: int) -> int:
    await asyncio.sleep(0)
    return n


@flow(max_concurrency=20)
async def many() -> int:
    return sum(await one.map(range(ITEMS)))


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _held(asked: list[bool]) -> None:
    """Until a worker has been told that the journal is behind."""
    await until(lambda: any(asked), pause=0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What workers that asked whether the journal is behind were told."""
    told: list[bool] = []
    behind: Any = Journal.behind

    def ask(self: Journal) -> bool:
        told.append(behind.fget(self))
        return told[-1]

    monkeypatch.setattr("asyncflow.journal.BEHIND", 50)
    monkeypatch.setattr(Journal, "behind", property(ask))
    return told


async def test_workers_do_not_ask_again_and_again_whether_the_disk_has_caught_up(
    tmp_path: Path, asked: list[bool]
) -> None:
    store = HeldStore(tmp_path / "state.db")
    async with Engine(store) as engine:
        run = await engine.submit(many)
        store.may.clear()
        await _held(asked)
        await _turns(50)  # whoever is under way comes to its end
        before = len(asked)
        await _turns(500)
        assert len(asked) == before
        assert len(engine.machine.changed) < ITEMS, "nothing more is begun"
        store.may.set()
        assert await run == sum(range(ITEMS))
        assert len(await engine.task_runs(run.id, limit=1000)) == ITEMS


async def test_workers_that_wait_for_the_disk_are_let_go_when_it_fails(
    tmp_path: Path, asked: list[bool]
) -> None:
    store = HeldStore(tmp_path / "state.db")
    async with Engine(store) as engine:
        run = await engine.submit(many)
        store.may.clear()
        await _held(asked)
        store.fails = True
        store.may.set()
        with pytest.raises(StoreError, match="the disk failed"):
            await run


async def test_a_run_whose_workers_wait_for_the_disk_can_be_cancelled(
    tmp_path: Path, asked: list[bool]
) -> None:
    store = HeldStore(tmp_path / "state.db")
    async with Engine(store) as engine:
        run = await engine.submit(many)
        store.may.clear()
        await _held(asked)
        cancelling = asyncio.ensure_future(run.cancel())
        await _turns(50)
        store.may.set()
        assert await cancelling
        assert run.state.is_cancelled()


async def test_a_long_replay_lets_others_have_their_turns() -> None:
    turns, over, seen = 0, asyncio.Event(), []

    async def beat() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            await asyncio.sleep(0)

    @flow
    async def long() -> None:
        before = turns
        for n in range(5 * TURN):
            await one(n)
        seen.append(turns - before)
        if len(seen) == 1:
            raise RuntimeError("go on later")

    async with Engine(MemoryStore()) as engine:
        run = await engine.submit(long)
        await run.wait()
        beating = asyncio.ensure_future(beat())
        again = await engine.resume(run.id)
        await again
        over.set()
        await beating
    assert seen[1] == 5
