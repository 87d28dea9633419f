"""Runs that are exported, imported into another store, and gone on with there."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic
import pytest
from patience import until

from asyncflow import (
    Engine,
    InvalidExport,
    MemoryStore,
    RunExists,
    RunNotResumable,
    SqliteStore,
    StoreError,
    UnknownRun,
    flow,
    get_run_logger,
    now,
    task,
    wait_for_event,
)
from asyncflow.store.base import AnyRow

Store = MemoryStore | SqliteStore

RAN: list[Any] = []
FAIL: set[int] = set()


@pytest.fixture(autouse=True)
def _clean() -> None:
    RAN.clear()
    FAIL.clear()


@pytest.fixture(params=["memory", "sqlite"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The other store."""
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "there.db")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "one.run.gz"


@task
async def fetch(i: int) -> dict[str, Any]:
    RAN.append(i)
    get_run_logger().info("fetching %s", i)
    if i in FAIL:
        raise ValueError(f"no {i}")
    return {"i": i, "text": "x" * (70_000 if i == 1 else 10)}


@flow
async def inner(i: int) -> int:
    found = await fetch(i)
    return int(found["i"])


@flow
async def pipeline(items: list[int]) -> int:
    found = await fetch.map(items)
    below = await inner(items[0] + 100)
    if items[-1] in FAIL:
        await fetch(items[-1] + 1000)
    return sum(row["i"] for row in found) + below


class Marker:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


@task(serializer="pickle")
async def tricky(path: str) -> Marker:
    RAN.append("tricky")
    return Marker(path)


async def what_is_shown(engine: Engine, run_id: str) -> list[Any]:
    """All that can be asked of a run."""
    run = await engine.get_run(run_id)
    events = await engine.events(run_id)
    assert [event.id for event in events] == sorted(event.id for event in events)
    return [
        run.state.type, run.state.name, run.parameters, run.tags, run.name, run.created_at,
        run.ended_at, await engine.task_runs(run_id), await engine.logs(run_id),
        [replace(event, id=0) for event in events],
        [await what_is_shown(engine, child.id) for child in await engine.runs(parent_id=run_id)],
    ]  # fmt: skip


async def test_an_imported_run_is_shown_as_it_was(store: Store, there: Store, file: Path) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(pipeline, [1, 2, 3], tags="a", run_name="mine")
        total = await run
        before = await what_is_shown(engine, run.id)
        assert await engine.export(run.id, file) == file
    RAN.clear()
    async with Engine(there) as engine:
        found = await engine.import_run(file)
        assert found.id == run.id
        assert await found == total
        assert repr(await what_is_shown(engine, run.id)) == repr(before)
        assert RAN == []
        await engine.delete(run.id)
        assert await engine.runs() == []
        assert (await engine.import_run(str(file))).id == run.id


async def test_a_failed_run_goes_on_elsewhere_with_what_it_completed(
    store: Store, there: Store, file: Path
) -> None:
    FAIL.add(1003)
    FAIL.add(3)

    @flow
    async def main() -> list[int]:
        first = await fetch.map([1, 2])
        below = await inner(5)
        return [*(row["i"] for row in first), below, (await fetch(3))["i"]]

    async with Engine(store) as engine:
        run = await engine.submit(main)
        assert (await run.wait()).is_failed()
        await engine.export(run.id, file)
    FAIL.clear()
    RAN.clear()
    async with Engine(there) as engine:
        await engine.import_run(file)
        assert await engine.recover() == []
        assert await (await engine.resume(run.id)) == [1, 2, 5, 3]
        assert RAN == [3]


async def test_an_interrupted_run_goes_on_only_when_it_is_asked_for(
    store: Store, there: Store, file: Path
) -> None:
    gate = asyncio.Event()

    @flow
    async def main() -> Any:
        at = now()
        await fetch(1)
        await gate.wait()
        return (at, now())

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await until(lambda: engine.task_runs(run.id, state="completed"))
        await engine.export(run.id, file)  # of a run that is under way
        gate.set()
        at, _ = await run
    RAN.clear()
    async with Engine(there) as engine:
        found = await engine.import_run(file)
        assert found.state.is_paused()
        assert found.state.name == "Interrupted"
        assert await engine.recover() == []
        assert [r.id for r in await engine.runs(state="Interrupted")] == [run.id]
        again = await engine.resume(run.id)
        assert (await again)[0] == at
        assert RAN == []
        assert await engine.recover() == []


async def test_a_resumed_import_is_recovered_like_any_other(there: Store, file: Path) -> None:
    gate = asyncio.Event()

    @flow
    async def main() -> int:
        await gate.wait()
        return 1

    async with Engine(MemoryStore()) as engine:
        run = await engine.submit(main)
        await engine.export(run.id, file)
    async with Engine(there) as engine:
        await engine.import_run(file)
        await engine.resume(run.id)
    gate.set()
    async with Engine(there) as engine:
        assert [await again for again in await engine.recover()] == [1]


async def test_an_imported_run_can_be_cancelled_deleted_and_forked(
    there: Store, file: Path
) -> None:
    gate = asyncio.Event()

    @flow
    async def main() -> int:
        await inner(1)
        await gate.wait()
        return 1

    async with Engine(MemoryStore()) as engine:
        run = await engine.submit(main)

        async def is_inside() -> bool:
            return bool(await engine.task_runs(run.id) or await engine.runs(parent_id=run.id))

        await until(is_inside)
        await engine.export(run.id, file)
    gate.set()
    async with Engine(there) as engine:
        await engine.import_run(file)
        other = await engine.import_run(file, new_id=True)
        assert await (await engine.fork(run.id)) == 1
        assert await engine.cancel(run.id) is True
        assert (await engine.get_run(run.id)).state.is_cancelled()
        assert await engine.delete(other.id) >= 1


async def test_an_event_that_came_before_is_there_and_one_that_was_taken_is_not_taken_again(
    store: Store, there: Store, file: Path
) -> None:
    @flow
    async def main() -> list[Any]:
        return [await wait_for_event("go", timeout=60) for _ in range(3)]

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await engine.send_event("go", 1, run.id)
        await until(lambda: engine.writer.do(lambda: engine.store.marks(1)))
        await engine.send_event("go", 2)
        await asyncio.sleep(0)
        await engine.export(run.id, file)
    async with Engine(there) as engine:
        for _ in range(5):
            await engine.send_event("go", "of another")
        await engine.import_run(file)
        again = await engine.resume(run.id)
        await engine.send_event("go", 3, run.id)
        assert await again == [1, 2, 3]


async def test_no_pickle_is_read_unless_it_is_trusted(
    there: Store, tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trap = tmp_path / "trap"

    @flow
    async def main() -> int:
        await tricky(str(trap))
        await fetch(3)
        return 1

    FAIL.add(3)
    async with Engine(MemoryStore()) as engine:
        run = await engine.submit(main)
        await run.wait()
        await engine.export(run.id, file)
    FAIL.clear()
    async with Engine(there) as engine:
        await engine.import_run(file)
        assert "came without its pickled results (1)" in caplog.text
        RAN.clear()
        await what_is_shown(engine, run.id)
        assert await (await engine.resume(run.id)) == 1
        assert RAN == ["tricky", 3]
        assert not trap.exists()
        trusted = await engine.import_run(file, new_id=True, allow_pickle=True)
        assert not trap.exists()
        RAN.clear()
        assert await (await engine.resume(trusted.id)) == 1
        assert RAN == [3]
        assert trap.exists()


async def test_an_import_imports_no_module(
    there: Store, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_trap.py").write_text("raise SystemExit('sprung')\n")
    monkeypatch.syspath_prepend(tmp_path)
    store = MemoryStore()
    async with Engine(store) as engine:
        run = await engine.submit(pipeline, [1])
        await run
    ref = json.dumps({"key": "a_trap:x", "module": "a_trap", "file": str(tmp_path / "a_trap.py")})
    error = b'{"type": "a_trap:X", "text": "no", "args": null}'
    row = store.run(run.id)
    assert row is not None
    changes: dict[str, Any] = {"state": "FAILED", "state_name": "Failed", "result_kind": 0}
    changes |= {"flow_ref": ref, "error": error, "result": None}
    store._runs[row.pk] = row._replace(**changes, parameters=b'{"x":{"$":"enum","c":"a_trap:X"}}')
    async with Engine(store) as engine:
        await engine.export(run.id, file)
    async with Engine(there) as engine:
        found = await engine.import_run(file)
        assert "a_trap" not in sys.modules
        assert (await engine.runs())[-1].id
        assert found.name


async def test_secrets_are_in_no_file(file: Path, tmp_path: Path) -> None:
    import gzip

    @flow
    async def main(key: pydantic.SecretStr) -> str:
        logging.getLogger("app").warning("with %s", key.get_secret_value())
        return key.get_secret_value()

    async with Engine(tmp_path / "here.db") as engine:
        run = await engine.submit(main, "hunter2-very-secret")
        await run
        await engine.export(run.id, file)
    assert b"hunter2" not in gzip.decompress(file.read_bytes())


async def test_what_cannot_be_moved_is_said(engine: Engine, tmp_path: Path, file: Path) -> None:
    run = await engine.submit(pipeline, [1])
    await run
    (child,) = await engine.runs(parent_id=run.id)
    with pytest.raises(UnknownRun, match="'nothing'"):
        await engine.export("nothing", file)
    with pytest.raises(RunNotResumable, match="is a child run: export the run above it"):
        await engine.export(child.id, file)
    await engine.export(run.id, file)
    with pytest.raises(StoreError, match="exists"):
        await engine.export(run.id, file)
    with pytest.raises(RunExists, match=run.id):
        await engine.import_run(file)
    with pytest.raises(InvalidExport, match="expands to more than 10 bytes"):
        await engine.import_run(file, new_id=True, max_bytes=10)
    with pytest.raises(ValueError, match="max_bytes=0"):
        await engine.import_run(file, max_bytes=0)
    with pytest.raises(StoreError, match="No such file"):
        await engine.import_run(tmp_path / "nothing")
    assert len(await engine.runs()) == 2


async def test_an_idempotency_key_is_kept_if_it_is_free(
    there: Store, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(MemoryStore()) as engine:
        run = await engine.submit(inner, 1, idempotency_key="one")
        await run
        await engine.export(run.id, file)
    async with Engine(there) as engine:
        await engine.import_run(file)
        assert (await engine.submit(inner, 1, idempotency_key="one")).id == run.id
        assert caplog.text.count("idempotency key") == 0
        other = await engine.import_run(file, new_id=True)
        assert "'one' is that of another run here" in caplog.text
        assert (await engine.submit(inner, 1, idempotency_key="one")).id == run.id
        assert (await engine.stored_run(other.id)).origin == run.id


async def test_an_export_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    reached, go_on = asyncio.Event(), []

    class Slow(MemoryStore):
        def dump(self, run: int) -> Iterator[AnyRow]:
            rows = super().dump(run)
            yield next(rows)
            loop.call_soon_threadsafe(reached.set)
            while not go_on:
                pass
            yield from rows

    loop = asyncio.get_running_loop()
    folder = tmp_path / "folder"
    folder.mkdir()
    async with Engine(Slow()) as engine:
        run = await engine.submit(pipeline, [1, 2, 3])
        await run
        exporting = asyncio.create_task(engine.export(run.id, folder / "one"))
        await reached.wait()
        exporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exporting
        go_on.append(1)
    assert os.listdir(folder) == []
