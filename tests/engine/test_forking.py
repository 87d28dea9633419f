"""Runs that begin with what others have: forks, reruns, other versions, and who needs attention."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncflow import (
    Engine,
    MemoryStore,
    RunNotResumable,
    SqliteStore,
    UnknownRun,
    UnknownTask,
    flow,
    now,
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
        raise ValueError(i)
    return i * 10


@task
async def add(values: list[int], extra: int) -> int:
    RAN.append(("add", extra))
    return sum(values) + extra


@flow
async def inner(i: int) -> int:
    RAN.append(("inner", i))
    return await fetch(i)


@flow
async def pipeline(items: list[int], extra: int = 0) -> int:
    values = await fetch.map(items)
    below = await inner(items[0] + 100)
    return await add(values, extra) + below


async def test_a_fork_of_a_completed_run_runs_nothing_again(store: Store) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(pipeline, [1, 2, 3])
        total = await run
        RAN.clear()
        fork = await engine.fork(run.id)
        assert await fork == total
        assert fork.id != run.id
        assert RAN == []
        assert (await engine.stored_run(fork.id)).origin == run.id
        assert len(await engine.task_runs(fork.id)) == 4


async def test_a_fork_with_other_parameters_runs_what_depends_on_them(store: Store) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(pipeline, [1, 2, 3])
        await run
        RAN.clear()
        fork = await engine.fork(run.id, parameters={"items": [1, 2, 4]})
        assert await fork == 70 + 1010
        assert sorted(RAN) == [("add", 0), ("fetch", 4)]
        assert fork.parameters == {"items": [1, 2, 4], "extra": 0}


async def test_a_fork_from_a_task_runs_it_and_what_came_after(store: Store) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(pipeline, [1, 2])
        total = await run
        RAN.clear()
        assert await (await engine.fork(run.id, from_task="inner")) == total
        assert RAN == [("inner", 101), ("fetch", 101), ("add", 0)]
        RAN.clear()
        rows = await engine.task_runs(run.id)
        last = next(row for row in rows if row.task_key == "add")
        assert await (await engine.fork(run.id, from_task=last.id)) == total
        assert RAN == [("add", 0)]


async def test_a_fork_of_a_failed_run_runs_what_failed(store: Store) -> None:
    FAIL.add(2)
    async with Engine(store) as engine:
        run = await engine.submit(pipeline, [1, 2, 3])
        assert (await run.wait()).is_failed()
        FAIL.clear()
        RAN.clear()
        fork = await engine.fork(run.id)
        assert await fork == 60 + 1010
        assert ("fetch", 2) in RAN
        assert ("fetch", 1) not in RAN
        assert (await engine.get_run(run.id)).state.is_failed()


async def test_a_fork_repeats_the_decisions_of_the_part_that_it_keeps(store: Store) -> None:
    times: list[Any] = []

    @flow
    async def main() -> int:
        times.append(now())
        await fetch(1)
        times.append(now())
        return await fetch(2)

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run
        await (await engine.fork(run.id, from_task=f"{run.id}-2"))
    assert times[2] == times[0]
    assert times[3] == times[1]


async def test_a_fork_can_itself_be_resumed_and_forked(store: Store) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(pipeline, [1, 2])
        total = await run
        fork = await engine.fork(run.id)
        await fork
        RAN.clear()
        assert await (await engine.fork(fork.id)) == total
        assert RAN == []


async def test_what_cannot_be_forked_is_said(engine: Engine) -> None:
    run = await engine.submit(pipeline, [1])
    await run
    with pytest.raises(UnknownTask, match="'nothing'"):
        await engine.fork(run.id, from_task="nothing")
    with pytest.raises(UnknownRun):
        await engine.fork("nobody")
    with pytest.raises(ValueError, match="items"):
        await engine.fork(run.id, parameters={"items": "no list"})


async def test_a_rerun_runs_all_again_and_names_its_origin(store: Store) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(pipeline, [1, 2])
        total = await run
        RAN.clear()
        again = await engine.rerun(run.id)
        assert await again == total
        assert len(RAN) == 5
        more = await engine.rerun(run.id, parameters={"extra": 5})
        assert await more == total + 5
        assert (await engine.stored_run(again.id)).origin == run.id


async def test_a_run_of_another_version_is_resumed_only_when_asked_to(store: Store) -> None:
    @flow(version="1")
    async def main() -> int:
        return await fetch(1)

    FAIL.add(1)
    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run.wait()
        FAIL.clear()
        main.options = main.with_options(version="2").options
        with pytest.raises(RunNotResumable, match=r"version '1'.*version '2'"):
            await engine.resume(run.id)
        assert await (await engine.resume(run.id, any_version=True)) == 10


async def test_a_run_of_another_version_needs_attention_until_that_is_back(store: Store) -> None:
    @flow(version="1")
    async def main() -> int:
        await asyncio.sleep(60)
        return 1

    async with Engine(store) as engine:
        run = await engine.submit(main)
        before = main.options
    main.options = main.with_options(version="2").options
    async with Engine(store) as engine:
        assert await engine.recover() == []
        assert await engine.recover() == []
        row = await engine.get_run(run.id)
        assert row.state.is_paused()
        assert row.state.name == "NeedsAttention"
        assert "version '2'" in row.state.message
        names = [event.name for event in await engine.events(run.id)]
        assert names.count("NeedsAttention") == 1
        main.options = before
        (again,) = await engine.recover()
        assert again.id == run.id
        await again.cancel()


async def test_a_run_whose_inputs_changed_says_which(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    start = [1]

    @flow
    async def main() -> int:
        first = await fetch(start[0])
        if len(start) == 1:
            raise RuntimeError("once")
        return first

    run = await engine.submit(main)
    assert (await run.wait()).is_failed()
    start[:] = [2, 2]
    assert await (await engine.resume(run.id)) == 20
    text = "inputs have changed since the last attempt, from (1) to (2)"
    assert text in caplog.text
    assert any(text in line.message for line in await engine.logs(run.id))


async def test_a_changed_source_is_named_and_refuses_nothing(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncflow import registry

    FAIL.add(1)
    async with Engine(store) as engine:
        run = await engine.submit(pipeline, [1])
        await run.wait()
        FAIL.clear()
        registry._DIGESTS[pipeline.fn] = "another"
        assert await (await engine.resume(run.id)) == 10 + 1010
    registry._DIGESTS.pop(pipeline.fn)
    assert "has changed since the run" in caplog.text
