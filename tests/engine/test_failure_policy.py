"""What becomes of calls that have failed for good: skipped, passed over, replaced, or paused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from patience import until

from asyncflow import (
    Engine,
    InvalidOption,
    MemoryStore,
    Skipped,
    SqliteStore,
    UpstreamFailed,
    allow_failure,
    fallback,
    flow,
    task,
    testing,
)

ran: list[str] = []
broken = True


@pytest.fixture(autouse=True)
def _fresh() -> None:
    global broken
    broken = True
    ran.clear()


@task
async def other(x: int) -> int:
    ran.append(f"other {x}")
    return -x


@task
async def after(x: Any) -> Any:
    ran.append(f"after {x}")
    return x


async def fails(x: int) -> int:
    ran.append(f"fails {x}")
    if broken:
        raise ValueError(x)
    return x


def failing(policy: Any, **options: Any) -> Any:
    return task(failure_policy=policy, name="failing", **options)(fails)


async def states(engine: Engine, run_id: str) -> dict[str, str]:
    return {t.name: t.state.name for t in await engine.task_runs(run_id)}


async def test_a_failure_that_is_skipped_gives_nothing_and_skips_what_depends_on_it(
    engine: Engine,
) -> None:
    @flow
    async def main() -> Any:
        future = failing("skip").submit(3)
        below = after.submit(future)
        allowed = after.submit(allow_failure(future))
        return [await future, await below, await allowed]

    run = await engine.submit(main)
    assert await run == [None, None, None]
    assert ran == ["fails 3", "after None"]
    rows = await engine.task_runs(run.id)
    assert [(t.state.type.value, t.state.name) for t in rows] == [
        ("COMPLETED", "Skipped"),
        ("COMPLETED", "Skipped"),
        ("COMPLETED", "Completed"),
    ]
    assert "ValueError" in rows[0].state.message
    assert "failing" in rows[1].state.message


async def test_a_failure_that_is_passed_over_fails_nobody_but_who_asks(engine: Engine) -> None:
    @flow
    async def main() -> str:
        future = failing("continue").submit(3)
        below = after.submit(future)
        with pytest.raises(ValueError, match="3"):
            await future
        with pytest.raises(UpstreamFailed):
            await below
        failing("continue").map([1, 2])
        return "fine"

    run = await engine.submit(main)
    assert await run == "fine"
    rows = await engine.task_runs(run.id)
    assert [t.state.name for t in rows] == ["Failed", "UpstreamFailed", "Failed", "Failed"]


async def test_without_a_policy_a_failure_that_nobody_saw_fails_the_flow(engine: Engine) -> None:
    @flow
    async def main() -> str:
        failing("fail").submit(3)
        return "fine"

    assert (await (await engine.submit(main)).wait()).is_failed()


async def test_a_fallback_gives_the_result_instead(engine: Engine) -> None:
    @flow
    async def main() -> list[int]:
        values = await failing(fallback(other)).map([1, 2])
        return [*values, await failing(fallback(other))(3)]

    run = await engine.submit(main)
    assert await run == [-1, -2, -3]
    assert sorted(ran) == sorted(
        [*[f"fails {n}" for n in (1, 2, 3)], *[f"other {n}" for n in (1, 2, 3)]]
    )
    rows = await engine.task_runs(run.id)
    replaced = [t for t in rows if t.state.name == "Fallback"]
    assert len(replaced) == 3
    instead = [t for t in rows if t.name.startswith("other")]
    assert {t.parent_id for t in instead} == {t.id for t in replaced}


async def test_a_fallback_that_fails_too_fails_the_call(engine: Engine) -> None:
    @task
    async def worse(x: int) -> int:
        raise KeyError(x)

    @flow
    async def main() -> int:
        return await failing(fallback(worse))(1)

    state = await (await engine.submit(main)).wait()
    assert isinstance(state.error, KeyError)


async def needs_attention(engine: Engine, run_id: str) -> None:
    """Wait until a run is stored as one that needs a person."""

    async def needs() -> bool:
        return (await engine.get_run(run_id)).state.name == "NeedsAttention"

    await until(needs)


async def test_a_pause_waits_for_a_person_and_is_tried_again(
    store: MemoryStore | SqliteStore,
) -> None:
    global broken

    @flow
    async def main() -> int:
        return await failing("pause")(1) + await after(10)

    async with Engine(store) as engine:
        run = await engine.submit(main)
        await needs_attention(engine, run.id)
        assert "ValueError" in (await engine.get_run(run.id)).state.message
        broken = False
        await engine.resume(run.id)
        assert await run == 11
    assert ran == ["fails 1", "fails 1", "after 10"]


async def test_a_pause_outlives_its_process(store: MemoryStore | SqliteStore) -> None:
    global broken

    @flow
    async def outlives() -> int:
        return await after(10) + await failing("pause")(1)

    async with Engine(store) as engine:
        run = await engine.submit(outlives)
        await needs_attention(engine, run.id)
    broken = False
    async with Engine(store) as engine:
        again = await engine.resume(run.id)
        assert await again == 11
    assert ran == ["after 10", "fails 1", "fails 1"]


async def test_a_paused_run_can_be_cancelled(engine: Engine) -> None:
    @flow
    async def main() -> int:
        return await failing("pause")(1)

    run = await engine.submit(main)
    await needs_attention(engine, run.id)
    await run.cancel()
    assert run.state.is_cancelled()


async def test_retries_come_before_the_policy_and_hooks_are_told(engine: Engine) -> None:
    told: list[str] = []

    def on_failure(task: Any, task_run: Any, state: Any) -> None:
        told.append(state.name)

    made = failing(
        "skip", retries=2, retry_delay_seconds=0, retry_jitter_factor=0, on_failure=on_failure
    )

    @flow
    async def main() -> Any:
        return await made(1)

    assert await engine.run(main) is None
    assert ran == ["fails 1"] * 3
    assert told == ["Failed"]


async def test_code_that_has_nothing_to_do_says_so(engine: Engine) -> None:
    @task
    async def maybe(x: int) -> Any:
        if x == 1:
            return Skipped("nothing new today")
        raise Skipped("nothing at all")

    @flow
    async def main(skip: bool = False) -> Any:
        if skip:
            return Skipped("a holiday")
        future = maybe.submit(1)
        below = after.submit(future)
        return [await future, await below, await maybe(2)]

    run = await engine.submit(main)
    assert await run == [None, None, None]
    assert ran == []
    rows = await engine.task_runs(run.id)
    assert {t.state.name for t in rows} == {"Skipped"}
    assert rows[0].state.message == "nothing new today"
    whole = await (await engine.submit(main, skip=True)).wait()
    assert (whole.type.value, whole.name, whole.message) == ("COMPLETED", "Skipped", "a holiday")


@pytest.mark.parametrize(
    ("policy", "text"),
    [("ignore", "use one of 'fail', 'skip'"), (3, "failure_policy=3"), (other, "fallback")],
)
def test_a_policy_that_is_none_is_refused(policy: Any, text: str) -> None:
    with pytest.raises(InvalidOption, match=text):
        failing(policy)


def test_a_fallback_must_fit_and_lead_elsewhere() -> None:
    with pytest.raises(InvalidOption, match="give a task"):
        fallback(fails)  # type: ignore[arg-type] # wrong on purpose

    @task
    async def two(x: int, y: int) -> int:
        return x + y

    with pytest.raises(InvalidOption, match="cannot be called instead"):
        failing(fallback(two))

    plain = task(name="plain")(fails)
    with pytest.raises(InvalidOption, match="leads back"):
        plain.with_options(failure_policy=fallback(plain))


# --- teardowns ----------------------------------------------------------------------------------


@task
async def setup() -> str:
    ran.append("setup")
    if broken:
        return "table"
    raise OSError("no room")


@task
async def load(table: str, seconds: float = 0.0) -> str:
    await asyncio.sleep(seconds)
    ran.append("load")
    raise RuntimeError("in the middle")


@task(teardown=True)
async def drop(table: str) -> None:
    await asyncio.sleep(0.01)
    ran.append(f"drop {table}")


async def test_a_teardown_runs_after_a_failure_and_does_not_decide(engine: Engine) -> None:
    @flow
    async def main() -> str:
        table = setup.submit()
        loaded = load.submit(table)
        drop.submit(table, wait_for=[loaded])
        return await loaded

    state = await (await engine.submit(main)).wait()
    assert state.is_failed()
    assert ran == ["setup", "load", "drop table"]


async def test_a_teardown_whose_setup_failed_has_nothing_to_do(engine: Engine) -> None:
    global broken
    broken = False

    @flow
    async def main() -> None:
        table = setup.submit()
        drop.submit(table)
        await table

    run = await engine.submit(main)
    assert (await run.wait()).is_failed()
    assert ran == ["setup"]
    assert (await states(engine, run.id))["drop-2"] == "Skipped"


@pytest.mark.parametrize("way", ["submitted", "awaited"])
async def test_a_teardown_runs_though_its_run_is_cancelled(engine: Engine, way: str) -> None:
    started = asyncio.Event()

    @task
    async def endless(table: str) -> None:
        started.set()
        await asyncio.Event().wait()

    @flow
    async def main() -> None:
        table = setup.submit()
        if way == "submitted":
            going = endless.submit(table)
            drop.submit(table, wait_for=[going])
            await going
            return
        name = await table
        try:
            await endless(name)
        finally:
            await drop(name)

    run = await engine.submit(main)
    await started.wait()
    await run.cancel()
    assert run.state.is_cancelled()
    assert ran == ["setup", "drop table"]


async def test_a_teardown_that_fails_is_shown_and_changes_nothing(engine: Engine) -> None:
    @task(teardown=True)
    async def clumsy() -> None:
        raise OSError("it is stuck")

    @flow
    async def main() -> str:
        clumsy.submit()
        return "fine"

    run = await engine.submit(main)
    assert await run == "fine"
    (row,) = await engine.task_runs(run.id)
    assert row.state.is_failed()
    logs = await engine.logs(run.id)
    assert any("it is stuck" in line.message for line in logs)


async def test_an_interrupted_run_tears_nothing_down(store: MemoryStore | SqliteStore) -> None:
    started = asyncio.Event()

    @task
    async def once(table: str) -> str:
        started.set()
        if len(ran) < 2:
            ran.append("cut off")
            await asyncio.Event().wait()
        return table

    @flow
    async def interrupted() -> str:
        table = setup.submit()
        done = once.submit(table)
        drop.submit(table, wait_for=[done])
        return await done

    async with Engine(store) as engine:
        await engine.submit(interrupted)
        await started.wait()
    assert ran == ["setup", "cut off"]
    async with Engine(store) as engine:
        (again,) = await engine.recover()
        assert await again == "table"
    assert ran == ["setup", "cut off", "drop table"]


# --- over crashes -------------------------------------------------------------------------------


@task(failure_policy="skip")
async def skips(x: int) -> int:
    await asyncio.sleep(0.1)
    if x % 2:
        raise ValueError(x)
    return x


@task
async def instead(x: int) -> int:
    await asyncio.sleep(0.1)
    return 100 + x


@task(failure_policy=fallback(instead), retries=1, retry_delay_seconds=1)
async def replaced(x: int) -> int:
    await asyncio.sleep(0.1)
    raise OSError(x)


@task(failure_policy="continue")
async def passed(x: int) -> int:
    raise KeyError(x)


@task(teardown=True)
async def cleans(x: Any) -> None:
    await asyncio.sleep(0.1)


@task
async def doubles(x: int) -> int:
    return 2 * x


@flow(max_concurrency=3)
async def policies(n: int = 4) -> Any:
    some = skips.map(range(n))
    more = doubles.map(some)
    others = [replaced.submit(i) for i in range(2)]
    passed.submit(1)
    cleans.submit(others[0], wait_for=more)
    return [await some, await more, [await f for f in others]]


def test_the_outcome_is_the_same_over_crashes_and_faults() -> None:
    found = testing.simulate(policies, seeds=100)
    found.check()
    assert found.crashes > 20


def test_a_crash_at_any_checkpoint_changes_no_policy() -> None:
    testing.crash_everywhere(policies).check()
