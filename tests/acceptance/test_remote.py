"""The command line before a server: the same as before the database of that server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from patience import until

from asyncflow import Engine
from asyncflow.automations import Automation, EventTrigger
from asyncflow.automations import SetLimit as LimitAction
from asyncflow.cli.commands import cli
from asyncflow.target import find_flow

FLOWS = '''
from pathlib import Path
from pydantic import BaseModel, SecretStr
from asyncflow import (
    create_link_artifact, create_markdown_artifact, create_table_artifact, flow, get_run_logger,
    pause_flow_run, set_progress, sleep, task,
)

class Silent(Exception):
    """It has no message."""

@task(retries=1, retry_delay_seconds=0, retry_jitter_factor=0)
async def work(n: int) -> int:
    get_run_logger().warning("working on %s \\u202e", n)
    if n == 3:
        raise ValueError("no threes \\x1b[31m")
    if n == 4:
        raise Silent
    return n

@task
async def outer(n: int) -> int:
    return await work(n) + sum(await work.map(range(2)))

@flow(log_prints=True)
async def good(n: int = 2, name: str = "x", password: SecretStr = "hidden") -> list:
    print("printed", name)
    create_markdown_artifact("# Hello", key="text")
    create_table_artifact([{"a": 1, "b": "\\u00e9"}], key="cells", description="all of it")
    create_link_artifact("https://example.org", "there")
    set_progress(3, 4)
    return [name, await outer(n), {"\\u00e9": 1.5, "big": 2**70, "none": None}]

@flow
async def bad(n: int = 9) -> None:
    await work.map(range(n))

@flow
async def above() -> int:
    await good(1)
    await good.submit(0, "y")
    return 7

@flow
async def mends() -> str:
    if not Path("mended").exists():
        raise RuntimeError("not mended yet")
    return "mended"

@flow
async def takes(text: str = "x", maybe: str | None = None) -> list:
    return [text, maybe]

@flow
async def waits() -> None:
    await sleep(3600)

class Reply(BaseModel):
    yes: bool

@flow
async def asks() -> bool:
    return (await pause_flow_run(wait_for_input=Reply)).yes
'''


async def fill(path: Path) -> None:
    """Runs, deployments, automations, limits and variables of all kinds."""

    def of(name: str) -> Any:
        return find_flow(f"{path.parent / 'flows.py'}:{name}")

    async with Engine(path) as engine:
        await engine.automate(
            Automation(
                name="calm",
                trigger=EventTrigger(expect="flow-run.Failed", match={"flow": "bad"}),
                actions=[LimitAction(name="db", limit=2)],
                description="when it fails",
            )
        )
        await engine.deploy(
            of("good"), "by year", cron="0 3 1 1 *", timezone="Europe/Berlin", overlap="allow",
            tags=["t"], parameters={"name": "deployed"},
        )  # fmt: skip
        await engine.deploy(of("mends"), "plain", overlap="allow")
        await engine.deploy(of("takes"), "takes", overlap="allow")
        for flow, options in (
            ("good", {"tags": ["a", "b"]}),
            ("bad", {"run_name": "a name of its own"}),
            ("above", {}),
            ("mends", {}),
            ("takes", {}),
        ):
            await (await engine.submit(of(flow), **options)).wait()
        await (await engine.run_deployment("by year")).wait()
        waiting = await engine.submit(of("waits"))
        await engine.cancel(waiting.id)
        await engine.set_limit("calls", 10, period=60.0, burst=3)
        await engine.set_variable("region", {"a": [1, 2.5, None, "\u00e9"]})
        await engine.set_variable("text", "7 \u202e")
        await engine.emit("orders.imported", {"count": 3})
        await until(lambda: engine.deliveries(states="delivered"))


class Process:
    """A process of the command line."""

    def __init__(self, folder: Path, *args: str) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("ASYNCFLOW_")}
        self.running = subprocess.Popen(
            [sys.executable, "-m", "asyncflow", *args],
            cwd=folder,
            env={**env, "ASYNCFLOW_DATABASE": str(folder / "state.db")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self, stream: str = "stdout") -> str:
        pipe = getattr(self.running, stream)
        assert select.select([pipe], [], [], 60)[0], "it says nothing"
        return str(pipe.readline())

    def end(self) -> None:
        self.running.send_signal(signal.SIGINT)
        self.running.communicate(timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("remote")
    (made / "flows.py").write_text(FLOWS)
    asyncio.run(fill(made / "state.db"))
    return made


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    server = Process(folder, "server", "start", "--port", "0")
    yield server.line().strip()
    server.end()


@pytest.fixture(autouse=True)
def _no_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE", "SERVER", "TOKEN"):
        monkeypatch.delenv(f"ASYNCFLOW_{name}", raising=False)
    monkeypatch.chdir(folder)


def here(*args: str) -> Result:
    return CliRunner().invoke(cli, [*args, "--db", "state.db"])


def there(url: str, *args: str) -> Result:
    result = CliRunner().invoke(cli, [*args, "--server", url])
    assert "Traceback" not in result.output, result.output
    assert url.partition("token=")[2] not in result.output
    return result


def newest(flow: str, **more: Any) -> str:
    listed = json.loads(here("runs", "ls", "--flow", flow, "--json").stdout)
    return str(listed[0]["id"])


LOOKS = [
    "runs ls", "runs ls --all", "runs ls --state failed --state cancelled", "runs ls --limit 2",
    "runs ls --flow good --tag a", "runs ls --flow none", "runs ls --state nonsense",
    "runs show GOOD", "runs show GOOD --tasks", "runs show BAD", "runs show ABOVE",
    "runs show WAITS", "runs show last", "runs show nothing", "runs show 0", "runs show ../etc",
    "runs logs GOOD", "runs logs BAD --level error", "runs logs GOOD --search printed",
    "runs logs GOOD --level nonsense", "runs artifacts GOOD", "runs artifacts BAD",
    "runs watch WAITS", "cancel GOOD", "cancel CHILD", "runs delete CHILD --yes",
    "runs delete GOOD", "events ls", "events ls --kind task-run.* --limit 3",
    "events ls --run BAD --kind flow-run.Failed", "events ls --since 2200-01-01",
    "events ls --since soon", "deployments ls", "deployments show plain",
    "deployments show none", "deployments ticks plain", "deployments ticks none",
    "deployments pause none", "deployments delete none", "schedules ls", "automations ls",
    "automations show calm", "automations show none", "automations deliveries",
    "automations deliveries --automation calm --state delivered --run BAD",
    "automations enable none", "automations delete none", "limits ls", "variables ls",
    "variables get region", "variables get text", "variables get none", "variables delete none",
    "variables set No 1", "runs answer GOOD --data {}",
]  # fmt: skip


@pytest.mark.parametrize("command", LOOKS)
def test_a_server_and_its_database_look_the_same(folder: Path, url: str, command: str) -> None:
    ids = {name: newest(name.lower()) for name in ("GOOD", "BAD", "ABOVE", "WAITS")}
    shown = json.loads(here("runs", "show", ids["ABOVE"], "--json").stdout)
    ids["CHILD"] = shown["children"][0]["id"]
    args = [ids.get(word, word) for word in command.split()]
    for more in ([], ["--json"]):
        local, remote = here(*args, *more), there(url, *args, *more)
        assert remote.exit_code == local.exit_code, remote.output
        assert _steady(remote.stdout) == _steady(local.stdout)
        assert _steady(remote.stderr) == _steady(local.stderr)


def _steady(text: str) -> str:
    """Without how long the command itself took."""
    return re.sub(r"^ +[\d.]+ m?s  ", "", text, flags=re.M)


def test_what_acts_answers_the_same_and_has_the_same_effect(folder: Path, url: str) -> None:
    for back, forth, look in (
        ("deployments resume plain", "deployments pause plain", "deployments show plain"),
        ("automations enable calm", "automations disable calm", "automations show calm"),
        ("variables set v 1", 'variables set v {"a":2}', "variables get v"),
        ("variables set v 1", "variables delete v", "variables ls"),
        ("limits set db 5", "limits set db 7 --period 2.5 --burst 3", "limits ls"),
        ("limits set db 5", "limits lift db", "limits ls"),
    ):
        for more in ([], ["--json"]):
            assert here(*back.split()).exit_code == 0
            local = here(*forth.split(), *more)
            seen = here(*look.split(), "--json")
            assert here(*back.split()).exit_code == 0
            remote = there(url, *forth.split(), *more)
            assert (remote.exit_code, local.exit_code) == (0, 0), remote.output
            assert _timeless(remote.stdout) == _timeless(local.stdout)
            changed = there(url, *look.split(), "--json")
            assert _timeless(changed.stdout) == _timeless(seen.stdout)


def _timeless(text: str) -> str:
    return re.sub(r'"updated_at": "[^"]*"', "", text)


def test_runs_are_cancelled_and_deleted_there(folder: Path, url: str) -> None:
    begun = Process(folder, "run", "flows.py:waits")
    run_id = re.findall(r"run (\S+) of", begun.line("stderr"))[0]
    cancelled = there(url, "cancel", run_id, "--json")
    assert json.loads(cancelled.stdout) == {"id": run_id, "cancelled": True, "state": "CANCELLED"}
    begun.running.communicate(timeout=60)
    assert begun.running.returncode == 4
    assert there(url, "runs", "watch", run_id).exit_code == 4
    deleted = there(url, "runs", "delete", run_id, "--yes", "--json")
    assert json.loads(deleted.stdout) == {"ids": [run_id], "deleted": 1}
    assert here("runs", "show", run_id).exit_code == 2


def test_what_needs_code_says_so_where_there_is_none(folder: Path, url: str) -> None:
    for command in (
        ["resume", newest("bad")], ["rerun", newest("bad")], ["fork", newest("bad")],
        ["deployments", "run", "plain"],
    ):  # fmt: skip
        refused = there(url, *command)
        assert refused.exit_code == 2
        assert "asyncflow serve" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_an_engine_with_the_code_does_what_the_server_is_asked_for(folder: Path, url: str) -> None:
    serving = Process(folder, "serve", "flows.py:asks")
    assert "asks" in serving.line("stderr")
    try:
        failed = newest("mends")
        (folder / "mended").unlink(missing_ok=True)
        ended = there(url, "rerun", failed, "--json")
        assert ended.exit_code == 1, ended.output
        told = json.loads(ended.stdout)
        assert told["state"] == "FAILED"
        assert told["error"] == {"type": "RuntimeError", "message": "not mended yet"}
        (folder / "mended").touch()
        resumed = there(url, "resume", told["id"])
        assert resumed.exit_code == 0, resumed.output
        assert "'mended'" in resumed.stdout
        assert "Completed" in resumed.stderr
        forked = json.loads(there(url, "fork", told["id"], "--json").stdout)
        assert (forked["result"], forked["id"] != told["id"]) == ("mended", True)
        secret = there(url, "rerun", newest("good"), "-p", "password=abc")
        assert (secret.exit_code, len(secret.stderr.splitlines())) == (2, 1)
        assert "'password' is or holds a secret" in secret.stderr
        assert there(url, "resume", failed, "-p", "n=1").exit_code == 2
        for verb in ("rerun", "fork"):
            again = there(url, verb, newest("takes"), "-p", "text=7", "-p", "maybe=8", "--json")
            assert again.exit_code == 0, again.output
            assert json.loads(again.stdout)["result"] == ["7", "8"]
        asked = json.loads(there(url, "deployments", "ls", "--json").stdout)
        assert "asks" in {one["name"] for one in asked}
    finally:
        serving.end()


def test_a_deployment_is_run_there_to_its_end(folder: Path, url: str) -> None:
    serving = Process(folder, "serve")
    serving.line("stderr")
    try:
        args = ("deployments", "run", "by year", "-p", "name=5", "--name", "mine", "--json")
        remote, local = there(url, *args), here(*args)
        assert (remote.exit_code, local.exit_code) == (0, 0), remote.output
        one, other = json.loads(remote.stdout), json.loads(local.stdout)
        assert one.keys() == other.keys()
        for key in ("flow", "name", "state", "state_name", "message", "error"):
            assert one[key] == other[key]
        # What is stored, as it is stored: a number that JSON has not is spelled out there.
        assert one["result"][:2] == other["result"][:2] == ["5", 3]
        wrong = there(url, "deployments", "run", "by year", "-p", "n=x")
        assert wrong.exit_code == 2
        assert "'n'" in wrong.stderr
    finally:
        serving.end()


def test_events_are_watched_there_as_they_come(folder: Path, url: str) -> None:
    watching = Process(
        folder, "events", "watch", "--kind", "orders.*", "--since", "2020-01-01", "--json",
        "--server", url,
    )  # fmt: skip
    first = json.loads(watching.line())
    assert first["kind"] == "orders.imported"

    async def more() -> None:
        async with Engine(folder / "state.db") as engine:
            await engine.emit("orders.exported", {"count": 4})

    asyncio.run(more())
    then = json.loads(watching.line())
    assert (then["kind"], then["payload"]) == ("orders.exported", {"count": 4})
    assert then.keys() == first.keys()
    watching.end()
    assert watching.running.returncode == 130


@pytest.mark.parametrize(
    "command",
    [
        "run flows.py:good", "recover", "serve", "db check", "db stats", "runs export x",
        "runs import x", "runs diff a b", "automations test calm", "automations send-test x",
        "deployments backfill plain --start 2020-01-01 --end 2020-01-02", "events send x",
        "server start",
    ],
)  # fmt: skip
def test_what_is_done_here_only_says_so_in_one_sentence(
    folder: Path, url: str, command: str
) -> None:
    refused = there(url, *command.split())
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert "leave out --server" in line


def test_two_places_are_one_too_many(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = there(url, "runs", "ls", "--db", "state.db")
    assert (both.exit_code, len(both.stderr.splitlines())) == (2, 1)
    assert "--db and --server" in both.stderr
    monkeypatch.setenv("ASYNCFLOW_SERVER", url)
    monkeypatch.setenv("ASYNCFLOW_DATABASE", "no.db")
    unsure = CliRunner().invoke(cli, ["runs", "ls"])
    assert (unsure.exit_code, len(unsure.stderr.splitlines())) == (2, 1)
    assert "say --db or --server" in unsure.stderr
    assert there(url, "runs", "ls").exit_code == 0
    assert here("runs", "ls").exit_code == 0
    monkeypatch.delenv("ASYNCFLOW_DATABASE")
    by_name = CliRunner().invoke(cli, ["runs", "ls", "--json"])
    assert json.loads(by_name.stdout) == json.loads(here("runs", "ls", "--json").stdout)
    base, _, token = url.partition("/#token=")
    monkeypatch.setenv("ASYNCFLOW_SERVER", base)
    assert "does not know the token" in CliRunner().invoke(cli, ["runs", "ls"]).stderr
    monkeypatch.setenv("ASYNCFLOW_TOKEN", token)
    assert CliRunner().invoke(cli, ["runs", "ls"]).exit_code == 0


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("http://127.0.0.1:1", "asyncflow server start"),
        ("127.0.0.1:4200", "http:// or https://"),
        ("http://flows.example.org/#token=secret-of-mine", "unencrypted"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_sentence(
    folder: Path, server: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.transport.LONGEST", 0.01)
    failed = CliRunner().invoke(cli, ["runs", "ls", "--server", server])
    assert failed.exit_code == 2
    (line,) = failed.stderr.splitlines()
    assert said in line
    assert "secret-of-mine" not in line


def test_looking_at_a_database_loads_nothing_of_the_client(folder: Path) -> None:
    code = (
        "import sys; from asyncflow.cli.commands import cli\n"
        "import asyncflow.cli.looking, asyncflow.cli.planning\n"
        "try: cli(['runs', 'ls', '--db', 'state.db'])\n"
        "except SystemExit: pass\n"
        "heavy = ('aiohttp', 'asyncflow.client', 'asyncflow.server', 'pydantic')\n"
        "print([m for m in sys.modules if m.startswith(heavy)], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
