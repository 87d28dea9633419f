"""What an engine answers about its runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncflow import Engine, InvalidOption, ResultUnreadable, flow, task


@task
async def work(x: int) -> int:
    if x == 2:
        raise ValueError("two")
    return x


@task(timeout_seconds=0.001)
async def late() -> None:
    await asyncio.sleep(10)


@flow
async def one(x: int) -> int:
    return await work(x)


@flow
async def slow() -> None:
    await late()


async def test_runs_and_task_runs_are_asked_for_by_type_and_name_of_their_state(
    store: Any,
) -> None:
    async with Engine(store) as engine:
        for x in (1, 2):
            await (await engine.submit(one, x)).wait()
        run = await engine.submit(slow)
        await run.wait()

        async def listed(state: Any) -> list[str]:
            return [r.state.name for r in await engine.runs(state=state)]

        assert await listed("completed") == ["Completed"]
        assert await listed("FAILED") == ["Failed", "Failed"]
        assert await listed(["completed", "TimedOut"]) == ["Completed"]
        assert [t.name for t in await engine.task_runs(run.id, state="timedout")] == ["late-1"]
        assert await engine.task_runs(run.id, state=["completed", "Cached"]) == []
        with pytest.raises(ValueError, match="'lost' is not a state"):
            await engine.runs(state="lost")


async def test_a_tag_that_is_text_is_one_tag(store: Any) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(one, 1, tags="nightly")
        await run
        assert run.tags == ["nightly"]
        assert [r.id for r in await engine.runs(tags="nightly")] == [run.id]
        with pytest.raises(InvalidOption, match="give names"):
            await engine.submit(one, 1, tags=[1])  # type: ignore[list-item] # wrong on purpose


@pytest.mark.parametrize(
    "asked",
    [
        {"limit": 0},
        {"limit": 10_001},
        {"limit": True},
        {"limit": "5"},
        {"cursor": ""},
        {"cursor": "-1"},
        {"cursor": "9" * 30},
        {"cursor": "x"},
        {"since": timedelta(1)},
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(store: Any, asked: Any) -> None:
    async with Engine(store) as engine:
        with pytest.raises(ValueError, match="="):
            await engine.runs(**asked)


async def test_a_run_whose_engine_is_dead_is_not_said_to_run(path: Path) -> None:
    dying = Engine(path)
    await dying.open()
    inside = asyncio.Event()

    @flow
    async def hold() -> None:
        inside.set()
        await asyncio.sleep(3600)

    run = await dying.submit(hold)
    await inside.wait()
    async with Engine(path) as engine:
        assert (await engine.get_run(run.id)).state.is_running()
        assert [r.id for r in await engine.runs(state="running")] == [run.id]
        assert dying._lock is not None
        dying._lock.drop()  # as the kernel does at the death of a process
        for state in (
            (await engine.get_run(run.id)).state,
            (await engine.runs())[0].state,
            (await engine.runs(state="interrupted"))[0].state,
            (await engine.runs(state="paused"))[0].state,
            await engine.wait(run.id),
        ):
            assert state.name == "Interrupted"
            assert "its process has died" in state.message
        assert await engine.runs(state="running") == []
    await dying.aclose()


async def test_names_with_characters_that_no_text_may_hold_are_stored(store: Any) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(
            one, 1, run_name="lone \ud800 surrogate", idempotency_key="\ud800"
        )
        assert await run == 1
        assert len(await engine.runs()) == 1


async def test_an_idempotency_key_that_is_a_number_is_its_text(store: Any) -> None:
    async with Engine(store) as engine:
        first = await engine.submit(one, 1, idempotency_key=5)  # type: ignore[arg-type] # wrong on purpose
        second = await engine.submit(one, 1, idempotency_key="5")
        assert first.id == second.id
        await first


UNPICKLED: list[int] = []


class Telling:
    """Tells when it is unpickled."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __reduce__(self) -> Any:
        return _told, (self.n,)


def _told(n: int) -> Telling:
    UNPICKLED.append(n)
    return Telling(n)


@task(serializer="pickle")
async def pickled(n: int) -> Telling:
    return Telling(n)


@task
async def large(n: int) -> str:
    return str(n) * 100_000


async def test_results_in_files_and_pickles_are_read_when_they_are_asked_for(path: Path) -> None:
    @flow
    async def main() -> None:
        await pickled(1)
        await large(2)

    async with Engine(path) as engine:
        run = await engine.submit(main)
        await run
        first, second = await engine.task_runs(run.id)
        assert UNPICKLED == []
        value: Any = first.state.result()
        assert (value.n, UNPICKLED) == (1, [1])
        (file,) = path.parent.rglob("*.bin")
        file.unlink()
        with pytest.raises(ResultUnreadable, match="cannot be read"):
            second.state.result()
        assert isinstance(second.state.result(raise_on_failure=False), ResultUnreadable)
