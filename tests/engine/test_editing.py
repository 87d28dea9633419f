"""Forks in which recorded results are replaced: what is answered, and what runs again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest

from asyncflow import (
    Engine,
    InvalidParameters,
    MemoryStore,
    NotSerializable,
    RunInterrupted,
    SqliteStore,
    UnknownTask,
    allow_failure,
    as_completed,
    flow,
    task,
)

Store = MemoryStore | SqliteStore

RAN: list[Any] = []
FAIL: set[int] = set()


@pytest.fixture(autouse=True)
def _clean() -> None:
    RAN.clear()
    FAIL.clear()


@task
async def fetch(i: int) -> int:
    RAN.append(("fetch", i))
    if i in FAIL:
        raise ValueError(f"no {i}")
    return i * 10


@task
async def double(x: int) -> int:
    RAN.append(("double", x))
    return x * 2


@task
async def total(values: list[int]) -> int:
    RAN.append(("total", values))
    return sum(values)


@task
async def numbers(n: int) -> list[int]:
    RAN.append(("numbers", n))
    return list(range(n))


@task
async def outer(i: int) -> int:
    RAN.append(("outer", i))
    return await fetch(i) + await fetch(i + 1)


@flow
async def by_value() -> int:
    a, b = await fetch(1), await fetch(2)
    return await total([await double(a), await double(b)])


@flow
async def by_future() -> int:
    a, b = fetch.submit(1), fetch.submit(2)
    c, d = double.submit(a), double.submit(b)
    return await total.submit([c, d])


@flow
async def of_map() -> int:
    found = fetch.map([1, 2, 3])
    return await total.submit(found)


@flow
async def of_late_map() -> int:
    found = fetch.map(numbers.submit(3))
    return await total.submit(found)


@flow
async def nested() -> int:
    a, b = outer.submit(1), outer.submit(5)
    return await total.submit([a, b])


@flow
async def inner(x: int) -> int:
    RAN.append(("inner", x))
    return await double(x)


@flow
async def with_child() -> int:
    return await inner.submit(fetch.submit(1)) + await inner.submit(fetch.submit(2))


async def forked(
    store: Store, main: Any, results: dict[str, Any], **options: Any
) -> tuple[Any, list[Any]]:
    """What a fork gives, and what has run for it; a fork of that runs nothing more."""
    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run.wait()
        RAN.clear()
        FAIL.clear()
        fork = await engine.fork(run.id, results=results, **options)
        value, ran = await fork, RAN[:]
        RAN.clear()
        assert await (await engine.fork(fork.id)) == value
        assert RAN == []
        return value, ran


async def test_what_was_given_another_value_runs_again(store: Store) -> None:
    value, ran = await forked(store, by_value, {"fetch-1": 7})
    assert value == 14 + 40
    assert ran == [("double", 7), ("total", [14, 40])]


async def test_what_was_given_the_future_runs_again(store: Store) -> None:
    value, ran = await forked(store, by_future, {"fetch-1": 7})
    assert value == 14 + 40
    assert ran == [("double", 7), ("total", [14, 40])]


async def test_what_was_given_the_futures_of_a_map_runs_again(store: Store) -> None:
    value, ran = await forked(store, of_map, {"fetch-2": 7})
    assert value == 10 + 7 + 30
    assert ran == [("total", [10, 7, 30])]


async def test_an_item_of_a_map_over_a_future_can_be_edited(store: Store) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(of_late_map)
        await run
        rows = await engine.task_runs(run.id, task="fetch")
        RAN.clear()
        fork = await engine.fork(run.id, results={rows[1].id: 7})
        assert await fork == 0 + 7 + 20
        assert RAN == [("total", [0, 7, 20])]


async def test_the_list_that_a_map_goes_over_can_be_edited(store: Store) -> None:
    value, ran = await forked(store, of_late_map, {"numbers": [1, 2, 5]})
    assert value == 10 + 20 + 50
    assert ran == [("fetch", 5), ("total", [10, 20, 50])]


async def test_a_task_that_called_an_edited_one_runs_again_and_what_depends_on_it(
    store: Store,
) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(nested)
        assert await run == 10 + 20 + 50 + 60
        rows = await engine.task_runs(run.id, task="fetch")
        of_first = next(row for row in rows if row.state.result() == 20)
        RAN.clear()
        fork = await engine.fork(run.id, results={of_first.id: 7})
        assert await fork == 10 + 7 + 50 + 60
        assert RAN == [("outer", 1), ("total", [17, 110])]
        RAN.clear()
        assert await (await engine.fork(fork.id)) == 127
        assert RAN == []


async def test_a_child_run_that_was_given_an_edited_result_is_another_one(store: Store) -> None:
    value, ran = await forked(store, with_child, {"fetch-1": 7})
    assert value == 14 + 40
    assert ran == [("inner", 7), ("double", 7)]


async def test_the_name_of_a_task_means_all_of_its_calls_and_a_more_exact_one_counts(
    store: Store,
) -> None:
    value, _ = await forked(store, of_map, {"fetch": 1, "fetch-3": 5})
    assert value == 1 + 1 + 5


async def test_a_failure_can_be_edited_away(store: Store) -> None:
    FAIL.add(2)
    value, ran = await forked(store, of_map, {"fetch-2": 7})
    assert value == 10 + 7 + 30
    assert ("fetch", 2) not in ran


async def test_a_failure_that_the_flow_caught_is_edited_and_it_branches_otherwise(
    store: Store,
) -> None:
    @flow
    async def main() -> str:
        try:
            return f"got {await fetch(1)}"
        except ValueError:
            return f"else {await fetch(3)}"

    FAIL.add(1)
    value, ran = await forked(store, main, {"fetch-1": 7})
    assert value == "got 7"
    assert ran == []


async def test_allowed_failures_that_are_edited_are_seen_as_values(store: Store) -> None:
    @flow
    async def main() -> int:
        return await double.submit(allow_failure(fetch.submit(1)))

    value, ran = await forked(store, main, {"fetch": 4})
    assert (value, ran) == (8, [("double", 4)])


async def test_edits_hold_in_all_later_lives_of_the_fork(store: Store) -> None:
    @flow
    async def main() -> int:
        a, b = numbers.submit(3), outer.submit(5)
        found = await total.submit([total.submit(a), b])
        if FAIL:
            raise RuntimeError("once")
        return found + await fetch(9)

    async with Engine(store) as engine:
        run = await engine.submit(main)
        assert await run == 3 + 50 + 60 + 90
        inside = next(
            r for r in await engine.task_runs(run.id, task="fetch") if r.parent_id is not None
        )
        FAIL.add(100)
        RAN.clear()
        large = [1] * 100_000  # in a file, where the store has files
        fork = await engine.fork(run.id, results={"numbers": large, inside.id: 1})
        with pytest.raises(RuntimeError):
            await fork
    assert sorted(name for name, _ in RAN) == ["outer", "total", "total"]
    FAIL.clear()
    RAN.clear()
    async with Engine(store) as engine:
        assert await (await engine.resume(fork.id)) == 100_000 + 61 + 90
        assert RAN == []
        again = await engine.fork(fork.id, results={"numbers": [5]})
        assert await again == 5 + 61 + 90
        assert RAN == [("total", [5]), ("total", [5, 61])]


async def test_an_interrupted_fork_goes_on_with_its_edits(store: Store) -> None:
    import asyncio

    gate = asyncio.Event()

    @flow
    async def main() -> int:
        a = fetch.submit(1)
        found = await total.submit([double.submit(a), 1])
        await gate.wait()
        return found

    gate.set()
    async with Engine(store) as engine:
        run = await engine.submit(main)
        assert await run == 21
        gate.clear()
        RAN.clear()
        fork = await engine.fork(run.id, results={"fetch": 7})
        while not any(
            r.state.result() == 15 for r in await engine.task_runs(fork.id, task="total")
        ):
            await asyncio.sleep(0)
    with pytest.raises(RunInterrupted):
        await fork
    gate.set()
    assert RAN == [("double", 7), ("total", [14, 1])]
    RAN.clear()
    async with Engine(store) as engine:
        (again,) = await engine.recover()
        assert await again == 15
    assert RAN == []


async def test_results_as_they_completed_are_read_with_edits(store: Store) -> None:
    @flow
    async def main() -> list[int]:
        return [await future async for future in as_completed([fetch.submit(2), fetch.submit(1)])]

    value, ran = await forked(store, main, {"fetch-2": 7})
    assert sorted(value) == [7, 20]
    assert ran == []


async def test_it_is_said_which_results_were_edited(store: Store) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(of_map)
        await run
        fork = await engine.fork(run.id, results={"fetch-2": None, "fetch-3": [1]})
        await fork.wait()
        told = (await engine.events(fork.id))[0].message
        assert told == f"forked from {run.id}, with edited results of fetch-2, fetch-3"
        rows = await engine.task_runs(fork.id, state="Edited")
        assert [(row.name, row.state.result()) for row in rows] == [
            ("fetch-2", None),
            ("fetch-3", [1]),
        ]
        changed = [
            (one.before, one.after)
            for one in (await engine.diff(run.id, fork.id)).tasks
            if one.task == "fetch"
        ]
        assert changed == [
            ("Completed: 20", "Edited: null"),
            ("Completed: 30", "Edited: [1]"),
        ]
        many = await engine.submit(of_map_of_many)
        await many
        fork = await engine.fork(many.id, results={"fetch": 1})
        assert (await engine.events(fork.id))[0].message.endswith("fetch-10 and 10 more")
        await fork


@flow
async def of_map_of_many() -> int:
    return sum(await fetch.map(range(20)))


async def test_what_cannot_be_edited_is_said(engine: Engine) -> None:
    run = await engine.submit(with_child)
    await run
    with pytest.raises(UnknownTask, match="has no task run 'nothing'"):
        await engine.fork(run.id, results={"nothing": 1})
    with pytest.raises(UnknownTask, match="has no task run 'fetch-99'"):
        await engine.fork(run.id, results={"fetch": 1, "fetch-99": 1})
    with pytest.raises(UnknownTask, match=r"'inner' is a child run, .*: edit those of its tasks"):
        await engine.fork(run.id, results={"inner": 1})
    with pytest.raises(NotSerializable, match=r"results\['fetch'\]\[1\] is a .*object"):
        await engine.fork(run.id, results={"fetch": [1, object()]})
    run = await engine.submit(by_value)
    await run
    with pytest.raises(UnknownTask, match="'total' .* come after from_task and run again"):
        await engine.fork(run.id, from_task="double", results={"total": 1})
    before = len(await engine.runs())
    fork = await engine.fork(run.id, from_task="total", results={"fetch-1": 7})
    assert await fork == 54
    assert len(await engine.runs()) == before + 1


async def test_calls_that_cannot_be_told_apart_are_not_edited(engine: Engine) -> None:
    @task
    async def ask(connection: object) -> int:
        return 1

    @flow
    async def main() -> int:
        return await ask(object()) + await ask(object())

    run = await engine.submit(main)
    assert await run == 2
    with pytest.raises(UnknownTask, match=r"cannot be told apart .*: give the task a key="):
        await engine.fork(run.id, results={"ask": 5})


async def test_a_secret_is_no_result(engine: Engine) -> None:
    @flow
    async def main(key: pydantic.SecretStr) -> int:
        return await fetch(len(key.get_secret_value()))

    run = await engine.submit(main, "hunter2-very-secret")
    await run
    key = pydantic.SecretStr("hunter2-very-secret")
    with pytest.raises(InvalidParameters, match="the result for 'fetch' holds a secret"):
        await engine.fork(run.id, parameters={"key": key}, results={"fetch": "hunter2-very-secret"})


async def test_a_large_edited_result_is_in_a_file(path: Path) -> None:
    async with Engine(path) as engine:
        run = await engine.submit(by_value)
        await run
        fork = await engine.fork(run.id, results={"total": "x" * 100_000})
        assert await fork == "x" * 100_000
        store: Any = engine.store
        assert store.stats()["result_files"] == 1


async def test_edits_are_known_again_in_another_store(store: Store, tmp_path: Path) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(by_future)
        await run
        fork = await engine.fork(run.id, results={"fetch-1": 7, "fetch-2": 1})
        value = await fork
        await engine.export(fork.id, tmp_path / "one")
    RAN.clear()
    async with Engine(MemoryStore()) as engine:
        await engine.import_run(tmp_path / "one")
        assert await (await engine.fork(fork.id)) == value
    assert RAN == []
