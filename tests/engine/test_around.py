"""Sync code, threads, processes, logs, hooks, and that nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pydantic
import pytest

from asyncflow import (
    Engine,
    MemoryStore,
    SqliteStore,
    TaskTimeout,
    as_completed,
    flow,
    get_run_logger,
    runtime,
    task,
)


@task
def square(x: int) -> int:
    return x * x


@task
async def cube(x: int) -> int:
    return x**3


@flow
def script(n: int) -> list[object]:
    direct = square(n)
    mapped = square.map(range(n)).result()
    first = sorted(f.result() for f in as_completed(cube.submit(i) for i in range(3)))
    return [direct, mapped, cube.submit(2).result(), first]


def test_a_plain_flow_runs_from_sync_code() -> None:
    assert script(3) == [9, [0, 1, 4], 8, [0, 1, 8]]


async def test_a_plain_flow_runs_in_an_engine(engine: Engine) -> None:
    assert await engine.run(script, 3) == [9, [0, 1, 4], 8, [0, 1, 8]]


async def test_a_timed_out_wait_in_sync_code_raises(engine: Engine) -> None:
    @flow
    def main() -> str:
        gate = threading.Event()

        @task
        def held() -> None:
            gate.wait(10)

        future = held.submit()
        try:
            future.result(timeout=0.01)
        except TimeoutError:
            return "timed out"
        finally:
            gate.set()
        return "?"

    assert await engine.run(main) == "timed out"


async def test_threads_are_bounded_and_gone_at_the_end() -> None:
    before = set(threading.enumerate())
    inside = most = 0
    lock = threading.Lock()
    three = threading.Barrier(3)

    @task
    def work(x: int) -> int:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        three.wait(30)  # goes on only when three are inside
        with lock:
            inside -= 1
        return x

    @flow
    async def main() -> int:
        return sum(await work.map(range(48)))

    async with Engine(MemoryStore(), max_threads=3) as engine:
        assert await engine.run(main) == sum(range(48))
    assert most == 3
    assert set(threading.enumerate()) <= before


@task(runner="process")
def pid_of(x: int) -> int:
    return os.getpid()


@task(runner="process", timeout_seconds=0.5)
def hang() -> None:
    time.sleep(60)  # what is to be killed


async def test_cpu_work_runs_in_processes_that_are_killed_on_timeout(engine: Engine) -> None:
    @flow
    async def main() -> list[int]:
        with pytest.raises(TaskTimeout):
            await hang.submit()
        return await pid_of.map([1, 2])

    began = time.monotonic()
    pids = await engine.run(main)
    assert os.getpid() not in pids
    assert time.monotonic() - began < 30


# --- logs -----------------------------------------------------------------------------------------


async def test_log_lines_of_a_run_are_kept_threads_included(engine: Engine) -> None:
    @task
    def in_thread() -> None:
        get_run_logger().info("from a thread")

    @task(log_prints=True)
    async def printing() -> None:
        print("printed", 5)

    @flow
    async def main() -> None:
        logging.getLogger("some.library").warning("from a library")
        await in_thread.submit()
        await printing()

    logging.getLogger("outside").warning("not of a run")
    run = await engine.submit(main)
    await run
    lines = await engine.logs(run.id)
    assert [line.message for line in lines] == ["from a library", "from a thread", "printed 5"]
    assert lines[0].task_run_id is None
    assert lines[1].task_run_id == f"{run.id}-1"
    assert lines[0].level == logging.WARNING


async def test_secrets_are_masked_everywhere(path: Path) -> None:
    @task
    async def leak(key: str) -> None:
        get_run_logger().info("using %s", key)
        raise ValueError(f"bad key {key}")

    @flow
    async def main(key: pydantic.SecretStr) -> None:
        await leak(key.get_secret_value())

    async with Engine(SqliteStore(path)) as engine:
        run = await engine.submit(main, "hunter2-very-secret")
        assert (await run.wait()).is_failed()
        (line,) = await engine.logs(run.id)
        assert "hunter2" not in line.message
    kept = b"".join(p.read_bytes() for p in path.parent.glob("state.db*") if p.is_file())
    assert b"hunter2-very-secret" not in kept


# --- hooks ----------------------------------------------------------------------------------------


async def test_hooks_are_told_of_each_end_and_change_nothing(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, str, str]] = []

    def note(owner: Any, run: Any, state: Any) -> None:
        told.append((owner.name, type(run).__name__, state.name))

    async def failing(owner: Any, run: Any, state: Any) -> None:
        raise RuntimeError("broken hook")

    @task(on_completion=[failing, note], on_failure=note)
    async def work(x: int) -> int:
        return 10 // x

    @flow(on_running=note, on_completion=note)
    async def main() -> None:
        await work(5)
        await work(0, return_state=True)

    @main.on_failure
    def never(*_: Any) -> None:
        told.append(("never", "", ""))

    await engine.run(main)
    assert told == [
        ("main", "FlowRun", "Running"),
        ("work", "TaskRun", "Completed"),
        ("work", "TaskRun", "Failed"),
        ("main", "FlowRun", "Completed"),
    ]
    assert "broken hook" in caplog.text


# --- engines --------------------------------------------------------------------------------------


async def test_opening_and_closing_a_hundred_times_leaks_nothing(tmp_path: Path) -> None:
    @flow
    async def main() -> int:
        return await cube(2)

    async def cycle() -> None:
        async with Engine(SqliteStore(tmp_path / "leak.db")) as engine:
            assert await engine.run(main) == 8
            await engine.runs()

    await cycle()
    gc.collect()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    handlers = list(logging.root.handlers)
    for _ in range(100):
        await cycle()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert threading.active_count() <= threads
    assert logging.root.handlers == handlers
    assert len(asyncio.all_tasks()) == 1


async def test_two_engines_in_one_process_keep_apart(tmp_path: Path) -> None:
    @flow
    async def main() -> str | None:
        await cube.map(range(10))
        return runtime.flow_run.id

    async with Engine(tmp_path / "a.db") as a, Engine(tmp_path / "b.db") as b:
        ids = await asyncio.gather(a.run(main), b.run(main))
        assert [r.id for r in await a.runs()] == [ids[0]]
        assert [r.id for r in await b.runs()] == [ids[1]]


@pytest.mark.parametrize("durability", ["full", "strict", "relaxed", "off"])
async def test_every_durability_gives_the_same_values(path: Path, durability: str) -> None:
    @flow
    async def main() -> int:
        return sum(await cube.map(square.map(range(20)))) + await cube(2)

    async with Engine(path, durability=durability) as engine:
        run = await engine.submit(main)
        assert await run == sum(x**6 for x in range(20)) + 8
        rows = await engine.task_runs(run.id)
    assert len(rows) == (0 if durability == "off" else 41)


async def test_listings_page_through_everything_once(engine: Engine) -> None:
    @flow
    async def main() -> None:
        await cube.map(range(25))

    run = await engine.submit(main)
    await run
    seen: list[str] = []
    cursor = None
    while True:
        page = await engine.task_runs(run.id, limit=10, cursor=cursor)
        seen += [row.id for row in page]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"{run.id}-{n}" for n in range(1, 26)]
