"""Limits: slots, rates, fairness, and that nothing deadlocks."""

from __future__ import annotations

import asyncio

import pytest
from virtual import now, virtual_engine, virtually

from asyncflow import (
    ConcurrencyDeadlock,
    Engine,
    MemoryStore,
    QueueTimeout,
    concurrency,
    flow,
    rate_limit,
    tags,
    task,
)


class Gauge:
    """How many are inside at once."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __aenter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)

    async def __aexit__(self, *_: object) -> None:
        self.now -= 1


@pytest.mark.parametrize("where", ["engine", "flow", "task", "tag", "named"])
async def test_no_limit_is_exceeded(where: str) -> None:
    gauge = Gauge()
    n = 3

    @task(
        tags={"t"} if where == "tag" else None,
        max_concurrency=n if where == "task" else None,
        limits={"db": 1} if where == "named" else None,
    )
    async def work(x: int) -> None:
        async with gauge:
            await asyncio.sleep(0)

    @flow(max_concurrency=n if where == "flow" else None)
    async def main() -> None:
        await asyncio.gather(work.map(range(40))._all(), *[work(i) for i in range(100, 120)])

    async with Engine(MemoryStore(), max_concurrency=n if where == "engine" else 1000) as engine:
        await engine.set_limit("tag:t", n)
        await engine.set_limit("db", n)
        await engine.run(main)
    assert gauge.most == n


async def test_recursion_of_depth_ten_and_fan_out_completes_under_a_limit_of_one() -> None:
    @task
    async def node(depth: int, path: str) -> int:
        if depth == 0:
            return 1
        width = 10 if depth > 7 else 1
        parts = await asyncio.gather(*[node(depth - 1, f"{path}/{i}") for i in range(width)])
        return sum(parts)

    @flow(max_concurrency=1)
    async def main() -> int:
        return await node(10, "")

    async with Engine(MemoryStore(), max_concurrency=1) as engine:
        async with asyncio.timeout(60):
            assert await engine.run(main) == 1000


async def test_nested_subflows_complete_under_a_limit_of_one() -> None:
    @task
    async def leaf(x: int) -> int:
        return x

    @flow
    async def inner(x: int) -> int:
        return sum(await leaf.map([x, x + 1]))

    @task
    async def middle(x: int) -> int:
        return await inner(x)

    @flow
    async def outer() -> int:
        return sum(await asyncio.gather(middle(1), middle(2), inner(3)))

    async with Engine(MemoryStore(), max_concurrency=1) as engine:
        async with asyncio.timeout(30):
            assert await engine.run(outer) == 3 + 5 + 7


async def test_named_concurrency_is_held_inside_the_block(engine: Engine) -> None:
    gauge = Gauge()

    @task
    async def work(x: int) -> None:
        async with concurrency("db", limit=2), gauge:
            pass

    @flow
    async def main() -> None:
        await work.map(range(20))

    await engine.run(main)
    assert gauge.most == 2


@virtually
async def test_a_limit_that_is_full_for_too_long_raises() -> None:
    @flow
    async def main() -> None:
        inside, gate = asyncio.Event(), asyncio.Event()

        @task
        async def hold() -> None:
            async with concurrency("one", limit=1):
                inside.set()
                await gate.wait()

        @task
        async def ask() -> None:
            async with concurrency("one", limit=1, timeout=0.01):
                pass

        future = hold.submit()
        await inside.wait()
        with pytest.raises(QueueTimeout):
            await ask()
        assert round(now(), 6) == 0.01
        gate.set()
        await future

    async with virtual_engine() as engine:
        await engine.run(main)


async def test_code_that_waits_for_what_it_holds_itself_is_told_so(engine: Engine) -> None:
    @flow
    async def main() -> None:
        async with concurrency("one", limit=1), concurrency("one", limit=1):
            pass

    with pytest.raises(ConcurrencyDeadlock, match="never come free"):
        await engine.run(main)


async def test_a_limit_of_zero_pauses_and_none_lifts(engine: Engine) -> None:
    ran = []

    @task(limits=["gate"])
    async def work(x: int) -> None:
        ran.append(x)

    @flow
    async def main() -> None:
        futures = work.map(range(3))
        for _ in range(5):
            await asyncio.sleep(0)
        assert ran == []
        await engine.set_limit("gate", None)
        await futures

    await engine.set_limit("gate", 0)
    async with asyncio.timeout(5):
        await engine.run(main)
    assert ran == [0, 1, 2]


@virtually
async def test_a_rate_limit_spaces_starts() -> None:
    starts = []

    @task
    async def work(x: int) -> None:
        await rate_limit("api", limit=5, period=0.05)
        starts.append(now())

    @flow
    async def main() -> None:
        await work.map(range(15))

    async with virtual_engine() as engine:
        await engine.run(main)
    assert [round(start / 0.05, 6) for start in starts] == [0] * 5 + [1] * 5 + [2] * 5


async def test_a_higher_priority_goes_first(engine: Engine) -> None:
    order = []

    @flow
    async def main() -> None:
        gate = asyncio.Event()

        @task(max_concurrency=1)
        async def work(x: int) -> None:
            if x == 0:
                await gate.wait()
            order.append(x)

        futures = [work.submit(0)]
        await asyncio.sleep(0)
        futures += [work.submit(i, priority=i) for i in (1, 3, 2)]
        gate.set()
        for future in futures:
            await future

    await engine.run(main)
    assert order == [0, 3, 2, 1]


async def test_runs_take_turns() -> None:
    order = []

    @task
    async def work(run: str, i: int) -> None:
        order.append(run)
        await asyncio.sleep(0)

    @flow
    async def main(name: str) -> None:
        await work.map([name] * 10, range(10))

    async with Engine(MemoryStore(), max_concurrency=1) as engine:
        runs = [await engine.submit(main, n) for n in "ab"]
        for run in runs:
            await run
    both = "".join(order)
    assert "ababab" in both


async def test_tags_of_the_context_count(engine: Engine) -> None:
    gauge = Gauge()

    @task
    async def work(x: int) -> None:
        async with gauge:
            pass

    @flow
    async def main() -> None:
        with tags("slow"):
            futures = work.map(range(10))
        await futures

    await engine.set_limit("tag:slow", 1)
    await engine.run(main)
    assert gauge.most == 1


async def test_a_slot_is_not_held_while_waiting_for_a_child(engine: Engine) -> None:
    @task(max_concurrency=1)
    async def outer(depth: int) -> int:
        return 0 if depth == 0 else 1 + await outer(depth - 1)

    @flow
    async def main() -> int:
        return await outer(5)

    async with asyncio.timeout(5):
        assert await engine.run(main) == 5
