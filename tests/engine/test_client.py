"""The client of the REST API, against the real server and against bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from patience import until

from asyncflow import (
    DeploymentBusy,
    Engine,
    InvalidOption,
    InvalidParameters,
    MemoryStore,
    RunNotResumable,
    ServerError,
    ServerTimeout,
    ServerUnreachable,
    SqliteStore,
    StoreError,
    UnknownAutomation,
    UnknownDeployment,
    UnknownRun,
    create_markdown_artifact,
    create_table_artifact,
    flow,
    get_run_logger,
    pause_flow_run,
    sleep,
    task,
)
from asyncflow import __version__ as version
from asyncflow.client import Client
from asyncflow.server.api import ROUTES
from asyncflow.server.app import serve_app
from asyncflow.server.security import Access
from asyncflow.transport import Messages, address

NOBODY = "00000000-0000-7000-8000-000000000000"
TOKEN = "a token that nobody may see"


@task(retries=1, retry_delay_seconds=0, retry_jitter_factor=0)
async def work(n: int) -> int:
    get_run_logger().info("working on %s", n)
    if n == 3:
        raise ValueError("no threes")
    return n


@flow
async def threes(n: int = 3) -> int:
    return sum(await work.map(range(n)))


@flow
async def shows() -> None:
    create_markdown_artifact("# Title", key="text")
    create_table_artifact([{"a": 1}], key="table")


@flow
async def waits() -> None:
    await sleep(3600)


@flow
async def asks() -> Any:
    return await pause_flow_run()


class Served:
    """An engine with its server, and a client of it."""

    def __init__(self, engine: Engine, url: str, client: Client) -> None:
        self.engine = engine
        self.url = url
        self.client = client


@contextlib.asynccontextmanager
async def serving(engine: Engine, access: Access | None = None) -> AsyncIterator[str]:
    runner, url = await serve_app(engine, "127.0.0.1", 0, access, embedded=True)
    try:
        yield url
    finally:
        await runner.cleanup()


@pytest.fixture
async def served(store: MemoryStore | SqliteStore) -> AsyncIterator[Served]:
    async with Engine(store) as engine, serving(engine) as url, Client(url) as client:
        yield Served(engine, url, client)


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def strange(answer: Answer) -> AsyncIterator[str]:
    """A server that is none of ours."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def at_once(_: float) -> None:
    """Instead of waiting."""
    await asyncio.sleep(0)


def impatient(url: str, **options: Any) -> Client:
    client = Client(url, **options)
    client._transport.pause = at_once
    return client


# --- looking --------------------------------------------------------------------------------------


async def test_a_run_is_told_in_all_its_parts(served: Served) -> None:
    run = await served.engine.submit(threes, 4, tags=["a"], run_name="own name")
    await run.wait()
    client = served.client
    (listed,) = (await client.runs(tags="a", full=True)).items
    assert (listed.id, listed.state, listed.name) == (run.id, "FAILED", "own name")
    assert listed.parameters == {"n": 4}
    assert listed.error is not None
    assert (await client.runs()).items[0].error is None
    shown = await client.run(run.id)
    assert shown.created_at.tzinfo is not None
    assert [s.state_name for s in shown.story] == ["Scheduled", "Running", "Failed"]
    tasks = [one async for one in client.task_runs(run.id, limit=3)]
    assert [one.seq for one in tasks] == [1, 2, 3, 4]
    assert [one.seq for one in (await client.task_runs(run.id, state="failed")).items] == [4]
    one = await client.task_run(run.id, tasks[3].id)
    assert [a.attempt for a in one.attempts_list] == [1]
    assert one.error is not None
    assert (one.error.module, one.error.type, one.error.message) == (
        "builtins", "ValueError", "no threes",
    )  # fmt: skip
    (attempt,) = await client.attempts(run.id)
    assert (attempt.task_run_id, attempt.error.message) == (tasks[3].id, "no threes")
    counts = {(c.state_name, c.count) for c in await client.task_counts(run.id)}
    assert counts == {("Completed", 3), ("Failed", 1)}
    assert (await client.timeline(run.id)).total == 4
    lines = [line.message async for line in client.logs(run.id, text="working", limit=2)]
    assert len(lines) == 5
    assert (await client.summary()).states == {"FAILED": 1}
    assert (await client.health()).version == version
    assert (await client.me()).role == "admin"


async def test_runs_are_found_by_what_they_are(served: Served) -> None:
    for n in range(3):
        await (await served.engine.submit(threes, n)).wait()
    client = served.client
    runs = [run async for run in client.runs(limit=2)]
    assert len({run.id for run in runs}) == 3
    page = await client.runs(limit=2)
    assert [r.id for r in (await client.runs(limit=2, cursor=page.next_cursor)).items] == [
        runs[2].id
    ]
    for filters, found in (
        ({"id": runs[0].id}, 1),
        ({"id": "ffff"}, 0),
        ({"flow": "threes"}, 3),
        ({"flow": "none"}, 0),
        ({"state": "not_completed"}, 0),
        ({"state": ["completed", "failed"]}, 3),
        ({"since": datetime(2020, 1, 1, tzinfo=UTC)}, 3),
        ({"since": datetime(2200, 1, 1, tzinfo=UTC)}, 0),
        ({"parent": runs[0].id}, 0),
        ({"deployment": "none"}, 0),
        ({"text": "THR"}, 3),
    ):
        assert len([r async for r in client.runs(**filters)]) == found, filters  # type: ignore[arg-type] # of a table


async def test_what_a_run_shows_comes_with_or_without_its_data(served: Served) -> None:
    run = await served.engine.submit(shows)
    await run
    both = (await served.client.artifacts(run.id)).items
    assert [one.key for one in both] == ["text", "table"]
    (table,) = (await served.client.artifacts(run.id, kind="table", data=False)).items
    assert (table.key, table.data) == ("table", {})


# --- acting ---------------------------------------------------------------------------------------


async def test_a_run_is_cancelled_and_its_end_waited_for(served: Served) -> None:
    run = await served.engine.submit(waits)
    with pytest.raises(ServerTimeout, match="has not ended within 0 s"):
        await served.client.wait(run.id, timeout=0)
    with pytest.raises(ServerError, match="by now") as refused:
        await served.client.cancel(run.id, expected_state="COMPLETED")
    assert refused.value.status == 409
    await served.client.cancel(run.id)
    ended = await served.client.wait(run.id, timeout=30)
    assert ended.state == "CANCELLED"
    with pytest.raises(ServerError, match="nothing to cancel"):
        await served.client.cancel(run.id)


async def test_a_run_is_resumed_rerun_forked_and_removed(served: Served) -> None:
    client = served.client
    run = await served.engine.submit(threes, 4)
    await run.wait()
    resumed = await client.resume(run.id)
    assert resumed.id == run.id
    assert (await client.wait(run.id)).attempt == 2
    again = await client.rerun(run.id, {"n": 2})
    assert (await client.wait(again.id)).state == "COMPLETED"
    assert (await client.run(again.id)).result.value == 1
    forked = await client.fork(run.id, results={"work-4": 10})
    assert forked.origin == run.id
    assert (await client.wait(forked.id)).state == "COMPLETED"
    assert (await client.run(forked.id)).result.value == 13
    with pytest.raises(RunNotResumable):
        await client.resume(forked.id)
    assert await client.delete(run.id) == 1
    done = await client.bulk("delete", state="completed")
    assert (done.done, done.failed) == (2, [])


@pytest.mark.parametrize("verb", ["rerun", "fork"])
async def test_the_same_key_gives_the_same_run(served: Served, verb: str) -> None:
    run = await served.engine.submit(threes, 2)
    await run
    act = getattr(served.client, verb)
    first, second = [await act(run.id, idempotency_key="once") for _ in range(2)]
    assert first.id == second.id != run.id
    assert (await act(run.id)).id != (await act(run.id)).id
    assert len([one async for one in served.client.runs()]) == 4
    for one in (await served.client.runs()).items:
        await served.client.wait(one.id)


async def test_a_run_is_answered_once(served: Served) -> None:
    run = await served.engine.submit(asks)

    async def paused() -> bool:
        return (await served.client.run(run.id)).state_name == "Paused"

    await until(paused)
    await served.client.answer(run.id)
    assert (await served.client.wait(run.id)).state == "COMPLETED"
    with pytest.raises(RunNotResumable):
        await served.client.answer(run.id)


async def test_deployments_are_declared_run_paused_and_removed(served: Served) -> None:
    client, name = served.client, "by night + 1: all"
    made = await client.declare_deployment(
        name, flow="threes", schedules=[{"cron": "0 3 1 1 *"}], overlap="skip"
    )
    assert made.name == name
    assert [one.name for one in await client.deployments()] == [name]
    run = await client.run_deployment(name, {"n": 1}, run_name="mine", idempotency_key="k")
    assert run.name == "mine"
    assert (await client.wait(run.id)).deployment == name
    assert (await client.run_deployment(name, idempotency_key="k")).id == run.id
    with pytest.raises(InvalidParameters, match="'n'"):
        await client.run_deployment(name, {"n": "x"})
    await client.pause_deployment(name)
    assert (await client.deployment(name)).paused
    await client.resume_deployment(name)
    assert not (await client.deployment(name)).paused
    assert (await client.ticks(name, state="missed")).items == []
    await client.remove_deployment(name)
    with pytest.raises(UnknownDeployment, match="by night"):
        await client.deployment(name)


async def test_a_busy_deployment_says_so(served: Served) -> None:
    await served.engine.deploy(waits, "one at a time")
    run = await served.client.run_deployment("one at a time")
    with pytest.raises(DeploymentBusy):
        await served.client.run_deployment("one at a time")
    await served.client.cancel(run.id)
    await served.client.wait(run.id)


async def test_automations_are_declared_switched_and_removed(served: Served) -> None:
    client = served.client
    declared: dict[str, Any] = {
        "trigger": {"type": "event", "expect": "flow-run.Completed"},
        "actions": [{"type": "set-limit", "name": "db", "limit": 1}],
    }
    assert (await client.declare_automation("calm", **declared)).enabled
    await client.enable_automation("calm", False)
    assert not (await client.automation("calm")).enabled
    await client.enable_automation("calm")
    assert [one.name for one in await client.automations()] == ["calm"]
    run = await served.engine.submit(threes, 1)
    await run

    async def delivered() -> Any:
        return (await client.deliveries(automation="calm", state="delivered")).items

    await until(delivered)
    assert (await client.deliveries(run=run.id)).items[0].kind == "set-limit"
    await client.remove_automation("calm")
    with pytest.raises(UnknownAutomation, match="calm"):
        await client.automation("calm")
    with pytest.raises(InvalidParameters, match="trigger"):
        await client.declare_automation("calm", actions=[])


async def test_limits_and_variables_are_set_and_taken_away(served: Served) -> None:
    client = served.client
    await client.set_limit("db", 5)
    await client.set_limit("calls", 10, period=60.0, burst=3)
    limits = {one.name: (one.limit, one.period, one.burst) for one in await client.limits()}
    assert limits == {"db": (5, None, None), "calls": (10, 60, 3)}
    odd = "tag:a/b ?#%\u00e9 .."
    await client.set_limit(odd, 0)
    assert odd in {one.name for one in await client.limits()}
    await client.lift_limit(odd)
    await client.lift_limit("db")
    assert [one.limit for one in await client.limits() if one.name == "db"] in ([], [None])
    with pytest.raises(InvalidParameters, match="limit"):
        await client.set_limit("db", -1)
    await client.set_variable("region", {"a": [1, None]})
    assert (await client.variable("region")).value == {"a": [1, None]}
    assert [one.name for one in await client.variables()] == ["region"]
    await client.delete_variable("region")
    for ask in (client.variable, client.delete_variable):
        with pytest.raises(ServerError, match="no variable") as none:
            await ask("region")
        assert none.value.status == 404
    with pytest.raises(InvalidOption, match="No Name"):
        await client.set_variable("No Name", 1)
    with pytest.raises(InvalidParameters, match="plain data"):
        await client.set_variable("region", object())
    with pytest.raises(InvalidParameters, match="plain data"):
        await client.set_variable("region", float("nan"))


# --- events ---------------------------------------------------------------------------------------


async def test_events_are_listed_in_either_order(served: Served) -> None:
    run = await served.engine.submit(threes, 1)
    await run
    client = served.client
    newest = [e async for e in client.events(run=run.id, limit=2)]
    oldest = [e async for e in client.events(run=run.id, limit=2, oldest_first=True)]
    assert newest == oldest[::-1]
    assert oldest[0].kind == "flow-run.Scheduled"
    some = await client.events(kinds="flow-run.*", oldest_first=True, cursor=str(oldest[0].id))
    assert [e.kind for e in some.items] == ["flow-run.Running", "flow-run.Completed"]
    with pytest.raises(UnknownRun):
        await client.events(run=NOBODY)


async def test_events_are_streamed_each_once_and_in_order(served: Served) -> None:
    before = await served.engine.submit(threes, 1)
    await before
    first = (await served.client.events(oldest_first=True)).items[0]
    got: list[str] = []
    async with aclosing(served.client.stream(kinds="flow-run.*", after=first.id)) as events:
        async for event in events:
            got.append(f"{event.kind} {event.run_id == before.id}")
            if len(got) == 2:
                # From here on by another way: what comes while it listens.
                await (await served.engine.submit(threes, 0)).wait()
            if len(got) == 5:
                break
    assert got == [
        "flow-run.Running True", "flow-run.Completed True", "flow-run.Scheduled False",
        "flow-run.Running False", "flow-run.Completed False",
    ]  # fmt: skip


async def test_a_stream_goes_on_after_the_server_was_away(store: MemoryStore | SqliteStore) -> None:
    access = Access()
    async with Engine(store) as engine:
        runner, url = await serve_app(engine, "127.0.0.1", 0, access, embedded=True)
        port = int(url.partition("/#")[0].rpartition(":")[2])
        async with impatient(url) as client, aclosing(client.stream(after=0)) as events:
            await (await engine.submit(threes, 0)).wait()
            kinds = [(await anext(events)).kind for _ in range(3)]
            await runner.cleanup()
            await (await engine.submit(threes, 0)).wait()
            pauses: asyncio.Queue[float] = asyncio.Queue()
            client._transport.pause = pauses.put
            more = asyncio.ensure_future(anext(events))
            for _ in range(3):  # after what broke, and after a first and a second try in vain
                await pauses.get()
            runner, _ = await serve_app(engine, "127.0.0.1", port, access, embedded=True)
            kinds += [(await more).kind, (await anext(events)).kind, (await anext(events)).kind]
        await runner.cleanup()
    assert kinds == ["flow-run.Scheduled", "flow-run.Running", "flow-run.Completed"] * 2


async def test_a_stream_ends_when_the_server_stays_away() -> None:
    async def gone(request: web.Request) -> web.StreamResponse:
        return web.Response(status=502, text="<h1>Bad gateway</h1>", content_type="text/html")

    async with strange(gone) as url, impatient(url) as client:
        with pytest.raises(ServerUnreachable, match="answers 502"):
            async for _ in client.stream(after=0, patience=0.05):
                pass


async def test_a_stream_that_ends_at_once_again_and_again_is_given_up() -> None:
    async def ends(request: web.Request) -> web.StreamResponse:
        return web.Response(text=": bye\n\n", content_type="text/event-stream")

    async with strange(ends) as url, impatient(url) as client:
        with pytest.raises(ServerUnreachable, match="ends every stream"):
            async for _ in client.stream(after=0, patience=0.05):
                pass


def test_messages_are_made_of_any_pieces() -> None:
    text = b"retry: 5\n\nid: 1\r\nevent: change\ndata: a\ndata:  b\n\n: alive\n\nid: 2\ndata: c\n\n"
    whole = [(m.id, m.event, m.data) for m in Messages().feed(text)]
    assert whole == [("1", "change", "a\n b"), ("2", "message", "c")]
    made = Messages()
    pieces = [m for n in range(len(text)) for m in made.feed(text[n : n + 1])]
    assert [(m.id, m.event, m.data) for m in pieces] == whole


def test_a_message_without_an_end_is_given_up() -> None:
    made = Messages(most=100)
    made.feed(b"data: x\n" * 12)
    with pytest.raises(ServerError, match="larger than 100"):
        made.feed(b"data: x\n")


def test_signs_of_life_are_no_message_that_grows() -> None:
    made = Messages(most=100)
    for _ in range(1000):
        assert made.feed(b": still here\n\n") == []


# --- what goes wrong ------------------------------------------------------------------------------


async def test_a_run_that_is_not_there_is_unknown(served: Served) -> None:
    client = served.client
    for ask in (
        client.run(NOBODY), client.cancel(NOBODY), client.wait(NOBODY), client.wait("none"),
        client.task_run(NOBODY, 1), client.attempts(NOBODY), client.delete("x"),
        client.task_runs(NOBODY).__aiter__().__anext__(), client.run("../../etc/passwd"),
    ):  # fmt: skip
        with pytest.raises(UnknownRun):
            await ask
    with pytest.raises(ServerError, match="cursor"):
        await client.runs(cursor="x' OR 1=1")
    with pytest.raises(ServerError, match="is not a state"):
        await client.runs(state="nonsense")
    for name in ("", ".", ".."):
        with pytest.raises(InvalidOption, match="is no name"):
            await client.deployment(name)


async def test_errors_of_the_store_are_errors_of_the_store(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def fails(*_: Any) -> Any:
        nonlocal asked
        asked += 1
        raise StoreError("the disk is gone: look at it")

    monkeypatch.setattr(type(served.engine.reader), "runs", fails)
    monkeypatch.setattr(served.client._transport, "pause", at_once)
    with pytest.raises(StoreError, match="the disk is gone"):
        await served.client.runs()
    assert asked == 3


async def test_a_wrong_token_and_one_for_looking_are_told_apart(
    store: MemoryStore | SqliteStore,
) -> None:
    async with (
        Engine(store) as engine,
        serving(engine, Access(token=TOKEN.replace(" ", "-"), read_token="looks-only")) as url,
    ):
        base = url.partition("/#")[0]
        async with Client(base, "wrong-token") as wrong:
            with pytest.raises(ServerError, match="does not know the token") as error:
                await wrong.runs()
            assert error.value.status == 401
            assert "wrong-token" not in f"{error.value!r} {wrong!r} {vars(wrong)!r}"
            assert (await wrong.health()).status == "ok"
        async with Client(f"{base}/#token=looks-only") as reader:
            assert (await reader.me()).role == "read"
            with pytest.raises(ServerError, match="may only look") as error:
                await reader.set_limit("db", 1)
            assert error.value.status == 403
        async with Client(url) as owner:
            assert (await owner.runs()).items == []


async def test_no_answer_says_what_to_do(unused_port: int) -> None:
    async with impatient(f"http://127.0.0.1:{unused_port}") as client:
        with pytest.raises(ServerUnreachable, match="asyncflow server start") as error:
            await client.runs()
        assert isinstance(error.value, ConnectionError)
    async with impatient("http://nowhere.invalid") as client:
        with pytest.raises(ServerUnreachable, match="no machine by the name"):
            await client.runs()
    with pytest.raises(ServerUnreachable, match="async with"):
        await client.runs()


@pytest.fixture
async def unused_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()
    return port


async def test_a_server_that_hangs_is_not_waited_for() -> None:
    async def hangs(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with strange(hangs) as url, Client(url, timeout=0.05) as client:
        with pytest.raises(ServerTimeout, match="has not answered within 0.05 s"):
            await client.runs()


async def test_what_is_no_asyncflow_server_is_called_so() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<h1>Hello</h1>", content_type="text/html")

    async def missing(request: web.Request) -> web.StreamResponse:
        return web.Response(status=404, text="<h1>None</h1>", content_type="text/html")

    async def half(request: web.Request) -> web.StreamResponse:
        return web.Response(text='{"items": [', content_type="application/json")

    for answer in (page, missing, half):
        async with strange(answer) as url, Client(url) as client:
            with pytest.raises(ServerError, match="no asyncflow server"):
                await client.runs()
            with pytest.raises(ServerError, match="no asyncflow server"):
                await client.health()


async def test_what_does_not_speak_http_or_tls_is_called_so() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail ready\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with impatient(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(ServerUnreachable, match="no server of HTTP"):
                await client.runs()
        async with impatient(f"https://127.0.0.1:{port}") as client:
            with pytest.raises(ServerUnreachable, match="speaks no TLS"):
                await client.runs()


async def test_a_certificate_that_nobody_vouches_for_is_refused(tls: ssl.SSLContext) -> None:
    async def hello(request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok", "version": version})

    app = web.Application()
    app.router.add_get("/api/health", hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    async with impatient(url) as client:
        with pytest.raises(ServerUnreachable, match="is not trusted"):
            await client.health()
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    async with Client(url, ssl=trusting) as client:
        assert (await client.health()).status == "ok"
    await runner.cleanup()


@pytest.fixture
def tls(tmp_path: Any) -> ssl.SSLContext:
    import subprocess

    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    done = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", cert],
        capture_output=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("openssl is not there to make a certificate")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context


async def test_another_version_is_named(store: MemoryStore | SqliteStore) -> None:
    async def old(request: web.Request) -> web.StreamResponse:
        if request.path == "/api/health":
            return web.json_response({"status": "ok", "version": "0.0.1"})
        if request.path == "/api/runs":
            return web.json_response({"items": [{"id": "x"}], "next_cursor": None})
        body = {"type": "about:blank", "title": "Not found", "status": 404, "detail": "nothing"}
        return web.json_response(body, status=404, content_type="application/problem+json")

    async with strange(old) as url, Client(url) as client:
        for ask in (client.runs().__await__, client.summary().__await__):
            with pytest.raises(ServerError, match="bring both to the same version") as error:
                await _awaiting(ask)
            assert "0.0.1" in str(error.value)
            assert version in str(error.value)


async def _awaiting(ask: Any) -> Any:
    class Once:
        def __await__(self) -> Any:
            return ask()

    return await Once()


async def test_another_path_is_named(served: Served) -> None:
    base, _, token = served.url.partition("/#token=")
    async with Client(f"{base}/elsewhere", token) as client:
        with pytest.raises(ServerError, match="elsewhere: look at the path in it"):
            await client.runs()


async def test_an_answer_that_does_not_fit_says_where() -> None:
    async def odd(request: web.Request) -> web.StreamResponse:
        if request.path == "/api/health":
            return web.json_response({"status": "ok", "version": version})
        return web.json_response({"items": [{}], "next_cursor": None})

    async with strange(odd) as url, Client(url) as client:
        with pytest.raises(ServerError, match=r"items\.0\.name: Field required"):
            await client.limits()


async def test_an_answer_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncflow.transport.MOST_BYTES", 100_000)

    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await answer.write(b" " * 65536)
        return answer

    async with strange(endless) as url, Client(url) as client:
        with pytest.raises(ServerError, match="larger than 100,000 bytes"):
            await client.runs()


async def test_questions_are_asked_again_and_what_acts_is_not() -> None:
    asked: list[str] = []

    async def breaks(request: web.Request) -> web.StreamResponse:
        body = await request.text()
        asked.append(f"{request.method} {request.path} {body}")
        if len(asked) == 3 and request.path == "/api/variables":
            return web.json_response({"items": [], "next_cursor": None})
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with strange(breaks) as url, impatient(url) as client:
        assert await client.variables() == []
        assert len(asked) == 3
        asked.clear()
        for act in (
            client.cancel(NOBODY), client.delete(NOBODY), client.resume(NOBODY),
            client.answer(NOBODY, 1), client.bulk("cancel"), client.pause_deployment("a"),
            client.resume_deployment("a"), client.enable_automation("a"),
        ):  # fmt: skip
            with pytest.raises(ServerUnreachable, match="broke before the answer came"):
                await act
        assert len(asked) == 8
        for make in (
            client.run_deployment("a"), client.rerun(NOBODY), client.fork(NOBODY),
        ):  # fmt: skip
            asked.clear()
            with pytest.raises(ServerUnreachable):
                await make
            assert len(asked) == 3
            (key,) = {json.loads(one.split(" ", 2)[2])["idempotency_key"] for one in asked}
            assert len(key) > 30


async def test_a_run_is_made_once_though_its_answer_was_lost(
    store: MemoryStore | SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(store) as engine:
        run = await engine.submit(threes, 1)
        await run
        async with serving(engine) as url, impatient(url) as client:
            once = client._transport._once
            lost = 0

            async def loses(*args: Any) -> Any:
                nonlocal lost
                answer = await once(*args)
                if args[0] == "POST" and lost < 2:
                    lost += 1
                    raise ServerUnreachable("the answer was lost")
                return answer

            monkeypatch.setattr(client._transport, "_once", loses)
            made = await client.rerun(run.id)
            assert lost == 2
            assert [one.id async for one in client.runs()] == [made.id, run.id]
            await client.wait(made.id)


# --- the token ------------------------------------------------------------------------------------


async def test_redirects_are_not_followed_and_the_token_is_seen_nowhere_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"items": [], "next_cursor": None})

    token = "secret-of-this-test-1234"
    caplog.set_level(logging.DEBUG)
    async with strange(elsewhere) as other:

        async def sends_on(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"{other}/api/runs")

        async with strange(sends_on) as url, Client(url, token) as client:
            for ask in (client.runs(), client.stream(after=0).__anext__()):
                with pytest.raises(ServerError, match="not followed") as error:
                    await ask
                assert other in str(error.value)
                assert token not in f"{error.value!r}{error.value}{client!r}{vars(client)}"
    assert seen == []
    assert token not in caplog.text


@pytest.mark.parametrize(
    ("url", "base", "token"),
    [
        ("http://127.0.0.1:4200/#token=abc", "http://127.0.0.1:4200", "abc"),
        ("http://localhost:4200/", "http://localhost:4200", None),
        ("http://[::1]:4200/#token=a%2Fb", "http://[::1]:4200", "a/b"),
        ("https://a.example.org/ops/flows/#token=abc", "https://a.example.org/ops/flows", "abc"),
        ("https://a.example.org/#/runs?x=1&token=abc", "https://a.example.org", "abc"),
        ("http://flows.example.org", "http://flows.example.org", None),
        ("http://127.0.0.1/#token=four words as one", "http://127.0.0.1", "four words as one"),
    ],
)  # fmt: skip
def test_a_url_is_read_as_it_is_printed(url: str, base: str, token: str | None) -> None:
    found = address(url, environ={})
    assert (found.base, found.token) == (base, token)
    assert not token or token not in repr(found)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "which server"),
        ("127.0.0.1:4200", "http:// or https://"),
        ("ftp://h/#token=abc-hidden", "http:// or https://"),
        ("http://h:99999/#token=abc-hidden", "is none"),
        ("http://user:abc-hidden@h/", "no user"),
        ("http://h/?token=abc-hidden", r"no \?"),
        ("http://h/#token=abc-hidden", "unencrypted"),
        ("http://10.0.0.1/#token=abc-hidden", "unencrypted"),
        ("http://127.0.0.1.nip.io/#token=abc-hidden", "unencrypted"),
        ("http://127.0.0.1/#token=abc-hidden%0d%0aX:1", "characters"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused_and_not_repeated(url: str, said: str) -> None:
    with pytest.raises(InvalidOption, match=said) as error:
        address(url or None, environ={})
    assert "abc-hidden" not in str(error.value)


def test_a_token_goes_unencrypted_only_where_that_was_allowed() -> None:
    url = "http://flows.example.org"
    assert address(url, "abc", True, {}).token == "abc"
    assert address(url, "abc", None, {"ASYNCFLOW_ALLOW_HTTP": "1"}).token == "abc"
    with pytest.raises(InvalidOption, match="unencrypted"):
        address(url, "abc", False, {"ASYNCFLOW_ALLOW_HTTP": "1"})


def test_a_token_of_the_environment_is_for_its_own_server_only() -> None:
    own = {"ASYNCFLOW_SERVER": "https://flows.example.org", "ASYNCFLOW_TOKEN": "abc"}
    assert address(environ=own).token == "abc"
    assert address("https://flows.example.org:443/", environ=own).token == "abc"
    assert address("https://other.example.org", environ=own).token is None
    assert address("https://flows.example.org:8443", environ=own).token is None
    assert address("http://127.0.0.1:1", environ={"ASYNCFLOW_TOKEN": "abc"}).token == "abc"
    within = {"ASYNCFLOW_SERVER": "https://flows.example.org/#token=xyz"}
    assert address(environ=within).token == "xyz"
    assert address("https://flows.example.org", environ=within).token == "xyz"
    assert address("https://other.example.org", environ=within).token is None
    assert address("https://other.example.org", "given", environ=own).token == "given"


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"retries": -1}], ids=["no time", "fewer than none"]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="timeout above 0"):
        Client("http://127.0.0.1:1", **options)


# --- all of it ------------------------------------------------------------------------------------


async def test_there_is_a_method_for_every_route() -> None:
    asked: set[tuple[str, str]] = set()

    async def notes(request: web.Request) -> web.StreamResponse:
        asked.add((request.method, request.path))
        return web.json_response({"items": [], "next_cursor": None, "ok": True})

    async with strange(notes) as url, Client(url) as client:
        a = NOBODY
        spec = {"trigger": {}, "actions": []}
        for ask in (
            client.health(), client.summary(), client.runs(), client.run(a), client.task_runs(a),
            client.task_run(a, 1), client.task_counts(a), client.attempts(a), client.timeline(a),
            client.logs(a), client.artifacts(a), client.forms(a), client.cancel(a),
            client.resume(a), client.rerun(a), client.fork(a), client.answer(a), client.delete(a),
            client.bulk("cancel"), client.deployments(), client.deployment("n"), client.ticks("n"),
            client.declare_deployment("n", flow="f"), client.run_deployment("n"),
            client.pause_deployment("n"), client.resume_deployment("n"),
            client.remove_deployment("n"), client.automations(), client.automation("n"),
            client.declare_automation("n", **spec), client.enable_automation("n"),
            client.enable_automation("n", False), client.remove_automation("n"),
            client.deliveries(), client.commands(), client.command(a), client.events(),
            client.limits(), client.set_limit("n", 1),
            client.lift_limit("n"), client.variables(), client.variable("n"),
            client.set_variable("n", 1), client.delete_variable("n"),
        ):  # fmt: skip
            with contextlib.suppress(ServerError):
                await ask
    asked.discard(("GET", "/api/me"))
    ids = {"run_id": NOBODY, "command_id": NOBODY}
    named = {(r.method, r.path.format(**ids, seq=1, name="n")) for r in ROUTES}
    assert asked == named
