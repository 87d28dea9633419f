"""Flows are tried again by the same rules as tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from virtual import now, virtual_engine, virtually

from asyncflow import Engine, FlowRun, MemoryStore, RunCancelled, State, flow, task


async def test_a_condition_may_refuse_another_attempt_of_a_flow(engine: Engine) -> None:
    tries: list[int] = []
    told: list[tuple[str, str, str]] = []

    def condition(its: Any, run: FlowRun[Any], state: State[Any]) -> bool:
        told.append((its.name, run.name, str(state.result(raise_on_failure=False))))
        return len(tries) < 2

    @flow(retries=5, retry_delay_seconds=0, retry_condition_fn=condition)
    async def main() -> None:
        tries.append(1)
        raise ValueError(f"try {len(tries)}")

    with pytest.raises(ValueError, match="try 2"):
        await engine.run(main)
    assert told == [("main", "main", "try 1"), ("main", "main", "try 2")]


async def test_an_async_condition_that_raises_means_no_other_attempt(engine: Engine) -> None:
    async def condition(*_: Any) -> bool:
        raise KeyError("cannot say")

    @flow(retries=5, retry_delay_seconds=0, retry_condition_fn=condition)
    async def main() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        await engine.run(main)
    assert "its retry_condition_fn raised KeyError: 'cannot say', so no retry" in str(
        caught.value.__notes__
    )


async def test_the_last_exception_of_a_flow_carries_its_attempts(engine: Engine) -> None:
    tries: list[int] = []

    @flow(retries=2, retry_delay_seconds=0)
    async def main() -> None:
        tries.append(1)
        raise ValueError(f"try {len(tries)}")

    with pytest.raises(ValueError, match="try 3") as caught:
        await engine.run(main, run_name="this one")
    assert caught.value.__notes__ == [
        "asyncflow: this one failed in 3 attempts:\n  attempt 1: ValueError: try 1\n"
        "  attempt 2: ValueError: try 2\n  attempt 3: ValueError: try 3"
    ]


@virtually
async def test_a_flow_that_waits_for_another_attempt_is_cancelled_at_once() -> None:
    @flow(retries=1, retry_delay_seconds=1000, retry_jitter_factor=0)
    async def main() -> None:
        raise ValueError("no")

    async with virtual_engine() as engine:
        run = await engine.submit(main)
        await asyncio.sleep(1)
        assert run.state.name == "AwaitingRetry"
        await run.cancel()
        assert now() < 2
        with pytest.raises(RunCancelled):
            await run
        assert [r.state.name for r in await engine.runs()] == ["Cancelled"]


@virtually
async def test_the_host_may_cancel_a_flow_that_waits_for_another_attempt() -> None:
    @flow(retries=1, retry_delay_seconds=1000, retry_jitter_factor=0)
    async def main() -> None:
        raise ValueError("no")

    async with virtual_engine() as engine:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await engine.run(main)
        assert [r.state.name for r in await engine.runs()] == ["Cancelled"]


@virtually
async def test_closing_the_engine_interrupts_a_flow_that_waits_for_another_attempt() -> None:
    store, tries = MemoryStore(), []

    @flow(retries=1, retry_delay_seconds=1000, retry_jitter_factor=0)
    async def main() -> str:
        tries.append(1)
        if len(tries) < 2:
            raise ValueError("no")
        return "done"

    async with virtual_engine(store) as engine:
        run = await engine.submit(main)
        await asyncio.sleep(1)
    assert now() < 2
    async with virtual_engine(store) as engine:
        assert (await engine.get_run(run.id)).state.name == "Interrupted"
        assert await (await engine.resume(run.id)) == "done"


@virtually
async def test_an_interruption_uses_up_no_attempt_of_a_flow() -> None:
    store, lives = MemoryStore(), []

    @task
    async def work(life: int) -> None:
        if life == 1:
            await asyncio.Event().wait()

    @flow(retries=1, retry_delay_seconds=0)
    async def main() -> str:
        lives.append(1)
        await work(len(lives))
        if len(lives) == 2:
            raise ValueError("no")
        return "done"

    async with virtual_engine(store) as engine:
        run = await engine.submit(main)
        await asyncio.sleep(1)
    async with virtual_engine(store) as engine:
        assert await (await engine.resume(run.id)) == "done"
    assert len(lives) == 3


@virtually
async def test_attempts_of_a_flow_that_were_used_stay_used_over_a_recovery() -> None:
    store, tries = MemoryStore(), []

    @flow(retries=1, retry_delay_seconds=0)
    async def main() -> None:
        tries.append(1)
        if len(tries) == 2:
            await asyncio.Event().wait()
        raise ValueError(f"try {len(tries)}")

    async with virtual_engine(store) as engine:
        run = await engine.submit(main)
        await asyncio.sleep(1)
    async with virtual_engine(store) as engine:
        again = await engine.resume(run.id)
        with pytest.raises(ValueError, match="try 3"):
            await again
        assert len(tries) == 3
        again = await engine.resume(run.id)
        with pytest.raises(ValueError, match="try 5"):
            await again  # a resume of what had failed grants fresh attempts
