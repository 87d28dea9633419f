"""The code is edited between a crash and the recovery: nothing is refused, all is said."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

FLOWS = """
import asyncio, os
from asyncflow import flow, task

def note(what):
    with open("done.txt", "a") as file:
        file.write(what + "\\n")

@task
async def first(x: int) -> int:
    note(f"first {x}")
    return x

@task
async def second(x: int) -> int:
    note(f"second {x}")
    return x * 10

@task
async def gate() -> int:
    print("at the gate", flush=True)
    while not os.path.exists("open"):
        await asyncio.sleep(0.01)
    return 0

@flow
async def main(n: int) -> int:
    total = await first(n)
    total += await second(n)
    total += await gate()
    return total
"""

CHANGED = "the code of flow 'main' has changed since the run"


class Edit:
    """What is replaced in the code; what the run then gives, runs and says."""

    def __init__(
        self, *replaced: tuple[str, str], value: object, again: tuple[str, ...] = (), says: str = ""
    ) -> None:
        self.replaced = replaced
        self.value = value
        self.again = again
        self.says = says


EDITS = {
    "the body of a task": Edit(("return x * 10", "return x * 1000"), value=11),
    "a task is renamed": Edit(
        ("async def second", "async def other"),
        ('f"second', 'f"other'),
        ("await second", "await other"),
        value=11,
        again=("other 1",),
        says="1 recorded calls of second were not made again",
    ),
    "a task is renamed and keeps its name": Edit(
        ("@task\nasync def second", "@task(name='second')\nasync def other"),
        ("await second", "await other"),
        value=11,
    ),
    "a task is removed": Edit(
        ("    total += await second(n)\n", ""),
        value=1,
        says="1 recorded calls of second were not made again",
    ),
    "a new task in the middle": Edit(
        ("    total += await second(n)\n", "    total += await first(7)\n" * 2
         + "    total += await second(n)\n"),
        value=25,
        again=("first 7", "first 7"),
    ),
    "the order of the calls": Edit(
        ("    total = await first(n)\n", "    total = await second(n)\n"),
        ("    total += await second(n)\n", "    total += await first(n)\n"),
        value=11,
    ),
    "a parameter of the flow is added": Edit(
        ("main(n: int)", "main(n: int, more: int = 100)"),
        ("return total", "return total + more"),
        value=111,
    ),
    "the inputs of a call": Edit(
        ("await second(n)", "await second(n + 1)"),
        value=21,
        again=("second 2",),
        says="their inputs have changed since the last attempt, from (1) to (2)",
    ),
}  # fmt: skip


def command(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "asyncflow", *args],
        cwd=folder,
        env={**os.environ, "ASYNCFLOW_DATABASE": str(folder / "state.db")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_at_the_gate(folder: Path) -> None:
    (folder / "flows.py").write_text(FLOWS)
    with command(folder, "run", "flows.py:main", "-p", "n=1", "-q") as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0]
        assert process.stdout.readline() == "at the gate\n"
        process.kill()
    (folder / "open").touch()


def done(folder: Path) -> Counter[str]:
    return Counter((folder / "done.txt").read_text().splitlines())


@pytest.mark.parametrize("name", EDITS)
def test_a_run_goes_on_with_edited_code(tmp_path: Path, name: str) -> None:
    edit, code = EDITS[name], FLOWS
    killed_at_the_gate(tmp_path)
    before = done(tmp_path)
    for old, new in edit.replaced:
        assert code.count(old) == 1
        code = code.replace(old, new)
    (tmp_path / "flows.py").write_text(code)
    with command(tmp_path, "recover") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    with command(tmp_path, "runs", "show", "last") as process:
        shown, _ = process.communicate(timeout=60)
    assert f"result: {edit.value}\n" in shown
    assert done(tmp_path) - before == Counter(edit.again)
    assert edit.says in err
    changed = code.partition("@flow")[2] != FLOWS.partition("@flow")[2]
    assert (CHANGED in err) == changed
    if not edit.says:
        assert "not made again" not in err


def test_a_parameter_without_a_default_needs_attention_and_loses_nothing(tmp_path: Path) -> None:
    killed_at_the_gate(tmp_path)
    (tmp_path / "flows.py").write_text(FLOWS.replace("main(n: int)", "main(n: int, more: int)"))
    with command(tmp_path, "recover") as process:
        _, err = process.communicate(timeout=60)
    assert "needs attention" in err
    assert "more" in err
    assert "Traceback" not in err
    (tmp_path / "flows.py").write_text(FLOWS)
    with command(tmp_path, "recover") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert done(tmp_path) == Counter({"first 1": 1, "second 1": 1})
