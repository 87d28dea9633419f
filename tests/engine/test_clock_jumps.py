"""The wall clock is set while flows run: durations stay what they were, points in time move."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from asyncflow import (
    EventTimeout,
    FlowTimeout,
    TaskTimeout,
    flow,
    rate_limit,
    sleep,
    sleep_until,
    task,
    testing,
    wait_for_event,
)
from asyncflow.store.memory import MemoryStore
from asyncflow.testing import START, VirtualEngine

HOUR, DAY = 3600.0, 86_400.0
JUMPS = [HOUR, -HOUR, DAY, -DAY]


class Wall:
    """Wall time that somebody sets."""

    def __init__(self) -> None:
        self.set_by = 0.0

    def time(self) -> float:
        return START + asyncio.get_running_loop().time() + self.set_by


#: What happened, and when by the loop.
STORY: list[tuple[str, float]] = []


def tell(what: str) -> None:
    STORY.append((what, round(asyncio.get_running_loop().time(), 1)))


@task(timeout_seconds=10)
async def slow() -> None:
    await asyncio.sleep(100)


@task(retries=3, retry_delay_seconds=[5, 20, 40], retry_jitter_factor=0)
async def shaky() -> None:
    tell("an attempt")
    raise OSError


@task(retries=9, retry_delay_seconds=10, retry_jitter_factor=0, total_timeout_seconds=45)
async def bounded() -> None:
    tell("an attempt within 45 s")
    raise OSError


@task
async def limited(n: int) -> None:
    await rate_limit("api", limit=2, period=30)
    tell(f"item {n}")


@flow
async def durations() -> None:
    below = too_long.submit()
    items = limited.map(range(5))
    for work, error in ((slow, TaskTimeout), (shaky, OSError), (bounded, OSError)):
        with pytest.raises(error):
            await work()
        tell("it ended")
    await sleep(60)
    tell("awake")
    with pytest.raises(EventTimeout):
        await wait_for_event("never", timeout=50)
    tell("nothing came")
    await items
    with pytest.raises(FlowTimeout):
        await below
    tell("timed out")


@flow(timeout_seconds=300)
async def too_long() -> None:
    await asyncio.sleep(1000)


@flow(retries=1, retry_delay_seconds=100, retry_jitter_factor=0)
async def tried_again() -> None:
    tell("begins")
    await sleep(50)
    tell("awake")
    await fails_once()


@task
async def fails_once() -> None:
    if not any(what == "failed" for what, _ in STORY):
        tell("failed")
        raise OSError


@flow(timeout_seconds=200)
async def in_time() -> None:
    await asyncio.sleep(150)
    tell("in time")


def story(
    flow: Any, jump: float = 0.0, after: float = 0.0, **options: Any
) -> list[tuple[str, float]]:
    """What happens in a run during which the wall clock is set."""
    STORY.clear()

    async def main() -> None:
        wall = Wall()

        def set_clock() -> None:
            wall.set_by += jump

        async with VirtualEngine(clock=wall, seed=1, **options) as engine:
            asyncio.get_running_loop().call_later(after, set_clock)
            async with asyncio.timeout(10 * DAY):
                await engine.run(flow)
            tell("the end")

    testing.run(main())
    return list(STORY)


@pytest.mark.parametrize("suspends", [None, 5.0], ids=["in memory", "suspended"])
@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("one", [durations, tried_again, in_time], ids=lambda one: one.name)
def test_durations_and_their_order_are_the_same_whenever_the_clock_is_set(
    one: Any, jump: float, suspends: float | None
) -> None:
    plain = story(one, suspend_after_seconds=suspends)
    end = plain[-1][1]
    assert end > 100
    for after in [0.0, *(end * i / 29 for i in range(30))]:
        assert story(one, jump, after, suspend_after_seconds=suspends) == plain, after


@flow
async def until() -> None:
    await sleep_until(datetime.fromtimestamp(START + 7200, UTC))
    tell("it is time")


@pytest.mark.parametrize("suspends", [None, 5.0], ids=["in memory", "suspended"])
@pytest.mark.parametrize(
    ("jump", "at"),
    [
        (0.0, 7200),
        (HOUR, 3600),
        (-HOUR, 10_800),
        (DAY, 1020),  # which it notices within a minute
        (-DAY, 93_600),
    ],
)
def test_a_point_in_time_is_the_wall_clocks(jump: float, at: float, suspends: float | None) -> None:
    ((_, when), _) = story(until, jump, 1000.0, suspend_after_seconds=suspends)
    assert when == pytest.approx(at, abs=60)


@pytest.mark.parametrize("jump", JUMPS)
def test_another_life_works_out_the_rest_by_the_wall_clock(jump: float) -> None:
    """There is no other clock that both lives can read."""

    async def main() -> None:
        wall = Wall()
        async with VirtualEngine(MemoryStore(), clock=wall) as engine:
            run = await engine.submit(sleeper)
            await asyncio.sleep(10)
            store = engine.store.copy()  # type: ignore[attr-defined] # it is a MemoryStore
            await run.cancel()
        wall.set_by += jump
        began = asyncio.get_running_loop().time()
        async with VirtualEngine(store, clock=wall) as engine:
            for run in await engine.recover():
                await run
        took = asyncio.get_running_loop().time() - began
        assert took == pytest.approx(max(0.0, 100_000 - 10 - jump), abs=1)

    testing.run(main())


@flow
async def sleeper() -> None:
    await sleep(100_000)
