"""What tests wait with says what never came."""

from __future__ import annotations

import asyncio

import pytest
from patience import eventually, until
from virtual import now, virtually


@virtually
async def test_what_never_comes_is_named_with_what_was_seen_last() -> None:
    seen: list[int] = []
    with pytest.raises(AssertionError, match=r"not within 5 s: .*len\(seen\) > 2.*last False"):
        await until(lambda: len(seen) > 2, within=5)
    assert now() == pytest.approx(5)


@virtually
async def test_what_comes_is_given() -> None:
    async def later() -> str | None:
        return "it" if now() > 3 else None

    assert await until(later) == "it"
    assert await until(lambda: "at once") == "at once"


@virtually
async def test_a_condition_that_hangs_is_named_and_its_own_error_is_let_through() -> None:
    async def hangs() -> bool:
        return await asyncio.Event().wait()

    async def fails() -> bool:
        raise TimeoutError("its own")

    with pytest.raises(AssertionError, match="async def hangs"):
        await until(hangs, within=1)
    with pytest.raises(TimeoutError, match="its own"):
        await until(fails)


def test_a_thread_waits_likewise() -> None:
    looks: list[int] = []
    assert eventually(lambda: looks.append(1) or len(looks) > 2, pause=0)
    with pytest.raises(AssertionError, match=r"not within 0 s: .*last 0"):
        eventually(lambda: 0, within=0)
