"""What threads of sync code see of calls that the loop works on at the same time."""

from __future__ import annotations

import asyncio
import sys

import pytest

from asyncflow import Engine, flow, task


@pytest.fixture
def _busy_threads() -> object:
    """Threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_busy_threads")
async def test_an_item_of_a_map_has_one_future(engine: Engine) -> None:
    @task
    async def same(x: int) -> int:
        await asyncio.sleep(0)
        return x

    @flow
    def main() -> bool:
        for _ in range(10):
            mapped = same.map(range(1000))
            futures = list(mapped)
            assert [f.result(timeout=60) for f in futures] == list(range(1000))
            assert all(a is b for a, b in zip(futures, mapped, strict=True))
        return True

    assert await engine.run(main)
