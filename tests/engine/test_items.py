"""Items of a map run without a `Call` of their own until there is need for one.

Whatever makes an item become a call, users must not be able to tell the difference.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from typing import Any

import pytest
from virtual import advance, virtual_engine, virtually

from asyncflow import (
    Completed,
    Engine,
    MemoryStore,
    SqliteStore,
    TaskFutureList,
    TaskTimeout,
    concurrency,
    flow,
    runtime,
    task,
)

DURABILITIES = ["off", "relaxed", "strict", "full"]


@pytest.fixture(params=DURABILITIES)
async def any_engine(request: pytest.FixtureRequest, path: Any) -> Any:
    async with Engine(SqliteStore(path), durability=request.param, seed=1) as opened:
        yield opened


@task
async def mixed(i: int) -> Any:
    match i % 7:
        case 1:
            await asyncio.sleep(0)
        case 2:
            raise ValueError(str(i))
        case 3:
            return [i]
        case 4:
            return runtime.task_run.name
        case 5:
            return Completed(i)
    return i


def expected(i: int) -> Any:
    return {2: f"ValueError: {i}", 3: [i], 4: f"mixed-{i + 1}"}.get(i % 7, i)


async def test_every_kind_of_item_ends_as_it_would_alone(any_engine: Engine) -> None:
    @flow
    async def main(n: int) -> list[Any]:
        futures = mixed.map(range(n))
        return [await state for state in [_state(f) for f in futures]]

    async def _state(future: Any) -> Any:
        try:
            return await future
        except ValueError as error:
            return f"ValueError: {error}"

    assert await any_engine.run(main, 2000) == [expected(i) for i in range(2000)]


async def test_a_map_is_done_only_when_all_items_are(any_engine: Engine) -> None:
    @task
    async def plain(i: int) -> int:
        return i

    @flow
    async def main(n: int) -> list[int]:
        return await plain.map(range(n))

    assert await any_engine.run(main, 5000) == list(range(5000))
    if any_engine.durability != "off":
        run = (await any_engine.runs(limit=1))[0]
        rows = await any_engine.task_runs(run.id, limit=10_000)
        assert [row.name for row in rows] == [f"plain-{i + 1}" for i in range(5000)]
        assert {row.state.name for row in rows} == {"Completed"}
        assert {row.attempts for row in rows} == {1}
        assert all(r.started_at and r.ended_at and r.started_at <= r.ended_at for r in rows)


async def test_an_item_knows_itself_and_its_log_lines_are_its_own(engine: Engine) -> None:
    logger = logging.getLogger("test.items")
    logger.setLevel(logging.INFO)

    @task
    async def tell(i: int) -> str | None:
        logger.info("item %s", i)
        return runtime.task_run.id

    @flow
    async def main() -> list[str | None]:
        return await tell.map(range(300))

    run = await engine.submit(main)
    ids = await run
    assert ids == [f"{run.id}-{i + 1}" for i in range(300)]
    lines = await engine.logs(run.id, limit=1000)
    assert [(line.message, line.task_run_id) for line in lines] == [
        (f"item {i}", ids[i]) for i in range(300)
    ]


async def test_what_an_item_submits_is_its_child(engine: Engine) -> None:
    @task
    async def leaf(i: int) -> int:
        return i

    @task
    async def parent(i: int) -> Any:
        return leaf.submit(i) if i % 2 else i

    @flow
    async def main() -> list[int]:
        return await parent.map(range(200))

    run = await engine.submit(main)
    assert await run == list(range(200))
    rows = await engine.task_runs(run.id, limit=1000)
    parents = {row.id: row for row in rows if row.task_key == "parent"}
    children = [row for row in rows if row.task_key == "leaf"]
    assert len(children) == 100
    assert {parents[str(row.parent_id)].task_key for row in children} == {"parent"}


async def test_variables_set_in_an_item_stay_in_it(engine: Engine) -> None:
    variable: ContextVar[int] = ContextVar("variable", default=-1)

    @task
    async def set_it(i: int) -> int:
        before = variable.get()
        variable.set(i)
        return before

    @flow
    async def main() -> list[int]:
        return await set_it.map(range(500))

    assert set(await engine.run(main)) == {-1}


async def test_the_future_of_an_item_can_be_had_at_any_time(any_engine: Engine) -> None:
    futures: list[TaskFutureList[int]] = []
    seen: list[bool] = []

    @task
    async def look_back(i: int) -> int:
        if futures and i:
            before = futures[0][i - 1]
            seen.append(before.done() is before.state.is_completed())
        return i

    @flow(max_concurrency=1)
    async def main(n: int) -> list[int]:
        futures.append(look_back.map(range(n)))
        return [await future for future in futures[0]]

    assert await any_engine.run(main, 700) == list(range(700))
    assert all(seen)


async def test_a_run_cancelled_by_an_item_takes_on_no_other(engine: Engine) -> None:
    ran: list[int] = []
    handle: list[Any] = []

    @task
    async def work(i: int) -> int:
        ran.append(i)
        if i == 150:
            handle.append(asyncio.ensure_future(engine.cancel(str(runtime.flow_run.id))))
            await asyncio.Event().wait()
        return i

    @flow
    async def main() -> int:
        return len(await work.map(range(10_000)))

    run = await engine.submit(main)
    state = await run.wait()
    await handle[0]
    assert state.is_cancelled()
    rows = await engine.task_runs(run.id, limit=10_000)
    assert len(rows) == 10_000
    completed = sum(row.state.is_completed() for row in rows)
    cancelled = sum(row.state.is_cancelled() for row in rows)
    assert completed + cancelled == 10_000
    assert completed >= len(ran) - 1


async def test_a_limit_holds_while_items_take_turns_in_one_slot(engine: Engine) -> None:
    now, most = 0, 0

    @task(max_concurrency=3)
    async def counted(i: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        if i % 5 == 0:
            await asyncio.sleep(0)
        now -= 1
        return i

    @flow
    async def main() -> int:
        return sum(await counted.map(range(3000)))

    assert await engine.run(main) == sum(range(3000))
    assert most == 3


async def test_who_has_a_higher_priority_is_not_kept_waiting_by_a_map(engine: Engine) -> None:
    order: list[str] = []

    @task
    async def other() -> None:
        order.append("other")

    @task
    async def item(i: int) -> None:
        order.append("item")
        if i == 10:
            other.submit(priority=5)

    @flow(max_concurrency=1)
    async def main() -> None:
        await item.map(range(400))

    await engine.run(main)
    assert order.index("other") < 20


@virtually
async def test_an_item_that_blocks_past_its_timeout_is_timed_out() -> None:
    @task(timeout_seconds=0.02)
    async def slow(i: int) -> int:
        advance(0.03 if i == 120 else 0.0)
        return i

    @flow
    async def main() -> Any:
        futures = slow.map(range(200))
        with pytest.raises(TaskTimeout):
            await futures[120]
        return [f.state.name for f in futures if f.done()]

    async with virtual_engine() as engine:
        assert "TimedOut" in await engine.run(main)


async def test_an_item_that_holds_a_named_limit_gives_it_back(engine: Engine) -> None:
    @task
    async def hold(i: int) -> int:
        async with concurrency("one", limit=1):
            return i

    @flow
    async def main() -> int:
        return sum(await hold.map(range(300)))

    assert await engine.run(main) == sum(range(300))


async def test_a_map_whose_keys_cannot_be_made_is_refused_at_once(engine: Engine) -> None:
    def key(i: int) -> int:
        return 10 // (5 - i)

    @task(key=key)
    async def keyed(i: int) -> int:
        return i

    @flow
    async def main() -> str:
        with pytest.raises(ZeroDivisionError) as caught:
            keyed.map(range(10))
        return caught.value.__notes__[0]

    assert "item 5" in await engine.run(main)


async def test_a_failed_store_ends_a_map_of_items_with_its_error(path: Any) -> None:
    from asyncflow import StoreError

    store = SqliteStore(path)

    @task
    async def plain(i: int) -> str:
        if i == 3000:
            store._connection.execute("PRAGMA max_page_count = 1")
        return "x" * 2000

    @flow
    async def main() -> int:
        return len(await plain.map(range(20_000)))

    with pytest.raises(StoreError):
        async with Engine(store) as engine:
            await engine.run(main)


@pytest.mark.parametrize("stopped", [1, 600, 1500])
async def test_items_that_completed_are_answered_after_a_stop(
    store: MemoryStore | SqliteStore, stopped: int
) -> None:
    ran: list[int] = []

    @task
    async def item(i: int) -> int:
        ran.append(i)
        if i == stopped and len(ran) <= stopped + 1:
            raise RuntimeError("stop")
        return -i

    @flow
    async def main() -> list[int]:
        return await item.map(range(2000))

    async with Engine(store) as engine:
        run = await engine.submit(main)
        assert (await run.wait()).is_failed()
        before = list(ran)
        again = await engine.resume(run.id)
        assert await again == [-i for i in range(2000)]
        twice = set(before) & set(ran[len(before) :])
        assert twice == {stopped}
        rows = await engine.task_runs(run.id, limit=10_000)
        assert len({row.id for row in rows}) == 2000


async def test_an_item_may_ask_the_engine_for_what_is_on_disk() -> None:
    @task
    async def asks(n: int) -> int:
        await engine.runs()  # which writes what has gathered, in place
        return n

    @flow
    async def main() -> list[int]:
        return await asks.map(range(1500))

    async with Engine(MemoryStore()) as engine:
        run = await engine.submit(main)
        assert await run == list(range(1500))
        assert len(await engine.task_runs(run.id, state="completed", limit=2000)) == 1500
