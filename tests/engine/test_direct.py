"""Direct calls that end before their code is entered."""

from __future__ import annotations

import asyncio

import pytest

from asyncflow import Engine, RunCancelled, UpstreamFailed, flow, task


@task
async def broken() -> int:
    await asyncio.sleep(0)
    raise ValueError("no")


@task
async def same(x: int) -> int:
    return x


@flow
async def child(x: int) -> int:
    return x


async def test_a_direct_call_whose_upstream_fails_later_raises(engine: Engine) -> None:
    @flow
    async def main() -> list[str]:
        told = []
        for called in (same, child):
            with pytest.raises(UpstreamFailed) as caught:
                await called(broken.submit())  # type: ignore[arg-type] # a future for a value
            told.append(repr(caught.value.__cause__))
        return told

    async with asyncio.timeout(10):
        assert await engine.run(main) == ["ValueError('no')"] * 2


async def test_a_direct_call_that_waits_in_a_task_of_its_own_ends_with_its_run(
    engine: Engine,
) -> None:
    ended: list[BaseException] = []
    waiting = asyncio.Event()

    @task
    async def hold() -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def call(upstream: object) -> None:
        try:
            await same(upstream)  # type: ignore[arg-type] # a future for a value
        except BaseException as error:
            ended.append(error)
            raise

    @flow
    async def main() -> None:
        held = hold.submit()
        background = asyncio.create_task(call(held))
        background.add_done_callback(lambda done: done.exception())
        await held

    async with asyncio.timeout(10):
        run = await engine.submit(main)
        await waiting.wait()
        await run.cancel()
        with pytest.raises(RunCancelled):
            await run
    assert [type(error) for error in ended] == [RunCancelled]
