"""Maps over futures: their calls are made when the list is there; until then they are one thing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncflow import (
    Engine,
    MemoryStore,
    NotReady,
    TaskCancelled,
    UpstreamFailed,
    allow_failure,
    as_completed,
    flow,
    resolve,
    task,
    unmapped,
    wait,
)


@task
async def numbers(n: int = 3) -> list[int]:
    await asyncio.sleep(0)
    return list(range(n))


@task
async def double(x: int) -> int:
    return x * 2


@task
async def same(x: Any) -> Any:
    return repr(x) if isinstance(x, Exception) else x


@task
async def add(x: int, y: int = 0) -> int:
    return x + y


@task
async def broken(x: Any = 0) -> list[int]:
    await asyncio.sleep(0)
    raise ValueError(f"no {x}")


async def test_it_can_be_awaited_mapped_over_and_passed_on(engine: Engine) -> None:
    @flow
    async def main() -> list[Any]:
        mapped = double.map(numbers.submit())
        return [
            await mapped,
            await double.map(mapped),
            await double.map(double.map(double.map(numbers.submit()))),
            await same.submit(double.map(numbers.submit())),
            await same.submit({"in": [double.map(numbers.submit())]}),
            await add.map(double.map(numbers.submit()), unmapped(10)),
            await add.map(double.map(numbers.submit()), y=(y for y in [1, 2, 3])),
            await add.map([1, 2], add.submit(3)),  # it holds no list: the same for all
            await double.map(double.map([])),
        ]

    assert await engine.run(main) == [
        [0, 2, 4],
        [0, 4, 8],
        [0, 8, 16],
        [0, 2, 4],
        {"in": [[0, 2, 4]]},
        [10, 12, 14],
        [1, 4, 7],
        [4, 5],
        [],
    ]


async def test_it_can_be_waited_for_in_every_way(engine: Engine) -> None:
    @flow
    async def main() -> list[Any]:
        done, rest = await wait(double.map(numbers.submit()))
        first, _ = await wait(
            [double.map(numbers.submit()), hold := double.submit(stop.submit())],  # type: ignore[arg-type] # lists of both kinds
            return_when="FIRST_COMPLETED",
        )
        none, late = await wait(double.map(waits.submit()), timeout=0)
        hold.cancel()
        free.set()
        return [
            len(done),
            len(rest),
            len(first) >= 1 and hold not in first,
            (len(none), len(late)),
            sorted([await f async for f in as_completed(double.map(numbers.submit()))]),
            await resolve({"a": double.map(numbers.submit())}),
            await double.map(numbers.submit(), return_state=True),
        ]

    free = asyncio.Event()

    @task
    async def stop() -> int:
        await free.wait()
        return 1

    @task
    async def waits() -> list[int]:
        await free.wait()
        return []

    *told, states = await engine.run(main)
    assert told == [3, 0, True, (0, 1), [0, 2, 4], {"a": [0, 2, 4]}]
    assert [state.result() for state in states] == [0, 2, 4]


async def test_before_the_list_is_there_it_has_no_length_in_async_code(engine: Engine) -> None:
    @flow
    async def main() -> int:
        mapped = double.map(numbers.submit())
        for ask in (len, list, lambda its: its[0]):
            with pytest.raises(NotReady, match="list for double"):
                ask(mapped)
        await mapped
        return len(mapped) + await mapped[1] + sum(f.result() for f in mapped)

    assert await engine.run(main) == 3 + 2 + 6


async def test_in_sync_code_its_items_are_waited_for(engine: Engine) -> None:
    @flow
    def main() -> list[Any]:
        mapped = double.map(numbers.submit())
        return [
            len(mapped),
            [future.result() for future in mapped],
            double.map(numbers.submit()).result(),
            sorted(f.result() for f in as_completed(double.map(numbers.submit()))),
            [s.result() for s in double.map(numbers.submit(), return_state=True).result()],
        ]

    assert await engine.run(main) == [3, [0, 2, 4], [0, 2, 4], [0, 2, 4], [0, 2, 4]]


async def test_a_flow_does_not_end_before_its_calls_are_made_and_done(engine: Engine) -> None:
    ran: list[int] = []

    @task
    async def note(x: int) -> None:
        ran.append(x)

    @flow
    async def main() -> None:
        note.map(numbers.submit())

    await engine.run(main)
    assert sorted(ran) == [0, 1, 2]


async def test_it_may_be_what_the_flow_returns(engine: Engine) -> None:
    @flow
    async def main() -> Any:
        return double.map(numbers.submit())

    assert await engine.run(main) == [0, 2, 4]


async def test_its_calls_are_recorded_as_downstream_of_the_list(engine: Engine) -> None:
    @flow
    async def main() -> str:
        source = numbers.submit()
        mapped = double.map(source)
        await same.submit(mapped)
        return source.task_run_id

    run = await engine.submit(main)
    source = await run
    told = await engine.task_runs(run.id)
    doubles = [t for t in told if t.task_key == "double" or t.name.startswith("double")]
    assert [t.upstream for t in doubles] == [[source]] * 3
    (last,) = [t for t in told if t.name.startswith("same")]
    assert sorted(last.upstream) == sorted(t.id for t in doubles)


async def test_when_the_list_fails_what_depends_on_it_has_a_failed_upstream(
    engine: Engine,
) -> None:
    @flow
    async def main() -> list[str]:
        mapped = double.map(broken.submit())
        told = []
        for awaited in (mapped, same.submit(mapped), double.map(mapped)):
            with pytest.raises(UpstreamFailed) as caught:
                await awaited
            told.append(str(caught.value.__cause__))
        told.append(await same.submit(allow_failure(mapped)))
        (state,) = [f.state async for f in as_completed(mapped)]
        return [*told, state.name]

    assert await engine.run(main) == [
        *["no 0"] * 3,
        "UpstreamFailed('double.map() did not run: broken-1 did not succeed')",
        "UpstreamFailed",
    ]


async def test_a_failed_list_that_nobody_looks_at_fails_the_flow(engine: Engine) -> None:
    @flow
    async def main() -> None:
        double.map(broken.submit())

    with pytest.raises(ExceptionGroup) as caught:
        await engine.run(main)
    assert [str(e) for e in caught.value.exceptions] == ["no 0"]


async def test_what_is_wrong_with_the_list_is_told_when_it_is_there(engine: Engine) -> None:
    @flow
    async def main() -> None:
        with pytest.raises(ValueError, match="nothing to iterate over"):
            await double.map(add.submit(1))
        with pytest.raises(ValueError, match="differ in length"):
            await add.map(numbers.submit(2), numbers.submit(3))

    await engine.run(main)


async def test_it_ends_with_its_run(engine: Engine) -> None:
    waiting = asyncio.Event()

    @task
    async def never() -> list[int]:
        waiting.set()
        await asyncio.Event().wait()
        return []

    told: list[str] = []

    @flow
    async def main() -> None:
        try:
            await same.submit(double.map(never.submit()))
        except BaseException as error:
            told.append(type(error).__name__)
            raise

    async with asyncio.timeout(10):
        run = await engine.submit(main)
        await waiting.wait()
        await run.cancel()
        assert (await run.wait()).is_cancelled()
    assert told == ["CancelledError"]


async def test_its_upstream_may_be_cancelled(engine: Engine) -> None:
    @task
    async def never() -> list[int]:
        await asyncio.Event().wait()
        return []

    @flow
    async def main() -> str:
        source = never.submit()
        mapped = double.map(source)
        source.cancel()
        with pytest.raises(UpstreamFailed) as caught:
            await mapped
        assert isinstance(caught.value.__cause__, TaskCancelled)
        return "done"

    assert await engine.run(main) == "done"


@pytest.mark.parametrize("last", ["as_completed", "wait"])
async def test_a_resumed_run_repeats_its_decisions(last: str) -> None:
    store, lives, ran = MemoryStore(), [], []

    @task
    async def work(x: int) -> int:
        ran.append(x)
        await asyncio.sleep(0.001 * (3 - x))
        return x

    @flow
    async def main() -> list[int]:
        lives.append(1)
        mapped = work.map(numbers.submit())
        if last == "wait":
            done, _ = await wait(mapped, return_when="FIRST_COMPLETED")
            order = [await f for f in done]
            assert len(order) == 1
        else:
            order = [await f async for f in as_completed(mapped)]
        if len(lives) == 1:
            raise KeyError(str(order))
        return order

    async with Engine(store) as engine:
        run = await engine.submit(main)
        first = await run.wait()
        assert first.is_failed()
        again = await engine.resume(run.id)
        assert f"'{await again}'" == str(first.result(raise_on_failure=False))
    assert ran.count(ran[0]) == 1 or last == "wait"
