"""The REST API: what it tells, who may ask, and what cannot be done to it."""

from __future__ import annotations

import asyncio
import html
import io
import json
import pickle
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from patience import until
from prometheus_client.parser import text_string_to_metric_families

from asyncflow import (
    Engine,
    InvalidOption,
    SqliteStore,
    __version__,
    create_markdown_artifact,
    create_table_artifact,
    flow,
    get_run_logger,
    set_progress,
    sleep,
    task,
)
from asyncflow.server import openapi
from asyncflow.server.api import ROUTES
from asyncflow.server.app import make_app, serve_app
from asyncflow.server.security import Access

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e'\"</script>\ud800"
OWN = {"X-Asyncflow": "1"}


@task(retries=1, retry_delay_seconds=0, retry_jitter_factor=0)
async def work(n: int) -> int:
    get_run_logger().info("working on %s", n)
    if n == 3:
        raise ValueError(HOSTILE)
    return n


@task
async def after(n: int) -> int:
    return n


@flow
async def mixed(n: int = 3, secret: str = "x") -> int:
    return sum(await after.map(work.map(range(n))))


@flow
async def waits() -> None:
    await sleep(3600)


@dataclass
class Server:
    """A served engine, and a client of it."""

    engine: Engine
    web: aiohttp.ClientSession
    base: str
    token: str

    async def get(self, path: str, status: int = 200, **options: Any) -> Any:
        return await self.ask("GET", path, status, **options)

    async def ask(
        self, method: str, path: str, status: int = 200, *, token: str | None = None, **options: Any
    ) -> Any:
        headers = {"Authorization": f"Bearer {token or self.token}", **options.pop("headers", {})}
        if method not in ("GET", "HEAD"):
            headers = {**OWN, **headers}
            options.setdefault("json", {})
        async with self.web.request(method, self.base + path, headers=headers, **options) as answer:
            text = await answer.text()
            assert answer.status == status, f"{method} {path}: {answer.status} {text}"
            if answer.status >= 400:
                assert answer.content_type == "application/problem+json"
                assert "Traceback" not in text
            return json.loads(text)


@pytest.fixture
async def server(path: Path) -> AsyncIterator[Server]:
    async with Engine(path) as engine:
        access = Access(read_token="only for looking")
        runner, url = await serve_app(engine, "127.0.0.1", 0, access, embedded=True)
        base, _, token = url.partition("/#token=")
        async with aiohttp.ClientSession() as client:
            yield Server(engine, client, base, token)
        await runner.cleanup()


async def test_the_script_is_kept_by_who_has_it_and_is_new_in_each_version(server: Server) -> None:
    async with server.web.get(f"{server.base}/") as answer:
        page = await answer.text()
    (script,) = re.findall(r'<script type="module" src="(static/[0-9a-f]{16}/all.js)">', page)
    folder = script.removesuffix("all.js")
    for path in (script, f"{script}.map", f"{folder}app.js", f"{folder}pages/run.js"):
        async with server.web.get(f"{server.base}/{path}") as answer:
            assert answer.status == 200
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    for path in (f"static/{'0' * 16}/all.js", "static/all.js", f"{folder}style.css"):
        async with server.web.get(f"{server.base}/{path}") as answer:
            assert answer.status in (401, 404), "of another version there is nothing"


async def test_the_page_tells_who_looks_and_nobody_else(server: Server) -> None:
    tags: dict[str, str] = {}
    for token, told in (
        (None, None), ("wrong", None), (server.token, "admin"), ("only for looking", "read"),
    ):  # fmt: skip
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        async with server.web.get(f"{server.base}/", headers=headers) as answer:
            page = await answer.text()
            assert answer.headers["Cache-Control"] == "private, no-cache"
            tags[str(told)] = answer.headers["ETag"]
        said = re.findall(r'<meta name="asyncflow-session" content="([^"]*)">', page)
        if told is None:
            assert (said, __version__ in page) == ([], False)
        else:
            assert json.loads(html.unescape(said[0])) == {
                "role": told, "version": __version__, "embedded": True,
            }  # fmt: skip
    assert len(set(tags.values())) == 3, "nobody is given what was kept of somebody else"
    cookie = f"asyncflow_session={server.token}"
    headers = {"Cookie": cookie, "If-None-Match": tags["admin"]}
    async with server.web.get(f"{server.base}/", headers=headers) as answer:
        assert answer.status == 304


async def test_a_run_is_told_with_its_tasks_logs_and_timeline(server: Server) -> None:
    run = await server.engine.submit(mixed, 4, tags=["a"])
    await run.wait()
    (listed,) = (await server.get("/api/runs"))["items"]
    assert (listed["id"], listed["state"], listed["tags"]) == (run.id, "FAILED", ["a"])
    shown = await server.get(f"/api/runs/{run.id}")
    assert shown["parameters"] == {"n": 4, "secret": "x"}
    assert shown["error"]["type"]
    assert {t["task"]: t["total"] for t in shown["tasks"]} == {"work": 4, "after": 4}
    assert shown["edges"] == [["work", "after"]]
    assert shown["story"][0]["state_name"] == "Scheduled"
    page = await server.get(f"/api/runs/{run.id}/task-runs?task=work&limit=3")
    assert len(page["items"]) == 3
    rest = await server.get(f"/api/runs/{run.id}/task-runs?task=work&cursor={page['next_cursor']}")
    (failed,) = rest["items"]
    assert failed["state"] == "FAILED"
    assert failed["error"]["message"].startswith("<img")
    one = await server.get(f"/api/runs/{run.id}/task-runs/{failed['seq']}")
    assert [a["attempt"] for a in one["attempts_list"]] == [1]
    timeline = await server.get(f"/api/runs/{run.id}/timeline")
    assert timeline["total"] == 8
    assert timeline["tasks"][0] == "work"
    logs = await server.get(f"/api/runs/{run.id}/logs?text=working")
    assert len(logs["items"]) == 5
    own = await server.get(f"/api/runs/{run.id}/logs?task_run={failed['id']}")
    assert {line["task_run_id"] for line in own["items"]} == {failed["id"]}
    summary = await server.get("/api/summary")
    assert summary["states"] == {"FAILED": 1}
    assert (
        [r["id"] for r in summary["failures"]] == [r["id"] for r in summary["latest"]] == [run.id]
    )


async def test_what_needs_attention_is_found_below_many_that_do_not(server: Server) -> None:
    """They are the oldest; of the others many sleep, and many are under way in a live engine."""
    store = server.engine.store
    db = sqlite3.connect(store.path, isolation_level=None)
    columns = "id, flow_name, flow_ref, name, root, state, state_name, message, state_at, tags"
    rest = "parameters, created_at, epoch, attempt, recoveries, result_kind, ended_by, engine"
    dead, own = 10_000, server.engine.id
    states = [
        ("PAUSED", "NeedsAttention", None), ("RUNNING", "Running", dead),
        ("PAUSED", "Paused", None), *[("PAUSED", "Suspended", None)] * 300,
        *[("RUNNING", "Running", own)] * 1_200,
    ]  # fmt: skip
    for n, (state, name, engine) in enumerate(states):
        db.execute(
            f"INSERT INTO flow_runs ({columns}, {rest})"
            " VALUES (?, 'f', '{}', ?, 0, ?, ?, '', 0, '[]', '{}', 0, 1, 1, 0, 0, '[]', ?)",
            (f"00000000-0000-7000-8000-{n:012x}", f"run {n}", state, name, engine),
        )
    db.close()
    page = await server.get("/api/runs?state=attention&limit=2")
    assert [one["name"] for one in page["items"]] == ["run 2", "run 1"]
    assert page["items"][1]["state_name"] == "Interrupted"
    rest_of = await server.get(f"/api/runs?state=attention&cursor={page['next_cursor']}")
    assert [one["name"] for one in rest_of["items"]] == ["run 0"]
    assert rest_of["next_cursor"] is None
    (orphan,) = (await server.get("/api/runs?state=Interrupted&limit=1"))["items"]
    assert orphan["name"] == "run 1"
    asked = (await server.get("/api/summary"))["attention"]
    assert [one["name"] for one in asked] == ["run 2", "run 0"]


async def test_what_a_run_shows_is_told(server: Server) -> None:
    @flow
    async def shows() -> None:
        create_markdown_artifact("# Title <script>alert(1)</script>", key="text")
        create_table_artifact([{"a": 1}], key="table")
        set_progress(3, 4)

    run = await server.engine.submit(shows)
    await run
    items = (await server.get(f"/api/runs/{run.id}/artifacts"))["items"]
    assert {one["kind"] for one in items} == {"markdown", "table", "progress"}
    (text,) = [one for one in items if one["kind"] == "markdown"]
    assert text["data"]["markdown"].startswith("# Title")
    assert "<script" not in (text["html"] or "")


async def test_filters_find_what_they_say(server: Server) -> None:
    good = await server.engine.submit(mixed, 2, tags=["x"], run_name="good one")
    await good.wait()
    bad = await server.engine.submit(mixed, 4)
    await bad.wait()
    for query, found in (
        ("state=COMPLETED", [good.id]),
        ("state=failed", [bad.id]),
        ("state=not_completed", [bad.id]),
        ("state=COMPLETED&state=FAILED", [bad.id, good.id]),
        ("tag=x", [good.id]),
        ("text=GOOD", [good.id]),
        ("text=%25", []),
        ("flow=nothing", []),
        ("deployment=nothing", []),
        ("limit=1", [bad.id]),
    ):
        assert [r["id"] for r in (await server.get(f"/api/runs?{query}"))["items"]] == found, query


async def test_a_run_whose_process_has_died_is_found_as_what_it_is(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    @flow
    async def holds() -> None:
        begun.set()
        await goes_on.wait()

    run = await server.engine.submit(holds)
    await begun.wait()
    await server.engine.written()

    async def found(state: str) -> list[str]:
        return [r["state_name"] for r in (await server.get(f"/api/runs?state={state}"))["items"]]

    assert await found("running") == ["Running"]
    monkeypatch.setattr(server.engine.recovery, "is_alive", lambda _: False)
    assert await found("running") == []
    assert await found("paused") == await found("interrupted") == ["Interrupted"]
    (one,) = (await server.get(f"/api/runs?id={run.id[:13]}&full=true"))["items"]
    assert (one["is_owned"], one["parameters"], one["error"]) == (False, {}, None)
    goes_on.set()
    await run.wait()


async def test_runs_are_resumed_cancelled_forked_and_removed(server: Server) -> None:
    run = await server.engine.submit(mixed, 2)
    await run.wait()
    refused = await server.ask("POST", f"/api/runs/{run.id}/cancel", 409)
    assert "nothing to cancel" in refused["detail"]
    forked = await server.ask("POST", f"/api/runs/{run.id}/fork", json={"parameters": {"n": 1}})
    assert forked["run"]["origin"] == run.id
    again = await server.ask("POST", f"/api/runs/{run.id}/rerun")
    assert (await server.engine.wait(again["run"]["id"])).is_completed()
    stale = {"expected_state": "RUNNING"}
    assert (
        "by now"
        in (await server.ask("POST", f"/api/runs/{run.id}/delete", 409, json=stale))["detail"]
    )
    await server.ask("POST", f"/api/runs/{run.id}/delete")
    await server.get(f"/api/runs/{run.id}", 404)
    waiting = await server.engine.submit(waits)

    async def waits_for() -> Any:
        return (await server.get(f"/api/runs/{waiting.id}"))["waits"]

    assert (await until(waits_for))[0]["kind"] == "sleep"
    await server.ask("POST", f"/api/runs/{waiting.id}/cancel")
    assert (await waiting.wait()).is_cancelled()
    done = await server.ask(
        "POST", "/api/runs/bulk", json={"action": "delete", "filter": {"state": ["COMPLETED"]}}
    )
    assert done == {"done": 2, "asked": [], "failed": []}


async def test_deployments_are_run_from_their_schema(server: Server) -> None:
    await server.engine.deploy(mixed, "dep", cron="0 3 * * *", overlap="allow")
    (one,) = (await server.get("/api/deployments"))["items"]
    assert one["parameter_schema"]["properties"]["n"] == {
        "title": "n", "type": "integer", "default": 3,
    }  # fmt: skip
    begun = await server.ask("POST", "/api/deployments/dep/run", json={"parameters": {"n": 1}})
    assert (await server.engine.wait(begun["run"]["id"])).result() == 0
    wrong = {"parameters": {"n": "x"}}
    bad = await server.ask("POST", "/api/deployments/dep/run", 422, json=wrong)
    assert "'n'" in bad["detail"]
    await server.ask("POST", "/api/deployments/dep/pause")
    assert (await server.get("/api/deployments/dep"))["paused"]
    await server.get("/api/deployments/none", 404)
    await server.ask("DELETE", "/api/deployments/dep")
    assert (await server.get("/api/deployments"))["items"] == []


async def test_deployments_are_declared_of_flows_that_are_there(server: Server) -> None:
    @flow(name="only here")
    async def only_here(n: int = 1) -> int:
        return n

    spec: dict[str, Any] = {
        "flow": "only here",
        "schedules": [{"cron": "0 9 * * 1-5", "timezone": "Europe/Berlin", "name": "work days"}],
        "parameters": {"n": 2},
        "overlap": "queue",
    }
    made = await server.ask("PUT", "/api/deployments/by%20api", json=spec)
    assert (made["source"], made["overlap"]) == ("api", "queue")
    assert made["schedules"][0]["schedule"] == "0 9 * * 1-5 (Europe/Berlin)"
    for change, said in (
        ({"flow": "os.system"}, "no flow called"),
        ({"schedules": [{"cron": "61 * * * *"}]}, "minute"),
        ({"schedules": [{"corn": "* * * * *"}]}, "'cron'"),
        ({"parameters": {"n": "x"}}, "'n'"),
        ({"schedules": [{"interval": 5, "start": "soon"}]}, "no date"),
    ):
        told = await server.ask("PUT", "/api/deployments/bad", 422, json={**spec, **change})
        assert said in told["detail"], told
    del only_here


async def test_automations_are_declared_without_code(server: Server) -> None:
    spec: dict[str, Any] = {
        "trigger": {"type": "event", "expect": "flow-run.Failed"},
        "actions": [{"type": "set-limit", "name": "db", "limit": 1}],
    }
    made = await server.ask("PUT", "/api/automations/calm", json=spec)
    assert (made["source"], made["enabled"]) == ("api", True)
    run = await server.engine.submit(mixed, 4)
    await run.wait()

    async def delivered() -> bool:
        deliveries = (await server.get("/api/deliveries"))["items"]
        return bool(deliveries) and deliveries[0]["state"] == "delivered"

    await until(delivered)
    assert (await server.get("/api/limits"))["items"][0]["limit"] == 1
    evil = {**spec, "actions": [{"type": "call-function", "function": "os:abort"}]}
    refused = await server.ask("PUT", "/api/automations/evil", 422, json=evil)
    assert "function" in refused["detail"]
    wrong = {**spec, "trigger": {"type": "evnt"}}
    said = await server.ask("PUT", "/api/automations/wrong", 422, json=wrong)
    assert "'event'" in said["detail"]
    await server.ask("POST", "/api/automations/calm/disable")
    assert not (await server.get("/api/automations/calm"))["enabled"]
    await server.ask("DELETE", "/api/automations/calm")


async def test_limits_are_shown_and_set(server: Server) -> None:
    await server.ask("PUT", "/api/limits/db", json={"limit": 5})
    (one,) = (await server.get("/api/limits"))["items"]
    assert (one["name"], one["limit"]) == ("db", 5)
    await server.ask("DELETE", "/api/limits/db")
    await server.ask("PUT", "/api/limits/db", 422, json={"limit": -1})


async def test_variables_are_shown_set_and_removed(server: Server) -> None:
    await server.ask("PUT", "/api/variables/region", json={"value": {"a": [1]}})
    (one,) = (await server.get("/api/variables"))["items"]
    assert (one["name"], one["value"]) == ("region", {"a": [1]})
    await server.ask("PUT", "/api/variables/No%20Name", 422, json={"value": 1})
    await server.ask("DELETE", "/api/variables/region")
    await server.ask("DELETE", "/api/variables/region", 404)


async def test_what_happens_is_streamed_and_gone_on_with(server: Server) -> None:
    headers = {"Authorization": f"Bearer {server.token}"}
    listens = asyncio.Event()

    async def read(more: dict[str, str], last: str) -> str:
        text = ""
        async with server.web.get(
            f"{server.base}/api/stream", headers={**headers, **more}
        ) as answer:
            assert answer.content_type == "text/event-stream"
            listens.set()
            while last not in text:
                text += (await asyncio.wait_for(answer.content.readany(), 30)).decode()
        return text

    reading = asyncio.create_task(read({}, "flow-run.Completed"))
    await listens.wait()
    await (await server.engine.submit(mixed, 1)).wait()
    text = await reading
    last = [line for line in text.splitlines() if line.startswith("id: ")][-1]
    assert int(last[4:]) >= 3
    again = await read({"Last-Event-ID": "0"}, "flow-run.Scheduled")
    assert "flow-run.Running" in again


async def test_metrics_are_served_as_prometheus_reads_them(server: Server) -> None:
    await server.engine.submit(mixed, 1)
    for token in (server.token, "only for looking"):
        headers = {"Authorization": f"Bearer {token}"}
        async with server.web.get(server.base + "/metrics", headers=headers) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            text = await answer.text()
    families = [family.name for family in text_string_to_metric_families(text)]
    assert len(set(families)) == len(families), "none is told twice"
    assert {"asyncflow_running_runs", "asyncflow_store_runs"} <= set(families)
    async with server.web.get(server.base + "/metrics") as answer:
        assert answer.status == 401


# --- who may ask --------------------------------------------------------------------------------


def every_route() -> list[tuple[str, str]]:
    fake = "00000000-0000-7000-8000-000000000000"
    paths = [
        (r.method, r.path.format(run_id=fake, command_id=fake, seq=1, name="n"))
        for r in ROUTES
        if not r.public
    ]
    return [*paths, ("GET", "/api/me"), ("GET", "/api/openapi.json"), ("GET", "/api/stream"),
            ("GET", "/metrics"), ("GET", "/api/none"), ("POST", "/api/health")]  # fmt: skip


async def test_without_a_token_nothing_is_told(server: Server) -> None:
    for method, path in every_route():
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "asyncflow_session=x"}):
            url = server.base + path
            async with server.web.request(method, url, headers={**OWN, **headers}) as answer:
                assert answer.status == 401, f"{method} {path}"
    assert {r.path for r in ROUTES if r.public} == {"/api/health"}


async def test_a_token_for_looking_changes_nothing(server: Server) -> None:
    for method, path in every_route():
        if method != "GET" and path != "/api/health":
            await server.ask(method, path, 403, token="only for looking")
    assert (await server.get("/api/me", token="only for looking"))["role"] == "read"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "rebind.evil.example"}, 421),
        ({"Host": "localhost.evil"}, 421),
        ({"Host": "127.0.0.1.nip.io"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "LOCALHOST"}, 200),
        ({"X-Forwarded-Host": "evil.example"}, 200),
    ],
)
async def test_the_server_answers_to_its_own_names_only(
    server: Server, headers: dict[str, str], status: int
) -> None:
    await server.get("/api/me", status, headers=headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"X-Asyncflow": None}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
async def test_other_sites_cannot_change_anything(
    server: Server, headers: dict[str, str | None], status: int
) -> None:
    sent = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json", **OWN}
    sent = {k: v for k, v in {**sent, **headers}.items() if v is not None}
    async with server.web.put(
        f"{server.base}/api/limits/db", data=b'{"limit": 1}', headers=sent
    ) as answer:
        assert answer.status == status
    assert (await server.get("/api/limits"))["items"] == []


async def test_a_session_is_a_cookie_that_scripts_cannot_read(server: Server) -> None:
    url = f"{server.base}/api/session"
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as client:
        async with client.post(url, json={"token": "wrong"}, headers=OWN) as answer:
            assert answer.status == 401
        async with client.post(url, json={"token": server.token}, headers=OWN) as answer:
            assert answer.status == 200
            cookie = answer.headers["Set-Cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
        async with client.get(f"{server.base}/api/runs") as answer:
            assert answer.status == 200
        async with client.delete(url, headers=OWN) as answer:
            assert answer.status == 200
        async with client.get(f"{server.base}/api/runs") as answer:
            assert answer.status == 401


async def test_every_answer_has_the_headers_that_keep_pages_apart(server: Server) -> None:
    for path in ("/api/health", "/api/runs", "/api/none", "/"):
        async with server.web.get(server.base + path) as answer:
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_an_address_that_others_reach_needs_to_be_told_who_may_ask(path: Path) -> None:
    async with Engine(path) as engine:
        with pytest.raises(InvalidOption, match="other machines"):
            await engine.serve_dashboard(0, "0.0.0.0")


# --- what comes in, what goes out ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "at", "body", "status"),
    [
        ("GET", "/api/runs/../../etc/passwd", None, 404),
        ("GET", "/api/runs/..%2f..%2fetc%2fpasswd", None, 404),
        ("GET", "/api/runs/%00", None, 404),
        ("GET", "/api/runs/' OR 1=1 --", None, 404),
        ("GET", "/api/runs?limit=501", None, 422),
        ("GET", "/api/runs?limit=x", None, 422),
        ("GET", "/api/runs?cursor=1;DROP", None, 422),
        ("GET", "/api/runs?state=nonsense", None, 422),
        ("GET", "/api/runs?nonsense=1", None, 422),
        ("GET", "/api/runs?since=yesterday", None, 422),
        ("GET", "/api/me/more", None, 404),
        ("PUT", "/api/limits/x", b"{", 400),
        ("PUT", "/api/limits/x", b"[]", 422),
        ("PUT", "/api/limits/x", b'{"limit": 1, "evil": 2}', 422),
        ("PUT", "/api/limits/x", b"[" * 100_000, 400),
        ("PUT", "/api/limits/x", b'{"limit": 1e400}', 422),
        ("PUT", "/api/limits/x", b'{"limit": "' + b"x" * 2_000_000 + b'"}', 413),
        ("PUT", "/api/runs", b"{}", 405),
    ],
)
async def test_what_does_not_fit_is_said_in_one_sentence(
    server: Server, method: str, at: str, body: bytes | None, status: int
) -> None:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    options: dict[str, Any] = {"data": io.BytesIO(body), "json": None} if body is not None else {}
    found = await server.ask(method, at, status, headers=headers, **options)
    assert found["detail"]
    assert len(found["detail"]) < 500


async def test_hostile_texts_go_out_as_data(server: Server) -> None:
    run = await server.engine.submit(mixed, 4, tags=[HOSTILE], run_name=HOSTILE)
    await run.wait()
    for path in (
        "/api/runs",
        f"/api/runs/{run.id}",
        f"/api/runs/{run.id}/task-runs",
        "/api/events",
    ):
        headers = {"Authorization": f"Bearer {server.token}"}
        async with server.web.get(server.base + path, headers=headers) as answer:
            assert answer.content_type == "application/json"
            assert b"<img" in await answer.read()


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("sprung"),))


async def test_nothing_that_is_stored_is_unpickled(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    @task(serializer="pickle")
    async def trap() -> Any:
        return Trap()

    @flow(serializer="pickle")
    async def sets() -> Any:
        await trap()
        return Trap()

    async with Engine(path) as engine:
        run = await engine.submit(sets)
        await run.wait()
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "load", None)
    async with Engine(SqliteStore(path)) as engine:
        runner, url = await serve_app(engine, "127.0.0.1", 0, None, embedded=False)
        base, _, token = url.partition("/#token=")
        async with aiohttp.ClientSession() as client:
            shown = Server(engine, client, base, token)
            assert (await shown.get(f"/api/runs/{run.id}"))["result"]["kind"] == "pickle"
            one = await shown.get(f"/api/runs/{run.id}/task-runs/1")
            assert one["result"] == {
                "kind": "pickle",
                "value": None,
                "bytes": one["result"]["bytes"],
            }
            refused = await shown.ask("POST", f"/api/runs/{run.id}/rerun", 409)
            assert "no code of yours" in refused["detail"]
        await runner.cleanup()
    assert not (tmp_path / "sprung").exists()


async def test_it_lives_inside_an_application_under_any_prefix(path: Path) -> None:
    async with Engine(path) as engine:
        host = web.Application()
        inner = make_app(engine, Access(hosts=None, authorize=lambda _: "admin"), embedded=True)
        host.add_subapp("/ops/flows/", inner)
        runner = web.AppRunner(host, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}/ops/flows"
        async with aiohttp.ClientSession() as client:
            for at in ("/api/health", "/api/runs"):
                async with client.get(base + at) as answer:
                    assert answer.status == 200
        await runner.cleanup()


def test_an_engine_that_nobody_looks_at_imports_nothing_of_it() -> None:
    code = (
        "import asyncio, sys; from asyncflow import Engine, MemoryStore, flow\n"
        "@flow\nasync def f(): return 1\n"
        "async def main():\n async with Engine(MemoryStore()) as e: return await e.run(f)\n"
        "asyncio.run(main())\n"
        "web = ('asyncflow.server', 'aiohttp', 'pydantic')\n"
        "print([m for m in sys.modules if m.startswith(web)])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_the_openapi_document_names_every_route() -> None:
    made = openapi.document()
    assert made["openapi"].startswith("3.1")
    named = {(m.upper(), p) for p, ways in made["paths"].items() for m in ways}
    assert named == {(r.method, r.path) for r in ROUTES}
    text = json.dumps(made)
    for name in {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in made["components"]["schemas"]
