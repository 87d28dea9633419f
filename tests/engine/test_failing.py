"""Retries, timeouts, deadlines and cancellation."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from virtual import advance, now, virtual_engine, virtually

from asyncflow import (
    Engine,
    FlowTimeout,
    QueueTimeout,
    RetryAfter,
    RunCancelled,
    TaskFuture,
    TaskTimeout,
    exponential_backoff,
    flow,
    runtime,
    task,
    wait,
)


class Flaky(Exception):
    pass


# --- retries --------------------------------------------------------------------------------------


async def test_a_thousand_calls_at_once_have_exactly_four_attempts_each(engine: Engine) -> None:
    attempts: Counter[int] = Counter()

    @task(retries=3)
    async def fail(x: int) -> None:
        attempts[x] += 1
        await asyncio.sleep(0)
        raise Flaky(x)

    @flow
    async def main() -> int:
        futures = fail.map(range(1000))
        return sum([isinstance(await _error(future), Flaky) for future in futures])

    async def _error(future: TaskFuture[None]) -> BaseException | None:
        try:
            await future
        except Flaky as error:
            return error

    assert await engine.run(main) == 1000
    assert set(attempts.values()) == {4}
    assert len(attempts) == 1000


async def test_a_call_that_succeeds_at_last_is_completed(engine: Engine) -> None:
    @task(retries=5)
    async def third_time() -> int:
        attempt = runtime.task_run.attempt
        assert attempt is not None
        if attempt < 3:
            raise Flaky
        return attempt

    @flow
    async def main() -> int:
        return await third_time()

    run = await engine.submit(main)
    assert await run == 3
    row = (await engine.task_runs(run.id))[0]
    assert (row.attempts, row.failures, row.state.name) == (3, 2, "Completed")


async def test_retry_on_names_what_is_tried_again(engine: Engine) -> None:
    tries: Counter[str] = Counter()

    @task(retries=3, retry_on=Flaky)
    async def fail(kind: str) -> None:
        tries[kind] += 1
        raise {"flaky": Flaky, "other": KeyError}[kind](kind)

    @flow
    async def main() -> None:
        for kind in ("flaky", "other"):
            await fail(kind, return_state=True)

    await engine.run(main)
    assert tries == {"flaky": 4, "other": 1}


async def test_a_condition_may_refuse_a_retry(engine: Engine) -> None:
    seen = []

    async def condition(task: Any, task_run: Any, state: Any) -> bool:
        seen.append((task.name, task_run.attempt, str(state.result(raise_on_failure=False))))
        return len(seen) < 2

    @task(retries=9, retry_condition_fn=condition)
    async def fail() -> None:
        raise Flaky("x")

    @flow
    async def main() -> None:
        await fail()

    with pytest.raises(Flaky):
        await engine.run(main)
    assert seen == [("fail", 1, "x"), ("fail", 2, "x")]


async def test_a_condition_that_raises_means_no_retry(engine: Engine) -> None:
    def condition(*_: object) -> bool:
        raise RuntimeError("broken condition")

    @task(retries=9, retry_condition_fn=condition)
    async def fail() -> None:
        raise Flaky("x")

    @flow
    async def main() -> None:
        await fail()

    with pytest.raises(Flaky) as caught:
        await engine.run(main)
    assert "broken condition" in "".join(caught.value.__notes__)


async def test_the_last_exception_carries_its_attempts(engine: Engine) -> None:
    @task(retries=2)
    async def fail() -> None:
        raise Flaky(f"attempt number {runtime.task_run.attempt}")

    @flow
    async def main() -> None:
        await fail()

    with pytest.raises(Flaky, match="attempt number 3") as caught:
        await engine.run(main)
    note = "\n".join(caught.value.__notes__)
    assert all(f"attempt number {n}" in note for n in (1, 2, 3))


@virtually
async def test_a_server_says_when_to_come_back() -> None:
    times = []

    @task(retries=1)
    async def ask() -> None:
        times.append(now())
        if len(times) == 1:
            raise RetryAfter(0.05)

    @flow
    async def main() -> None:
        await ask()

    async with virtual_engine() as engine:
        await engine.run(main)
        assert 0.05 <= times[1] - times[0] <= 0.1


async def test_a_server_that_asks_for_too_much_fails_at_once(engine: Engine) -> None:
    @task(retries=5)
    async def ask() -> None:
        raise RetryAfter(301)

    @flow
    async def main() -> None:
        await ask()

    with pytest.raises(RetryAfter) as caught:
        await engine.run(main)
    assert "300" in "".join(caught.value.__notes__)


@virtually
async def test_a_waiting_retry_holds_no_slot() -> None:
    order = []

    @task(max_concurrency=1, retries=1, retry_delay_seconds=0.02, retry_jitter_factor=0)
    async def work(x: int) -> None:
        order.append(x)
        if x == 0 and order.count(0) == 1:
            raise Flaky

    @flow
    async def main() -> None:
        await work.map(range(3))

    async with virtual_engine() as engine:
        await engine.run(main)
        assert order == [0, 1, 2, 0]


async def test_a_retry_budget_caps_the_share_of_retries(engine: Engine) -> None:
    attempts = 0

    @task(retries=5)
    async def fail(x: int) -> None:
        nonlocal attempts
        attempts += 1
        raise Flaky

    @flow(retry_budget=0.1)
    async def main() -> None:
        for future in fail.map(range(100)):
            try:
                await future
            except Flaky:
                pass

    await engine.run(main)
    assert attempts == 110


@virtually
async def test_a_flow_is_tried_again_and_keeps_what_completed() -> None:
    calls: Counter[str] = Counter()

    @task
    async def once() -> int:
        calls["once"] += 1
        return 1

    @task
    async def flaky() -> int:
        calls["flaky"] += 1
        if calls["flaky"] < 3:
            raise Flaky
        return 2

    @flow(retries=3, retry_delay_seconds=exponential_backoff(base=0.001))
    async def main() -> int:
        return await once() + await flaky()

    async with virtual_engine() as engine:
        run = await engine.submit(main)
        assert await run == 3
        assert calls == {"once": 1, "flaky": 3}
        assert run.attempt == 3


# --- timeouts -------------------------------------------------------------------------------------


@virtually
async def test_a_task_is_stopped_by_its_timeout() -> None:
    cleaned = []

    @task(timeout_seconds=0.01)
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(1)

    @flow
    async def main() -> str:
        future = forever.submit()
        with pytest.raises(TaskTimeout) as caught:
            await future
        assert isinstance(caught.value, TimeoutError)
        return future.state.name

    async with virtual_engine() as engine:
        assert await engine.run(main) == "TimedOut"
        assert cleaned == [1]


@virtually
async def test_a_timeout_is_per_attempt_and_can_be_retried() -> None:
    attempts = 0

    @task(timeout_seconds=0.01, retries=2, retry_on=TaskTimeout)
    async def slow_at_first() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            await asyncio.Event().wait()
        return attempts

    @flow
    async def main() -> int:
        return await slow_at_first()

    async with virtual_engine() as engine:
        assert await engine.run(main) == 3


async def test_a_timeout_error_of_user_code_is_not_timed_out(engine: Engine) -> None:
    @task(timeout_seconds=10)
    async def own() -> None:
        raise TimeoutError("my own")

    @flow
    async def main() -> list[str]:
        state = await own(return_state=True)
        return [state.name, type(state.result(raise_on_failure=False)).__name__]

    assert await engine.run(main) == ["Failed", "TimeoutError"]


@virtually
async def test_queueing_does_not_eat_the_timeout() -> None:
    @task(timeout_seconds=0.05, max_concurrency=1)
    async def work(x: int) -> int:
        await asyncio.sleep(0.02)
        return x

    @flow
    async def main() -> list[int]:
        return await work.map(range(6))

    async with virtual_engine() as engine:
        assert await engine.run(main) == list(range(6))


@virtually
async def test_a_task_that_blocked_the_loop_past_its_deadline_is_timed_out() -> None:
    @task(timeout_seconds=0.01)
    async def blocking() -> int:
        advance(0.02)  # code that holds the event loop
        return 1

    @flow
    async def main() -> str:
        return (await blocking(return_state=True)).name

    async with virtual_engine() as engine:
        assert await engine.run(main) == "TimedOut"


@virtually
async def test_the_total_timeout_spans_attempts_and_waits() -> None:
    @task(total_timeout_seconds=0.05, retries=1000, retry_delay_seconds=0.01)
    async def fail() -> None:
        raise Flaky

    @flow
    async def main() -> str:
        return (await fail(return_state=True)).message

    async with virtual_engine() as engine:
        assert "deadline" in await engine.run(main)


@pytest.mark.parametrize("how", ["direct", "submit", "map", "nested", "retried"])
@virtually
async def test_the_total_timeout_begins_with_the_call_however_that_is_made(how: str) -> None:
    @task(total_timeout_seconds=5, retries=3, retry_delay_seconds=4, retry_jitter_factor=0)
    async def hang(x: int) -> None:
        if how == "retried" and now() < 3:
            await asyncio.sleep(1)
            raise Flaky
        await asyncio.sleep(1000)

    @task
    async def around() -> None:
        await hang(1)

    @flow
    async def main() -> None:
        match how:
            case "submit":
                await hang.submit(1)
            case "map":
                await hang.map([1])
            case "nested":
                await around()
            case _:
                await hang(1)

    async with virtual_engine() as engine:
        began = now()
        with pytest.raises((TaskTimeout, Flaky)):
            await engine.run(main)
        # The attempt that could begin only as the time ends is not begun.
        assert now() - began == pytest.approx(1 if how == "retried" else 5, abs=0.1)


@virtually
async def test_the_queue_timeout_bounds_the_wait_for_a_slot() -> None:
    @flow
    async def main() -> None:
        gate = asyncio.Event()

        @task(max_concurrency=1, queue_timeout_seconds=0.01)
        async def hold() -> None:
            await gate.wait()

        first, second = hold.submit(key=1), hold.submit(key=2)
        with pytest.raises(QueueTimeout):
            await second
        gate.set()
        await first

    async with virtual_engine() as engine:
        await engine.run(main)


@virtually
@pytest.mark.parametrize("how", ["map", "light map", "stream"])
async def test_the_queue_timeout_bounds_the_wait_of_each_item(how: str) -> None:
    began: list[int] = []

    @flow
    async def main() -> tuple[list[Any], float]:
        gate = asyncio.Event()

        @task(max_concurrency=1, queue_timeout_seconds=1)
        async def hold(n: int) -> int:
            began.append(n)
            if n >= 2 or how == "map":
                await gate.wait()
            return n

        if how == "stream":
            asyncio.get_running_loop().call_later(3, gate.set)
            stream = hold.stream(range(6), max_in_flight=6, ordered=True, on_error="collect")
            return [item async for item in stream], now()
        futures = hold.map(range(6))
        found = await asyncio.gather(*futures[-3:], return_exceptions=True)
        failed = now()
        gate.set()
        await wait(futures)
        return await asyncio.gather(*futures[:-3], return_exceptions=True) + found, failed

    async with virtual_engine() as engine:
        start = now()
        run = await engine.submit(main)
        found, failed = await run
        good = 1 if how == "map" else 3
        assert began == list(range(good))
        assert found[:good] == began
        assert {type(error) for error in found[good:]} == {QueueTimeout}
        assert failed - start == pytest.approx(3 if how == "stream" else 1, abs=0.01)
        states = [task.state.name for task in await engine.task_runs(run.id)]
        assert sorted(states) == ["Completed"] * good + ["TimedOut"] * (6 - good)


@virtually
async def test_items_that_are_known_do_not_run_out_of_their_time_in_the_queue() -> None:
    lives: list[int] = []

    @task(max_concurrency=1, queue_timeout_seconds=1)
    async def hold(n: int) -> int:
        if n == 1 and len(lives) == 1:
            raise Flaky(n)
        if n == 1:
            await asyncio.sleep(5)
        return n

    @flow
    async def main() -> list[int]:
        lives.append(1)
        return list(await hold.map(range(8)))

    async with virtual_engine() as engine:
        run = await engine.submit(main)
        with pytest.raises(Flaky):
            await run
        again = await engine.resume(run.id)
        assert await again == list(range(8))


@virtually
async def test_a_flow_that_takes_too_long_is_timed_out_with_all_below_it() -> None:
    events = []

    @task
    async def forever(name: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append(name)
            raise

    @flow
    async def child() -> None:
        await forever("in the child")

    @flow(timeout_seconds=0.05)
    async def main() -> None:
        forever.submit("submitted")
        await child()

    async with virtual_engine() as engine:
        run = await engine.submit(main)
        with pytest.raises(FlowTimeout):
            await run
        assert run.state.name == "TimedOut"
        assert sorted(events) == ["in the child", "submitted"]
        assert {r.state.type for r in await engine.runs(parent_id=run.id)} == {"CANCELLED"}


# --- cancellation ---------------------------------------------------------------------------------


async def test_cancelling_a_run_cancels_everything_below_it(engine: Engine) -> None:
    started = asyncio.Event()
    cleaned = []

    @task
    async def forever() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("task")

    @flow
    async def child() -> None:
        await forever()

    @flow
    async def main() -> None:
        try:
            await child()
        finally:
            cleaned.append("flow")

    run = await engine.submit(main)
    await asyncio.wait_for(started.wait(), 5)
    assert await run.cancel()
    assert run.state.type == "CANCELLED"
    assert cleaned == ["task", "flow"]
    with pytest.raises(RunCancelled):
        await run
    assert not await run.cancel()
    states = {r.flow_name: r.state.type for r in await engine.runs()}
    assert states == {"main": "CANCELLED", "child": "CANCELLED"}


async def test_the_cancellation_of_the_host_passes_through(engine: Engine) -> None:
    started = asyncio.Event()

    @task(retries=5)
    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    @flow
    async def main() -> None:
        await forever()

    host = asyncio.create_task(engine.run(main))
    await asyncio.wait_for(started.wait(), 5)
    host.cancel()
    with pytest.raises(asyncio.CancelledError):
        await host
    assert host.cancelled()
    run = (await engine.runs())[0]
    assert run.state.type == "CANCELLED"
    assert "host" in run.state.message


@virtually
async def test_asyncio_timeout_around_a_flow_works() -> None:
    @task
    async def forever() -> None:
        await asyncio.Event().wait()

    @flow
    async def main() -> None:
        await forever()

    async with virtual_engine() as engine:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await engine.run(main)


@virtually
async def test_asyncio_timeout_around_a_task_in_a_flow_works() -> None:
    @task
    async def forever() -> None:
        await asyncio.Event().wait()

    @flow
    async def main() -> str:
        try:
            async with asyncio.timeout(0.01):
                await forever()
        except TimeoutError:
            return "went on"
        return "?"

    async with virtual_engine() as engine:
        run = await engine.submit(main)
        assert await run == "went on"
        assert (await engine.task_runs(run.id))[0].state.type == "CANCELLED"


@virtually
async def test_a_task_that_swallows_its_cancellation_is_named() -> None:
    @task(cancel_grace_seconds=0.05)
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                pass

    @flow
    async def main() -> None:
        await stubborn()

    async with virtual_engine() as engine:
        run = await engine.submit(main)
        await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            await run.cancel()
        row = (await engine.task_runs(run.id))[0]
    assert row.state.type == "CANCELLED"
    assert "did not stop" in row.state.message
    assert "stubborn" in row.state.message


@virtually
async def test_an_orderly_clean_up_may_await() -> None:
    done = []

    @task
    async def careful() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(20):
                await asyncio.sleep(0.001)
            done.append(1)

    @flow
    async def main() -> None:
        future = careful.submit()
        await asyncio.sleep(0)
        future.cancel()
        await asyncio.wait([asyncio.ensure_future(_quiet(future))])

    async def _quiet(future: TaskFuture[Any]) -> None:
        try:
            await future
        except Exception:
            pass

    async with virtual_engine() as engine:
        await engine.run(main)
        assert done == [1]


async def test_a_cancelled_waiter_loses_no_wake_up(engine: Engine) -> None:
    ran = []

    @flow
    async def main() -> None:
        gate = asyncio.Event()

        @task(max_concurrency=1)
        async def work(x: int) -> None:
            if x == 0:
                await gate.wait()
            ran.append(x)

        futures = [work.submit(i) for i in range(10)]
        await asyncio.sleep(0)
        for future in futures[1:9]:
            future.cancel()
        gate.set()
        await futures[0]
        await futures[9]

    await engine.run(main)
    assert ran == [0, 9]


async def test_no_task_outlives_its_flow(engine: Engine) -> None:
    before = asyncio.all_tasks()

    @task
    async def forever(x: int) -> None:
        await asyncio.Event().wait()

    @flow
    async def main() -> None:
        forever.map(range(50))
        await asyncio.sleep(0)
        raise Flaky

    with pytest.raises(Flaky):
        await engine.run(main)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
