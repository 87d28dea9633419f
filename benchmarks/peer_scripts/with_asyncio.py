"""The reference: nothing but asyncio. It keeps nothing, so it has nothing to resume from."""

from __future__ import annotations

import asyncio

from common import CONCURRENCY, Answer, Work, body, check, main, timed, total


async def nothing(i: int) -> int:
    return i


async def step(x: int) -> int:
    return x + 1


async def fan(n: int) -> int:
    """What people write: a task for each item, and a semaphore."""
    semaphore = asyncio.Semaphore(CONCURRENCY)

    async def one(i: int) -> int:
        async with semaphore:
            return await nothing(i)

    with body():
        results = await asyncio.gather(*[one(i) for i in range(n)])
    return sum(results)


async def chain(n: int) -> int:
    """A task for each link, so that a link could be cancelled by itself."""
    x = 0
    with body():
        for _ in range(n):
            x = await asyncio.create_task(step(x))
    return x


def hello(_work: Work) -> Answer:
    check(asyncio.run(fan(1)), 0)
    return {}


def measure(work: Work) -> Answer:
    async def run() -> Answer:
        await fan(work.warm)
        return {
            "fan": await timed(fan(work.n), total(work.n)),
            "chain": await timed(chain(work.chain), work.chain),
        }

    return asyncio.run(run())


if __name__ == "__main__":
    main([], hello=hello, measure=measure)
