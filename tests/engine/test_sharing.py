"""Named limits hold for all engines on one store together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from patience import until

from asyncflow import Engine, MemoryStore, QueueTimeout, concurrency, flow, rate_limit, task
from asyncflow.context import ENGINE

NOW: list[int] = []
MOST: list[int] = []
DONE: list[int] = []


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncflow.sharing.CALM", 0.01)
    monkeypatch.setattr("asyncflow.sharing.HURRY", 0.005)
    monkeypatch.setattr("asyncflow.shares.QUANTUM", 0.02)
    for found in (NOW, MOST, DONE):
        found.clear()


async def work(i: int) -> None:
    NOW.append(i)
    MOST.append(len(NOW))
    for _ in range(3):
        await asyncio.sleep(0)
    NOW.remove(i)
    DONE.append(i)


@task(limits={"shared": 1})
async def limited(i: int) -> None:
    await work(i)


@task(tags={"shared"})
async def tagged(i: int) -> None:
    await work(i)


@flow
async def many(first: int, which: str) -> None:
    await {"limited": limited, "tagged": tagged}[which].map(range(first, first + 100))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("which", ["limited", "tagged"])
async def test_two_engines_together_keep_a_limit(path: Path, size: int, which: str) -> None:
    async with Engine(path) as one, Engine(path) as other, asyncio.timeout(30):
        name = "shared" if which == "limited" else "tag:shared"
        await one.set_limit(name, size)
        await other.set_limit(name, size)
        runs = [await one.submit(many, 0, which), await other.submit(many, 1000, which)]
        for run in runs:
            await run
    assert max(MOST) <= size
    assert len(DONE) == 200
    halves = [i >= 1000 for i in DONE]
    assert True in halves[:150], "the second had its turn before the first was through"


@pytest.mark.parametrize("period", [None, 0.01])
async def test_a_shared_limit_is_asked_for_behind_a_limit_of_the_flow(
    path: Path, period: float | None
) -> None:
    async with Engine(path) as engine, asyncio.timeout(30):
        await engine.set_limit("shared", 2, period)
        await engine.run(many.with_options(max_concurrency=3), 0, "limited")
    assert len(DONE) == 100


async def test_a_limit_that_one_engine_sets_holds_for_one_that_is_open(path: Path) -> None:
    async with Engine(path) as one, Engine(path) as other:

        @flow
        async def hold(wait: bool) -> int:
            async with concurrency("db", timeout=None):
                if wait:
                    await release.wait()
            return 1

        release = asyncio.Event()
        first = await one.submit(hold, True)
        second = await other.submit(hold, True)
        await one.set_limit("db", 0)
        await until(lambda: other.named.get("db").whole == 0)
        third = await other.submit(hold, False)
        await asyncio.sleep(0)
        assert not third.state.is_final()
        await one.set_limit("db", None)
        release.set()
        async with asyncio.timeout(10):
            assert [await run for run in (first, second, third)] == [1, 1, 1]


async def test_a_limit_that_was_set_while_an_engine_did_nothing_holds_for_its_next_run(
    path: Path,
) -> None:
    async with Engine(path) as one, Engine(path) as other:
        await one.set_limit("shared", 1)
        await other.run(many, 0, "limited")
        assert max(MOST) == 1
        await one.set_limit("tag:shared", 2)
        await other.run(many, 0, "tagged")
        assert max(MOST[100:]) == 2


async def test_a_limit_that_was_set_by_others_holds_for_code_outside_of_runs(path: Path) -> None:
    async with Engine(path) as one, Engine(path):
        await one.set_limit("db", 1)
        await one.set_limit("api", 1, period=1000)

        async def ask() -> None:
            async with concurrency("db", timeout=0):
                await work(1)

        async with concurrency("db", timeout=0):
            with pytest.raises(QueueTimeout):
                await asyncio.create_task(ask())
        await ask()
        await rate_limit("api")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await rate_limit("api")


async def test_more_of_a_limit_is_there_at_once(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("asyncflow.sharing.CALM", 3600.0)
    async with Engine(path) as engine:
        await engine.set_limit("db", 1)
        async with asyncio.timeout(5), concurrency("db"):
            await engine.set_limit("db", 2)
            async with asyncio.TaskGroup() as group:

                async def second() -> None:
                    async with concurrency("db"):
                        pass

                group.create_task(second())


async def test_while_an_engine_asks_it_takes_no_more_than_it_said_it_uses(path: Path) -> None:
    async with Engine(path) as engine:
        await engine.set_limit("db", 4)
        async with concurrency("db"):
            limit = engine.named.get("db")
            assert limit.size == 4
            assert engine.sharing is not None
            engine.sharing._ask()
            assert limit.size == 1, "the rest may be another's by the time of the answer"
            await engine.writer.do(lambda: None)
            assert limit.size == 4


async def test_one_look_at_a_time_is_taken_for_what_others_ask(path: Path) -> None:
    async with Engine(path) as engine:

        @flow
        async def hold() -> None:
            await release.wait()

        release = asyncio.Event()
        run = await engine.submit(hold)
        engine._poll()
        engine.look_out()  # as the next run does, while the store is being asked
        planned = engine._polling
        await engine.writer.do(lambda: None)
        assert engine._polling is planned
        release.set()
        await run


async def test_who_waits_for_no_time_gets_what_is_free(path: Path) -> None:
    async with Engine(path) as one, Engine(path) as other:

        @flow
        async def at_once(inner: Any = None) -> str:
            try:
                async with concurrency("one", limit=1, timeout=0):
                    if inner is not None:
                        return str(await other.run(at_once))
                    return "in"
            except QueueTimeout:
                return "full"

        assert await one.run(at_once) == "in"
        assert await one.run(at_once.with_options(validate_parameters=False), 1) == "full"


async def test_a_dead_engine_s_units_come_back(path: Path) -> None:
    async with Engine(path) as living:
        dying = Engine(path)
        await dying.open()
        inside = asyncio.Event()

        @flow
        async def hold(for_ever: bool) -> str:
            async with concurrency("one", limit=1):
                inside.set()
                if for_ever:
                    await asyncio.sleep(3600)
            return "in"

        await dying.submit(hold, True)
        await inside.wait()
        run = await living.submit(hold, False)
        assert dying._lock is not None
        dying._lock.drop()  # as the kernel does at the death of a process
        async with asyncio.timeout(10):
            assert await run == "in"
        await dying.aclose()


async def test_a_rate_holds_over_two_engines_and_a_restart(path: Path) -> None:
    period, starts = 0.3, []

    @flow
    async def take(n: int) -> None:
        for _ in range(n):
            await rate_limit("api", limit=4, period=period)
            starts.append(asyncio.get_running_loop().time())

    async with Engine(path) as one, Engine(path) as other, asyncio.timeout(30):
        runs = [await one.submit(take, 6), await other.submit(take, 6)]
        for run in runs:
            await run
    async with Engine(path) as again, asyncio.timeout(30):
        await again.run(take, 6)
    starts.sort()
    assert len(starts) == 18
    windows = [later - first for first, later in zip(starts, starts[4:], strict=False)]
    assert min(windows) >= period - 0.005


async def test_engines_on_one_store_in_memory_keep_limits_and_runs_apart() -> None:
    store = MemoryStore()
    async with Engine(store) as one, asyncio.timeout(30):
        await one.set_limit("shared", 2)
        first = await one.submit(many, 0, "limited")
        async with Engine(store) as other:
            assert await other.recover() == [], "the run has a living owner"
            second = await other.submit(many, 1000, "limited")
            await first
            await second
            assert max(MOST) == 2
            await other.set_limit("db", 1)
            async with concurrency("db"):
                with pytest.raises(QueueTimeout):
                    await asyncio.create_task(_ask(one))
        again = await one.submit(many, 0, "limited")
        await again


async def _ask(engine: Engine) -> None:
    token = ENGINE.set(engine)
    try:
        async with concurrency("db", timeout=0):
            pass
    finally:
        ENGINE.reset(token)


async def test_a_run_of_another_engine_on_one_store_in_memory_is_cancelled_there() -> None:
    store = MemoryStore()
    inside = asyncio.Event()

    @flow
    async def hold() -> None:
        inside.set()
        await asyncio.sleep(3600)

    async with Engine(store) as one, Engine(store) as other, asyncio.timeout(30):
        run = await one.submit(hold)
        await inside.wait()
        assert await other.cancel(run.id)
        assert run.state.is_cancelled()


async def test_a_dead_engine_on_a_store_in_memory_leaves_its_runs_to_others() -> None:
    store = MemoryStore()

    def die() -> None:
        async def begin() -> None:
            await Engine(store).open()

        asyncio.run(begin())

    await asyncio.to_thread(die)
    async with Engine(store) as engine:
        assert not engine.recovery.is_alive(1)
        assert engine.recovery.is_alive(2)
