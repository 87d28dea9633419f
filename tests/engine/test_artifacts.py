"""What runs show, from async and plain code, over retries, resumes and forks."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from virtual import virtual_engine, virtually

from asyncflow import (
    Artifact,
    Engine,
    InvalidOption,
    MemoryStore,
    SqliteStore,
    UnknownRun,
    artifacts,
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
    flow,
    set_progress,
    task,
)
from asyncflow.errors import BlockingCall

Store = MemoryStore | SqliteStore
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


def texts(found: list[Artifact]) -> list[str]:
    return [one.data["markdown"] for one in found if one.kind == "markdown"]


async def shown(engine: Engine, run_id: str, **query: Any) -> list[Artifact]:
    return list(await engine.artifacts(run_id, **query))


# --- making them ----------------------------------------------------------------------------------


async def test_async_and_plain_code_show_things_alike(store: Store) -> None:
    @task
    async def awaits() -> str:
        return await create_markdown_artifact("# one", key="text", description="A text.")

    @task
    def plain() -> str:
        create_table_artifact([{"a": 1}], key="table")
        made = create_link_artifact("https://example.org", "there")
        return made.wait()

    @flow
    async def shows() -> list[str]:
        create_image_artifact(PNG)
        return [await awaits(), await plain.submit()]

    async with Engine(store) as engine:
        run = await engine.submit(shows)
        ids = await run
        found = {one.kind: one for one in await shown(engine, run.id)}
        assert list(found) == ["image", "markdown", "table", "link"]
        assert ids == [found["markdown"].id, found["link"].id]
        text = found["markdown"]
        assert (text.key, text.description, text.task_run_id) == ("text", "A text.", f"{run.id}-1")
        assert text.data == {"markdown": "# one"}
        assert text.created_at == text.updated_at
        assert found["image"].task_run_id is None
        assert found["link"].key is None
        assert found["link"].task_run_id == f"{run.id}-2"
        assert [a.kind for a in await shown(engine, run.id, kind=["table", "link"])] == [
            "table",
            "link",
        ]
        assert [a.kind for a in await shown(engine, run.id, key="table")] == ["table"]
        of_task = await shown(engine, run.id, task_run_id=f"{run.id}-2")
        assert [a.kind for a in of_task] == ["table", "link"]
        page = await engine.artifacts(run.id, limit=3)
        assert [a.kind for a in await shown(engine, run.id, cursor=page.next_cursor)] == ["link"]
        with pytest.raises(ValueError, match="is not one of the run"):
            await engine.artifacts(run.id, task_run_id="other-1")
        with pytest.raises(UnknownRun):
            await engine.artifacts("none")


async def test_what_is_not_awaited_is_on_disk_when_its_task_is(path: Path) -> None:
    after = asyncio.Event()

    @task
    async def shows() -> None:
        create_markdown_artifact("# there")

    @flow
    async def waits() -> None:
        await shows()
        after.set()
        await asyncio.Event().wait()

    async with Engine(path) as engine:
        run = await engine.submit(waits)
        await after.wait()
        async with Engine(path) as other:
            assert texts(await shown(other, run.id)) == ["# there"]


async def test_a_later_one_of_the_same_key_takes_the_place_of_the_former(store: Store) -> None:
    @task
    async def report(n: int) -> None:
        await create_markdown_artifact(f"state {n}", key="report")

    @flow
    async def reports() -> None:
        await create_markdown_artifact("first", key="first")
        for n in range(3):
            await report(n)
        await create_table_artifact([[1]], key="first")

    async with Engine(store) as engine:
        run = await engine.submit(reports)
        await run
        found = await shown(engine, run.id)
        assert [(a.key, a.kind) for a in found] == [("first", "table"), ("report", "markdown")]
        assert texts(found) == ["state 2"]
        assert found[1].created_at <= found[1].updated_at


async def test_outside_of_a_run_a_task_is_the_plain_function_and_keeps_nothing() -> None:
    @task
    async def shows() -> str:
        set_progress(1, 2)
        return await create_markdown_artifact("# x")

    assert await shows() == ""
    assert create_table_artifact([[1]]).wait() == ""
    with pytest.raises(InvalidOption):
        create_link_artifact("javascript:alert(1)")
    with pytest.raises(InvalidOption, match="lower-case"):
        create_markdown_artifact("x", key="Two Words")
    with pytest.raises(InvalidOption, match="a number, 0 or more"):
        set_progress(-1)
    with pytest.raises(InvalidOption, match="lower-case"):
        set_progress(1, key="~1")


async def test_waiting_for_the_disk_on_the_event_loop_is_refused(engine: Engine) -> None:
    @flow
    async def blocks() -> None:
        create_markdown_artifact("x").wait()

    with pytest.raises(BlockingCall, match="await the artifact"):
        await engine.run(blocks)


async def test_a_loop_in_a_thread_may_await_them(engine: Engine) -> None:
    async def inner() -> str:
        return await create_markdown_artifact("# from another loop")

    @task
    def plain() -> str:
        return asyncio.run(inner())

    @flow
    async def shows() -> str:
        return await plain.submit()

    run = await engine.submit(shows)
    assert await run == (await shown(engine, run.id))[0].id


async def test_secrets_are_masked_everywhere(store: Store) -> None:
    @flow
    async def tells(password: SecretStr) -> None:
        word = password.get_secret_value()
        create_markdown_artifact(f"it is {word}", description=f"about {word}")
        create_table_artifact([{word: word, "x": [word]}])
        create_link_artifact(f"https://example.org/?p={word}", word)
        create_image_artifact(f"https://example.org/?p={word}")
        set_progress(1, message=word)

    async with Engine(store) as engine:
        run = await engine.submit(tells, SecretStr("hunter22"))
        await run
        found = await shown(engine, run.id)
        assert len(found) == 5
        assert "hunter" not in repr(found)


async def test_a_run_shows_a_thousand_things_and_says_that_there_were_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MOST", 10)

    @task
    async def shows(n: int) -> str:
        set_progress(n)
        return await create_markdown_artifact(str(n))

    @flow
    async def many() -> list[str]:
        ids = await shows.map(range(12))
        await create_markdown_artifact("again", key=None)
        return ids

    async with Engine(store) as engine:
        run = await engine.submit(many)
        ids = await run
        assert ids.count("") == 7, "a progress and a text of each"
        assert len(await shown(engine, run.id)) == 10
        lines = [line.message for line in await engine.logs(run.id)]
        assert lines == ["the run shows 10 artifacts: what it shows more is not kept"]


# --- over lives -----------------------------------------------------------------------------------


async def test_a_new_attempt_replaces_what_the_one_before_has_shown(store: Store) -> None:
    @task(retries=2, retry_delay_seconds=0)
    async def shows(of: list[int]) -> None:
        of[0] += 1
        for n in range(3 - of[0]):
            await create_markdown_artifact(f"attempt {of[0]}, {n}")
        if of[0] < 2:
            raise ValueError("again")

    @flow
    async def main() -> None:
        await shows([0])

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run
        assert texts(await shown(engine, run.id)) == ["attempt 2, 0"]


async def test_a_resumed_run_keeps_what_completed_tasks_showed_and_replaces_the_rest(
    store: Store,
) -> None:
    lives = 0

    @task
    async def once(n: int) -> int:
        await create_markdown_artifact(f"once {n} in life {lives}")
        return n

    @task
    async def fails() -> None:
        await create_markdown_artifact(f"fails in life {lives}")
        if lives == 1:
            await create_markdown_artifact("only in life 1")
            raise ValueError("no")

    @flow
    async def main() -> None:
        nonlocal lives
        lives += 1
        await create_markdown_artifact(f"body in life {lives}")
        await once.map(range(2))
        await fails()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        with pytest.raises(ValueError, match="no"):
            await run
    async with Engine(store) as engine:
        await (await engine.resume(run.id))
        assert texts(await shown(engine, run.id)) == [
            "body in life 2", "once 0 in life 1", "once 1 in life 1", "fails in life 2",
        ]  # fmt: skip


async def test_a_fork_has_what_the_tasks_that_it_does_not_run_showed(store: Store) -> None:
    lives = 0

    @task
    async def first() -> None:
        await create_markdown_artifact(f"first in life {lives}", key="first")

    @task
    async def second() -> None:
        await create_markdown_artifact(f"second in life {lives}", key=f"second-{lives}")

    @flow
    async def child() -> None:
        await create_markdown_artifact(f"child in life {lives}")

    @flow
    async def main() -> None:
        nonlocal lives
        lives += 1
        await create_markdown_artifact(f"body in life {lives}", key=f"body-{lives}")
        await first()
        await child()
        await second()

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run
        fork = await engine.fork(run.id, from_task="second")
        await fork
        assert texts(await shown(engine, fork.id)) == [
            "first in life 1", "body in life 2", "second in life 2",
        ]  # fmt: skip
        (below,) = await engine.runs(parent_id=fork.id)
        assert texts(await shown(engine, below.id)) == ["child in life 1"]
        again = await engine.rerun(run.id)
        await again
        assert "first in life 3" in texts(await shown(engine, again.id))


async def test_they_go_with_their_run(store: Store) -> None:
    @flow
    async def main() -> None:
        await create_markdown_artifact("x")

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run
        assert len(await shown(engine, run.id)) == 1
        await engine.delete(run.id)
        if isinstance(store, SqliteStore):
            assert store.check() == []
            assert store.stats()["rows"]["artifacts"] == 0
        else:
            assert store._artifacts == {}


async def test_they_go_to_another_database_with_their_run(store: Store, tmp_path: Path) -> None:
    @task
    async def shows() -> None:
        await create_image_artifact(PNG, key="picture")

    @flow
    async def main() -> None:
        await create_markdown_artifact("é 🦊")
        await shows()
        set_progress(3, 4, message="soon")

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run
        before = await shown(engine, run.id)
        await engine.export(run.id, tmp_path / "one.run.gz")
    async with Engine(tmp_path / "other.db") as engine:
        await engine.import_run(tmp_path / "one.run.gz")
        assert await shown(engine, run.id) == before
        assert len(before) == 3


# --- progress -------------------------------------------------------------------------------------


@virtually
async def test_progress_is_stored_four_times_a_second_and_its_last_value_always() -> None:
    writes: list[dict[str, Any]] = []

    class Counting(MemoryStore):
        def write(self, rows: Any, *, wait: bool = True) -> bool:
            writes.extend(json.loads(row.data) for row in rows.artifacts)
            return super().write(rows, wait=wait)

    @task
    async def counts() -> None:
        for n in range(101):
            set_progress(n, 100)
            await asyncio.sleep(0.01)

    @flow
    async def main() -> None:
        await counts()
        set_progress(7, message="the flow's own")
        set_progress(8, message="the flow's own")

    async with virtual_engine(Counting()) as engine:
        run = await engine.submit(main)
        await run
        of_task, of_flow = await engine.artifacts(run.id, kind="progress")
    assert of_task.data == {"done": 100, "total": 100, "message": ""}
    assert of_flow.data == {"done": 8, "total": None, "message": "the flow's own"}
    assert (of_task.key, of_flow.task_run_id) == (None, None)
    of_call = [w["done"] for w in writes if w["total"] == 100]
    assert of_call[0] == 0
    assert 5 <= len(of_call) <= 6
    assert of_call == sorted(of_call)


async def test_plain_tasks_tell_their_progress_from_threads(store: Store) -> None:
    @task
    def counts(name: str) -> None:
        for n in range(2000):
            set_progress(n + 1, 2000, key=name)

    @flow
    async def main() -> None:
        await counts.map(["a", "b", "c"])

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run
        found = await shown(engine, run.id)
        assert sorted((a.key or "", a.data["done"]) for a in found) == [
            ("a", 2000), ("b", 2000), ("c", 2000),
        ]  # fmt: skip


async def test_what_is_asked_for_is_the_newest_progress(engine: Engine) -> None:
    told, go = asyncio.Event(), asyncio.Event()

    @flow
    async def main() -> None:
        set_progress(1, 3)
        set_progress(2, 3)
        told.set()
        await go.wait()

    run = await engine.submit(main)
    await told.wait()
    assert (await shown(engine, run.id))[0].data["done"] == 2
    go.set()
    await run


async def test_a_thread_that_outlives_its_run_shows_nothing_any_more(engine: Engine) -> None:
    from contextvars import copy_context

    contexts = []

    @flow
    async def main() -> None:
        set_progress(1)
        contexts.append(copy_context())

    run = await engine.submit(main)
    await run

    def late() -> None:
        contexts[0].run(set_progress, 2)
        made.append(contexts[0].run(create_markdown_artifact, "late"))

    made: list[Any] = []
    thread = threading.Thread(target=late)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0)
    thread.join()
    assert made[0].id == ""
    assert [a.data["done"] for a in await shown(engine, run.id)] == [1]
    assert engine.shown._runs == {}


async def test_code_in_a_worker_process_shows_things_too(engine: Engine) -> None:
    run = await engine.submit(in_a_process)
    await run
    found = {a.kind: a for a in await shown(engine, run.id)}
    assert found["markdown"].data == {"markdown": "# from a process"}
    assert found["table"].data["rows"] == [[1, 2]]
    assert found["image"].data["mime"] == "image/png"
    assert found["progress"].data == {"done": 99, "total": 100, "message": "soon"}
    assert {a.task_run_id for a in found.values()} == {f"{run.id}-1"}
    with pytest.raises(InvalidOption, match="is no link"):
        await engine.run(wrong_in_a_process)


@task(runner="process")
def far_away(wrong: bool = False) -> None:
    if wrong:
        create_link_artifact("javascript:alert(1)")
    create_markdown_artifact("# from a process", key="text")
    create_table_artifact({"a": [1], "b": [2]})
    create_image_artifact(PNG)
    for n in range(100):
        set_progress(n, 100, message="soon")


@flow
async def in_a_process() -> None:
    await far_away.submit()


@flow
async def wrong_in_a_process() -> None:
    await far_away.submit(True)
