"""Waiting for what nothing tells of: what another process or thread does, or what a store shows.

Nothing else in the tests looks again and again, and nothing sleeps in the hope that it is enough
(`tests/house/test_sleeps.py`). An event, or what an engine lets one await, is better where it is.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")

#: Seconds after which what has not come never will: far more than a busy machine needs.
PATIENCE = 60.0
#: Seconds from one look to the next.
PAUSE = 0.01


async def until(
    condition: Callable[[], T | None] | Callable[[], Awaitable[T | None]],
    within: float = PATIENCE,
    pause: float = PAUSE,
) -> T:
    """What *condition* gives as soon as it is true; it may be a coroutine function.

    Args:
        condition: what is meant; it is named if it never comes.
        within: seconds for which it may be untrue.
        pause: seconds from one look to the next.

    Raises:
        AssertionError: it was not true within that time.
    """
    found: Any = None
    bound = asyncio.timeout(within)
    try:
        async with bound:
            while True:
                found = condition()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return cast("T", found)
                await asyncio.sleep(pause)
    except TimeoutError:
        if bound.expired():
            raise AssertionError(_never(condition, within, found)) from None
        raise  # it is the condition's own


def eventually(
    condition: Callable[[], T | None], within: float = PATIENCE, pause: float = PAUSE
) -> T:
    """As `until`, where there is no loop: it holds its thread."""
    end = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() >= end:
            raise AssertionError(_never(condition, within, found))
        time.sleep(pause)
    return found


async def settled(engine: Any, count: int) -> list[Any]:
    """All deliveries of an engine, the oldest first, once so many have ended."""

    async def ended() -> list[Any] | None:
        found = await engine.deliveries()
        return found[::-1] if sum(one.ended_at is not None for one in found) >= count else None

    return await until(ended)


def _never(condition: Callable[[], Any], within: float, last: Any) -> str:
    """Which condition it was, in the words of its source."""
    try:
        source = " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        source = repr(condition)
    return f"not within {within:g} s: {source}; at last {last!r}"
