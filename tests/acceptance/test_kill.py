"""Real processes, really killed: nothing that completed runs again, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

FLOW = """
import asyncio, os, sys
from asyncflow import flow, task

def done(what):
    with open("done.txt", "a") as file:
        file.write(what + "\\\\n")
    try:
        os.write(int(os.environ["TOLD"]), b".")
    except OSError:
        pass  # the test has seen enough

@task(retries=2)
async def fetch(x: int) -> int:
    await asyncio.sleep(0.003)  # so that a kill finds work half done, as with real requests
    done(f"fetch {x}")
    return x

@task
def parse(x: int) -> int:
    done(f"parse {x}")
    return x + 1

@flow
async def part(n: int) -> int:
    return sum(await fetch.map(range(1000, 1000 + n)))

@flow(max_concurrency=4)
async def main(n: int = 150) -> int:
    a = await parse.map(fetch.map(range(n)))
    return sum(a) + await part(20)

@flow
async def endless() -> None:
    await parse.map(range(10))
    await asyncio.Event().wait()
""".replace("\\\\", "\\")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "flows.py").write_text(FLOW)
    return tmp_path


class Process(subprocess.Popen[str]):
    """The command line in a process of its own, which tells of each call that it has made."""

    def __init__(self, folder: Path, *args: str) -> None:
        self._told, told = os.pipe()
        os.set_blocking(told, False)
        super().__init__(
            [sys.executable, "-m", "asyncflow", *args],
            cwd=folder,
            env={
                **os.environ,
                "ASYNCFLOW_DATABASE": str(folder / "state.db"),
                "TOLD": str(told),
            },
            pass_fds=[told],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(told)

    def wait_until_done(self, count: int) -> None:
        """Wait until it has made so many calls, or has ended."""
        while count > 0:
            assert select.select([self._told], [], [], 60)[0], "it makes no calls"
            told = os.read(self._told, count)
            if not told:
                break
            count -= len(told)

    def ends(self) -> tuple[str, str]:
        """What it wrote, once it has ended."""
        try:
            return self.communicate(timeout=60)
        finally:
            self.kill()
            os.close(self._told)


def done(folder: Path) -> Counter[str]:
    file = folder / "done.txt"
    return Counter(file.read_text().splitlines()) if file.exists() else Counter()


def completed(folder: Path) -> set[str]:
    uri = f"file:{folder / 'state.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
        rows = db.execute("SELECT task, identity FROM task_runs WHERE state = 'COMPLETED'")
        return {f"{task} {identity.hex()}" for task, identity in rows}


@pytest.mark.parametrize("seed", range(5))
def test_after_kill_9_recover_ends_with_the_same_result(folder: Path, seed: int) -> None:
    rng = Random(seed)
    process = Process(folder, "run", "flows.py:main", "-q")
    process.wait_until_done(rng.randint(1, 250))
    process.send_signal(signal.SIGKILL)
    process.ends()
    kept, before = completed(folder), done(folder)
    again = Process(folder, "recover", "-q")
    out, err = again.ends()
    assert again.returncode == 0, err
    n = 150
    assert str(sum(range(n)) + n + sum(range(1000, 1020))) in out
    after = done(folder)
    # Work that was done twice is work whose record the kill cut off: at most what was in flight.
    twice = {what for what, times in after.items() if times > 1}
    assert len(twice) <= sum(before.values()) - len(kept)
    assert kept <= completed(folder)
    assert set(after) == {
        *(f"fetch {i}" for i in range(n)),
        *(f"parse {i}" for i in range(n)),
        *(f"fetch {i}" for i in range(1000, 1020)),
    }


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_leaves_the_run_interrupted_and_says_how_to_resume(
    folder: Path, number: signal.Signals, code: int
) -> None:
    process = Process(folder, "run", "flows.py:main")
    process.wait_until_done(20)
    process.send_signal(number)
    _, err = process.ends()
    assert process.returncode == code
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "resume it with:" in line]
    again = Process(folder, *line.split("asyncflow ", 1)[1].split())
    _, err = again.ends()
    assert again.returncode == 0, err
    assert max(done(folder).values()) <= 2


def test_a_run_of_another_process_is_cancelled(folder: Path) -> None:
    process = Process(folder, "run", "flows.py:endless")
    process.wait_until_done(5)
    out, err = Process(folder, "cancel", "last").ends()
    assert "cancelled the run" in out, err
    process.ends()
    assert process.returncode == 4


def test_a_run_whose_process_died_is_not_shown_as_running(folder: Path) -> None:
    process = Process(folder, "run", "flows.py:endless", "-q")
    process.wait_until_done(5)
    (alive,) = json.loads(Process(folder, "runs", "ls", "--json").ends()[0])
    assert alive["state_name"] == "Running"
    process.send_signal(signal.SIGKILL)
    process.ends()
    (dead,) = json.loads(Process(folder, "runs", "ls", "--json").ends()[0])
    assert (dead["state"], dead["state_name"]) == ("PAUSED", "Interrupted")
    assert "its process has died" in Process(folder, "runs", "show", "last").ends()[0]
    watch = Process(folder, "runs", "watch", "last")
    _, err = watch.ends()
    assert watch.returncode == 130
    assert "asyncflow recover" in err
