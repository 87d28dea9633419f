"""Prefect with the server that it starts for itself, on SQLite.

Tasks are awaited in the flow, under a semaphore, which costs Prefect least; `.map` and `.submit`
cost more. The variant "kept" stores each result. Prefect does not go on with a run whose process
died; the nearest is to run the flow again where results are kept by their inputs.
"""

from __future__ import annotations

import asyncio

from common import CONCURRENCY, Answer, Work, body, check, main, timed, total
from prefect import flow, task
from prefect.cache_policies import INPUTS, TASK_SOURCE

ran = 0


@task
async def nothing(i: int) -> int:
    global ran
    ran += 1
    return i


@task
async def step(x: int) -> int:
    return x + 1


# INPUTS alone would mix up the results of tasks whose parameters have the same name and value.
kept = {"persist_result": True, "cache_policy": INPUTS + TASK_SOURCE}
TASKS = {
    "plain": (nothing, step),
    "kept": (nothing.with_options(**kept), step.with_options(**kept)),
}


@flow
async def fan(variant: str, start: int, n: int) -> int:
    semaphore = asyncio.Semaphore(CONCURRENCY)
    function = TASKS[variant][0]

    async def one(i: int) -> int:
        async with semaphore:
            return await function(i)

    with body():
        results = await asyncio.gather(*[one(i) for i in range(start, start + n)])
    return sum(results)


@flow
async def chain(variant: str, n: int) -> int:
    function = TASKS[variant][1]
    x = 0
    with body():
        for _ in range(n):
            x = await function(x)
    return x


def hello(work: Work) -> Answer:
    check(asyncio.run(fan(work.variant, 0, 1)), 0)
    return {}


def measure(work: Work) -> Answer:
    async def run() -> Answer:
        # The server is up, and no later input is among the kept results.
        await fan(work.variant, -work.warm, work.warm)
        return {
            "fan": await timed(fan(work.variant, 0, work.n), total(work.n)),
            "chain": await timed(chain(work.variant, work.chain), work.chain),
        }

    return asyncio.run(run())


def resume(work: Work) -> Answer:
    """The fan-out of `measure` again, in a process that has a server and no results in memory."""

    async def run() -> Answer:
        global ran
        await fan(work.variant, -2 * work.warm, work.warm)
        ran = 0
        return {"resume": await timed(fan(work.variant, 0, work.n), total(work.n))}

    answer = asyncio.run(run())
    answer["ran again"] = ran
    return answer


if __name__ == "__main__":
    main(["prefect", "sqlalchemy"], hello=hello, measure=measure, resume=resume)
