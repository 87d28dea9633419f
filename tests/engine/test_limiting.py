"""Limits: slots, rates, fairness, and that nothing deadlocks."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from virtual import now, virtual_engine, virtually

from asyncflow import (
    BlockingCall,
    ConcurrencyDeadlock,
    Engine,
    InvalidOption,
    MemoryStore,
    QueueTimeout,
    concurrency,
    flow,
    rate_limit,
    tags,
    task,
    wait,
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


async def test_threads_that_wait_for_what_they_hold_themselves_are_told_so(engine: Engine) -> None:
    @task
    def work() -> None:
        with concurrency("one", limit=1), concurrency("one", limit=1):
            pass

    @flow
    async def main() -> None:
        await work.submit()

    with pytest.raises(ConcurrencyDeadlock, match="never come free"):
        await engine.run(main)


@pytest.mark.parametrize("threads", [False, True])
async def test_a_circle_of_waits_between_named_limits_is_broken_and_told(
    engine: Engine, threads: bool
) -> None:
    inside = threading.Barrier(2)
    both = asyncio.Barrier(2)

    @task
    async def work(first: str, second: str) -> None:
        async with concurrency(first, limit=1):
            await both.wait()
            async with concurrency(second, limit=1):
                pass

    @task
    def work_in_thread(first: str, second: str) -> None:
        with concurrency(first, limit=1):
            inside.wait(5)
            with concurrency(second, limit=1):
                pass

    @flow
    async def main() -> list[str]:
        called = work_in_thread if threads else work
        futures = [called.submit("p", "q"), called.submit("q", "p")]
        await wait(futures)
        told = [str(f.state.result(raise_on_failure=False)) for f in futures if f.state.is_failed()]
        assert len(told) == 1
        return told

    async with asyncio.timeout(5):
        told = await engine.run(main)
    assert "holds 1 of 'p' and waits for 'q'" in told[0]
    assert "holds 1 of 'q' and waits for 'p'" in told[0]
    assert not engine.holders
    assert not engine.waiters


async def test_whoever_gives_up_after_a_while_closes_no_circle(engine: Engine) -> None:
    both = asyncio.Barrier(2)

    async def work(first: str, second: str, timeout: float | None) -> str:
        async with concurrency(first, limit=1):
            await both.wait()
            try:
                async with concurrency(second, limit=1, timeout=timeout):
                    return "in"
            except QueueTimeout:
                return "gave up"

    found = await asyncio.gather(work("p", "q", 0.01), work("q", "p", None))
    assert found == ["gave up", "in"]


async def test_one_object_can_be_entered_many_times_at_once(engine: Engine) -> None:
    gauge, db = Gauge(), concurrency("db", limit=3)

    async def work() -> None:
        async with db, gauge:
            pass

    await asyncio.gather(*[work() for _ in range(20)])
    assert gauge.most == 3
    assert engine.named.get("db").used == 0


async def test_waiting_in_the_way_of_threads_on_the_loop_is_refused(engine: Engine) -> None:
    with pytest.raises(BlockingCall, match="write async with"), concurrency("db", limit=1):
        pass
    with pytest.raises(BlockingCall, match="write await"):
        rate_limit("api", limit=1, period=1).wait()


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


@virtually
async def test_a_call_that_waits_for_a_child_takes_no_second_start_of_its_rate() -> None:
    @task
    async def child() -> None:
        await asyncio.sleep(1)

    @task(limits={"api": 1})
    async def parent() -> None:
        await child()

    @flow
    async def main() -> None:
        await parent()

    async with virtual_engine() as engine:
        await engine.set_limit("api", 1, period=1000)
        await engine.run(main)
    assert round(now(), 6) == 1


@virtually
async def test_slots_become_a_rate_and_slots_again_for_those_who_wait() -> None:
    gauge, starts = Gauge(), []

    @task(limits={"api": 1})
    async def work(i: int) -> None:
        starts.append(now())
        async with gauge:
            await asyncio.sleep(1)

    @flow(max_concurrency=50)
    async def main() -> None:
        await work.map(range(100))

    async with virtual_engine() as engine:
        await engine.set_limit("api", 4)
        run = await engine.submit(main)
        await asyncio.sleep(0.5)
        assert len(starts) == 4
        await engine.set_limit("api", 2, period=10)
        await asyncio.sleep(0)
        assert len(starts) == 6, "a rate counts starts, not what is held"
        await asyncio.sleep(40)
        assert len(starts) == 14
        await engine.set_limit("api", 2, period=1)
        await asyncio.sleep(0.25)
        await engine.set_limit("api", 3)
        gauge.most = gauge.now
        await run
    assert gauge.most == 3
    assert engine.named.get("api").used == 0


@virtually
async def test_what_is_set_for_a_rate_is_the_size_of_each_key() -> None:
    starts: dict[str, list[float]] = {"a": [], "b": []}

    async def use(key: str) -> None:
        await rate_limit("api", key=key)
        starts[key].append(now())

    async with virtual_engine() as engine:
        await engine.set_limit("api", 2, period=10)
        await asyncio.gather(*[use(key) for key in "ab" for _ in range(4)])
        assert starts == {"a": [0, 0, 10, 10], "b": [0, 0, 10, 10]}
        await engine.set_limit("api", None)
        await asyncio.gather(*[use(key) for key in "ab" for _ in range(10)])
        assert now() == 10
        await engine.set_limit("api", 2, period=10)
        with pytest.raises(InvalidOption, match="never be had"):
            await rate_limit("api", occupy=3)


@pytest.mark.parametrize(
    "given",
    [
        ("x", -1),
        ("x", True),
        ("x", float("nan")),
        ("x", 5, 0),
        ("x", 5, "day"),
        ("x", 5, None, 3),
        ("x", 5, 1, 0),
        ("x", 0.5, 1),
        ("", 5),
        (None, 5),
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused(
    engine: Engine, given: tuple[str, float, float]
) -> None:
    await engine.set_limit("x", 7)
    with pytest.raises(InvalidOption):
        await engine.set_limit(*given)
    assert engine.named.get("x").whole == 7


async def test_a_task_that_needs_more_than_there_is_waits_and_that_is_said(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    @task(limits={"db": 5})
    async def work() -> int:
        return 1

    @flow
    async def main() -> int:
        return await work()

    await engine.set_limit("db", 3)
    with caplog.at_level(logging.WARNING):
        run = await engine.submit(main)
        for _ in range(5):
            await asyncio.sleep(0)
    assert "needs 5 of the limit 'db', of which there are 3" in caplog.text
    await engine.set_limit("db", 5)
    assert await run == 1


@task(max_concurrency=1)
async def one_by_one(x: int) -> int:
    await asyncio.sleep(0)
    return x


@flow
async def in_turn(n: int) -> int:
    futures = [one_by_one.submit(i) for i in range(n)]
    return sum([await future for future in futures]) + sum(await one_by_one.map(range(n)))


async def test_engines_that_run_the_same_task_keep_its_calls_apart() -> None:
    async with Engine(MemoryStore()) as one, Engine(MemoryStore()) as other:
        first, second = await one.submit(in_turn, 30), await other.submit(in_turn, 20)
        assert [await first, await second] == [2 * 435, 2 * 190]
        assert len(await one.task_runs(first.id)) == 60
        assert len(await other.task_runs(second.id)) == 40


def test_engines_in_threads_that_run_the_same_task_keep_its_calls_apart() -> None:
    found: list[int] = []

    async def main() -> None:
        async with Engine(MemoryStore()) as engine, asyncio.timeout(30):
            found.extend([await engine.run(in_turn, 30) for _ in range(5)])

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [870] * 15
