"""A server without code of the user: what it asks of engines that have it, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pydantic
import pytest
from patience import settled, until

from asyncflow import CommandFailed, Engine, flow, pause_flow_run, task
from asyncflow.client import Client
from asyncflow.registry import find
from asyncflow.server import openapi
from asyncflow.server.app import serve_app
from asyncflow.server.security import Access

FAIL: list[bool] = []


@task
async def double(n: int) -> int:
    return 2 * n


@flow(name="served for another")
async def served(n: int = 1) -> int:
    found = await double(n)
    if FAIL:
        raise RuntimeError("as it was")
    return found


class Login(pydantic.BaseModel):
    name: str
    password: pydantic.SecretStr


@flow
async def signs(
    login: Login, key: pydantic.SecretStr, others: dict[str, list[Login]] | None = None, n: int = 1
) -> int:
    return n


class Reply(pydantic.BaseModel):
    yes: bool


@flow
async def asks() -> bool:
    return (await pause_flow_run(wait_for_input=Reply)).yes


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    FAIL.clear()
    monkeypatch.setattr("asyncflow.recovery.WATCH", 0.02)
    monkeypatch.setattr("asyncflow.scheduler.LOOK", 0.02)
    monkeypatch.setattr("asyncflow.commanding.LOOK", 0.02)


class Server:
    """A served engine that must not import what users wrote, and a client of it."""

    def __init__(self, engine: Engine, web: aiohttp.ClientSession, url: str) -> None:
        self.engine = engine
        self._web = web
        self.url = url
        self._base, _, self.token = url.partition("/#token=")

    async def ask(
        self, method: str, path: str, status: int, body: Any = None, token: str | None = None
    ) -> Any:
        headers = {"Authorization": f"Bearer {token or self.token}", "X-Asyncflow": "1"}
        given = {"json": body or {}} if method != "GET" else {}
        async with self._web.request(
            method, f"{self._base}/api{path}", headers=headers, **given
        ) as answer:
            said = json.loads(await answer.text())
            assert answer.status == status, said
            return said

    async def post(self, path: str, body: Any = None, status: int = 202) -> Any:
        return await self.ask("POST", path, status, body)

    async def get(self, path: str, status: int = 200) -> Any:
        return await self.ask("GET", path, status)

    async def end(self, said: Any) -> Any:
        """What becomes of something that was asked for."""

        async def ended() -> Any:
            command = await self.get(f"/commands/{said['command']['id']}")
            return command if command["ended_at"] is not None else None

        return await until(ended)


@pytest.fixture
async def server(path: Path) -> AsyncIterator[Server]:
    async with Engine(path) as engine, aiohttp.ClientSession() as client:
        access = Access(read_token="only for looking")
        runner, url = await serve_app(engine, "127.0.0.1", 0, access, embedded=False)
        yield Server(engine, client, url)
        await runner.cleanup()


@pytest.fixture
async def taker(path: Path) -> AsyncIterator[Engine]:
    async with Engine(path) as engine:
        await engine.recover()
        yield engine


async def failed(engine: Engine, n: int = 1) -> str:
    FAIL.append(True)
    run = await engine.submit(served, n)
    await run.wait()
    FAIL.clear()
    return run.id


async def test_runs_are_begun_by_the_engine_that_has_their_code(
    server: Server, taker: Engine
) -> None:
    run = await failed(taker)
    said = await server.post(f"/runs/{run}/rerun", {"parameters": {"n": 4}})
    command = said["command"]
    assert (command["kind"], command["run_id"], command["state"]) == ("rerun", run, "WAITING")
    assert command["arguments"] == {"parameters": {"n": 4}}
    again = await server.end(said)
    assert (again["state"], again["detail"]) == ("DONE", "it runs again under a new id")
    assert (await server.engine.wait(again["made_run_id"])).result() == 8
    forked = await server.end(await server.post(f"/runs/{run}/fork"))
    assert forked["state"] == "DONE"
    resumed = await server.end(
        await server.post(f"/runs/{run}/resume", {"expected_state": "FAILED"})
    )
    assert (resumed["state"], resumed["made_run_id"]) == ("DONE", run)
    assert resumed["arguments"] == {"expected_state": "FAILED"}
    assert (await server.engine.wait(run)).result() == 2

    listed = (await server.get("/commands"))["items"]
    assert [one["kind"] for one in listed] == ["resume", "fork", "rerun"]
    assert (await server.get("/commands?state=WAITING&state=TAKEN"))["items"] == []
    first = await server.get("/commands?state=DONE&limit=2")
    rest = await server.get(f"/commands?state=DONE&limit=2&cursor={first['next_cursor']}")
    assert [one["id"] for one in rest["items"]] == [command["id"]]
    assert rest["next_cursor"] is None
    events = (await server.get("/events?kind=command.*"))["items"]
    assert {event["kind"] for event in events} == {"command.done"}


async def test_a_deployment_is_run_by_the_engine_that_serves_it(
    server: Server, taker: Engine
) -> None:
    await taker.deploy(served, "dep", overlap="allow")
    body = {"parameters": {"n": 3}, "name": "mine", "idempotency_key": "once"}
    first = await server.end(await server.post("/deployments/dep/run", body))
    again = await server.end(await server.post("/deployments/dep/run", body))
    assert first["made_run_id"] == again["made_run_id"], "the key is that of who asked"
    assert (await server.engine.wait(first["made_run_id"])).result() == 6
    bad = await server.end(await server.post("/deployments/dep/run", {"parameters": {"n": "x"}}))
    assert (bad["state"], "parameter 'n'" in bad["detail"]) == ("FAILED", True)
    await server.post("/deployments/none/run", status=404)


async def test_without_an_engine_it_is_refused_at_once(server: Server, path: Path) -> None:
    async with Engine(path) as before:
        run = await failed(before)
        await before.deploy(served, "dep")
        await before.recover()
    for at in (f"/runs/{run}/rerun", f"/runs/{run}/resume", "/deployments/dep/run"):
        said = await server.post(at, status=409)
        assert "no code of yours is in it" in said["detail"]
        assert "asyncflow serve FILE.py:FLOW" in said["detail"]
    bulk = await server.post("/runs/bulk", {"action": "resume", "filter": {}}, status=200)
    assert (bulk["done"], bulk["asked"], len(bulk["failed"])) == (0, [], 1)
    assert (await server.get("/commands"))["items"] == []


async def test_what_nobody_takes_expires(
    server: Server, taker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await failed(taker)
    monkeypatch.setattr("asyncflow.commands.PATIENCE", 0.05)
    monkeypatch.setattr(taker.commands, "look", lambda: None)  # it is busy, it seems
    end = await server.end(await server.post(f"/runs/{run}/rerun"))
    assert end["state"] == "EXPIRED"
    assert "none does any more" in end["detail"]
    await server.get("/commands/00000000-0000-4000-8000-000000000000", status=404)
    await server.get("/commands/none", status=404)


async def test_many_are_resumed_at_once_by_a_filter(server: Server, taker: Engine) -> None:
    runs = {await failed(taker) for _ in range(5)}
    said = await server.post("/runs/bulk", {"action": "resume", "filter": {}}, status=200)
    assert (said["done"], said["failed"], len(said["asked"])) == (0, [], 5)
    ends = [await server.end({"command": one}) for one in said["asked"]]
    assert {one["made_run_id"] for one in ends} == runs


async def test_a_resume_that_is_asked_for_twice_is_one(server: Server, taker: Engine) -> None:
    run = await failed(taker)
    first, second = [await server.post(f"/runs/{run}/resume") for _ in range(2)]
    assert first["command"]["id"] == second["command"]["id"]
    await server.end(first)


async def test_secrets_are_not_handed_on(server: Server, taker: Engine) -> None:
    login = {"name": "me", "password": "swordfish"}
    await taker.deploy(signs, "signs", parameters={"login": login, "key": "hunter22"})
    run = await taker.submit(signs, Login(**login), pydantic.SecretStr("hunter22"))
    await run
    for name, value in (("login", login), ("key", "another")):
        for at in ("/deployments/signs/run", f"/runs/{run.id}/rerun", f"/runs/{run.id}/fork"):
            said = await server.post(at, {"parameters": {name: value}}, status=409)
            assert f"the parameter '{name}' is or holds a secret" in said["detail"]
    deep = {"parameters": {"others": {"a": [login]}}}
    said = await server.post("/deployments/signs/run", deep, status=409)
    assert "the parameter 'others' is or holds a secret" in said["detail"]
    done = await server.end(await server.post("/deployments/signs/run", {"parameters": {"n": 7}}))
    assert (await server.engine.wait(done["made_run_id"])).result() == 7


async def test_an_answer_is_checked_where_its_model_is(server: Server, taker: Engine) -> None:
    run = await taker.submit(asks)

    async def paused() -> bool:
        return (await server.engine.get_run(run.id)).state.is_paused()

    await until(paused)
    said = await server.post(f"/runs/{run.id}/answer", {"data": {"yes": True}})
    assert (await server.end(said))["state"] == "DONE"
    assert await run is True


async def test_a_flow_is_deployed_where_it_is_known(server: Server, taker: Engine) -> None:
    body = {"flow": "served for another", "schedules": [{"cron": "0 3 * * *"}], "overlap": "allow"}
    said = await server.ask("PUT", "/deployments/new", 202, body)
    assert (await server.end(said))["state"] == "DONE"
    assert (await server.get("/deployments/new"))["source"] == "api"
    bad = {**body, "schedules": [{"cron": "0 3 * * *", "start": "soon"}]}
    assert "start is no date" in (await server.ask("PUT", "/deployments/x", 422, bad))["detail"]


async def test_who_may_only_look_asks_for_nothing(server: Server, taker: Engine) -> None:
    run = await failed(taker)
    looking = "only for looking"
    await server.ask("POST", f"/runs/{run}/rerun", 403, token=looking)
    assert (await server.ask("GET", "/commands", 200, token=looking))["items"] == []


async def test_an_automation_that_is_declared_there_asks_for_what_needs_code(
    server: Server, taker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.automating.LOOK", 0.02)
    await taker.deploy(served, "dep", overlap="allow")
    imported: list[str] = []

    def watched(stored: str, name: str) -> Any:
        imported.append(name)
        return find(stored, name)

    body = {
        "trigger": {"type": "event", "expect": "orders.in"},
        "actions": [{"type": "run-deployment", "name": "dep", "parameters": {"n": 5}}],
    }
    await server.ask("PUT", "/automations/on-order", 200, body)
    monkeypatch.setattr("asyncflow.scheduler.find", watched)
    await taker.emit("orders.in")
    done = await settled(server.engine, 1)
    assert done[0].state == "delivered", done
    (run,) = await server.engine.runs()
    assert done[0].reply == f"run {run.id}"
    assert (await server.engine.wait(run.id)).result() == 10
    assert imported == [], "the server looked for no code"
    row = await server.engine.reader.find_run(run.id)
    assert row is not None
    assert row.cause == 'automation:["on-order"]', "the guard against loops sees it"


async def test_the_client_waits_for_what_is_only_asked_for(server: Server, taker: Engine) -> None:
    await taker.deploy(served, "dep", overlap="allow")
    run = await failed(taker)
    async with Client(server.url) as client:
        for made in (
            await client.run_deployment("dep", {"n": 3}),
            await client.rerun(run, {"n": 3}),
            await client.fork(run, results={"double": 6}),
        ):
            await client.wait(made.id)
            assert (await client.run(made.id)).result.value == 6
        assert (await client.resume(run)).id == run
        made = await client.declare_deployment("new", flow="served for another")
        assert made.name == "new"
        with pytest.raises(CommandFailed, match="has no parameter 'm'"):
            await client.rerun(run, {"m": 3})
        with pytest.raises(CommandFailed, match="no flow called 'none'"):
            await client.declare_deployment("x", flow="none")
        commands = [one async for one in client.commands(state="FAILED")]
        assert [one.kind for one in commands] == ["deploy", "rerun"]
        assert (await client.command(commands[0].id)) == commands[0]


def test_the_document_says_what_may_only_be_asked_for() -> None:
    paths = openapi.document()["paths"]
    asked = {
        (method, path)
        for path, found in paths.items()
        for method, operation in found.items()
        if "202" in operation["responses"]
    }
    assert asked == {
        *(("post", f"/api/runs/{{run_id}}/{what}") for what in ("resume", "rerun", "fork")),
        ("post", "/api/runs/{run_id}/answer"),
        ("post", "/api/deployments/{name}/run"),
        ("put", "/api/deployments/{name}"),
    }
