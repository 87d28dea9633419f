"""What the scripts share. They run in the environments of the peers: the standard library only.

A script is started as ``python SCRIPT STAGE VARIANT N CHAIN FOLDER`` and writes what it found to
``FOLDER/answer.json``. Its stages:

hello: one flow with one task; the parent measures the whole process.
measure: a warm-up, then fan-out and chain, each timed once.
stop: runs a fan-out and kills its own process when all of it is done.
resume: goes on with what was stopped, or runs it again from kept results, timed once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

#: How many calls of a fan-out are under way at most.
CONCURRENCY = 100


class Work(NamedTuple):
    """What one process does."""

    stage: str
    variant: str
    n: int  #: tasks of the fan-out
    chain: int  #: tasks of the chain
    folder: Path  #: for databases and answers

    @property
    def warm(self) -> int:
        """Tasks of the warm-up."""
        return max(1, self.n // 10)


Answer = dict[str, Any]
Stage = Callable[[Work], Answer]


def main(packages: list[str], **stages: Stage) -> None:
    """Run the stage that the command line names, and write its answer."""
    stage, variant, n, chain, folder = sys.argv[1:]
    work = Work(stage, variant, int(n), int(chain), Path(folder))
    try:
        answer = stages[stage](work)
    except BaseException as error:
        text = " ".join(str(error).split())
        _write(work, {"error": f"{type(error).__name__}: {text}"[:500]})
        raise
    if stage != "hello":  # looking up versions is not part of a hello
        import sqlite3

        versions = {"python": sys.version.split()[0], "sqlite": sqlite3.sqlite_version}
        answer["versions"] = versions | {name: metadata.version(name) for name in packages}
    _write(work, answer)


def _write(work: Work, answer: Answer) -> None:
    (work.folder / "answer.json").write_text(json.dumps(answer))


_bodies: list[float] = []


@contextmanager
def body() -> Iterator[None]:
    """Around the body of a flow: from its first line until it has all results."""
    began = time.perf_counter()
    yield
    _bodies.append(time.perf_counter() - began)


class Clock:
    """Times a whole flow run, from here on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def sample(self, ended: float | None = None) -> dict[str, float]:
        """Seconds until now, or until the `perf_counter` *ended*.

        `wall` is by the clock, `cpu` of this process alone, and `body` the part of `wall` that
        the body of the flow took: the rest is for the flow run itself.
        """
        cpu = time.process_time() - self._cpu
        wall = (time.perf_counter() if ended is None else ended) - self._wall
        return {"wall": wall, "cpu": cpu, "body": _bodies[-1]}


async def timed(work: Awaitable[int], expected: int) -> dict[str, float]:
    """The sample of *work*; its result is checked."""
    clock = Clock()
    result = await work
    sample = clock.sample()
    check(result, expected)
    return sample


def check(result: int, expected: int) -> None:
    """A figure of work that was not done is worth nothing."""
    if result != expected:
        raise ValueError(f"the result is {result!r} and should be {expected!r}")


def total(n: int, start: int = 0) -> int:
    """What a fan-out over *n* numbers from *start* gives."""
    return sum(range(start, start + n))


def die() -> NoReturn:
    """End at once, as by kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError
