"""What completed is never run again, and no result reaches the wrong call."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from patience import until
from virtual import advance, virtual_engine, virtually

from asyncflow import (
    Engine,
    MemoryStore,
    RunNotResumable,
    StoreError,
    UnknownRun,
    as_completed,
    flow,
    runtime,
    task,
    wait,
)
from asyncflow.testing import crash_everywhere

#: How many programs are tried; more by this variable of the environment.
PROGRAMS = int(os.environ.get("ASYNCFLOW_PROGRAMS", "1000"))


class Doomed(Exception):
    pass


class World:
    """What happened outside of the engine: how often each piece of work was done."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.done: Counter[str] = Counter()
        self.left: int | None = None
        self.stop: Any = None

    def work(self, name: str) -> None:
        self.done[name] += 1
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.stop()


WORLD = World()


@task
async def leaf(name: str, pause: int, fails: bool = False) -> str:
    for _ in range(pause):
        await asyncio.sleep(0)
    WORLD.work(name)
    if fails:
        raise Doomed(name)
    return f"<{name}>"


@task
async def join(name: str, parts: list[str]) -> str:
    WORLD.work(name)
    return f"{name}({','.join(map(str, parts))})"


@task
async def nest(name: str, program: Any) -> str:
    return f"{name}:{await perform(program)}"


@flow
async def sub(program: Any) -> str:
    return await perform(program)


@flow
async def main(program: Any) -> str:
    return await perform(program)


async def perform(node: Any) -> str:
    """Interpret a program: a tree of ways to call tasks."""
    kind, name, kids = node["kind"], node["name"], node["kids"]
    match kind:
        case "leaf":
            return await leaf(name, node["pause"])
        case "caught":
            try:
                return await leaf(name, node["pause"], True)
            except Doomed as error:
                return await leaf(f"{name}-instead-of-{error}", 0)
        case "same":
            # Equal calls: which of them is which must not matter.
            return ",".join(await asyncio.gather(*[leaf(name, 1) for _ in range(3)]))
        case "gather":
            return ",".join(await asyncio.gather(*[perform(kid) for kid in kids]))
        case "group":
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(perform(kid)) for kid in kids]
            return ";".join(t.result() for t in tasks)
        case "map":
            first = leaf.map([f"{name}-{i}" for i in range(4)], [i % 3 for i in range(4)])
            second = join.map([f"{name}-j{i}" for i in range(4)], [[f] for f in first])
            return "+".join(await second)
        case "plain map":
            return "/".join(await leaf.map([f"{name}-{i}" for i in range(4)], 1))
        case "completed":
            futures = [leaf.submit(f"{name}-{i}", node["pause"] * (3 - i)) for i in range(3)]
            order = [await f async for f in as_completed(futures)]
            # What follows depends on the order, which therefore is replayed.
            return await join(f"{name}-{'>'.join(order)}", order)
        case "first":
            futures = [leaf.submit(f"{name}-{i}", node["pause"] + i) for i in range(2)]
            done, _ = await wait(futures, return_when="FIRST_COMPLETED")
            names = sorted([await f for f in done])
            return await join(f"{name}-{'|'.join(names)}", names)
        case "nest":
            return await nest(name, kids[0])
        case "sub":
            return await sub(kids[0])
        case _:
            raise AssertionError(kind)


def grow(rng: Random, depth: int, names: list[int]) -> dict[str, Any]:
    names[0] += 1
    kinds = ["leaf", "caught", "same", "map", "plain map", "completed", "first"]
    if depth:
        kinds += ["gather", "group", "nest", "sub"] * 2
    kind = rng.choice(kinds)
    kids = 0
    if kind in ("gather", "group"):
        kids = rng.randint(1, 3)
    elif kind in ("nest", "sub"):
        kids = 1
    return {
        "kind": kind,
        "name": f"n{names[0]}",
        "pause": rng.randint(0, 3),
        "kids": [grow(rng, depth - 1, names) for _ in range(kids)],
    }


async def _one_program(seed: int) -> None:
    rng = Random(seed)
    kids = [grow(rng, 3, [i * 100]) for i in range(2)]
    program = {"kind": "gather", "name": "root", "pause": 0, "kids": kids}
    WORLD.reset()
    async with Engine(MemoryStore(), seed=seed) as engine:
        expected_parts = await engine.run(main, program)
    whole = dict(WORLD.done)
    total = sum(whole.values())

    store = MemoryStore()
    completed: list[dict[tuple[int, int], tuple[Any, ...]]] = []
    result = None
    run_id = None
    for life in range(50):
        WORLD.reset()
        # The engine dies in the middle: nothing is recorded of what comes after.
        WORLD.left = rng.randint(1, max(1, total)) if life < 3 else None
        engine = Engine(store, seed=seed)
        await engine.open()

        WORLD.stop = partial(_kill, engine)
        if run_id is None:
            handle = await engine.submit(main, program)
            run_id = handle.id
        else:
            handles = await engine.recover()
            assert [h.id for h in handles] == [run_id]
            handle = handles[0]
        state = await handle.wait()
        if state.is_completed():
            result = state.result()
            await engine.aclose()
            break
        assert state.is_paused(), state
        await engine.aclose()
        _revive(store)
        completed.append(_completed(store))
    # What was completed in one life is so, to the byte, in all that follow.
    completed.append(_completed(store))
    for before, after in pairwise(completed):
        assert before.items() <= after.items()
    assert result is not None
    again = Engine(store)
    async with again:
        runs = await again.runs(limit=1000)
        for run in runs:
            rows = await again.task_runs(run.id, limit=10000)
            # Each call has one row, whatever was recovered: none was lost or made twice.
            assert len({row.id for row in rows}) == len(rows)
            assert all(row.state.is_final() for row in rows if run.state.is_completed())
    if "completed" not in str(program) and "first" not in str(program):
        assert result == expected_parts


def _completed(store: MemoryStore) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Of each completed task run: what it was and gave, and when."""
    rows = [row for pk in range(1, 1000) for row in store.calls(pk)]
    return {
        (r.run, r.seq): (r.identity, r.task, r.result, r.started_at, r.ended_at, r.attempt)
        for r in rows
        if r.state == "COMPLETED"
    }


def _kill(engine: Engine) -> None:
    """As near to a crash as a living process comes: nothing more reaches the store."""

    def dead(*_: object, **__: object) -> None:
        raise StoreError("the process died")

    for name in ("write", "create_run", "close_engine"):
        setattr(engine.store, name, dead)


def _revive(store: Any) -> None:
    for name in ("write", "create_run", "close_engine"):
        vars(store).pop(name, None)


@pytest.mark.parametrize("chunk", range(10))
async def test_random_programs_that_are_killed_resume_to_the_same_result(chunk: int) -> None:
    for seed in range(chunk * PROGRAMS // 10, (chunk + 1) * PROGRAMS // 10):
        try:
            async with asyncio.timeout(20):
                await _one_program(seed)
        except BaseException as error:
            error.add_note(f"the program of seed {seed}")
            raise


# --- the verbs ------------------------------------------------------------------------------------


async def test_resume_keeps_what_completed_and_runs_again_what_ended_the_run(store: Any) -> None:
    calls: Counter[str] = Counter()
    healthy = False

    @task
    async def step(name: str) -> str:
        calls[name] += 1
        return name

    @task(retries=1)
    async def shaky() -> str:
        calls["shaky"] += 1
        if not healthy:
            raise Doomed("down")
        return "up"

    @task
    async def caught() -> str:
        calls["caught"] += 1
        raise Doomed("caught")

    @flow
    async def verbs() -> list[str]:
        first = await step("a")
        try:
            await caught()
        except Doomed as error:
            first += str(error)
        return [first, await step("b"), await shaky()]

    async with Engine(store) as engine:
        run = await engine.submit(verbs)
        with pytest.raises(Doomed, match="down"):
            await run
    healthy = True
    async with Engine(store) as engine:
        again = await engine.resume(run.id)
        assert again.id == run.id
        assert await again == ["acaught", "b", "up"]
        with pytest.raises(RunNotResumable, match="nothing to resume"):
            await engine.resume(run.id)
        with pytest.raises(UnknownRun):
            await engine.resume("nobody")
    assert calls == {"a": 1, "b": 1, "caught": 1, "shaky": 3}


async def test_a_map_with_many_failures_is_mended_by_one_resume(engine: Engine) -> None:
    calls: Counter[int] = Counter()
    healthy = False

    @task
    async def fetch(x: int) -> int:
        calls[x] += 1
        if x % 2 and not healthy:
            raise Doomed(x)
        return x

    @flow
    async def mapped() -> list[int]:
        return await fetch.map(range(10))

    run = await engine.submit(mapped)
    assert (await run.wait()).is_failed()
    healthy = True
    assert await (await engine.resume(run.id)) == list(range(10))
    assert calls == {x: 1 + x % 2 for x in range(10)}


@virtually
async def test_attempts_used_stay_used_over_a_recovery(store: Any) -> None:
    attempts = 0

    @task(retries=3, retry_delay_seconds=30, retry_jitter_factor=0)
    async def fail() -> None:
        nonlocal attempts
        attempts += 1
        raise Doomed

    @flow
    async def budget() -> None:
        await fail()

    run_id = None
    for _ in range(10):
        async with virtual_engine(store) as engine:
            if run_id is None:
                run = await engine.submit(budget)
                run_id = run.id
            else:
                found = await engine.recover()
                if not found:
                    break
                run = found[0]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await run.wait()
        advance(31)
    assert attempts == 4
    async with virtual_engine(store) as engine:
        assert (await engine.get_run(run_id)).state.is_failed()


async def test_closing_the_engine_leaves_a_run_interrupted_and_resumable(store: Any) -> None:
    started = asyncio.Event()
    calls: Counter[str] = Counter()
    gate = asyncio.Event()

    @task
    async def quick() -> int:
        calls["quick"] += 1
        return 1

    @task
    async def slow() -> int:
        calls["slow"] += 1
        started.set()
        await gate.wait()
        return 2

    @flow
    async def long() -> int:
        return await quick() + await slow()

    async with Engine(store) as engine:
        run = await engine.submit(long)
        await asyncio.wait_for(started.wait(), 5)
    assert run.state.name == "Interrupted"
    gate.set()
    async with Engine(store) as engine:
        (again,) = await engine.recover()
        assert await again == 3
        assert await engine.recover() == []
    assert calls == {"quick": 1, "slow": 2}


async def test_the_same_idempotency_key_gives_the_same_run(store: Any) -> None:
    calls = 0

    @flow
    async def keyed(x: int) -> int:
        nonlocal calls
        calls += 1
        return x

    async with Engine(store) as engine:
        first = await engine.submit(keyed, 1, idempotency_key="k")
        second = await engine.submit(keyed, 2, idempotency_key="k")
        assert (await first, await second) == (1, 1)
        assert first.id == second.id
    async with Engine(store) as engine:
        assert await engine.run(keyed, 3, idempotency_key="k") == 1
    assert calls == 1


async def test_a_poison_run_ends_as_crashed(store: Any) -> None:
    @task
    async def deadly() -> None:
        _kill(current)

    @flow
    async def poison() -> None:
        await deadly()

    current = Engine(store, max_recoveries=2)
    await current.open()
    run = await current.submit(poison)
    await run.wait()
    await current.aclose()
    states = []
    for _ in range(5):
        _revive(store)
        current = Engine(store, max_recoveries=2)
        await current.open()
        found = await current.recover()
        for one in found:
            await one.wait()
        states.append(
            (await current.get_run(run.id)).state.type if not found else found[0].state.type
        )
        await current.aclose()
    assert states[-1] == "CRASHED"
    assert states.count("PAUSED") == 2


async def test_rerun_begins_again_under_a_new_id(engine: Engine) -> None:
    calls = 0

    @task
    async def count(x: int) -> int:
        nonlocal calls
        calls += 1
        return x

    @flow
    async def once(x: int) -> int:
        return await count(x)

    run = await engine.submit(once, 5)
    await run
    again = await engine.rerun(run.id)
    assert again.id != run.id
    assert await again == 5
    assert calls == 2


async def test_a_result_that_cannot_be_stored_is_marked_and_run_again(
    store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls: Counter[str] = Counter()
    healthy = False

    @task
    async def strange() -> object:
        calls["strange"] += 1
        return object()

    @task
    async def shaky() -> None:
        if not healthy:
            raise Doomed

    @flow
    async def odd() -> bool:
        found = await strange()
        await shaky()
        return found is not None

    async with Engine(store) as engine:
        run = await engine.submit(odd)
        await run.wait()
        row = (await engine.task_runs(run.id))[0]
        assert row.state.is_completed()
        with pytest.raises(LookupError, match="not stored"):
            row.state.result()
    assert "strange" in caplog.text
    healthy = True
    async with Engine(store) as engine:
        assert await (await engine.resume(run.id)) is True
    assert calls == {"strange": 2}


async def test_an_engine_that_watches_takes_over_what_a_dead_one_leaves(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncflow.recovery.WATCH", 0.01)
    began = asyncio.Event()

    @task
    async def first() -> int:
        return 1

    @flow
    async def main() -> int:
        value = await first()
        if not began.is_set():
            began.set()
            await asyncio.sleep(60)
        return value

    async with Engine(path) as watcher:
        assert await watcher.recover() == []
        dying = Engine(path)
        await dying.open()
        run = await dying.submit(main)
        await began.wait()
        await dying.journal.durable()
        # As the kernel does at the death of its process: the lock goes, all else stays.
        assert dying._lock is not None
        dying._lock.drop()

        async def completed() -> bool:
            return (await watcher.wait(run.id)).is_completed()

        await until(completed)
        assert (await watcher.get_run(run.id)).recoveries == 1
        (line,) = await watcher.logs(run.id)
        assert line.message.startswith(f"killed: its process ({os.getpid()} on ")
        await dying.aclose()
        state = await watcher.wait(run.id)
        assert state.is_completed()


async def test_what_an_answered_task_called_is_not_missed(
    store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    @task
    async def inner(x: int) -> int:
        return x

    @task
    async def outer(x: int) -> int:
        return await inner(x)

    @flow
    async def main() -> int:
        total = await outer(1)
        if broken:
            raise Doomed
        return total

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await run.wait()
        broken = False
        assert await (await engine.resume(run.id)) == 1
    assert "not made again" not in caplog.text


@task
async def fails_in_the_first_attempt(x: int) -> int:
    if runtime.flow_run.attempt == 1:
        raise Doomed(str(x))
    return x


@flow(retries=1, retry_delay_seconds=0)
async def tried_again() -> int:
    await leaf("a", 0)
    first = sum(await fails_in_the_first_attempt.map([1, 2]))
    try:
        await leaf("b", 0, True)
    except Doomed:
        first += await fails_in_the_first_attempt(3)
    return first


def test_a_crash_does_not_use_up_an_attempt_of_a_flow() -> None:
    crash_everywhere(tried_again).check()


@pytest.mark.parametrize("how", ["resume", "fork"])
async def test_a_resume_that_is_killed_runs_again_what_ended_the_run(how: str) -> None:
    healthy = False

    @task
    async def shaky(x: int) -> int:
        if not healthy:
            raise Doomed(str(x))
        return x

    @flow
    async def main() -> int:
        await leaf("a", 0)
        return sum(await shaky.map([1, 2]))

    at, died = 0, True
    while died:
        at += 1
        store = MemoryStore()
        healthy = False
        async with Engine(store) as engine:
            run = await engine.submit(main)
            assert (await run.wait()).is_failed()
        healthy = True
        engine = Engine(store)
        await engine.open()
        write, left = store.write, at

        def dying(*args: Any, **options: Any) -> bool:
            nonlocal left
            left -= 1
            if left <= 0:
                raise StoreError("the process died")
            return write(*args, **options)

        store.write = dying  # type: ignore[method-assign] # a disk that fails
        run_id = run.id
        with contextlib.suppress(StoreError):
            again = await getattr(engine, how)(run.id)
            run_id = again.id
            await again.wait()
        died = left <= 0
        await engine.aclose()
        store.write = write  # type: ignore[method-assign] # and works again
        async with Engine(store) as engine:
            state = (await engine.get_run(run_id)).state
            if state.is_failed():
                assert died  # before it was recorded that the run goes on
                continue
            if not state.is_final():
                await engine.recover()
                state = await engine.wait(run_id)
            assert state.is_completed(), (at, state)
