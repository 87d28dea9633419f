"""Real processes on one file: stopped, blocked, killed while they recover, many at once."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from asyncflow import SqliteStore, recovery

FLOWS = r"""
import asyncio, os, time
from asyncflow import flow, runtime, task

def die(*_):
    os.kill(os.getpid(), 9)

def note(what):
    with open("done.txt", "a") as file:
        file.write(f"{runtime.flow_run.id} {what}\n")

@task
async def step(x):
    note(f"step {x}")
    return x

@task
async def gate():
    print("at the gate", flush=True)
    while not os.path.exists("open"):
        await asyncio.sleep(0.01)
    note("gate")
    return 10

@task
async def blocked_gate():
    print("at the gate", flush=True)
    while not os.path.exists("open"):
        time.sleep(0.01)  # blocks the loop, and with it all that its engine does
    note("gate")
    return 10

@flow
async def waits():
    return await step(1) + await gate() + await step(2)

@flow
async def blocks():
    return await step(1) + await blocked_gate() + await step(2)

@flow
async def mapped(n):
    total = sum(await step.map(range(3)))
    if os.environ.get("DIE") == "replaying":
        die()
    return total + await gate()
"""

ROLES = r"""
import asyncio, os, sys
import flows
from asyncflow import Engine, SqliteStore, recovery

async def own(name):
    async with Engine("state.db") as engine:
        print("value", await engine.run(getattr(flows, name)), flush=True)

async def leave(count):
    async with Engine("state.db") as engine:
        for n in range(int(count)):
            await engine.submit(flows.mapped, n)
        await asyncio.sleep(3600)

async def watch():
    recovery.WATCH = 0.02
    look = recovery.Recovery._watch_once

    async def told(self):
        await look(self)
        print("looked", len(self._engine.live), flush=True)

    recovery.Recovery._watch_once = told
    async with Engine("state.db") as engine:
        await engine.recover()
        await asyncio.to_thread(sys.stdin.read)

async def recover():
    async with Engine("state.db") as engine:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        break_down(os.environ.get("DIE"))
        for run in await engine.recover():
            await run.wait()
            print("took", run.id, run.state.name, run.recoveries, flush=True)

def break_down(where):
    points = {
        "claiming": ("claim", True), "claimed": ("claim", False), "reading": ("calls", True),
        "read": ("marks", False), "writing": ("write", True), "written": ("write", False),
    }
    if where in points:
        method, before = points[where]
        real = getattr(SqliteStore, method)

        def dies(*args, **kwargs):
            before or real(*args, **kwargs)
            flows.die()

        setattr(SqliteStore, method, dies)

asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
"""

PATIENCE = 60.0


class Process:
    """One that plays a role, and tells by lines what it does."""

    def __init__(self, folder: Path, *role: str, die: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "roles.py", *role],
            cwd=folder,
            env={**os.environ, "DIE": die},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout
        self._rest = b""
        self.send = self._process.send_signal

    def line(self) -> str:
        """What it tells next; "" when it has ended."""
        while b"\n" not in self._rest:
            assert select.select([self._out], [], [], PATIENCE)[0], "it says nothing any more"
            more = os.read(self._out.fileno(), 65536)
            if not more:
                return ""
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def until(self, text: str) -> str:
        """The next line that begins so."""
        while not (line := self.line()).startswith(text):
            assert line, f"it ended before it said {text!r}"
        return line

    def go(self) -> None:
        """Let it begin with what it is ready for."""
        self._in.write(b"go\n")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)

    def ends(self) -> int:
        """Its exit code, when it has ended of itself."""
        self._in.close()
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        for number in (signal.SIGCONT, signal.SIGKILL):
            self._process.send_signal(number)
        self._process.wait(PATIENCE)
        for stream in (self._in, self._out):
            with contextlib.suppress(OSError):
                stream.close()


class Scene:
    """A folder with flows, and the processes that work in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "flows.py").write_text(FLOWS)
        (folder / "roles.py").write_text(ROLES)
        self.processes: list[Process] = []

    def start(self, *role: str, die: str = "") -> Process:
        self.processes.append(Process(self.folder, *role, die=die))
        return self.processes[-1]

    def open_gate(self) -> None:
        (self.folder / "open").touch()

    def done(self) -> Counter[str]:
        """How often what was done, over all lives."""
        file = self.folder / "done.txt"
        return Counter(file.read_text().splitlines()) if file.exists() else Counter()

    def runs(self) -> list[tuple[str, str, int]]:
        """Id, state and recoveries of each run, as stored."""
        with contextlib.closing(sqlite3.connect(self.folder / "state.db")) as db:
            return db.execute("SELECT id, state, recoveries FROM flow_runs ORDER BY pk").fetchall()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    for process in made.processes:
        process.close()


# --- a process that does nothing is not dead ------------------------------------------------------


def look_often(watcher: Process) -> set[str]:
    """What the watcher says in its next looks."""
    watcher.until("looked")  # that one may have begun before
    return {watcher.until("looked") for _ in range(5)}


@pytest.mark.parametrize("name", ["waits", "blocks"])
def test_nothing_is_taken_from_an_engine_that_stands_still(scene: Scene, name: str) -> None:
    owner = scene.start("own", name)
    owner.until("at the gate")
    if name == "waits":
        owner.send(signal.SIGSTOP)
    watcher = scene.start("watch")
    assert look_often(watcher) == {"looked 0"}
    if name == "waits":
        owner.send(signal.SIGCONT)
    scene.open_gate()
    assert owner.until("value") == "value 13"
    assert owner.ends() == 0
    assert look_often(watcher) == {"looked 0"}
    assert watcher.ends() == 0
    ((run, state, recoveries),) = scene.runs()
    assert (state, recoveries) == ("COMPLETED", 0)
    assert scene.done() == {f"{run} step 1": 1, f"{run} gate": 1, f"{run} step 2": 1}


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_what_a_killed_engine_leaves_is_taken_at_the_next_look(scene: Scene, stopped: bool) -> None:
    owner = scene.start("own", "waits")
    owner.until("at the gate")
    watcher = scene.start("watch")
    watcher.until("looked 0")
    if stopped:
        owner.send(signal.SIGSTOP)
    owner.kill()
    watcher.until("looked")  # it may have begun before
    while (line := watcher.line()) == "at the gate":
        pass
    assert line == "looked 1"
    scene.open_gate()
    watcher.until("looked 0")
    assert watcher.ends() == 0
    ((run, state, recoveries),) = scene.runs()
    assert (state, recoveries) == ("COMPLETED", 1)
    assert scene.done() == {f"{run} step 1": 1, f"{run} gate": 1, f"{run} step 2": 1}


def test_two_looks_fit_into_the_five_seconds_that_are_promised() -> None:
    assert recovery.WATCH * 2 < 5


# --- recovery -------------------------------------------------------------------------------------


def leave(scene: Scene, count: int) -> None:
    """Runs that are at their gates when their process is killed."""
    process = scene.start("leave", str(count))
    for _ in range(count):
        process.until("at the gate")
    process.kill()


def all_done_once(scene: Scene) -> bool:
    runs = [run for run, state, _ in scene.runs() if state == "COMPLETED"]
    steps = ["step 0", "step 1", "step 2", "gate"]
    return scene.done() == {f"{run} {step}": 1 for run in runs for step in steps}


def test_each_run_is_taken_by_one_of_those_who_recover_at_the_same_moment(scene: Scene) -> None:
    leave(scene, 30)
    scene.open_gate()
    several = [scene.start("recover") for _ in range(3)]
    for one in several:
        one.until("ready")
    for one in several:
        one.go()
    taken: list[str] = []
    for one in several:
        while line := one.line():
            if line.startswith("took"):
                taken.append(line)
        assert one.ends() == 0
    found = scene.runs()
    assert sorted(taken) == sorted(f"took {run} Completed 1" for run, _, _ in found)
    assert len(found) == 30
    assert all_done_once(scene)


@pytest.mark.parametrize(
    ("point", "counted"),
    [
        ("claiming", 1),
        ("claimed", 2),
        ("reading", 2),
        ("read", 2),
        ("writing", 2),
        ("written", 2),
        ("replaying", 2),
    ],
)
def test_a_recovery_that_is_killed_is_gone_on_with_by_the_next(
    scene: Scene, point: str, counted: int
) -> None:
    leave(scene, 1)
    scene.open_gate()
    dies = scene.start("recover", die=point)
    dies.until("ready")
    dies.go()
    assert dies.ends() == -signal.SIGKILL
    again = scene.start("recover")
    again.until("ready")
    again.go()
    assert again.until("took").endswith(f"Completed {counted}")
    assert again.ends() == 0
    assert all_done_once(scene)


def test_a_run_that_kills_whoever_reads_it_is_given_up(scene: Scene) -> None:
    leave(scene, 1)
    for _ in range(3):
        dies = scene.start("recover", die="reading")
        dies.until("ready")
        dies.go()
        assert dies.ends() == -signal.SIGKILL
    # Not read any more, or this would kill again.
    last = scene.start("recover", die="reading")
    last.until("ready")
    last.go()
    assert "Crashed" in last.until("took")


# --- files that cannot be used --------------------------------------------------------------------


def can_be_read_only() -> list[str] | None:
    """What makes a command heed permissions; None where that cannot be had."""
    if not hasattr(os, "geteuid"):
        return None
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        return None
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]


@pytest.mark.parametrize("command", ["run flows.py:waits", "recover", "runs ls", "cancel last"])
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("noise", "is not a database: give another path; the file was not touched"),
        ("cut", "is damaged (database disk image is malformed): restore a backup"),
        ("read-only file", "cannot be written to (attempt to write a readonly database): give"),
        ("read-only folder", "cannot be written to (attempt to write a readonly database): give"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(
    scene: Scene, how: str, says: str, command: str
) -> None:
    before = can_be_read_only()
    if "read-only" in how and before is None:
        pytest.skip("everything can be written to here")
    if how == "read-only file" and command in ("runs ls", "cancel last"):
        pytest.skip("it can be read, and where nothing is to be cancelled nothing is written")
    folder = scene.folder / "kept"
    folder.mkdir()
    path = folder / "state.db"
    with contextlib.closing(SqliteStore(path)) as store:
        store.open("full")
    if how == "noise":
        path.write_bytes(b"nonsense" * 1000)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:20_000])
    elif how == "read-only file":
        path.chmod(0o400)
    else:
        folder.chmod(0o500)
    content = path.read_bytes()
    ended = subprocess.run(
        [*(before or []), sys.executable, "-m", "asyncflow", *command.split()],
        cwd=scene.folder,
        env={**os.environ, "ASYNCFLOW_DATABASE": str(path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    folder.chmod(0o700)
    assert ended.returncode == 2
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("asyncflow: ")
    assert says in sentence
    assert ended.stdout == ""
    assert path.read_bytes() == content
    assert not (scene.folder / "done.txt").exists()
