"""Exceptions and user functions around a call that misbehave themselves."""

from __future__ import annotations

import asyncio
import gc
import logging
from dataclasses import dataclass
from typing import Any

import pytest

from asyncflow import Engine, MemoryStore, flow, task, wait


class Mute(Exception):
    """As `aiohttp.ClientResponseError` without a request is."""

    def __str__(self) -> str:
        raise AttributeError("real_url")

    __repr__ = __str__


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


@pytest.mark.parametrize("error", [Mute(), Frozen(3)], ids=["without a text", "frozen"])
@pytest.mark.parametrize("retries", [0, 2])
async def test_an_exception_that_can_hardly_be_told_is_raised_as_it_is(
    engine: Engine, error: Exception, retries: int
) -> None:
    @task(retries=retries, retry_delay_seconds=0)
    async def broken() -> None:
        raise error

    @flow
    async def main() -> None:
        try:
            await broken()
        except type(error):
            await broken.submit()

    async with asyncio.timeout(10):
        run = await engine.submit(main)
        with pytest.raises(type(error)):
            await run
    assert (await engine.task_runs(run.id))[0].attempts == retries + 1
    assert type(error).__name__ in (run.state.message or "")


async def test_a_delay_that_raises_means_no_retry(engine: Engine) -> None:
    def delay(attempt: int) -> float:
        raise KeyError("no delay")

    @task(retries=3, retry_delay_seconds=delay)
    async def broken() -> None:
        raise ValueError("no")

    @flow
    async def main() -> None:
        await broken()

    async with asyncio.timeout(10):
        run = await engine.submit(main)
        with pytest.raises(ValueError, match="no") as caught:
            await run
    assert "its retry_delay_seconds raised KeyError: 'no delay', so no retry" in str(
        caught.value.__notes__
    )


async def test_the_message_of_a_failed_call_keeps_what_failed(engine: Engine) -> None:
    def never(*_: Any) -> bool:
        raise RuntimeError("cannot say")

    @task(retries=3, retry_condition_fn=never)
    async def broken() -> None:
        raise ValueError("no")

    @flow
    async def main() -> None:
        await broken()

    run = await engine.submit(main)
    await run.wait()
    (told,) = await engine.task_runs(run.id)
    assert told.state.message == (
        "ValueError: no (its retry_condition_fn raised RuntimeError: cannot say, so no retry)"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_passes_through_and_is_told_once(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    @task(retries=3, retry_delay_seconds=0, retry_on=BaseException)
    async def end() -> None:
        tries.append(1)
        await asyncio.sleep(0)
        raise error

    @flow
    async def main() -> None:
        await end.submit()

    async def host() -> None:
        async with Engine(MemoryStore()) as engine:
            await engine.run(main)

    with caplog.at_level(logging.ERROR), pytest.raises(error):
        asyncio.run(host())
    gc.collect()
    assert (len(tries), caplog.messages) == (1, [])


async def test_a_call_cancelled_while_its_condition_is_asked_is_cancelled(engine: Engine) -> None:
    asked = asyncio.Event()

    async def condition(*_: Any) -> bool:
        asked.set()
        await asyncio.sleep(0)
        return True

    @task(retries=3, retry_delay_seconds=0, retry_condition_fn=condition)
    async def broken() -> None:
        raise ValueError("no")

    @flow
    async def main() -> str:
        future = broken.submit()
        await asked.wait()
        assert future.cancel()
        await wait([future])
        return future.state.name

    async with asyncio.timeout(10):
        assert await engine.run(main) == "Cancelled"
