"""Cancellations and deaths at each step: nothing is lost, repeated, left behind or stuck."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from asyncflow import (
    Engine,
    StateType,
    TaskCancelled,
    TaskFuture,
    concurrency,
    flow,
    runtime,
    sleep,
    task,
    testing,
)
from asyncflow.testing import _bury, _check_rows, _Died, _SimEngine, _SimStore, _World

S = StateType


class Stepping(testing.VirtualLoop):
    """Makes one step at a time, and does something of ours before a chosen one.

    Args:
        at: the number of that step.
        act: what is done.
    """

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.steps = 0
        self._at = at
        self._act = act

    def _run_once(self) -> None:
        self.steps += 1
        if self.steps == self._at:
            self._act()
        ready: Any = self._ready  # type: ignore[attr-defined] # asyncio's own queue
        rest = [ready.pop() for _ in range(len(ready) - 1)]
        super()._run_once()
        ready.extendleft(rest)


def live(
    store: _SimStore,
    world: _World,
    main: Callable[[Engine], Coroutine[Any, Any, None]],
    at: int,
    act: Callable[[], object],
) -> bool:
    """One life of a process, in which *act* is done at a step; whether it came so far."""

    async def life() -> None:
        async with _SimEngine(store, world, Random(at)) as engine:
            try:
                async with asyncio.timeout(testing.PATIENCE):
                    await main(engine)
            except TimeoutError:
                world.problems.append("it is stuck")
            if not engine.broken:
                _all_slots_are_free(engine, world)

    loop = Stepping(at, act)
    loop.set_exception_handler(lambda _loop, about: None if store.dead else failed.append(about))
    failed: list[Any] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            loop.run_until_complete(loop.create_task(life(), name="life"))
    except (_Died, RuntimeError):
        if not store.dead:
            raise
    finally:
        _bury(loop, None if store.dead else world)
    world.problems += [f"{about['message']}: {about.get('exception')}" for about in failed]
    return loop.steps >= at


def _all_slots_are_free(engine: Engine, world: _World) -> None:
    calls = engine.calls
    limits = [calls.engine_limit, calls.threads_limit, calls.processes_limit, *engine.named]
    world.problems += [f"slots of {limit!r} are lost" for limit in limits if limit.used]


# --- a flow with a bit of everything --------------------------------------------------------------

SUBMITTED: list[TaskFuture[Any]] = []


@task(retries=1, retry_delay_seconds=0.5, retry_jitter_factor=0)
async def fetch(x: int) -> int:
    async with concurrency("db", limit=1):
        await asyncio.sleep(0.01 * x)
    if x == 2 and runtime.task_run.attempt == 1:
        raise OSError(x)
    return x


@task
def parse(x: int) -> int:
    return x * 10


@task
async def quick(x: int) -> int:
    return x


@flow
async def part(x: int) -> int:
    return await quick(x) + await quick(x + 1)


@flow(max_concurrency=2)
async def small() -> int:
    SUBMITTED[:] = [*fetch.map(range(2)), part.submit(5), parse.submit(3), fetch.submit(2)]
    total = 0
    for future in SUBMITTED:
        try:
            total += await future
        except (OSError, TaskCancelled):
            total += 1000
    await sleep(0.2)
    return total + sum(await quick.map(range(3)))


# --- cancelling at each step ----------------------------------------------------------------------


def every_step(trial: Callable[[int], bool]) -> int:
    """Try it at step 1, 2, 3 ... until the run has ended before; how many steps there were."""
    at = 1
    while trial(at):
        at += 1
    return at - 1


def check(world: _World, at: int) -> None:
    assert world.problems == [], f"at step {at}: {world.problems}"


def finish(store: _SimStore, world: _World, at: int) -> None:
    """A next process takes over what is left, and all has ended then."""
    world.take_stock(store)
    store = store.reborn()

    async def recover(engine: Engine) -> None:
        for run in await engine.recover():
            await run.wait()

    live(store, world, recover, 0, lambda: None)
    _check_rows(store, world)
    check(world, at)


def test_a_host_that_is_cancelled_at_any_step_leaves_nothing_half_done() -> None:
    ended: set[str] = set()

    def trial(at: int) -> bool:
        store, world = _SimStore(), _World()
        hosts: list[asyncio.Task[Any]] = []
        left: list[_SimStore] = []

        async def main(engine: Engine) -> None:
            hosts.append(asyncio.create_task(engine.run(small), name="host"))
            value = "cancelled"
            with contextlib.suppress(asyncio.CancelledError):
                value = await hosts[0]
            # What a kill would leave now: it must be what the host was told.
            left.append(store.reborn())
            told = "COMPLETED" if value == 47 else "CANCELLED"
            found = {row.state for row in store._runs.values() if row.parent is None}
            # Cancelled while its end was being recorded, it has completed all the same.
            if not found <= {told, "COMPLETED"}:
                world.problems.append(f"the host was told {told}, and recorded is {found}")
            ended.update(found)

        far = live(store, world, main, at, lambda: hosts and hosts[0].cancel())
        finish(store, world, at)
        finish(left[0], world, at)
        return far

    assert every_step(trial) > 80
    assert ended == {"COMPLETED", "CANCELLED"}


@pytest.mark.parametrize("then", ["goes on", "dies"])
@pytest.mark.parametrize("which", range(5))
def test_a_future_that_is_cancelled_at_any_step_changes_nothing_else(which: int, then: str) -> None:
    def trial(at: int) -> bool:
        store, world = _SimStore(), _World()
        left: list[_SimStore] = []
        SUBMITTED.clear()

        async def main(engine: Engine) -> None:
            value = await engine.run(small)
            if value != 47 and not 1000 <= value < 2047:
                world.problems.append(f"it gave {value}")

        def act() -> None:
            if len(SUBMITTED) > which:
                SUBMITTED[which].cancel()
            if then == "dies":
                left.append(store.reborn())

        far = live(store, world, main, at, act)
        finish(store, world, at)
        for one in left:
            finish(one, _World(), at)
        return far

    assert every_step(trial) > 80


def test_a_run_that_is_cancelled_at_any_step_ends_once() -> None:
    ended: set[str] = set()

    def trial(at: int) -> bool:
        store, world = _SimStore(), _World()
        asked: list[asyncio.Task[Any]] = []
        runs: list[Any] = []

        async def main(engine: Engine) -> None:
            runs.append(await engine.submit(small))
            state = await runs[0].wait()
            ended.add(state.name)
            for one in asked:
                was_unfinished = await one
                if was_unfinished and not (await runs[0].wait()).is_final():
                    world.problems.append("cancel() returned before it had ended")

        def act() -> None:
            if runs and not runs[0].state.is_final():
                asked.append(runs[0]._engine.loop.create_task(runs[0].cancel()))

        far = live(store, world, main, at, act)
        finish(store, world, at)
        return far

    assert every_step(trial) > 80
    assert ended == {"Completed", "Cancelled"}


# --- taking over, given up at each step -----------------------------------------------------------


def left_by_a_crash(world: _World) -> _SimStore:
    """What is on disk when a process dies in the middle of the flow."""
    store, left = _SimStore(), []

    async def main(engine: Engine) -> None:
        await engine.run(small)

    live(store, world, main, 45, lambda: left.append(store.reborn()))
    world.completed.clear()
    world.take_stock(left[0])
    return left[0]


@pytest.mark.parametrize("verb", ["recover", "resume"])
def test_a_take_over_that_is_cancelled_at_any_step_strands_no_run(verb: str) -> None:
    cut_off = 0

    def trial(at: int) -> bool:
        world = _World()
        store = left_by_a_crash(world)
        hosts: list[asyncio.Task[Any]] = []
        (run_id,) = {row.id for row in store._runs.values() if row.parent is None}

        async def main(engine: Engine) -> None:
            nonlocal cut_off
            doing = engine.recover() if verb == "recover" else engine.resume(run_id)
            hosts.append(asyncio.create_task(doing))
            try:
                await hosts[0]
            except asyncio.CancelledError:
                cut_off += 1
            # The same engine, which lives on, takes it at its next look.
            await engine.recover()
            state = await engine.wait(run_id)
            if not (state.is_completed() and state.result() == 47):
                world.problems.append(f"it was left {state}")

        far = live(store, world, main, at, lambda: hosts and hosts[0].cancel())
        finish(store, world, at)
        return far

    assert every_step(trial) > 50
    assert cut_off > 5


@pytest.mark.parametrize("verb", ["fork", "rerun", "submit"])
def test_a_new_run_that_is_given_up_while_it_is_made_never_begins(verb: str) -> None:
    cut_off = 0

    def trial(at: int) -> bool:
        store, world = _SimStore(), _World()
        hosts: list[asyncio.Task[Any]] = []

        async def main(engine: Engine) -> None:
            nonlocal cut_off
            first = await engine.submit(small)
            await first.wait()
            doing = engine.submit(small) if verb == "submit" else getattr(engine, verb)(first.id)
            hosts.append(asyncio.create_task(doing))
            run = None
            with contextlib.suppress(asyncio.CancelledError):
                run = await hosts[0]
            stored = [row for row in store._runs.values() if row.parent is None]
            if run is None:
                cut_off += 1
                if not all(S(row.state).is_final for row in stored):
                    world.problems.append(f"{verb} was cancelled, and its run is there")
            elif not (await run.wait()).is_completed():
                world.problems.append(f"the run is {run.state}")

        far = live(store, world, main, at, lambda: hosts and hosts[0].cancel())
        finish(store, world, at)
        return far

    first = 80  # the first run takes more steps
    at = first
    while trial(at):
        at += 1
    assert at > first + 20
    assert cut_off > 2


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_recovery_that_dies_at_any_checkpoint_is_gone_on_with_by_the_next(after: bool) -> None:
    point, died = 0, True
    counts = set()
    while died:
        point += 1
        world = _World()
        store = left_by_a_crash(world)
        store.dies_at, store.after = store.operations + point, after
        values: list[Any] = []

        async def main(engine: Engine, values: list[Any] = values) -> None:
            for run in await engine.recover():
                values.append(await run)
                counts.add(run.recoveries)

        live(store, world, main, 0, lambda: None)
        died = store.dead
        if died:
            world.take_stock(store)
            store = store.reborn()
            store.dies_at = None
            live(store, world, main, 0, lambda: None)
        _check_rows(store, world)
        check(world, point)
        assert values in ([47], []), point
        (row,) = [row for row in store._runs.values() if row.parent is None]
        assert (row.state, row.result_kind) == ("COMPLETED", 1), point
    assert point > 8
    # A life that completed something makes the next recovery the first again.
    assert counts == {1, 2}
