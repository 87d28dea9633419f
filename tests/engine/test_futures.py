"""Futures and the ways to wait for them: in async code, in sync code, and when a run is resumed."""

from __future__ import annotations

import asyncio
import threading
from collections import UserList, namedtuple
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pydantic
import pytest
from virtual import now, virtual_engine, virtually

from asyncflow import (
    DependencyCycle,
    Engine,
    InvalidOption,
    MemoryStore,
    TaskCancelled,
    TaskFuture,
    TaskFutureList,
    allow_failure,
    as_completed,
    flow,
    resolve,
    task,
    wait,
)
from asyncflow.nested import FutureGroup


@task
async def double(x: int) -> int:
    return 2 * x


@task
async def inverse(x: int) -> float:
    return 1 / x


# --- one future -----------------------------------------------------------------------------------


async def test_a_future_tells_who_it_is(engine: Engine) -> None:
    @flow
    async def main() -> list[str]:
        future = double.submit(1)
        told = [future.task_run_id.removeprefix(future.run.id), future.task_run_name, repr(future)]
        await future
        return [*told, repr(future)]

    assert await engine.run(main) == [
        "-1", "double-1", "<TaskFuture 'double-1' Pending>", "<TaskFuture 'double-1' Completed>"
    ]  # fmt: skip


async def test_a_failed_result_is_returned_when_asked_so(engine: Engine) -> None:
    @flow
    def main() -> list[Any]:
        bad, good = inverse.submit(0), inverse.submit(2)
        return [
            type(bad.result(raise_on_failure=False)).__name__,
            good.result(raise_on_failure=False),
        ]

    assert await engine.run(main) == ["ZeroDivisionError", 0.5]


async def test_a_callback_is_called_when_the_future_is_done_and_when_it_was(engine: Engine) -> None:
    called: list[tuple[str, int, bool]] = []

    def note(future: TaskFuture[int]) -> None:
        called.append(("", future.result(), threading.current_thread() is threading.main_thread()))

    @flow
    async def main() -> None:
        future = double.submit(1)
        future.add_done_callback(note)
        await future
        future.add_done_callback(note)
        for _ in range(3):
            await asyncio.sleep(0)

    await engine.run(main)
    assert called == [("", 2, True)] * 2


async def test_a_future_that_has_ended_cannot_be_cancelled(engine: Engine) -> None:
    @flow
    async def main() -> bool:
        future = double.submit(1)
        await future
        return future.cancel()

    assert await engine.run(main) is False


# --- lists of futures -----------------------------------------------------------------------------


async def test_a_list_of_futures_is_a_sequence(engine: Engine) -> None:
    @flow
    async def main() -> list[Any]:
        futures = double.map(range(5))
        with pytest.raises(IndexError, match="the map has 5 items, there is no item 5"):
            futures[5]
        part = futures[1:4]
        assert isinstance(part, TaskFutureList)
        values = [await part, await futures[-1], await part[0], len(part), len(TaskFutureList())]
        return [*values, repr(futures), await TaskFutureList([*part, *futures])]

    assert await engine.run(main) == [
        [2, 4, 6], 8, 2, 3, 0, "<TaskFutureList of 5>", [2, 4, 6, 0, 2, 4, 6, 8]
    ]  # fmt: skip


async def test_a_list_gives_exceptions_in_the_place_of_values_when_asked_so(engine: Engine) -> None:
    @flow
    def main() -> list[Any]:
        futures = inverse.map([1, 0, 4])
        listed = futures.result(raise_on_failure=False)
        part = futures[1:]
        return [*map(repr, listed), *map(repr, part.result(raise_on_failure=False))]

    bad = "ZeroDivisionError('division by zero')"
    assert await engine.run(main) == ["1.0", bad, "0.25", bad, "0.25"]


async def test_a_list_that_takes_too_long_raises_in_sync_code(engine: Engine) -> None:
    gate = threading.Event()

    @task
    def held(x: int) -> int:
        gate.wait(30)
        return x

    @flow
    def main() -> list[int]:
        futures = held.map([1, 2])
        for listed in (futures, futures[0:2]):
            with pytest.raises(TimeoutError, match=r"did not finish within 0\.01 s"):
                listed.result(timeout=0.01)
        gate.set()
        futures[0:2].wait()
        return futures.result()

    assert await engine.run(main) == [1, 2]


async def test_a_map_over_a_future_works_in_sync_code(engine: Engine) -> None:
    @task
    async def numbers() -> list[int]:
        return [1, 2, 3]

    @flow
    def main() -> list[int]:
        return double.map(numbers.submit()).result()

    assert await engine.run(main) == [2, 4, 6]


async def test_a_state_is_given_for_calls_in_sync_code(engine: Engine) -> None:
    @flow
    def main() -> list[str]:
        one = inverse.submit(0, return_state=True)
        many = inverse.map([1, 0], return_state=True)
        return [one.result().name, *[state.result(timeout=30).name for state in many]]

    assert await engine.run(main) == ["Failed", "Completed", "Failed"]


async def test_a_state_of_what_is_done_is_given_at_once(engine: Engine) -> None:
    @flow
    async def main() -> str:
        future = double.submit(1, return_state=True)
        await future
        return (await future).name

    assert await engine.run(main) == "Completed"


# --- wait -----------------------------------------------------------------------------------------


async def test_wait_takes_lists_in_lists_and_nothing_else(engine: Engine) -> None:
    @flow
    async def main() -> int:
        one, many = double.submit(9), double.map(range(3))
        done, not_done = await wait([one, many, [double.submit(10)], (double.submit(11),)])
        assert not not_done
        assert await wait([]) == (set(), set())
        assert (await wait(many))[0] == set(many)
        with pytest.raises(TypeError, match="5 is not a future: use what submit"):
            await wait([5])
        with pytest.raises(ValueError, match="FIRST_EXCEPTION"):
            await wait([one], return_when="FIRST")  # type: ignore[arg-type] # wrong on purpose
        return len(done)

    assert await engine.run(main) == 6


async def test_wait_ends_at_the_first_exception(engine: Engine) -> None:
    @flow
    async def main() -> list[int]:
        gate = asyncio.Event()

        @task
        async def held(x: int) -> None:
            await gate.wait()
            if x == 0:
                raise ValueError

        ended = [double.submit(1), inverse.submit(0)]
        done, not_done = await wait([*ended, held.submit(1)], return_when="FIRST_EXCEPTION")
        gate.set()
        return [len(done), len(not_done)]

    assert await engine.run(main) == [2, 1]


async def test_a_task_may_wait_and_lends_its_slot_meanwhile(engine: Engine) -> None:
    @task(max_concurrency=1)
    async def both(depth: int) -> list[int]:
        if depth == 0:
            return [0]
        done, _ = await wait([both.submit(depth - 1)])
        first = [await future async for future in as_completed([both.submit(depth - 1, key="b")])]
        streamed = [x async for x in double.stream([depth], max_in_flight=1)]
        return [len(done), len(first), *streamed]

    @flow
    async def main() -> list[int]:
        return await both(2)

    async with asyncio.timeout(30):
        assert await engine.run(main) == [1, 1, 4]


# --- as_completed ---------------------------------------------------------------------------------


async def test_as_completed_of_nothing_gives_nothing(engine: Engine) -> None:
    @flow
    def plain() -> list[Any]:
        return list(as_completed([]))

    @flow
    async def main() -> list[Any]:
        return [future async for future in as_completed([])]

    assert await engine.run(main) == await engine.run(plain) == []


async def test_as_completed_gives_each_future_once(engine: Engine) -> None:
    @flow
    async def main() -> list[int]:
        futures = double.map([1, 2, 3])
        await futures
        both = as_completed([futures, futures[0]])
        first = [await future async for future in both]
        assert [future async for future in both] == []
        return sorted(first)

    assert await engine.run(main) == [2, 4, 6]


@virtually
async def test_as_completed_ends_after_its_timeout() -> None:
    @flow
    async def main() -> list[int]:
        gate = asyncio.Event()

        @task
        async def held() -> None:
            await gate.wait()

        futures = as_completed([double.submit(4), held.submit()], timeout=5)
        first = await anext(futures)
        with pytest.raises(TimeoutError):
            await anext(futures)
        gate.set()
        return [await first, round(now())]

    async with virtual_engine() as engine:
        assert await engine.run(main) == [8, 5]


# --- decisions are replayed -----------------------------------------------------------------------


async def test_what_ended_first_ends_first_again_though_it_must_run_again() -> None:
    slow: list[int] = []
    fail = [True]

    @task(persist_result=False)
    async def work(x: int) -> int:
        for _ in range(30 if x in slow else 0):
            await asyncio.sleep(0)
        return x

    @flow
    async def main() -> list[list[int]]:
        completed = [await f async for f in as_completed(work.map([1, 2, 3]))]
        streamed = [x async for x in work.stream([11, 12, 13])]
        done, _ = await wait(work.map([21, 22]), return_when="FIRST_COMPLETED")
        if fail:
            raise RuntimeError("once")
        return [completed, streamed, sorted([await f for f in done])]

    store = MemoryStore()
    async with Engine(store) as engine:
        slow[:] = [1, 11, 21]
        run = await engine.submit(main)
        assert (await run.wait()).is_failed()
        fail.clear()
        slow[:] = [2, 3, 12, 13, 22]
        assert await (await engine.resume(run.id)) == [[2, 3, 1], [12, 13, 11], [22]]


# --- streams --------------------------------------------------------------------------------------


async def test_an_impossible_stream_is_refused(engine: Engine) -> None:
    @flow
    async def main() -> None:
        for match, source, options in (
            ("on_error='ignore': use 'raise' or 'collect'", [], {"on_error": "ignore"}),
            ("max_in_flight=0: give 1 or more", [], {"max_in_flight": 0}),
        ):
            with pytest.raises(InvalidOption, match=match):
                await anext(double.stream(source, **options))  # type: ignore[arg-type] # wrong on purpose
        with pytest.raises(TypeError, match="5 cannot be streamed from: give an iterable"):
            await anext(double.stream(5))

    await engine.run(main)


async def test_a_stream_stops_at_the_first_failure_and_cancels_the_rest(engine: Engine) -> None:
    closed: list[str] = []

    async def source() -> AsyncIterator[int]:
        try:
            for x in (4, 0, 2, 1):
                yield x
        finally:
            closed.append("source")

    gate = asyncio.Event()

    @task
    async def work(x: int) -> float:
        if x in (2, 1):
            await gate.wait()
        return 1 / x

    @flow
    async def main() -> list[float]:
        values = work.stream(source(), max_in_flight=4)
        first = await anext(values)
        with pytest.raises(ZeroDivisionError):
            await anext(values)
        return [first]

    run = await engine.submit(main)
    assert await run == [0.25]
    assert closed == ["source"]
    states = [row.state.name for row in await engine.task_runs(run.id)]
    assert states == ["Completed", "Failed", "Cancelled", "Cancelled"]


async def test_items_of_a_stream_that_are_known_are_given_at_once() -> None:
    ran: list[int] = []

    @task
    async def work(x: int) -> int:
        ran.append(x)
        return x

    fail = [True]

    @flow
    async def main() -> list[int]:
        values = [x async for x in work.stream(range(5), max_in_flight=2, ordered=True)]
        if fail:
            raise RuntimeError("once")
        return values

    async with Engine(MemoryStore()) as engine:
        run = await engine.submit(main)
        assert (await run.wait()).is_failed()
        fail.clear()
        assert await (await engine.resume(run.id)) == [0, 1, 2, 3, 4]
    assert ran == [0, 1, 2, 3, 4]


# --- futures inside values ------------------------------------------------------------------------


class Pair(NamedTuple):
    a: Any
    b: Any


class Names(list[Any]):
    pass


class Table(dict[str, Any]):
    pass


class Page(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    size: Any
    name: str = "x"


@dataclass
class Box:
    content: Any


@dataclass
class Empty:
    pass


async def test_futures_are_found_in_every_kind_of_container(engine: Engine) -> None:
    @task
    async def show(*values: Any) -> list[Any]:
        return list(values)

    Old = namedtuple("Old", "x")

    @flow
    async def main() -> list[Any]:
        f = double.submit
        bad = inverse.submit(0)
        page = Page.model_construct(size=f(6))
        given = [
            Pair(f(1), 2), Names([f(2)]), Table(a=f(3)), (f(4), {"k": [f(5)]}), page, Box(f(7)),
            Old(f(8)), Empty(), Box(5), object, allow_failure([f(9), bad]),
            {"none": double.map([])}, frozenset({f(10)}), allow_failure(double.map([11])),
        ]  # fmt: skip
        return await show.submit(*given)

    shown = await engine.run(main)
    assert isinstance(shown[10][1], ZeroDivisionError)
    assert [type(value) for value in shown[:3]] == [Pair, Names, Table]
    assert shown[4].size == 12
    shown[4], shown[10] = None, shown[10][:1]
    assert shown[6].x == 16
    assert [*shown[:6], *shown[7:]] == [
        (2, 2), [4], {"a": 6}, (8, {"k": [10]}), None, Box(14), Empty(), Box(5), object, [18],
        {"none": []}, frozenset({20}), [22],
    ]  # fmt: skip


async def test_what_contains_itself_is_refused(engine: Engine) -> None:
    @task
    async def show(value: Any) -> None: ...

    @flow
    async def main() -> None:
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(DependencyCycle, match="contains itself"):
            show.submit(endless)

    await engine.run(main)


async def test_resolve_gives_allowed_failures_and_values(engine: Engine) -> None:
    @flow
    async def main() -> list[Any]:
        got = await resolve([allow_failure(inverse.submit(0)), allow_failure(inverse.submit(2))])
        return [type(got[0]).__name__, got[1]]

    assert await engine.run(main) == ["ZeroDivisionError", 0.5]


def test_a_group_of_futures_must_say_which() -> None:
    with pytest.raises(TypeError, match="abstract"):
        FutureGroup()  # type: ignore[abstract] # wrong on purpose


# --- after the end --------------------------------------------------------------------------------


async def test_a_run_that_has_ended_takes_on_nothing_more(engine: Engine) -> None:
    left: list[Any] = []

    @flow
    async def main() -> None:
        async def later() -> None:
            await gate.wait()
            double.submit(1)

        left.append(asyncio.ensure_future(later()))
        left.append(asyncio.ensure_future(double(2)))
        await left[1]

    gate = asyncio.Event()
    await engine.run(main)
    gate.set()
    with pytest.raises(TaskCancelled, match="has ended and takes on nothing more"):
        await left[0]


async def test_a_run_that_is_being_stopped_takes_on_nothing_more(engine: Engine) -> None:
    told: list[str] = []
    started = asyncio.Event()

    @flow
    async def main() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(TaskCancelled) as caught:
                double.submit(1)
            told.append(str(caught.value))

    run = await engine.submit(main)
    await started.wait()
    assert await run.cancel()
    assert "is being stopped and takes on nothing more" in told[0]


def test_a_user_list_is_no_list_of_futures() -> None:
    with pytest.raises(TypeError, match="is not a future"):
        as_completed([UserList()])
