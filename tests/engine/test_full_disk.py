"""The disk is full for a while: who waits is told, and nothing that was acknowledged runs again."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from asyncflow import Engine, StoreError, flow, task

RAN: Counter[int] = Counter()
ACKNOWLEDGED: list[int] = []
ROUNDS = 6


@task
async def large(n: int) -> str:
    RAN[n] += 1
    return "x" * 20_000


@flow
async def part(n: int) -> int:
    return sum(map(len, await large.map(range(n, n + 5))))


@flow
async def main() -> int:
    total = 0
    for n in range(ROUNDS):
        total += sum(map(len, await large.map(range(n * 20, n * 20 + 10))))
        ACKNOWLEDGED.extend(range(n * 20, n * 20 + 10))
        if n == 2:
            await fill_up()
        total += await part(n * 20 + 10)
        ACKNOWLEDGED.extend(range(n * 20 + 10, n * 20 + 15))
    return total


async def fill_up() -> None:
    """From now on the database can grow no more, but by a little."""
    if FULL:
        engine, room = FULL.pop()
        db = engine.store._connection  # type: ignore[attr-defined] # it is a SqliteStore
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        await engine.writer.do(lambda: db.execute(f"PRAGMA max_page_count = {pages + room}"))


FULL: list[tuple[Engine, int]] = []


@pytest.mark.parametrize("durability", ["full", "strict", "relaxed"])
@pytest.mark.parametrize("room", [0, 3, 60])
@pytest.mark.parametrize("verb", ["recover", "resume"])
async def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(
    path: Path, durability: str, room: int, verb: str
) -> None:
    RAN.clear()
    ACKNOWLEDGED.clear()
    async with asyncio.timeout(60):
        async with Engine(path, durability=durability) as engine:
            FULL[:] = [(engine, room)]
            run = await engine.submit(main)
            with pytest.raises(StoreError, match="the disk is full: free some space"):
                await run
            assert run.state.name == "Interrupted"
            told = list(ACKNOWLEDGED)
            with pytest.raises(StoreError, match="the disk is full"):
                await engine.submit(main)
            with pytest.raises(StoreError, match="the disk is full"):
                await engine.recover()
            assert told == ACKNOWLEDGED
        assert len(told) < ROUNDS * 15
        async with Engine(path, durability=durability) as engine:
            ran = RAN.copy()
            if verb == "recover":
                (again,) = await engine.recover()
            else:
                again = await engine.resume(run.id)
            assert again.id == run.id
            assert await again == ROUNDS * 15 * 20_000
    assert set(RAN) == {n for n in range(ROUNDS * 20) if n % 20 < 15}
    if durability != "relaxed":
        assert [n for n in told if RAN[n] > 1] == []
    assert max(RAN.values()) <= 2
    assert RAN.total() - ran.total() < ROUNDS * 15
