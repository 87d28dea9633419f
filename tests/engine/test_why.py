"""Why a run is not moving: told by the engine that has it, and to those who see only the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner
from patience import until
from pydantic import BaseModel, SecretStr

from asyncflow import (
    INPUTS,
    Engine,
    MemoryStore,
    concurrency,
    fallback,
    flow,
    pause_flow_run,
    rate_limit,
    set_progress,
    sleep,
    task,
    wait_for_event,
)
from asyncflow import why as whys
from asyncflow.cli.commands import cli
from asyncflow.server.app import serve_app
from asyncflow.standing import Standing, look, of_call, of_run
from asyncflow.store.base import NoticeRow
from asyncflow.why import Reason, sentence

GATE = asyncio.Event()


@pytest.fixture(autouse=True)
def _gate() -> Any:
    global GATE
    GATE = asyncio.Event()


@pytest.fixture
def _telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines tell, and look at what others do, at once."""
    monkeypatch.setattr("asyncflow.telling.EVERY", 0.0)
    monkeypatch.setattr("asyncflow.telling.YOUNG", -1.0)
    monkeypatch.setattr("asyncflow.engine.POLL", 0.01)
    monkeypatch.setattr("asyncflow.sharing.CALM", 0.01)
    monkeypatch.setattr("asyncflow.sharing.HURRY", 0.005)


@task
async def hang(n: int = 0) -> int:
    await GATE.wait()
    return n


@task(limits={"db": 1})
async def query(n: int) -> int:
    await GATE.wait()
    return n


@task
async def after(n: int) -> int:
    return n


async def waits_of(engine: Engine, run_id: str) -> list[Reason]:
    row = await engine.reader.find_run(run_id)
    assert row is not None
    return (await whys.why(row, look(engine), of_run(engine, run_id))).reasons


async def of_kind(engine: Engine, run_id: str, kind: str) -> Reason:
    async def find() -> list[Reason]:
        return [one for one in await waits_of(engine, run_id) if one.kind == kind]

    found: list[Reason] = await until(find)
    return found[0]


@asynccontextmanager
async def started(body: Any, *args: Any, **options: Any) -> AsyncIterator[tuple[Engine, str]]:
    """A run in an engine of its own, which ends when the gate is opened."""
    async with Engine(options.pop("store", None) or MemoryStore(), **options) as engine:
        run = await engine.submit(body, *args)
        try:
            yield engine, run.id
        finally:
            GATE.set()
            if engine.live:
                await engine.cancel(run.id)


# --- in the process that has the run ----------------------------------------------------------


async def test_calls_wait_for_a_named_limit_and_those_who_hold_it_are_named() -> None:
    @flow
    async def many() -> None:
        await query.map(range(100))

    async with started(many) as (engine, run_id):
        await engine.set_limit("db", 3)
        one = await of_kind(engine, run_id, "limit")
        assert one.limit is not None
        assert (one.task, one.calls, one.limit.name, one.limit.scope) == (
            "query", 97, "db", "shared"
        )  # fmt: skip
        assert (one.limit.used, one.limit.size, one.limit.waiting) == (3, 3, 97)
        assert [(h.run_id, h.name, h.units) for h in one.limit.holders] == [
            (run_id, f"query-{n}", 1) for n in (1, 2, 3)
        ]
        assert all(h.since is not None for h in one.limit.holders)
        text = sentence(one)
        assert text.startswith("97 calls of query wait for the limit 'db' (3 of 3 in use); held by")
        assert "query-1 of many since" in text


@pytest.mark.parametrize("scope", ["engine", "flow", "task", "threads"])
async def test_calls_wait_for_a_slot_of_their_own_engine(scope: str) -> None:
    limited = hang.with_options(max_concurrency=2) if scope == "task" else hang

    loop = asyncio.get_running_loop()

    @task
    def blocks(n: int) -> None:
        asyncio.run_coroutine_threadsafe(GATE.wait(), loop).result()

    @flow(max_concurrency=2 if scope == "flow" else None)
    async def many() -> None:
        await (blocks if scope == "threads" else limited).map(range(9))

    options = {"engine": {"max_concurrency": 2}, "threads": {"max_threads": 2}}.get(scope, {})
    async with started(many, **options) as (engine, run_id):
        one = await of_kind(engine, run_id, "max_concurrency")
        assert one.limit is not None
        assert (one.limit.scope, one.limit.used, one.limit.size) == (scope, 2, 2)
        assert one.calls == 7
        assert len(one.limit.holders) == 2
        words = {"threads": "a thread (2 of 2", "engine": "max_concurrency of the engine (2 of 2"}
        assert words.get(scope, f"max_concurrency of the {scope}") in sentence(one)


async def test_a_rate_that_is_used_up_is_told_with_the_time_of_the_next_start() -> None:
    @task
    async def ask(n: int) -> None:
        await rate_limit("vendor", limit=2, period=3600)

    @flow
    async def many() -> None:
        await ask.map(range(4))

    async with started(many) as (engine, run_id):
        one = await of_kind(engine, run_id, "rate")
        assert (one.task, one.calls) == ("ask", 2)
        assert one.limit is not None
        assert (one.limit.name, one.limit.size, one.limit.period) == ("vendor", 2, 3600)
        assert one.until is not None
        assert 3500 < one.until - engine.clock.time() <= 3600
        assert "the rate 'vendor' (2 in 3600 s), which is used up, until 2" in sentence(one)
        assert (await engine.cancel(run_id)) is True


async def test_code_in_a_task_and_in_the_flow_waits_for_units_that_others_hold() -> None:
    @task
    async def holds() -> None:
        async with concurrency("disk", limit=1):
            await GATE.wait()

    @flow
    async def first() -> None:
        await holds()

    @flow
    async def second() -> None:
        async with concurrency("disk", limit=1):
            pass

    async with started(first) as (engine, run_id):
        await until(lambda: engine.holders)
        other = await engine.submit(second)
        third = await engine.submit(first)
        one = await of_kind(engine, other.id, "limit")
        assert (one.calls, one.task) == (0, "")
        assert one.limit is not None
        (holder,) = one.limit.holders
        assert (holder.run_id, holder.name) == (run_id, "holds-1")
        assert sentence(one).startswith("the flow waits for the limit 'disk' (1 of 1 in use)")
        one = await of_kind(engine, third.id, "limit")
        assert [(thing.name, thing.state) for thing in one.who] == [("holds-1", "Running")]
        GATE.set()
        await other
        await third


async def test_calls_wait_for_others_by_name_and_id() -> None:
    @flow
    async def chain() -> None:
        slow = hang.submit(1)
        await after.submit(slow)
        await after.submit(slow)

    @flow
    async def of_map() -> None:
        await after.submit(hang.map(range(5)))

    async with started(chain) as (engine, run_id):
        one = await of_kind(engine, run_id, "upstream")
        assert (one.task, one.calls) == ("after", 1)
        assert [(t.name, t.seq, t.run_id, t.state) for t in one.on] == [
            ("hang-1", 1, run_id, "Running")
        ]
        assert sentence(one) == "after-2 waits for others to end: hang-1 (running)"
        found = of_call(engine, run_id, 2)
        assert found is not None
        assert [r.kind for r in found[1]] == ["upstream"]
        assert of_call(engine, run_id, 77) is None
        second = await engine.submit(of_map)
        one = await of_kind(engine, second.id, "upstream")
        assert len(one.on) + one.more == 5
        GATE.set()
        await second


async def test_a_retry_tells_until_when_it_waits_and_why() -> None:
    @task(retries=1, retry_delay_seconds=3000, retry_jitter_factor=0)
    async def fails(n: int) -> None:
        raise ValueError(f"no {n}")

    @flow
    async def many() -> None:
        await fails.map(range(3))

    async with started(many) as (engine, run_id):
        await until(lambda: len(engine.machine.retrying()) == 3)
        one = await of_kind(engine, run_id, "retry")
        assert (one.task, one.calls) == ("fails", 3)
        assert one.until is not None
        assert 2900 < one.until - engine.clock.time() <= 3000
        assert "3 calls of fails wait for another attempt, until 2" in sentence(one)
        assert "ValueError: no" in sentence(one)


async def test_a_flow_that_is_tried_again_tells_when() -> None:
    @flow(retries=1, retry_delay_seconds=3000, retry_jitter_factor=0)
    async def fails() -> None:
        raise ValueError("not now")

    async with started(fails) as (engine, run_id):
        one = await of_kind(engine, run_id, "retry")
        assert one.until is not None
        assert one.until - engine.clock.time() > 2000
        assert "not now" in one.what
        assert one.calls == 0


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sleep", "the flow sleeps, until 2"),
        ("event", "the flow waits for the event 'data', until 2"),
        ("answer", "the flow waits for an answer"),
    ],
)
async def test_the_body_waits_for_time_events_and_people(kind: str, said: str) -> None:
    @flow
    async def body() -> None:
        if kind == "sleep":
            await sleep(3600)
        elif kind == "event":
            await wait_for_event("data", timeout=3600)
        else:
            await pause_flow_run()

    async with started(body) as (engine, run_id):
        one = await of_kind(engine, run_id, kind)
        assert sentence(one).startswith(said)
        assert len(await waits_of(engine, run_id)) == 1, "the record and the engine are one source"


async def test_tasks_wait_for_events_and_sleep_too() -> None:
    @task
    async def both(n: int) -> None:
        await (sleep(3600) if n else wait_for_event("x"))

    @flow
    async def body() -> None:
        await both.map(range(2))

    async with started(body) as (engine, run_id):
        assert sentence(await of_kind(engine, run_id, "event")) == "both-1 waits for the event 'x'"
        assert sentence(await of_kind(engine, run_id, "sleep")).startswith("both-2 sleeps, until 2")


async def test_a_person_a_fallback_a_child_and_a_cached_result_are_waited_for() -> None:
    @task(failure_policy="pause")
    async def paused() -> None:
        raise ValueError("see to me")

    @task
    async def stands_in() -> None:
        await GATE.wait()

    @task(failure_policy=fallback(stands_in))
    async def replaced() -> None:
        raise ValueError("gone")

    @task(cache_policy=INPUTS)
    async def made(n: int) -> int:
        await GATE.wait()
        return n

    @flow
    async def child() -> None:
        await GATE.wait()

    @flow
    async def body() -> None:
        futures = [paused.submit(), replaced.submit(), made.submit(1), made.submit(1)]
        futures.append(child.submit())
        for future in futures:
            await future

    async with started(body) as (engine, run_id):
        one = await of_kind(engine, run_id, "attention")
        assert "see to me" in sentence(one)
        one = await of_kind(engine, run_id, "fallback")
        assert [thing.task for thing in one.on] == ["stands_in"]
        one = await of_kind(engine, run_id, "cache")
        assert [thing.name for thing in one.on] == ["made-3"]
        one = await of_kind(engine, run_id, "child")
        assert [(t.name[:5], t.state) for t in one.on] == [("child", "Running")]
        assert one.on[0].run_id in engine.live


async def test_a_map_that_has_not_begun_counts_what_has_no_row_yet() -> None:
    @flow(max_concurrency=4)
    async def many() -> None:
        await hang.map(range(5_000))

    async with started(many) as (engine, run_id):
        await of_kind(engine, run_id, "max_concurrency")
        found = of_run(engine, run_id)
        assert found is not None
        assert found.pending == {"hang": 4_996}


async def test_secrets_are_in_no_reason() -> None:
    @task(task_run_name="with {key}", limits={"one": 1})
    async def hidden(key: SecretStr) -> None:
        await GATE.wait()

    @flow
    async def body(key: SecretStr) -> None:
        await asyncio.gather(hidden(key), hidden(key), return_exceptions=True)

    async with started(body, "swordfish") as (engine, run_id):
        await engine.set_limit("one", 1)
        one = await of_kind(engine, run_id, "limit")
        assert "swordfish" not in json.dumps(whys.reason_json(one), default=str)


def test_a_limit_that_is_paused_says_so() -> None:
    held = whys.Held(name="tag:api", scope="shared", size=0)
    one = Reason(kind="limit", task="ask", calls=2, limit=held)
    assert (
        sentence(one) == "2 calls of ask wait for the limit of the tag 'api', which is paused (0)"
    )
    one.least = True
    assert sentence(one).startswith("at least 2 calls of ask wait")


# --- from other processes -----------------------------------------------------------------------


@flow
async def queries(n: int) -> None:
    await query.map(range(n))


@pytest.mark.usefixtures("_telling")
@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_another_engine_sees_who_holds_what_its_run_waits_for(path: Path, kind: str) -> None:
    store: Any = MemoryStore() if kind == "memory" else path
    async with Engine(store) as one, Engine(store) as other, Engine(store) as looks:
        await one.set_limit("db", 2)
        first = await one.submit(queries, 2)
        await until(lambda: len(one.executor.running) == 2)
        second = await other.submit(queries, 5)

        async def told(engine: Engine) -> Any:
            for reason in await waits_of(engine, second.id):
                holders = reason.limit.holders if reason.limit is not None else []
                if [h.run_id for h in holders] == [first.id, first.id]:
                    return reason
            return None

        for engine in (other, looks):
            reason = await until(partial(told, engine))
            assert reason.limit.used == 2
            assert reason.calls == 5
            assert [h.name for h in reason.limit.holders] == ["query-1", "query-2"]
            assert {h.engine for h in reason.limit.holders} == {one.id}
            assert (reason.told_at is None) == (engine is other)
        (held,) = await whys.holding(look(looks))
        assert (held.name, held.used, held.waiting) == ("db", 2, 5)
        GATE.set()
        await first
        await second

        async def nothing() -> bool:
            return await looks.reader.notices("limit") == []

        await until(nothing)


@pytest.mark.usefixtures("_telling")
async def test_what_an_engine_told_is_gone_with_it(path: Path) -> None:
    async with Engine(path) as looks:
        async with Engine(path) as one:
            await one.set_limit("db", 1)
            run = await one.submit(queries, 3)

            async def told() -> Any:
                return await looks.reader.notices("run")

            (row,) = await until(told)
            assert row.engine == one.id
        assert await looks.reader.notices("run") == []
        (reason,) = await waits_of(looks, run.id)
        assert reason.kind == "owner"
        assert sentence(reason).startswith("no engine has it")


async def test_what_is_told_by_another_version_or_a_dead_engine_is_left_out(path: Path) -> None:
    async with Engine(path) as engine:
        rows = [
            NoticeRow("run", "1", engine.id, 5.0, b'{"waits": [{"kind": "new"}], "pending": {}}'),
            NoticeRow("limit", "x", engine.id, 5.0, b"[]"),
            NoticeRow("limit", "y", 99, 5.0, whys.held_dumped(whys.Held(name="y", scope="shared"))),
        ]
        await engine.writer.do(lambda: engine.store.tell(engine.id, rows[:2], 0.0))
        await engine.writer.do(lambda: engine.store.tell(99, rows[2:], 0.0))
        assert whys.loaded(rows[0]) == ([], {})
        assert await whys.holding(look(engine)) == []
        await engine.writer.do(lambda: engine.store.tell(engine.id, [], 6.0))
        assert await engine.reader.notices("limit") == [], "what is old goes"


async def asked(url: str, place: str) -> Any:
    """What a server says of a place of its API."""
    base, _, token = url.partition("/#token=")
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as web,
        web.get(f"{base}/api/{place}") as answer,
    ):
        assert answer.status == 200, await answer.text()
        return await answer.json()


@pytest.mark.usefixtures("_telling")
async def test_a_server_of_its_own_and_the_command_line_tell_the_same(path: Path) -> None:
    async with Engine(path) as one, Engine(path) as looks:
        await one.set_limit("db", 1)
        run = await one.submit(queries, 4)
        runner, url = await serve_app(looks, "127.0.0.1", 0, None, embedded=False)

        async def shown() -> Any:
            # What was told first may be from before one of the four had its slot.
            found = await asked(url, f"runs/{run.id}")
            whole = found["tasks"] and found["tasks"][0]["total"] == 4
            return found if whole and [one["calls"] for one in found["waits"]] == [3] else None

        (wait,) = (await until(shown))["waits"]
        assert (wait["kind"], wait["task"]) == ("limit", "query")
        assert wait["limit"]["holders"][0]["run_id"] == run.id
        assert wait["told_at"] is not None
        (item,) = (await asked(url, "limits"))["items"]
        found = {key: item[key] for key in ("name", "limit", "size", "used", "scope", "waiting")}
        assert found == {
            "name": "db", "limit": 1, "size": 1, "used": 1, "scope": "shared", "waiting": 3
        }  # fmt: skip
        assert [h["name"] for h in item["holders"]] == ["query-1"]
        assert [s["engine"] for s in item["shares"]] == [one.id]
        await runner.cleanup()

        arguments = ["runs", "show", run.id, "--db", str(path)]
        result = await asyncio.to_thread(lambda: CliRunner().invoke(cli, arguments))
        assert result.exit_code == 0
        out = " ".join(result.output.split())
        assert "waits: 3 calls of query wait for the limit 'db' (1 of 1 in use); held by" in out
        GATE.set()
        await run


async def test_a_call_without_a_row_can_be_looked_at_where_it_is_carried_out(path: Path) -> None:
    @flow
    async def chain() -> None:
        await after.submit(hang.submit(1))

    async with started(chain, store=path) as (engine, run_id):
        await of_kind(engine, run_id, "upstream")
        runner, url = await serve_app(engine, "127.0.0.1", 0, None, embedded=True)
        found = await asked(url, f"runs/{run_id}/task-runs/2")
        assert (found["name"], found["state"]) == ("after-2", "PENDING")
        assert [w["text"] for w in found["waits"]] == [
            "after-2 waits for others to end: hang-1 (running)"
        ]
        items = (await asked(url, "limits"))["items"]
        assert [(i["scope"], i["used"], i["holders"][0]["name"]) for i in items] == [
            ("engine", 1, "hang-1")
        ]
        await runner.cleanup()


async def test_a_server_tells_the_forms_of_a_run_and_what_its_tasks_were_given(path: Path) -> None:
    class Answer(BaseModel):
        okay: bool

    @task
    async def given(n: int, text: str = "a", more: Any = None) -> int:
        set_progress(n, None, message="one")
        set_progress(1, 2, key="rows")
        return n

    @flow(name="asks for an answer")
    async def asks(limit: int = 3) -> bool:
        await given(1, "b")
        await given(2, more={"not": "shown"})
        return bool((await pause_flow_run(wait_for_input=Answer)).okay)

    async with started(asks, store=path) as (engine, run_id):
        await of_kind(engine, run_id, "answer")
        await engine.written()
        runner, url = await serve_app(engine, "127.0.0.1", 0, None, embedded=True)
        forms = await asked(url, f"runs/{run_id}/forms")
        assert forms["parameters"]["properties"]["limit"]["default"] == 3
        assert forms["answer"]["properties"]["okay"]["type"] == "boolean"
        shown = await asked(url, f"runs/{run_id}")
        assert shown["asks"] is True
        told = {(p["name"], p["done"], p["total"]) for p in shown["progress"]}
        assert told == {(None, 1, None), ("rows", 1, 2), (None, 2, None)}
        assert (await asked(url, f"runs/{run_id}/task-runs/1"))["inputs"] == "(1, 'b')"
        assert (await asked(url, f"runs/{run_id}/task-runs/2"))["inputs"] is None
        await runner.cleanup()
        await engine.answer(run_id, {"okay": True})


def test_there_is_a_sentence_for_each_kind() -> None:
    for kind in whys.KINDS:
        limit = whys.Held(name="x", scope="shared") if kind in ("limit", "rate") else None
        if kind == "max_concurrency":
            limit = whys.Held(name="", scope="processes", size=2.0, used=2.0)
        assert whys.head(Reason(kind=kind, task="t", calls=2, limit=limit))


async def test_who_holds_limits_is_looked_for_only_where_a_run_waits_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[str] = []
    find = Standing._find_holders

    def noted(standing: Standing) -> None:
        looked.append("looked")
        find(standing)

    monkeypatch.setattr(Standing, "_find_holders", noted)
    async with Engine(MemoryStore()) as engine:
        await engine.set_limit("db", 1)
        first, second = await engine.submit(queries, 1), await engine.submit(queries, 1)
        await until(lambda: len(engine.executor.running) == 1)
        row = await engine.stored_run(first.id)
        assert (await whys.why(row, look(engine))).reasons == []
        assert looked == []
        row = await engine.stored_run(second.id)
        (reason,) = (await whys.why(row, look(engine), of_run(engine, second.id))).reasons
        assert reason.limit is not None
        assert [holder.run_id for holder in reason.limit.holders] == [first.id]
        assert looked
        GATE.set()
        await first
        await second
