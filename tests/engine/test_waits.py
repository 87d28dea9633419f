"""Waits that outlive their process, and what is the same in every life of a run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
import pytest
from patience import until

from asyncflow import (
    AlreadyAnswered,
    Engine,
    EventTimeout,
    InvalidOption,
    InvalidParameters,
    MemoryStore,
    NoEngine,
    PauseTimeout,
    RunNotResumable,
    SqliteStore,
    StateType,
    UnknownRun,
    flow,
    idempotency_key,
    now,
    pause_flow_run,
    random,
    send_event,
    sleep,
    sleep_until,
    task,
    uuid4,
    wait_for_event,
)

Store = MemoryStore | SqliteStore


class Clock:
    """Wall time that a test moves."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def time(self) -> float:
        return self.at


class Approval(pydantic.BaseModel):
    approved: bool
    amount: int = 0


async def reaches(run: Any, *types: StateType) -> None:
    """Wait until a run is in one of these states."""
    await until(lambda: run.state.type in types, pause=0)


async def row_reaches(engine: Engine, run_id: str, name: str) -> None:
    """Wait until a run is stored with a state of this name."""

    async def there() -> bool:
        return (await engine.get_run(run_id)).state.name == name

    await until(there, pause=0)


@task
async def note(what: str, into: str = "") -> str:
    NOTES.append(what)
    return what


NOTES: list[str] = []


@pytest.fixture(autouse=True)
def _no_notes() -> None:
    NOTES.clear()


# --- sleeping -------------------------------------------------------------------------------------


@flow
async def sleeper(seconds: float) -> str:
    await note("before")
    await sleep(seconds)
    return await note("after")


async def test_a_sleep_ends(engine: Engine) -> None:
    assert await engine.run(sleeper, 0.01) == "after"


async def test_a_run_that_sleeps_is_paused_and_says_until_when(engine: Engine) -> None:
    run = await engine.submit(sleeper, 3600)
    await reaches(run, StateType.PAUSED)
    assert run.state.name == "Suspended"
    row = (await engine.runs())[0].row
    assert row is not None
    assert row.wake_at is not None
    assert row.wake_at > engine.clock.time() + 3500
    assert b"sleep" in (row.waits_for or b"")
    await run.cancel()
    assert run.state.is_cancelled()


async def test_a_sleep_goes_on_after_a_restart_for_the_rest_only(store: Store) -> None:
    clock = Clock()
    async with Engine(store, clock=clock) as engine:
        run = await engine.submit(sleeper, 100)
        await reaches(run, StateType.PAUSED)
    clock.at += 101
    async with Engine(store, clock=clock) as engine:
        (again,) = await engine.recover()
        assert again.id == run.id
        assert await again == "after"
    assert NOTES == ["before", "after"]


async def test_the_wall_clock_decides_what_is_left_of_a_sleep_in_another_life(store: Store) -> None:
    clock = Clock()
    async with Engine(store, clock=clock) as engine:
        run = await engine.submit(sleeper, 100)
        await reaches(run, StateType.PAUSED)
    clock.at += 50
    async with Engine(store, clock=clock) as engine:
        (again,) = await engine.recover()
        await reaches(again, StateType.PAUSED)
        row = (await engine.runs())[0].row
        assert row is not None
        assert 1_000_100 <= row.wake_at < 1_000_150


async def test_sleep_until_a_time_that_is_past_is_no_wait(engine: Engine) -> None:
    @flow
    async def main() -> str:
        await sleep_until(datetime.now(UTC) - timedelta(days=1))
        return "awake"

    assert await engine.run(main) == "awake"


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", True])
async def test_a_sleep_that_makes_no_sense_is_refused(seconds: Any) -> None:
    with pytest.raises(InvalidOption, match="give seconds"):
        await sleep(seconds)


async def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(InvalidOption, match="aware"):
        await sleep_until(datetime(2026, 1, 1))


async def test_a_task_that_sleeps_holds_no_slot(engine: Engine) -> None:
    inside: list[int] = []

    @task(max_concurrency=1)
    async def doze(i: int) -> int:
        inside.append(i)
        if len(inside) == 3:
            everybody.set()
        await wait_for_event("go")
        return i

    everybody = asyncio.Event()

    @flow
    async def main() -> list[int]:
        return await doze.map(range(3))

    run = await engine.submit(main)
    async with asyncio.timeout(5):
        await everybody.wait()
    for _ in range(3):
        await engine.send_event("go", run_id=run.id)
    assert await run == [0, 1, 2]


async def test_a_run_that_only_waits_leaves_memory_and_is_replayed(store: Store) -> None:
    lives: list[int] = []

    @flow
    async def main() -> list[str]:
        lives.append(1)
        first = await note("first")
        got = await wait_for_event("go")
        return [first, await note(got)]

    async with Engine(store, suspend_after_seconds=0.0) as engine:
        run = await engine.submit(main)

        def asleep() -> bool:
            known = run._run
            return known is not None and known.extra.asleep is not None and known.body is None

        await until(asleep, pause=0)
        assert run.state.name == "Suspended"
        await engine.send_event("go", "second", run.id)
        assert await run == ["first", "second"]
        assert run.state.attempt == 1
    assert len(lives) == 2
    assert NOTES == ["first", "second"]


async def test_a_run_that_left_memory_can_be_cancelled(engine_asleep: Any) -> None:
    engine, run = engine_asleep
    assert await engine.cancel(run.id)
    assert run.state.is_cancelled()
    assert not engine.live


async def test_a_run_that_left_memory_is_let_go_when_its_engine_closes(store: Store) -> None:
    async with Engine(store, suspend_after_seconds=0.0) as engine:
        run = await engine.submit(waiter, "go")
        await asleep(run)
    async with Engine(store) as engine:
        row = await engine.get_run(run.id)
        assert (row.state.type, row.state.name) == (StateType.PAUSED, "Suspended")
        await engine.send_event("go", 7, run.id)
        (again,) = await engine.recover()
        assert await again == 7


async def test_a_deadline_ends_a_run_that_waits(engine: Engine) -> None:
    waits = waiter.with_options(timeout_seconds=0.05)
    run = await engine.submit(waits, "never")
    state = await run.wait()
    assert (state.type, state.name) == (StateType.FAILED, "TimedOut")


@flow
async def waiter(name: str, timeout: float | None = None) -> Any:
    return await wait_for_event(name, timeout)


async def asleep(run: Any) -> None:
    async with asyncio.timeout(5):
        while run._run.extra.asleep is None or run._run.body is not None:
            await asyncio.sleep(0)


@pytest.fixture
async def engine_asleep() -> Any:
    async with Engine(MemoryStore(), suspend_after_seconds=0.0) as engine:
        run = await engine.submit(waiter, "never")
        await asleep(run)
        yield engine, run


# --- events ---------------------------------------------------------------------------------------


async def test_an_event_sent_before_the_wait_is_kept(store: Store) -> None:
    @flow
    async def main() -> Any:
        await wait_for_event("start")
        return await wait_for_event("early")

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await engine.send_event("early", {"n": 1}, run.id)
        await engine.send_event("start", run_id=run.id)
        assert await run == {"n": 1}


async def test_each_event_is_taken_once_and_in_order(engine: Engine) -> None:
    @flow
    async def main() -> list[int]:
        return [await wait_for_event("n") for _ in range(3)]

    run = await engine.submit(main)
    for n in range(3):
        await engine.send_event("n", n, run.id)
    assert await run == [0, 1, 2]


async def test_an_event_for_nobody_reaches_all_who_are_there(engine: Engine) -> None:
    before = [await engine.submit(waiter, "all") for _ in range(3)]
    await engine.send_event("all", "hello")
    assert [await run for run in before] == ["hello"] * 3
    late = await engine.submit(waiter, "all", 0.01)
    with pytest.raises(EventTimeout):
        await late


async def test_waits_that_were_answered_are_not_waited_for_again(store: Store) -> None:
    @flow
    async def main() -> list[Any]:
        first = await wait_for_event("first")
        await note("between")
        return [first, await wait_for_event("second")]

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await engine.send_event("first", 1, run.id)
        await row_reaches(engine, run.id, "Suspended")
        await until(lambda: NOTES == ["between"], pause=0)
    async with Engine(store) as engine:
        await engine.send_event("second", 2, run.id)
        (again,) = await engine.recover()
        assert await again == [1, 2]
    assert NOTES == ["between"]


async def test_an_event_that_does_not_come_in_time(engine: Engine) -> None:
    @flow
    async def main(default: bool) -> Any:
        if default:
            return await wait_for_event("never", 0.01, default="nothing")
        return await wait_for_event("never", 0.01)

    assert await engine.run(main, True) == "nothing"
    with pytest.raises(EventTimeout, match=r"'never' did not come within 0.01 s") as caught:
        await engine.run(main, False)
    assert isinstance(caught.value, TimeoutError)


async def test_the_timeout_of_an_event_is_counted_over_restarts(store: Store) -> None:
    clock = Clock()
    async with Engine(store, clock=clock) as engine:
        run = await engine.submit(waiter, "never", 100)
        await reaches(run, StateType.PAUSED)
    clock.at += 101
    async with Engine(store, clock=clock) as engine:
        (again,) = await engine.recover()
        with pytest.raises(EventTimeout):
            await again


async def test_a_run_sends_an_event_once_over_its_lives(store: Store) -> None:
    @flow
    async def main(fail: bool) -> str:
        await send_event("sent", "payload")
        if FAIL:
            raise RuntimeError("once")
        return await note("done")

    FAIL.append(1)
    async with Engine(store) as engine:
        run = await engine.submit(main, True)
        assert (await run.wait()).is_failed()
        FAIL.clear()
        assert await (await engine.resume(run.id)) == "done"
        assert run._run is not None
        assert len(engine.store.messages(run._run.pk, 0)) == 1


FAIL: list[int] = []


async def test_events_of_another_process_arrive(path: Any) -> None:
    async with Engine(path) as engine, Engine(path) as other:
        run = await engine.submit(waiter, "far")
        await reaches(run, StateType.PAUSED)
        await other.send_event("far", 5, run.id)
        async with asyncio.timeout(5):
            assert await run == 5


async def test_an_event_for_a_run_that_is_not_there_is_refused(engine: Engine) -> None:
    with pytest.raises(UnknownRun):
        await engine.send_event("x", run_id="nobody")
    run = await engine.submit(sleeper, 0)
    await run
    with pytest.raises(RunNotResumable, match="waits for nothing any more"):
        await engine.send_event("x", run_id=run.id)


async def test_outside_of_runs_there_is_a_sentence() -> None:
    with pytest.raises(NoEngine, match="inside one"):
        await wait_for_event("x")
    with pytest.raises(NoEngine, match="async with Engine"):
        await send_event("x")
    with pytest.raises(NoEngine, match="inside one"):
        idempotency_key()


# --- people ---------------------------------------------------------------------------------------


@flow
async def asks(timeout: float | None = None) -> int:
    answer = await pause_flow_run(wait_for_input=Approval, timeout=timeout)
    return answer.amount if answer.approved else -1


async def test_an_answer_is_checked_before_it_is_accepted(engine: Engine) -> None:
    run = await engine.submit(asks)
    await reaches(run, StateType.PAUSED)
    assert run.state.name == "Paused"
    with pytest.raises(InvalidParameters, match="approved: "):
        await engine.answer(run.id, {"approved": "perhaps"})
    assert run.state.is_paused()
    await engine.answer(run.id, {"approved": True, "amount": 12})
    assert await run == 12


async def test_the_first_answer_wins(engine: Engine) -> None:
    run = await engine.submit(asks)
    await reaches(run, StateType.PAUSED)
    answers = [engine.answer(run.id, Approval(approved=True, amount=n)) for n in (1, 2)]
    first, second = await asyncio.gather(*answers, return_exceptions=True)
    assert first is None
    assert isinstance(second, AlreadyAnswered)
    assert await run == 1


async def test_a_run_is_answered_while_nobody_runs_it(path: Any) -> None:
    async with Engine(path) as engine:
        run = await engine.submit(asks)
        await reaches(run, StateType.PAUSED)
    async with Engine(path) as engine:
        with pytest.raises(InvalidParameters):
            await engine.answer(run.id, {"amount": 3})
        await engine.answer(run.id, {"approved": True, "amount": 3})
        (again,) = await engine.recover()
        assert await again == 3


async def test_another_process_answers(path: Any) -> None:
    async with Engine(path) as engine, Engine(path) as other:
        run = await engine.submit(asks)
        await row_reaches(other, run.id, "Paused")
        await other.answer(run.id, {"approved": False})
        async with asyncio.timeout(5):
            assert await run == -1


async def test_nobody_answers_in_time(engine: Engine) -> None:
    with pytest.raises(PauseTimeout):
        await engine.run(asks, 0.01)


async def test_a_pause_that_asks_for_nothing_ends_by_resume(engine: Engine) -> None:
    @flow
    async def main() -> str:
        await pause_flow_run()
        return "on"

    run = await engine.submit(main)
    await reaches(run, StateType.PAUSED)
    with pytest.raises(InvalidParameters, match="no input"):
        await engine.answer(run.id, {"x": 1})
    await engine.resume(run.id)
    assert await run == "on"
    with pytest.raises(RunNotResumable, match="waits for no answer"):
        await engine.answer(run.id)


async def test_a_task_cannot_pause_its_flow(engine: Engine) -> None:
    @task
    async def pauses() -> None:
        await pause_flow_run()

    @flow
    async def main() -> None:
        await pauses()

    with pytest.raises(InvalidOption, match="pauses a flow"):
        await engine.run(main)


# --- the same in every life -----------------------------------------------------------------------


async def test_time_and_chance_are_repeated(store: Store) -> None:
    seen: list[Any] = []

    @task
    async def inside() -> float:
        return random()

    @flow
    async def main() -> str:
        seen.append((now(), uuid4(), random(), random(), now(), idempotency_key()))
        await inside()
        if len(seen) == 1:
            raise RuntimeError("once")
        return "done"

    async with Engine(store) as engine:
        run = await engine.submit(main)
        assert (await run.wait()).is_failed()
    async with Engine(store) as engine:
        assert await (await engine.resume(run.id)) == "done"
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 6


async def test_each_task_has_a_key_of_its_own_that_its_attempts_share(engine: Engine) -> None:
    keys: dict[int, set[str]] = {}

    @task(retries=2, retry_delay_seconds=0)
    async def calls(i: int) -> None:
        keys.setdefault(i, set()).add(idempotency_key())
        if len(ATTEMPTS[i]) < 2:
            ATTEMPTS[i].append(1)
            raise OSError

    ATTEMPTS: dict[int, list[int]] = {0: [], 1: []}

    @flow
    async def main() -> None:
        await calls.map([0, 1])

    await engine.run(main)
    assert [len(found) for found in keys.values()] == [1, 1]
    assert keys[0] != keys[1]


def test_outside_of_runs_they_are_plain() -> None:
    assert now().tzinfo is UTC
    assert uuid4() != uuid4()
    assert 0 <= random() < 1
