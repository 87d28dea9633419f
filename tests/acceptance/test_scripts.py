"""A run is gone on with by whoever has its file, however that was started."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

#: A flow that fails while there is no file called "mended"; it notes what its tasks do.
SCRIPT = """
import asyncio, os, sys
from dataclasses import dataclass
from pathlib import Path
from asyncflow import Engine, flow, task

@dataclass
class Box:
    n: int

class Odd(Exception):
    pass

def note(text):
    with open("NOTES", "a") as file:
        file.write(text + "\\n")

@task
async def make(n: int) -> Box:
    note(f"make {n}")
    return Box(n)

@task
async def grow(box: Box) -> Box:
    note(f"grow {box.n}")
    return Box(box.n + 1)

@task
async def fail() -> None:
    raise Odd("caught")

@flow
async def main() -> list[str]:
    boxes = [await grow(await make(n)) for n in range(2)]
    try:
        await fail()
        caught = "nothing"
    except Odd as error:
        caught = f"{type(error).__name__} {error}"
    if not os.path.exists("mended"):
        raise RuntimeError("not yet")
    assert all(isinstance(box, Box) for box in boxes)
    note("done TAG")
    return [caught, *[str(box.n) for box in boxes]]

async def run():
    async with Engine("state.db") as engine:
        await (await engine.submit(main)).wait()

if __name__ == "__main__":
    asyncio.run(run())
"""


def put(folder: Path, name: str, tag: str = "one") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(SCRIPT.replace("TAG", tag).replace("NOTES", str(folder / "notes.txt")))
    return file


def start(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ASYNCFLOW_DATABASE": str(folder / "state.db")}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=60
    )


def run_ids(folder: Path) -> list[str]:
    db = sqlite3.connect(folder / "state.db")
    found = [run_id for (run_id,) in db.execute("SELECT id FROM flow_runs ORDER BY pk")]
    db.close()
    return found


def notes(folder: Path) -> list[str]:
    return (folder / "notes.txt").read_text().split("\n")[:-1]


ONCE = ["make 0", "grow 0", "make 1", "grow 1"]


@pytest.mark.parametrize(
    ("file", "command"),
    [
        pytest.param("script.py", ["script.py"], id="run as a script"),
        pytest.param("package/mod.py", ["-m", "package.mod"], id="run as a module"),
        pytest.param("cli.py", ["-m", "asyncflow", "run", "cli.py:main"], id="run by its file"),
        pytest.param(
            "colorsys.py",
            ["-c", "import colorsys, runpy; runpy.run_module('asyncflow', run_name='__main__')"],
            id="run where another module has its name",
        ),
    ],
)
def test_what_one_process_began_another_ends_and_nothing_runs_twice(
    tmp_path: Path, file: str, command: list[str]
) -> None:
    put(tmp_path, file)
    if "-c" in command:
        # The folder is not looked into, so that `colorsys` is the one of the standard library.
        code = command[1].replace("import", "import sys; sys.path.remove(''); import", 1)
        command = ["-c", code, "run", f"{file}:main"]
    began = start(tmp_path, *command)
    assert notes(tmp_path) == ONCE, began.stderr
    (tmp_path / "mended").touch()
    [run_id] = run_ids(tmp_path)
    ended = start(tmp_path, "-m", "asyncflow", "resume", run_id)
    assert ended.returncode == 0, ended.stderr
    assert "not made again" not in ended.stderr
    assert notes(tmp_path) == [*ONCE, "done one"]
    assert "Odd caught" in ended.stdout


def test_two_files_of_one_name_in_one_database_are_not_mistaken_for_each_other(
    tmp_path: Path,
) -> None:
    one, other = put(tmp_path, "a/flows.py", "one"), put(tmp_path, "b/flows.py", "other")
    for file in (one, other):
        start(tmp_path, "-m", "asyncflow", "run", f"{file}:main")
    (tmp_path / "mended").touch()
    code = """
import asyncio, sys
from asyncflow import Engine
async def main():
    async with Engine("state.db") as engine:
        for run_id in sys.argv[1:]:
            await (await engine.resume(run_id))
asyncio.run(main())
"""
    ended = start(tmp_path, "-c", code, *run_ids(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert notes(tmp_path) == [*ONCE, *ONCE, "done one", "done other"]


def test_a_file_that_was_moved_is_found_by_the_name_that_the_user_gives(tmp_path: Path) -> None:
    file = put(tmp_path, "before/flows.py")
    start(tmp_path, "-m", "asyncflow", "run", f"{file}:main")
    (tmp_path / "mended").touch()
    moved = tmp_path / "after" / "flows.py"
    moved.parent.mkdir()
    file.rename(moved)
    [run_id] = run_ids(tmp_path)
    lost = start(tmp_path, "-m", "asyncflow", "resume", run_id)
    assert lost.returncode != 0
    assert "there is no file" in lost.stderr
    code = f"""
import sys
from asyncflow.cli import main
from asyncflow.registry import load_file
load_file({str(moved)!r})
sys.argv[1:] = ["resume", {run_id!r}]
main()
"""
    found = start(tmp_path, "-c", code)
    assert found.returncode == 0, found.stderr
    assert notes(tmp_path) == [*ONCE, "done one"]


def test_a_worker_process_runs_the_file_and_not_a_module_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("""
from dataclasses import dataclass
from asyncflow import flow, task

@dataclass
class Box:
    n: int

@task(runner="process")
def double(box: Box) -> Box:
    return Box(box.n * 2)

@flow
async def main() -> int:
    return (await double.submit(Box(21))).n
""")
    code = """
import sys
sys.path.remove('')
import colorsys, runpy
runpy.run_module('asyncflow', run_name='__main__')
"""
    done = start(tmp_path, "-c", code, "run", "colorsys.py:main")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "42"
