"""Real processes, really killed: nothing that completed runs again, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
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

@task(retries=2)
async def fetch(x: int) -> int:
    await asyncio.sleep(0.003)
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
""".replace("\\\\", "\\")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "flows.py").write_text(FLOW)
    return tmp_path


def asyncflow(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "asyncflow", *args],
        cwd=folder,
        env={**os.environ, "ASYNCFLOW_DATABASE": str(folder / "state.db")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(folder: Path) -> Counter[str]:
    file = folder / "done.txt"
    return Counter(file.read_text().splitlines()) if file.exists() else Counter()


def wait_until_done(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 30
    while sum(done(folder).values()) < count and process.poll() is None:
        assert time.monotonic() < until
        os.sched_yield()


def completed(folder: Path) -> set[str]:
    import sqlite3

    with sqlite3.connect(f"file:{folder / 'state.db'}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT task, identity FROM task_runs WHERE state = 'COMPLETED'")
        return {f"{task} {identity.hex()}" for task, identity in rows}


@pytest.mark.parametrize("seed", range(5))
def test_after_kill_9_recover_ends_with_the_same_result(folder: Path, seed: int) -> None:
    rng = Random(seed)
    process = asyncflow(folder, "run", "flows.py:main", "-q")
    wait_until_done(folder, rng.randint(1, 250), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    kept, before = completed(folder), done(folder)
    again = asyncflow(folder, "recover", "-q")
    out, err = again.communicate(timeout=60)
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
    process = asyncflow(folder, "run", "flows.py:main")
    wait_until_done(folder, 20, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "resume it with:" in line]
    again = asyncflow(folder, *line.split("asyncflow ", 1)[1].split())
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert max(done(folder).values()) <= 2


def test_a_run_of_another_process_is_cancelled(folder: Path) -> None:
    process = asyncflow(folder, "run", "flows.py:main", "-p", "n=100000")
    wait_until_done(folder, 5, process)
    out, err = asyncflow(folder, "cancel", "last").communicate(timeout=30)
    assert "cancelled the run" in out, err
    process.communicate(timeout=30)
    assert process.returncode == 4


def test_a_run_whose_process_died_is_not_shown_as_running(folder: Path) -> None:
    process = asyncflow(folder, "run", "flows.py:main", "-q", "-p", "n=100000")
    wait_until_done(folder, 5, process)
    (alive,) = json.loads(asyncflow(folder, "runs", "ls", "--json").communicate(timeout=30)[0])
    assert alive["state_name"] == "Running"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    (dead,) = json.loads(asyncflow(folder, "runs", "ls", "--json").communicate(timeout=30)[0])
    assert (dead["state"], dead["state_name"]) == ("PAUSED", "Interrupted")
    assert "its process has died" in asyncflow(folder, "runs", "show", "last").communicate()[0]
    watch = asyncflow(folder, "runs", "watch", "last")
    _, err = watch.communicate(timeout=30)
    assert watch.returncode == 130
    assert "asyncflow recover" in err
