"""A stored result that is not what was written is never handed to anybody."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncflow import Engine, ResultUnreadable, flow, task

NUMBER = 1_234_567


class Work:
    """A flow of six calls that fails at its end until it is mended."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.mended = False
        work = self

        @task
        async def give(n: int) -> dict[str, int]:
            work.ran.append(n)
            return {"number": NUMBER + n}

        @task(serializer="pickle")
        async def pickled(n: int) -> dict[str, int]:
            work.ran.append(n)
            return {"number": NUMBER + n}

        @flow
        async def main() -> list[Any]:
            found = [await give(0), await pickled(1), *await give.map(range(10, 14))]
            if not work.mended:
                raise RuntimeError("not yet")
            return found

        self.main = main


def damage(path: Path, table: str, where: str, change: Callable[[bytes], bytes]) -> None:
    """Change one stored result, as a bad disk would."""
    db = sqlite3.connect(path)
    with db:
        [(key, before)] = db.execute(f"SELECT rowid, result FROM {table} WHERE {where}").fetchall()
        after = change(before)
        assert after != before
        db.execute(f"UPDATE {table} SET result = ? WHERE rowid = ?", (after, key))
    db.close()


def another_digit(stored: bytes) -> bytes:
    return stored.replace(b"345", b"349")


def cut_off(stored: bytes) -> bytes:
    return stored[:-1]


async def begun(path: Path, work: Work) -> str:
    async with Engine(path) as engine:
        run = await engine.submit(work.main)
        assert (await run.wait()).is_failed()
    work.mended = True
    work.ran.clear()
    return run.id


@pytest.mark.parametrize("change", [another_digit, cut_off])
@pytest.mark.parametrize("seq", [1, 4], ids=["a call", "an item of a map"])
async def test_a_damaged_result_fails_its_call_by_name_and_nothing_runs_again(
    path: Path, seq: int, change: Callable[[bytes], bytes]
) -> None:
    work = Work()
    run_id = await begun(path, work)
    damage(path, "task_runs", f"id & 0xffffffff = {seq}", change)
    async with Engine(path) as engine:
        run = await engine.resume(run_id)
        with pytest.raises((ResultUnreadable, ExceptionGroup)) as caught:
            await run
        calls = await engine.task_runs(run_id)
    told = caught.value
    while isinstance(told, ExceptionGroup):
        [told] = told.exceptions
    assert isinstance(told, ResultUnreadable)
    assert f"give-{seq}" in str(told)
    assert "damaged" in str(told)
    assert work.ran == []
    assert f"run {run_id}" in str(told)
    assert all(call.state.is_completed() for call in calls), "the record of a call is never changed"
    with pytest.raises(ResultUnreadable):
        next(call for call in calls if call.name == f"give-{seq}").state.result()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda stored: stored.replace(b"\xd6", b"\xd7"), id="in the middle"),
        pytest.param(lambda stored: b"(" + stored[1:], id="at the start"),
    ],
)
async def test_a_damaged_pickle_is_never_unpickled(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]
) -> None:
    work = Work()
    run_id = await begun(path, work)
    damage(path, "task_runs", "id & 0xffffffff = 2", change)
    monkeypatch.setattr("pickle.loads", lambda _: pytest.fail("it was unpickled"))
    async with Engine(path) as engine:
        run = await engine.resume(run_id)
        with pytest.raises(ResultUnreadable, match="pickled-2"):
            await run


async def test_a_damaged_result_of_a_run_is_told_with_its_id(path: Path) -> None:
    @flow
    async def main() -> str:
        return "1234567"

    async with Engine(path) as engine:
        run = await engine.submit(main)
        await run
    damage(path, "flow_runs", "1", another_digit)
    async with Engine(path) as engine:
        state = await engine.wait(run.id)
        assert state.is_completed()
        with pytest.raises(ResultUnreadable, match=run.id):
            state.result()


async def test_a_damaged_result_of_a_child_run_fails_its_parent_and_the_child_stays_as_it_is(
    path: Path,
) -> None:
    ran, mended = [], False

    @flow
    async def child() -> str:
        ran.append("child")
        return "1234567"

    @flow
    async def main() -> str:
        found = await child()
        if not mended:
            raise RuntimeError("not yet")
        return found

    async with Engine(path) as engine:
        run = await engine.submit(main)
        assert (await run.wait()).is_failed()
        [row] = await engine.runs(flow="child")
    damage(path, "flow_runs", "flow_name = 'child'", another_digit)
    mended = True
    async with Engine(path) as engine:
        with pytest.raises(ResultUnreadable, match=row.id):
            await (await engine.resume(run.id))
    assert ran == ["child"]


async def test_results_that_an_older_version_wrote_are_read(path: Path) -> None:
    work = Work()
    run_id = await begun(path, work)
    damage(path, "task_runs", "id & 0xffffffff = 1", lambda _: b'{"number":1234567}')
    async with Engine(path) as engine:
        assert (await (await engine.resume(run_id)))[0] == {"number": NUMBER}
    assert work.ran == []


async def test_what_a_run_did_differently_is_told_without_the_checks_of_results(
    path: Path,
) -> None:
    @task
    async def give(n: int) -> int:
        return n

    @flow
    async def main(n: int) -> int:
        return await give(5) + await give(n)

    async with Engine(path) as engine:
        one, other = await asyncio.gather(engine.submit(main, 1), engine.submit(main, 2))
        await asyncio.gather(one, other)
        told = str(await engine.diff(one.id, other.id))
    assert "#" not in told
    assert "Completed: 1" in told
