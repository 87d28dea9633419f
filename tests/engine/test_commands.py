"""What one engine asks and another one does: once, by whoever has the code, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from patience import until
from virtual import now, virtual_engine, virtually

from asyncflow import Engine, MemoryStore, flow, pause_flow_run, task
from asyncflow.commands import PATIENCE
from asyncflow.errors import StoreClosed, StoreError
from asyncflow.registry import _FLOWS
from asyncflow.store import planning
from asyncflow.store.base import Writes
from asyncflow.store.planning import CommandRow

FAIL: list[bool] = []
RAN: list[Any] = []


@pytest.fixture(autouse=True)
def _anew() -> None:
    FAIL.clear()
    RAN.clear()


@task
async def double(n: int) -> int:
    RAN.append(n)
    return 2 * n


@flow(name="asked of another")
async def asked(n: int = 1) -> int:
    found = await double(n)
    if FAIL:
        raise RuntimeError("as it was")
    return found


class Reply(pydantic.BaseModel):
    yes: bool


@flow
async def asks() -> bool:
    return (await pause_flow_run(wait_for_input=Reply)).yes


@contextlib.asynccontextmanager
async def two(store: Any = None) -> AsyncIterator[tuple[Engine, Engine]]:
    """One that asks, as a server without code does, and one that takes."""
    store = store or MemoryStore()
    async with virtual_engine(store) as server, virtual_engine(store) as taker:
        yield server, taker


async def stored(engine: Engine, command: str) -> CommandRow:
    (row,) = await engine.reader.planned(planning.commands(command))
    return row


async def ask(engine: Engine, kind: str, arguments: Any = None, **about: Any) -> CommandRow:
    row = await engine.commands.ask(kind, arguments or {}, **about)
    assert row is not None
    return row


async def end(engine: Engine, row: CommandRow) -> CommandRow:
    async def ended() -> CommandRow | None:
        known = await stored(engine, row.id)
        return known if known.ended_at is not None else None

    return await until(ended)


async def failed_run(engine: Engine, n: int = 1) -> str:
    FAIL.append(True)
    run = await engine.submit(asked, n)
    await run.wait()
    FAIL.clear()
    RAN.clear()
    return run.id


@virtually
async def test_nothing_is_asked_where_no_engine_takes_commands() -> None:
    async with two() as (server, taker):
        run = await failed_run(taker)
        assert await server.commands.ask("rerun", {}, run=run) is None
        await taker.recover()
        assert await server.commands.ask("rerun", {}, run=run) is not None


@virtually
async def test_an_engine_that_recovers_does_what_it_is_asked_within_two_seconds() -> None:
    async with two() as (server, taker):
        run = await failed_run(taker)
        await taker.recover()
        for kind, arguments, ran in (
            ("rerun", {"parameters": {"n": 5}}, [5]),
            ("fork", {"parameters": None}, []),
        ):
            RAN.clear()
            begun = now()
            row = await end(server, await ask(server, kind, arguments, run=run))
            assert now() - begun <= 2.2
            assert (row.state, row.engine, row.taken) == ("DONE", taker.id, 1), row.detail
            assert row.made is not None
            assert await (await taker.get_run(row.made)) == (10 if kind == "rerun" else 2)
            assert ran == RAN
        row = await end(server, await ask(server, "resume", {"expected_state": "FAILED"}, run=run))
        assert (row.state, row.made, row.detail) == ("DONE", run, "it goes on")
        assert await (await taker.get_run(run)) == 2
        kinds = [e.kind for e in await server.events(kinds="command.*")]
        assert kinds == ["command.done"] * 3


@virtually
async def test_an_engine_that_serves_a_deployment_runs_it_within_a_second() -> None:
    async with two() as (server, taker):
        await taker.deploy(asked, "dep", parameters={"n": 3}, overlap="allow")
        begun = now()
        row = await ask(server, "run", {"parameters": {"n": 4}, "name": "mine"}, deployment="dep")
        row = await end(server, row)
        assert now() - begun <= 1.2
        assert row.state == "DONE", row.detail
        run = await taker.get_run(row.made or "")
        assert (await run, run.name) == (8, "mine")


@virtually
async def test_a_deployment_that_no_engine_serves_fails_at_once() -> None:
    async with two() as (server, taker):
        await taker.recover()
        begun = now()
        row = await end(server, await ask(server, "run", {"parameters": None}, deployment="dep"))
        assert now() - begun < PATIENCE / 2
        assert (row.state, row.taken) == ("FAILED", 0)
        assert "it does not serve the deployment 'dep'" in row.detail
        (event,) = await server.events(kinds="command.*")
        assert event.kind == "command.failed"


@virtually
async def test_what_cannot_be_done_says_why() -> None:
    async with two() as (server, taker):
        run = await failed_run(taker)
        await taker.recover()
        for kind, arguments, said in (
            ("resume", {"expected_state": "PAUSED"}, "the run is Failed by now, not PAUSED"),
            ("rerun", {"parameters": {"m": 1}}, "has no parameter 'm'"),
            ("fork", {"parameters": None, "from_task": "none"}, "none"),
        ):
            row = await end(server, await ask(server, kind, arguments, run=run))
            assert row.state == "FAILED"
            assert said in row.detail
        row = await end(server, await ask(server, "rerun", {}, run="gone"))
        assert (row.state, "gone" in row.detail) == ("FAILED", True)
        assert len(await taker.runs()) == 1


@virtually
async def test_what_nobody_takes_in_time_expires_and_is_never_done() -> None:
    async with two() as (server, taker):
        run = await failed_run(taker)
        await taker.recover()
        taker.commands.look = lambda: None  # type: ignore[method-assign] # it is busy, it seems
        row = await end(server, await ask(server, "rerun", {}, run=run))
        assert row.state == "EXPIRED"
        assert "no engine took it within 30 s" in row.detail
        del taker.commands.look
        taker.commands.look()
        await asyncio.sleep(PATIENCE)
        assert len(await taker.runs()) == 1
        (event,) = await server.events(kinds="command.*")
        assert event.kind == "command.expired"


@virtually
async def test_of_several_engines_one_does_it() -> None:
    store = MemoryStore()
    async with two(store) as (server, taker), contextlib.AsyncExitStack() as stack:
        takers = [taker]
        while len(takers) < 5:
            takers += [await stack.enter_async_context(virtual_engine(store))]
        run = await failed_run(taker)
        for one in takers:
            await one.recover()
        rows = [await ask(server, "rerun", {}, run=run) for _ in range(20)]
        rows = [await end(server, row) for row in rows]
        assert {row.state for row in rows} == {"DONE"}
        assert {row.taken for row in rows} == {1}
        assert len({row.made for row in rows}) == 20
        for row in rows:
            assert await server.wait(row.made or "")
        assert len(await server.runs()) == 21


def dies(engine: Engine, *, before: bool) -> asyncio.Event:
    """Let an engine die in the middle of a command, before or after it did what is asked."""
    died, done = asyncio.Event(), engine.commands._done

    async def dying(row: CommandRow) -> str | None:
        if not before:
            await done(row)
        engine._lock.drop()
        died.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    engine.commands._done = dying  # type: ignore[method-assign] # it dies there
    return died


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["rerun", "fork", "run", "resume"])
@virtually
async def test_what_a_dying_engine_took_another_one_does_once(kind: str, before: bool) -> None:
    store = MemoryStore()
    async with two(store) as (server, first):
        run = await failed_run(first)
        await first.deploy(asked, "dep", overlap="allow")
        await first.recover()
        died = dies(first, before=before)
        seen = await server.reader.find_run(run)
        assert seen is not None
        arguments = {"expected_state": "FAILED", "state_at": seen.state_at}
        about = {"deployment": "dep"} if kind == "run" else {"run": run}
        row = await ask(server, kind, arguments if kind == "resume" else {}, **about)
        await died.wait()
        assert (await stored(server, row.id)).state == "TAKEN"
        async with virtual_engine(store) as second:
            await second.deploy(asked, "dep", overlap="allow")
            await second.recover()
            row = await end(server, row)
            assert (row.state, row.engine, row.taken) == ("DONE", second.id, 2), row.detail
            assert row.made is not None
            await server.wait(row.made)
            runs = await server.runs()
            assert len(runs) == (1 if kind == "resume" else 2)
            assert (await server.get_run(row.made)).state.is_completed()


@virtually
async def test_a_resumed_run_that_failed_again_is_not_resumed_for_the_same_command() -> None:
    store = MemoryStore()
    async with two(store) as (server, first):
        run = await failed_run(first)
        await first.recover()
        FAIL.append(True)  # it fails again
        died = dies(first, before=False)
        seen = await server.reader.find_run(run)
        assert seen is not None
        given = {"expected_state": "FAILED", "state_at": seen.state_at}
        row = await ask(server, "resume", given, run=run)
        await died.wait()
        await (await first.get_run(run)).wait()
        story = len(await server.reader.states(seen.pk))
        async with virtual_engine(store) as second:
            await second.recover()
            assert (await end(server, row)).state == "DONE"
            assert len(await server.reader.states(seen.pk)) == story


@virtually
async def test_an_engine_that_is_closed_gives_back_what_it_has_not_done() -> None:
    store = MemoryStore()
    async with two(store) as (server, first):
        run = await failed_run(first)
        begun = asyncio.Event()

        async def slow(row: CommandRow) -> str | None:
            begun.set()
            await asyncio.sleep(1)
            raise StoreClosed("the engine is closed")

        await first.recover()
        first.commands._done = slow  # type: ignore[method-assign] # it is slow there
        row = await ask(server, "rerun", {}, run=run)
        await begun.wait()
        await first.interrupt("closing")
        await first.commands.aclose()
        assert (await stored(server, row.id)).state == "WAITING"
        async with virtual_engine(store) as second:
            await second.recover()
            assert (await end(server, row)).state == "DONE"


@virtually
async def test_an_end_that_cannot_be_stored_at_once_is_stored_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (server, taker):
        run = await failed_run(taker)
        await taker.recover()
        change, failures = taker.commands._change, [1, 1]

        async def fails(command: str, decide: Any) -> CommandRow | None:
            if taker.commands._under_way and failures:
                failures.pop()
                raise StoreError("the disk is full")
            return await change(command, decide)

        monkeypatch.setattr(taker.commands, "_change", fails)
        row = await end(server, await ask(server, "rerun", {}, run=run))
        assert (row.state, row.taken, failures) == ("DONE", 1, [])
        assert len(await server.runs()) == 2


@virtually
async def test_the_same_key_gives_the_same_run_by_whichever_way() -> None:
    async with two() as (server, taker):
        run = await failed_run(taker)
        await taker.recover()
        first = await end(server, await ask(server, "rerun", {}, run=run, key="k"))
        again = await ask(server, "rerun", {}, run=run, key="k")
        assert (again.id, again.made) == (first.id, first.made)
        assert (await taker.rerun(run, idempotency_key="k")).id == first.made


@virtually
async def test_an_answer_is_checked_by_the_engine_that_has_its_model() -> None:
    async with two() as (server, taker):
        run = await taker.submit(asks)
        await taker.recover()
        while not (await server.get_run(run.id)).state.is_paused():
            await asyncio.sleep(0.1)
        bad = await end(server, await ask(server, "answer", {"data": {"yes": 7}}, run=run.id))
        assert (bad.state, "yes" in bad.detail) == ("FAILED", True)
        good = await end(server, await ask(server, "answer", {"data": {"yes": True}}, run=run.id))
        assert (good.state, good.made) == ("DONE", run.id)
        assert await run


@virtually
async def test_a_flow_is_deployed_where_it_is_known() -> None:
    async with two() as (server, taker):
        await taker.recover()
        given = {
            "flow": "asked of another",
            "schedules": [{"cron": "0 3 * * *", "start": "2026-01-01T00:00Z"}],
        }
        row = await end(server, await ask(server, "deploy", given, deployment="new"))
        assert (row.state, row.detail) == ("DONE", "it is deployed")
        (made,) = await server.deployments()
        assert (made.name, made.source, len(made.schedules)) == ("new", "api", 1)
        row = await end(server, await ask(server, "deploy", {"flow": "no such"}, deployment="x"))
        assert (row.state, "no flow called 'no such'" in row.detail) == ("FAILED", True)


async def test_code_that_is_not_loaded_is_imported_as_by_a_recovery(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "commanded_elsewhere"
    (tmp_path / f"{name}.py").write_text(
        "from asyncflow import flow\n@flow\nasync def far() -> int:\n    return 7\n"
    )
    import importlib
    import sys

    far = importlib.import_module(name).far
    async with Engine(path) as server, Engine(path) as taker:
        run = await taker.submit(far)
        await run
        del far, run
        sys.modules.pop(name)
        for key in [key for key in _FLOWS if key[0].startswith(name)]:
            del _FLOWS[key]
        await taker.recover()
        row = await ask(server, "rerun", {}, run=(await server.runs())[0].id)
        taker.commands.look()
        async with asyncio.timeout(30):
            row = await end(server, row)
        assert row.state == "DONE", row.detail
        assert (await server.wait(row.made or "")).result() == 7
    sys.modules.pop(name, None)


@virtually
async def test_a_run_whose_code_no_engine_has_is_refused_with_the_reason() -> None:
    store = MemoryStore()
    async with two(store) as (server, taker), virtual_engine(store) as other:

        @flow(name="versions", version="1")
        async def versions() -> None:
            raise RuntimeError("as it was")

        run = await taker.submit(versions)
        await run.wait()
        lost = await failed_run(taker)
        row = await server.reader.find_run(lost)
        assert row is not None
        nowhere = '{"key": "gone:gone", "module": "gone", "qualname": "gone", "file": null}'
        store.write(Writes(runs=[row._replace(flow_ref=nowhere, flow_name="gone")]))
        versions = flow(name="versions", version="2")(versions.fn)
        for one in (taker, other):
            await one.recover()
        begun = now()
        for run_id, said in ((run.id, "begun by version '1'"), (lost, "the code of flow 'gone'")):
            end_ = await end(server, await ask(server, "resume", {}, run=run_id))
            assert (end_.state, end_.taken, said in end_.detail) == ("FAILED", 0, True), end_
            assert sorted(json.loads(end_.declined)) == [taker.id, other.id]
        assert now() - begun < PATIENCE / 2, "nobody has to wait until it expires"


@virtually
async def test_a_command_of_a_newer_version_is_left_to_who_knows_it() -> None:
    async with two() as (server, taker):
        await taker.recover()
        row = await end(server, await ask(server, "levitate", {}, run="any"))
        assert (row.state, "knows nothing of 'levitate'" in row.detail) == ("FAILED", True)


@virtually
async def test_secrets_among_the_arguments_are_masked_once_they_are_known() -> None:
    @flow
    async def signs(key: pydantic.SecretStr, n: int = 1) -> None:
        return None

    async with two() as (server, taker):
        await taker.deploy(signs, "signs", parameters={"key": "hunter22"}, overlap="allow")
        row = await ask(
            server, "run", {"parameters": {"key": "swordfish"}, "name": None}, deployment="signs"
        )
        row = await end(server, row)
        assert row.state == "DONE", row.detail
        assert json.loads(row.arguments)["parameters"]["key"] == "**********"


@virtually
async def test_one_that_ends_with_what_it_recovers_takes_no_commands() -> None:
    async with two() as (server, taker):
        run = await failed_run(taker)
        taker.commands.allowed = False
        await taker.recover()
        assert await server.commands.ask("rerun", {}, run=run) is None


@virtually
async def test_one_that_was_alone_takes_commands_when_another_one_comes() -> None:
    store = MemoryStore()
    async with virtual_engine(store) as taker:
        run = await failed_run(taker)
        await taker.recover()
        async with virtual_engine(store) as server:
            await asyncio.sleep(0.1)
            row = await end(server, await ask(server, "rerun", {}, run=run))
            assert row.state == "DONE", row.detail


async def test_an_idle_engine_asks_the_store_no_more_for_commands(path: Path) -> None:
    async with Engine(path) as engine:
        await engine.deploy(asked, "dep")
        await engine.recover()
        said: list[str] = []
        store = engine.store
        store._connection.set_trace_callback(said.append)  # type: ignore[attr-defined] # a SqliteStore
        await engine.recovery.recover()
        store._connection.set_trace_callback(None)  # type: ignore[attr-defined] # as above
        assert len(said) == 2, "unfinished runs, and whether there are commands"
        version = planning.version().sql
        assert version.count("commands") == 1, "it is told by what is asked for schedules anyway"
