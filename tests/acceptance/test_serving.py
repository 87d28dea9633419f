"""Deployments and automations in processes of their own, by the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner
from patience import eventually

from asyncflow.cli.commands import cli

ROOT = Path(__file__).parents[2]
FLOWS = """
from asyncflow import flow, runtime, task

@task
async def work(n: int) -> int:
    return n

@flow
async def often(n: int = 1) -> int:
    "Runs often."
    return await work(n)

@flow
async def fails() -> None:
    raise RuntimeError("on purpose")
"""
CONFIG = """
[[deployments]]
name = "each second"
flow = "flows.py:often"
interval = 0.5
parameters = { n = 7 }

[[deployments]]
name = "broken"
flow = "flows.py:fails"

[[channels]]
name = "hook"
url = "env:HOOK"
secret = "key"
allow_private = true
retry_delay_seconds = 0.2

[[automations]]
name = "tell"
trigger = { type = "event", expect = "flow-run.Failed", match = { deployment = "broken" } }
actions = [{ type = "notify", channel = "hook" }]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "flows.py").write_text(FLOWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYNCFLOW_DATABASE", str(tmp_path / "state.db"))
    return tmp_path


def start(*args: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "asyncflow", *args],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    process.send_signal(number)
    try:
        return process.communicate(timeout=60)
    finally:
        process.kill()


def run(*args: str) -> str:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output
    return result.output


def counted(folder: Path, sql: str, count: int) -> None:
    """Wait until a query of the database counts so much."""

    def enough() -> bool:
        try:
            with sqlite3.connect(f"file:{folder / 'state.db'}?mode=ro", uri=True) as db:
                return int(db.execute(sql).fetchone()[0]) >= count
        except sqlite3.Error:
            return False  # it is not there yet

    eventually(enough)


RUNS = "SELECT count(*) FROM flow_runs WHERE state = 'COMPLETED'"


def test_a_flow_is_served_until_it_is_told_to_stop(folder: Path) -> None:
    serving = start("serve", "flows.py:often", "--interval", "0.2", "--name", "o", "-p", "n=3")
    counted(folder, RUNS, 3)
    _, err = stop(serving)
    assert serving.returncode == 143, err
    assert "serving o: every 0.2 seconds" in err
    (one,) = json.loads(run("deployments", "ls", "--json"))
    assert one["parameters"] == {"n": 3}
    assert one["description"] == "Runs often."
    ticks = json.loads(run("deployments", "ticks", "o", "--state", "run", "--json"))
    assert len(ticks) >= 3
    assert "RUN" in json.dumps(ticks)
    shown = run("deployments", "show", "o")
    assert "overlap skip" in shown
    assert "o" in run("schedules", "ls")
    run("deployments", "pause", "o")
    assert "paused" in run("deployments", "ls")
    run("deployments", "resume", "o")
    run("deployments", "delete", "o")
    assert "no deployments yet" in run("deployments", "ls")


def test_what_a_file_declares_is_served_and_told(folder: Path) -> None:
    (folder / "asyncflow.toml").write_text(CONFIG)
    got: list[dict[str, Any]] = []

    async def receive() -> None:
        async def handle(request: web.Request) -> web.Response:
            got.append(await request.json())
            return web.Response()

        app = web.Application()
        app.router.add_post("/", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        serving = await asyncio.to_thread(start, "serve", "-q", HOOK=url)
        try:
            await asyncio.to_thread(counted, folder, RUNS, 2)
            failed = await asyncio.to_thread(start, "deployments", "run", "broken", "-q")
            _, err = await asyncio.to_thread(failed.communicate, timeout=60)
            assert failed.returncode == 1, err
            sql = "SELECT count(*) FROM deliveries WHERE state = 'delivered'"
            await asyncio.to_thread(counted, folder, sql, 1)
        finally:
            _, err = await asyncio.to_thread(stop, serving)
            await runner.cleanup()
        assert serving.returncode == 143, err

    asyncio.run(receive())
    assert "on purpose" in got[0]["text"]
    (automation,) = json.loads(run("automations", "ls", "--json"))
    assert automation["fired"] == 1
    assert "delivered" in run("automations", "deliveries")
    assert "would have fired 1 times" in run("automations", "test", "tell")
    assert "notify hook" in run("automations", "show", "tell")
    run("automations", "disable", "tell")
    assert "off" in run("automations", "ls")
    kinds = {e["kind"] for e in json.loads(run("events", "ls", "--json", "--limit", "1000"))}
    assert {"flow-run.Completed", "flow-run.Failed", "automation.fired"} <= kinds


def test_events_are_watched_as_they_come(folder: Path) -> None:
    serving = start("serve", "flows.py:often", "--interval", "0.3", "-q")
    counted(folder, RUNS, 1)
    watching = start("events", "watch", "--json", "--kind", "flow-run.Completed")
    assert watching.stdout is not None
    try:
        texts = [watching.stdout.readline() for _ in range(2)]
    finally:
        _, err = stop(watching, signal.SIGINT)
        stop(serving)
    assert watching.returncode == 130, err
    lines = [json.loads(text) for text in texts]
    assert {line["kind"] for line in lines} == {"flow-run.Completed"}
    assert lines[0]["id"] < lines[1]["id"]


def test_a_message_that_kill_9_cut_off_arrives_after_the_next_start(folder: Path) -> None:
    (folder / "asyncflow.toml").write_text(CONFIG)

    async def story() -> list[str]:
        got: list[str] = []
        hit, over = asyncio.Event(), asyncio.Event()

        async def handle(request: web.Request) -> web.Response:
            got.append(request.headers["Asyncflow-Event-Id"])
            if len(got) == 1:
                hit.set()
                await over.wait()  # it is killed while it waits for this answer
            return web.Response()

        app = web.Application()
        app.router.add_post("/", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        serving = await asyncio.to_thread(start, "serve", "-q", HOOK=url)
        await asyncio.to_thread(counted, folder, RUNS, 1)
        failed = await asyncio.to_thread(start, "deployments", "run", "broken", "-q")
        await asyncio.to_thread(failed.communicate, timeout=60)
        await asyncio.wait_for(hit.wait(), 60)
        await asyncio.to_thread(stop, serving, signal.SIGKILL)
        again = await asyncio.to_thread(start, "serve", "-q", HOOK=url)
        sql = "SELECT count(*) FROM deliveries WHERE state = 'delivered'"
        await asyncio.to_thread(counted, folder, sql, 1)
        await asyncio.to_thread(stop, again)
        over.set()
        await runner.cleanup()
        return got

    got = asyncio.run(story())
    assert len(got) == 2
    assert len(set(got)) == 1, "the receiver can tell that it is the same"
    (delivery,) = json.loads(run("automations", "deliveries", "--json"))
    assert (delivery["state"], delivery["attempts"]) == ("delivered", 2)


OFTEN = "[[deployments]]\nname='a'\nflow='flows.py:often'\n"
HOOK = "[[channels]]\nname='a'\nurl='https://example.org'\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[deployment]]", "did you mean 'deployments'?"),
        ("[[deployments]]\nname='a'", "give it a flow"),
        (OFTEN + "corn='* * * * *'", "did you mean 'cron'?"),
        (OFTEN.replace("often", "oftn"), "did you mean 'often'?"),
        (OFTEN + "cron='61 * * * *'", "minute"),
        (OFTEN + "cron='* * * * *'\ntimezone='Berlin'", "Europe/Berlin"),
        (OFTEN + "parameters={m=1}", "no parameter 'm'"),
        (OFTEN + "[[deployments.schedules]]\nname='x'", "cron, interval"),
        ("[[channels]]\nname='a'\nurl='https://u:s3cret@h'", "no user"),
        ("[[automations]]\nname='a'\nactions=[]", "trigger"),
        (OFTEN + "cron=5", "a cron expression is text"),
        (OFTEN + "timezone='Europe/Berlin'", "is of cron and rrule: say when"),
        (OFTEN + "version=1.5", "version=1.5: give a text"),
        (OFTEN + "tags=5", "tags=5: give a list of names"),
        (OFTEN + "paused='no'", "paused='no': give True or False"),
        (OFTEN + "[[deployments.schedules]]\ncron='* * * * *'\npaused=1", "paused=1"),
        (HOOK + "retry_delay_seconds={facto=2}", "did you mean 'factor'?"),
        (HOOK + "retry_delay_seconds={factor='x'}", "channel a"),
        ("[[channels]]\nname='a'", "give it a url"),
        ("deployments = 3", "[[deployments]]"),
        ("x = ", "no TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(folder: Path, text: str, said: str) -> None:
    (folder / "asyncflow.toml").write_text(text)
    result = CliRunner().invoke(cli, ["serve"])
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.splitlines()) == 1
    assert "s3cret" not in result.output


def test_a_pyproject_of_another_kind_declares_nothing(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("tool = 3")
    result = CliRunner().invoke(cli, ["serve"])
    assert result.exit_code == 2
    assert "no deployment in this database" in result.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["serve"], "no deployment in this database"),
        (["serve", "flows.py:often", "--cron", "* * *"], "has 3 fields"),
        (["deployments", "run", "none"], "no database"),
        (["deployments", "show", "none"], "no database"),
        (["automations", "send-test", "ops"], "no asyncflow.toml"),
        (["events", "ls"], "no database"),
    ],
)
def test_what_cannot_be_done_is_said(folder: Path, args: list[str], said: str) -> None:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_the_server_shows_what_there_is_and_runs_nothing(folder: Path) -> None:
    done = start("run", "flows.py:often", "-q")
    done.communicate(timeout=60)
    serving = start("server", "start", "--port", "0", "--read-token", "only for looking")
    assert serving.stdout is not None
    base, _, token = serving.stdout.readline().strip().partition("/#token=")

    def ask(path: str, token: str | None, method: str = "GET") -> tuple[int, Any]:
        headers = {"X-Asyncflow": "1"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        asked = urllib.request.Request(base + path, headers=headers, method=method)
        try:
            with urllib.request.urlopen(asked) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    assert ask("/api/runs", None)[0] == 401
    assert ask("/api/health", None)[0] == 200
    status, listed = ask("/api/runs", token)
    assert status == 200
    (shown,) = listed["items"]
    assert shown["flow"] == "often"
    assert ask(f"/api/runs/{shown['id']}/delete", "only for looking", "POST")[0] == 403
    status, refused = ask(f"/api/runs/{shown['id']}/rerun", token, "POST")
    assert status == 409
    assert "no code of yours" in refused["detail"]
    assert ask(f"/api/runs/{shown['id']}/delete", token, "POST")[0] == 200
    _, err = stop(serving)
    assert serving.returncode == 143, err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--host", "0.0.0.0"], "other machines"),
        (["--host", "0.0.0.0", "--token", "x" * 20], "--host-name"),
        (["--token", "short"], "at least 16"),
    ],
)
def test_a_server_that_others_reach_wants_to_know_who_may_ask(
    folder: Path, args: list[str], said: str
) -> None:
    result = CliRunner().invoke(cli, ["server", "start", *args])
    assert result.exit_code == 2
    assert said in result.output


def test_a_backfill_runs_here_to_its_end(folder: Path) -> None:
    serving = start("serve", "flows.py:often", "--cron", "0 3 * * *", "--name", "nightly", "-q")
    counted(folder, "SELECT count(*) FROM schedules", 1)
    stop(serving)
    args = ["--start", "2026-01-01T00:00+00:00", "--end", "2026-01-11T00:00+00:00"]
    done = start("deployments", "backfill", "nightly", *args, "--max-concurrency", "3", "--json")
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert json.loads(out)["states"] == {"COMPLETED": 10}
    with sqlite3.connect(folder / "state.db") as db:
        causes = {cause for (cause,) in db.execute("SELECT cause FROM flow_runs")}
    assert causes == {"backfill:1"}


def test_the_example_of_schedules_tells_its_story(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "scheduled.py"), "--every", "1", "--away", "3.5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for text in ("after 2 refused", "missed", "run", "schedule.missed", "delivered", "notify hook"):
        assert text in done.stdout, text
