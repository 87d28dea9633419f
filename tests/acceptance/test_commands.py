"""`asyncflow server start` beside `asyncflow serve`: the one is asked, the other does it, once."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import eventually

FLOWS = """
import os
from pathlib import Path

from asyncflow import flow, task

with open("imported", "a") as file:
    print(os.getpid(), file=file)

@task
async def work(n: int) -> int:
    return n

@flow
async def often(n: int = 1) -> int:
    found = await work(n)
    if Path("broken").exists():
        raise RuntimeError("it is broken")
    return found

if os.environ.get("DIES"):
    from asyncflow.commanding import Commands

    done = Commands._done

    async def dying(self, row):
        if os.environ["DIES"] == "after":
            await done(self, row)
        os.kill(os.getpid(), 9)

    Commands._done = dying
"""


class World:
    """A folder with flows and a database, and the processes that work there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[str]] = []
        (folder / "flows.py").write_text(FLOWS)
        self._base = self._token = ""

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        database = str(self.folder / "state.db")
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncflow", *args],
            cwd=self.folder,
            env={**os.environ, "ASYNCFLOW_DATABASE": database, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        return process

    def serve(self, **env: str) -> subprocess.Popen[str]:
        """Serve the flow, and go on when it takes commands."""
        before = self.count("takers")
        serving = self.start("serve", "flows.py:often", "--name", "dep", **env)
        eventually(lambda: self.count("takers") > before)
        return serving

    def serve_dashboard(self) -> subprocess.Popen[str]:
        serving = self.start("server", "start", "--port", "0")
        assert serving.stdout is not None
        self._base, _, self._token = serving.stdout.readline().strip().partition("/#token=")
        return serving

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        asked = urllib.request.Request(
            f"{self._base}/api{path}",
            method=method,
            data=json.dumps(body or {}).encode() if method != "GET" else None,
            headers={
                "Authorization": f"Bearer {self._token}",
                "X-Asyncflow": "1",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(asked) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def post(self, path: str, body: Any = None) -> Any:
        status, said = self.ask("POST", path, body)
        assert status == 202, said
        return said["command"]

    def end(self, command: Any) -> Any:
        """What becomes of a command."""
        eventually(lambda: self.ask("GET", f"/commands/{command['id']}")[1]["ended_at"] is not None)
        return self.ask("GET", f"/commands/{command['id']}")[1]

    def completed(self, run: str) -> Any:
        """A run, once it has completed: one that was resumed may still be shown as it was."""
        eventually(lambda: self.ask("GET", f"/runs/{run}")[1]["state"] == "COMPLETED")
        return self.ask("GET", f"/runs/{run}")[1]

    def count(self, table: str) -> int:
        try:
            with sqlite3.connect(f"file:{self.folder / 'state.db'}?mode=ro", uri=True) as db:
                return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        except sqlite3.Error:
            return 0  # it is not there yet

    def failed_run(self) -> str:
        (self.folder / "broken").touch()
        self.start("run", "flows.py:often", "-q").communicate(timeout=60)
        (self.folder / "broken").unlink()
        (run,) = self.ask("GET", "/runs")[1]["items"]
        assert run["state"] == "FAILED"
        return str(run["id"])

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_a_process_that_serves_does_what_the_dashboard_is_asked(world: World) -> None:
    dashboard = world.serve_dashboard()
    run = world.failed_run()
    status, refused = world.ask("POST", f"/runs/{run}/rerun")
    assert (status, "start `asyncflow serve" in refused["detail"]) == (409, True)

    world.serve()
    begun = world.end(world.post("/deployments/dep/run", {"parameters": {"n": 3}}))
    assert begun["state"] == "DONE", begun
    assert world.completed(begun["made_run_id"])["result"]["value"] == 3
    for what, result in (("rerun", 4), ("fork", 4)):
        end = world.end(world.post(f"/runs/{run}/{what}", {"parameters": {"n": 4}}))
        assert end["state"] == "DONE", end
        made = world.completed(end["made_run_id"])
        assert (made["origin"], made["result"]["value"]) == (run, result)
    end = world.end(world.post(f"/runs/{run}/resume", {"expected_state": "FAILED"}))
    assert (end["state"], end["made_run_id"]) == ("DONE", run)
    world.completed(run)

    imported = (world.folder / "imported").read_text().split()
    assert str(dashboard.pid) not in imported, "no code of the user is in the server"


# All of them, and both: tests/engine/test_commands.py, without processes.
@pytest.mark.parametrize(
    ("what", "when"), [("rerun", "before"), ("run", "after"), ("resume", "after")]
)
def test_what_a_killed_process_had_taken_another_one_does_once(
    world: World, what: str, when: str
) -> None:
    world.serve_dashboard()
    run = world.failed_run()
    dying = world.serve(DIES=when)
    at = "/deployments/dep/run" if what == "run" else f"/runs/{run}/{what}"
    asked = world.post(at)
    assert dying.wait(60) == -signal.SIGKILL
    assert world.ask("GET", f"/commands/{asked['id']}")[1]["state"] == "TAKEN"

    world.serve()
    end = world.end(asked)
    assert (end["state"], end["taken"]) == ("DONE", 2), end
    world.completed(end["made_run_id"])
    runs = world.ask("GET", "/runs")[1]["items"]
    assert len(runs) == (1 if what == "resume" else 2), "it was done once"
