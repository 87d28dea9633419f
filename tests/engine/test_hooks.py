"""Hooks: each end is told, once it is recorded; what a hook does changes nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from virtual import now, virtual_engine, virtually

from asyncflow import (
    Engine,
    InvalidOption,
    MemoryStore,
    State,
    StoreError,
    TaskRun,
    flow,
    get_run_logger,
    task,
)
from asyncflow.states import StateType

ALL = ("on_completion", "on_failure", "on_cancellation", "on_crashed")


class Told(list[str]):
    """What hooks were told, and what the store had of it then."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        super().__init__()
        self.store = store

    def hooks(self) -> dict[str, Any]:
        return {name: self._hook(name) for name in ALL}

    def _hook(self, name: str) -> Callable[..., Any]:
        async def hook(owner: Any, run: Any, state: Any) -> None:
            self.append(f"{owner.name} {name} {state.name}")
            if self.store is not None:
                kept = [row.state for row in self.store._runs.values() if row.id == run.id]
                kept += [
                    row.state
                    for tasks in self.store._tasks.values()
                    for row in tasks.values()
                    if f"{self.store._runs[row.run].id}-{row.seq}" == run.id
                ]
                assert kept == [state.type], "a hook is told of what is not recorded"

        return hook


async def _wait(engine: Engine, run: Any) -> None:
    await engine.wait(run.id)


async def _cancel(engine: Engine, run: Any) -> None:
    await run.cancel()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("returns", ["work on_completion Completed", "main on_completion Completed"]),
        ("raises", ["work on_failure Failed", "main on_failure Failed"]),
        ("late", ["work on_failure TimedOut", "main on_failure TimedOut"]),
        ("cancelled", ["work on_cancellation Cancelled", "main on_cancellation Cancelled"]),
    ],
)
@virtually
async def test_the_hook_of_each_end_is_told_once_it_is_recorded(how: str, told: list[str]) -> None:
    store = MemoryStore()
    seen = Told(store)
    hooks = seen.hooks()

    @task(timeout_seconds=10, **hooks)
    async def work() -> None:
        if how == "raises":
            raise ValueError
        if how in ("late", "cancelled"):
            await asyncio.sleep(60)

    @flow(timeout_seconds=None if how != "late" else 10.5, **hooks)
    async def main() -> None:
        try:
            await work()
        except TimeoutError:
            await asyncio.sleep(60)

    async with virtual_engine(store) as engine:
        run = await engine.submit(main)
        await asyncio.sleep(1)
        await (_cancel if how == "cancelled" else _wait)(engine, run)
    assert seen == told


DOOMED = Told()


@flow(**DOOMED.hooks())
async def doomed() -> None:
    await asyncio.sleep(60)


async def left_by_a_crash(store: MemoryStore, runs: int = 1) -> MemoryStore:
    """What is on disk when the process of an engine is killed whose runs have begun."""
    async with virtual_engine(store) as engine:
        for _ in range(runs):
            await engine.submit(doomed)
        await asyncio.sleep(1)
        return store.copy()


@virtually
async def test_a_run_that_recovery_gives_up_is_told_as_crashed() -> None:
    DOOMED.clear()
    store = await left_by_a_crash(MemoryStore())
    DOOMED.clear()  # the first life was closed in order
    DOOMED.store = store
    async with virtual_engine(store, max_recoveries=0) as engine:
        (run,) = await engine.recover()
        state = await run.wait()
        assert DOOMED == ["doomed on_crashed Crashed"]
        assert state.type is StateType.CRASHED
        assert await engine.recover() == []
    assert DOOMED == ["doomed on_crashed Crashed"]
    DOOMED.store = None


HANGS: list[float] = []


async def hangs(*_: Any) -> None:
    HANGS.append(now())
    await asyncio.sleep(86_400)


async def will_not_stop(*_: Any) -> None:
    HANGS.append(now())
    try:
        await asyncio.sleep(86_400)
    except asyncio.CancelledError:
        await asyncio.sleep(86_400)


@flow(on_crashed=hangs)
async def doomed_to_hang() -> None:
    await asyncio.sleep(60)


@virtually
async def test_runs_that_are_given_up_do_not_hold_up_each_other_nor_the_recovery() -> None:
    HANGS.clear()
    store = MemoryStore()
    async with virtual_engine(store) as engine:
        for _ in range(3):
            await engine.submit(doomed_to_hang)
        await asyncio.sleep(1)
        store = store.copy()
    began = now()
    async with virtual_engine(store, max_recoveries=0, hook_timeout_seconds=5) as engine:
        found = await engine.recover()
        assert now() == began
        assert [run.state.type for run in found] == [StateType.CRASHED] * 3
    # An engine that closes leaves them their time.
    assert [began] * 3 == HANGS
    assert now() == pytest.approx(began + 5)


@pytest.mark.parametrize("hook", [hangs, will_not_stop])
@virtually
async def test_a_hook_that_hangs_is_left_after_its_time(
    hook: Any, caplog: pytest.LogCaptureFixture
) -> None:
    after: list[str] = []

    async def note(owner: Any, _run: Any, state: Any) -> None:
        after.append(f"{owner.name} {state.name}")

    @task(on_running=hook, on_completion=[hook, note])
    async def work() -> float:
        return now()

    @flow(on_running=hook, on_completion=[hook, note])
    async def main() -> float:
        return await work()

    async with virtual_engine(hook_timeout_seconds=5) as engine:
        run = await engine.submit(main)
        assert await run == pytest.approx(
            10
        )  # two hooks had their time before the code of the task ran
        assert now() == pytest.approx(20)
        (row,) = await engine.task_runs(run.id)
        assert (row.state.name, run.state.name) == ("Completed", "Completed")
        for left in asyncio.all_tasks():
            if left.get_name() == "asyncflow-hook":
                left.cancel()
    assert after == ["work Completed", "main Completed"]
    assert caplog.text.count(f"the hook {hook.__name__} took longer than 5 s") == 4


async def test_a_plain_hook_that_hangs_is_left_in_its_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    end = threading.Event()

    def holds(*_: Any) -> None:
        end.wait(60)

    @flow(on_completion=holds)
    async def main() -> int:
        return 5

    async with Engine(MemoryStore(), hook_timeout_seconds=0.01) as engine:
        assert await engine.run(main) == 5
        end.set()
    assert "the hook holds took longer than 0.01 s" in caplog.text


async def test_without_a_limit_a_hook_takes_its_time() -> None:
    took: list[float] = []

    @flow(on_completion=lambda *_: took.append(1))
    async def main() -> int:
        return 5

    async with Engine(MemoryStore(), hook_timeout_seconds=None) as engine:
        assert await engine.run(main) == 5
    assert took == [1]


@pytest.mark.parametrize("seconds", [-1, True, "30", float("nan")])
def test_a_time_for_hooks_that_makes_no_sense_is_refused(seconds: Any) -> None:
    with pytest.raises(InvalidOption, match="hook_timeout_seconds"):
        Engine(hook_timeout_seconds=seconds)


@pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])
@pytest.mark.parametrize(
    "error", [ValueError, asyncio.CancelledError, SystemExit, StopIteration, TimeoutError]
)
async def test_a_hook_that_raises_changes_nothing(
    error: type[BaseException], plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def coroutine(*_: Any) -> None:
        raise error

    def function(*_: Any) -> None:
        raise error

    hook = function if plain else coroutine
    end: list[str] = []
    every = dict.fromkeys((*ALL, "on_running"), hook)

    @task(**every)
    async def work(x: int) -> float:
        return 10 / x

    @flow(**{**every, "on_completion": [hook, lambda *_: end.append("told")]})
    async def main() -> Any:
        return await work(5), (await work(0, return_state=True)).name

    async with Engine(MemoryStore()) as engine:
        run = await engine.submit(main)
        assert await run == (2.0, "Failed")
        states = [row.state.name for row in await engine.task_runs(run.id)]
    assert states == ["Completed", "Failed"]
    assert end == ["told"]
    assert caplog.text.count(f"the hook {hook.__name__} failed: ") == 6


@virtually
async def test_a_host_that_is_cancelled_while_a_hook_runs_is_not_held_by_it() -> None:
    seen = Told()

    @flow(on_running=hangs, on_cancellation=seen.hooks()["on_cancellation"])
    async def main() -> int:
        return 5

    async with virtual_engine() as engine:
        host = asyncio.create_task(engine.run(main))
        await asyncio.sleep(1)
        host.cancel()
        with pytest.raises(asyncio.CancelledError):
            await host
        assert now() == 1
    assert seen == ["main on_cancellation Cancelled"]


@pytest.mark.parametrize("what", ["task", "flow"])
@virtually
async def test_what_could_not_be_recorded_is_not_told(what: str) -> None:
    seen = Told()
    store = MemoryStore()

    def full(*_: object, **__: object) -> bool:
        raise StoreError("the disk is full")

    def breaks() -> None:
        store.write = full  # type: ignore[method-assign] # a full disk

    @task(**seen.hooks())
    async def work() -> None:
        if what == "task":
            breaks()

    @flow(**seen.hooks())
    async def main() -> None:
        if what == "task":
            await work()
        breaks()

    async with virtual_engine(store) as engine:
        with pytest.raises(StoreError, match="full"):
            await engine.run(main)
        assert not StateType(store._runs[1].state).is_final
    assert seen == []


async def test_what_hooks_of_a_task_log_is_of_the_call_that_they_are_told_of(
    engine: Engine,
) -> None:
    async def ended(task: Any, run: TaskRun, state: State[Any]) -> None:
        get_run_logger().info("%s", run.id)

    @task(on_running=[ended], on_completion=[ended])
    async def inner(i: int) -> None:
        await asyncio.sleep(0)

    @task
    async def outer() -> None:
        await inner.map(range(3))

    @flow
    async def calls() -> None:
        first = inner.submit(3)
        await outer()
        await first

    run = await engine.submit(calls)
    await run
    lines = [(line.task_run_id, line.message) for line in await engine.logs(run.id)]
    assert len(lines) == 8
    assert [of for of, _ in lines] == [told for _, told in lines]


async def test_what_hooks_of_a_flow_log_is_of_the_run_that_they_are_told_of(
    engine: Engine,
) -> None:
    @flow
    async def other() -> None:
        get_run_logger().info("in a run of its own")

    def begins(owner: Any, run: Any, state: Any) -> None:
        get_run_logger().info("begins")

    async def ends(owner: Any, run: Any, state: Any) -> None:
        get_run_logger().info("ends")
        if run.parent_id is None:
            await other()  # the run has ended: this is none of its children

    hooks: Any = {"on_running": begins, "on_completion": ends}

    @flow(**hooks)
    async def child() -> None:
        get_run_logger().info("child")

    @flow(**hooks)
    async def parent() -> None:
        await child()

    run = await engine.submit(parent)
    await run
    lines = {
        one.flow_name: [line.message for line in await engine.logs(one.id)]
        for one in await engine.runs()
    }
    assert lines == {
        "parent": ["begins", "ends"],
        "child": ["begins", "child", "ends"],
        "other": ["in a run of its own"],
    }
